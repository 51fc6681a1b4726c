"""Calibration: what is timed, how calls become a cluster's file, and what a past run tells."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qfleet.engines import inline
from qfleet.errors import UsageError
from qfleet.experiment import Experiment
from qfleet.placement.cluster_file import ClusterFile, Compute, Network, parse_cluster, read_cluster
from qfleet.planning.calibration import Cost, calibrate, costs_of, kind_of, payload_seconds, trace_of
from qfleet.planning.cluster import mean_of, put_together
from qfleet.planning.grid import Request, make_grid
from qfleet.planning.metering import Metered, MeteredEngine, Metering
from qfleet.planning.network import Transport, measure_loopback
from qfleet.planning.past_run import costs_of_run
from qfleet.planning.processes import fit, with_overhead
from qfleet.run_config import change_config
from qfleet.types import Receipt, Reply

MakeExperiment = Callable[..., Experiment]
ENV = "qfleet/Identity-v0"


def metering(method: str, seconds: float, role: str = "worker-0", **changes: Any) -> Metering:
    values: dict[str, Any] = {
        "cpu_seconds": float("nan"),
        **dict.fromkeys(("submitted", "began", "ended", "answered"), 0.0),
        **dict.fromkeys(("num_payloads", "num_env_steps", "num_updates", "num_samples", "num_steps"), 0),
    }
    return Metering(role, method, seconds, **{**values, **changes})


class Counter:
    """A role that knows nothing of learning."""

    def add(self, number: int) -> Receipt:
        return Receipt(num_updates=number, metrics={"own": 1.0})

    def give(self) -> Reply:
        return Reply(Receipt(), [1, 2])

    def take(self, *values: object) -> None:
        assert len(values) == 2

    def meet(self, number: int) -> Generator[torch.Tensor, None, Receipt]:
        for _ in range(number):
            yield torch.zeros(64)
            yield torch.zeros(1)  # beside it, no step of its own
        return Receipt(num_updates=number)


def test_calls_are_timed_and_answers_are_as_they_were() -> None:
    engine = MeteredEngine(inline.Engine(inline.Config(), 0))
    role = engine.spawn("worker-0", Counter)
    added = engine.submit(role, "add", 3)
    assert engine.wait() is added
    assert engine.result(added) == Receipt(num_updates=3, metrics={"own": 1.0})
    given = engine.submit(role, "give")
    engine.wait()
    assert engine.payload(given) == [1, 2]
    engine.submit(role, "take", given, given)
    engine.wait()
    engine.all_reduce([role], "meet", [(5,)])
    engine.wait()
    engine.close()
    assert [(call.method, call.num_payloads, call.num_updates, call.num_steps) for call in engine.calls] == [
        ("add", 0, 3, 0),
        ("give", 0, 0, 0),
        ("take", 2, 0, 0),
        ("meet", 0, 5, 5),
    ]
    assert all(call.submitted <= call.began <= call.answered and call.seconds >= 0 for call in engine.calls)


def test_a_role_without_the_method_fails_as_before() -> None:
    with pytest.raises(AttributeError):
        Metered(Counter).nothing  # type: ignore[attr-defined]  # noqa: B018


def test_costs_are_counted_in_what_the_cost_model_counts_them_in() -> None:
    calls = [
        *[metering("collect", 0.4, num_env_steps=4) for _ in range(3)],
        *[metering("train", 0.6, num_updates=2, num_env_steps=99) for _ in range(3)],
        *[metering("train_together", 1.5, num_updates=99, num_steps=3) for _ in range(3)],
        *[metering("local_update", 1.0, num_samples=10) for _ in range(3)],
        *[metering("update", 0.25, role="server-1", num_updates=99) for _ in range(3)],
    ]
    found = {(cost.table.role, cost.table.method): cost.table for cost in costs_of(calls, [], "here")}
    assert {key: (table.per, pytest.approx(mean_of(table))) for key, table in found.items()} == {
        ("worker-*", "collect"): ("env_step", 0.1),
        ("worker-*", "train"): ("update", 0.3),
        ("worker-*", "train_together"): ("call", 0.5),
        ("worker-*", "local_update"): ("sample", 0.1),
        ("server-*", "update"): ("call", 0.25),
    }
    # The most time first: it is what the reader looks at.
    assert next(iter(found)) == ("worker-*", "train_together")
    assert kind_of("aggregator") == "aggregator"


def test_what_each_push_adds_is_told_apart_from_the_call() -> None:
    # 1 push 0.3 s, 4 pushes 0.6 s: 0.1 s each beside 0.2 s; one call was held up, and medians do not care.
    calls = [metering("update", one, "server-0", num_payloads=1) for one in (0.3, 0.3, 9.9)]
    beside = [metering("update", one, "server-0", num_payloads=4) for one in (0.6, 0.6, 0.6)]
    assert payload_seconds([*calls, *beside]) == pytest.approx(0.1)
    (cost,) = costs_of(calls, beside, "here")
    assert cost.table.payload_seconds == pytest.approx(0.1)
    assert cost.table.values is not None
    assert cost.table.values[0] == pytest.approx(0.2)
    assert payload_seconds(calls) == 0.0


def test_a_trace_is_the_middles_of_equal_parts() -> None:
    values = trace_of(np.linspace(0.0, 1.0, 1001).tolist())
    assert len(values) == 20
    assert values == pytest.approx([(index + 0.5) / 20 for index in range(20)], abs=1e-3)


def test_an_engines_own_work_counts_where_roles_have_processes() -> None:
    (whole,) = with_overhead([metering("gradient", 1.0, cpu_seconds=3.0)])
    (half,) = with_overhead([metering("gradient", 1.0, cpu_seconds=3.0)], 0.5)
    (less,) = with_overhead([metering("gradient", 1.0, cpu_seconds=0.5)])
    assert (whole.seconds, half.seconds, less.seconds) == (3.0, 2.0, 1.0)


def test_the_latency_is_what_is_left(tmp_path: Path) -> None:
    # Serial: collect (free) and train (1 s an update) in two calls, each with a request and an answer of L: 1 + 4 L.
    grid = make_grid(Request(ENV, "serial", "1", recipe="vector", overrides=SMALL))
    config = grid.cells[0].config
    assert config is not None

    def build(latency: float, part: float) -> ClusterFile:
        tables = (Compute(method="train", per="update", seconds=0.1 * part), Compute(seconds=0.0))
        return ClusterFile(network=Network(latency=latency), compute=tables)

    _, latency, part = fit(config, grid.spec, 1.0 / (0.1 + 4 * 0.002), build)
    assert latency == pytest.approx(0.002, rel=0.05)
    assert part == 1.0
    # Faster than without any latency: some of the work went on beside the rest.
    _, latency, part = fit(config, grid.spec, 1.0 / 0.08, build)
    assert latency == 0.0
    assert part == pytest.approx(0.8, rel=0.05)


SMALL: dict[str, object] = {
    "env.num_envs": 4,
    "algo.batch_size": 4,
    "network.hidden": [16],
    "replay.sampler": "uniform",
    "replay.capacity": 400,
    "replay.min_transitions": 4,
    "replay.samples_per_insert": 1.0,
}


def test_a_strategy_is_measured_by_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfleet.planning.calibration.SECONDS", 0.1)
    threads = torch.get_num_threads()
    grid = make_grid(Request(ENV, "parameter_server:wait=async", "1", recipe="vector", overrides=SMALL))
    ((label, config),) = grid.calibrating()
    measured = calibrate(change_config(config, [("engine.name", "inline")]), grid.spec, tmp_path, label)
    found = {(cost.table.role, cost.table.method): cost for cost in measured.costs}
    assert {("worker-*", "gradient"), ("worker-*", "collect_with"), ("server-*", "update")} <= set(found)
    assert all(mean_of(cost.table) > 0 and cost.num_calls > 0 for cost in measured.costs)
    assert measured.updates_per_second > 0
    assert measured.coordinator_seconds > 0
    assert torch.get_num_threads() == threads


def test_the_loopback_has_a_latency_and_a_bandwidth() -> None:
    found = measure_loopback()
    assert 0 < found.latency < 0.1
    assert 1e6 < found.bandwidth < 1e12


TRANSPORT = Transport(1e-5, 2e9, "measured", 3e-5, "measured too")
MEASURED = [Cost(Compute(role="worker-*", method="gradient", seconds=0.5), 12, "measured")]


def test_what_a_file_says_counts_and_what_it_leaves_open_is_measured(tmp_path: Path) -> None:
    given = parse_cluster({"speed": {"worker-7": 0.25}, "network": {"latency": 0.01}})
    planned = put_together(given, "mine.toml", MEASURED, TRANSPORT)
    assert planned.file.speed == {"worker-7": 0.25}
    assert planned.file.network.latency == 0.01
    assert planned.file.cluster.coordinator_seconds == 3e-5
    sources = {one.name: one.source for one in planned.origins}
    assert sources["network latency"] == "mine.toml"
    assert sources["worker-* gradient"] == "measured, 12 calls"
    assert sources["coordinator"] == "measured too"
    # What is written is what is read, and each number's origin is a comment in it.
    path = tmp_path / "c.toml"
    path.write_text(planned.to_toml())
    assert read_cluster(str(path)) == planned.file
    assert "# worker-* gradient: 500,000.0 us a call, measured, 12 calls" in planned.to_toml()
    assert tomllib.loads(planned.to_toml())["compute"][0]["seconds"] == 0.5


def test_of_two_measurements_of_one_method_the_first_counts() -> None:
    again = Cost(Compute(role="worker-*", method="gradient", seconds=9.9), 1, "later")
    planned = put_together(None, None, [*MEASURED, again], TRANSPORT)
    assert [table.seconds for table in planned.file.compute] == [0.5]


def test_a_past_run_tells_collecting_and_learning(experiment: MakeExperiment) -> None:
    one = experiment(ENV)
    one.run()
    records = [json.loads(line) for line in (one.run_dir / "metrics.jsonl").read_text().splitlines()]
    record = [one for one in records if "num_samples" in one][-1]
    tables = {cost.table.method: cost.table for cost in costs_of_run(one.run_dir)}
    step = (record["seconds_environment"] + record["seconds_inference"]) / record["num_env_steps"]
    update = (record["seconds_learner"] + record["seconds_replay"]) / (record["num_samples"] / 16)
    assert tables["collect*"].seconds == pytest.approx(step, rel=0.01)
    assert tables["gradient"].seconds == pytest.approx(update, rel=0.01)
    assert tables["local_update"].seconds == pytest.approx(update / 16, rel=0.01)


def test_where_there_is_no_run_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--from-run .*metrics.jsonl is missing"):
        costs_of_run(tmp_path)
