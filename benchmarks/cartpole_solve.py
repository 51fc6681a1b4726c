"""Training time until an environment is solved: qfleet beside Stable-Baselines3 with its tuned hyperparameters.

Both stop at their first greedy evaluation, over 100 complete episodes, that reaches the target; evaluation is outside
of both training clocks. The peer runs its first seeds on each thread count asked for and goes on with the faster one.

    python benchmarks/cartpole_solve.py --seeds 20 --peer-seeds 5 --out cartpole.md
    python benchmarks/cartpole_solve.py --env LunarLander-v3 --target 200 --seeds 5 --peer-seeds 3 --out lunarlander.md
"""

from __future__ import annotations

import argparse
import math
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
    ratio,
    record_beside,
    run_systems,
    write_page,
)

OURS = "qfleet"
PEER_SCRIPT = Path(__file__).parent / "peers" / "sb3_dqn.py"
PEER_DEFAULTS = {"CartPole-v1": (475.0, 1024, 100_000), "LunarLander-v3": (200.0, 5_000, 200_000)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", choices=sorted(PEER_DEFAULTS))
    parser.add_argument("--target", type=float, help="mean return that counts as solved (default: 475, or 200)")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of qfleet; 0 leaves it out")
    parser.add_argument("--peer-seeds", type=int, default=5, help="seeds of the peer; 0 leaves it out")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--peer-threads", type=int, nargs="+", default=[1, 2], help="thread counts tried for the peer")
    parser.add_argument("--trial-seeds", type=int, default=2, help="peer seeds run on every thread count")
    parser.add_argument("--peer-eval-every", type=int, help="environment steps between the peer's evaluations")
    parser.add_argument("--peer-max-env-steps", type=int, help="the peer's budget (default: twice its tuned length)")
    parser.add_argument("--peer-margin-stderr", type=float, default=0.0, help="stricter: mean - K * stderr >= target")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS and the like for qfleet (default: as it chooses)")
    parser.add_argument("--qfleet", help="command in place of the installed qfleet, e.g. 'python -m qfleet'")
    parser.add_argument("--qfleet-args", default="", help="more arguments for `qfleet train`, one shell word list")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peer installed")
    parser.add_argument("--timeout-s", type=float, default=3600.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    return parser.parse_args()


def ours(args: argparse.Namespace, runs_folder: Path) -> System:
    def command(seed: int) -> list[str]:
        run_dir = str(runs_folder / f"seed-{seed}")
        fixed = ["train", args.env, "--seed", str(seed), "--json", "--quiet", "--run-dir", run_dir]
        return [*qfleet_command(args.qfleet), *fixed, *shlex.split(args.qfleet_args)]

    return System(OURS, command, args.threads, tuple(range(args.first_seed, args.first_seed + args.seeds)))


def peer(args: argparse.Namespace, threads: int, seeds: tuple[int, ...]) -> System:
    _, eval_every, max_env_steps = PEER_DEFAULTS[args.env]
    options = {
        "--threads": threads,
        "--target": args.target,
        "--margin-stderr": args.peer_margin_stderr,
        "--eval-every": args.peer_eval_every or eval_every,
        "--eval-episodes": 100,
        "--max-env-steps": args.peer_max_env_steps or max_env_steps,
    }

    def command(seed: int) -> list[str]:
        words = [word for name, value in options.items() for word in (name, str(value))]
        return [args.python, str(PEER_SCRIPT), args.env, "--seed", str(seed), *words, "--json"]

    return System(f"Stable-Baselines3 DQN (rl-zoo3), {threads} thread{'s' * (threads > 1)}", command, threads, seeds)


def training_seconds(run: Run) -> float:
    return run.number("train_seconds" if run.system == OURS else "seconds")


def env_steps(run: Run) -> float:
    return run.number("num_env_steps" if run.system == OURS else "env_steps")


def mean_return(run: Run) -> float:
    return run.number("eval.mean_return" if run.system == OURS else "mean")


def solved(run: Run, target: float) -> bool:
    return run.result.get("reached") is True and mean_return(run) >= target


def describe(run: Run) -> str:
    return (
        f"reached={run.result.get('reached')} mean={mean_return(run):.1f} env steps={env_steps(run):,.0f} "
        f"training={training_seconds(run):.2f} s whole command={run.wall_seconds:.1f} s"
    )


def median_seconds(record: Record, name: str, target: float) -> float:
    """Median training seconds, where an unsolved run counts as endless."""
    seconds = [training_seconds(run) if solved(run, target) else math.inf for run in record.of(name)]
    spread = Spread.of(seconds)
    return spread.median if spread else math.inf


def run_all(args: argparse.Namespace, record: Record, runs_folder: Path) -> str | None:
    """Run all in two parts, the trial of the peer's thread counts first; the name of the variant chosen."""
    seeds = tuple(range(args.first_seed, args.first_seed + args.peer_seeds))
    threads = args.peer_threads
    trial = seeds[: args.trial_seeds] if len(threads) > 1 else ()
    own = ours(args, runs_folder)
    trials = [peer(args, count, trial) for count in threads]
    opening = System(own.name, own.command, own.threads, own.seeds[: len(trial)])
    run_systems([opening, *trials], record, describe, args.timeout_s)
    fastest = min(zip(trials, threads, strict=True), key=lambda pair: median_seconds(record, pair[0].name, args.target))
    chosen = peer(args, fastest[1], seeds[len(trial) :])
    rest = System(own.name, own.command, own.threads, own.seeds[len(trial) :])
    run_systems([rest, chosen], record, describe, args.timeout_s)
    return chosen.name if seeds else None


def row(name: str, runs: list[Run], target: float) -> list[str]:
    wins = [run for run in runs if solved(run, target)]
    seconds = Spread.of(training_seconds(run) for run in wins)
    wall = Spread.of(run.wall_seconds for run in wins)
    steps = Spread.of(env_steps(run) for run in wins)
    return [
        name,
        f"{len(wins)}/{len(runs)}",
        steps.text(0) if steps else "-",
        seconds.text(2) if seconds else "-",
        wall.text(1) if wall else "-",
        ratio(seconds.maximum, seconds.median) if seconds else "-",
    ]


def main() -> None:
    args = parse_arguments()
    args.target = PEER_DEFAULTS[args.env][0] if args.target is None else args.target
    record = record_beside(args.out, f"solve-{args.env}.jsonl")
    with tempfile.TemporaryDirectory(prefix="qfleet-benchmark-") as runs_folder:
        chosen = run_all(args, record, Path(runs_folder))
    names = list(dict.fromkeys(run.system for run in record.runs))
    headers = ["system", "solved", "env steps", "training seconds", "whole command, seconds", "slowest / median"]
    table = markdown_table(headers, [row(name, record.of(name), args.target) for name in names])
    failed = [run for run in record.runs if "failed" in run.result]
    notes = [
        "Minimum / median / maximum over the runs that reached the target; interleaved by seed, one process at a time.",
        f"Solved: the first greedy evaluation over 100 complete episodes with a mean of at least {args.target:g}. "
        "Evaluation is outside of the training clock; the whole command has imports, set-up and evaluation in it.",
        f"Seeds from {args.first_seed}. Commands that failed: {len(failed)}.",
    ]
    if chosen is not None:
        every = args.peer_eval_every or PEER_DEFAULTS[args.env][1]
        margin = f", {args.peer_margin_stderr:g} standard errors above the target" if args.peer_margin_stderr else ""
        notes.append(f"Stable-Baselines3 evaluates every {every:,} environment steps{margin}.")
    if chosen is not None and args.seeds:
        own_median, peer_median = (median_seconds(record, name, args.target) for name in (OURS, chosen))
        if math.isfinite(own_median) and math.isfinite(peer_median):
            notes.append(f"Ratio of the median training times ({chosen} to {OURS}): {ratio(peer_median, own_median)}.")
    title = f"{args.env}: training time until a mean return of {args.target:g}"
    write_page(markdown_page(title, args.python, table, notes), args.out)
    missed = [run for run in record.of(OURS) if not solved(run, args.target)]
    if missed:
        sys.exit(f"{OURS} did not reach {args.target:g} on seeds {[run.seed for run in missed]}")


if __name__ == "__main__":
    main()
