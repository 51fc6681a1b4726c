"""The return of Stable-Baselines3's DQN on an Atari game after so many seconds, with rl-zoo3's hyperparameters.

Needs `pip install stable-baselines3 ale-py opencv-python-headless`. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version

from sb3_atari import HYPERPARAMETERS, make_env, set_up

TOTAL_ENV_STEPS = 10_000_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="PongNoFrameskip-v4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="intra-op threads of torch and OpenMP")
    parser.add_argument("--for-seconds", type=float, required=True, help="of training")
    parser.add_argument("--games", type=int, default=20, help="greedy ones played after it")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    set_up(args.threads)
    from stable_baselines3 import DQN
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy

    class Until(BaseCallback):
        ends: float

        def _on_training_start(self) -> None:
            self.ends = time.perf_counter() + args.for_seconds

        def _on_step(self) -> bool:
            return time.perf_counter() < self.ends

    model = DQN(
        "CnnPolicy",
        make_env(args.env, args.seed),
        learning_starts=100_000,
        exploration_fraction=0.1,
        seed=args.seed,
        device="cpu",
        **HYPERPARAMETERS,
    )
    began = time.perf_counter()
    model.learn(TOTAL_ENV_STEPS, callback=Until(), log_interval=1_000_000)
    seconds = time.perf_counter() - began
    mean_return, std_return = evaluate_policy(model, make_env(args.env, 10_000 + args.seed), n_eval_episodes=args.games)
    packages = ("stable_baselines3", "gymnasium", "ale_py", "torch")
    print(
        json.dumps(
            {
                "system": "sb3_pong",
                "seed": args.seed,
                "seconds": seconds,
                "num_env_steps": model.num_timesteps,
                "num_updates": model._n_updates,
                "mean_return": mean_return,
                "std_return": std_return,
                "num_games": args.games,
                "versions": ", ".join(f"{name} {version(name)}" for name in packages),
            }
        )
    )


if __name__ == "__main__":
    main()
