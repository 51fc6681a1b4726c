"""The report of runs as a page: what they learned, how fast, what it cost, how they differ. Floor 7."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from qfleet.histogram import LagHistogram
from qfleet.report.bar_chart import BarChart, Bars, bar_chart, share_bar, share_key
from qfleet.report.estimates import Estimate
from qfleet.report.frame import charts, choice, scrolled, table, td, th, write_page
from qfleet.report.groups import Group, differences
from qfleet.report.line_chart import Line, LineChart, line_chart
from qfleet.report.measures import AXES, MEASURES, Measure
from qfleet.report.runs import Run, Unreadable
from qfleet.report.strip import Strip
from qfleet.report.wording import AXIS_TITLES, NOTHING, interval, middle, written

LAGS = {
    "staleness": "Staleness of pushes",
    "policy_lag": "Policy lag of transitions",
    "priority_age": "Age of priorities",
}
MOST_IN_HISTOGRAM = 8


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page is made from.

    Attributes:
        groups: of runs, at least one.
        unreadable: what was named and could not be read.
        film: the best policy at play, or a sentence why there is none; None to leave that out.
        film_of: the run that it is of.
        command: how it was asked for.
    """

    groups: Sequence[Group]
    unreadable: Sequence[Unreadable] = ()
    film: Strip | str | None = None
    film_of: Run | None = None
    command: str = ""

    @property
    def runs(self) -> list[Run]:
        """Of all groups."""
        return [run for group in self.groups for run in group.runs]


def report_page(report: Report, *, script: str | None = None) -> str:
    """The whole file.

    Args:
        report: what it tells.
        script: see frame.write_page.
    """
    groups = report.groups
    body = [
        f'<p class="quiet" id="state" role="status">{escape(state_of(report))}</p>',
        *(f'<p class="failed">{escape(f"{one.path}: {one.why}")}</p>' for one in report.unreadable),
        *(choice([group.label for group in groups]) if len(groups) > 1 else ()),
        *charts(
            [*(line_chart(_learning(groups, axis)) for axis in AXES), line_chart(_training(groups))],
            [*("validation return, greedy" for _ in AXES), "training return, exploring"],
        ),
        f'<p class="quiet">{_legend(report)}</p>',
        "<h2>Results</h2>",
        *scrolled("Results", _results(report)),
        *(f'<p class="quiet">{escape(line)}</p>' for line in _notes(groups)),
        *_meanings(groups),
        *_film(report),
        "<h2>Time</h2>",
        *_time(groups),
        *_lags(groups),
        *_restarts(groups),
        *_configuration(groups),
        *_machines(report.runs),
        "<h2>Runs</h2>",
        *table("Runs", ["run", "seed", "state", "env steps", "seconds", *(m.title for m in _score())], _runs(report)),
        *([f"<p><code>{escape(report.command)}</code></p>"] if report.command else []),
    ]
    return write_page(
        title_of(report),
        body,
        num_series=len(groups),
        has_images=isinstance(report.film, Strip),
        script=script,
    )


def title_of(report: Report) -> str:
    """What it is about, in a line."""
    envs = list(dict.fromkeys(str(run.config.env.id) for run in report.runs))
    named = ", ".join(envs[:3]) + (f" and {len(envs) - 3} more" if len(envs) > 3 else "")
    if len(report.runs) == 1:
        return f"{named}: {report.groups[0].label}, seed {report.runs[0].config.seed}"
    kinds = "one configuration" if len(report.groups) == 1 else f"{len(report.groups)} configurations"
    return f"{named}: {len(report.runs)} runs of {kinds}"


def state_of(report: Report) -> str:
    """How many runs are in which state."""
    counts = {state: sum(run.state == state for run in report.runs) for state in ("finished", "under way", "stopped")}
    told = [f"{count} {state}" for state, count in counts.items() if count]
    told += [f"{len(report.unreadable)} not readable"] if report.unreadable else []
    steps = sum(run.num_env_steps for run in report.runs)
    return f"{len(report.runs)} run{'s' if len(report.runs) != 1 else ''}: {', '.join(told)}; {steps:,} env steps."


def _learning(groups: Sequence[Group], axis: str) -> LineChart:
    curves = [(group, group.curve(axis)) for group in groups]
    ends = [
        f"{group.label} ends at {curve.mean[-1]:.1f} ({curve.low[-1]:.1f} to {curve.high[-1]:.1f})"
        for group, curve in curves
        if curve.x
    ]
    return LineChart(
        name=axis,
        title=f"Validation return against {AXIS_TITLES[axis]}",
        x_title=AXIS_TITLES[axis],
        lines=[Line(group.label, curve.x, curve.mean, curve.low, curve.high) for group, curve in curves],
        words="Mean over seeds with 95% interval: " + "; ".join(ends) + ".",
        level=_target([run for group in groups for run in group.runs]),
    )


def _target(runs: Sequence[Run]) -> float | None:
    """The target of all runs, None where they have several or none; one without a target does not change it."""
    targets = {run.target for run in runs} - {None}
    return next(iter(targets)) if len(targets) == 1 else None


def _training(groups: Sequence[Group]) -> LineChart:
    curves = [(group, group.train_curve("num_env_steps", "mean_return")) for group in groups]
    return LineChart(
        name="training",
        title="Training return, exploring, against env steps",
        x_title="env steps",
        lines=[Line(group.label, curve.x, curve.mean, curve.low, curve.high) for group, curve in curves],
        words="Mean of the last 100 training episodes, mean over seeds.",
    )


def _legend(report: Report) -> str:
    level = _target(report.runs)
    target = "" if level is None else f" Dotted: the target, {level:g}."
    band = ", bands their 95% bootstrap intervals" if any(len(group.runs) > 1 for group in report.groups) else ""
    return (
        f"Lines are means over seeds of the greedy validation return{band}; both go as far as every seed has values. "
        f"The last chart is of training episodes, with exploration.{target}"
    )


def _results(report: Report) -> Iterable[str]:
    found = [group.measures() for group in report.groups]
    shown = [measure for measure in MEASURES if any(any(_seeds(one, measure)) for one in found)]
    has_target = any(run.target is not None for run in report.runs)
    heads = "".join(th(measure.title) for measure in shown) + (th("reached its target") if has_target else "")
    yield f"<thead><tr>{th('configuration')}{heads}</tr></thead><tbody>"
    for group, measures in zip(report.groups, found, strict=True):
        cells = [
            td(middle(measures.get(one.name), one.format), interval(measures.get(one.name), one.format))
            for one in shown
        ]
        cells += [td(_reached(group))] if has_target else []
        seeds = f"{len(group.runs)} seed{'s' if len(group.runs) != 1 else ''}, {group.about}"
        yield f'<tr><th scope="row">{escape(group.label)}<small>{escape(seeds)}</small></th>{"".join(cells)}</tr>'
    yield "</tbody>"


def _seeds(measures: dict[str, Estimate], measure: Measure) -> list[float]:
    found = measures.get(measure.name)
    return found.seeds if found is not None else []


def _reached(group: Group) -> str:
    aimed = [run for run in group.runs if run.target is not None]
    there = [run for run in aimed if (run.trace.reach("env_steps", run.target) or math.inf) < math.inf]
    return f"{len(there)} of {len(aimed)}" if aimed else NOTHING


def _notes(groups: Sequence[Group]) -> list[str]:
    fewest = min(len(group.runs) for group in groups)
    found = []
    if fewest == 1:
        found.append("A single seed says nothing of the spread: it has no interval.")
    elif fewest <= 3:
        found.append(f"With {fewest} seeds a 95% bootstrap interval goes from the least to the most.")
    if any(group.runs[0].config.engine.name == "inline" for group in groups):
        found.append(
            "Engine inline runs all roles in one thread: seconds are of all the work, not of machines side by side."
        )
    return found


def _meanings(groups: Sequence[Group]) -> Iterable[str]:
    found = [group.measures() for group in groups]
    yield "<details><summary>What the columns mean</summary><dl>"
    for measure in MEASURES:
        if any(any(_seeds(one, measure)) for one in found):
            over = f"{measure.statistic} over seeds; the small line is its 95% bootstrap interval"
            yield f"<dt>{escape(measure.title)}</dt><dd>{escape(measure.meaning)} <small>{over}.</small></dd>"
    yield "</dl></details>"


def _film(report: Report) -> Iterable[str]:
    if report.film is None or report.film_of is None:
        return
    yield "<h2>The best policy at play</h2>"
    if isinstance(report.film, str):
        yield f'<p class="quiet">{escape(f"No frames: {report.film}.")}</p>'
        return
    shown = report.film
    end = "its end" if shown.is_whole else f"its first {shown.num_env_steps:,} env steps"
    told = (
        f"{report.film_of.path}: a greedy episode from its start to {end}; return {shown.episode_return:g} after "
        f"{shown.num_env_steps:,} env steps."
    )
    yield '<div class="scroll" role="region" aria-label="Frames" tabindex="0">'
    yield (
        f'<img src="{shown.picture}" width="{shown.width}" height="{shown.height}" alt="{escape(told)}" '
        'style="display: block"/></div>'
    )
    yield f'<p class="quiet">{escape(told)}</p>'


def _time(groups: Sequence[Group]) -> Iterable[str]:
    curves = [(group, group.train_curve("train_seconds", "env_steps_per_second")) for group in groups]
    chart = LineChart(
        name="throughput",
        title="Env steps per second against seconds of training",
        x_title="seconds of training",
        lines=[Line(group.label, curve.x, curve.mean, curve.low, curve.high) for group, curve in curves],
        words="Env steps per second of training since learning began, mean over seeds.",
    )
    shares = [(group, group.time_shares()) for group in groups]
    names = list(dict.fromkeys(name for _, found in shares for name in found))
    yield from charts([line_chart(chart)], ["env steps per second"])
    if names:
        yield from share_key(names)
        yield from scrolled("Shares of time", _share_rows(shares, names))
    yield "<h3>Replay ratio</h3>"
    heads = ["configuration", "asked", "measured", "env steps/s", "updates/s"]
    yield from table("Replay ratio and throughput", heads, map(_pace_row, groups))


def _share_rows(shares: Sequence[tuple[Group, dict[str, float]]], names: Sequence[str]) -> Iterable[str]:
    yield f"<thead><tr>{th('configuration')}{th('share of time')}{''.join(map(th, names))}</tr></thead><tbody>"
    for group, found in shares:
        cells = "".join(td(f"{found[name]:.0%}" if name in found else NOTHING) for name in names)
        bar = f"<td>{share_bar(group.label, found, names)}</td>"
        yield f'<tr><th scope="row">{escape(group.label)}</th>{bar}{cells}</tr>'
    yield "</tbody>"


def _pace_row(group: Group) -> list[str]:
    ratio = [group.mean(f"samples_per_insert_{kind}") for kind in ("asked", "measured")]
    rates = [group.mean(f"{kind}_per_second") for kind in ("env_steps", "updates")]
    return [
        group.label,
        *(NOTHING if value is None else f"{value:.2f}" for value in ratio),
        *(NOTHING if value is None else written(value, "rate") for value in rates),
    ]


def _lags(groups: Sequence[Group]) -> Iterable[str]:
    """Histograms of the lags that occur, as shares, and their numbers."""
    found = {name: [(number, group.label, group.lags(name)) for number, group in enumerate(groups)] for name in LAGS}
    found = {name: [one for one in of if one[2].num] for name, of in found.items()}
    if not any(found.values()):
        return
    yield "<h2>Lags, in parameter versions</h2>"
    there = [name for name, of in found.items() if of]
    yield from charts(
        [_lag_chart(name, found[name][:MOST_IN_HISTOGRAM]) for name in there],
        [f"{LAGS[name].lower()}, share" for name in there],
    )
    if max(map(len, found.values())) > MOST_IN_HISTOGRAM:
        yield f'<p class="quiet">The histograms are of the first {MOST_IN_HISTOGRAM} configurations.</p>'
    rows = [
        [label, LAGS[name].lower(), *(f"{value:g}" for value in lags.numbers().values())]
        for name, of in found.items()
        for _, label, lags in of
    ]
    yield from table("Lags", ["configuration", "of", "mean", "median", "95%", "most"], rows)


def _lag_chart(name: str, of: Sequence[tuple[int, str, LagHistogram]]) -> str:
    counted = [(number, label, {row[:2]: row[2] / lags.num for row in lags.rows()}) for number, label, lags in of]
    buckets = sorted({bucket for _, _, shares in counted for bucket in shares})
    labels = [str(low) if low == high else f"{low}+" for low, high in buckets]
    bars = [Bars(label, [shares.get(one, 0.0) for one in buckets], number) for number, label, shares in counted]
    words = f"{LAGS[name]}: share of each lag, from {labels[0]} to {labels[-1]}; the table below has the numbers."
    return bar_chart(BarChart(f"lag-{name}", LAGS[name], "versions", labels, bars, words))


def _restarts(groups: Sequence[Group]) -> Iterable[str]:
    found = [(group, group.restarts()) for group in groups]
    causes = list(dict.fromkeys(cause for _, counts in found for cause in counts))
    yield "<h2>Restarts of roles</h2>"
    if not causes:
        yield '<p class="quiet">None.</p>'
        return
    rows = [[group.label, *(f"{counts.get(cause, 0):,}" for cause in causes)] for group, counts in found]
    yield from table("Restarts by cause", ["configuration", *causes], rows)


def _configuration(groups: Sequence[Group]) -> Iterable[str]:
    yield "<h2>Configuration</h2>"
    differing = differences([group.config for group in groups])
    if len(groups) > 1:
        rows = [
            [name, *(NOTHING if value is None else value for value in values)] for name, values in differing.items()
        ]
        yield "<h3>What differs</h3>"
        yield from table("Differences", ["field", *(group.label for group in groups)], rows)
    shared = [[name, value] for name, value in groups[0].config.items() if name not in differing]
    yield f"<details><summary>{'What they share' if len(groups) > 1 else 'All of it'}</summary>"
    yield from table("Configuration", ["field", "value"], shared)
    yield "</details>"


def _machines(runs: Sequence[Run]) -> Iterable[str]:
    """Each machine and set of versions once, with how many starts of runs it saw."""
    yield "<h2>Hardware and versions</h2>"
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for run in runs:
        for start in run.machines:
            key = tuple((name, value) for name, value in start.items() if name != "time")
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        yield '<p class="quiet">These runs did not write down where they ran.</p>'
        return
    names = list(dict.fromkeys(name for key in counts for name, _ in key))
    rows = [[f"{count}", *(dict(key).get(name, NOTHING) for name in names)] for key, count in counts.items()]
    yield from table("Hardware and versions", ["starts", *names], rows)


def _score() -> list[Measure]:
    return [measure for measure in MEASURES if measure.name in ("held_out_return", "average_return")]


def _runs(report: Report) -> Iterable[list[str]]:
    for group in report.groups:
        for run in group.runs:
            seconds = run.summary.get("train_seconds")
            values = [measure.read(run.measured) for measure in _score()]
            yield [
                str(Path(run.path)),
                str(run.config.seed),
                run.state,
                f"{run.num_env_steps:,}",
                NOTHING if seconds is None else f"{float(str(seconds)):.2f}",
                *(NOTHING if value is None else written(value, "return") for value in values),
            ]
