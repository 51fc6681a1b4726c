"""Does `qfleet plan` come true? Calibrate with 1 worker on ray, predict 2 workers, run 2 workers: strategy by strategy.

In each round every strategy is run with one worker, with two, and with one again, so that a machine that gets slower
or faster meanwhile does so for both; then two are simulated on the same cores. The simulation has seen nothing of the
run that it predicts; what two ranks take for a mean is measured with two roles that do nothing else.
Asked: updates/s within 20% for each strategy.

    python benchmarks/plan_vs_ray.py --rounds 3 --seconds 4 --out plan_vs_ray.md
    python benchmarks/plan_vs_ray.py --recipe impala --strategies actor_learner --rounds 3 --seconds 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import hardware_line, markdown_page, markdown_table, write_page
from qfleet.planning.calibration import calibrate, costs_of, metered_run
from qfleet.planning.exchange import measure_exchange
from qfleet.planning.grid import Grid, Request, make_grid, of_size
from qfleet.planning.network import measure_loopback
from qfleet.planning.processes import (
    fit,
    local_cluster,
    measure_window,
    num_cores,
    timed_on,
    with_overhead,
)
from qfleet.policy import make_blueprint
from qfleet.run_config import RunConfig, change_config

STRATEGIES = (
    "parameter_server:wait=sync",
    "parameter_server:wait=ssp",
    "parameter_server:wait=async",
    "sync_groups",
    "all_reduce",
    "distributed_replay",
    "federated",
)
NUM_WORKERS = 2
GOAL = 0.20


def one_round(grid: Grid, label: str, config: RunConfig, args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Predicted and measured updates a second of one strategy."""
    alone = change_config(of_size(config, 1), [("engine.name", "ray")])
    together = change_config(config, [("engine.name", "ray")])
    inline = calibrate(change_config(alone, [("engine.name", "inline")]), grid.spec, folder, label)
    size = make_blueprint(alone, grid.spec, "cpu").build_network(trainable=False).num_parameters
    exchange = measure_exchange(alone, size, folder, num_cores())
    bandwidth = measure_loopback().bandwidth
    before = measure_window(alone, grid.spec, folder, args.seconds)
    real = metered_run(together, grid.spec, folder, args.seconds)
    window = before + measure_window(alone, grid.spec, folder, args.seconds)
    file, latency, part = fit(
        of_size(config, 1),
        grid.spec,
        window.num_updates / window.seconds,
        lambda latency, part: local_cluster(inline, window, latency, part, bandwidth, exchange),
    )
    predicted = timed_on(config, grid.spec, file)
    measured = real.num_updates / real.seconds
    return {
        "label": label,
        "one": window.num_updates / window.seconds,
        "drift": before.num_updates / before.seconds / (window.num_updates / window.seconds) - 1.0,
        "predicted": predicted,
        "measured": measured,
        "error": predicted / measured - 1.0,
        "latency": latency,
        "part": part,
        "meeting": exchange.meeting,
        "payload": exchange.payload,
        "crowding": exchange.crowding,
        "others": window.others,
        "busy_cores_alone": window.machine_cpu / window.seconds,
        "busy_cores": real.machine_cpu / real.seconds,
        "costs": {
            f"{cost.table.role} {cost.table.method}": cost.table.values[len(cost.table.values) // 2]
            for cost in costs_of(with_overhead(window.calls), [], "")
            if cost.table.values
        },
        "coordinator": window.coordinator_cpu / len(window.calls),
        "coordinator_together": real.coordinator_cpu / max(1, len(real.calls)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--recipe", help="another than the environment's own, such as impala for actor_learner")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="window of each run")
    parser.add_argument("--set", action="append", default=[], help="override for every run, name=value")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from qfleet.run_config import parse_override

    overrides = dict(parse_override(text) for text in args.set)
    rows: list[dict[str, object]] = []
    for number in range(args.rounds):
        for label in args.strategies:
            grid = make_grid(Request(args.env, label, str(NUM_WORKERS), recipe=args.recipe, overrides=overrides))
            config = grid.cells[0].config
            if config is None:
                sys.exit(f"{label}: {grid.cells[0].why_not}")
            began = time.perf_counter()
            with TemporaryDirectory(prefix="qfleet-benchmark-") as folder:
                row = one_round(grid, label, config, args, Path(folder))
            rows.append(row)
            print(json.dumps({"round": number, "took": time.perf_counter() - began, **row}), flush=True)
    headers = ["strategy", "1 worker, measured", "2 workers, predicted", "2 workers, measured", "error", "each round"]
    table, within = [], 0
    for label in args.strategies:
        own = [row for row in rows if row["label"] == label]

        def median(name: str, own: list[dict[str, object]] = own) -> float:
            return statistics.median(float(str(row[name])) for row in own)

        errors = ", ".join(f"{float(str(row['error'])):+.0%}" for row in own)
        cells = [f"{median(name):,.0f}" for name in ("one", "predicted", "measured")]
        table.append([label, *cells, f"{median('error'):+.1%}", errors])
        within += abs(median("error")) <= GOAL
    notes = [
        f"Updates/s, medians over {args.rounds} rounds; error = predicted / measured - 1, its median over rounds.",
        f"{within} of {len(table)} strategies within {GOAL:.0%}.",
        f"{hardware_line()}.",
    ]
    write_page(
        markdown_page("Predicted and real updates/s", sys.executable, markdown_table(headers, table), notes), args.out
    )


if __name__ == "__main__":
    main()
