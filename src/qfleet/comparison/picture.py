"""comparison.png: return against env steps, updates and seconds, a line a variant, its interval as a band.

Draws on matplotlib's Agg canvas without pyplot, as curve.py does; matplotlib is imported when a picture is drawn.
Floor 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qfleet.comparison.results import Comparison
from qfleet.comparison.wording import AXIS_TITLES, title_of
from qfleet.errors import QfleetError
from qfleet.report.palette import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_NAME = "comparison.png"
THRESHOLD_COLOR, GRID_COLOR = "#5c626c", "#d9dce1"
SIZE, DPI = (10.0, 4.3), 100


def draw_picture(comparison: Comparison, folder: Path) -> Path:
    """Draw folder/comparison.png.

    Raises:
        QfleetError: no cell has been validated yet.
    """
    if not any(curve.x for variant in comparison.variants for curve in variant.curves.values()):
        raise QfleetError(f"{folder}: nothing to draw yet, no cell is finished")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    title = f"{title_of(comparison)}; mean and 95% interval" if len(comparison.seeds) > 1 else title_of(comparison)
    figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    panels = figure.subplots(1, len(AXIS_TITLES), sharey=True)
    for axes, axis in zip(panels, AXIS_TITLES, strict=True):
        _draw_panel(axes, comparison, axis)
    panels[0].set_ylabel("validation return, greedy", fontsize=12)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) > 24 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=12, frameon=False)
    path = folder / PICTURE_NAME
    figure.savefig(path, dpi=DPI)
    return path


def _draw_panel(axes: Axes, comparison: Comparison, axis: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for number, variant in enumerate(comparison.variants):
        color, dashes = style_of(number)
        curve = variant.curves[axis]
        marker = "o" if len(curve.x) == 1 else None
        axes.fill_between(curve.x, curve.low, curve.high, facecolor=color, alpha=0.14, linewidth=0)
        for edge in (curve.low, curve.high):  # bands that overlap need their own edges
            axes.plot(curve.x, edge, color=color, linewidth=0.6, alpha=0.5)
        label = f"{variant.label} ({variant.num_finished} of {variant.num_cells} seeds)"
        if variant.num_finished == variant.num_cells:
            label = variant.label
        axes.plot(curve.x, curve.mean, color=color, dashes=dashes, linewidth=2.2, marker=marker, label=label)
    if comparison.threshold is not None:
        axes.axhline(comparison.threshold, color=THRESHOLD_COLOR, linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)
        if axis == "env_steps":
            axes.plot([], [], color=THRESHOLD_COLOR, linewidth=1.2, linestyle=(0, (2, 2)), label=_threshold(comparison))
    axes.set_xlim(left=0)
    axes.set_xlabel(AXIS_TITLES[axis], fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if axis != "seconds":  # 20k, but no milliseconds
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color=GRID_COLOR, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=11)


def _threshold(comparison: Comparison) -> str:
    return f"threshold {comparison.threshold:g}"
