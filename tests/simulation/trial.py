"""One seed, one trial: a strategy, its settings, a cluster and its faults are drawn; invariants hold after every event.

    python tests/simulation/trial.py --seed 17                        # one trial, told at length
    python tests/simulation/trial.py --first 0 --count 10000          # many; stops at the first that fails

A trial runs through a time of faults, in which checkpoints and snapshots are asked for at drawn moments. Then faults
end, and within a bound everybody must make progress; the last checkpoint is resumed, and goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __package__:
    from .ledger import Ledger, Violation, check, watching
    from .plans import FAULT_SECONDS, SCENARIOS, Plan, draw_plan
else:  # run as a file
    sys.path.insert(0, str(Path(__file__).parent))
    from ledger import Ledger, Violation, check, watching  # type: ignore[no-redef]
    from plans import FAULT_SECONDS, SCENARIOS, Plan, draw_plan  # type: ignore[no-redef]

from qfleet.engines import sim
from qfleet.envs.make import probe_spec
from qfleet.errors import QfleetError, RoleDied
from qfleet.placement.cluster_file import parse_cluster
from qfleet.policy import make_blueprint
from qfleet.recipe import RunConfig, build_config, find_recipe, load_plugin
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


class Trial:
    """A strategy on a simulated cluster, driven from event to event.

    Args:
        plan: what was drawn.
        folder: for checkpoints.
        saved: the checkpoint to continue from, and its counters.
        with_faults: whether faults strike.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        saved: Checkpoint | None = None,
        with_faults: bool = True,
    ) -> None:
        self.plan = plan
        self.config: RunConfig = build_config(find_recipe("vector").values, list(plan.changes.items()))
        raw = plan.cluster if with_faults else {**plan.cluster, "fault": []}
        self.engine = simulated(self.config, raw)
        self.blueprint = make_blueprint(self.config, probe_spec(self.config.env, None), "cpu")
        self.control = Control(str(folder))
        self.counted: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.version = 0
        self.num_events = 0
        self.seen: dict[int, bytes] = {}  # parameters by version
        if saved is not None:
            self.control.counters = dataclasses.replace(saved[1])
            self.control.saved_files, self.control.saved_tag = saved[0].files, saved[0].tag
            self.counted.update(dataclasses.asdict(saved[1]))
            self.version = saved[1].num_updates
            self.engine.load_state_dict({**saved[2], "faults": self.engine.faults.state_dict()})
        self.num_answers = 0
        self.ledger: Ledger | None = None
        self.engine.wait = self.counted_wait(self.engine.wait)  # type: ignore[method-assign]
        strategy = load_plugin("strategy", self.config.strategy.name)
        self.events = strategy.run(
            self.engine, self.blueprint, self.config.strategy, self.control, None if saved is None else saved[0]
        )

    def counted_wait(self, wait: Any) -> Any:
        """Nobody may turn in a circle without an event, however busy."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.num_answers += 1
            if self.ledger is not None and self.ledger.violation is not None:
                raise self.ledger.violation
            check(
                self.num_answers <= MAX_ANSWERS, f"{MAX_ANSWERS} answers without an event at {self.engine.now():.3f} s"
            )
            return wait(*args, **kwargs)

        return wrapped

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
            version = event.receipt.version
            check(version > self.version or lost > 0, f"version {version} after {self.version}")
            self.version = version
            if self.plan.is_ordered:
                self.remember(event.role.split(","))
        if isinstance(event, RoleRestarted):
            self.restarts[event.role] += 1
            most = self.plan.changes["strategy.max_restarts"]
            check(
                self.restarts[event.role] <= most + 1, f"{event.role} was restarted {self.restarts[event.role]} times"
            )
        if isinstance(event, Drained):
            self.counted["num_inserted"] += sum(event.inserted.values())
            self.check_conserved()
        self.check_books()
        return event

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
        counters, replay = self.control.counters, self.blueprint.replay
        for name in ("num_env_steps", "num_samples" if self.plan.name != "replay" else "num_env_steps"):
            check(
                getattr(counters, name) == self.counted[name], f"{name} {getattr(counters, name)} {self.counted[name]}"
            )
        allowed = replay.samples_per_insert * counters.num_inserted
        check(counters.num_samples <= allowed, f"{counters.num_samples} samples, {counters.num_inserted} inserted")
        most = 4 * self.config.strategy.num_workers + 40  # type: ignore[attr-defined]
        for name, home in self.engine.machines.homes.items():
            check(len(home.open) <= most, f"{len(home.open)} calls wait for {name}")

    def check_conserved(self) -> None:
        """Nothing is under way: what was inserted is in a replay, or was counted as lost."""
        if not all(role.is_alive for role in self.engine._roles.values()):
            return  # one died after it had saved itself; nobody has noticed yet
        held = 0
        for role in self.engine._roles.values():
            replay = getattr(role.built, "replay", None)
            held += 0 if replay is None else len(replay)
        lost = self.control.tallies.get("transitions_lost", 0)
        inserted = self.control.counters.num_inserted
        check(held == inserted - lost, f"{inserted} inserted, {lost} lost, {held} held")

    def drain(self, tag: str) -> tuple[Saved, Counters, dict[str, object]]:
        """A checkpoint, as the session would commit it."""
        self.control.drain_tag = tag
        event = self.until(Drained)
        assert isinstance(event, Drained)
        state = json.loads(json.dumps(event.state))
        engine_state = json.loads(json.dumps(self.engine.state_dict()))
        self.control.saved_files, self.control.saved_tag, self.control.drain_tag = event.files, tag, None
        return Saved(tag, event.files, state), dataclasses.replace(self.control.counters), engine_state

    def until(self, kind: type[Event]) -> Event:
        """The next event of a kind, within the bound."""
        for _ in range(5 * PATIENCE):
            event = self.step()
            if isinstance(event, kind):
                return event
        raise Violation(f"no {kind.__name__} within {5 * PATIENCE} events")

    def parameters(self) -> bytes:
        """Of the newest version."""
        self.control.snapshot_wanted = True
        event = self.until(SnapshotPublished)
        assert isinstance(event, SnapshotPublished)
        snapshot: Any = self.engine.payload(event.future)
        vector: np.ndarray = snapshot.vector
        return vector.tobytes()

    def progress(self, times: int = 1) -> None:
        """Everybody gets further within a bound."""
        counters = self.control.counters
        before = dataclasses.replace(counters)
        for _ in range(PATIENCE):
            self.step()
            if counters.num_updates > before.num_updates + 2 and counters.num_env_steps > before.num_env_steps + 8:
                return self.progress(times - 1) if times > 1 else None
        raise Violation(f"no progress within {PATIENCE} events: {before}, {counters}")


def simulated(config: RunConfig, cluster: dict[str, Any]) -> sim.Engine:
    """The engine on a cluster that is not in a file; a role that does not answer for 0.06 s is dead."""
    engine_config = sim.Config(role_timeout=0.06, placement_timeout=0.05)
    read, sim.read_cluster = sim.read_cluster, lambda path: parse_cluster(cluster)
    try:
        return sim.Engine(engine_config, config.seed)
    finally:
        sim.read_cluster = read


def play(seed: int, only: str | None = None) -> dict[str, Any]:
    """Trial `seed`; what it saw.

    Raises:
        Exception: an invariant does not hold, or the strategy itself failed.
    """
    plan = draw_plan(seed, only)
    folder = Path(tempfile.mkdtemp(prefix="qfleet-trial-"))
    ledger, again = (Ledger(0.01 if not plan.changes.get("strategy.local_steps") else None) for _ in range(2))
    trial = Trial(plan, folder / "checkpoints")
    trial.ledger = ledger
    try:
        with watching(ledger):
            outcome, saved = endure(plan, trial)
        if saved is not None:
            with watching(again):
                resume(plan, trial, saved, folder / "checkpoints", again)
        books = {"merges": ledger.num_merges, "encoded": ledger.num_encoded, "keys": ledger.num_inserts}
        return {"name": plan.name, **outcome, **books, **trial.control.tallies}
    finally:
        trial.engine.close()
        shutil.rmtree(folder, ignore_errors=True)


Checkpoint = tuple[Saved, Counters, dict[str, object]]


def endure(plan: Plan, trial: Trial) -> tuple[dict[str, Any], Checkpoint | None]:
    """The time of faults, and what comes after it; the last checkpoint, where the run has come that far."""
    control, engine = trial.control, trial.engine
    drains, snapshots = list(plan.drains), list(plan.snapshots)
    try:
        while engine.now() < FAULT_SECONDS + 0.15:
            if snapshots and trial.num_events >= snapshots[0]:
                snapshots.pop(0)
                trial.parameters()
            elif drains and trial.num_events >= drains[0]:
                trial.drain(f"{len(drains):05d}")
                drains.pop(0)
            else:
                trial.step()
            if control.failure is not None:
                check(plan.budget is not None, f"gave up: {control.failure}")
                trial.drain("00009")
                return {"outcome": "gave up"}, None
        trial.progress()
        saved = trial.drain("00010")
        if plan.is_ordered:
            trial.seen.clear()
            trial.progress(2)
        return {"outcome": "done", "updates": control.counters.num_updates, "seconds": engine.now()}, saved
    except QfleetError as error:
        if "gone with" in str(error):  # the newest parameters were on a machine that is lost: the run says so, and ends
            return {"outcome": "parameters lost"}, None
        if control.failure is not None and plan.budget is not None:
            return {"outcome": "gave up"}, None
        if isinstance(error, RoleDied) and not trial.num_events:  # nothing has begun that could be mended
            return {"outcome": "died at the start"}, None
        raise


def resume(plan: Plan, trial: Trial, saved: Checkpoint, folder: Path, ledger: Ledger) -> None:
    """The last checkpoint goes on; as the run itself did, where that does not depend on who comes first."""
    resumed = Trial(plan, folder, saved, with_faults=False)
    resumed.ledger = ledger
    try:
        resumed.progress(2)
        if plan.is_ordered and not trial.restarts:  # a new life's generators are not those that a checkpoint finds
            both = trial.seen.keys() & resumed.seen.keys()
            check(len(both) >= 2, f"{len(both)} versions of both")
            others = [version for version in sorted(both) if trial.seen[version] != resumed.seen[version]]
            check(not others, f"the resumed run has other parameters from version {others[:1]} on")
    finally:
        resumed.engine.close()


def main() -> None:
    """Many trials, and the one command that replays the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", choices=sorted(SCENARIOS))
    parser.add_argument("--keep-going", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [args.seed] if args.seed is not None else range(args.first, args.first + args.count)
    if args.seed is not None:
        print(json.dumps(dataclasses.asdict(draw_plan(args.seed, args.only)), indent=1))
    seen: Counter[str] = Counter()
    started, num_failed = time.perf_counter(), 0
    for seed in seeds:
        try:
            outcome = play(seed, args.only)
        except Exception as error:
            only = f" --only {args.only}" if args.only else ""
            print(f"seed {seed} ({draw_plan(seed, args.only).name}): {type(error).__name__}: {error}")
            print(f"  replay: python tests/simulation/trial.py --seed {seed}{only}", flush=True)
            num_failed += 1
            if args.seed is not None:
                raise
            if not args.keep_going:
                sys.exit(1)
            continue
        seen[f"{outcome['name']}: {outcome['outcome']}"] += 1
        for name, number in outcome.items():
            if isinstance(number, int):
                seen[name] += number
    print(f"{len(seeds)} seeds in {time.perf_counter() - started:.0f} s, {num_failed} failed")
    print(json.dumps(dict(sorted(seen.items())), indent=1))
    if num_failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
