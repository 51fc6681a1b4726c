"""Long trainings that outlast a sitting: what is finished stands in a JSON Lines file and is not run again.

What was interrupted is resumed from its run directory's newest checkpoint. Used by minatar.py and pong.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import BenchmarkError, last_json_object, qfleet_command

KEPT = (
    "eval",
    "reached",
    "stop_reason",
    "num_env_steps",
    "num_frames",
    "num_updates",
    "num_episodes",
    "train_seconds",
    "total_seconds",
)
Entry = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """One run: its name, which is that of its folder too, what it is about, the arguments of `qfleet`, its limits.

    Attributes:
        about: what the record says beside the results, such as the seed.
        words: "train", the environment and so on, but for the output.
        limits: stop rules, which a resumed run is given again.
    """

    name: str
    about: dict[str, str | int]
    words: tuple[str, ...]
    limits: tuple[str, ...]


def run_waiting(
    trainings: Sequence[Training], args: argparse.Namespace, describe: Callable[[Entry], str]
) -> dict[str, Entry]:
    """Run those that the record does not hold, in their order, and tell each; all finished runs by name.

    What fails is told too, and the others go on.
    """
    record = read_record(args.record)

    def finish(training: Training) -> None:
        try:
            line = describe(run_recorded(training, args.runs, args.record, args.qfleet))
        except BenchmarkError as error:
            line = str(error)
        print(f"{training.name}: {line}", file=sys.stderr, flush=True)

    if not args.only_page:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(finish, [training for training in trainings if training.name not in record]))
    record = read_record(args.record)
    if not any(training.name in record for training in trainings):
        sys.exit(f"{args.record}: no run of these is finished")
    return record


def read_record(path: Path) -> dict[str, Entry]:
    """Finished runs by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {str(entry["name"]): entry for entry in map(json.loads, lines)}


def run_recorded(training: Training, runs: Path, record: Path, qfleet: str | None = None) -> Entry:
    """Train it, or go on with it, and add it to the record.

    Raises:
        BenchmarkError: it failed; its folder is left for another try.
    """
    run_dir = runs / training.name
    words: Sequence[str] = (*training.words, "--run-dir", str(run_dir))
    is_resumed = any((run_dir / "checkpoints").glob("*"))
    if is_resumed:
        words = ("train", "--resume", str(run_dir))
    command = [*qfleet_command(qfleet), *words, *training.limits, "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    summary = last_json_object(done.stdout)
    if summary is None or done.returncode:
        raise BenchmarkError(f"exit status {done.returncode}: {done.stderr[-2000:]}")
    kept = {key: summary[key] for key in KEPT}
    entry = {"name": training.name, **training.about, **kept, "is_resumed": is_resumed, "curve": curve_of(run_dir)}
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    return entry


def curve_of(run_dir: Path) -> list[list[float]]:
    """[env steps, training seconds, mean greedy return] of each validation."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [[r["num_env_steps"], r["train_seconds"], r["mean_return"]] for r in records if r["kind"] == "evaluation"]
