"""Every strategy on every engine until CartPole is solved: whether, after how much, how fast, how stale.

    python benchmarks/fleet_cartpole.py --seeds 5 --out fleet-cartpole.md
    python benchmarks/fleet_cartpole.py --one "parameter_server async" --engine ray --workers 2 --seed 0

Runs one after the other, interleaved by seed, each in a process of its own (`--one`). Asked: all seeds solved.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from harness import Record, Run, Spread, System, markdown_page, markdown_table, record_beside, run_systems, write_page

PROCESS_START = time.perf_counter()
STRATEGIES: dict[str, dict[str, object]] = {
    "parameter_server sync": {"strategy": "parameter_server", "strategy.wait": "sync"},
    "parameter_server async": {"strategy": "parameter_server", "strategy.wait": "async"},
    "parameter_server ssp": {"strategy": "parameter_server", "strategy.wait": "ssp", "strategy.bound": 1},
    "all_reduce": {"strategy": "all_reduce"},
    "sync_groups": {"strategy": "sync_groups", "strategy.num_groups": 2},
    "distributed_replay": {
        "strategy": "distributed_replay",
        "replay.sampler": "prioritized",
        "algo.exploration": "per_env",
    },
    "federated": {"strategy": "federated", "strategy.local_steps": 10},
}
# Recipes of their own, of algorithms that learn from rollouts; each names its strategy.
RECIPES = {"a3c": "a3c", "a2c": "a2c", "impala": "impala"}
SYSTEMS = [*STRATEGIES, *RECIPES]
WORKERS = {"inline": 4, "ray": 2}
TARGET = 475.0
# Which lag stands for staleness where a strategy pushes no gradients.
LAGS = ("staleness", "policy_lag")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--engines", nargs="+", default=list(WORKERS), help="engines, each with its number of workers")
    parser.add_argument("--set", action="append", default=[], help="one more override for every run, name=value")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    group = parser.add_argument_group("one run, as JSON")
    group.add_argument("--one", choices=SYSTEMS)
    group.add_argument("--engine", default="inline")
    group.add_argument("--workers", type=int, default=2)
    group.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def one(args: argparse.Namespace) -> dict[str, object]:
    """The run's summary, and what only its events tell: the mean of every lag, and when the first call was answered."""
    from qfleet.experiment import Experiment, Finished
    from qfleet.run_config import parse_override
    from qfleet.strategies.base import Rollout, Update

    overrides = STRATEGIES.get(args.one, {}) | {
        "engine": args.engine,
        "strategy.num_workers": args.workers,
        "num_threads": 1,
    }
    overrides |= dict(parse_override(text) for text in args.set)
    lags: dict[str, tuple[int, int]] = {}
    first_answer_seconds = None
    summary: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="qfleet-benchmark-") as folder:
        experiment = Experiment.from_recipe(
            "CartPole-v1",
            recipe=RECIPES.get(args.one),
            seed=args.seed,
            run_dir=Path(folder) / "run",
            overrides=overrides,
        )
        for event in experiment.stream():
            if isinstance(event, Rollout | Update):
                if first_answer_seconds is None and experiment.session is not None:
                    first_answer_seconds = experiment.session.tracker.train_seconds
                for name, values in event.receipt.lags.items():
                    total, count = lags.get(name, (0, 0))
                    lags[name] = total + sum(values), count + len(values)
            elif isinstance(event, Finished):
                summary = event.summary
    means = {name: total / count for name, (total, count) in lags.items() if count}
    return {
        **summary,
        "workers": args.workers,
        "first_answer_seconds": first_answer_seconds,
        "mean_lags": means,
        "process_seconds": time.perf_counter() - PROCESS_START,
    }


def one_command(strategy: str, engine: str, workers: int, seed: int, overrides: list[str]) -> list[str]:
    """The command of `one`, for this benchmark and for others that need a distributed run."""
    command = [sys.executable, str(Path(__file__)), "--one", strategy, "--engine", engine, "--workers", str(workers)]
    return [*command, "--seed", str(seed), *(word for text in overrides for word in ("--set", text))]


def solved(run: Run, target: float = TARGET) -> bool:
    """Stopped at the target, and held-out episodes agree."""
    return run.result.get("reached") is True and run.number("eval.mean_return") >= target


def training_seconds(run: Run) -> float:
    """From the first answer of a worker to the validation that reached the target, validation left out."""
    reached = run.number("seconds_to_threshold")
    return (reached if reached == reached else run.number("train_seconds")) - run.number("first_answer_seconds")


def lag(run: Run) -> tuple[str, float] | None:
    for name in LAGS:
        value = run.number(f"mean_lags.{name}")
        if value == value:
            return name, value
    return None


def describe(run: Run) -> str:
    found = lag(run)
    stale = f" {found[0]}={found[1]:.2f}" if found else ""
    return (
        f"reached={run.result.get('reached')} mean={run.number('eval.mean_return'):.1f} "
        f"env steps={run.number('num_env_steps'):,.0f} updates={run.number('num_updates'):,.0f} "
        f"training={training_seconds(run):.2f} s whole command={run.wall_seconds:.1f} s{stale}"
    )


def row(system: System, record: Record) -> list[str]:
    strategy, engine = system.name.split(" x ")
    runs = record.of(system.name)
    wins = [run for run in runs if solved(run)]
    cells = []
    for key in ("num_env_steps", "num_updates"):
        spread = Spread.of(run.number(key) for run in wins)
        cells.append(spread.text(0) if spread else "-")
    seconds = Spread.of(map(training_seconds, wins))
    cells.append(seconds.text(2) if seconds else "-")
    found = [pair for pair in map(lag, wins) if pair is not None]
    median_lag = Spread.of(value for _, value in found)
    stale = "-"
    if median_lag is not None:
        stale = f"{median_lag.median:.2f}" + ("" if found[0][0] == LAGS[0] else f" ({found[0][0]})")
    return [strategy, engine, f"{len(wins)}/{len(runs)}", *cells, stale]


def main() -> None:
    args = parse_arguments()
    if args.one is not None:
        print(json.dumps(one(args)))
        return
    record = record_beside(args.out, "fleet-cartpole.jsonl")
    seeds = tuple(range(args.first_seed, args.first_seed + args.seeds))
    systems = []
    for strategy in args.strategies:
        for engine in args.engines:
            workers = WORKERS.get(engine, 2)

            def command(seed: int, strategy: str = strategy, engine: str = engine, workers: int = workers) -> list[str]:
                return one_command(strategy, engine, workers, seed, args.set)

            systems.append(System(f"{strategy} x {engine}, {workers} workers", command, 1, seeds))
    run_systems(systems, record, describe, args.timeout_s)
    headers = ["strategy", "engine", "solved", "env steps", "updates", "training seconds", "staleness"]
    table = markdown_table(headers, [row(system, record) for system in systems])
    failed = sum("failed" in run.result for run in record.runs)
    notes = [
        f"Minimum / median / maximum over the seeds solved, of seeds {seeds[0]} to {seeds[-1]}; interleaved by seed, "
        "one run at a time, one torch thread in each process.",
        f"Solved: a validation confirmed the target and 100 held-out episodes have a mean of at least {TARGET:g}. The "
        "training clock starts at the first answer of a worker and pauses for validation.",
        "Staleness: mean, in versions, of the pushes merged; median over seeds. Of strategies without pushes: by how "
        "many versions the policy lagged that collected (policy_lag).",
        f"Commands that failed: {failed}.",
    ]
    write_page(markdown_page("CartPole-v1 by every strategy and engine", sys.executable, table, notes), args.out)
    missed = [f"{run.system} seed {run.seed}" for run in record.runs if not solved(run)]
    if missed:
        sys.exit(f"not solved: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
