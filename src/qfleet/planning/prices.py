"""Prices of machines, and what a configuration costs: on demand, or on spot machines that may be taken away.

    money of T seconds = T / 3600 x sum of the machines' prices an hour
    on spot            = the workers' machines at the spot price; T grows by what preemptions lose

A preemption takes a machine with its workers for `restart_seconds`. Where all wait for all, all of the time is lost:
T (1 + rate x machines x restart); where nobody waits, the machine's part of it: T (1 + rate x restart). Rates are
small, so that two at once are left out. Servers, learners and the coordinator are never put on spot. Floor 7.
"""

from __future__ import annotations

import datetime
import math
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import field_validator

from qfleet.config import NonNegativeFloat, NonNegativeInt, PositiveFloat, Section, did_you_mean, parse_section
from qfleet.errors import ConfigError, UsageError

FILE_NAME = "prices.toml"


class MachineType(Section):
    """What a cloud lets.

    Attributes:
        name, region: of the cloud.
        cores: physical ones.
        gpus: how many.
        on_demand, spot: prices an hour; spot not set: not to be had.
        preemptions_per_hour: how often a spot machine is taken away, on average.
    """

    name: str
    region: str = ""
    cores: PositiveFloat
    gpus: NonNegativeInt = 0
    on_demand: PositiveFloat
    spot: PositiveFloat | None = None
    preemptions_per_hour: NonNegativeFloat = 0.0


class Prices(Section):
    """A file of prices: its date, where the numbers are from, and the machines."""

    date: datetime.date
    source: str
    currency: str = "USD"
    restart_seconds: NonNegativeFloat = 180.0
    machine: tuple[MachineType, ...]

    @field_validator("machine")
    @classmethod
    def _some(cls, value: tuple[MachineType, ...]) -> tuple[MachineType, ...]:
        if not any(one.gpus == 0 for one in value):
            raise ValueError("there is no machine without a GPU; give at least one")
        names = [one.name for one in value]
        if len(set(names)) < len(names):
            raise ValueError("two machines have the same name")
        return value

    def choose(self, name: str | None, needs_gpu: bool = False) -> MachineType:
        """The machine of this name, else the one whose core costs least on demand; with a GPU only where one is needed.

        Raises:
            UsageError: there is none of this name, or none with a GPU.
        """
        if name is None:
            able = [one for one in self.machine if bool(one.gpus) == needs_gpu]
            if not able:
                raise UsageError("a role asks for a GPU, and the prices have no machine with one; give --prices")
            return min(able, key=lambda one: one.on_demand / one.cores)
        for one in self.machine:
            if one.name == name:
                return one
        hint = did_you_mean(name, [one.name for one in self.machine])
        raise UsageError(f"--machine {name}: the prices have no such machine; {hint}")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The machines of a configuration.

    Attributes:
        machine: their type.
        num_head: for the coordinator, servers, learners and shards; never on spot.
        num_worker: for workers alone.
        waits: whether the loss of one machine holds up all.
    """

    machine: MachineType
    num_head: int
    num_worker: int
    waits: bool

    @property
    def hourly(self) -> float:
        """Price of an hour, on demand."""
        return (self.num_head + self.num_worker) * self.machine.on_demand

    @property
    def spot_hourly(self) -> float | None:
        """Price of an hour with the workers on spot; None where that is not to be had, or nobody is to be put there."""
        if self.machine.spot is None or not self.num_worker:
            return None
        return self.num_head * self.machine.on_demand + self.num_worker * self.machine.spot

    def lost_share(self, restart_seconds: float) -> float:
        """By what part preemptions make a run longer, on average."""
        machines = self.num_worker if self.waits else min(1, self.num_worker)
        return self.machine.preemptions_per_hour * machines * restart_seconds / 3600.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and money of some work, on demand and, where it is to be had, on spot machines."""

    seconds: float
    money: float
    spot_seconds: float | None
    spot_money: float | None

    @property
    def least(self) -> float:
        """The lesser of the two."""
        return self.money if self.spot_money is None else min(self.money, self.spot_money)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a configuration asks of its machines.

    Attributes:
        num_workers, num_others: roles; the coordinator is one of the others, each of which takes a core.
        worker_cpus, worker_gpus: of a worker.
        other_gpus: of all others together.
        waits: whether the loss of one machine holds up all.
    """

    num_workers: int
    num_others: int
    worker_cpus: float = 1.0
    worker_gpus: float = 0.0
    other_gpus: float = 0.0
    waits: bool = True

    @property
    def has_gpus(self) -> bool:
        """Whether a role asks for one."""
        return self.worker_gpus > 0 or self.other_gpus > 0


def fleet_of(machine: MachineType, needs: Needs) -> Fleet:
    """Machines for the others, whose workers fill them up first, and for the workers that are left.

    Raises:
        UsageError: a role does not fit on a machine.
    """
    cpus, gpus = max(needs.worker_cpus, 1e-9), needs.worker_gpus
    if cpus > machine.cores:
        raise UsageError(f"{machine.name} has {machine.cores:g} cores, and a worker asks for {cpus:g}")
    if max(gpus, min(needs.other_gpus, 1.0)) > machine.gpus:
        raise UsageError(f"{machine.name} has {machine.gpus} GPUs, and a role asks for one; give another --machine")

    def room(cores: float, its_gpus: float) -> int:
        by_gpus = math.floor(its_gpus / gpus + 1e-9) if gpus else math.inf
        return int(min(math.floor(cores / cpus + 1e-9), by_gpus))

    num_head = max(1, math.ceil(needs.num_others / machine.cores))
    if needs.other_gpus:
        num_head = max(num_head, math.ceil(needs.other_gpus / machine.gpus))
    beside = room(num_head * machine.cores - needs.num_others, num_head * machine.gpus - needs.other_gpus)
    per_machine, num_workers, waits = room(machine.cores, machine.gpus), needs.num_workers, needs.waits
    num_worker = math.ceil(max(0, num_workers - beside) / per_machine)
    return Fleet(machine, num_head, num_worker, waits)


def cost_of(fleet: Fleet, seconds: float, restart_seconds: float) -> Cost:
    """What `seconds` of undisturbed work cost."""
    money = seconds / 3600.0 * fleet.hourly
    hourly = fleet.spot_hourly
    if hourly is None:
        return Cost(seconds, money, None, None)
    longer = seconds * (1.0 + fleet.lost_share(restart_seconds))
    return Cost(seconds, money, longer, longer / 3600.0 * hourly)


def read_prices(path: str | None) -> Prices:
    """A file of prices; without one those that come with qfleet.

    Raises:
        ConfigError: it is missing, not TOML, or a field is wrong; one line.
    """
    where = f"--prices {path}" if path is not None else FILE_NAME
    try:
        if path is None:
            text = (resources.files("qfleet.planning") / FILE_NAME).read_text("utf-8")
        else:
            text = Path(path).read_text("utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; give a TOML file of prices") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None
    machines = raw.get("machine", [])
    if not isinstance(machines, list):
        raise ConfigError(f"{where}: machine = {machines!r}: write [[machine]], for there may be several")
    try:
        parsed = []
        for index, one in enumerate(machines):
            if not isinstance(one, dict):
                raise ConfigError(f"machine[{index}] = {one!r}: this is a table")
            parsed.append(parse_section(MachineType, one, f"machine[{index}]"))
        return parse_section(Prices, {**raw, "machine": tuple(parsed)}, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
