"""Throughput of CleanRL's single-file dqn.py or dqn_atari.py, run unchanged as a subprocess, while it learns.

Needs a checkout of https://github.com/vwxyzjn/cleanrl and `pip install tyro tensorboard`. The script prints "SPS:", the
mean since its start (random warm-up included), once every 100 environment steps in which it also trains. Each such line
is stamped on arrival here; the rate reported is the marginal one between two lines, after learning starts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PRINT_EVERY = 100  # dqn.py prints when global_step % 100 == 0, after a training step
VERSIONS = (
    "import json, platform; from importlib.metadata import version; names = ('gymnasium', 'torch', 'numpy'); "
    "print(json.dumps({'python': platform.python_version()} | {name: version(name) for name in names}))"
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanrl", type=Path, required=True, help="path to cleanrl/dqn.py in a checkout of CleanRL")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--total-env-steps", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-frequency", type=int, default=10, help="environment steps per update")
    parser.add_argument("--learning-starts", type=int, default=10_000)
    parser.add_argument("--exploration-env-steps", type=int, help="default: learning starts at the final epsilon, 0.05")
    parser.add_argument("--warm-env-steps", type=int, default=1_000, help="learning steps before the clock starts")
    parser.add_argument("--python", default=sys.executable, help="interpreter to run dqn.py with")
    parser.add_argument("--buffer-size", type=int, help="transitions kept; default: the script's own")
    parser.add_argument("--import", dest="imported", help="a module that registers the environment, such as ale_py")
    parser.add_argument("--pythonpath", default="", help="put before its own path, e.g. another gymnasium")
    parser.add_argument("--json", action="store_true", help="accepted for symmetry: the output always is one JSON line")
    return parser.parse_args()


def command(args: argparse.Namespace, exploration_env_steps: int) -> list[str]:
    script = [str(args.cleanrl.resolve())]
    if args.imported is not None:  # run by the interpreter as it is, after the import
        run = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
        script = ["-c", f"import {args.imported}; {run}", *script]
    return [
        args.python,
        "-u",
        *script,
        *("--env-id", args.env),
        *("--seed", str(args.seed)),
        *("--total-timesteps", str(args.total_env_steps)),
        *("--batch-size", str(args.batch_size)),
        *("--train-frequency", str(args.train_frequency)),
        *("--learning-starts", str(args.learning_starts)),
        *("--exploration-fraction", repr(exploration_env_steps / args.total_env_steps)),
        *(() if args.buffer_size is None else ("--buffer-size", str(args.buffer_size))),
        *("--no-track", "--no-capture-video", "--no-cuda"),
    ]


def stamped_sps_lines(process: subprocess.Popen[str], args: argparse.Namespace) -> list[tuple[int, float, int]]:
    """(global step, arrival time, SPS as printed) of each line; the step follows from the line's number."""
    stride = math.lcm(PRINT_EVERY, args.train_frequency)
    step = (args.learning_starts // stride + 1) * stride
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("SPS:"):
            lines.append((step, time.perf_counter(), int(line.split(":")[1])))
            step += stride
    return lines


def main() -> None:
    args = parse_arguments()
    exploration = args.learning_starts if args.exploration_env_steps is None else args.exploration_env_steps
    root = args.cleanrl.resolve().parent.parent  # dqn.py imports cleanrl_utils from the root of the checkout
    search_path = [part for part in (args.pythonpath, str(root), os.environ.get("PYTHONPATH", "")) if part]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search_path)}
    environment |= {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "stderr").open("w+") as errors:
        with subprocess.Popen(
            command(args, exploration), cwd=scratch, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            lines = stamped_sps_lines(process, args)
        errors.seek(0)
        last_words = errors.read().strip().splitlines()[-3:]
    total_seconds = time.perf_counter() - started
    measured = [line for line in lines if line[0] >= args.learning_starts + args.warm_env_steps]
    if len(measured) < 2:
        sys.exit(f"dqn.py (exit status {process.returncode}) printed {len(lines)} SPS lines, too few: {last_words}")
    (first_step, start, _), (last_step, end, cumulative) = measured[0], measured[-1]
    env_steps, seconds = last_step - first_step, end - start
    versions = subprocess.run(
        [args.python, "-c", VERSIONS], env=environment, capture_output=True, text=True, check=True
    ).stdout
    print(
        json.dumps(
            {
                "system": "cleanrl_dqn",
                "mode": "throughput",
                "env": args.env,
                "seed": args.seed,
                "threads": args.threads,
                "seconds": seconds,
                "total_seconds": total_seconds,
                "env_steps": env_steps,
                "updates": env_steps // args.train_frequency,
                "env_steps_per_second": env_steps / seconds,
                "updates_per_second": env_steps / args.train_frequency / seconds,
                "updates_per_env_step": 1 / args.train_frequency,
                "sps_printed_last": cumulative,
                # The script stops early where its gymnasium is newer than the one it is written for (see stderr).
                "completed": process.returncode == 0,
                "stderr": [] if process.returncode == 0 else last_words,
                "hyperparameters": {
                    "hidden": [120, 84],
                    "batch_size": args.batch_size,
                    "train_frequency": args.train_frequency,
                    "learning_starts": args.learning_starts,
                    "exploration_env_steps": exploration,
                },
                "versions": json.loads(versions),
            }
        )
    )


if __name__ == "__main__":
    main()
