"""Stable-Baselines3 DQN with rl-zoo3's tuned hyperparameters: time to a score, or throughput while learning.

Needs `pip install stable-baselines3 "gymnasium[box2d]"`. Prints one JSON line. The training clock covers `learn()` only
and stands still during evaluation: imports and construction are in `setup_seconds`, everything is in `total_seconds`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3 import DQN

    Act = Callable[[NDArray[np.float32]], NDArray[np.int64]]

PROCESS_START = time.perf_counter()


@dataclass(frozen=True)
class ZooRecipe:
    """One entry of rl-zoo3's hyperparams/dqn.yml, exploration in env steps: it does not stretch with the budget."""

    num_env_steps: int
    learning_rate: float
    batch_size: int
    buffer_size: int
    learning_starts: int
    discount: float
    target_update_interval: int
    train_freq: int
    gradient_steps: int
    exploration_env_steps: int
    final_epsilon: float
    hidden: tuple[int, ...] = (256, 256)


ZOO = {
    "CartPole-v1": ZooRecipe(50_000, 2.3e-3, 64, 100_000, 1_000, 0.99, 10, 256, 128, 8_000, 0.04),
    "LunarLander-v3": ZooRecipe(100_000, 6.3e-4, 128, 50_000, 0, 0.99, 250, 4, -1, 12_000, 0.1),
}


def evaluate_vectorised(env_id: str, act: Act, num_episodes: int, seed: int) -> NDArray[np.float64]:
    """Return of exactly one complete episode in each of `num_episodes` environments, stepped as one batch in NumPy.

    One episode per environment and no more, so short episodes are not counted more often than long ones.
    """
    import gymnasium as gym

    envs = gym.make_vec(env_id, num_envs=num_episodes, vectorization_mode="vector_entry_point")
    observations, _ = envs.reset(seed=seed)
    returns = np.zeros(num_episodes)
    alive = np.ones(num_episodes, dtype=bool)
    while alive.any():
        observations, rewards, terminated, truncated, _ = envs.step(act(observations))
        returns += np.where(alive, rewards, 0.0)
        alive &= ~(terminated | truncated)
    envs.close()
    return returns


def evaluate_batched(env_id: str, act: Act, num_episodes: int, seed: int) -> NDArray[np.float64]:
    """The same for environments without a vector form: one inference call for all the unfinished, the others rest."""
    import gymnasium as gym

    envs = [gym.make(env_id) for _ in range(num_episodes)]
    seeds = np.random.SeedSequence(seed).generate_state(num_episodes)
    observations = np.stack([env.reset(seed=int(s))[0] for env, s in zip(envs, seeds, strict=True)])
    returns = np.zeros(num_episodes)
    alive = np.arange(num_episodes)
    while alive.size:
        finished = []
        for index, action in zip(alive, act(observations[alive]), strict=True):
            observations[index], reward, terminated, truncated, _ = envs[index].step(int(action))
            returns[index] += float(reward)
            if terminated or truncated:
                finished.append(index)
        alive = np.setdiff1d(alive, finished)
    for env in envs:
        env.close()
    return returns


def evaluate(env_id: str, act: Act, num_episodes: int, seed: int) -> NDArray[np.float64]:
    import gymnasium as gym

    has_vector_form = gym.spec(env_id).vector_entry_point is not None
    return (evaluate_vectorised if has_vector_form else evaluate_batched)(env_id, act, num_episodes, seed)


def greedy(model: DQN) -> Act:
    import torch

    def act(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        with torch.inference_mode():
            actions: NDArray[np.int64] = model.q_net(torch.as_tensor(observations)).argmax(dim=1).numpy()
        return actions

    return act


def build(env_id: str, recipe: ZooRecipe, seed: int, max_env_steps: int) -> DQN:
    from stable_baselines3 import DQN

    return DQN(
        "MlpPolicy",
        env_id,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        buffer_size=recipe.buffer_size,
        learning_starts=recipe.learning_starts,
        gamma=recipe.discount,
        target_update_interval=recipe.target_update_interval,
        train_freq=recipe.train_freq,
        gradient_steps=recipe.gradient_steps,
        exploration_fraction=min(1.0, recipe.exploration_env_steps / max_env_steps),
        exploration_final_eps=recipe.final_epsilon,
        policy_kwargs={"net_arch": list(recipe.hidden)},
        seed=seed,
        device="cpu",
        verbose=0,
    )


def solve(args: argparse.Namespace, recipe: ZooRecipe) -> dict[str, Any]:
    """Train until the first evaluation whose mean reaches the target by the margin asked for, or to the budget."""
    from stable_baselines3.common.callbacks import BaseCallback

    target = math.inf if args.target is None else args.target
    model = build(args.env, recipe, args.seed, args.max_env_steps)

    class PausingEvaluator(BaseCallback):
        """Evaluates greedily every `eval_every` environment steps with the training clock stopped."""

        def __init__(self) -> None:
            super().__init__()
            self.paused_seconds = 0.0
            self.evaluations: list[dict[str, float]] = []
            self.reached = False
            self.started = 0.0

        def _on_training_start(self) -> None:
            self.started = time.perf_counter()

        def _on_step(self) -> bool:
            if self.num_timesteps % args.eval_every == 0:
                self.measure()
            return not self.reached

        def measure(self) -> None:
            pause = time.perf_counter()
            eval_seed = 1_000_003 * (args.seed + 1) + self.num_timesteps
            returns = evaluate(args.env, greedy(model), args.eval_episodes, eval_seed)
            mean, std = float(returns.mean()), float(returns.std(ddof=1)) if returns.size > 1 else 0.0
            margin = args.margin_stderr * std / math.sqrt(returns.size)
            self.reached = mean - margin >= target
            self.evaluations.append(
                {
                    "env_steps": self.num_timesteps,
                    "updates": self.model._n_updates,
                    "seconds": pause - self.started - self.paused_seconds,
                    "mean": mean,
                    "std": std,
                }
            )
            self.paused_seconds += time.perf_counter() - pause

    callback = PausingEvaluator()
    setup_seconds = time.perf_counter() - PROCESS_START
    model.learn(args.max_env_steps, callback=callback, log_interval=1_000_000)
    if not callback.reached and (not callback.evaluations or callback.evaluations[-1]["updates"] != model._n_updates):
        callback.measure()
    last = callback.evaluations[-1]
    return {
        "seconds": last["seconds"],
        "setup_seconds": setup_seconds,
        "evaluation_seconds": callback.paused_seconds,
        "env_steps": int(last["env_steps"]),
        "updates": int(last["updates"]),
        "reached": callback.reached,
        "target": args.target,
        "margin_stderr": args.margin_stderr,
        "mean": last["mean"],
        "std": last["std"],
        "eval_episodes": args.eval_episodes,
        "evaluations": callback.evaluations,
    }


def throughput(args: argparse.Namespace, recipe: ZooRecipe) -> dict[str, Any]:
    """Rates over `throughput_steps` environment steps of learning, after learning starts and exploration is at its end.

    Both marks are taken just after an update phase, so whole rollout-and-train rounds are measured.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    warm_env_steps = recipe.learning_starts + max(2 * recipe.train_freq, args.warm_env_steps)

    class Marks(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.marks: list[tuple[float, int, int]] = []

        def _mark(self) -> None:
            self.marks.append((time.perf_counter(), self.num_timesteps, self.model._n_updates))

        def _on_rollout_start(self) -> None:
            if not self.marks and self.num_timesteps >= warm_env_steps:
                self._mark()

        def _on_training_end(self) -> None:
            self._mark()

        def _on_step(self) -> bool:
            return True

    recipe = ZooRecipe(**{**vars(recipe), "exploration_env_steps": min(recipe.exploration_env_steps, warm_env_steps)})
    total_env_steps = warm_env_steps + args.throughput_steps
    model = build(args.env, recipe, args.seed, total_env_steps)
    callback = Marks()
    setup_seconds = time.perf_counter() - PROCESS_START
    model.learn(total_env_steps, callback=callback, log_interval=1_000_000)
    (start, steps_before, updates_before), (end, steps_after, updates_after) = callback.marks
    seconds, env_steps, updates = end - start, steps_after - steps_before, updates_after - updates_before
    return {
        "seconds": seconds,
        "setup_seconds": setup_seconds,
        "env_steps": env_steps,
        "updates": updates,
        "env_steps_per_second": env_steps / seconds,
        "updates_per_second": updates / seconds,
        "updates_per_env_step": updates / env_steps,
        "epsilon": recipe.final_epsilon,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", choices=sorted(ZOO), help="environment with a tuned entry in rl-zoo3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of torch and OpenMP")
    parser.add_argument("--target", type=float, help="stop at the first evaluation whose mean reaches this")
    parser.add_argument("--margin-stderr", type=float, default=0.0, help="require mean - K * std / sqrt(n) >= target")
    parser.add_argument("--eval-every", type=int, default=1024, help="environment steps between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--max-env-steps", type=int, help="budget; default: the zoo's n_timesteps")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry: the output always is one JSON line")
    group = parser.add_argument_group("throughput")
    group.add_argument("--throughput-steps", type=int, help="measure rates over this many environment steps instead")
    group.add_argument("--warm-env-steps", type=int, default=1024, help="learning steps before the clock starts")
    group = parser.add_argument_group("overrides of the zoo's values")
    group.add_argument("--batch-size", type=int)
    group.add_argument("--hidden", help="hidden widths, e.g. 256,256")
    group.add_argument("--train-freq", type=int, help="environment steps between update phases")
    group.add_argument("--gradient-steps", type=int, help="updates in one phase (-1: one per environment step)")
    group.add_argument("--learning-starts", type=int)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    # Set before torch is imported: OpenMP reads its thread count once.
    os.environ.update({name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")})
    import torch

    torch.set_num_threads(args.threads)
    overrides: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("batch_size", "train_freq", "gradient_steps", "learning_starts")
        if getattr(args, name) is not None
    }
    if args.hidden:
        overrides["hidden"] = tuple(int(width) for width in args.hidden.split(","))
    recipe = ZooRecipe(**{**vars(ZOO[args.env]), **overrides})
    args.max_env_steps = args.max_env_steps or recipe.num_env_steps
    result = throughput(args, recipe) if args.throughput_steps else solve(args, recipe)
    packages = ("stable_baselines3", "gymnasium", "torch", "numpy")
    print(
        json.dumps(
            {
                "system": "sb3_dqn",
                "mode": "throughput" if args.throughput_steps else "solve",
                "env": args.env,
                "seed": args.seed,
                "threads": torch.get_num_threads(),
                **result,
                "total_seconds": time.perf_counter() - PROCESS_START,
                "hyperparameters": vars(recipe),
                "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            }
        )
    )


if __name__ == "__main__":
    main()
