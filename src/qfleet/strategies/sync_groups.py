"""Synchronous groups: inside a group all wait for each other, between groups nobody does.

    group k:  wait for all its members' gradients;  w <- w - alpha * mean of them, on the servers, as it arrives
              (between groups asynchronous: a group's mean is as stale as the versions that others made meanwhile)

Hybrid of batch-synchronous and asynchronous training: Hadjis et al. 2016, Omnivore, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import model_validator

from qfleet.config import PositiveInt
from qfleet.engines.base import Engine
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.push import Compression
from qfleet.strategies.base import Control, Event, Saved
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.push_pull import PushPull
from qfleet.strategies.base.roster import Rules

NEEDS = frozenset({"replay", "rollouts"})


class Config(FleetConfig):
    """The [strategy] section of synchronous groups; workers are dealt into `num_groups` groups as equal as can be."""

    name: str = "sync_groups"
    num_groups: PositiveInt = 2
    num_servers: PositiveInt = 1
    compression: Compression = "none"

    @model_validator(mode="after")
    def _no_empty_group(self) -> Self:
        if self.num_groups > self.num_workers:
            raise ValueError(f"{self.num_groups} groups of {self.num_workers} workers: some would be empty")
        return self


def run(
    engine: Engine, blueprint: Blueprint, config: Config, control: Control, saved: Saved | None = None
) -> Iterator[Event]:
    """`num_groups` groups around the servers; see strategies/base/push_pull.py for the loop."""
    rules = Rules(num_groups=config.num_groups, num_servers=config.num_servers, compression=config.compression)
    yield from PushPull(engine, blueprint, config, control, rules).events(saved)
