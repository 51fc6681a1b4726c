"""Ray RLlib's DQN (new API stack) on CartPole with the hyperparameters of its tuned example: time to a score.

Needs `pip install "ray[rllib]" torch`. Prints one JSON line. The training clock covers `Algorithm.train()` only and
stands still during evaluation: imports, Ray's start and `build_algo()` are in `setup_seconds`, everything is in
`total_seconds`. The values are those of rllib/examples/algorithms/dqn/cartpole_dqn.py; env runners are ours to choose.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import time
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sb3_dqn import evaluate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from ray.rllib.algorithms.dqn import DQN
    from sb3_dqn import Act

PROCESS_START = time.perf_counter()
ENV = "CartPole-v1"
TUNED: dict[str, Any] = {
    "lr": 5e-4,
    "train_batch_size_per_learner": 32,
    "replay_buffer_config": {
        "type": "PrioritizedEpisodeReplayBuffer",
        "capacity": 50_000,
        "alpha": 0.6,
        "beta": 0.4,
    },
    "n_step": (2, 5),
    "double_q": True,
    "dueling": True,
    "epsilon": [(0, 1.0), (10_000, 0.02)],
    "target_network_update_freq": 500,
    "num_steps_sampled_before_learning_starts": 1_000,
}
TUNED_MODEL: dict[str, Any] = {
    "fcnet_hiddens": [256],
    "fcnet_activation": "tanh",
    "fcnet_bias_initializer": "zeros_",
    "head_fcnet_bias_initializer": "zeros_",
    "head_fcnet_hiddens": [256],
}


def build(args: argparse.Namespace) -> DQN:
    """Start Ray on this machine and the algorithm on it, its env runners in processes of their own."""
    import ray
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    # A CPU for each env runner and one for the learner, however many the machine has: none must wait for its place.
    ray.init(num_cpus=args.env_runners + 1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    training = TUNED | ({} if args.training_intensity is None else {"training_intensity": args.training_intensity})
    config = (
        DQNConfig()
        .environment(env=ENV)
        .training(**training)
        .rl_module(model_config=DefaultModelConfig(**TUNED_MODEL))
        .env_runners(num_env_runners=args.env_runners)
        .reporting(min_sample_timesteps_per_iteration=args.iteration_env_steps)
        .debugging(seed=args.seed, log_level="ERROR")
    )
    algo: DQN = config.build_algo()
    return algo


def greedy(algo: DQN) -> Act:
    """The local copy of the module, which is equal to the learner's after each `train()`."""
    import torch

    module = algo.get_module()

    def act(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        with torch.inference_mode():
            actions: NDArray[np.int64] = module.forward_inference({"obs": torch.as_tensor(observations)})[
                "actions"
            ].numpy()
        return actions

    return act


def solve(algo: DQN, args: argparse.Namespace) -> dict[str, Any]:
    """Train until the first evaluation whose mean reaches the target by the margin asked for, or to the budget."""
    setup_seconds = time.perf_counter() - PROCESS_START
    seconds = paused_seconds = 0.0
    env_steps = updates = iteration = 0
    last_evaluated = -args.eval_every
    evaluations: list[dict[str, float]] = []
    training_returns: list[float] = []
    reached = False
    target = math.inf if args.target is None else args.target

    def measure() -> bool:
        nonlocal paused_seconds
        pause = time.perf_counter()
        returns = evaluate(ENV, greedy(algo), args.eval_episodes, 1_000_003 * (args.seed + 1) + env_steps)
        mean, std = float(returns.mean()), float(returns.std(ddof=1)) if returns.size > 1 else 0.0
        evaluations.append({"env_steps": env_steps, "updates": updates, "seconds": seconds, "mean": mean, "std": std})
        paused_seconds += time.perf_counter() - pause
        return mean - args.margin_stderr * std / math.sqrt(returns.size) >= target

    while not reached and seconds < args.max_seconds:
        started = time.perf_counter()
        result = algo.train()
        seconds += time.perf_counter() - started
        iteration += 1
        env_steps = int(result["num_env_steps_sampled_lifetime"])
        trained = result.get("learners", {}).get("default_policy", {}).get("num_module_steps_trained_lifetime", 0)
        updates = int(trained) // TUNED["train_batch_size_per_learner"]
        training_return = float(result["env_runners"].get("episode_return_mean", math.nan))
        training_returns.append(training_return)
        is_promising = training_return >= args.eval_from_return
        if is_promising and iteration - last_evaluated >= args.eval_every:
            last_evaluated = iteration
            reached = measure()
    if not evaluations or evaluations[-1]["env_steps"] != env_steps:
        reached = measure()
    last = evaluations[-1]
    return {
        "seconds": last["seconds"],
        "setup_seconds": setup_seconds,
        "evaluation_seconds": paused_seconds,
        "env_steps": int(last["env_steps"]),
        "updates": int(last["updates"]),
        "reached": reached,
        "target": args.target,
        "margin_stderr": args.margin_stderr,
        "mean": last["mean"],
        "std": last["std"],
        "eval_episodes": args.eval_episodes,
        "evaluations": evaluations,
        "training_returns": training_returns,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of torch and OpenMP in the learner")
    parser.add_argument("--env-runners", type=int, default=2, help="processes that step environments")
    parser.add_argument("--training-intensity", type=float, help="transitions trained on per one sampled")
    parser.add_argument("--target", type=float, help="stop at the first evaluation whose mean reaches this")
    parser.add_argument("--margin-stderr", type=float, default=0.0, help="require mean - K * std / sqrt(n) >= target")
    parser.add_argument("--iteration-env-steps", type=int, default=1_000, help="env steps of one train() at least")
    parser.add_argument("--eval-every", type=int, default=1, help="iterations between evaluations at least")
    parser.add_argument("--eval-from-return", type=float, default=150.0, help="mean training return that is worth one")
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--max-seconds", type=float, default=300.0, help="budget on the training clock")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry: the output always is one JSON line")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    # Set before torch is imported: OpenMP reads its thread count once.
    os.environ.update({name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
    warnings.filterwarnings("ignore")
    import ray
    import torch

    torch.set_num_threads(args.threads)
    algo = build(args)
    try:
        result = solve(algo, args)
    finally:
        algo.stop()
        ray.shutdown()
    packages = ("ray", "gymnasium", "torch", "numpy")
    print(
        json.dumps(
            {
                "system": "rllib_dqn",
                "mode": "solve",
                "env": ENV,
                "seed": args.seed,
                "threads": torch.get_num_threads(),
                "env_runners": args.env_runners,
                **result,
                "total_seconds": time.perf_counter() - PROCESS_START,
                "hyperparameters": {**TUNED, "training_intensity": args.training_intensity, "model": TUNED_MODEL},
                "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
