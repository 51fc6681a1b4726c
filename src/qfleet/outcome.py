"""Outcome: what a run is in words before it starts, and in numbers once it is over (summary.json). Floor 6."""

from __future__ import annotations

import numpy as np

from qfleet.algos.base import RolloutConfig
from qfleet.bottleneck import bottleneck
from qfleet.policy import read_policy
from qfleet.roles.blueprint import disk_bytes, replay_bytes
from qfleet.run_config import RunConfig
from qfleet.session import Session
from qfleet.types import EnvSpec, ParamSnapshot


def summarize(session: Session, num_threads: int) -> dict[str, object]:
    """The summary of a run that is over, but for the seconds of all of it; plays the held-out episodes."""
    config = session.config
    counters, tracker, schedule = session.control.counters, session.tracker, session.schedule
    env_steps_per_second, updates_per_second = tracker.rates()
    interrupted = session.stop_reason == "interrupted"
    is_validated = schedule.best_return is not None
    best = read_policy(session.run_dir / "best")[2] if is_validated or not interrupted else None
    return {
        "run_dir": str(session.run_dir),
        "env": config.env.id,
        "algo": config.algo.name,
        "strategy": config.strategy.name,
        "engine": config.engine.name,
        "seed": config.seed,
        "stop_reason": session.stop_reason,
        "num_env_steps": counters.num_env_steps,
        "num_frames": counters.num_frames,
        "num_updates": counters.num_updates,
        "num_episodes": tracker.num_episodes,
        "train_seconds": tracker.train_seconds,
        "reached": schedule.env_steps_to_threshold is not None,
        "target_return": session.target_return,
        "env_steps_to_threshold": schedule.env_steps_to_threshold,
        "seconds_to_threshold": schedule.seconds_to_threshold,
        "seconds_until_known": schedule.seconds_until_known,
        "validation_return": schedule.best_return,
        "validation_by_name": {f"return_{name}": value for name, value in schedule.by_name.items()},
        "eval": None if interrupted or best is None else _held_out(session, best),
        "samples_per_insert_asked": config.pace.samples_per_insert,
        "samples_per_insert_measured": tracker.samples_per_insert,
        "env_steps_per_second": env_steps_per_second,
        "updates_per_second": updates_per_second,
        "num_roles": len(tracker.roles),
        "time_shares": tracker.time_shares(),
        "bottleneck": bottleneck(tracker.time_shares()),
        "lags": {name: histogram.summary() for name, histogram in tracker.lags.items()},
        "bytes_moved": tracker.bytes_moved,
        "bytes_pushed": tracker.num_bytes,
        # As whole float32 vectors.
        "bytes_uncompressed": tracker.num_pushes * (best.vector.nbytes + best.buffers.nbytes) if best else None,
        "tallies": dict(session.control.tallies),
        "num_threads": num_threads,
        "parameters_sha256": session.parameters_sha256(),
    }


def _held_out(session: Session, best: ParamSnapshot) -> dict[str, object]:
    """The best policy's score on episode seeds that no decision has looked at."""
    folders = {name: session.run_dir / "best" / name for name in session.validation.blueprints if name}
    personal = {name: read_policy(folder)[2] for name, folder in folders.items() if (folder / "policy.json").is_file()}
    num_episodes = session.config.evaluation.final_episodes
    by_name = session.validation.play(best, num_episodes, "held-out", personal=personal)
    score = return_statistics([value for returns in by_name.values() for value in returns])
    return score | {f"return_{name}": float(np.mean(returns)) for name, returns in by_name.items() if name}


def return_statistics(returns: list[float]) -> dict[str, object]:
    """Mean, maximum, minimum, standard deviation and count of episode returns."""
    return {
        "mean_return": float(np.mean(returns)),
        "max_return": float(np.max(returns)),
        "min_return": float(np.min(returns)),
        "std_return": float(np.std(returns)),
        "episodes": len(returns),
    }


def describe_roles(config: RunConfig) -> list[str]:
    """How many roles of each kind a strategy has, such as "4 workers"; nothing for one that has no such number."""
    kinds = {"num_workers": "worker", "num_servers": "server", "num_shards": "shard", "num_learners": "learner"}
    counts = [(getattr(config.strategy, field, None), kind) for field, kind in kinds.items()]
    return [f"{count} {kind}{'s' if count != 1 else ''}" for count, kind in counts if isinstance(count, int)]


def describe_memory(config: RunConfig, spec: EnvSpec) -> str:
    """What updates are made from, and how large that is over all roles."""
    num_parts = replay_parts(config)
    if isinstance(config.algo, RolloutConfig):
        where = f" in each of {num_parts} roles" if num_parts > 1 else ""
        return f"rollouts: {config.algo.rollout_steps} x {config.env.num_envs} steps{where}"
    over = f" over {num_parts} roles" if num_parts > 1 else ""
    per_part = -(-config.replay.capacity // num_parts)
    num_bytes = num_parts * replay_bytes(config.replay.model_copy(update={"capacity": per_part}), spec)
    on_disk = num_parts * disk_bytes(config.replay.model_copy(update={"capacity": per_part}), spec)
    where = f", {on_disk / 1e6:,.1f} MB on disk" if on_disk else ""
    expected = ", compressed" if config.replay.compression is not None else ""
    return f"replay: {num_parts * per_part:,} transitions{expected}, {num_bytes / 1e6:,.1f} MB{where}{over}"


def replay_parts(config: RunConfig) -> int:
    """Into how many roles' replays the capacity is dealt: the shards', else the workers'."""
    for field in ("num_shards", "num_workers"):
        count = getattr(config.strategy, field, None)
        if isinstance(count, int):
            return count
    return 1
