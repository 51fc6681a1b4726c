"""Pong until a greedy mean of 18 over 20 games, over several seeds: wall clock, frames and the curve.

    python benchmarks/pong.py --runs runs/pong --record runs/pong.jsonl --out pong.md --picture pong.png
    python benchmarks/pong.py --only-page --record runs/pong.jsonl --peer-python ../peers/bin/python

Each run is a `qfleet train` of its own, `--jobs` of them at once; what the record holds is not run again, and what was
interrupted is resumed. With `--peer-python`, Stable-Baselines3's DQN gets as many seconds as the median run took, and
its return at that time is shown. Asked: every seed within 35 minutes.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from harness import Json, Spread, markdown_page, markdown_table, run_command, write_page
from recorded import Entry, Training, run_waiting

PEER = Path(__file__).parent / "peers" / "sb3_pong.py"
MINUTES = 35


def training_of(args: argparse.Namespace, seed: int) -> Training:
    words = ("train", args.env, "--recipe", args.recipe, "--seed", str(seed), *shlex.split(args.qfleet_args))
    about: dict[str, str | int] = {"env": args.env, "recipe": args.recipe, "seed": seed}
    return Training(f"pong-{args.recipe}-{seed}", about, words, ("--until-return", str(args.target)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; the recipe takes one core")
    parser.add_argument("--runs", type=Path, default=Path("runs/pong"), help="folder of the run directories")
    parser.add_argument("--record", type=Path, required=True, help="JSON Lines file; finished runs are added")
    parser.add_argument("--only-page", action="store_true", help="train nothing")
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument("--picture", type=Path, help="PNG of the learning curves")
    parser.add_argument("--qfleet", help="command in place of the installed qfleet")
    parser.add_argument("--env", default="ALE/Pong-v5")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--target", type=float, default=18.0)
    parser.add_argument("--peer-python", help="interpreter of an environment with stable-baselines3 and ale-py")
    parser.add_argument("--qfleet-args", default="", help="more arguments for every `qfleet train`")
    return parser.parse_args()


def row(entry: Entry, target: float) -> list[str]:
    won = entry["reached"] and entry["eval"]["mean_return"] >= target
    return [
        str(entry["seed"]),
        "yes" if won else "no",
        f"{entry['eval']['mean_return']:.1f}",
        f"{entry['num_env_steps']:,}",
        f"{entry['num_frames']:,}",
        f"{entry['train_seconds'] / 60:.1f}",
        f"{entry['total_seconds'] / 60:.1f}" + (" (resumed)" if entry["is_resumed"] else ""),
    ]


def draw(entries: list[Entry], path: Path) -> None:
    """Greedy return against minutes of training, a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")
    for entry in entries:
        _, seconds, values = zip(*entry["curve"], strict=True)
        panel.plot([value / 60 for value in seconds], values, marker=".", label=f"seed {entry['seed']}")
    panel.set_xlabel("minutes of training")
    panel.set_ylabel("greedy return")
    panel.grid(alpha=0.3)
    panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def describe_peer(result: dict[str, Json]) -> str:
    return (
        f"Stable-Baselines3's DQN after {result['seconds']:,.0f} s: {result['num_env_steps']:,} env steps, greedy mean "
        f"of {result['num_games']} games {result['mean_return']:.1f} ({result['versions']})."
    )


def main() -> None:
    args = parse_arguments()
    trainings = [training_of(args, seed) for seed in range(args.first_seed, args.first_seed + args.seeds)]
    record = run_waiting(trainings, args, lambda entry: " | ".join(row(entry, args.target)))
    entries = [record[training.name] for training in trainings if training.name in record]
    headers = [
        "seed",
        "reached",
        "held-out mean of 20 games",
        "env steps",
        "frames",
        "training minutes",
        "whole run, minutes",
    ]
    notes = [
        f"Reached: a validation confirmed {args.target:g} on 20 games, and 20 held-out games have that mean.",
        "The training clock pauses for validation; the whole run has everything.",
    ]
    if args.peer_python:
        middle = Spread.of(float(entry["total_seconds"]) for entry in entries)
        assert middle is not None
        command = [args.peer_python, str(PEER), "--for-seconds", str(round(middle.median)), "--seed", "0"]
        notes.append(describe_peer(run_command(command, timeout_s=2 * middle.median + 600)))
    if args.picture is not None:
        draw(entries, args.picture)
    table = markdown_table(headers, [row(entry, args.target) for entry in entries])
    write_page(markdown_page(f"{args.env} to {args.target:g}", sys.executable, table, notes), args.out)


if __name__ == "__main__":
    main()
