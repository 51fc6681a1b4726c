"""One DQN update from images, sampling included: each way to compute it, beside the float32 reference.

    python benchmarks/image_update.py --threads 2 --repeats 12

Replay of stacked 84 x 84 frames in memory, the network of Mnih et al. (2015), a target network, Adam. Ways are
interleaved; samples/s counts sampling, gather, update and what the learner checks after it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from harness import hardware_line, versions_line
from qfleet.machine import set_up_torch
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.learner import Learner
from qfleet.run_config import build_config
from qfleet.types import EnvSpec, Transitions

SPEC = EnvSpec("frames", (4, 84, 84), "uint8", 6)
WAYS: dict[str, list[tuple[str, object]]] = {
    "float32": [("network.precision", "float32"), ("network.compile", "never")],
    "bfloat16": [("network.precision", "bfloat16"), ("network.compile", "never")],
    "float32, compiled": [("network.precision", "float32"), ("network.compile", "always")],
    "bfloat16, compiled": [("network.precision", "bfloat16"), ("network.compile", "always")],
    "auto": [],
}


class Contestant:
    """A learner with its replay, and the seconds of its updates."""

    def __init__(self, way: str, args: argparse.Namespace) -> None:
        options: list[tuple[str, object]] = [
            *(("algo.batch_size", args.batch_size), ("algo.double", args.double)),
            *(("replay.capacity", args.capacity), ("num_threads", args.threads)),
        ]
        config = build_config({}, [*options, *WAYS[way]])
        set_up_torch(config, SPEC)
        blueprint = Blueprint(config.env, None, SPEC, "dqn", config.algo, config.network, config.replay, 0, args.device)
        self.learner, self.replay = Learner(blueprint, "learner"), blueprint.build_replay("replay")
        self.batch_size, self.path = args.batch_size, self.learner.online.path.describe()
        self.sampling: list[float] = []
        self.learning: list[float] = []
        fill(self.replay.insert, args.capacity)

    def update(self, *, is_counted: bool) -> None:
        started = time.perf_counter()
        sample = self.replay.sample(self.batch_size)
        sampled = time.perf_counter()
        self.learner.learn(sample)
        if is_counted:
            self.sampling.append(sampled - started)
            self.learning.append(time.perf_counter() - sampled)


def fill(insert, num: int) -> None:
    generator, num_envs = np.random.default_rng(0), 32
    obs = generator.integers(0, 256, (num_envs, *SPEC.obs_shape), dtype=np.uint8)
    frame = obs[:, 0]
    for step in range(num // num_envs):
        frame = np.roll(frame, 1, axis=1) ^ np.uint8(step % 251)  # frames that differ, at no cost
        next_obs = np.concatenate([obs[:, 1:], frame[:, None]], axis=1)
        actions, ones = generator.integers(0, SPEC.num_actions, num_envs), np.ones(num_envs, np.float32)
        insert(Transitions(obs, actions, ones, 0.99 * ones, next_obs))
        obs = next_obs


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--double", action="store_true", help="double DQN: one more forward pass")
    parser.add_argument("--capacity", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=12)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    print(f"{hardware_line()}; {versions_line()}; {args.threads} threads, {args.device}")
    contestants = {way: Contestant(way, args) for way in args.ways}
    for index in range(args.repeats + 2):
        for contestant in contestants.values():
            contestant.update(is_counted=index >= 2)
    for way, contestant in contestants.items():
        whole = [a + b for a, b in zip(contestant.sampling, contestant.learning, strict=True)]
        median, best, worst = statistics.median(whole), min(whole), max(whole)
        print(
            f"{way:20} ({contestant.path}): {args.batch_size / median:,.0f} samples/s "
            f"({args.batch_size / worst:,.0f} to {args.batch_size / best:,.0f}); "
            f"sampling {statistics.median(contestant.sampling) * 1e3:.2f} ms, "
            f"update {statistics.median(contestant.learning) * 1e3:.1f} ms"
        )
    if args.device == "cuda":
        print(torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
