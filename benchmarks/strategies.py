"""Samples trained on per second by two workers that communicate, beside two serial copies that do not.

On the ray engine, parameter_server (async; two pushes in flight; pushes of 16 local steps; sync) and all_reduce. The
two copies are two serial runs at the same time, counted over the window that they share; what is lost against them is
the cost of being distributed. Environments cost next to nothing here: 256 samples per insert. Asked: 0.80 of the
copies at batch 1,024.

    python benchmarks/strategies.py --batch-sizes 64 256 1024 4096 --seeds 3 --out strategies.md
    python benchmarks/strategies.py --one "all_reduce" --batch-size 1024 --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import (
    BenchmarkError,
    Json,
    Record,
    Run,
    Spread,
    System,
    last_json_object,
    markdown_page,
    markdown_table,
    record_beside,
    run_systems,
    write_page,
)

RECIPE = Path(__file__).parent / "recipes" / "strategies.toml"
NUM_WORKERS = 2
COPIES, COPY = "two serial copies", "serial"
COLLECT = {"strategy.collect_steps": 8}
FLEET = COLLECT | {"engine": "ray", "strategy.num_workers": NUM_WORKERS}
SYSTEMS: dict[str, dict[str, object]] = {
    COPY: COLLECT | {"strategy": "serial", "engine": "inline"},
    "parameter_server async": FLEET | {"strategy": "parameter_server", "strategy.wait": "async"},
    "parameter_server async, 2 in flight": FLEET
    | {"strategy": "parameter_server", "strategy.wait": "async", "strategy.in_flight": 2},
    "parameter_server async, 16 local steps": FLEET
    | {"strategy": "parameter_server", "strategy.wait": "async", "strategy.local_steps": 16},
    "parameter_server sync": FLEET | {"strategy": "parameter_server", "strategy.wait": "sync"},
    "all_reduce": FLEET | {"strategy": "all_reduce"},
}
ASKED = 0.80
ASKED_BATCH = 1024
ASKED_OF = ("parameter_server async", "all_reduce")
ACTIVITIES = {
    "learner": ("learner",),
    "replay": ("replay",),
    "environment": ("environment", "inference"),
    "meeting": ("all_reduce",),
}
MAX_POINTS = 400


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in SYSTEMS if name != COPY]
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--systems", nargs="+", default=names, choices=names, help="beside the two copies")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warm-seconds", type=float, default=5.0, help="learning before the window opens")
    parser.add_argument("--window-seconds", type=float, default=20.0)
    parser.add_argument("--samples-per-insert", type=float, default=256.0)
    parser.add_argument("--set", action="append", default=[], help="one more override for every run, name=value")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="per run")
    parser.add_argument("--out", type=Path, help="Markdown file; the raw runs go beside it as .jsonl")
    group = parser.add_argument_group("one run, as JSON")
    group.add_argument("--one", choices=[COPIES, *SYSTEMS])
    group.add_argument("--batch-size", type=int, default=1024)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--meet", type=Path, help="a folder where two copies wait for each other to be warm")
    return parser.parse_args()


# One run


def busy_seconds() -> float:
    """CPU seconds that this machine has worked since it started, by all its processes; NaN where nothing tells."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system, _, _, irq, softirq = (float(word) for word in stat.read_text().split("\n")[0].split()[1:8])

    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def others_are_there(folder: Path) -> bool:
    """Sign in, and whether both copies have done so: neither counts while it is alone."""
    (folder / str(os.getpid())).touch()
    return len(list(folder.iterdir())) >= NUM_WORKERS


def measure(args: argparse.Namespace) -> dict[str, Json]:
    """One training run, closed when its window is over: samples trained on at moments of the system's clock.

    The clock is one for all processes, so that two copies can be counted over the window that they share. Seconds by
    activity are those that the roles report with each answer, summed over roles.
    """
    from qfleet.experiment import Experiment
    from qfleet.run_config import parse_override
    from qfleet.strategies.base import Gradient, Rollout, Update

    overrides = SYSTEMS[args.one] | {
        "algo.batch_size": args.batch_size,
        "replay.samples_per_insert": args.samples_per_insert,
    }
    overrides |= dict(parse_override(text) for text in args.set)
    points: list[tuple[float, int]] = []
    seconds: dict[str, float] = {}
    num_env_steps = num_updates = 0
    busy = 0.0
    learning_since = None
    with tempfile.TemporaryDirectory(prefix="qfleet-benchmark-") as folder:
        experiment = Experiment.from_recipe(
            "CartPole-v1", recipe=str(RECIPE), seed=args.seed, run_dir=Path(folder) / "run", overrides=overrides
        )
        events = experiment.stream()
        for event in events:
            if not isinstance(event, Gradient | Rollout | Update):
                continue
            if points:
                for activity, value in event.receipt.seconds.items():
                    seconds[activity] = seconds.get(activity, 0.0) + value
            if not isinstance(event, Update):
                continue
            now = time.monotonic()
            learning_since = learning_since or now
            assert experiment.session is not None
            counters = experiment.session.control.counters
            if now - learning_since < args.warm_seconds:
                continue
            if not points:
                if args.meet is not None and not others_are_there(args.meet):
                    continue
                num_env_steps, num_updates, busy = counters.num_env_steps, counters.num_updates, busy_seconds()
            points.append((now, counters.num_samples))
            if now - points[0][0] >= args.window_seconds:
                break
        num_env_steps = counters.num_env_steps - num_env_steps
        num_updates = counters.num_updates - num_updates
        busy = busy_seconds() - busy
        events.close()
    elapsed, num_samples = points[-1][0] - points[0][0], points[-1][1] - points[0][1]
    step = max(1, len(points) // MAX_POINTS)
    kept = [*points[:-1:step], points[-1]]
    return {
        "samples_per_second": num_samples / elapsed,
        "updates_per_second": num_updates / elapsed,
        "env_steps_per_second": num_env_steps / elapsed,
        "elapsed": elapsed,
        "num_samples": num_samples,
        "num_workers": 1 if args.one == COPY else NUM_WORKERS,
        "seconds": dict(seconds),
        "busy_cores": busy / elapsed,
        "points": [[moment, samples] for moment, samples in kept] if args.one == COPY else None,
    }


def samples_at(points: list[tuple[float, float]], moment: float) -> float:
    """Samples trained on by then, between two points by a straight line."""
    for (before, low), (after, high) in itertools.pairwise(points):
        if before <= moment <= after:
            return low + (high - low) * (moment - before) / (after - before)
    raise BenchmarkError("the copies share no window")


def measure_copies(args: argparse.Namespace) -> dict[str, Json]:
    """Two serial runs at once, whose windows open when both are warm."""
    words = [f"--batch-size={args.batch_size}", f"--warm-seconds={args.warm_seconds}"]
    words += [f"--window-seconds={args.window_seconds}", f"--samples-per-insert={args.samples_per_insert}"]
    words += [f"--set={text}" for text in args.set]
    command = [sys.executable, str(Path(__file__)), "--one", COPY, *words]
    with tempfile.TemporaryDirectory(prefix="qfleet-benchmark-") as folder:
        command.append(f"--meet={folder}")
        copies = [
            subprocess.Popen([*command, f"--seed={args.seed * NUM_WORKERS + rank}"], stdout=subprocess.PIPE, text=True)
            for rank in range(NUM_WORKERS)
        ]
        results = [last_json_object(copy.communicate()[0]) for copy in copies]
    pasts: list[list[tuple[float, float]]] = []
    for result in results:
        if result is None or not isinstance(result["points"], list):
            raise BenchmarkError("a copy has failed")
        pasts.append([(float(point[0]), float(point[1])) for point in result["points"] if isinstance(point, list)])  # type: ignore[arg-type]
    begin, end = max(past[0][0] for past in pasts), min(past[-1][0] for past in pasts)
    if end - begin < args.window_seconds / 2:
        raise BenchmarkError(f"the copies share {end - begin:.1f} s of {args.window_seconds:g}")
    shared = sum(samples_at(past, end) - samples_at(past, begin) for past in pasts)
    runs = [Run(COPY, args.seed, command, 0.0, result) for result in results if result is not None]
    activities = {name for names in ACTIVITIES.values() for name in names}
    per_second = {
        name: sum(_or_zero(run.number(f"seconds.{name}")) / run.number("elapsed") for run in runs)
        for name in activities
    }
    return {
        "samples_per_second": shared / (end - begin),
        "updates_per_second": sum(run.number("updates_per_second") for run in runs),
        "env_steps_per_second": sum(run.number("env_steps_per_second") for run in runs),
        "elapsed": end - begin,
        "num_samples": shared,
        "num_workers": NUM_WORKERS,
        "seconds": {name: value * (end - begin) for name, value in per_second.items()},
        "busy_cores": statistics.mean(run.number("busy_cores") for run in runs),
        "points": None,
    }


# All of them


def _or_zero(value: float) -> float:
    return value if value == value else 0.0


def share(run: Run, activity: str) -> float:
    """Part of the workers' time that this activity took, from 0 to 1."""
    seconds = sum(_or_zero(run.number(f"seconds.{name}")) for name in ACTIVITIES[activity])
    return seconds / (run.number("elapsed") * run.number("num_workers"))


def waiting(run: Run) -> float:
    """The rest: calls on their way, the servers' turn, the coordinator, a core that another process has."""
    return 1.0 - sum(share(run, activity) for activity in ACTIVITIES)


def learner_microseconds(run: Run) -> float:
    """Of one worker, per sample trained on."""
    return 1e6 * run.number("seconds.learner") / run.number("num_samples")


def describe(run: Run) -> str:
    shares = ", ".join(f"{name} {share(run, name):.0%}" for name in ACTIVITIES)
    return f"{run.number('samples_per_second'):,.0f} samples/s; {shares}, waiting {waiting(run):.0%}"


def system(name: str, batch_size: int, args: argparse.Namespace) -> System:
    def command(seed: int) -> list[str]:
        words = [f"--batch-size={batch_size}", f"--seed={seed}", f"--warm-seconds={args.warm_seconds}"]
        words += [f"--window-seconds={args.window_seconds}", f"--samples-per-insert={args.samples_per_insert}"]
        words += [f"--set={text}" for text in args.set]
        return [sys.executable, str(Path(__file__)), "--one", name, *words]

    return System(f"batch {batch_size}: {name}", command, 1, tuple(range(args.seeds)))


def good(record: Record, name: str) -> dict[int, Run]:
    return {run.seed: run for run in record.of(name) if "failed" not in run.result}


def ratios(record: Record, name: str, batch_size: int) -> Spread | None:
    """Of each round, this system's rate to that of the two copies."""
    copies = good(record, f"batch {batch_size}: {COPIES}")
    runs = good(record, f"batch {batch_size}: {name}")
    rate = "samples_per_second"
    return Spread.of(runs[seed].number(rate) / copies[seed].number(rate) for seed in runs if seed in copies)


def row(record: Record, name: str, batch_size: int) -> list[str]:
    runs = list(good(record, f"batch {batch_size}: {name}").values())
    rate = Spread.of(run.number("samples_per_second") for run in runs)
    against = ratios(record, name, batch_size)
    if rate is None:
        return [f"{batch_size:,}", name, "failed", *[""] * 5]
    shares = [statistics.median(share(run, activity) for run in runs) for activity in ACTIVITIES]
    shares.append(statistics.median(map(waiting, runs)))
    cores = Spread.of(run.number("busy_cores") for run in runs)
    return [
        f"{batch_size:,}",
        name,
        rate.text(0),
        "" if name == COPIES or against is None else f"{against.median:.2f}",
        " / ".join(f"{value:.0%}" for value in shares),
        f"{statistics.median(map(learner_microseconds, runs)):.2f}",
        f"{statistics.median(run.number('updates_per_second') for run in runs):,.0f}",
        f"{cores.median:.2f}" if cores else "-",
    ]


def main() -> None:
    args = parse_arguments()
    if args.one is not None:
        print(json.dumps(measure_copies(args) if args.one == COPIES else measure(args)))
        return
    record = record_beside(args.out, "strategies.jsonl")
    names = [COPIES, *args.systems]
    for batch_size in args.batch_sizes:
        run_systems([system(name, batch_size, args) for name in names], record, describe, args.timeout_s)
    headers = [
        "batch",
        "system",
        "samples/s",
        "of the copies",
        f"worker's time: {' / '.join(ACTIVITIES)} / waiting",
        "learner, us per sample",
        "updates/s",
        "cores busy",
    ]
    table = markdown_table(headers, [row(record, name, size) for size in args.batch_sizes for name in names])
    notes = [
        f"Samples trained on per second by {NUM_WORKERS} workers together, minimum / median / maximum over "
        f"{args.seeds} rounds; systems interleaved, one at a time. The batch is each worker's own. One torch thread "
        "in each process.",
        "Of the copies: median over rounds of the rate divided by that of two serial runs at the same time in that "
        "round, over the window that both share. updates/s: of parameters; the copies' are summed.",
        f"Network 256-256, {args.samples_per_insert:g} samples per insert, hard target every 100 updates; no "
        f"validation, checkpoint or log in the window of {args.window_seconds:g} s, which opens "
        f"{args.warm_seconds:g} s after the first update.",
        "Worker's time is what the roles report with their answers; meeting is the time at an all-reduce's yield, for "
        "the others and the mean. Waiting is the rest. Cores busy: of the whole machine, all processes.",
    ]
    asked = args.samples_per_insert
    if ASKED_BATCH in args.batch_sizes:
        for name in ASKED_OF:
            found = ratios(record, name, ASKED_BATCH) if name in names else None
            if found is not None:
                notes.append(f"{name} at batch {ASKED_BATCH:,}: {found.text(2)} of the copies (asked: {ASKED:.2f}).")
    notes += [
        f"NOT COMPARABLE: {run.system}, seed {run.seed} made {drawn:.0f} samples per insert in its window."
        for run in record.runs
        if "failed" not in run.result
        and run.number("env_steps_per_second") > 0
        and not 0.9 < (drawn := run.number("samples_per_second") / run.number("env_steps_per_second")) / asked < 1.1
    ]
    notes.append(f"Commands that failed: {sum('failed' in run.result for run in record.runs)}.")
    title = f"Samples per second, {NUM_WORKERS} workers on ray beside two copies"
    write_page(markdown_page(title, sys.executable, table, notes), args.out)
    if any("failed" in run.result for run in record.runs):
        sys.exit("some runs failed: see above")


if __name__ == "__main__":
    main()
