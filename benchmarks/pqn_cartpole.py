"""PQN on CartPole-v1 until 475: `qfleet train CartPole-v1 --recipe pqn` beside purejaxql, its authors' JAX code, and
beside qfleet's own DQN with the recipe cartpole.

PQN and its peer train for about 4,000 env steps (two rollouts) between greedy evaluations over 100 complete episodes,
which are outside of both training clocks, as JAX's compiling is. The peer is done at its first mean of 475. qfleet goes
on until 200 more episodes confirm one by six standard errors, as its recipe says, and counts as solved where 100
held-out episodes have a mean of 475 after that. The peer tries each number of cores on some seeds and goes on with the
faster.
Asked: at most 1.25 times the peer's training time, 0.4 times the same with set-up and compiling, 6 s a command.

    python benchmarks/pqn_cartpole.py --checkout ../purejaxql --python ../jax/bin/python --out pqn-cartpole.md
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
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
    versions_line,
    write_page,
)

OURS, OUR_DQN = "qfleet PQN", "qfleet DQN"
RECIPES = {OURS: "pqn", OUR_DQN: "cartpole"}
PEER_SCRIPT = Path(__file__).parent / "peers" / "purejaxql_cartpole.py"
TARGET = 475.0
PEER_EVAL_EVERY = 4_096  # two of its updates; the recipe pqn has 4,000
PEER_PACKAGES = ("jax", "flax", "optax", "gymnax", "gymnasium", "numpy")
NUM_RESAMPLES = 10_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="folder of a checkout of purejaxql")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has JAX and the peer's needs")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of each")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--peer-threads", type=int, nargs="+", default=[1, 2], help="numbers of cores tried")
    parser.add_argument("--trial-seeds", type=int, default=3, help="peer seeds run on every number of cores")
    parser.add_argument("--peer-margin-stderr", type=float, default=0.0, help="stricter: mean - K * stderr >= 475")
    parser.add_argument("--qfleet", help="command in place of the installed qfleet")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    return parser.parse_args()


def ours(args: argparse.Namespace, name: str, folder: Path, seeds: tuple[int, ...]) -> System:
    def command(seed: int) -> list[str]:
        run_dir = str(folder / f"{RECIPES[name]}-{seed}")
        words = ["train", "CartPole-v1", "--recipe", RECIPES[name], "--seed", str(seed), "--run-dir", run_dir]
        return [*qfleet_command(args.qfleet), *words, "--json", "--quiet"]

    return System(name, command, None, seeds)


def peer(args: argparse.Namespace, threads: int, seeds: tuple[int, ...]) -> System:
    options = {
        "--checkout": args.checkout,
        "--threads": threads,
        "--target": TARGET,
        "--margin-stderr": args.peer_margin_stderr,
        "--eval-every": PEER_EVAL_EVERY,
    }

    def command(seed: int) -> list[str]:
        words = [str(word) for pair in options.items() for word in pair]
        return [args.python, str(PEER_SCRIPT), "--seed", str(seed), *words, "--json"]

    return System(f"purejaxql PQN, JAX, {threads} core{'s' * (threads > 1)}", command, None, seeds)


def training_seconds(run: Run) -> float:
    return run.number("train_seconds" if run.system in RECIPES else "seconds")


def with_setup_seconds(run: Run) -> float:
    """Imports, building, compiling and training: the command without its evaluations, the peer's only."""
    return run.number("setup_seconds") + run.number("seconds")


def env_steps(run: Run) -> float:
    return run.number("num_env_steps" if run.system in RECIPES else "env_steps")


def mean_return(run: Run) -> float:
    return run.number("eval.mean_return" if run.system in RECIPES else "mean")


def solved(run: Run) -> bool:
    return run.result.get("reached") is True and mean_return(run) >= TARGET


def describe(run: Run) -> str:
    return (
        f"reached={run.result.get('reached')} mean={mean_return(run):.1f} env steps={env_steps(run):,.0f} "
        f"training={training_seconds(run):.2f} s whole command={run.wall_seconds:.1f} s"
    )


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """With a 95% interval: the ratio on `NUM_RESAMPLES` draws of both sides' seeds, with replacement."""
    generator = random.Random(0)

    def draw(values: Sequence[float]) -> float:
        return statistics.median(generator.choices(values, k=len(values)))

    drawn = sorted(draw(ours) / draw(theirs) for _ in range(NUM_RESAMPLES))
    low, high = drawn[NUM_RESAMPLES // 40], drawn[-NUM_RESAMPLES // 40]
    return f"{statistics.median(ours) / statistics.median(theirs):.2f} ({low:.2f} to {high:.2f})"


def row(name: str, runs: list[Run]) -> list[str]:
    wins = [run for run in runs if solved(run)]

    def spread(values: Sequence[float], digits: int) -> str:
        found = Spread.of(values)
        return found.text(digits) if found else "-"

    return [
        name,
        f"{len(wins)}/{len(runs)}",
        spread([env_steps(run) for run in wins], 0),
        spread([training_seconds(run) for run in wins], 2),
        spread([with_setup_seconds(run) for run in wins], 2),
        spread([run.wall_seconds for run in wins], 1),
    ]


def page(record: Record, peer_name: str, python: str) -> str:
    """The table of all runs, and the ratios to the peer in its faster variant; `python` is the peer's interpreter."""
    names = list(dict.fromkeys(run.system for run in record.runs))
    headers = [
        "system",
        "solved",
        "env steps",
        "training seconds",
        "with set-up and compiling, without evaluation",
        "whole command, seconds",
    ]
    table = markdown_table(headers, [row(name, record.of(name)) for name in names])
    own_runs, peer_runs = ([run for run in record.of(name) if solved(run)] for name in (OURS, peer_name))
    notes = ["Minimum / median / maximum over the runs that solved it; interleaved by seed, one process at a time."]
    if own_runs and peer_runs:
        mine = [training_seconds(run) for run in own_runs]
        without = ratio_of_medians(mine, [training_seconds(run) for run in peer_runs])
        whole = ratio_of_medians(mine, [with_setup_seconds(run) for run in peer_runs])
        commands = ratio_of_medians([run.wall_seconds for run in own_runs], [run.wall_seconds for run in peer_runs])
        notes += [
            f"Median training time, qfleet to {peer_name} without compiling: {without}; asked: at most 1.25.",
            f"The same to the peer with set-up and compiling: {whole}; asked: below 0.4.",
            f"Whole commands, evaluation included: {commands}; asked of qfleet: less than 6 s.",
            "In brackets 95% of the ratios when the seeds are drawn again with replacement.",
            f"The peer's versions: {versions_line(python, PEER_PACKAGES)}.",
        ]
    return markdown_page("PQN on CartPole-v1 until 475", sys.executable, table, notes)


def main() -> None:
    args = parse_arguments()
    record = record_beside(args.out, "pqn-cartpole.jsonl")
    seeds = tuple(range(args.first_seed, args.first_seed + args.seeds))
    trial = seeds[: args.trial_seeds] if len(args.peer_threads) > 1 else ()
    rest = seeds[len(trial) :]
    with tempfile.TemporaryDirectory(prefix="qfleet-benchmark-") as name:
        folder = Path(name)
        trials = {threads: peer(args, threads, trial) for threads in args.peer_threads}
        opening = [ours(args, recipe, folder, trial) for recipe in RECIPES]
        run_systems([*opening, *trials.values()], record, describe, args.timeout_s)
        seconds = {threads: [training_seconds(run) for run in record.of(one.name)] for threads, one in trials.items()}
        fastest = min(trials, key=lambda threads: statistics.median(seconds[threads] or [0.0]))
        chosen = peer(args, fastest, rest)
        systems = [*(ours(args, recipe, folder, rest) for recipe in RECIPES), chosen]
        run_systems(systems, record, describe, args.timeout_s)
    write_page(page(record, chosen.name, args.python), args.out)
    missed = [run.seed for run in record.of(OURS) if not solved(run)]
    if missed:
        sys.exit(f"{OURS} did not reach {TARGET:g} on seeds {missed}")


if __name__ == "__main__":
    main()
