"""Env steps per second of CartPole through a rollout actor in one process, with and without updates.

    python benchmarks/rollouts.py --repeats 5

128 environments, two layers of 128 with LayerNorm, rollouts of 64 vector steps. "rollout" is acting, stepping and
recording; "prepared" adds the targets; "with updates" adds one epoch of 16 minibatches. The first line's peer is what
the environments alone take, stepped by random actions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from harness import hardware_line
from qfleet.envs.make import probe_spec
from qfleet.policy import make_blueprint
from qfleet.roles.experience import RolloutExperience
from qfleet.roles.worker import Worker
from qfleet.run_config import build_config
from qfleet.types import Progress, Receipt

NUM_ENVS, NUM_STEPS, NUM_MINIBATCHES = 128, 64, 16


def build_worker(algo: str, seed: int) -> Worker:
    """A serial worker of `algo` on CartPole."""
    config = build_config(
        {},
        [
            ("seed", seed),
            ("env.id", "CartPole-v1"),
            ("env.num_envs", NUM_ENVS),
            ("algo", algo),
            ("algo.rollout_steps", NUM_STEPS),
            ("algo.num_epochs", 1),
            ("algo.num_minibatches", NUM_MINIBATCHES),
            ("network.hidden", [128, 128]),
            ("network.layer_norm", True),
        ],
    )
    return Worker(make_blueprint(config, probe_spec(config.env, None)), "worker-0")


def rate(action: Callable[[], object], num_rollouts: int) -> float:
    """Env steps (rows of rollouts) per second of `action`, which makes one rollout's worth."""
    action()
    started = time.perf_counter()
    for _ in range(num_rollouts):
        action()
    return num_rollouts * NUM_STEPS * NUM_ENVS / (time.perf_counter() - started)


def step_alone(worker: Worker) -> Callable[[], None]:
    """The environments without a policy."""
    envs, generator = worker.actor.envs, np.random.default_rng(0)

    def play() -> None:
        for _ in range(NUM_STEPS):
            envs.step(generator.integers(2, size=NUM_ENVS))

    return play


def actions_of(algo: str, worker: Worker) -> dict[str, Callable[[], object]]:
    """What is measured, by name; each makes one rollout."""
    experience, progress = worker.experience, Progress(10**9)
    assert isinstance(experience, RolloutExperience)

    def with_updates() -> None:
        worker.collect(progress, NUM_STEPS)
        worker.train(NUM_MINIBATCHES)

    return {
        "environments alone": step_alone(worker),
        f"{algo} rollout": lambda: experience.actor.rollout(progress, NUM_STEPS, 0, Receipt()),
        f"{algo} prepared": lambda: worker.collect(progress, NUM_STEPS),
        f"{algo} with updates": with_updates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(hardware_line())
    print(f"CartPole-v1 x {NUM_ENVS}, network 2 x 128, {NUM_STEPS} vector steps, 1 thread, env steps/s")
    rates: dict[str, list[float]] = {}
    for repeat in range(arguments.repeats):
        for algo in ("pqn", "a2c"):
            worker = build_worker(algo, repeat)
            for name, action in actions_of(algo, worker).items():
                rates.setdefault(name, []).append(rate(action, arguments.rollouts))
            worker.close()
    for name, found in rates.items():
        print(f"{name:20} median {statistics.median(found):>10,.0f} ({min(found):,.0f} to {max(found):,.0f})")


if __name__ == "__main__":
    main()
