"""Env steps/s of a qfleet run between two of its updates: what it does while it learns, without its start and end.

    python benchmarks/marginal_rate.py ALE/Pong-v5 --recipe benchmarks/recipes/pong_throughput.toml --updates 200

Prints one JSON line, as the peers' scripts do. The run is left unfinished: nothing is saved or evaluated at its end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from qfleet.experiment import Experiment
from qfleet.recipe import find_recipe
from qfleet.run_config import build_config, parse_override
from qfleet.strategies.base import Rollout, Update


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=200, help="measured")
    parser.add_argument("--warm-updates", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], help="key=value, as for qfleet train")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    fixed: list[tuple[str, object]] = [("env.id", args.env), ("seed", args.seed), ("stop.max_env_steps", 10**9)]
    config = build_config(find_recipe(args.recipe).values, [*fixed, *map(parse_override, args.set)])
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(config, run_dir=Path(folder) / "run")
        num_updates = num_env_steps = first_update = 0
        seconds: dict[str, float] = {}
        started = None
        events = experiment.stream()
        for event in events:
            if not isinstance(event, Rollout | Update):
                continue
            num_updates += event.receipt.num_updates
            if started is not None:
                num_env_steps += event.receipt.num_env_steps
                for name, value in event.receipt.seconds.items():
                    seconds[name] = seconds.get(name, 0.0) + value
            if isinstance(event, Update) and started is None and num_updates >= args.warm_updates:
                started, first_update = time.perf_counter(), num_updates
            elif isinstance(event, Update) and num_updates - first_update >= args.updates and started is not None:
                break
        assert started is not None
        elapsed, measured = time.perf_counter() - started, num_updates - first_update
        events.close()
    batch_size = getattr(config.algo, "batch_size", None)
    print(
        json.dumps(
            {
                "system": "qfleet",
                "env": args.env,
                "env_steps": num_env_steps,
                "env_steps_per_second": num_env_steps / elapsed,
                "updates_per_second": measured / elapsed,
                "samples_per_env_step": None if batch_size is None else measured * batch_size / num_env_steps,
                "milliseconds_per_update": {name: value / measured * 1e3 for name, value in seconds.items()},
                "compute_path": experiment._describe_path().removeprefix(", "),
            }
        )
    )


if __name__ == "__main__":
    main()
