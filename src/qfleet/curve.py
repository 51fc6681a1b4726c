"""Learning curves: learning_curve.png of one run, and the mean of several seeds with their band.

Reads only what a run wrote down (metrics.jsonl, config.toml, summary.json). Draws on matplotlib's Agg canvas without
pyplot, which would double the import time. matplotlib is imported when a curve is drawn. Floor 6.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qfleet.errors import QfleetError
from qfleet.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE_NAME = "learning_curve.png"
TRAIN, VALIDATION, TARGET, HELD_OUT = "#8a8f98", "#1f6fb4", "#2a8c4a", "#c8432b"
SIZE, DPI = (8.0, 4.8), 120


def draw_learning_curve(run_dir: str | Path, summary: Mapping[str, object] | None = None) -> Path:
    """Draw run_dir/learning_curve.png: training and validation returns, the target and the held-out score.

    Args:
        run_dir: the run directory.
        summary: the run's summary; None reads summary.json, if there is one.

    Raises:
        QfleetError: the run has written no metrics yet.
    """
    folder = Path(run_dir)
    records = read_metrics(folder)
    if not records:
        raise QfleetError(f"{folder}: nothing to draw yet, metrics.jsonl has no record")
    summary = _read_summary(folder) if summary is None else summary
    figure, axes = _new_figure(_title(folder, f"seed {summary.get('seed', '?')}"))
    train = [record for record in records if record["kind"] == "train" and record.get("mean_return") is not None]
    if train:
        axes.plot(
            _column(train, "num_env_steps"),
            _column(train, "mean_return"),
            color=TRAIN,
            linewidth=1.4,
            label="training, exploring (mean of the last 100 episodes)",
        )
    _draw_validation(axes, [record for record in records if record["kind"] == "evaluation"])
    _draw_target(axes, summary.get("target_return"))
    _draw_held_out(axes, summary)
    _finish_axes(axes)
    _add_seconds(axes, records)
    path = folder / CURVE_NAME
    figure.savefig(path, dpi=DPI)
    return path


def draw_seeds_curve(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw several seeds of one experiment: each run's validation mean, their mean, and the band from least to most.

    A run that ended earlier than the longest one keeps its last value from there on.

    Args:
        run_dirs: the runs.
        out: the PNG to write.

    Raises:
        QfleetError: none of the runs has been validated yet.
    """
    curves = []
    for run_dir in run_dirs:
        records = [record for record in read_metrics(Path(run_dir)) if record["kind"] == "evaluation"]
        if records:
            curves.append((_column(records, "num_env_steps"), _column(records, "mean_return")))
    if not curves:
        raise QfleetError(f"{out}: nothing to draw yet, no run has been validated")
    figure, axes = _new_figure(_title(Path(run_dirs[0]), f"{len(curves)} seeds"))
    grid = np.linspace(min(steps[0] for steps, _ in curves), max(steps[-1] for steps, _ in curves), 400)
    values = np.stack([np.interp(grid, steps, returns) for steps, returns in curves])
    for steps, returns in curves:
        axes.plot(steps, returns, color=VALIDATION, linewidth=0.7, alpha=0.35)
    axes.fill_between(
        grid, values.min(0), values.max(0), color=VALIDATION, alpha=0.15, linewidth=0, label="least to most"
    )
    axes.plot(grid, values.mean(0), color=VALIDATION, linewidth=2.2, label="validation, greedy: mean over seeds")
    _draw_target(axes, _read_summary(Path(run_dirs[0])).get("target_return"))
    _finish_axes(axes)
    path = Path(out)
    figure.savefig(path, dpi=DPI)
    return path


def _new_figure(title: str) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left", pad=10)
    axes.set_xlabel("env steps", fontsize=11)
    axes.set_ylabel("episode return", fontsize=11)
    return figure, axes


def _draw_validation(axes: Axes, records: list[dict[str, Any]]) -> None:
    if not records:
        return
    steps, mean = _column(records, "num_env_steps"), _column(records, "mean_return")
    low, high = _column(records, "min_return"), _column(records, "max_return")
    axes.fill_between(steps, low, high, color=VALIDATION, alpha=0.15, linewidth=0, label="validation, worst to best")
    marker = "o" if len(records) <= 40 else None
    axes.plot(
        steps, mean, color=VALIDATION, linewidth=2.2, marker=marker, markersize=3.5, label="validation, greedy: mean"
    )


def _draw_target(axes: Axes, target: object) -> None:
    if isinstance(target, int | float):
        axes.axhline(target, color=TARGET, linewidth=1.3, linestyle=(0, (6, 3)), label=f"target {target:g}")


def _draw_held_out(axes: Axes, summary: Mapping[str, object]) -> None:
    score = summary.get("eval")
    if not isinstance(score, Mapping):
        return
    axes.errorbar(
        [float(str(summary["num_env_steps"]))],
        [score["mean_return"]],
        yerr=[score["std_return"]],
        color=HELD_OUT,
        marker="D",
        markersize=7,
        capsize=4,
        linestyle="none",
        zorder=5,
        clip_on=False,
        label=f"held-out: {score['mean_return']:.1f} ± {score['std_return']:.1f} over {score['episodes']} episodes",
    )


def _finish_axes(axes: Axes) -> None:
    from matplotlib.ticker import StrMethodFormatter

    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(color="#d9dce1", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=10)
    # Below the plot: a legend inside would hide some run's curve.
    axes.figure.legend(loc="outside lower center", ncols=2, fontsize=9.5, frameon=False)


def _add_seconds(axes: Axes, records: list[dict[str, Any]]) -> None:
    """A second axis on top: training seconds at the env steps where they passed."""
    from matplotlib.ticker import MaxNLocator

    # A validation beside training is written down after lines that are younger than its snapshot.
    timed = sorted((record for record in records if "train_seconds" in record), key=lambda one: one["train_seconds"])
    steps, seconds = _column(timed, "num_env_steps"), _column(timed, "train_seconds")
    if len(timed) < 2 or seconds[-1] <= seconds[0]:
        return
    ticks = [
        tick
        for tick in MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(0.0, seconds[-1])
        if 0 <= tick <= seconds[-1]
    ]
    top = axes.twiny()
    top.set_xlim(axes.get_xlim())
    top.set_xticks(np.interp(ticks, [0.0, *seconds], [0.0, *steps]))
    top.set_xticklabels([f"{tick:g} s" for tick in ticks])
    top.set_xlabel("training time", fontsize=10, color="#5c626c")
    top.tick_params(labelsize=9, colors="#5c626c")
    for side in ("top", "right", "bottom", "left"):
        top.spines[side].set_visible(side == "top")
        top.spines[side].set_color("#b9bec6")


def _title(run_dir: Path, suffix: str) -> str:
    """Environment, algorithm, strategy and engine of a run."""
    try:
        config = tomllib.loads((run_dir / "config.toml").read_text("utf-8"))
        names = [config[section]["name"] for section in ("algo", "strategy", "engine")]
        return f"{config['env'].get('id', 'environment')} · {' x '.join(names)} · {suffix}"
    except (OSError, ValueError, KeyError):
        return f"{run_dir.name} · {suffix}"


def _read_summary(run_dir: Path) -> dict[str, object]:
    try:
        summary: dict[str, object] = json.loads((run_dir / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return summary


def _column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([float(record[name]) for record in records])
