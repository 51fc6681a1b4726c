"""Fields that every strategy with several roles has."""

from __future__ import annotations

from pydantic import Field

from qfleet.config import NonNegativeFloat, NonNegativeInt, PositiveInt
from qfleet.engines.base import Placement
from qfleet.strategies.base import StrategyConfig


class FleetConfig(StrategyConfig):
    """Several workers under supervision.

    `num_workers` may change when a run is resumed, and while it runs. Past `max_restarts` of one role, or
    `max_restarts_per_minute` of all together, the run saves itself and stops. The last three say what a worker asks of
    a cluster.
    """

    num_workers: PositiveInt = 4
    collect_steps: PositiveInt = 1
    max_restarts: NonNegativeInt = 3
    max_restarts_per_minute: NonNegativeInt = 10
    worker_cpus: NonNegativeFloat = 1.0
    worker_gpus: NonNegativeFloat = 0.0
    worker_resources: dict[str, NonNegativeFloat] = Field(default_factory=dict)

    def worker_placement(self) -> Placement:
        """Where a worker may live: away from its like."""
        return Placement(self.worker_cpus, self.worker_gpus, self.worker_resources, "spread")
