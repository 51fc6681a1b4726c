"""Whole runs on the simulated cluster: the same twice, on virtual seconds, and clear words about a wrong file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from qfleet.engines.sim import Config, Engine
from qfleet.errors import ConfigError, QfleetError, RoleDied, UsageError
from qfleet.experiment import Experiment
from qfleet.placement.cluster_file import (
    FAULT_FIELDS,
    Cluster,
    Compute,
    Fault,
    Link,
    Machine,
    Network,
    Slowdown,
    parse_cluster,
)
from qfleet.session import CheckpointSaved, Logged
from qfleet.strategies import all_reduce
from qfleet.strategies.base import Drained, Event, RoleRestarted, SnapshotPublished
from qfleet.validation import Validated

MakeExperiment = Callable[..., Experiment]
CLUSTER: dict[str, Any] = {
    "network": {"latency": 1e-3, "bandwidth": 1e6},
    "compute": [
        {"method": "gradient", "distribution": "lognormal", "seconds": 0.01, "sigma": 0.5},
        {"method": "[ls][oa][av][de]", "seconds": 0.0},
    ],
    "slowdown": [{"every": 0.3, "seconds": 0.1, "factor": 3.0, "share": 0.5}],
    "fault": [
        {"kind": "crash", "every": 0.2},
        {"kind": "crash", "role": "server-0", "at": 0.25},
        {"kind": "lost_reply", "every": 0.3},
        {"kind": "freeze", "every": 0.5, "seconds": 0.05},
    ],
}
RUN = {
    "engine": "sim",
    "strategy": "parameter_server",
    "strategy.wait": "async",
    "strategy.max_restarts": 1000,
    "strategy.max_restarts_per_minute": 1000,
    "evaluation.every_env_steps": 200,
}


def written(folder: Path, tables: dict[str, Any]) -> str:
    path = folder / "cluster.toml"
    path.write_text(tomli_w.dumps(tables))
    return str(path)


def test_two_runs_give_the_same_parameters_and_the_same_log(experiment: MakeExperiment, tmp_path: Path) -> None:
    outcomes = []
    for number, seed in enumerate((3, 3, 4)):
        log = tmp_path / f"events-{number}.jsonl"
        changes = {"engine.cluster": written(tmp_path, CLUSTER), "engine.event_log": str(log), "seed": seed}
        summary = experiment("CartPole-v1", {**RUN, **changes}, run_dir=f"run-{number}").run()
        outcomes.append((summary["parameters_sha256"], summary["train_seconds"], log.read_bytes()))
        assert summary["tallies"]["restarts.process died"] >= 3
    assert outcomes[0] == outcomes[1]
    assert all(one != other for one, other in zip(outcomes[1], outcomes[2], strict=True))
    kinds = {json.loads(line)["event"] for line in outcomes[0][2].decode().splitlines()}
    assert {"spawn", "begin", "end", "answer", "fault", "die", "respawn"} <= kinds


def test_seconds_are_those_of_the_virtual_clock(experiment: MakeExperiment, tmp_path: Path) -> None:
    cluster = written(tmp_path, {"compute": [{"method": "gradient", "seconds": 100.0}, {"seconds": 0.0}]})
    run = experiment(
        "CartPole-v1", {**RUN, "engine.cluster": cluster, "stop.max_seconds": 2_050.0, "stop.max_env_steps": 4000}
    )
    summary = run.run()
    assert summary["stop_reason"] == "max_seconds"
    assert summary["train_seconds"] == pytest.approx(2_100.0, abs=60.0), "20 gradients of each worker, and a bit"
    assert summary["updates_per_second"] == pytest.approx(4 / 100.0, rel=0.1), "four workers"
    assert summary["time_shares"]["waiting"] < 0.1
    assert sum(summary["time_shares"].values()) == pytest.approx(1.0)


def test_without_faults_the_cluster_changes_what_comes_first_and_not_what_is_learned(
    experiment: MakeExperiment, tmp_path: Path
) -> None:
    # Synchronous means do not depend on who is quick: the same parameters as on inline, to the bit.
    # (An epsilon schedule would: it follows the order in which steps are counted.)
    sync = {**RUN, "strategy.wait": "sync", "algo.exploration.kind": "per_env"}
    costs = {name: table for name, table in CLUSTER.items() if name != "fault"}
    simulated = experiment("CartPole-v1", {**sync, "engine.cluster": written(tmp_path, costs)}, run_dir="sim").run()
    inline = experiment("CartPole-v1", {**sync, "engine": "inline"}, run_dir="inline").run()
    assert simulated["parameters_sha256"] == inline["parameters_sha256"]
    assert simulated["num_updates"] == inline["num_updates"] > 20


@pytest.mark.parametrize("wait", ["sync", "async"])
def test_a_resumed_run_goes_on_with_its_clock_and_its_draws(
    experiment: MakeExperiment, tmp_path: Path, wait: str
) -> None:
    costs = {name: table for name, table in CLUSTER.items() if name not in ("fault", "slowdown", "network")}
    free = {"network": {"latency": 0.0, "bandwidth": 1e30}}
    changes = {**RUN, "strategy.wait": wait, "engine.cluster": written(tmp_path, {**costs, **free})}
    changes |= {"checkpoint.every_env_steps": 200}
    whole = experiment("CartPole-v1", changes, run_dir="whole").run()
    experiment("CartPole-v1", {**changes, "stop.max_env_steps": 200}, run_dir="parts").run()
    resumed = Experiment.resume(tmp_path / "parts", {"stop.max_env_steps": 400}).run()
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]
    assert resumed["train_seconds"] == pytest.approx(whole["train_seconds"], rel=0.01)


def test_nothing_is_computed_where_only_time_is_asked_for(experiment: MakeExperiment) -> None:
    summary = experiment("CartPole-v1", {**RUN, "engine.compute": "none"}).run()
    assert summary["num_env_steps"] >= 400
    assert summary["num_updates"] > 20
    assert summary["eval"]["mean_return"] == 0.0
    first = experiment("CartPole-v1", {**RUN, "engine.compute": "none", "stop.max_env_steps": 50}, run_dir="b").run()
    assert first["parameters_sha256"] == summary["parameters_sha256"], "the first weights, whatever the version"


def test_a_snapshot_that_goes_with_its_makers_machine_ends_no_run(
    experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lost = all_reduce.run, []

    def losing(engine: Any, *args: Any) -> Iterator[Event]:
        for event in run(engine, *args):
            if isinstance(event, SnapshotPublished) and not lost:
                lost.append(event.version)
                engine.machines.lose(event.future.role.name)
            yield event

    monkeypatch.setattr(all_reduce, "run", losing)
    changes = {"engine": "sim", "strategy": "all_reduce", "strategy.num_workers": 2, "evaluation.every_env_steps": 100}
    events = list(experiment("qfleet/Identity-v0", changes).stream())
    validated = [event.version for event in events if isinstance(event, Validated)]
    assert len(lost) == 1
    assert validated, "there were others"
    assert min(validated) > lost[0]
    assert any(isinstance(event, RoleRestarted) and event.cause == "node lost" for event in events)
    logged = [event.record for event in events if isinstance(event, Logged)]
    assert logged[-1]["validations_lost"] == 1


def test_a_run_that_computes_nothing_leaves_no_checkpoint_and_is_not_resumed(
    experiment: MakeExperiment, tmp_path: Path
) -> None:
    changes = {**RUN, "engine.compute": "none", "checkpoint.every_env_steps": 100}
    events = list(experiment("CartPole-v1", changes).stream())
    assert any(isinstance(event, Drained) for event in events), "what a checkpoint takes is simulated"
    assert not any(isinstance(event, CheckpointSaved) for event in events)
    assert not list((tmp_path / "run" / "checkpoints").glob("**/*"))
    with pytest.raises(
        UsageError, match=r"computes nothing \(engine.compute = 'none'\) leaves nothing to resume"
    ) as caught:
        Experiment.resume(tmp_path / "run")
    assert "\n" not in str(caught.value)
    real = experiment("CartPole-v1", RUN, run_dir="real")
    real.run()
    with pytest.raises(UsageError, match="resumes nothing"):
        Experiment.resume(tmp_path / "real", {"engine.compute": "none"})


@pytest.mark.parametrize("role", ["worker-1", "server-0"])
def test_a_preemption_that_was_announced_loses_nothing(experiment: MakeExperiment, tmp_path: Path, role: str) -> None:
    changes = {**RUN, "replay.capacity": 100_000, "stop.max_env_steps": 600, "evaluation.every_env_steps": 10_000}
    lost = {}
    for notice in (0.0, 1.0):
        fault = {"kind": "preemption", "role": role, "at": 0.02, "notice": notice}
        changes["engine.cluster"] = written(tmp_path, {"fault": [fault]})
        run = experiment("CartPole-v1", changes, run_dir=f"notice-{notice}")
        if role == "server-0" and not notice:
            with pytest.raises(QfleetError, match="the newest parameters are gone with server-0's machine"):
                run.run()
            continue
        summary = run.run()
        assert summary["stop_reason"] == "max_env_steps"
        lost[notice] = summary["tallies"].get("transitions_lost", 0)
        cause = "preempted" if notice else "node lost"
        assert {key: value for key, value in summary["tallies"].items() if key.startswith("restarts")} == {
            f"restarts.{cause}": 1
        }
    assert lost[1.0] == 0
    assert role == "server-0" or lost[0.0] > 10


def test_a_strategy_that_restarts_nothing_is_saved_before_its_machine_goes(
    experiment: MakeExperiment, tmp_path: Path
) -> None:
    fault = {"kind": "preemption", "role": "worker-0", "at": 0.02, "notice": 0.01}
    changes = {"engine": "sim", "engine.cluster": written(tmp_path, {"fault": [fault]})}
    run = experiment("CartPole-v1", changes)
    with pytest.raises(RoleDied, match="node lost"):
        run.run()
    assert run.session is not None
    num_saved = run.session.store.newest_whole(run.config.learning_sha256())[0]
    assert num_saved is not None
    assert 0 < num_saved.counters["num_env_steps"] < 400
    assert Experiment.resume(tmp_path / "run").run()["num_env_steps"] >= 400


class NoTwin:
    """A role that has to be computed."""


def test_a_role_without_a_twin_says_so() -> None:
    with pytest.raises(UsageError, match=r"engine.compute = 'none': NoTwin has no timing_twin"):
        Engine(Config(compute="none"), 0).spawn("worker-0", NoTwin)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[compute]\nseconds = 1.0", r"compute = .*: write \[\[compute\]\], for there may be several"),
        ("[[compute]]\nsecond = 1.0", r"compute\[0\]\.second = 1.0: no such field; did you mean seconds\?"),
        ("[[compute]]\nseconds = -1.0", r"compute\[0\]\.seconds = -1.0: input should be greater than or equal to 0"),
        ("[[compute]]\nsigma = 1.0", r"compute\[0\] = .*distribution 'constant' takes seconds"),
        ('[[compute]]\ndistribution = "pareto"\nminimum = 1.0', r"compute\[0\].*takes minimum and alpha"),
        ("[network]\nlatencies = 1.0", r"network\.latencies = 1.0: no such field; did you mean latency\?"),
        ("[networks]\nlatency = 1.0", r"networks = .*: no such table; did you mean network\?"),
        ('[speed]\n"worker-0" = 0.0', r"toml: speed\.'worker-0' = 0.0: input should be greater than 0"),
        ("speed = 2.0", r"speed = 2.0: write a \[speed\] table of roles"),
        ('[[link]]\nbetwen = ["a", "b"]', r"link\[0\]\.betwen = .*did you mean between"),
        ('[[fault]]\nkind = "crash"', r"fault\[0\].*a fault takes either at or every"),
        ('[[fault]]\nkind = "crush"\nat = 1.0', r"fault\[0\]\.kind = 'crush': input should be 'crash'"),
        ('[[fault]]\nkind = "slow"\nat = 1.0\nseconds = 1.0', r"fault\[0\].*kind 'slow' takes seconds, factor"),
        ('[[fault]]\nkind = "crash"\nat = 1.0\nfactor = 2.0', r"fault\[0\].*kind 'crash' takes no further field"),
        ('[[link]]\nbetween = ["a"]', r"link\[0\]\.between = \['a'\]: it takes more values"),
        ("[cluster]\nplaces = 0", r"cluster\.places = 0: input should be greater than or equal to 1"),
        ("[[slowdown]]\nevery = 1.0", r"slowdown\[0\]\.seconds: this field is required"),
        ("latency = ", r"not TOML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Engine(Config(cluster=str(path)), 0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value).rstrip()


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine.cluster = .*No such file"):
        Engine(Config(cluster=str(tmp_path / "none.toml")), 0)


def test_the_documented_file_is_right_and_names_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text("utf-8")
    block = text.split("```toml\n")[1].split("```")[0]
    cluster = parse_cluster(tomllib.loads(block))
    tables = (cluster.link, cluster.machine, cluster.compute, cluster.slowdown, cluster.fault)
    assert [len(one) for one in tables] == [1, 1, 6, 1, 2]
    for section in (Cluster, Network, Link, Machine, Compute, Slowdown, Fault):
        for name in section.model_fields:
            assert f"{name} =" in block or f"`{name}`" in text, f"{section.__name__}.{name}"
    for kind in FAULT_FIELDS:
        assert f"| `{kind}` |" in text
