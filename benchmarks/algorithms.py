"""Every algorithm that learns from replay until CartPole is solved, by its recipe: whether, after how much, how fast.

    python benchmarks/algorithms.py --seeds 5 --out algorithms.md

Runs one after the other, interleaved by seed, each a `qfleet train` of its own. Asked: all seeds solved.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from harness import (
    Record,
    Run,
    Spread,
    System,
    markdown_page,
    markdown_table,
    qfleet_command,
    record_beside,
    run_systems,
    write_page,
)

# Name in the table: recipe, and what is set beside it.
ALGORITHMS: dict[str, tuple[str, str]] = {
    "dqn": ("cartpole", ""),
    "c51": ("c51", ""),
    "qr_dqn": ("qr_dqn", ""),
    "iqn": ("iqn", ""),
    "munchausen dqn": ("munchausen", ""),
    "munchausen iqn": ("iqn", "--set algo.munchausen=true --set algo.double=false --set algo.n_step=1"),
    "rainbow": ("rainbow", ""),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--target", type=float, default=475.0, help="mean return that counts as solved")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--qfleet", help="command in place of the installed qfleet")
    parser.add_argument("--qfleet-args", default="", help="more arguments for every `qfleet train`")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    return parser.parse_args()


def train_words(name: str, env: str) -> list[str]:
    """The arguments of `qfleet` that train this algorithm, without seed and output."""
    recipe, settings = ALGORITHMS[name]
    return ["train", env, "--recipe", recipe, *shlex.split(settings)]


def system(args: argparse.Namespace, name: str, runs_folder: Path) -> System:
    def command(seed: int) -> list[str]:
        run_dir = str(runs_folder / f"{name.replace(' ', '-')}-{seed}")
        words = [*train_words(name, args.env), "--seed", str(seed), "--json", "--quiet", "--run-dir", run_dir]
        target = ["--until-return", str(args.target)]
        return [*qfleet_command(args.qfleet), *words, *target, *shlex.split(args.qfleet_args)]

    return System(name, command, 1, tuple(range(args.first_seed, args.first_seed + args.seeds)))


def solved(run: Run, target: float) -> bool:
    """Stopped at the target, and held-out episodes agree."""
    return run.result.get("reached") is True and run.number("eval.mean_return") >= target


def describe(run: Run) -> str:
    return (
        f"reached={run.result.get('reached')} mean={run.number('eval.mean_return'):.1f} "
        f"env steps={run.number('num_env_steps'):,.0f} updates={run.number('num_updates'):,.0f} "
        f"training={run.number('train_seconds'):.2f} s whole command={run.wall_seconds:.1f} s"
    )


def row(name: str, env: str, record: Record, target: float) -> list[str]:
    runs = record.of(name)
    wins = [run for run in runs if solved(run, target)]
    cells = []
    for key, digits in (("eval.mean_return", 1), ("num_env_steps", 0), ("num_updates", 0), ("train_seconds", 2)):
        spread = Spread.of(run.number(key) for run in wins)
        cells.append(spread.text(digits) if spread else "-")
    return [name, f"`qfleet {shlex.join(train_words(name, env))}`", f"{len(wins)}/{len(runs)}", *cells]


def main() -> None:
    args = parse_arguments()
    record = record_beside(args.out, "algorithms.jsonl")
    with tempfile.TemporaryDirectory(prefix="qfleet-benchmark-") as folder:
        systems = [system(args, name, Path(folder)) for name in args.algorithms]
        run_systems(systems, record, describe, args.timeout_s)
    headers = ["algorithm", "command", "solved", "held-out return", "env steps", "updates", "training seconds"]
    table = markdown_table(headers, [row(name, args.env, record, args.target) for name in args.algorithms])
    notes = [
        "Minimum / median / maximum over the seeds solved; interleaved by seed, one run at a time, one thread.",
        f"Solved: a validation confirmed the target and 100 held-out greedy episodes have a mean of at least "
        f"{args.target:g}. Validation is outside of the training clock.",
        f"Seeds {args.first_seed} to {args.first_seed + args.seeds - 1}. Commands that failed: "
        f"{sum('failed' in run.result for run in record.runs)}.",
    ]
    write_page(markdown_page(f"{args.env} by every algorithm with a replay", sys.executable, table, notes), args.out)
    missed = [f"{run.system} seed {run.seed}" for run in record.runs if not solved(run, args.target)]
    if missed:
        sys.exit(f"not solved: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
