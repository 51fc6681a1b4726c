"""Numbers that go elsewhere too: modules with the surface of wandb and mlflow stand in for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qfleet.errors import MissingExtraError, QfleetError
from qfleet.experiment import Experiment
from qfleet.metrics import read_metrics

ENV = "qfleet/Identity-v0"


class FakeWandb(ModuleType):
    """As much of wandb as is used; keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.lines: list[dict[str, float]] = []
        self.defined: list[tuple[str, str | None]] = []
        self.num_finished = 0
        self.fails_at = 10**9
        self.Settings = dict

    def init(self, **asked: Any) -> FakeWandb:
        self.inits.append(asked)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        if len(self.lines) >= self.fails_at:
            raise ConnectionError("gone")
        self.lines.append(values)

    def finish(self) -> None:
        self.num_finished += 1


class FakeMlflow(ModuleType):
    """As much of mlflow as is used."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.uri = ""
        self.experiments: dict[str, str] = {}
        self.metrics: list[Any] = []
        self.params: list[Any] = []
        self.states: list[tuple[str, str]] = []
        self.run_names: list[str] = []
        self.error: Exception | None = None

    def MlflowClient(self, tracking_uri: str) -> FakeMlflow:  # noqa: N802 - mlflow's own name
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        if self.error is not None:
            raise self.error
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = "7"
        return "7"

    def create_run(self, number: str, run_name: str) -> Any:
        assert number == "7"
        self.run_names.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert run_id == "m1"
        assert len(params) <= 100
        self.metrics += metrics
        self.params += params

    def update_run(self, run_id: str, status: str) -> None:
        self.states.append((run_id, status))

    def set_terminated(self, run_id: str, status: str) -> None:
        self.states.append((run_id, status))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    entities: Any = ModuleType("mlflow.entities")
    entities.Metric = lambda *values: values
    entities.Param = lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return fake


def of_kind(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run_dir) if record["kind"] == kind]


def test_wandb_gets_what_metrics_jsonl_gets_and_goes_on_after_a_resume(experiment: Any, wandb: FakeWandb) -> None:
    run = experiment(ENV, {"logging.wandb": "fleet"})
    run.run()
    (asked,) = wandb.inits
    assert (asked["project"], asked["name"], asked["resume"]) == ("fleet", "run", "allow")
    assert asked["config"]["algo"]["name"] == "dqn"
    assert ("*", "num_env_steps") in wandb.defined
    told = [(line["num_env_steps"], line["train/num_updates"]) for line in wandb.lines if "train/num_updates" in line]
    assert told == [(record["num_env_steps"], record["num_updates"]) for record in of_kind(run.run_dir, "train")]
    assert [line["evaluation/mean_return"] for line in wandb.lines if "evaluation/mean_return" in line] == [
        record["mean_return"] for record in of_kind(run.run_dir, "evaluation")
    ]
    assert wandb.num_finished == 1
    Experiment.resume(run.run_dir, {"stop.max_env_steps": 500}).run()
    assert wandb.inits[1]["id"] == asked["id"]


def test_mlflow_gets_numbers_and_settings_and_goes_on_after_a_resume(experiment: Any, mlflow: FakeMlflow) -> None:
    run = experiment(ENV, {"logging.mlflow": "sqlite:///a.db"})
    run.run()
    assert (mlflow.uri, mlflow.experiments, mlflow.run_names) == ("sqlite:///a.db", {"qfleet": "7"}, ["run"])
    assert ("algo.name", "dqn") in mlflow.params
    told = [(step, value) for name, value, _, step in mlflow.metrics if name == "train/num_updates"]
    assert told == [(record["num_env_steps"], record["num_updates"]) for record in of_kind(run.run_dir, "train")]
    assert mlflow.states == [("m1", "FINISHED")]
    Experiment.resume(run.run_dir, {"stop.max_env_steps": 500}).run()
    assert mlflow.states[1:] == [("m1", "RUNNING"), ("m1", "FINISHED")]
    assert len(mlflow.run_names) == 1


def test_a_service_that_fails_costs_its_copy_and_not_the_run(experiment: Any, wandb: FakeWandb) -> None:
    wandb.fails_at = 2
    run = experiment(ENV, {"logging.wandb": "fleet"})
    assert run.run()["num_env_steps"] == 400
    (event,) = of_kind(run.run_dir, "event")
    assert (event["event"], event["log"], event["why"]) == ("RemoteLogLost", "wandb", "ConnectionError: gone")
    assert len(wandb.lines) == 2
    assert len(of_kind(run.run_dir, "train")) >= 4


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line(name: str, experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    run = experiment(ENV, {f"logging.{name}": "x"})
    with pytest.raises(MissingExtraError, match=rf"logging\.{name} needs {name}.*pip install 'qfleet\[{name}\]'"):
        run.run()
    assert not run.run_dir.exists(), "nothing was trained"


def test_a_service_that_refuses_is_one_line(experiment: Any, mlflow: FakeMlflow) -> None:
    mlflow.error = RuntimeError("no route\nto it")
    with pytest.raises(QfleetError, match=r"^logging\.mlflow = 'http://x': no route$"):
        experiment(ENV, {"logging.mlflow": "http://x"}).run()


def test_a_damaged_note_begins_a_new_run(experiment: Any, wandb: FakeWandb) -> None:
    run = experiment(ENV, {"logging.wandb": "fleet"})
    run.run()
    (run.run_dir / "remote_logs.json").write_text("[]")
    Experiment.resume(run.run_dir, {"stop.max_env_steps": 500}).run()
    first, second = (asked["id"] for asked in wandb.inits)
    assert first != second
    assert json.loads((run.run_dir / "remote_logs.json").read_text()) == {"wandb": second}
