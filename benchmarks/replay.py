"""Replay throughput side by side: qfleet, cpprb, Tianshou and Stable-Baselines3 on small transitions, one thread.

    pip install qfleet cpprb==11.0.0 tianshou==2.0.1 stable-baselines3==2.9.2
    python benchmarks/replay.py --json replay.json

Every number is the median of interleaved repeats with the smallest and the largest beside it. Each system holds
CartPole-sized transitions (four floats an observation) and is full before it is timed. A peer that is not installed
is reported as such. Pin the process to one core (taskset -c 1) for a smaller spread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from qfleet.ops.importance import importance_weights
from qfleet.replay.n_step import NStepAdder
from qfleet.replay.prioritized import PrioritizedReplay
from qfleet.replay.uniform import UniformReplay
from qfleet.types import EnvSpec, EnvStep, Transitions

SPEC = EnvSpec("CartPole-v1", (4,), "float32", 2)
SEED = 0
ALPHA, BETA = 0.6, 0.4
BATCH_SIZE, SMALL_BATCH_SIZE = 512, 128
INSERT_SIZES = (1, 10, 1000)
MEASURE_SECONDS = 0.15  # per repeat and system
FILL_SIZE = 1000

SAMPLE_UPDATE = f"sample {BATCH_SIZE} + update priorities"
SAMPLE_UNIFORM = f"sample {BATCH_SIZE}, uniform"
SAMPLE_SMALL = f"sample {SMALL_BATCH_SIZE}, uniform"


@dataclass(frozen=True)
class Task:
    """One call to time: what it does, whose it is, and how many transitions it handles."""

    operation: str
    system: str
    call: Callable[[], object]
    num_transitions: int


@dataclass(frozen=True)
class Result:
    """Microseconds per call, repeat by repeat: equal places of two results were measured next to each other."""

    operation: str
    system: str
    num_transitions: int
    microseconds: list[float]

    def throughput(self) -> list[float]:
        """Transitions per second as median, smallest, largest."""
        rates = [self.num_transitions / value * 1e6 for value in self.microseconds]
        return [statistics.median(rates), min(rates), max(rates)]


def make_transitions(num: int) -> Transitions:
    generator = np.random.default_rng(SEED)
    return Transitions(
        obs=generator.random((num, 4), dtype=np.float32),
        action=generator.integers(0, 2, num),
        reward=np.ones(num, np.float32),
        discount=np.full(num, 0.99, np.float32),
        next_obs=generator.random((num, 4), dtype=np.float32),
    )


def make_priorities() -> Callable[[], np.ndarray]:
    """Fresh-looking priorities without the cost of drawing them inside the measurement."""
    table, calls = np.random.default_rng(SEED).random((256, BATCH_SIZE)), iter(range(sys.maxsize))
    return lambda: table[next(calls) % len(table)]


def insert_name(num: int) -> str:
    return "insert one by one" if num == 1 else f"insert {num} per call"


def qfleet_tasks(capacity: int) -> list[Task]:
    uniform = UniformReplay(capacity, SPEC, np.random.default_rng(SEED))
    prioritized = PrioritizedReplay(capacity, SPEC, np.random.default_rng(SEED), ALPHA)
    block, generator = make_transitions(FILL_SIZE), np.random.default_rng(SEED)
    for _ in range(-(-capacity // FILL_SIZE)):
        uniform.insert(block)
        prioritized.insert(block, generator.random(FILL_SIZE))
    tasks = []
    for num in INSERT_SIZES:
        batch = make_transitions(num)
        tasks.append(Task(insert_name(num), "qfleet uniform", lambda b=batch: uniform.insert(b), num))
        tasks.append(Task(insert_name(num), "qfleet prioritized", lambda b=batch: prioritized.insert(b), num))
    priorities = make_priorities()

    def sample_update() -> None:
        sample = prioritized.sample(BATCH_SIZE)
        importance_weights(sample.probabilities, sample.num_transitions, BETA)  # the peers have them in their sample
        prioritized.update_priorities(sample.keys, priorities())

    tasks.append(Task(SAMPLE_UPDATE, "qfleet prioritized", sample_update, BATCH_SIZE))
    tasks.append(Task(SAMPLE_UNIFORM, "qfleet uniform", lambda: uniform.sample(BATCH_SIZE), BATCH_SIZE))
    tasks.append(Task(SAMPLE_SMALL, "qfleet uniform", lambda: uniform.sample(SMALL_BATCH_SIZE), SMALL_BATCH_SIZE))
    return tasks


def cpprb_tasks(capacity: int) -> list[Task]:
    from cpprb import PrioritizedReplayBuffer

    columns = {"obs": {"shape": 4}, "act": {"dtype": np.int64}, "rew": {}, "next_obs": {"shape": 4}, "done": {}}
    buffer = PrioritizedReplayBuffer(capacity, columns, alpha=ALPHA)

    def fields(num: int) -> dict[str, Any]:
        block = make_transitions(num)
        return {
            "obs": block.obs,
            "act": block.action,
            "rew": block.reward,
            "next_obs": block.next_obs,
            "done": np.zeros(num, np.float32),
        }

    block, generator = fields(FILL_SIZE), np.random.default_rng(SEED)
    for _ in range(-(-capacity // FILL_SIZE)):
        buffer.add(**block, priorities=generator.random(FILL_SIZE))
    tasks = []
    for num in INSERT_SIZES:
        batch = fields(num)
        tasks.append(Task(insert_name(num), "cpprb", lambda b=batch: buffer.add(**b), num))
    priorities = make_priorities()

    def sample_update() -> None:
        buffer.update_priorities(buffer.sample(BATCH_SIZE, beta=BETA)["indexes"], priorities())

    tasks.append(Task(SAMPLE_UPDATE, "cpprb", sample_update, BATCH_SIZE))
    return tasks


def tianshou_tasks(capacity: int) -> list[Task]:
    from tianshou.data import Batch, PrioritizedReplayBuffer, PrioritizedVectorReplayBuffer, ReplayBuffer

    def fields(num: int) -> dict[str, np.ndarray]:
        block = make_transitions(num)
        never = np.zeros(num, np.bool_)
        return {
            "obs": block.obs,
            "act": block.action,
            "rew": block.reward.astype(np.float64),
            "terminated": never,
            "truncated": never,
            "done": never,
            "obs_next": block.next_obs,
        }

    buffer = PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta=BETA)
    buffer.update(ReplayBuffer.from_data(**fields(capacity)))  # adding a million one by one would take a minute
    generator = np.random.default_rng(SEED)
    for first in range(0, capacity, FILL_SIZE):
        num = min(FILL_SIZE, capacity - first)
        buffer.update_weight(np.arange(first, first + num), generator.random(num))
    one = Batch(**{name: column[0] for name, column in fields(1).items()})
    tasks = [Task(insert_name(1), "Tianshou", lambda: buffer.add(one), 1)]
    for num in INSERT_SIZES[1:]:  # its batches are one transition from each of `num` environments
        vector = PrioritizedVectorReplayBuffer(capacity, num, alpha=ALPHA, beta=BETA)
        batch = Batch(**fields(num))
        tasks.append(Task(insert_name(num), "Tianshou", lambda v=vector, b=batch: v.add(b), num))
    priorities = make_priorities()

    def sample_update() -> None:
        _, indices = buffer.sample(BATCH_SIZE)
        buffer.update_weight(indices, priorities())

    np.random.seed(SEED)  # noqa: NPY002 - its buffers draw from the global generator
    tasks.append(Task(SAMPLE_UPDATE, "Tianshou", sample_update, BATCH_SIZE))
    return tasks


def sb3_tasks(capacity: int) -> list[Task]:
    import torch
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer

    torch.set_num_threads(1)
    obs_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def make(num_envs: int) -> Any:
        buffer = ReplayBuffer(capacity, obs_space, spaces.Discrete(2), device="cpu", n_envs=num_envs)
        rows = buffer.buffer_size
        block = make_transitions(rows * num_envs)
        buffer.observations[:] = block.obs.reshape(rows, num_envs, 4)
        buffer.next_observations[:] = block.next_obs.reshape(rows, num_envs, 4)
        buffer.actions[:] = block.action.reshape(rows, num_envs, 1)
        buffer.rewards[:], buffer.dones[:], buffer.timeouts[:] = 1.0, 0.0, 0.0
        buffer.full = True
        return buffer

    np.random.seed(SEED)  # noqa: NPY002 - its buffers draw from the global generator
    tasks = []
    for num in INSERT_SIZES:
        buffer, block = make(num), make_transitions(num)
        infos: list[dict[str, Any]] = [{} for _ in range(num)]
        arguments = (block.obs, block.next_obs, block.action, block.reward, np.zeros(num, np.float32), infos)
        tasks.append(Task(insert_name(num), "SB3 uniform", lambda b=buffer, a=arguments: b.add(*a), num))
    single = make(1)
    tasks.append(Task(SAMPLE_UNIFORM, "SB3 uniform", lambda: single.sample(BATCH_SIZE), BATCH_SIZE))
    tasks.append(Task(SAMPLE_SMALL, "SB3 uniform", lambda: single.sample(SMALL_BATCH_SIZE), SMALL_BATCH_SIZE))
    return tasks


def n_step_tasks(num_envs: int = 16) -> list[Task]:
    block, never = make_transitions(num_envs), np.zeros(num_envs, np.bool_)
    empty = np.zeros(0, np.int64)
    one_ends = never.copy()
    one_ends[3] = True
    tasks = []
    for ended, text in ((never, "no episode ends"), (one_ends, "one episode ends")):
        step = EnvStep(block.next_obs, block.reward, ended, never, ~never, block.obs, None, np.zeros(0), empty, empty)
        for n_step in (1, 3):
            adder = NStepAdder(num_envs, SPEC, n_step, 0.99)
            name = f"n-step adder, {num_envs} environments, n={n_step}, {text}"
            call = lambda a=adder, s=step: a.add(block.obs, block.action, s)  # noqa: E731
            tasks.append(Task(name, "qfleet", call, num_envs))
    uniform = UniformReplay(100_000, SPEC, np.random.default_rng(SEED))
    tasks.append(Task(f"insert {num_envs} per call", "qfleet uniform", lambda: uniform.insert(block), num_envs))
    return tasks


PEERS: dict[str, tuple[str, Callable[[int], list[Task]]]] = {
    "cpprb": ("cpprb", cpprb_tasks),
    "Tianshou": ("tianshou", tianshou_tasks),
    "SB3 uniform": ("stable-baselines3", sb3_tasks),
}


def measure(tasks: list[Task], repeats: int) -> list[Result]:
    """Times every task `repeats` times, systems taking turns, so that a slow minute of the machine hits all alike."""
    tasks = sorted(tasks, key=lambda task: task.operation)
    num_calls = {}
    for task in tasks:
        task.call()  # compiles what compiles
        start = time.perf_counter()
        for _ in range(3):
            task.call()
        num_calls[id(task)] = max(3, int(MEASURE_SECONDS / ((time.perf_counter() - start) / 3)))
    times: dict[int, list[float]] = {id(task): [] for task in tasks}
    for _ in range(repeats):
        for task in tasks:
            calls, call = range(num_calls[id(task)]), task.call
            start = time.perf_counter()
            for _ in calls:
                call()
            times[id(task)].append((time.perf_counter() - start) / len(calls) * 1e6)
    return [Result(t.operation, t.system, t.num_transitions, times[id(t)]) for t in tasks]


def human(value: float) -> str:
    """1234567 as 1.23M, three digits."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def markdown(results: list[Result], missing: list[str], facts: dict[str, str]) -> str:
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| operation | system | transitions/s, median (min - max) | microseconds a call, median |"]
    lines += ["|---|---|---|---|"]
    for result in results:
        middle, low, high = (human(value) for value in result.throughput())
        call = statistics.median(result.microseconds)
        lines.append(f"| {result.operation} | {result.system} | {middle} ({low} - {high}) | {call:.3g} |")
    lines += [f"| all | {system} | not installed | not installed |" for system in missing]
    return "\n".join(lines)


def describe(capacity: int, repeats: int) -> dict[str, str]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.processor() or platform.machine(),
    )
    packages = []
    for name in ("qfleet", "numpy", "numba", "torch", *(package for package, _ in PEERS.values())):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            packages.append(f"{name} not installed")
    return {
        "command": shlex.join(["python", "benchmarks/replay.py", *sys.argv[1:]]),
        "hardware": f"{cpu}, {os.cpu_count()} cores",
        "threads": "1",
        "versions": f"Python {platform.python_version()}, " + ", ".join(packages),
        "setting": f"{capacity:,} transitions of 4 floats, batch {BATCH_SIZE}, seed {SEED}, alpha {ALPHA}, "
        f"{repeats} interleaved repeats",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay throughput beside cpprb, Tianshou and Stable-Baselines3.")
    parser.add_argument("--capacity", type=int, default=1_000_000, help="transitions held (a multiple of 1000)")
    parser.add_argument("--repeats", type=int, default=7, help="at least 5")
    parser.add_argument("--json", type=Path, help="also write all repeats to this file")
    arguments = parser.parse_args()
    tasks, missing = qfleet_tasks(arguments.capacity), []
    for system, (package, make_tasks) in PEERS.items():
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(system)
            continue
        tasks += make_tasks(arguments.capacity)
    tasks += n_step_tasks()
    results = measure(tasks, max(arguments.repeats, 5))
    facts = describe(arguments.capacity, max(arguments.repeats, 5))
    print(markdown(results, missing, facts))
    if arguments.json:
        rows = [{**asdict(result), "transitions_per_second": result.throughput()} for result in results]
        arguments.json.write_text(json.dumps({"facts": facts, "results": rows, "not_installed": missing}, indent=1))


if __name__ == "__main__":
    main()
