"""Env steps per second of an Atari game: ale-py's vector environment alone, and through an actor with its network.

    python benchmarks/atari_stepping.py
    python benchmarks/atari_stepping.py --num-threads 1 --env ALE/Breakout-v5

"raw" steps ale-py's own AtariVectorEnv with actions drawn beforehand. "actor" is a replay's actor: one inference of the
Nature CNN for all environments, epsilon-greedy actions at the final epsilon, stepping, 3-step transitions; nothing is
stored and nothing learned. "rollout" is PQN's actor, which also records. All three have the recipe's preprocessing, as
many environments and as many threads, and take turns, each for a number of vector steps at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import qfleet  # isort: skip  # before torch, which reads what it sets  # noqa: F401
import gymnasium as gym
import numpy as np
import torch

from harness import hardware_line
from qfleet.envs.atari import vector_arguments
from qfleet.envs.make import probe_spec
from qfleet.placement.processes import keep_large_blocks
from qfleet.policy import make_blueprint
from qfleet.recipe import find_recipe
from qfleet.roles.actor import Actor
from qfleet.roles.rollout_actor import RolloutActor
from qfleet.run_config import RunConfig, build_config
from qfleet.types import Progress, Receipt

LATE = Progress(num_env_steps=10**9)  # exploration has decayed


def configure(args: argparse.Namespace, recipe: str) -> RunConfig:
    """An Atari recipe with the benchmark's environments."""
    return build_config(
        find_recipe(recipe).values,
        [("env.id", args.env), ("env.num_envs", args.num_envs), ("seed", args.seed), ("device", args.device)],
    )


def raw_steps(config: RunConfig, num_steps: int) -> Callable[[], object]:
    """The vector environment without anything of ours."""
    arguments = vector_arguments(config.env.atari, None, config.env.num_envs)
    env = gym.make_vec(
        config.env.id,
        config.env.num_envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
        **arguments,
    )
    env.reset(seed=config.seed)
    generator = np.random.default_rng(config.seed)
    actions = generator.integers(0, env.single_action_space.n, (num_steps, config.env.num_envs))

    def run() -> None:
        for action in actions:
            env.step(action)

    return run


def actor_steps(config: RunConfig, num_steps: int) -> Callable[[], object]:
    """A replay's actor."""
    blueprint = make_blueprint(config, probe_spec(config.env, None), config.device)
    actor = Actor(blueprint, "actor-0", blueprint.build_network(trainable=False))

    def run() -> None:
        receipt = Receipt()
        for _ in range(num_steps):
            actor.step(LATE, receipt)

    return run


def rollout_steps(config: RunConfig, num_steps: int) -> Callable[[], object]:
    """A rollout algorithm's actor."""
    blueprint = make_blueprint(config, probe_spec(config.env, None), config.device)
    actor = RolloutActor(blueprint, "actor-0", blueprint.build_network(trainable=False))
    return lambda: actor.rollout(LATE, num_steps, 0, Receipt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="ALE/Pong-v5")
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--num-steps", type=int, default=64, help="vector steps of one turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    torch.set_flush_denormal(True)
    keep_large_blocks()  # as every process of a run does
    print(hardware_line())
    import ale_py

    print(f"ale-py {ale_py.__version__}, {args.env}, {args.num_envs} environments, {args.num_threads} threads")
    dqn, pqn = configure(args, "atari-dqn"), configure(args, "atari-pqn")
    contenders = {
        "raw": raw_steps(dqn, args.num_steps),
        "actor": actor_steps(dqn, args.num_steps),
        "rollout": rollout_steps(pqn, args.num_steps),
    }
    for run in contenders.values():  # a first turn, which is not counted
        run()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.turns):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            rates[name].append(args.num_steps * args.num_envs / (time.perf_counter() - started))
    print(f"{'':<8} {'env steps/s: min':>17} {'median':>8} {'max':>8}   of raw (median of the turns' ratios)")
    for name, values in rates.items():
        share = statistics.median(mine / raw for mine, raw in zip(values, rates["raw"], strict=True))
        print(f"{name:<8} {min(values):>17,.0f} {statistics.median(values):>8,.0f} {max(values):>8,.0f}   {share:.0%}")


if __name__ == "__main__":
    main()
