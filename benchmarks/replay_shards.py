"""A replay cut into two shards, at Atari's size: transitions drawn, delivered and weighed again while others come in.

On the ray engine: an inserter sends packed rollouts of 84x84x4 stacks at a given rate, each shard stores frames once
and draws, an empty learner takes each batch, touches every byte of its observations and sends priorities back.
Asked: 10,000 sampled transitions per second while 2,000 are inserted.

    python benchmarks/replay_shards.py --repeats 3 --out replay-shards.md
    python benchmarks/replay_shards.py --one "packed, unpacked by the learner" --seed 0

Three ways: `packed` batches travel with each frame once, and the learner reads those; it unpacks them into obs and
next_obs first, and reads these; or they travel as stacks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness import Record, Run, Spread, System, markdown_page, markdown_table, record_beside, run_systems, write_page
from qfleet.algos.dqn import Config as AlgoConfig
from qfleet.config import ReplayConfig
from qfleet.engines.base import Engine, Future
from qfleet.envs.config import EnvConfig
from qfleet.networks.torso import NetworkConfig
from qfleet.replay.packing import PackedTransitions, unpack
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.replay_shard import Draw, Insertion, NewPriorities, ReplayShard
from qfleet.types import EnvSpec, Receipt, Reply, Transitions

NUM_STACK, HEIGHT, WIDTH = 4, 84, 84
FRAME_BYTES = HEIGHT * WIDTH
NUM_ACTIONS = 18
PACKED, UNPACKED, STACKS = "packed, read packed", "packed, unpacked by the learner", "as stacks"
WAYS = (PACKED, UNPACKED, STACKS)
ASKED_SAMPLED, ASKED_INSERTED = 10_000.0, 2_000.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--prefetch", type=int, default=4, help="batches being drawn, on their way or being read")
    parser.add_argument("--insert-rate", type=float, default=ASKED_INSERTED, help="transitions per second to insert")
    parser.add_argument("--rollout-size", type=int, default=100, help="transitions of one insertion")
    parser.add_argument("--capacity", type=int, default=100_000, help="transitions of all shards together")
    parser.add_argument("--fill", type=int, default=30_000, help="transitions inserted before the clock starts")
    parser.add_argument("--warm-seconds", type=float, default=3.0)
    parser.add_argument("--window-seconds", type=float, default=20.0)
    parser.add_argument("--timeout-s", type=float, default=300.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    group = parser.add_argument_group("one run, as JSON")
    group.add_argument("--one", choices=WAYS)
    group.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


# The roles


class Inserter:
    """An actor without environment or network: frames that scroll, packed as an actor's rollouts are.

    A rollout begins with the last frames of the one before, as an episode that goes on does, and no frame comes twice.
    """

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._landscape = self._generator.integers(0, 256, 4096 * WIDTH, np.uint8)
        self._num_frames = 0

    def _frame(self, number: int) -> np.ndarray:
        begin = number * WIDTH % (len(self._landscape) - FRAME_BYTES)
        frame = self._landscape[begin : begin + FRAME_BYTES].copy()
        frame[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        return frame

    def rollout(self, num: int) -> Reply:
        """`num` transitions of one step; the payload is an Insertion."""
        first, self._num_frames = self._num_frames, self._num_frames + num
        frames = np.stack([self._frame(number) for number in range(first, first + num + NUM_STACK)])
        index = np.arange(num, dtype=np.int32)[:, None] + np.arange(NUM_STACK, dtype=np.int32)
        packed = PackedTransitions(
            frames=frames.reshape(-1, HEIGHT, WIDTH),
            obs_index=index,
            next_index=index + np.int32(1),
            action=self._generator.integers(0, NUM_ACTIONS, num),
            reward=np.zeros(num, np.float32),
            discount=np.full(num, 0.99, np.float32),
        )
        insertion: Any = Insertion(packed, self._generator.random(num), 0)  # type: ignore[arg-type]
        return Reply(Receipt(num_bytes=packed.nbytes), insertion)


class MeasuredShard(ReplayShard):
    """A shard that counts the bytes of what it sends, and sends its batches packed if asked to.

    Args:
        sends_packed: gather each frame once. The rule that draws does not look inside rows, so that it does not notice.
    """

    def __init__(self, blueprint: Blueprint, name: str, index: int, sends_packed: bool) -> None:
        super().__init__(blueprint, name, index)
        self.sends_packed = sends_packed

    def sample(self, counts: list[int]) -> Reply:
        reply = super().sample(counts)
        assert isinstance(reply.payload, Draw)
        reply.receipt.num_bytes = sum(num_bytes(one.transitions) for one in reply.payload.samples if one is not None)
        reply.receipt.num_samples = sum(counts)
        return reply


class EmptyLearner:
    """Takes a batch from all shards, touches all its pixels, and makes priorities up."""

    def __init__(self, unpacks: bool, seed: int) -> None:
        self.unpacks = unpacks
        self._generator = np.random.default_rng(seed)

    def learn(self, *draws: Draw) -> Reply:
        """The payload is a list of NewPriorities; the receipt's "touched" are the bytes read."""
        touched, checksum, num_samples = 0, 0, 0
        started = time.perf_counter()
        changes = []
        for draw in draws:
            for sample in draw.samples:
                assert sample is not None
                for pixels in self._pixels(sample.transitions):
                    touched += pixels.nbytes
                    checksum ^= touch(pixels)
                num_samples += len(sample.keys)
                priorities = self._generator.random(len(sample.keys))
                changes.append(NewPriorities(draw.shard, draw.incarnation, sample.keys, priorities))
        metrics = {"touched": float(touched), "checksum": float(checksum % 1000)}
        seconds = {"learner": time.perf_counter() - started}
        return Reply(Receipt(num_samples=num_samples, seconds=seconds, metrics=metrics), changes)

    def _pixels(self, transitions: Transitions | PackedTransitions) -> list[np.ndarray]:
        if isinstance(transitions, PackedTransitions):
            if not self.unpacks:
                return [transitions.frames]
            transitions = unpack(transitions)
        return [transitions.obs, transitions.next_obs]


def touch(pixels: np.ndarray) -> int:
    """Reads every byte, eight at a time."""
    rows = np.ascontiguousarray(pixels).reshape(-1, FRAME_BYTES)
    return int(np.bitwise_xor.reduce(rows.view(np.uint64), axis=None))


def num_bytes(transitions: Transitions | PackedTransitions) -> int:
    if isinstance(transitions, PackedTransitions):
        return transitions.nbytes
    arrays = (transitions.obs, transitions.next_obs, transitions.action, transitions.reward, transitions.discount)
    return sum(array.nbytes for array in arrays)


# One run


@dataclass(eq=False)
class Batch:
    """One batch on its way: its draws, one a shard, as they come in."""

    draws: list[Future] = field(default_factory=list)


@dataclass
class Counts:
    sampled: int = 0
    inserted: int = 0
    bytes_drawn: int = 0
    bytes_inserted: int = 0
    bytes_touched: float = 0.0
    shard_seconds: float = 0.0
    learner_seconds: float = 0.0


class Coordinator:
    """Keeps `prefetch` batches under way, and inserts by count against the engine's clock."""

    def __init__(self, engine: Engine, args: argparse.Namespace) -> None:
        self.engine, self.args = engine, args
        blueprint = make_blueprint(args).share_replay(args.shards)
        packed, unpacks = args.one != STACKS, args.one == UNPACKED
        names = [f"shard-{index}" for index in range(args.shards)]
        self.shards = [
            engine.spawn(name, MeasuredShard, blueprint, name, index, packed) for index, name in enumerate(names)
        ]
        self.inserter = engine.spawn("inserter", Inserter, args.seed)
        self.learner = engine.spawn("learner", EmptyLearner, unpacks, args.seed)
        self.counts = Counts()
        self._batches: dict[Future, Batch] = {}
        self._num_under_way = 0
        self._num_asked = 0  # transitions that the inserter was asked for, since `_pace_from`
        self._pace_from = 0.0
        self._rate = float("inf")
        self._num_rollouts = 0
        self._turns = itertools.cycle(self.shards)

    def fill(self, num: int) -> None:
        """Insert `num` transitions as fast as it goes."""
        while self.counts.inserted < num:
            self._ask_rollouts(num)
            self._receive(None)
        self._pace_from, self._num_asked, self._rate = self.engine.now(), 0, self.args.insert_rate

    def run(self, seconds: float) -> tuple[Counts, float]:
        """What was done in a window of so many seconds, and how long it was."""
        before, began = Counts(**vars(self.counts)), self.engine.now()
        while (now := self.engine.now()) < began + seconds:
            self._ask_rollouts(int((now - self._pace_from) * self._rate))
            while self._num_under_way < self.args.prefetch:
                self._order()
            self._receive(0.01)
        elapsed = self.engine.now() - began
        return Counts(**{name: value - getattr(before, name) for name, value in vars(self.counts).items()}), elapsed

    def _ask_rollouts(self, target: int) -> None:
        size = self.args.rollout_size
        while self._num_asked + size <= target and self._num_rollouts < 2 * len(self.shards):
            self.engine.submit(self.inserter, "rollout", size)
            self._num_asked += size
            self._num_rollouts += 1

    def _order(self) -> None:
        """A batch of equal parts of all shards."""
        batch = Batch()
        self._num_under_way += 1
        for shard, num in zip(self.shards, split(self.args.batch_size, len(self.shards)), strict=True):
            self._batches[self.engine.submit(shard, "sample", [num])] = batch

    def _receive(self, timeout: float | None) -> None:
        future = self.engine.wait(timeout)
        if future is None:
            return
        receipt, counts = self.engine.result(future), self.counts
        if future.method == "rollout":
            counts.bytes_inserted += receipt.num_bytes
            self.engine.submit(next(self._turns), "insert", future)
        elif future.method == "insert":
            counts.inserted += receipt.num_inserted
            counts.shard_seconds += receipt.seconds["replay"]
            self._num_rollouts -= 1
        elif future.method == "sample":
            counts.bytes_drawn += receipt.num_bytes
            counts.shard_seconds += receipt.seconds["replay"]
            batch = self._batches.pop(future)
            batch.draws.append(future)
            if len(batch.draws) == len(self.shards):
                self.engine.submit(self.learner, "learn", *batch.draws)
        elif future.method == "learn":
            counts.sampled += receipt.num_samples
            counts.bytes_touched += receipt.metrics["touched"]
            counts.learner_seconds += receipt.seconds["learner"]
            self._num_under_way -= 1
            for shard in self.shards:
                self.engine.submit(shard, "update_priorities", future)
        else:
            counts.shard_seconds += receipt.seconds["replay"]


def split(num: int, num_parts: int) -> list[int]:
    return [num // num_parts + (index < num % num_parts) for index in range(num_parts)]


def make_blueprint(args: argparse.Namespace) -> Blueprint:
    return Blueprint(
        env=EnvConfig(id="none"),
        env_factory=None,
        spec=EnvSpec("none", (NUM_STACK, HEIGHT, WIDTH), "uint8", NUM_ACTIONS),
        algo_name="dqn",
        algo=AlgoConfig(batch_size=args.batch_size),
        network=NetworkConfig(),
        replay=ReplayConfig(capacity=args.capacity, sampler="prioritized", store_frames_once=True),
        seed=args.seed,
    )


def one(args: argparse.Namespace) -> dict[str, float]:
    from qfleet.engines.ray import Config as EngineConfig
    from qfleet.engines.ray import Engine as RayEngine

    engine = RayEngine(EngineConfig(), args.seed)
    try:
        coordinator = Coordinator(engine, args)
        coordinator.fill(args.fill)
        coordinator.run(args.warm_seconds)
        counts, elapsed = coordinator.run(args.window_seconds)
    finally:
        engine.close()
    return {
        "sampled_per_second": counts.sampled / elapsed,
        "inserted_per_second": counts.inserted / elapsed,
        "bytes_per_second": (counts.bytes_drawn + counts.bytes_inserted) / elapsed,
        "bytes_per_sample": counts.bytes_touched and counts.bytes_drawn / counts.sampled,
        "touched_per_second": counts.bytes_touched / elapsed,
        "shard_share": counts.shard_seconds / elapsed / args.shards,
        "learner_share": counts.learner_seconds / elapsed,
        "elapsed": elapsed,
    }


# All of them


def describe(run: Run) -> str:
    return (
        f"{run.number('sampled_per_second'):,.0f} sampled/s, {run.number('inserted_per_second'):,.0f} inserted/s, "
        f"{run.number('bytes_per_second') / 1e6:,.0f} MB/s through the store"
    )


def row(name: str, record: Record) -> list[str]:
    runs = [run for run in record.of(name) if "failed" not in run.result]
    cells = []
    for key, scale, digits in (
        ("sampled_per_second", 1.0, 0),
        ("inserted_per_second", 1.0, 0),
        ("bytes_per_second", 1e-6, 0),
        ("bytes_per_sample", 1e-3, 1),
        ("touched_per_second", 1e-6, 0),
    ):
        spread = Spread.of(run.number(key) * scale for run in runs)
        cells.append(
            spread.text(digits) if spread and key.endswith("second") else f"{spread.median:.1f}" if spread else "-"
        )
    busy = [Spread.of(run.number(key) for run in runs) for key in ("shard_share", "learner_share")]
    return [name, *cells, " / ".join(f"{spread.median:.0%}" if spread else "-" for spread in busy)]


def main() -> None:
    args = parse_arguments()
    if args.one is not None:
        print(json.dumps(one(args)))
        return
    record = record_beside(args.out, "replay-shards.jsonl")
    passed = ("shards", "batch_size", "prefetch", "insert_rate", "rollout_size", "capacity", "fill", "warm_seconds")
    words = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in (*passed, "window_seconds")]

    def system(way: str) -> System:
        def command(seed: int) -> list[str]:
            return [sys.executable, str(Path(__file__)), "--one", way, "--seed", str(seed), *words]

        return System(way, command, 1, tuple(range(args.repeats)))

    run_systems([system(way) for way in args.ways], record, describe, args.timeout_s)
    headers = [
        "batches travel",
        "sampled/s",
        "inserted/s",
        "MB/s through the store",
        "KB per sample",
        "MB/s read by the learner",
        "busy: a shard / the learner",
    ]
    notes = [
        f"Minimum / median / maximum over {args.repeats} repeats of {args.window_seconds:g} s, interleaved. Asked: "
        f"{ASKED_SAMPLED:,.0f} sampled/s with {ASKED_INSERTED:,.0f} inserted/s.",
        f"Prioritized, {args.shards} shards, batches of {args.batch_size} in equal parts of all shards, "
        f"{args.prefetch} under way; {args.fill:,} transitions inserted before the window, room for {args.capacity:,}. "
        "Sampled: delivered to the learner and read there; their new priorities go back to the shards.",
        "Through the store: arrays of batches and rollouts, priorities left out. What the learner reads has been "
        "unpacked in the second way.",
        f"Commands that failed: {sum('failed' in run.result for run in record.runs)}.",
    ]
    table = markdown_table(headers, [row(way, record) for way in args.ways])
    write_page(markdown_page("Replay in shards, Atari-sized", sys.executable, table, notes), args.out)
    if any("failed" in run.result for run in record.runs):
        sys.exit("some runs failed: see above")


if __name__ == "__main__":
    main()
