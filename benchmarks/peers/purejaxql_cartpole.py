"""purejaxql's PQN (JAX) on CartPole-v1 with the hyperparameters of its own config: training time until a score.

Needs a checkout of https://github.com/mttga/purejaxql, gymnasium, and beside "jax[cpu]" what its pqn_gymnax.py imports:
flax, optax, chex, hydra-core, omegaconf, safetensors, wandb, and gymnax 0.0.9 (a step of newer ones returns more).
The script is used unchanged. Its training is one `lax.scan` of an update step; here the same step is compiled for a few
updates at once, ahead of time, so that the training clock stops between two calls for a greedy evaluation. Imports,
building and compiling have clocks of their own. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sb3_dqn import evaluate

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

PROCESS_START = time.perf_counter()
ENV = "CartPole-v1"
UPDATE_STEP = "_update_step"  # the function that pqn_gymnax.py scans


class UpdateStepFound(Exception):
    """Carries the scanned function and its first argument out of the peer's `train`."""

    def __init__(self, step: Callable[..., Any], carry: object) -> None:
        super().__init__("the peer's training loop is reached")
        self.step = step
        self.carry = carry


def load_script(checkout: Path) -> tuple[ModuleType, dict[str, Any]]:
    """pqn_gymnax.py and its config for CartPole, without its own evaluations (ours stop the clock) and its log."""
    from omegaconf import OmegaConf

    folder = checkout / "purejaxql"
    spec = importlib.util.spec_from_file_location("pqn_gymnax", folder / "pqn_gymnax.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / "config" / "alg" / "pqn_cartpole.yaml"))
    return module, config | {"TEST_DURING_TRAINING": False, "WANDB_MODE": "disabled"}


def update_step(module: ModuleType, config: dict[str, Any], seed: int) -> tuple[Callable[..., Any], Any]:
    """The peer's update step, and what it begins with for this seed."""
    import jax

    train, scan = module.make_train(dict(config)), jax.lax.scan
    found: list[Callable[..., Any]] = []

    def scan_or_stop(step: Callable[..., Any], carry: object, *args: Any, **options: Any) -> object:
        if getattr(step, "__name__", "") == UPDATE_STEP:
            raise UpdateStepFound(step, carry)
        return scan(step, carry, *args, **options)

    def begin(key: object) -> object:
        try:
            train(key)
        except UpdateStepFound as reached:
            found.append(reached.step)
            return reached.carry
        raise RuntimeError(f"pqn_gymnax.py scans no {UPDATE_STEP}: this is for the layout of its version 0.0.1")

    jax.lax.scan = scan_or_stop
    try:
        carry = jax.jit(begin)(jax.random.PRNGKey(seed))
    finally:
        jax.lax.scan = scan
    return found[0], jax.block_until_ready(carry)


def solve(args: argparse.Namespace) -> dict[str, Any]:
    """Train until the first evaluation whose mean reaches the target by the margin asked for, or to the budget."""
    module, config = load_script(args.checkout.resolve())
    import jax

    jax.devices()  # the backend starts here
    imported = time.perf_counter()
    step, carry = update_step(module, config, args.seed)
    built = time.perf_counter()
    env_steps_per_update = config["NUM_ENVS"] * config["NUM_STEPS"]
    updates_per_call = max(1, round(args.eval_every / env_steps_per_update))

    def several(carry: Any) -> Any:
        return jax.lax.scan(step, carry, None, updates_per_call)[0]

    # The scan makes floats of what environments count in whole numbers at first: so that one program fits every call.
    carry = jax.tree.map(lambda value, after: value.astype(after.dtype), carry, jax.eval_shape(several, carry))
    compiled = jax.jit(several).lower(carry).compile()
    ready = time.perf_counter()

    @jax.jit
    def greedy(state: Any, observations: object) -> Any:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return state.apply_fn(variables, observations, train=False).argmax(axis=-1)

    def act(observations: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.asarray(greedy(carry[0], observations))

    env_steps, seconds, evaluation_seconds, reached = 0, 0.0, 0.0, False
    evaluations: list[dict[str, float]] = []
    while not reached and env_steps < args.max_env_steps:
        started = time.perf_counter()
        carry = jax.block_until_ready(compiled(carry))
        seconds += time.perf_counter() - started
        env_steps += env_steps_per_update * updates_per_call
        started = time.perf_counter()
        returns = evaluate(ENV, act, args.eval_episodes, 1_000_003 * (args.seed + 1) + env_steps)
        mean, std = float(returns.mean()), float(returns.std(ddof=1)) if returns.size > 1 else 0.0
        reached = mean - args.margin_stderr * std / math.sqrt(returns.size) >= args.target
        evaluations.append({"env_steps": env_steps, "seconds": seconds, "mean": mean, "std": std})
        evaluation_seconds += time.perf_counter() - started
    return {
        "seconds": seconds,
        "import_seconds": imported - PROCESS_START,
        "build_seconds": built - imported,
        "compile_seconds": ready - built,
        "setup_seconds": ready - PROCESS_START,
        "evaluation_seconds": evaluation_seconds,
        "env_steps": env_steps,
        "updates": int(carry[0].grad_steps),
        "reached": reached,
        "target": args.target,
        "margin_stderr": args.margin_stderr,
        "mean": evaluations[-1]["mean"],
        "std": evaluations[-1]["std"],
        "eval_episodes": args.eval_episodes,
        "eval_every": env_steps_per_update * updates_per_call,
        "evaluations": evaluations,
        "hyperparameters": config,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="folder of a checkout of purejaxql")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="cores that XLA may use")
    parser.add_argument("--target", type=float, default=475.0, help="stop at the first evaluation that reaches this")
    parser.add_argument("--margin-stderr", type=float, default=0.0, help="require mean - K * std / sqrt(n) >= target")
    parser.add_argument("--eval-every", type=int, default=4096, help="env steps between evaluations, in whole updates")
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--max-env-steps", type=int, default=500_000)
    parser.add_argument("--json", action="store_true", help="accepted for symmetry: the output always is one JSON line")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if hasattr(os, "sched_setaffinity"):  # XLA counts the cores it finds when it is imported
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    result = solve(args)
    packages = ("jax", "flax", "optax", "gymnax", "gymnasium", "numpy")
    print(
        json.dumps(
            {
                "system": "purejaxql_pqn",
                "mode": "solve",
                "env": ENV,
                "seed": args.seed,
                "threads": args.threads,
                **result,
                "total_seconds": time.perf_counter() - PROCESS_START,
                "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
            }
        )
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
