"""A strategy on a simulated cluster, driven from event to event; after each of them invariants hold.

trial.py takes it through a time of faults and beyond; the books that it checks against are in ledger.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if __package__ or TYPE_CHECKING:
    from .ledger import Ledger, Violation, check
    from .plans import Plan, pace_slack
else:  # beside trial.py, run as a file
    from ledger import Ledger, Violation, check
    from plans import Plan, pace_slack

from qfleet.engines import sim
from qfleet.envs.make import probe_spec
from qfleet.errors import ValueLost
from qfleet.notices import Notices
from qfleet.placement.cluster_file import parse_cluster
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint
from qfleet.recipe import find_recipe
from qfleet.run_config import RunConfig, build_config
from qfleet.strategies.actor_learner import CALLS_AT_LEARNER
from qfleet.strategies.base import (
    Control,
    Counters,
    Drained,
    Event,
    RoleRestarted,
    Rollout,
    Saved,
    SnapshotPublished,
    Update,
)

MAX_ANSWERS = 3000  # between two events of a strategy: more means that it turns in a circle
PATIENCE = 600  # events in which everybody must have got further once faults have ended

Checkpoint = tuple[Saved, Counters, dict[str, object], dict[str, int]]


class Course:
    """One run of a plan.

    Args:
        plan: what was drawn.
        folder: for checkpoints.
        ledger: whose violations, found inside a role, are raised here.
        saved: the checkpoint to continue from, and its counters.
        with_faults: whether faults strike.

    Attributes:
        struck: faults by kind.
        seen: parameters by version, from the last cut to the first death after it, which no other run shares.
    """

    def __init__(
        self, plan: Plan, folder: Path, ledger: Ledger, saved: Checkpoint | None = None, with_faults: bool = True
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.config: RunConfig = configured(plan)
        self.struck: Counter[str] = Counter()
        self.engine = self.simulated(plan.cluster if with_faults else {**plan.cluster, "fault": []})
        self.blueprint = make_blueprint(self.config, probe_spec(self.config.env, None), "cpu")
        self.control = Control(str(folder))
        self.notices = Notices(self.engine, self.config)
        self.counted: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.version = 0
        self.num_events = self.num_cuts = self.num_answers = 0
        self.seen: dict[int, bytes] = {}
        self.is_alone = False  # whether somebody has died since the last cut
        self.cut: tuple[Counters, tuple[int, ...]] | None = None  # the last one, and how many had died till then
        if saved is not None:
            self.control.counters, self.control.tallies = dataclasses.replace(saved[1]), dict(saved[3])
            self.control.saved_files, self.control.saved_tag = saved[0].files, saved[0].tag
            self.counted.update(dataclasses.asdict(saved[1]))
            self.version = saved[1].num_updates
            self.engine.load_state_dict({**saved[2], "faults": self.engine.faults.state_dict()})
        strategy = load_plugin("strategy", self.config.strategy.name)
        self.events = strategy.run(
            self.engine, self.blueprint, self.config.strategy, self.control, None if saved is None else saved[0]
        )

    def simulated(self, cluster: dict[str, Any]) -> sim.Engine:
        """The engine on a cluster that is not in a file; a role that does not answer for 0.06 s is dead."""
        read, sim.read_cluster = sim.read_cluster, lambda path: parse_cluster(cluster)
        try:
            engine = sim.Engine(sim.Config(role_timeout=0.06, placement_timeout=0.05), self.config.seed)
        finally:
            sim.read_cluster = read
        wait, write = engine.wait, engine.log.write

        def counted_wait(*args: Any, **kwargs: Any) -> Any:
            self.num_answers += 1
            if self.ledger.violation is not None:
                raise self.ledger.violation
            check(self.num_answers <= MAX_ANSWERS, f"{MAX_ANSWERS} answers without an event at {engine.now():.3f} s")
            return wait(*args, **kwargs)

        def counted_write(time: float, event: str, role: str = "", facts: Any = None) -> None:
            if event == "fault":
                self.struck[str(facts["kind"])] += 1
            write(time, event, role, facts)

        engine.wait, engine.log.write = counted_wait, counted_write  # type: ignore[method-assign]
        return engine

    # one event after the other

    def step(self) -> Event:
        """One event, and everything is in order after it."""
        self.num_answers = 0
        before = self.control.tallies.get("updates_lost", 0)
        event: Event = next(self.events)
        self.num_events += 1
        lost = self.control.tallies.get("updates_lost", 0) - before
        self.version -= lost
        if isinstance(event, Rollout | Update):
            for name in ("num_env_steps", "num_inserted", "num_updates", "num_samples"):
                self.counted[name] += getattr(event.receipt, name)
        if isinstance(event, Update) and event.receipt.num_updates:
            self.check_update(event, lost)
        if isinstance(event, RoleRestarted):
            self.is_alone = True
            self.restarts[event.role] += 1
            most = self.plan.changes["strategy.max_restarts"]
            check(
                self.restarts[event.role] <= most + 1, f"{event.role} was restarted {self.restarts[event.role]} times"
            )
        if isinstance(event, Drained):
            self.counted["num_inserted"] += sum(event.inserted.values())
            self.check_conserved()
            self.check_pace()
        self.check_books()
        return event

    def until(self, kind: type[Event]) -> Event:
        """The next event of a kind, within the bound."""
        for _ in range(5 * PATIENCE):
            event = self.step()
            if isinstance(event, kind):
                return event
        raise Violation(f"no {kind.__name__} within {5 * PATIENCE} events")

    def progress(self, num_inserted: int = 8) -> None:
        """Everybody gets further within a bound."""
        counters = self.control.counters
        before = dataclasses.replace(counters)
        while counters.num_updates <= before.num_updates + 2 or counters.num_inserted <= (
            before.num_inserted + num_inserted
        ):
            then = dataclasses.replace(counters)
            for _ in range(PATIENCE):
                self.step()
                if counters.num_updates > then.num_updates and counters.num_env_steps > then.num_env_steps:
                    break
            else:
                raise Violation(f"no progress within {PATIENCE} events: {then}, {counters}")

    def drain(self) -> Checkpoint:
        """A checkpoint, as the session would commit it."""
        tag = f"{self.num_cuts:05d}"
        self.num_cuts += 1
        self.control.drain_tag = tag
        event = self.until(Drained)
        assert isinstance(event, Drained)
        state = json.loads(json.dumps(event.state))
        engine_state = json.loads(json.dumps(self.engine.state_dict()))
        self.control.saved_files, self.control.saved_tag, self.control.drain_tag = event.files, tag, None
        self.seen, self.is_alone = {}, False
        counters, tallies = dataclasses.replace(self.control.counters), dict(self.control.tallies)
        return Saved(tag, event.files, state), counters, engine_state, tallies

    def parameters(self) -> None:
        """Have the newest version published; it may be gone with its maker's machine, as for the session's validation.

        Its maker has answered, and is lost before the answer is heard: the strategy cannot know.
        """
        self.control.snapshot_wanted = True
        event = self.until(SnapshotPublished)
        assert isinstance(event, SnapshotPublished)
        try:
            snapshot: Any = self.engine.payload(event.future)
        except ValueLost:
            self.control.count("validations_lost")
            return
        check(bool(np.isfinite(snapshot.vector).all()), "a snapshot is no good")

    # what has to hold

    def check_update(self, event: Update, lost: int) -> None:
        """Versions grow; no trajectory is older than it may be."""
        version = event.receipt.version
        check(version > self.version or lost > 0, f"version {version} after {self.version}")
        self.version = version
        most = self.plan.changes.get("strategy.max_policy_lag")
        if most is not None:
            oldest = max(event.receipt.lags["policy_lag"])
            check(oldest <= most, f"a trajectory is {oldest} versions old, bound {most}")
        if self.plan.is_ordered and not self.is_alone:
            self.remember(event.role.split(","))

    def remember(self, names: list[str]) -> None:
        """The parameters of whoever has made an update."""
        roles = [self.engine._roles[name] for name in names if name in self.engine._roles]
        if not roles or not all(role.is_alive for role in roles):
            return
        built: list[Any] = [role.built for role in roles]
        if hasattr(built[0], "learner"):
            learner = built[0].learner
            self.seen[learner.version] = learner.online.vector.numpy().tobytes()
        elif hasattr(built[0], "is_shared"):
            self.seen[built[0].version] = built[0].vector.tobytes()
        elif len({server.version for server in built}) == 1:
            parts = sorted(built, key=lambda server: server.first)
            self.seen[built[0].version] = b"".join(part.online.numpy().tobytes() for part in parts)

    def check_books(self) -> None:
        """Counters, pace and queues."""
        counters, replay, strategy = self.control.counters, self.config.pace, self.config.strategy
        for name in ("num_env_steps", "num_samples" if self.plan.name != "replay" else "num_env_steps"):
            check(
                getattr(counters, name) == self.counted[name], f"{name} {getattr(counters, name)} {self.counted[name]}"
            )
        allowed = replay.samples_per_insert * counters.num_inserted
        check(counters.num_samples <= allowed, f"{counters.num_samples} samples, {counters.num_inserted} inserted")
        most = 4 * getattr(strategy, "num_workers", 1) + 40
        for name, home in self.engine.machines.homes.items():
            check(len(home.open) <= most, f"{len(home.open)} calls wait for {name}")
        if self.plan.name == "actor-learner":
            per_update = self.plan.changes["strategy.trajectories_per_update"]
            waiting = counters.num_inserted - counters.num_samples - self.rows(self.lost_trajectories())
            room = self.rows(self.plan.changes["strategy.queue_size"] + CALLS_AT_LEARNER * per_update)
            check(0 <= waiting <= room, f"{waiting} rows wait for the learner, room for {room}")

    def lost_trajectories(self) -> int:
        """Those that were collected and will never be trained on."""
        return self.control.tallies.get("trajectories_lost", 0)

    def rows(self, num_trajectories: int) -> int:
        """Rows of so many trajectories."""
        return int(num_trajectories * self.plan.changes["algo.rollout_steps"] * self.plan.changes["env.num_envs"])

    def check_conserved(self) -> None:
        """Nothing is under way: what was inserted is in a replay, or was counted as lost."""
        if not all(role.is_alive for role in self.engine._roles.values()):
            return  # one died after it had saved itself; nobody has noticed yet
        inserted, lost = self.control.counters.num_inserted, self.control.tallies.get("transitions_lost", 0)
        if self.plan.name == "actor-learner":  # nothing is kept: all has been trained on
            held, lost = self.control.counters.num_samples, self.rows(self.lost_trajectories())
        else:
            replays = [getattr(role.built, "replay", None) for role in self.engine._roles.values()]
            held = sum(len(replay) for replay in replays if replay is not None)
        check(held == inserted - lost, f"{inserted} inserted, {lost} lost, {held} held")

    def check_pace(self) -> None:
        """Between two cuts in which nobody died, samples follow inserts by their ratio, neither more nor less."""
        counters = dataclasses.replace(self.control.counters)
        deaths = (sum(self.restarts.values()), self.lost_trajectories(), self.control.tallies.get("values_lost", 0))
        ratio = self.config.pace.samples_per_insert
        if self.cut is not None and self.cut[1] == deaths and self.cut[0].num_updates:
            inserted = counters.num_inserted - self.cut[0].num_inserted
            samples = counters.num_samples - self.cut[0].num_samples
            slack = pace_slack(self.plan)
            check(
                abs(samples - ratio * inserted) <= slack,
                f"{samples} samples of {inserted} inserted transitions, {ratio:g} of each were asked for, give or take "
                f"{slack:g}",
            )
        self.cut = (counters, deaths)


def configured(plan: Plan) -> RunConfig:
    """The plan's configuration."""
    algo = plan.changes.get("algo")
    values = find_recipe("vector").values if algo is None else {"algo": {"name": algo}}
    return build_config(values, list(plan.changes.items()))
