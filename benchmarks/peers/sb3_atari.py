"""Throughput of Stable-Baselines3's DQN on an Atari game while it learns, with rl-zoo3's hyperparameters for Atari.

Needs `pip install stable-baselines3 ale-py opencv-python-headless`. Prints one JSON line. Rates are taken after
learning has started and exploration is at its end, over whole rollout-and-train rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecFrameStack

HYPERPARAMETERS = {
    "learning_rate": 1e-4,
    "batch_size": 32,
    "buffer_size": 100_000,
    "target_update_interval": 1_000,
    "train_freq": 4,
    "gradient_steps": 1,
    "exploration_final_eps": 0.01,
    "optimize_memory_usage": False,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="PongNoFrameskip-v4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of torch and OpenMP")
    parser.add_argument("--env-steps", type=int, default=3_000, help="measured")
    parser.add_argument("--warm-env-steps", type=int, default=1_500, help="before, 1,000 of them without learning")
    return parser.parse_args()


def set_up(threads: int) -> None:
    """Register the games and set the threads; before torch is imported, for OpenMP reads its thread count once."""
    os.environ.update({name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
    import ale_py
    import gymnasium
    import torch

    gymnasium.register_envs(ale_py)
    torch.set_num_threads(threads)


def make_env(env_id: str, seed: int) -> VecFrameStack:
    """One copy, preprocessed, in stacks of four."""
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    return VecFrameStack(make_atari_env(env_id, n_envs=1, seed=seed), n_stack=4)


def main() -> None:
    args = parse_arguments()
    set_up(args.threads)
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback

    class Marks(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.marks: list[tuple[float, int, int]] = []

        def _on_rollout_start(self) -> None:
            if not self.marks and self.num_timesteps >= args.warm_env_steps:
                self.mark()

        def _on_training_end(self) -> None:
            self.mark()

        def _on_step(self) -> bool:
            return True

        def mark(self) -> None:
            self.marks.append((time.perf_counter(), self.num_timesteps, self.model._n_updates))

    total = args.warm_env_steps + args.env_steps
    model = DQN(
        "CnnPolicy",
        make_env(args.env, args.seed),
        learning_starts=1_000,
        exploration_fraction=1_000 / total,
        seed=args.seed,
        device="cpu",
        **HYPERPARAMETERS,
    )
    callback = Marks()
    model.learn(total, callback=callback, log_interval=1_000_000)
    (start, steps_before, updates_before), (end, steps_after, updates_after) = callback.marks
    seconds, env_steps, updates = end - start, steps_after - steps_before, updates_after - updates_before
    packages = ("stable_baselines3", "gymnasium", "ale_py", "torch", "numpy")
    print(
        json.dumps(
            {
                "system": "sb3_atari",
                "env": args.env,
                "seed": args.seed,
                "threads": args.threads,
                "env_steps": env_steps,
                "env_steps_per_second": env_steps / seconds,
                "updates_per_second": updates / seconds,
                "samples_per_env_step": updates * HYPERPARAMETERS["batch_size"] / env_steps,
                "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            }
        )
    )


if __name__ == "__main__":
    main()
