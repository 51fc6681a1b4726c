"""The end of a run: a table of what it did, and where everything is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Summary = Mapping[str, Any]
STOP_REASONS = {
    "max_env_steps": "env steps used up",
    "max_updates": "updates used up",
    "max_seconds": "seconds used up",
    "interrupted": "interrupted",
    "reached": "target reached",
}


def run_table(summary: Summary) -> Table:
    """A finished run in numbers."""
    table = _table(f"{summary['env']}, seed {summary['seed']}: {STOP_REASONS.get(summary['stop_reason'], 'finished')}")
    table.add_column("what")
    table.add_column("value", justify="right")
    score = summary["eval"]
    if score is not None:
        table.add_row(f"held-out return, mean of {score['episodes']} episodes", f"{score['mean_return']:.1f}")
        table.add_row("  min .. max", f"{score['min_return']:.1f} .. {score['max_return']:.1f}")
        table.add_row("  std", f"{score['std_return']:.1f}")
    table.add_row("best validation return", _number(summary["validation_return"]))
    if summary["target_return"] is not None:
        table.add_row(f"target {summary['target_return']:g}", _reached(summary))
    table.add_section()
    table.add_row("training seconds", f"{summary['train_seconds']:.2f}")
    table.add_row("total seconds (validation included)", f"{summary['total_seconds']:.2f}")
    table.add_row("env steps", f"{summary['num_env_steps']:,}")
    if summary["num_frames"] != summary["num_env_steps"]:
        table.add_row("frames", f"{summary['num_frames']:,}")
    table.add_row("updates", f"{summary['num_updates']:,}")
    table.add_row("env steps/s", f"{summary['env_steps_per_second']:,.0f}")
    table.add_row("updates/s", f"{summary['updates_per_second']:,.0f}")
    if summary["num_roles"] > 1:
        for name, share in summary["time_shares"].items():
            table.add_row(f"time: {name}", f"{share:.0%}")
    if summary.get("bytes_moved"):
        table.add_row("moved between roles", in_bytes(summary["bytes_moved"]))
    if summary["bytes_pushed"]:
        table.add_row("pushed", pushed(summary))
    for name, count in summary["tallies"].items():
        if name != "bytes_pushed":
            table.add_row(name.replace("_", " ").replace(".", ": "), f"{count:,}")
    measured, asked = summary["samples_per_insert_measured"], summary["samples_per_insert_asked"]
    table.add_row("replay ratio, measured of asked", f"{measured:.2f} of {asked:g}")
    return table


def lag_table(summary: Summary) -> Table | None:
    """How old things were when they were used, in versions: a column a kind, a row a bucket; None where nothing is."""
    lags = {name: lag for name, lag in summary["lags"].items() if lag["num"]}
    if not lags:
        return None
    table = _table("lags, in parameter versions")
    table.add_column("versions", justify="right")
    for name in lags:
        table.add_column(name.replace("_", " "), justify="right")
    buckets = sorted({(low, high) for lag in lags.values() for low, high, _ in lag["rows"]})
    shares = {name: {(low, high): count / lag["num"] for low, high, count in lag["rows"]} for name, lag in lags.items()}
    for low, high in buckets:
        label = str(low) if low == high else f"{low} .. {high}" if high < 1 << 62 else f"{low} .."
        table.add_row(label, *(f"{share[low, high]:.1%}" if (low, high) in share else "" for share in shares.values()))
    table.add_section()
    for statistic in ("mean", "p50", "p95", "max"):
        table.add_row(statistic, *(f"{lag[statistic]:g}" for lag in lags.values()))
    return table


def pushed(summary: Summary) -> str:
    """Bytes pushed, and how many times fewer they are than whole float32 vectors."""
    whole = summary["bytes_uncompressed"]
    ratio = "" if not whole else f", 1 / {whole / summary['bytes_pushed']:.1f} of float32"
    return f"{in_bytes(summary['bytes_pushed'])}{ratio}"


def in_bytes(count: float) -> str:
    """12,345,678 as 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def run_line(summary: Summary) -> str:
    """A finished run in one line."""
    score = summary["eval"]
    if score is None:
        result = "no held-out score"
    else:
        result = f"held-out return {score['mean_return']:.1f} +/- {score['std_return']:.1f}"
        result += f" over {score['episodes']} episodes"
    target = summary["target_return"]
    aim = "" if target is None else f", target {target:g} {_reached(summary)}"
    return (
        f"{summary['env']} seed {summary['seed']}: {result}{aim}, {summary['num_env_steps']:,} env steps, "
        f"{summary['train_seconds']:.1f} s, {summary['run_dir']}"
    )


def places(run_dir: Path) -> list[str]:
    """Where things are; only what is there."""
    entries = [
        ("configuration", "config.toml"),
        ("metrics", "metrics.jsonl"),
        ("TensorBoard", "tensorboard"),
        ("learning curve", "learning_curve.png"),
        ("checkpoints", "checkpoints"),
        ("best policy", "best"),
    ]
    return [f"  {name:<15} {run_dir / path}" for name, path in entries if (run_dir / path).exists()]


def next_commands(summary: Summary) -> list[str]:
    """What to type next."""
    folder = shlex.quote(str(summary["run_dir"]))
    lines = []
    if (Path(summary["run_dir"]) / "best" / "policy.json").exists():
        lines.append(f"  qfleet evaluate {folder}")
    return [*lines, f"  {resume_command(summary)}"]


def resume_command(summary: Summary) -> str:
    """The command that goes on with a run: as it is after an interrupt, with room for more after its end."""
    command = f"qfleet train --resume {shlex.quote(str(summary['run_dir']))}"
    reason = summary.get("stop_reason")
    if reason == "reached":
        return f"{command} --until-return never --max-env-steps {_round_up(2 * summary['num_env_steps'])}"
    if reason == "max_env_steps":
        return f"{command} --max-env-steps {_round_up(2 * summary['num_env_steps'])}"
    if reason == "max_seconds":
        return f"{command} --max-seconds {2 * summary['train_seconds']:.0f}"
    if reason == "max_updates":
        return f"{command} --set stop.max_updates={_round_up(2 * summary['num_updates'])}"
    return command


def series_table(runs: Sequence[Summary], spread: Mapping[str, Mapping[str, float]]) -> Table:
    """Several seeds, a line each, and their spread."""
    table = _table(f"{runs[0]['env']}: {sum(bool(run['reached']) for run in runs)} of {len(runs)} seeds reached")
    for name in ("seed", "held-out return", "best validation", "reached", "train s", "env steps"):
        table.add_column(name, justify="right")
    for run in runs:
        score = run["eval"]
        table.add_row(
            str(run["seed"]),
            "-" if score is None else f"{score['mean_return']:.1f}",
            _number(run["validation_return"]),
            "yes" if run["reached"] else "no",
            f"{run['train_seconds']:.2f}",
            f"{run['num_env_steps']:,}",
        )
    table.add_section()
    for name in ("mean", "std", "min", "median", "max"):
        score_of = spread.get("eval_mean_return", {})
        table.add_row(
            name,
            _number(score_of.get(name)),
            "",
            "",
            f"{spread['train_seconds'][name]:.2f}",
            f"{spread['num_env_steps'][name]:,.0f}",
        )
    return table


def series_line(summary: Summary) -> str:
    """A series in one line."""
    runs, spread = summary["runs"], summary["spread"]
    score = spread.get("eval_mean_return")
    result = "" if score is None else f"held-out return {score['mean']:.1f} +/- {score['std']:.1f} (std over seeds), "
    return (
        f"{summary['env']}: {summary['reached']} of {len(runs)} seeds reached, {result}"
        f"median {spread['train_seconds']['median']:.1f} s, {summary['run_dir']}"
    )


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    # As wide as its title, which would wrap otherwise.
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    table.min_width = len(title)
    return table


def _reached(summary: Summary) -> str:
    if not summary["reached"]:
        return "not reached"
    return f"reached after {summary['env_steps_to_threshold']:,} env steps, {summary['seconds_to_threshold']:.2f} s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _round_up(count: int) -> int:
    """To two leading digits, for a command that a person reads."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return int(-(-count // unit) * unit)
