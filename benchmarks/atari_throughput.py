"""Env steps/s on Atari while learning: qfleet beside Stable-Baselines3's DQN and CleanRL's dqn_atari.py.

All three train the network of Mnih et al. (2015) by one-step DQN on 8 samples per env step: 32 each 4 steps there, 256
each step of 32 environments here. Rates are taken after learning has started and exploration is at its end. Repeats are
interleaved; `--own 'name: --set engine=threads'` measures variants of ours.

    python benchmarks/atari_throughput.py --cleanrl ../cleanrl/cleanrl/dqn_atari.py --repeats 3 --out atari.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from harness import (
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

HERE = Path(__file__).parent
SB3, CLEANRL = "Stable-Baselines3 DQN", "CleanRL dqn_atari.py"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanrl", type=Path, help="path to cleanrl/dqn_atari.py in a checkout (else it is left out)")
    parser.add_argument(
        "--cleanrl-args", default="", help="more arguments for peers/cleanrl_dqn.py, such as --pythonpath"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads of each system")
    parser.add_argument("--updates", type=int, default=200, help="measured, of ours; 32 env steps each")
    parser.add_argument("--peer-env-steps", type=int, default=2_000, help="measured, of the peers")
    parser.add_argument(
        "--own", nargs="*", default=["qfleet"], help="name, or 'name: more arguments' of marginal_rate.py"
    )
    parser.add_argument("--only", choices=["ours", "peers"], help="run one side alone")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the peers installed")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    return parser.parse_args()


def own_systems(args: argparse.Namespace) -> list[System]:
    seeds = tuple(range(args.repeats))
    systems = []
    for variant in args.own:
        name, _, more = variant.partition(":")

        def command(seed: int, more: str = more) -> list[str]:
            script = [sys.executable, str(HERE / "marginal_rate.py"), "ALE/Pong-v5"]
            recipe = [
                "--recipe",
                str(HERE / "recipes" / "pong_throughput.toml"),
                "--set",
                f"num_threads={args.threads}",
            ]
            return [*script, *recipe, "--seed", str(seed), "--updates", str(args.updates), *shlex.split(more)]

        systems.append(System(name, command, args.threads, seeds))
    return systems


def peer_systems(args: argparse.Namespace) -> list[System]:
    seeds = tuple(range(args.repeats))

    def sb3(seed: int) -> list[str]:
        script = [args.python, str(HERE / "peers" / "sb3_atari.py")]
        return [*script, "--seed", str(seed), "--threads", str(args.threads), "--env-steps", str(args.peer_env_steps)]

    def cleanrl(seed: int) -> list[str]:
        script = [args.python, str(HERE / "peers" / "cleanrl_dqn.py"), "--cleanrl", str(args.cleanrl)]
        task = [
            "--env",
            "PongNoFrameskip-v4",
            "--batch-size",
            "32",
            "--train-frequency",
            "4",
            "--buffer-size",
            "100000",
        ]
        window = ["--learning-starts", "1000", "--warm-env-steps", "500"]
        total = ["--total-env-steps", str(1_500 + args.peer_env_steps)]
        rest = ["--seed", str(seed), "--threads", str(args.threads), *shlex.split(args.cleanrl_args)]
        return [*script, *task, *window, *total, *rest]

    systems = [System(SB3, sb3, args.threads, seeds)]
    return systems + ([] if args.cleanrl is None else [System(CLEANRL, cleanrl, args.threads, seeds)])


def describe(run: Run) -> str:
    return f"{run.number('env_steps_per_second'):,.0f} env steps/s, {run.number('updates_per_second'):,.1f} updates/s"


def rows(names: list[str], record: Record) -> list[list[str]]:
    spreads = {}
    for name in names:
        runs = [run for run in record.of(name) if "failed" not in run.result]
        spread = Spread.of(run.number("env_steps_per_second") for run in runs)
        if spread is not None:
            spreads[name] = (len(runs), spread)
    table = []
    for name, (count, spread) in spreads.items():
        beside = [
            ratio(spread.median, spreads[peer][1].median) if peer in spreads and name not in (SB3, CLEANRL) else ""
            for peer in (SB3, CLEANRL)
        ]
        table.append([name, str(count), spread.text(0), *beside])
    return table


def main() -> None:
    args = parse_arguments()
    record = record_beside(args.out, "atari_throughput.jsonl")
    systems = own_systems(args) if args.only != "peers" else []
    systems += peer_systems(args) if args.only != "ours" else []
    run_systems(systems, record, describe, args.timeout_s)
    headers = ["system", "runs", "env steps/s", "times Stable-Baselines3", "times CleanRL"]
    table = markdown_table(headers, rows([system.name for system in systems], record))
    paths = {f"{run.system}: {run.result['compute_path']}." for run in record.runs if "compute_path" in run.result}
    notes = [
        f"Minimum / median / maximum; repeats interleaved, {args.threads} threads each. Ratios are of medians.",
        "One env step is four frames. 8 samples per env step on every side.",
        *sorted(paths),
    ]
    write_page(markdown_page("Pong while learning", args.python, table, notes), args.out)
    if any("failed" in run.result for run in record.runs):
        sys.exit("some runs failed: see above")


if __name__ == "__main__":
    main()
