"""Throughput while learning CartPole: qfleet beside CleanRL and Stable-Baselines3, at each peer's own recipe.

In each pair the networks, the batch and the updates per environment step are the same; rates are taken after learning
has started and exploration is at its end. Repeats are interleaved, and a peer counts with its fastest thread count.

    python benchmarks/throughput.py --cleanrl ../cleanrl/cleanrl/dqn.py --repeats 5 --out throughput.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from dataclasses import dataclass
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

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pair:
    """One recipe: what it fixes for both sides, our file for it, the peer's command without seed and threads."""

    title: str
    peer: str
    recipe: Path
    env_steps: int
    updates_per_env_step: float
    peer_command: list[str]

    @property
    def own_name(self) -> str:
        return f"qfleet, {self.recipe.stem}"

    def peer_name(self, threads: int) -> str:
        return f"{self.peer}, {threads} thread{'s' * (threads > 1)}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanrl", type=Path, help="path to CleanRL's cleanrl/dqn.py (else that pair is left out)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS and the like for qfleet (default: as it chooses)")
    parser.add_argument("--cleanrl-env-steps", type=int, default=60_000, help="both sides of the CleanRL pair")
    parser.add_argument("--sb3-env-steps", type=int, default=20_000, help="both sides of the Stable-Baselines3 pair")
    parser.add_argument("--cleanrl-args", default="", help="more arguments for peers/cleanrl_dqn.py")
    parser.add_argument("--only", choices=["ours", "peers"], help="run one side alone")
    parser.add_argument("--qfleet", help="command in place of the installed qfleet, e.g. 'python -m qfleet'")
    parser.add_argument("--qfleet-args", default="", help="more arguments for `qfleet train`, one shell word list")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers installed")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    return parser.parse_args()


def pairs(args: argparse.Namespace) -> list[Pair]:
    sb3 = Pair(
        "256-256, batch 64, 1 update per 2 env steps",
        "Stable-Baselines3 DQN",
        HERE / "recipes" / "sb3_zoo_ratio_cartpole.toml",
        args.sb3_env_steps,
        1 / 2,
        [args.python, str(HERE / "peers" / "sb3_dqn.py"), "CartPole-v1", "--throughput-steps", str(args.sb3_env_steps)],
    )
    if args.cleanrl is None:
        return [sb3]
    wrapper = [args.python, str(HERE / "peers" / "cleanrl_dqn.py"), "--cleanrl", str(args.cleanrl)]
    cleanrl = Pair(
        "120-84, batch 128, 1 update per 10 env steps",
        "CleanRL dqn.py",
        HERE / "recipes" / "cleanrl_cartpole.toml",
        args.cleanrl_env_steps,
        1 / 10,
        [*wrapper, "--total-env-steps", str(args.cleanrl_env_steps), *shlex.split(args.cleanrl_args)],
    )
    return [cleanrl, sb3]


def systems(pair: Pair, args: argparse.Namespace, runs_folder: Path) -> list[System]:
    seeds = tuple(range(args.repeats))

    def own_command(seed: int) -> list[str]:
        run_dir = str(runs_folder / f"{pair.recipe.stem}-{seed}")
        budget = ["--max-env-steps", str(pair.env_steps), "--seed", str(seed)]
        fixed = [*budget, "--json", "--quiet", "--run-dir", run_dir]
        recipe = ["train", "CartPole-v1", "--recipe", str(pair.recipe)]
        return [*qfleet_command(args.qfleet), *recipe, *fixed, *shlex.split(args.qfleet_args)]

    def peer_system(threads: int) -> System:
        def command(seed: int) -> list[str]:
            return [*pair.peer_command, "--seed", str(seed), "--threads", str(threads)]

        return System(pair.peer_name(threads), command, threads, seeds)

    own = [System(pair.own_name, own_command, args.threads, seeds)] if args.only != "peers" else []
    return own + ([peer_system(threads) for threads in args.peer_threads] if args.only != "ours" else [])


def updates_per_env_step(run: Run) -> float:
    """As measured: the ratio of the two rates, which are taken over the same window."""
    return run.number("updates_per_second") / run.number("env_steps_per_second")


def describe(run: Run) -> str:
    rates = f"{run.number('env_steps_per_second'):,.0f} env steps/s, {run.number('updates_per_second'):,.0f} updates/s"
    stopped = "" if run.result.get("completed", True) else f" (stopped early: {run.result.get('stderr')})"
    return f"{rates}, {updates_per_env_step(run):.3f} updates per env step{stopped}"


def median_rate(record: Record, name: str) -> float:
    spread = Spread.of(run.number("updates_per_second") for run in record.of(name))
    return spread.median if spread else float("nan")


def rows(pair: Pair, record: Record, peer_threads: list[int]) -> list[list[str]]:
    own = median_rate(record, pair.own_name)
    peers = [median_rate(record, pair.peer_name(threads)) for threads in peer_threads]
    best_peer = max((rate for rate in peers if rate == rate), default=float("nan"))
    table = []
    for name in [pair.own_name, *(pair.peer_name(threads) for threads in peer_threads)]:
        runs = [run for run in record.of(name) if "failed" not in run.result]
        keys = ("env_steps_per_second", "updates_per_second")
        measured = [Spread.of(run.number(key) for run in runs) for key in keys]
        replay = Spread.of(updates_per_env_step(run) for run in runs)
        if replay is None:
            continue
        compared = ratio(own, best_peer) if name == pair.own_name and best_peer == best_peer else ""
        cells = [spread.text(0) if spread else "-" for spread in measured]
        table.append([pair.title, name, str(len(runs)), *cells, f"{replay.median:.3f}", compared])
    return table


def peer_notes(record: Record) -> list[str]:
    """What each peer ran on, in its own words, and the runs that it did not finish."""
    versions: dict[str, None] = {}
    early = []
    for run in record.runs:
        found = run.result.get("versions")
        if isinstance(found, dict) and "system" in run.result:
            listed = ", ".join(f"{name} {number}" for name, number in found.items())
            versions[f"{run.result['system']}: {listed}."] = None
        if run.result.get("completed") is False:
            env_steps = run.number("env_steps")
            early.append(f"{run.system}, seed {run.seed} stopped early: its rates cover {env_steps:,.0f} env steps.")
    return [*versions, *early]


def main() -> None:
    args = parse_arguments()
    record = record_beside(args.out, "throughput.jsonl")
    contests = pairs(args)
    with tempfile.TemporaryDirectory(prefix="qfleet-benchmark-") as runs_folder:
        for pair in contests:
            run_systems(systems(pair, args, Path(runs_folder)), record, describe, args.timeout_s)
    headers = ["recipe", "system", "runs", "env steps/s", "updates/s", "updates per env step", "ratio to the peer"]
    table = markdown_table(headers, [line for pair in contests for line in rows(pair, record, args.peer_threads)])
    notes = [
        "Minimum / median / maximum; repeats interleaved, one process at a time. The ratio is of the medians of "
        "updates/s, to the peer on its faster thread count.",
        "Rates over the part of the run after learning starts, with exploration at its end, without the warm-up.",
    ]
    notes += peer_notes(record)
    notes += [
        f"NOT COMPARABLE: {run.system}, seed {run.seed} made {updates_per_env_step(run):.3f} updates per env step, "
        f"where the recipe says {pair.updates_per_env_step:.3f}."
        for pair in contests
        for run in record.of(pair.own_name)
        if abs(updates_per_env_step(run) / pair.updates_per_env_step - 1) > 0.02
    ]
    write_page(markdown_page("Throughput while learning CartPole-v1", args.python, table, notes), args.out)
    if any("failed" in run.result for run in record.runs):
        sys.exit("some runs failed: see above")


if __name__ == "__main__":
    main()
