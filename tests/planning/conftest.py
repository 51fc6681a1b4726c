"""Grids of a tiny run on clusters written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from qfleet.planning.grid import Request, make_grid
from qfleet.planning.timing import Timing, simulate
from qfleet.run_config import change_config

ENV = "qfleet/Identity-v0"
FREE = {"latency": 0.0, "bandwidth": 1e30}
# One collect call, of 16 transitions that cost nothing, for each update of 16 samples.
PACED: dict[str, Any] = {
    "env.num_envs": 16,
    "algo.batch_size": 16,
    "algo.n_step": 1,
    "network.hidden": [16],
    "network.layer_norm": False,
    "replay.sampler": "uniform",
    "replay.capacity": 2000,
    "replay.min_transitions": 1,
    "replay.samples_per_insert": 1.0,
}
Time = Callable[..., Timing]


@pytest.fixture
def timed(tmp_path: Path) -> Time:
    """timed("all_reduce", 8, compute=[...tables]): one cell on a cluster where all else is free."""

    def run(
        label: str,
        num_workers: int,
        compute: list[dict[str, Any]],
        num_calls: int = 40,
        changes: dict[str, Any] | None = None,
        **tables: Any,
    ) -> Timing:
        path = tmp_path / "cluster.toml"
        body = {"network": FREE, **tables, "compute": [*compute, {"seconds": 0.0}]}
        path.write_text(tomli_w.dumps(body))
        grid = make_grid(Request(ENV, label, str(num_workers), recipe="vector", overrides={**PACED, **(changes or {})}))
        (cell,) = grid.cells
        assert cell.config is not None, cell.why_not
        return simulate(change_config(cell.config, [("engine.cluster", str(path))]), grid.spec, num_calls)

    return run
