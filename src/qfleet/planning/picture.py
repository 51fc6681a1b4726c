"""The picture of a plan: speed-up against the ideal line, and time against money with the Pareto front.

Draws on matplotlib's Agg canvas without pyplot, as curve.py does; matplotlib is imported when a picture is drawn.
Floor 7.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qfleet.errors import QfleetError
from qfleet.planning.curves import FRONT, IDEAL, costs, front, ideal, speedups
from qfleet.planning.results import PlanResult
from qfleet.planning.wording import title_of
from qfleet.report.palette import style_of
from qfleet.report.scale import log_ticks, tick_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, DPI = (10.0, 4.6), 100
GRID_COLOR, IDEAL_COLOR, FRONT_COLOR = "#d9dce1", "#5c626c", "#e3b341"


def draw_picture(result: PlanResult, path: Path) -> None:
    """Draw `path`, a PNG.

    Raises:
        QfleetError: there is nothing to draw.
    """
    if not any(row.timing is not None for row in result.rows):
        raise QfleetError(f"{path}: nothing to draw, no configuration could be planned")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title_of(result), fontsize=14, fontweight="bold", x=0.01, ha="left")
    left, right = figure.subplots(1, 2)
    _draw_speedups(left, result)
    _draw_costs(right, result)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=11, frameon=False)
    figure.savefig(path, dpi=DPI)


def _draw_speedups(axes: Axes, result: PlanResult) -> None:
    line = ideal(result)
    axes.plot(line.x, line.y, color=IDEAL_COLOR, linewidth=1.2, linestyle=(0, (2, 2)), label=IDEAL)
    for number, curve in enumerate(speedups(result)):
        if curve.x:
            color, dashes = style_of(number)
            axes.plot(curve.x, curve.y, color=color, dashes=dashes, linewidth=2.0, marker=".", label=curve.label)
    axes.set_xlabel("workers", fontsize=12)
    axes.set_ylabel("speed-up", fontsize=12)
    _finish(axes)


def _draw_costs(axes: Axes, result: PlanResult) -> None:
    line = front(result)
    axes.plot(line.x, line.y, color=FRONT_COLOR, linewidth=6.0, alpha=0.6, marker="o", markersize=11, label=FRONT)
    for number, curve in enumerate(costs(result)):
        if curve.x:
            color, dashes = style_of(number)
            axes.plot(curve.x, curve.y, color=color, dashes=dashes, linewidth=1.4, marker=".")
    axes.set_xlabel(f"money ({result.prices['currency']}); wide and yellow: the Pareto front", fontsize=12)
    axes.set_ylabel("seconds", fontsize=12)
    _finish(axes)


def _finish(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, span, most in ((axes.xaxis, axes.get_xlim(), 4), (axes.yaxis, axes.get_ylim(), 5)):
        axis.set_major_locator(FixedLocator(log_ticks(*span, most)))  # few enough for 0.00035 beside 0.0003
        axis.set_major_formatter(lambda value, _: tick_label(value))  # 1k and 0.02 rather than powers of ten
        axis.set_minor_locator(NullLocator())
    axes.grid(color=GRID_COLOR, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=11)
