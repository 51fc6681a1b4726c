"""`qfleet recipes` and `qfleet doctor`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest

from qfleet.cli import doctor
from qfleet.recipe import list_recipes

Cli = Callable[..., Any]


def test_recipes_are_listed_with_their_summaries(cli: Cli) -> None:
    result = cli("recipes")
    assert result.exit_code == 0
    for recipe in list_recipes():
        assert recipe.name in result.stdout
        assert recipe.summary in result.stdout
    listed = json.loads(cli("recipes", "--json").stdout)["recipes"]
    assert [entry["name"] for entry in listed] == [recipe.name for recipe in list_recipes()]
    assert next(entry for entry in listed if entry["name"] == "cartpole")["env"] == "CartPole-v1"
    assert cli("recipes", "--quiet").stdout.split() == [recipe.name for recipe in list_recipes()]


def test_shown_recipe_is_the_toml_itself(cli: Cli) -> None:
    result = cli("recipes", "show", "cartpole")
    assert tomllib.loads(result.stdout)["env"]["id"] == "CartPole-v1"
    assert json.loads(cli("recipes", "show", "cartpole", "--json").stdout)["toml"].rstrip() == result.stdout.rstrip()


def test_doctor_looks_at_everything(cli: Cli) -> None:
    result = cli("doctor", "--json")
    report = json.loads(result.stdout.splitlines()[-1])
    names = [check["name"] for check in report["checks"]]
    assert names[:3] == ["python", "platform", "cores"]
    assert set(names) >= {"memory", "torch", "cuda", "numba", "gymnasium", "disk", "runs", *doctor.EXTRAS}
    assert result.exit_code == (0 if report["ok"] else 1)
    assert len(result.stderr.splitlines()) == len(names)


def test_doctor_names_a_problem_and_what_to_do(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_writable", lambda folder: False)
    result = cli("doctor")
    assert result.exit_code == 1
    line = next(line for line in result.stdout.splitlines() if line.split()[1] == "runs")
    assert line.startswith("problem")
    assert "use --run-dir" in line
    assert "note     numba" in result.stdout, "prioritized replay works without a cache, only slower"
    assert result.stdout.splitlines()[-1] == "1 problem"


def test_doctor_knows_every_extra() -> None:
    assert set(metadata("qfleet").get_all("Provides-Extra") or []) == {*doctor.EXTRAS, "dev"}


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("", None)])
def test_cores_follow_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: float | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert doctor.usable_cores(tmp_path) == (8.0 if cores is None else cores)


def test_writable_asks_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert doctor.is_writable(tmp_path / "not" / "yet")
    (tmp_path / "file").write_text("")
    assert not doctor.is_writable(tmp_path / "file" / "below")
