"""Calibration: what the calls of a strategy cost on this machine, from a short real run of it with one worker.

    run, timed (metering.py) -> calls by role and method -> one [[compute]] table each -> a cluster's file

Seconds are of methods alone where roles share this process (inline); on ray what Ray itself keeps a role's process and
the coordinator busy with is added, and the latency is what is left of a round trip. Floor 7.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch

from qfleet.engines.base import Engine, HostingEngine
from qfleet.errors import QfleetError
from qfleet.placement.cluster_file import Compute
from qfleet.placement.cost_model import DEFAULTS
from qfleet.planning.metering import MeteredEngine, Metering
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint
from qfleet.run_config import RunConfig, change_config
from qfleet.strategies.base import Control
from qfleet.types import EnvSpec, Receipt

SECONDS = 1.5  # of one calibrating run
MIN_CALLS = 12  # of a method, before it counts as measured
MAX_WAIT = 20.0  # seconds until the first update
NUM_VALUES = 20  # of a trace: the middles of so many equal parts of what was measured
NUM_PROBES = 300
NUM_BESIDE = 4  # workers of the second run, whose servers merge several pushes a call


@dataclass(frozen=True, slots=True)
class Cost:
    """What a method of a kind of role costs.

    Attributes:
        table: as a cluster's file has it.
        num_calls: how many were measured.
        origin: where the number is from, for the user.
    """

    table: Compute
    num_calls: int
    origin: str


@dataclass(slots=True)
class Measured:
    """A strategy's run with one worker.

    Attributes:
        costs: by role and method, the most time first.
        coordinator_seconds: what an answer keeps the coordinator busy.
        updates_per_second: of the run itself, where it was measured.
        calls: all of them.
    """

    costs: list[Cost]
    coordinator_seconds: float
    updates_per_second: float
    calls: list[Metering] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Window:
    """What a metered run gave once it ran evenly.

    Attributes:
        calls: in the order of their answers.
        seconds, num_updates, num_env_steps: of the window.
        coordinator_cpu: CPU seconds of this process in it.
        machine_cpu: CPU seconds of the whole machine in it, all processes; NaN where nothing tells.
    """

    calls: list[Metering]
    seconds: float
    num_updates: int
    num_env_steps: int
    coordinator_cpu: float
    machine_cpu: float

    def __add__(self, other: Window) -> Window:
        """Two windows of one configuration as one."""
        return Window(
            [*self.calls, *other.calls],
            self.seconds + other.seconds,
            self.num_updates + other.num_updates,
            self.num_env_steps + other.num_env_steps,
            self.coordinator_cpu + other.coordinator_cpu,
            self.machine_cpu + other.machine_cpu,
        )

    @property
    def others(self) -> float:
        """Cores that were busy with what is neither a role nor the coordinator; 0 where nothing tells."""
        known = self.coordinator_cpu + sum(call.cpu_seconds for call in self.calls)
        load = (self.machine_cpu - known) / self.seconds
        return max(0.0, load) if math.isfinite(load) else 0.0


def calibrate(config: RunConfig, spec: EnvSpec, folder: Path, label: str) -> Measured:
    """Run a strategy with one worker for a moment, and again with four in turn, where servers merge several pushes.

    Args:
        config: of one worker, on the engine that is to be measured.
        spec: the environment's facts.
        folder: for what an engine logs.
        label: what the numbers are of, for their origins.

    Raises:
        QfleetError: nothing was learned in MAX_WAIT seconds.
    """
    window = metered_run(config, spec, folder)
    beside: list[Metering] = []
    if "num_workers" in type(config.strategy).model_fields:
        inline = change_config(config, [("engine.name", "inline")])
        changes: list[tuple[str, object]] = [("strategy.num_workers", NUM_BESIDE)]
        beside = metered_run(change_config(inline, changes), spec, folder).calls
    costs = costs_of(window.calls, beside, f"{label}, {config.engine.name}")
    if load_plugin("engine", config.engine.name).Engine.is_concurrent:
        thinking = window.coordinator_cpu / len(window.calls)
    else:  # one thread: what lies between two calls is the coordinator's
        gaps = [max(0.0, after.began - before.ended) for before, after in itertools.pairwise(window.calls)]
        thinking = max(0.0, statistics.median(gaps) - metering_seconds())
    return Measured(costs, _rounded(thinking), window.num_updates / window.seconds, window.calls)


def metered_run(config: RunConfig, spec: EnvSpec, folder: Path, seconds: float = SECONDS) -> Window:
    """Run a strategy unchanged for `seconds`, from its first update on, and time its calls."""
    plugin = load_plugin("engine", config.engine.name)
    with _one_thread():
        engine = plugin.Engine(config.engine, config.seed)
        if isinstance(engine, HostingEngine):
            engine.set_up_hosts(folder / "logs", 1)
        metered = MeteredEngine(engine)
        control = Control(str(folder / "checkpoints"))
        blueprint = make_blueprint(config, spec, "cpu")
        counters = control.counters
        try:
            events = load_plugin("strategy", config.strategy.name).run(metered, blueprint, config.strategy, control)
            started = time.perf_counter()
            for _ in events:
                if counters.num_updates >= 10 and time.perf_counter() - started > seconds / 4:
                    break
                if time.perf_counter() - started > MAX_WAIT and not counters.num_updates:
                    raise QfleetError(f"{config.strategy.name}: no update in {MAX_WAIT:g} s; nothing to calibrate by")
            num_before, updates, env_steps = len(metered.calls), counters.num_updates, counters.num_env_steps
            began, cpu, machine = time.perf_counter(), time.process_time(), machine_cpu()
            for _ in events:
                if time.perf_counter() - began > seconds and len(metered.calls) - num_before >= MIN_CALLS:
                    break
            elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
            machine = machine_cpu() - machine
            num_updates, num_env_steps = counters.num_updates - updates, counters.num_env_steps - env_steps
            events.close()
        finally:
            engine.close()
    return Window(metered.calls[num_before:], elapsed, num_updates, num_env_steps, cpu, machine)


def costs_of(calls: Iterable[Metering], beside: Iterable[Metering], origin: str) -> list[Cost]:
    """A table for each kind of role and method among `calls`; `beside` tells what each payload adds to a call."""
    groups = _grouped(calls)
    others = _grouped(beside)
    found = []
    for (kind, method), own in groups.items():
        per = per_of(kind, method)
        slope = 0.0
        if per == "call":
            slope = payload_seconds([*own, *others.get((kind, method), [])])
        values = [
            (call.seconds - slope * call.num_payloads) / number for call in own if (number := count_of(call, per)) > 0
        ]
        if values:
            table = Compute(
                role=kind,
                method=method,
                per=per,  # type: ignore[arg-type]
                payload_seconds=_rounded(slope),
                distribution="trace",
                values=trace_of(values),
            )
            found.append((sum(call.seconds for call in own), Cost(table, len(own), f"measured ({origin})")))
    return [cost for _, cost in sorted(found, key=lambda pair: -pair[0])]


def kind_of(role: str) -> str:
    """worker-3 -> worker-*."""
    stem, dash, number = role.rpartition("-")
    return f"{stem}-*" if dash and number.isdigit() else role


def per_of(kind: str, method: str) -> str:
    """What a method's cost is counted in: as the cost model's own table for it has it."""
    role = kind.replace("*", "0")
    return next(one.per for one in DEFAULTS if fnmatchcase(role, one.role) and fnmatchcase(method, one.method))


def count_of(call: Metering, per: str) -> int:
    """How many units of its cost a call was; 0 tells nothing."""
    if call.num_steps:
        return call.num_steps
    return {"call": 1, "env_step": call.num_env_steps, "update": call.num_updates, "sample": call.num_samples}[per]


def payload_seconds(calls: Sequence[Metering]) -> float:
    """What each payload adds to a call: the slope through the medians of the least and the most of them; 0 if alike."""
    counts = sorted({call.num_payloads for call in calls})
    if len(counts) < 2 or counts[-1] == counts[0]:
        return 0.0
    few, many = (
        statistics.median(call.seconds for call in calls if call.num_payloads == number)
        for number in (counts[0], counts[-1])
    )
    # The least call must not come to nothing: it has a payload's worth in it, and at most that.
    return min(max(0.0, (many - few) / (counts[-1] - counts[0])), few / max(1, counts[0]))


def trace_of(values: Sequence[float]) -> tuple[float, ...]:
    """The middles of NUM_VALUES equal parts of what was measured, in order."""
    places = (np.arange(NUM_VALUES) + 0.5) / NUM_VALUES
    return tuple(_rounded(max(0.0, float(value))) for value in np.quantile(np.asarray(values), places))


def metering_seconds() -> float:
    """What timing a call adds to the time between two of them, which is no strategy's."""
    times = []
    for is_metered in (False, True):
        engine: Engine = load_plugin("engine", "inline").Engine(load_plugin("engine", "inline").Config(), 0)
        engine = MeteredEngine(engine) if is_metered else engine
        role = engine.spawn("probe", Idle)
        laps = []
        for _ in range(NUM_PROBES):
            began = time.perf_counter()
            engine.submit(role, "rest")
            engine.wait()
            laps.append(time.perf_counter() - began)
        times.append(statistics.median(laps))
    return max(0.0, times[1] - times[0])


class Idle:
    """A role that does nothing."""

    def rest(self) -> Receipt:
        """Nothing."""
        return Receipt()


def machine_cpu() -> float:
    """CPU seconds that this machine has worked since it started, by all its processes; NaN where nothing tells."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan
    user, nice, system, _, _, irq, softirq = (float(word) for word in stat.read_text().split("\n")[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _grouped(calls: Iterable[Metering]) -> dict[tuple[str, str], list[Metering]]:
    groups: dict[tuple[str, str], list[Metering]] = {}
    for call in calls:
        groups.setdefault((kind_of(call.role), call.method), []).append(call)
    return groups


def _rounded(value: float) -> float:
    """Three digits are more than it is known to."""
    return float(f"{value:.3g}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a role has it that shares its machine with others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
