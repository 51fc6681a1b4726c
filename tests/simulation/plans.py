"""What a trial's seed draws: a strategy, its settings, a cluster, faults, moments for checkpoints and snapshots."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

FAULT_SECONDS = 0.25
BASE: dict[str, Any] = {
    "device": "cpu",
    "env.id": "qfleet/Identity-v0",
    "env.num_envs": 2,
    "algo.batch_size": 4,
    "algo.n_step": 1,
    "algo.target_update": "hard",
    "algo.target_period_updates": 5,
    "algo.learning_rate": 0.01,
    "algo.optimizer.name": "sgd",
    "algo.optimizer.max_grad_norm": "none",
    "algo.exploration.kind": "per_env",  # a schedule would follow the order in which steps are counted
    "network.hidden": [8],
    "network.layer_norm": False,
    "replay.capacity": 50_000,
    "replay.min_transitions": 12,
    "replay.samples_per_insert": 2.0,
    "engine": "sim",
    "strategy.max_restarts": 100_000,
    "strategy.max_restarts_per_minute": 100_000,
}
# By name: the settings, which roles faults may hit, and whether what is learned does not depend on who comes first.
SCENARIOS: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "sync": ({"strategy": "parameter_server"}, ("worker-*", "server-*"), True),
    "backups": ({"strategy": "parameter_server", "strategy.backup_workers": 1}, ("worker-*", "server-*"), False),
    "ssp": ({"strategy": "parameter_server", "strategy.wait": "ssp"}, ("worker-*", "server-*"), False),
    "ssp-mean": (
        {"strategy": "parameter_server", "strategy.wait": "ssp", "strategy.merge": "mean", "strategy.bound": 2},
        ("worker-*", "server-*"),
        False,
    ),
    "async": (
        {"strategy": "parameter_server", "strategy.wait": "async", "strategy.in_flight": 2},
        ("worker-*", "server-*"),
        False,
    ),
    "staleness": (
        {"strategy": "parameter_server", "strategy.wait": "async", "strategy.merge": "staleness"},
        ("worker-*", "server-*"),
        False,
    ),
    "groups": ({"strategy": "sync_groups", "strategy.num_groups": 2}, ("worker-*", "server-*"), False),
    "all-reduce": ({"strategy": "all_reduce"}, ("worker-*",), True),
    "replay": ({"strategy": "distributed_replay"}, ("actor-*", "shard-*", "learner-*"), False),
    "federated": ({"strategy": "federated", "strategy.local_steps": 2}, ("worker-*", "aggregator"), True),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a seed draws."""

    name: str
    changes: dict[str, Any]
    cluster: dict[str, Any]
    is_ordered: bool
    drains: tuple[int, ...]
    snapshots: tuple[int, ...]
    budget: int | None


def draw_plan(seed: int, only: str | None = None) -> Plan:
    """Everything about trial `seed`."""
    draw = np.random.default_rng(seed)
    name = only or list(SCENARIOS)[int(draw.integers(len(SCENARIOS)))]
    settings, patterns, is_ordered = SCENARIOS[name]
    num_workers = int(draw.integers(3 if name in ("groups", "backups") else 2, 6))
    changes = {**BASE, **settings, "strategy.num_workers": num_workers, "seed": seed}
    if settings["strategy"] in ("parameter_server", "sync_groups"):
        changes["strategy.num_servers"] = int(draw.choice([1, 1, 2, 3]))
        kinds = ["none", "bf16", "top_k"] if settings["strategy"] == "parameter_server" else ["none", "bf16"]
        changes["strategy.compression"] = str(draw.choice(kinds))
        if changes["strategy.compression"] == "top_k":
            changes["strategy.top_k_fraction"] = 0.2
        if name == "ssp":
            changes["strategy.bound"] = int(draw.integers(0, 3))
        if name in ("async", "sync") and draw.random() < 0.2:
            changes["strategy.local_steps"] = 2
    if name == "replay":
        changes |= {
            "strategy.num_shards": int(draw.integers(1, 4)),
            "strategy.num_learners": int(draw.integers(1, 3)),
            "strategy.publish_every": int(draw.integers(1, 5)),
            "replay.sampler": str(draw.choice(["uniform", "prioritized"])),
        }
    if name == "all-reduce" and draw.random() < 0.5:
        changes["replay.sampler"] = "prioritized"
    if name == "federated" and draw.random() < 0.5:
        changes["strategy.round_timeout"] = 0.01
        is_ordered = False
    budget = int(draw.integers(1, 4)) if draw.random() < 0.1 else None
    if budget is not None:
        changes["strategy.max_restarts"] = budget
    drains = tuple(sorted(int(one) for one in draw.integers(5, 300, size=int(draw.integers(0, 3)))))
    snapshots = tuple(sorted(int(one) for one in draw.integers(5, 300, size=int(draw.integers(0, 3)))))
    return Plan(name, changes, draw_cluster(draw, patterns), is_ordered, drains, snapshots, budget)


def draw_cluster(draw: np.random.Generator, patterns: tuple[str, ...]) -> dict[str, Any]:
    """Costs, a network, and up to five faults."""
    compute = [
        {"distribution": "lognormal", "seconds": 0.002, "sigma": 0.7},
        {"distribution": "shifted_exponential", "shift": 0.001, "scale": 0.001},
        {"distribution": "pareto", "minimum": 0.001, "alpha": 1.5},
        {"distribution": "constant", "seconds": 0.002},
    ]
    restoring = {"method": "[lrs][eao][savt][dvo]*", "seconds": 0.001}  # load, save, restore
    cluster: dict[str, Any] = {
        "network": {"latency": float(draw.choice([0.0, 1e-4, 1e-3])), "bandwidth": float(draw.choice([1e6, 1e9]))},
        "compute": [restoring, compute[int(draw.integers(len(compute)))]],
        "cluster": {"startup_seconds": float(draw.choice([0.0, 0.005]))},
        "fault": [draw_fault(draw, patterns) for _ in range(int(draw.integers(0, 6)))],
    }
    if draw.random() < 0.3:
        cluster["speed"] = {patterns[0].replace("*", "0"): 0.2}
    if draw.random() < 0.3:
        cluster["slowdown"] = [{"role": "*", "every": 0.05, "seconds": 0.02, "factor": 5.0, "share": 0.5}]
    return cluster


def draw_fault(draw: np.random.Generator, patterns: tuple[str, ...]) -> dict[str, Any]:
    """A fault that ends with the time of faults."""
    kinds = ["crash", "crash", "loss", "slow", "freeze", "lost_reply", "delay", "duplicate", "partition", "preemption"]
    kind = str(draw.choice(kinds))
    role = str(draw.choice(patterns))
    fault: dict[str, Any] = {
        "kind": kind,
        "role": role,
        "every": float(draw.uniform(0.02, 0.2)),
        "until": FAULT_SECONDS,
    }
    seconds = float(draw.choice([0.005, 0.02, 0.2]))
    if kind in ("freeze", "delay", "slow", "partition"):
        fault["seconds"] = seconds
    if kind == "slow":
        fault["factor"] = 10.0
    elif kind == "duplicate":  # of what is said to be idempotent; a worker's collecting is not
        fault |= {"role": "*", "method": str(draw.choice(["update", "stage", "publish", "snapshot", "restore"]))}
    elif kind == "partition":
        fault["others"] = str(draw.choice(["coordinator", *patterns]))
    elif kind == "preemption":
        fault["notice"] = 0.01
    return fault
