"""Comparisons of tiny runs, each a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.comparison.plan import Plan, Request, make_plan

ENV = "qfleet/Identity-v0"
MakePlan = Callable[..., Plan]


@pytest.fixture(scope="session")
def overrides(tiny: dict[str, Any]) -> dict[str, Any]:
    """The tiny run, without its limit; a validation each hundred env steps."""
    return {**{key: value for key, value in tiny.items() if key != "stop.max_env_steps"}, **SHORT}


SHORT = {"evaluation.every_env_steps": 100, "stop.until_return": 2.0}


@pytest.fixture
def plan(tmp_path: Path, overrides: dict[str, Any]) -> MakePlan:
    """plan("serial,all_reduce", num_seeds=2): a checked plan of tiny cells in tmp_path / "c"."""

    def make(strategies: str = "serial,parameter_server", out: str = "c", **changes: Any) -> Plan:
        asked: dict[str, Any] = {"num_seeds": 2, "budget": "env_steps=200", "recipe": "vector", "num_workers": 2}
        asked |= {"overrides": {**overrides, **changes.pop("overrides", {})}}
        return make_plan(Request(ENV, strategies, **{**asked, **changes}), tmp_path / out)

    return make
