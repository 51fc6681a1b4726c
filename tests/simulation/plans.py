"""What a trial's seed draws: a strategy, its settings, a cluster, faults, moments for checkpoints and snapshots."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from qfleet.ops.pacing import insert_slack

FAULT_SECONDS = 0.25
COMMON: dict[str, Any] = {
    "device": "cpu",
    "env.id": "qfleet/Identity-v0",
    "env.num_envs": 2,
    "algo.learning_rate": 0.01,
    "network.hidden": [8],
    "network.layer_norm": False,
    "engine": "sim",
}
SUPERVISED: dict[str, Any] = {"strategy.max_restarts": 100_000, "strategy.max_restarts_per_minute": 100_000}
REPLAY: dict[str, Any] = {
    "algo.batch_size": 4,
    "algo.n_step": 1,
    "algo.target_update": "hard",
    "algo.target_period_updates": 5,
    "algo.optimizer.name": "sgd",
    "algo.optimizer.max_grad_norm": "none",
    "algo.exploration.kind": "per_env",  # a schedule would follow the order in which steps are counted
    "replay.capacity": 50_000,
    "replay.min_transitions": 12,
    "replay.samples_per_insert": 2.0,
}
BASE: dict[str, Any] = {**COMMON, **SUPERVISED, **REPLAY}
TRAJECTORIES: dict[str, Any] = {**COMMON, **SUPERVISED, "algo": "vtrace", "algo.rollout_steps": 3}
WORKERS = ("worker-*", "server-*")
ALONE = ("worker-0",)
# By name: the settings, which roles faults may hit, and whether what is learned does not depend on who comes first.
SCENARIOS: dict[str, tuple[dict[str, Any], tuple[str, ...], bool]] = {
    "sync": ({**BASE, "strategy": "parameter_server"}, WORKERS, True),
    "backups": ({**BASE, "strategy": "parameter_server", "strategy.backup_workers": 1}, WORKERS, False),
    "ssp": ({**BASE, "strategy": "parameter_server", "strategy.wait": "ssp"}, WORKERS, False),
    "ssp-mean": (
        {
            **BASE,
            "strategy": "parameter_server",
            "strategy.wait": "ssp",
            "strategy.merge": "mean",
            "strategy.bound": 2,
        },
        WORKERS,
        False,
    ),
    "async": (
        {**BASE, "strategy": "parameter_server", "strategy.wait": "async", "strategy.in_flight": 2},
        WORKERS,
        False,
    ),
    "staleness": (
        {**BASE, "strategy": "parameter_server", "strategy.wait": "async", "strategy.merge": "staleness"},
        WORKERS,
        False,
    ),
    "groups": ({**BASE, "strategy": "sync_groups", "strategy.num_groups": 2}, WORKERS, False),
    "all-reduce": ({**BASE, "strategy": "all_reduce"}, ("worker-*",), True),
    "replay": ({**BASE, "strategy": "distributed_replay"}, ("actor-*", "shard-*", "learner-*"), False),
    "federated": ({**BASE, "strategy": "federated", "strategy.local_steps": 2}, ("worker-*", "aggregator"), True),
    "serial": ({**COMMON, **REPLAY, "strategy": "serial"}, ALONE, True),
    "actor-learner": ({**TRAJECTORIES, "strategy": "actor_learner"}, ("actor-*", "learner-*"), False),
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
    changes = {**settings, "seed": seed}
    if name != "serial":
        changes["strategy.num_workers"] = num_workers
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
    if name == "actor-learner":
        changes |= {
            "strategy.trajectories_per_update": int(draw.integers(1, 4)),
            "strategy.max_policy_lag": int(draw.integers(0, 4)),
            "strategy.queue_size": int(draw.integers(3, 9)),
        }
    if name in ("all-reduce", "serial") and draw.random() < 0.5:
        changes["replay.sampler"] = "prioritized"
    if name == "federated" and draw.random() < 0.5:
        changes["strategy.round_timeout"] = 0.01
        is_ordered = False
    budget = int(draw.integers(1, 4)) if draw.random() < 0.1 and name != "serial" else None
    if budget is not None:
        changes["strategy.max_restarts"] = budget
    drains = tuple(sorted(int(one) for one in draw.integers(5, 300, size=int(draw.integers(0, 3)))))
    snapshots = tuple(sorted(int(one) for one in draw.integers(5, 300, size=int(draw.integers(0, 3)))))
    return Plan(name, changes, draw_cluster(draw, patterns), is_ordered, drains, snapshots, budget)


def pace_slack(plan: Plan) -> float:
    """By how many samples collecting and training may be apart when nothing is under way.

    Of each role that trains on its own: an update that is not due yet, the inserts of one call, and after a death what
    its replay must hold before it trains again.
    """
    changes = plan.changes
    if plan.name == "actor-learner":
        return 0.0  # every row is trained on once
    ratio, batch, envs = changes["replay.samples_per_insert"], changes["algo.batch_size"], changes["env.num_envs"]
    if plan.name == "replay":
        per_update, coming = batch * changes["strategy.num_learners"], changes["strategy.num_workers"] * envs * 4
        return float(ratio * insert_slack(ratio, per_update, coming) + per_update)
    num_roles = changes.get("strategy.num_workers", 1) + changes.get("strategy.backup_workers", 0)
    num_updates = changes.get("strategy.local_steps", 1)
    return float(num_roles * (num_updates * batch + ratio * (envs + batch)))


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
    if patterns == ALONE and draw.random() < 0.6:  # nobody brings it back: in most runs it had better not die
        cluster["fault"] = [fault for fault in cluster["fault"] if fault["kind"] in ("slow", "delay", "duplicate")]
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
        fault["notice"] = float(draw.choice([0.0, 0.01, 0.1]))
    return fault
