"""Frame replay on real Atari frames, in memory, on disk and compressed: memory a transition, insertion, gather.

    python benchmarks/frames.py --capacity 100000 --games Pong Breakout --json frames.json

A gather is of obs and next_obs of a batch: 512 stacks of four frames for 256 transitions. Frames are those of a random
policy through ale-py's vector environment with the field's preprocessing. One line for each place; medians with the
smallest and largest of the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from harness import hardware_line, versions_line
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch
from qfleet.replay.frames import FrameStorage
from qfleet.replay.n_step import NStepAdder
from qfleet.types import Transitions

BATCH_SIZE = 256
NUM_ENVS = 32
PLACES = ("memory", "disk", "lz4")


@dataclass(frozen=True)
class Result:
    """What one place did with one game's frames."""

    game: str
    place: str
    capacity: int
    num_live: int
    frames_per_transition: float
    memory_bytes_per_transition: float
    insert_microseconds: float
    gather_milliseconds: list[float]

    def line(self) -> str:
        gathers = self.gather_milliseconds
        return (
            f"{self.game:10} {self.place:7} {self.num_live:,} transitions, "
            f"{self.memory_bytes_per_transition:,.0f} bytes of memory, {self.frames_per_transition:.3f} frames each; "
            f"insert {self.insert_microseconds:.1f} us each; gather of {BATCH_SIZE}: "
            f"{gathers[0]:.2f} / {statistics.median(gathers):.2f} / {gathers[-1]:.2f} ms"
        )


def transitions(game: str, num: int, n_step: int) -> Iterator[Transitions]:
    """`num` transitions of a random policy, a vector step at a time."""
    envs = make_env_batch(EnvConfig(id=f"ALE/{game}-v5", num_envs=NUM_ENVS))
    generator, adder = np.random.default_rng(0), NStepAdder(NUM_ENVS, envs.spec, n_step, 0.99)
    envs.reset(0)
    done = 0
    while done < num:
        obs, actions = envs.obs, generator.integers(0, envs.spec.num_actions, NUM_ENVS)
        added = adder.add(obs, actions, envs.step(actions))
        done += len(added)
        if len(added):
            yield added
    envs.close()


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(game: str, place: str, args: argparse.Namespace, folder: Path) -> Result:
    spec = make_env_batch(EnvConfig(id=f"ALE/{game}-v5", num_envs=1)).spec
    directory = folder if place == "disk" else None
    storage = FrameStorage(args.capacity, spec, directory=directory, is_compressed=place == "lz4")
    generator, seconds = np.random.default_rng(1), 0.0
    for batch in transitions(game, args.transitions or args.capacity, args.n_step):
        seconds += timed(lambda batch=batch: storage.insert(batch))
    live = np.arange(storage.first_live_key, storage.num_inserted)
    gathers = []
    for _ in range(args.repeats):
        slots = storage.slots_of(generator.choice(live, BATCH_SIZE))
        gathers.append(timed(lambda slots=slots: storage.gather(slots)) * 1e3)
    return Result(
        *(game, place, args.capacity, len(storage), storage.num_frames / storage.num_inserted),
        storage.nbytes / (args.capacity if place != "lz4" else len(storage)),
        seconds / storage.num_inserted * 1e6,
        sorted(gathers[3:]),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=["Pong", "Breakout"])
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    parser.add_argument("--capacity", type=int, default=100_000)
    parser.add_argument("--transitions", type=int, help="inserted; default: as many as there is room for")
    parser.add_argument("--n-step", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--directory", type=Path, help="for the place disk; default: the system's temporary folder")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    print(f"{hardware_line()}; {versions_line()}")
    results = []
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        for game in args.games:
            for place in args.places:
                results.append(measure(game, place, args, Path(folder)))
                print(results[-1].line(), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    sys.exit(main())
