"""Serial: one worker that collects and trains in turn. The reference that every parallel strategy is held against.

repeat:
    collect k vector steps into the worker's replay
    train as many updates as samples_per_insert allows
"""

from __future__ import annotations

from collections.abc import Iterator

from qfleet.config import PositiveInt
from qfleet.engines.base import Engine
from qfleet.ops.pacing import updates_allowed
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.worker import Worker
from qfleet.strategies.base import (
    Control,
    Event,
    Rollout,
    Saved,
    SnapshotPublished,
    StrategyConfig,
    Update,
    call,
    load_roles,
    save_roles,
)

NEEDS = frozenset({"replay", "rollouts"})


class Config(StrategyConfig):
    """The [strategy] section of serial training; `collect_steps` is vector steps per collect call."""

    name: str = "serial"
    collect_steps: PositiveInt = 1


def run(
    engine: Engine, blueprint: Blueprint, config: Config, control: Control, saved: Saved | None = None
) -> Iterator[Event]:
    """Collect, train, repeat; see strategies/base/ for the protocol."""
    worker = engine.spawn("worker-0", Worker, blueprint, "worker-0")
    if saved is not None:
        load_roles(engine, [worker], control, saved)
    counters, replay = control.counters, blueprint.replay
    num_steps = blueprint.vector_steps(config.collect_steps)
    while True:
        if control.snapshot_wanted:
            control.snapshot_wanted = False
            receipt, future = call(engine, worker, "snapshot")
            yield SnapshotPublished(receipt.version, future)
        if control.drain_tag is not None:
            yield save_roles(engine, [worker], control, {})
            continue
        receipt, _ = call(engine, worker, "collect", counters.progress(), num_steps)
        counters.add(receipt)
        yield Rollout(worker.name, receipt)
        num_updates = updates_allowed(
            counters.num_inserted,
            counters.num_samples,
            replay.min_transitions,
            replay.samples_per_insert,
            blueprint.batch_size,
        )
        if num_updates:
            receipt, _ = call(engine, worker, "train", num_updates)
            counters.add(receipt)
            yield Update(worker.name, receipt)
