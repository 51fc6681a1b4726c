"""The loop of federated rounds: draw clients, send the global model, gather their updates, aggregate.

waits for                      unblocked by
a round                        the last answer of its clients; after `round_timeout`, the first enough of them
too few answers                another client, drawn when one is free
aggregation                    the aggregator's answer, or its new life having been asked again
a checkpoint                   the end of the round, the clients that come late, and updates that all owe
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from qfleet.engines.base import Engine, Future, Placement
from qfleet.errors import QfleetError, ValueLost
from qfleet.roles.aggregator import Aggregator
from qfleet.roles.blueprint import Blueprint
from qfleet.seeding import derive_generator, generator_state, set_generator_state
from qfleet.strategies.base import (
    Control,
    CrewChanged,
    Event,
    Rollout,
    Saved,
    SnapshotPublished,
    Update,
    call,
    drained,
    submit_saves,
)
from qfleet.strategies.base.clients import Client, Crew, Plan
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.supervisor import Loss, Supervisor
from qfleet.types import Receipt

PERSONAL_LANE = "personal"  # beside training, so that looking does not change the order of its calls


@dataclass(slots=True)
class _Round:
    """A round that is open.

    Attributes:
        number: counts rounds.
        started: the engine's time.
        waiting: clients whose answers are missing.
        updates: the answers, as completed calls.
    """

    number: int
    started: float
    waiting: list[Client] = field(default_factory=list)
    updates: list[tuple[Client, Future]] = field(default_factory=list)


class Rounds:
    """The coordinator of one run.

    Args:
        engine, blueprint, config, control: as the strategy got them.
        plan: what a round is.
    """

    def __init__(self, engine: Engine, blueprint: Blueprint, config: FleetConfig, control: Control, plan: Plan) -> None:
        self.engine = engine
        self.config = config
        self.control = control
        self.plan = plan
        self.supervisor = Supervisor(engine, config, control)
        self.generator = derive_generator(blueprint.seed, "federated", "participants")
        placement = Placement(near="pack")
        self.aggregator = engine.spawn(
            "aggregator", Aggregator, blueprint, "aggregator", plan.rule, plan.personal, placement=placement
        )
        self.crew = Crew(engine, config, control, plan)
        self.version = 0
        self._latest: Future | None = None
        self._target: Future | None = None  # the newest publication that carries the target
        self._jobs: dict[Future, tuple[Client | None, str, int]] = {}  # client or aggregator, what for, which round
        self._round: _Round | None = None
        self._num_rounds = 0
        self._is_merging = False
        self._cut_windows: dict[str, int] = {}  # by client, what saving has inserted since the last checkpoint

    def events(self, saved: Saved | None) -> Iterator[Event]:
        """The strategy's events, for ever."""
        control = self.control
        self._start(saved)
        while True:
            runs_on = self.engine.is_concurrent and not control.is_ending
            if control.snapshot_wanted and (runs_on or self._is_between_rounds()):
                yield self._snapshot()
                continue
            if control.drain_tag is not None and self._is_between_rounds():
                if self._jobs:  # those that come late; what they learned is of a former round
                    yield from self._receive()
                else:
                    yield from self._save()
                continue
            if self._round is None:
                yield from self._resize()
                self._open()
            if self._round is not None and not self._is_merging:
                self._close_or_extend(self._round)
            yield from self._receive()

    # starting and saving

    def _start(self, saved: Saved | None) -> None:
        if saved is not None:
            self._num_rounds = int(str(saved.state["round"]))
            set_generator_state(self.generator, saved.state["generator"])
            files = saved.files[self.aggregator.name]
            call(self.engine, self.aggregator, "load", self.control.checkpoint_folder, saved.tag, files)
        receipt, future = call(self.engine, self.aggregator, "publish")
        self._latest = self._target = future
        self.version = receipt.version
        self.crew.start(saved)

    def _save(self) -> Iterator[Event]:
        """Nothing is in flight: the consistent cut. The data of clients that are not here are kept as they are."""
        control, crew = self.control, self.crew
        saves = submit_saves(self.engine, [self.aggregator, *(each.ref for each in crew.clients.values())], control)
        lost = [outcome for outcome in map(self.supervisor.receive, saves) if isinstance(outcome, Loss)]
        inserted = self._cut_windows
        for save in saves:  # also where the checkpoint will be taken again: a second cut finds no open windows
            if save.error is None and save.role.name in crew.clients:
                number = self.engine.result(save).num_inserted
                crew.clients[save.role.name].inserted(number)
                inserted[save.role.name] = inserted.get(save.role.name, 0) + number
                if lost:
                    control.counters.add(self.engine.result(save))
        for loss in lost:  # bring them back and try again
            if loss.restarted is not None:
                yield loss.restarted
                self._revive(crew.clients.get(loss.future.role.name))
        if lost:
            return
        self._cut_windows = {}
        event = dataclasses.replace(drained(self.engine, saves, control, {}), inserted=inserted)
        crew.saved()
        event.files.update(crew.files_set_aside())
        event.state["clients"] = crew.state()
        event.state["round"] = self._num_rounds
        event.state["generator"] = generator_state(self.generator)
        yield event

    def _resize(self) -> Iterator[Event]:
        """Hire, or let the last ones go, until there are as many clients as the user wants by now."""
        crew = self.crew
        while len(crew.clients) < crew.num_wanted():
            client = crew.hire()
            self._revive(client)
            yield CrewChanged(len(crew.clients), f"{client.ref.name} joined")
        while len(crew.clients) > crew.num_wanted():
            client = crew.dismiss()
            for future in [future for future, job in self._jobs.items() if job[0] is client]:
                del self._jobs[future]
            yield CrewChanged(len(crew.clients), f"{client.ref.name} left")

    # rounds

    def _is_between_rounds(self) -> bool:
        """No round is open, and not all clients could make the next one's updates on what they have already."""
        return self._round is None and not self.crew.all_owe()

    def _open(self) -> None:
        """Draw the clients of the next round among those that are free; without enough of them, wait."""
        free = self.crew.free()
        if len(free) < self.plan.num_needed:
            return
        self._round = _Round(self._num_rounds, self.engine.now())
        self._num_rounds += 1
        wanted = max(self.plan.num_needed, self.plan.num_participants(len(self.crew.clients)))
        self._invite(self._round, free, wanted)

    def _invite(self, this_round: _Round, free: list[Client], wanted: int) -> None:
        if wanted < len(free):
            drawn = self.generator.choice(len(free), size=wanted, replace=False)
            free = [free[index] for index in sorted(drawn.tolist())]
        for client in free:
            self._submit(
                client,
                "train_round",
                this_round.number,
                self.control.counters.progress(),
                client.num_inserted,
                client.num_samples,
                self.plan.local_steps,
                self.config.collect_steps,
                *self._published(),
            )
            this_round.waiting.append(client)

    def _close_or_extend(self, this_round: _Round) -> None:
        """Aggregate what is in where that is all, or enough and late; invite others where too few are left."""
        num_in, needed = len(this_round.updates), self.plan.num_needed
        if num_in >= needed and (not this_round.waiting or self._patience(this_round) == 0.0):
            this_round.waiting.clear()
            # The sum must not depend on who came first.
            places = {name: place for place, name in enumerate(self.crew.clients)}
            this_round.updates.sort(key=lambda entry: places[entry[0].ref.name])
            self._aggregate(this_round)
        elif num_in + len(this_round.waiting) < needed:
            done = [client for client, _ in this_round.updates]
            free = [client for client in self.crew.free() if client not in done]
            self._invite(this_round, free, needed - num_in - len(this_round.waiting))

    def _patience(self, this_round: _Round) -> float | None:
        """Seconds until the round may end without those that are missing; None while it may not."""
        timeout = self.plan.round_timeout
        if timeout is None or len(this_round.updates) < self.plan.num_needed:
            return None
        return max(0.0, this_round.started + timeout - self.engine.now())

    def _aggregate(self, this_round: _Round) -> None:
        self._is_merging = True
        updates = [future for _, future in this_round.updates]
        future = self.engine.submit(self.aggregator, "aggregate", self.plan.local_steps, *updates)
        self._jobs[future] = (None, "aggregate", this_round.number)

    def _submit(self, client: Client, method: str, round_number: int, *args: object) -> None:
        client.future = self.engine.submit(client.ref, method, *args)
        self._jobs[client.future] = (client, method, round_number)

    def _published(self) -> tuple[Future, ...]:
        assert self._latest is not None
        assert self._target is not None
        return (self._latest,) if self._latest is self._target else (self._latest, self._target)

    # what has come back

    def _receive(self) -> Iterator[Event]:
        open_round = None if self._is_merging else self._round
        future = self.engine.wait(timeout=self._patience(open_round) if open_round is not None else None)
        if future is None:
            assert open_round is not None, "nothing is in flight"
            return  # the round has taken long enough
        job = self._jobs.pop(future, None)
        if job is None:
            return  # of a client that was let go
        client, method, round_number = job
        if client is not None:
            client.future = None
        outcome = self.supervisor.receive(future)
        if isinstance(outcome, Loss):
            yield from self._lost(client, method, outcome)
        elif method == "train_round":
            assert client is not None
            yield from self._trained(client, future, outcome, round_number)
        elif method == "restore":
            self._take_version(future, outcome)
            if self._round is not None and self._is_merging:
                self._aggregate(self._round)
        elif method == "aggregate":
            yield from self._aggregated(future, outcome)

    def _trained(self, client: Client, future: Future, receipt: Receipt, round_number: int) -> Iterator[Event]:
        """A client's answer: what it did is counted, whether or not what it learned is used."""
        control, this_round = self.control, self._round
        client.inserted(receipt.num_inserted)
        client.num_samples += receipt.num_samples
        control.count("bytes_pushed", receipt.num_bytes)
        if this_round is not None and round_number == this_round.number and client in this_round.waiting:
            this_round.waiting.remove(client)
            this_round.updates.append((client, future))
        else:
            control.count("updates_late")
        collected = Receipt(
            version=receipt.version,
            num_env_steps=receipt.num_env_steps,
            num_inserted=receipt.num_inserted,
            episode_returns=receipt.episode_returns,
            episode_lengths=receipt.episode_lengths,
            lags={"policy_lag": [self.version - receipt.version]},
        )
        control.counters.add(collected)
        yield Rollout(client.ref.name, collected)
        # The path of the global model is not longer by it: its updates are counted when the round is aggregated.
        trained = Receipt(
            version=receipt.version,
            num_samples=receipt.num_samples,
            num_bytes=receipt.num_bytes,
            seconds=receipt.seconds,
            metrics=receipt.metrics,
        )
        control.counters.add(trained)
        yield Update(client.ref.name, trained)

    def _aggregated(self, future: Future, receipt: Receipt) -> Iterator[Event]:
        self._take_version(future, receipt)
        self._round, self._is_merging = None, False
        metrics, control = receipt.metrics, self.control
        control.count("rounds")
        if metrics["num_refused"]:
            control.count("updates_refused", int(metrics["num_refused"]))
        is_void = not metrics["num_aggregated"]
        if is_void:
            control.count("rounds_void")
        applied = Receipt(
            version=receipt.version,
            num_updates=0 if is_void else self.plan.local_steps,
            metrics={"num_aggregated": metrics["num_aggregated"]},
        )
        control.counters.add(applied)
        yield Update(self.aggregator.name, applied)

    def _take_version(self, future: Future, receipt: Receipt) -> None:
        self._latest, self.version = future, receipt.version
        if receipt.metrics["target_version"] == receipt.version or future.method != "aggregate":
            self._target = future

    def _lost(self, client: Client | None, method: str, loss: Loss) -> Iterator[Event]:
        """A call gave nothing: whoever died gets a new life, and the round goes on with the others."""
        this_round, error = self._round, loss.error
        if this_round is not None and client is not None and client in this_round.waiting:
            this_round.waiting.remove(client)
        if loss.restarted is not None:
            yield loss.restarted
            self._revive(client)
        elif isinstance(error, ValueLost) and error.producer == self.aggregator.name:
            raise QfleetError(
                f"the published parameters are gone with {error.producer}'s machine; --resume the run"
            ) from error
        elif isinstance(error, ValueLost) and method == "aggregate" and this_round is not None:
            # An update is gone with its maker's machine: the round goes on without it.
            this_round.updates = [entry for entry in this_round.updates if entry[0].ref.name != error.producer]
            self._is_merging = False

    def _revive(self, client: Client | None) -> None:
        """A new life: the aggregator's from the newest version, a client's from what it saved itself."""
        control = self.control
        if client is None:
            files = control.saved_files.get(self.aggregator.name, [])
            assert self._latest is not None
            assert self._target is not None
            args = (control.checkpoint_folder, files, self._latest, self._target)
            self._jobs[self.engine.submit(self.aggregator, "restore", *args)] = (None, "restore", self._num_rounds)
            return
        control.count("transitions_lost", client.num_unsaved)
        client.num_unsaved = 0
        files = control.saved_files.get(client.ref.name, [])
        life = (self.engine.incarnation(client.ref), self._num_rounds)
        self._submit(client, "revive", self._num_rounds, control.checkpoint_folder, control.saved_tag, files, *life)

    def _snapshot(self) -> Event:
        """The newest version, and each free client's own where it has one; the others' as they last were."""
        self.control.snapshot_wanted = False
        assert self._latest is not None
        if self.plan.personal != "none":
            for client in self.crew.free():
                self.engine.submit(client.ref, "personal_snapshot", *self._published(), lane=PERSONAL_LANE)
                future = self.engine.wait(lane=PERSONAL_LANE)
                if future is not None and future.error is None:
                    client.personal = future
        own = ((name, client.personal) for name, client in self.crew.clients.items())
        personal = {name: future for name, future in own if future is not None}
        return SnapshotPublished(self.version, self._latest, personal)
