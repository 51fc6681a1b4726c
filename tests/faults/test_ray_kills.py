"""Role processes are killed -9, or frozen, in the middle of runs on Ray: every run reaches its return, and adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

BATCH = 16
PACE = 4.0
BASE: dict[str, Any] = {
    "engine": "ray",
    "num_threads": 1,
    "seed": 5,
    "algo.learning_rate": 0.01,
    "algo.gamma": 0.0,
    "algo.n_step": 2,
    "env.kwargs": {"length": 3},
    "replay.capacity": 60_000,  # nothing is overwritten, so every transition can be accounted for
    "replay.samples_per_insert": PACE,
    "strategy.max_restarts": 1000,
    "strategy.max_restarts_per_minute": 1000,
    "checkpoint.every_env_steps": 400,
    "stop.until_return": 2.85,
    "stop.confirm_episodes": 40,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "sync": {"strategy": "parameter_server", "strategy.num_workers": 3},
    "async-3-servers": {
        "strategy": "parameter_server",
        "strategy.wait": "async",
        "strategy.in_flight": 2,
        "strategy.num_workers": 2,
        "strategy.num_servers": 3,
    },
    "groups": {"strategy": "sync_groups", "strategy.num_workers": 3, "strategy.num_groups": 2},
    "all-reduce": {"strategy": "all_reduce", "strategy.num_workers": 3},
    "replay": {
        "strategy": "distributed_replay",
        "strategy.num_workers": 2,
        "strategy.num_shards": 2,
        "replay.sampler": "prioritized",
    },
    "replay-2-learners": {
        "strategy": "distributed_replay",
        "strategy.num_workers": 2,
        "strategy.num_shards": 2,
        "strategy.num_learners": 2,
    },
    "federated": {"strategy": "federated", "strategy.num_workers": 3, "strategy.local_steps": 5},
    "impala": {"strategy.num_workers": 2, "strategy.max_policy_lag": 3, "algo.rollout_steps": 4},
}
ON_ROLLOUTS = {"impala"}  # recipes of their own, without a replay
KINDS = {
    "sync": ["worker-", "server-"],
    "async-3-servers": ["worker-", "server-"],
    "groups": ["worker-", "server-"],
    "all-reduce": ["worker-"],
    "replay": ["actor-", "shard-", "learner-"],
    "replay-2-learners": ["actor-", "shard-", "learner-"],
    "federated": ["worker-", "aggregator"],
    "impala": ["actor-", "learner-"],
}
KILLS = {
    "sync": 10,
    "async-3-servers": 10,
    "groups": 6,
    "all-reduce": 10,
    "replay": 8,
    "replay-2-learners": 6,
    "federated": 6,
    "impala": 8,
}
assert sum(KILLS.values()) >= 50
Strike = Callable[..., dict[str, Any]]


@pytest.fixture
def strike(tmp_path: Path, tiny: dict[str, Any]) -> Strike:
    """strike("sync", strikes=3): one run of kill_driver.py, with what holds for every one of them asserted."""

    def run(name: str, strikes: int, every: int, how: str = "KILL", **overrides: Any) -> dict[str, Any]:
        # All strikes fall before the first validation, so that no run is over before them.
        first, last = 2 * every, (strikes + 2) * every
        changes = tiny | BASE | STRATEGIES[name] | {"evaluation.every_env_steps": last + 2 * every}
        changes |= {"stop.max_env_steps": 40_000} | overrides
        recipe = name if name in ON_ROLLOUTS else "vector"
        if name in ON_ROLLOUTS:
            own = {"algo.learning_rate", "algo.gamma", *STRATEGIES[name]}
            changes = {key: changes[key] for key in changes if key in own or not key.startswith(("algo.", "replay."))}
        command = {
            "run_dir": str(tmp_path / "run"),
            "env": "qfleet/Identity-v0",
            "recipe": recipe,
            "overrides": changes,
            "strikes": strikes,
            "first": first,
            "last": last,
            "kinds": KINDS[name],
            "signal": how,
            "seed": 7,
        }
        driver = Path(__file__).parent / "kill_driver.py"
        with subprocess.Popen(
            [sys.executable, str(driver), json.dumps(command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=400)
            except BaseException:  # it hangs, or somebody has had enough; Ray and the roles end without it
                process.kill()
                raise
        assert process.returncode == 0, errors
        facts: dict[str, Any] = json.loads(output.splitlines()[-1])
        for fact in ("struck", "tallies", "counters", "num_processes", "num_files", "seconds"):
            print(name, fact, facts[fact])  # with -s, or where the test fails
        check_books(facts, strikes)
        return facts

    return run


def check_books(facts: dict[str, Any], strikes: int) -> None:
    """What holds after any strikes under any strategy."""
    counters, tallies, summary = facts["counters"], facts["tallies"], facts["summary"]
    assert (summary["stop_reason"], summary["reached"]) == ("reached", True)
    assert summary["eval"]["mean_return"] >= 2.85, "on episodes that no decision has looked at"
    assert sum(facts["struck"].values()) == strikes
    restarts = {name.removeprefix("restarts."): n for name, n in tallies.items() if name.startswith("restarts.")}
    assert restarts == Counter(cause for _, cause in facts["restarts"])
    for name, number in Counter(name for name, _ in facts["restarts"]).items():
        assert number >= facts["struck"].get(name, 0)
    # Counters are what the events say, and the parameters have had as many updates as were counted.
    assert counters["num_env_steps"] == facts["rollouts"]
    assert counters["num_inserted"] == facts["inserted"]
    assert set(facts["versions"].values()) == {counters["num_updates"]}
    if summary["algo"] == "dqn":
        check_replay(facts)
    if "updates_lost" not in tallies or summary["strategy"] != "distributed_replay":  # whose learners go back
        assert facts["went_back"] == []
    assert facts["num_processes"] > 5, "the roles, and Ray's own"
    assert (facts["left_processes"], facts["left_files"], facts["frozen_left"]) == ([], [], 0)


def check_replay(facts: dict[str, Any]) -> None:
    """Every transition is there, and trained on as often as was asked."""
    counters, tallies, summary = facts["counters"], facts["tallies"], facts["summary"]
    assert facts["rows"] == counters["num_inserted"] - tallies.get("transitions_lost", 0)
    # A tenth below what was asked: what the last deaths have delayed, and what is owed for less than a batch.
    assert 0.9 * PACE <= summary["samples_per_insert_measured"] <= PACE + 0.01
    assert counters["num_samples"] % BATCH == 0


def check_pushes(facts: dict[str, Any]) -> None:
    """Every version of every server was made of the same pushes, and no push is in two of them."""
    histories = []
    for commits in facts["applied"].values():
        # A server that died with an update which nobody had heard of made that version again in its next life.
        made = {version: [tuple(ticket) for ticket in tickets] for version, tickets in commits}
        assert sorted(made) == list(range(1, facts["counters"]["num_updates"] + 1))
        applied = [ticket for tickets in made.values() for ticket in tickets]
        assert len(applied) == len(set(applied)), "a push was applied twice"
        assert len(applied) * BATCH == facts["counters"]["num_samples"]
        histories.append(made)
    assert histories
    assert all(history == histories[0] for history in histories)


@pytest.mark.faults
@pytest.mark.parametrize("name", STRATEGIES)
def test_kills_in_the_middle_of_a_run(strike: Strike, name: str) -> None:
    facts = strike(name, KILLS[name], every=150)
    assert {kind.rstrip("-") for kind in KINDS[name]} == {role.partition("-")[0] for role in facts["struck"]}
    assert facts["tallies"]["restarts.process died"] == KILLS[name]
    if name in ("sync", "async-3-servers", "groups"):
        check_pushes(facts)
    if name == "impala":
        assert facts["summary"]["lags"]["policy_lag"]["max"] <= 3
        assert facts["counters"]["num_samples"] == facts["counters"]["num_inserted"], "every trajectory, once"
        assert facts["summary"]["lags"]["policy_lag"]["num"] == 2 * facts["counters"]["num_updates"]


@pytest.mark.faults
@pytest.mark.parametrize("name", ["async-3-servers", "all-reduce", "replay", "federated"])
def test_frozen_roles_are_taken_for_dead(strike: Strike, name: str) -> None:
    facts = strike(name, 2, every=150, how="STOP", **{"engine.role_timeout": 6.0})
    # A healthy one may be too slow on a machine that is busy, too: it is treated alike.
    assert facts["tallies"]["restarts.timeout"] >= 2


def test_a_worker_and_a_server_are_killed(strike: Strike) -> None:
    facts = strike("async-3-servers", 2, every=100, **{"strategy.num_servers": 1})
    assert facts["tallies"]["restarts.process died"] == 2
    check_pushes(facts)
