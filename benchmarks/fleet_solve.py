"""CartPole until solved, distributed: qfleet on ray with two workers beside RLlib's DQN with two env runners.

Both stop at their first greedy evaluation, over 100 complete episodes, that reaches the target; evaluation is outside
of both training clocks. Asked: five times faster than RLlib, by the training clock.

    python benchmarks/fleet_solve.py --seeds 5 --python ../rllib/bin/python --out fleet-solve.md
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from fleet_cartpole import STRATEGIES, one_command
from fleet_cartpole import training_seconds as own_seconds
from harness import (
    Json,
    Record,
    Run,
    Spread,
    System,
    markdown_page,
    markdown_table,
    ratio,
    record_beside,
    run_systems,
    write_page,
)

PEER_SCRIPT = Path(__file__).parent / "peers" / "rllib_dqn.py"
ASKED = 5.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="parameter_server async", choices=list(STRATEGIES))
    parser.add_argument("--target", type=float, default=475.0)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of qfleet; 0 leaves it out")
    parser.add_argument("--peer-seeds", type=int, help="seeds of RLlib (default: as many as of qfleet)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="workers of qfleet, and env runners of RLlib")
    parser.add_argument("--set", action="append", default=[], help="one more override for qfleet, name=value")
    parser.add_argument("--peer-threads", type=int, default=1, help="torch threads of RLlib's learner")
    parser.add_argument("--peer-max-seconds", type=float, default=300.0, help="RLlib's budget on its training clock")
    parser.add_argument("--peer-eval-every", type=int, default=1, help="RLlib's iterations (1,000 env steps) between")
    parser.add_argument(
        "--peer-training-intensities",
        type=float,
        nargs="+",
        default=[0.0, 6.4],
        help="RLlib's transitions trained on per one sampled; 0: its own choice, 6.4: as without env runners",
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter that has RLlib installed")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    return parser.parse_args()


def ours(args: argparse.Namespace) -> System:
    overrides = [f"stop.until_return={args.target}", *args.set]

    def command(seed: int) -> list[str]:
        return one_command(args.strategy, "ray", args.workers, seed, overrides)

    seeds = tuple(range(args.first_seed, args.first_seed + args.seeds))
    return System(f"qfleet {args.strategy}, ray, {args.workers} workers", command, 1, seeds)


def peer(args: argparse.Namespace, intensity: float) -> System:
    options = {
        "--threads": args.peer_threads,
        "--env-runners": args.workers,
        "--target": args.target,
        "--max-seconds": args.peer_max_seconds,
        "--eval-every": args.peer_eval_every,
    }
    if intensity:
        options["--training-intensity"] = intensity

    def command(seed: int) -> list[str]:
        words = [word for name, value in options.items() for word in (name, str(value))]
        return [args.python, str(PEER_SCRIPT), "--seed", str(seed), *words, "--json"]

    num_seeds = args.seeds if args.peer_seeds is None else args.peer_seeds
    seeds = tuple(range(args.first_seed, args.first_seed + num_seeds))
    named = f", training intensity {intensity:g}" if intensity else ""
    return System(f"RLlib DQN, {args.workers} env runners{named}", command, args.peer_threads, seeds)


def is_peer(run: Run) -> bool:
    return run.result.get("system") == "rllib_dqn"


def training_seconds(run: Run) -> float:
    """From the first call to processes that stand, to the evaluation that reached the target."""
    return run.number("seconds") if is_peer(run) else own_seconds(run)


def mean_return(run: Run) -> float:
    return run.number("mean" if is_peer(run) else "eval.mean_return")


def solved(run: Run, target: float) -> bool:
    return run.result.get("reached") is True and mean_return(run) >= target


def env_steps(run: Run) -> float:
    return run.number("env_steps" if is_peer(run) else "num_env_steps")


def updates(run: Run) -> float:
    return run.number("updates" if is_peer(run) else "num_updates")


def describe(run: Run) -> str:
    return (
        f"reached={run.result.get('reached')} mean={mean_return(run):.1f} env steps={env_steps(run):,.0f} "
        f"updates={updates(run):,.0f} training={training_seconds(run):.2f} s whole command={run.wall_seconds:.1f} s"
    )


def row(name: str, record: Record, target: float) -> list[str]:
    runs = record.of(name)
    wins = [run for run in runs if solved(run, target)]
    cells = []
    for measure, digits in ((env_steps, 0), (updates, 0), (training_seconds, 2)):
        spread = Spread.of(measure(run) for run in wins)
        cells.append(spread.text(digits) if spread else "-")
    whole = Spread.of(run.wall_seconds for run in wins)
    return [name, f"{len(wins)}/{len(runs)}", *cells, whole.text() if whole else "-"]


def completed(runs: list[Run]) -> list[Run]:
    return [run for run in runs if "failed" not in run.result]


def fastest(record: Record, peers: list[System]) -> System:
    """The variant of the peer with the least median of training seconds; an unsolved run counts with its budget."""

    def median(system: System) -> float:
        spread = Spread.of(map(training_seconds, completed(record.of(system.name))))
        return spread.median if spread else math.inf

    return min(peers, key=median)


def ratio_notes(own: list[Run], theirs: list[Run], name: str, target: float) -> list[str]:
    """Ratios of medians. An unsolved run of RLlib counts with its budget, so that the ratio is a lower bound."""
    own, theirs = completed(own), completed(theirs)
    notes = []
    bound = "" if all(solved(run, target) for run in theirs) else "at least "
    for what, measure in (("training", training_seconds), ("whole command", lambda run: run.wall_seconds)):
        mine, other = Spread.of(map(measure, own)), Spread.of(map(measure, theirs))
        if mine is not None and other is not None:
            asked = f" (asked: {ASKED:g})" if what == "training" else ""
            times = ratio(other.median, mine.median)
            notes.append(f"Ratio of the median seconds of {name} to qfleet's, {what}: {bound}{times}{asked}.")
    return notes


def peer_versions(theirs: list[Run]) -> list[str]:
    versions: list[Json] = [run.result["versions"] for run in theirs if "versions" in run.result]
    if not versions or not isinstance(versions[0], dict):
        return []
    return ["RLlib ran with " + ", ".join(f"{name} {number}" for name, number in versions[0].items()) + "."]


def main() -> None:
    args = parse_arguments()
    record = record_beside(args.out, "fleet-solve.jsonl")
    peers = [peer(args, intensity) for intensity in args.peer_training_intensities]
    systems = [ours(args), *peers]
    run_systems(systems, record, describe, args.timeout_s)
    best = fastest(record, peers)
    own, theirs = record.of(systems[0].name), record.of(best.name)
    headers = ["system", "solved", "env steps", "updates", "training seconds", "whole command, seconds"]
    table = markdown_table(headers, [row(system.name, record, args.target) for system in systems if system.seeds])
    notes = [
        "Minimum / median / maximum over the runs that reached the target; interleaved by seed, one system at a time.",
        f"Solved: the first greedy evaluation over 100 complete episodes with a mean of at least {args.target:g}; of "
        "qfleet, 100 held-out episodes must say so too.",
        "Training seconds: of qfleet from the first answer of a worker (another may still be starting), of RLlib from "
        "the first train(), when all its processes stand. Evaluation is outside; the whole command has all in it.",
        *ratio_notes(own, theirs, best.name, args.target),
        "RLlib: its tuned example's values, which are for no env runners; by its own choice it makes one update every "
        f"{5 * args.workers} env steps with {args.workers}; a training intensity (transitions trained on per one "
        "sampled) sets more. The ratio is to its faster variant, unsolved runs counted with their budget of "
        f"{args.peer_max_seconds:g} training seconds.",
        *peer_versions(theirs),
        f"Commands that failed: {sum('failed' in run.result for run in record.runs)}.",
    ]
    title = f"CartPole-v1, distributed: training time until a mean return of {args.target:g}"
    write_page(markdown_page(title, sys.executable, table, notes), args.out)
    missed = [run.seed for run in own if not solved(run, args.target)]
    if missed:
        sys.exit(f"qfleet did not reach {args.target:g} on seeds {missed}")


if __name__ == "__main__":
    main()
