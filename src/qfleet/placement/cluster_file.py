"""The TOML file of a simulated cluster: what calls, messages and machines cost, and which faults strike when.

Read by engine `sim`; docs/simulation.md shows every field. Names of roles and methods are shell patterns: "worker-*",
"worker-[0-7]", "*".
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from qfleet.config import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    did_you_mean,
    parse_section,
)
from qfleet.errors import ConfigError

Distribution = Literal["constant", "lognormal", "shifted_exponential", "pareto", "trace"]
FaultKind = Literal[
    "crash",
    "loss",
    "slow",
    "freeze",
    "lost_reply",
    "delay",
    "duplicate",
    "partition",
    "preemption",
    "arrival",
]
AboveOne = Annotated[float, Field(gt=1, allow_inf_nan=False)]

# Which numbers each distribution takes, all of them needed.
NUMBERS: dict[str, tuple[str, ...]] = {
    "constant": ("seconds",),
    "lognormal": ("seconds", "sigma"),
    "shifted_exponential": ("shift", "scale"),
    "pareto": ("minimum", "alpha"),
    "trace": ("values",),
}
# Which fields each kind of fault takes beside `role`, `at`, `every` and `until`; the first are needed.
FAULT_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "crash": ((), ()),
    "loss": ((), ()),
    "slow": (("seconds", "factor"), ()),
    "freeze": (("seconds",), ()),
    "lost_reply": ((), ("method",)),
    "delay": (("seconds",), ("method",)),
    "duplicate": (("method",), ()),
    "partition": (("seconds", "others"), ()),
    "preemption": (("notice",), ()),
    "arrival": (("places",), ()),
}


class Compute(Section):
    """What a call takes; of several tables the first one that matches role, method and device counts.

    Attributes:
        role, method: patterns.
        device: "gpu" for roles that ask for one, "cpu" for the others.
        per: what one draw is of: a call, or each env step, update or sample that the call's receipt counts.
        payload_seconds: beyond that, for each payload among the call's arguments: a server's merge of N pushes.
        distribution: which numbers below are read, see NUMBERS.
        seconds: the mean, for constant and lognormal.
        sigma: of the logarithm, for lognormal.
        shift, scale: shift + an exponential of mean `scale`.
        minimum, alpha: Pareto: P(X > x) = (minimum / x)^alpha.
        values: seconds that were measured; each draw is one of them.
    """

    role: str = "*"
    method: str = "*"
    device: Literal["any", "cpu", "gpu"] = "any"
    per: Literal["call", "env_step", "update", "sample"] = "call"
    payload_seconds: NonNegativeFloat = 0.0
    distribution: Distribution = "constant"
    seconds: NonNegativeFloat | None = None
    sigma: NonNegativeFloat | None = None
    shift: NonNegativeFloat | None = None
    scale: NonNegativeFloat | None = None
    minimum: PositiveFloat | None = None
    alpha: AboveOne | None = None
    values: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _its_numbers(self) -> Self:
        wanted = NUMBERS[self.distribution]
        for name in {name for names in NUMBERS.values() for name in names}:
            if (getattr(self, name) is not None) != (name in wanted):
                raise ValueError(
                    f"distribution {self.distribution!r} takes {' and '.join(wanted)}, no more and no less"
                )
        return self


class Network(Section):
    """Seconds that a message is under way, and bytes a second of each machine's port, outwards and inwards."""

    latency: NonNegativeFloat = 1e-4
    bandwidth: PositiveFloat = 1.25e9


class Link(Section):
    """Another latency or bandwidth between two groups of roles, both ways; the first table that matches counts."""

    between: tuple[str, str]
    latency: NonNegativeFloat | None = None
    bandwidth: PositiveFloat | None = None


class Machine(Section):
    """Roles that share cores; the first table that matches counts, and who matches none has cores of its own.

    Attributes:
        roles: pattern; "coordinator" is a name too.
        cores: each busy role gets one, or an equal part where more are busy than there are cores.
        crowding: how many times as long work takes while all cores are busy, against one busy core: what cores share,
            such as two threads of one physical core. In between it grows with each busy core.
    """

    roles: str = "*"
    cores: PositiveFloat
    crowding: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0


class Slowdown(Section):
    """Times when many are slow together.

    Attributes:
        role: whom it may hit.
        every: mean seconds from the end of one to the beginning of the next, exponential.
        seconds: mean length, exponential.
        factor: calls that begin in it take so many times as long.
        share: each matching role is hit with this probability.
    """

    role: str = "worker-*"
    every: PositiveFloat
    seconds: PositiveFloat
    factor: PositiveFloat
    share: Fraction = 1.0


class Fault(Section):
    """Something that goes wrong: at a moment, to all roles that match; or every so often, to one of them by chance.

    Attributes:
        kind: see FAULT_FIELDS for what else each takes.
        role, method: patterns.
        at: the moment.
        every: mean seconds between two, exponential.
        until: the last moment at which one strikes.
        seconds: how long it lasts, or how late a message comes.
        factor: how many times as long a slow role takes.
        notice: seconds between the notice of a preemption and the end of the machine.
        others: the other side of a partition; "coordinator" is a name too.
        places: how many roles find room on the machines that arrive.
    """

    kind: FaultKind
    role: str = "worker-*"
    method: str = "*"
    at: NonNegativeFloat | None = None
    every: PositiveFloat | None = None
    until: NonNegativeFloat | None = None
    seconds: PositiveFloat | None = None
    factor: PositiveFloat | None = None
    notice: NonNegativeFloat | None = None
    others: str | None = None
    places: PositiveInt | None = None

    @model_validator(mode="after")
    def _its_fields(self) -> Self:
        if (self.at is None) == (self.every is None):
            raise ValueError("a fault takes either at or every")
        if self.until is not None and self.every is None:
            raise ValueError("until goes with every")
        needed, further = FAULT_FIELDS[self.kind]
        given = {
            name for name in ("seconds", "factor", "notice", "others", "places") if getattr(self, name) is not None
        }
        if self.method != "*" or "method" in needed:
            given.add("method")
        missing, extra = set(needed) - given, given - set(needed) - set(further)
        if missing or extra or ("method" in needed and self.method == "*"):
            takes = [*needed, *further]
            raise ValueError(f"a fault of kind {self.kind!r} takes {', '.join(takes) or 'no further field'}")
        return self


class Cluster(Section):
    """The [cluster] table.

    Attributes:
        places: how many roles find room, one each; not set: any number.
        startup_seconds: from a role's placing to its first call.
        coordinator_seconds: what each answer keeps the coordinator busy.
    """

    places: PositiveInt | None = None
    startup_seconds: NonNegativeFloat = 0.0
    coordinator_seconds: NonNegativeFloat = 0.0


class ClusterFile(Section):
    """All tables; arrays of tables keep their order."""

    cluster: Cluster = Cluster()
    network: Network = Network()
    speed: dict[str, PositiveFloat] = Field(default_factory=dict)
    link: tuple[Link, ...] = ()
    machine: tuple[Machine, ...] = ()
    compute: tuple[Compute, ...] = ()
    slowdown: tuple[Slowdown, ...] = ()
    fault: tuple[Fault, ...] = ()


ARRAYS: dict[str, type[Section]] = {
    "link": Link,
    "machine": Machine,
    "compute": Compute,
    "slowdown": Slowdown,
    "fault": Fault,
}
TABLES: dict[str, type[Section]] = {"cluster": Cluster, "network": Network}
SectionType = TypeVar("SectionType", bound=Section)


def read_cluster(path: str | None) -> ClusterFile:
    """A cluster's file; without one, a cluster of the defaults.

    Raises:
        ConfigError: it is missing, not TOML, or a field is wrong; one line with field, value and fix.
    """
    if path is None:
        return ClusterFile()
    try:
        raw = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"engine.cluster = {path!r}: {error.strerror or error}; give a cluster's TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"engine.cluster = {path!r}: not TOML: {error}") from None
    return parse_cluster(raw, f"{path}: ")


def parse_cluster(raw: Mapping[str, object], where: str = "") -> ClusterFile:
    """A cluster from raw tables; `where` comes before the names of fields in messages.

    Raises:
        ConfigError: naming the field, the value and the fix.
    """
    values: dict[str, object] = {}
    for name, table in raw.items():
        if name in ARRAYS:
            if not isinstance(table, list):
                raise ConfigError(f"{where}{name} = {table!r}: write [[{name}]], for there may be several")
            values[name] = tuple(_parse(ARRAYS[name], one, f"{where}{name}[{i}]") for i, one in enumerate(table))
        elif name in TABLES:
            values[name] = _parse(TABLES[name], table, f"{where}{name}")
        elif name == "speed":
            values[name] = table
            if not isinstance(table, dict):
                raise ConfigError(f'{where}speed = {table!r}: write a [speed] table of roles, such as "worker-3" = 0.5')
        else:
            names = list(ClusterFile.model_fields)
            raise ConfigError(f"{where}{name} = {table!r}: no such table; {did_you_mean(name, names)}")
    try:
        return parse_section(ClusterFile, values, "")
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def unmatched(file: ClusterFile, names: Collection[str]) -> list[str]:
    """Patterns of roles in a file, [[compute]] tables left out, that none of these names matches; a line each."""
    patterns = [(f"[speed] {role!r}", role) for role in file.speed]
    patterns += [("[[link]] between", one) for link in file.link for one in link.between]
    patterns += [("[[machine]] roles", one.roles) for one in file.machine]
    patterns += [("[[slowdown]] role", one.role) for one in file.slowdown]
    patterns += [("[[fault]] role", one.role) for one in file.fault if one.kind != "arrival"]
    patterns += [("[[fault]] others", one.others) for one in file.fault if one.others is not None]
    alone = [(where, pattern) for where, pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    return [where if where.startswith("[speed]") else f"{where} {pattern!r}" for where, pattern in dict.fromkeys(alone)]


def _parse(cls: type[SectionType], table: object, where: str) -> SectionType:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} = {table!r}: this is a table")
    return parse_section(cls, table, where)
