"""Parameter server: workers push gradients computed on the snapshot they hold, servers apply them.

worker i:  w_i <- pull;  g_i <- grad L(w_i; batch of its own replay);  push g_i
servers:   sync   w <- w - alpha * mean over workers of g_i          wait for all N (or the first N of N + b)
           ssp    a worker may be `bound` clocks ahead of the slowest
           async  w <- w - alpha * g_i as it arrives                 (Gorila: Nair et al. 2015)

wait    merge mean   arrival   staleness
sync    yes (default) yes      yes
ssp     yes          yes (default)  yes
async   no: its sets would grow without bound   yes (default)   yes
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qfleet.config import NonNegativeInt, PositiveInt
from qfleet.engines.base import Engine
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.push import Compression
from qfleet.strategies.base import Control, Event, Saved
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.push_pull import PushPull
from qfleet.strategies.base.roster import Rules

NEEDS = frozenset({"replay", "rollouts"})
Wait = Literal["sync", "async", "ssp"]
MergeRule = Literal["mean", "arrival", "staleness"]
# Which merge rules each wait rule goes with; the first is the default.
LEGAL: dict[Wait, tuple[MergeRule, ...]] = {
    "sync": ("mean", "arrival", "staleness"),
    "ssp": ("arrival", "mean", "staleness"),
    "async": ("arrival", "staleness"),
}


class Config(FleetConfig):
    """The [strategy] section of a parameter server.

    `merge` "auto" is the mean for sync, arrival otherwise. `local_steps` H above 0 pushes the difference that H local
    updates make instead of a gradient.
    """

    name: str = "parameter_server"
    wait: Wait = "sync"
    bound: NonNegativeInt = 1
    merge: MergeRule | Literal["auto"] = "auto"
    num_servers: PositiveInt = 1
    backup_workers: NonNegativeInt = 0
    in_flight: PositiveInt = 1
    local_steps: NonNegativeInt = 0
    compression: Compression = "none"
    top_k_fraction: Annotated[float, Field(gt=0, le=1)] = 0.01

    @model_validator(mode="after")
    def _legal_pair(self) -> Self:
        legal = LEGAL[self.wait]
        if self.merge != "auto" and self.merge not in legal:
            raise ValueError(f"merge {self.merge!r} does not go with wait {self.wait!r}; it takes {', '.join(legal)}")
        if self.backup_workers and (self.wait != "sync" or self.merge_rule != "mean"):
            raise ValueError("backup_workers needs wait 'sync' and merge 'mean'")
        return self

    @property
    def merge_rule(self) -> MergeRule:
        """The merge rule, "auto" resolved."""
        return LEGAL[self.wait][0] if self.merge == "auto" else self.merge


def run(
    engine: Engine, blueprint: Blueprint, config: Config, control: Control, saved: Saved | None = None
) -> Iterator[Event]:
    """One group of workers around the servers; see strategies/base/push_pull.py for the loop."""
    rules = Rules(
        bound={"sync": 0, "ssp": config.bound, "async": None}[config.wait],
        is_mean=config.merge_rule == "mean",
        num_backup=config.backup_workers,
        scales_with_staleness=config.merge_rule == "staleness",
        in_flight=config.in_flight,
        local_steps=config.local_steps,
        num_servers=config.num_servers,
        compression=config.compression,
        top_k_fraction=config.top_k_fraction,
    )
    yield from PushPull(engine, blueprint, config, control, rules).events(saved)
