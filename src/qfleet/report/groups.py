"""Runs of one configuration belong together: they differ in their seed, and in how they were logged and saved only.

A group is named by what tells it from the others. Floor 7.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qfleet.histogram import LagHistogram, bucket_of
from qfleet.outcome import describe_roles
from qfleet.report.estimates import Curve, Estimate, Floats, estimate, mean_curve
from qfleet.report.measures import MEASURES
from qfleet.report.runs import Run, number, table_of
from qfleet.run_config import RunConfig

# What does not decide how a run learns or how fast, so that runs which differ in it are of one configuration.
APART = ("seed", "logging", "checkpoint")
NAMED = ("env.id", "algo.name", "strategy.name", "engine.name")
LEAST = ("stop.", "evaluation.", "device", "num_threads")
MOST_NAMED = 3  # fields in a label
Flat = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one configuration.

    Attributes:
        label: short, unlike any other group's.
        runs: in the order of their seeds.
        config: every field by its dotted name, as text.
    """

    label: str
    runs: Sequence[Run]
    config: Flat

    @property
    def about(self) -> str:
        """Algorithm, strategy, engine and roles."""
        config = self.runs[0].config
        return ", ".join([config.algo.name, config.strategy.name, config.engine.name, *describe_roles(config)])

    def measures(self) -> dict[str, Estimate]:
        """By name of MEASURES, those that its runs have."""
        found = {}
        for measure in MEASURES:
            values = [value for run in self.runs if (value := measure.read(run.measured)) is not None]
            over_seeds = estimate(values, measure.statistic)
            if over_seeds is not None:
                found[measure.name] = over_seeds
        return found

    def curve(self, axis: str) -> Curve:
        """Validation returns against an axis of measures.py."""
        return mean_curve([run.trace.curve(axis) for run in self.runs])

    def train_curve(self, x: str, y: str) -> Curve:
        """A number of the training records against another one."""
        return mean_curve([_columns(run, x, y) for run in self.runs])

    def mean(self, name: str) -> float | None:
        """A number of the runs' summaries, on average."""
        values = [value for run in self.runs if (value := number(run.summary, name)) is not None]
        return float(np.mean(values)) if values else None

    def time_shares(self) -> dict[str, float]:
        """Shares of time by activity, on average over the runs that tell any."""
        told = [shares for run in self.runs if (shares := table_of(run.summary, "time_shares"))]
        names = dict.fromkeys(name for shares in told for name in shares)
        return {name: sum(number(shares, name) or 0.0 for shares in told) / len(told) for name in names}

    def lags(self, name: str) -> LagHistogram:
        """The lags of a name, over all runs."""
        found = LagHistogram()
        for run in self.runs:
            lag = table_of(table_of(run.summary, "lags"), name)
            rows = lag.get("rows")
            for low, _, count in rows if isinstance(rows, list) else ():
                found.counts[bucket_of(int(low))] += int(count)
                found.num += int(count)
            found.total += round((number(lag, "mean") or 0.0) * (number(lag, "num") or 0.0))
            found.largest = max(found.largest, int(number(lag, "max") or 0))
        return found

    def restarts(self) -> dict[str, int]:
        """Restarts of roles by cause, over all runs."""
        counts: dict[str, int] = {}
        for run in self.runs:
            for cause, count in run.num_restarts.items():
                counts[cause] = counts.get(cause, 0) + count
        return counts


def make_groups(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(flat_config(run.config), sort_keys=True), []).append(run)
    configs = [flat_config(found[0].config) for found in members.values()]
    labels = _labels(configs)
    return [
        Group(label, sorted(found, key=lambda run: run.config.seed), config)
        for label, found, config in zip(labels, members.values(), configs, strict=True)
    ]


def flat_config(config: RunConfig) -> Flat:
    """Every field but those of APART by its dotted name, as text."""
    found: dict[str, str] = {}

    def visit(values: Mapping[str, object], prefix: str) -> None:
        for name, value in values.items():
            if prefix + name in APART:
                continue
            if isinstance(value, dict) and value:
                visit(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value if isinstance(value, str) else json.dumps(value)

    visit(config.model_dump(mode="json", by_alias=True), "")
    return found


def differences(configs: Sequence[Flat]) -> dict[str, list[str | None]]:
    """Fields that are not the same in all configurations, with the value in each; None where one has no such field."""
    names = dict.fromkeys(name for config in configs for name in config)
    rows = {name: [config.get(name) for config in configs] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _labels(configs: Sequence[Flat]) -> list[str]:
    differing = differences(configs)
    # A field that only one strategy has says no more than the strategy's name does.
    own = [name for name, values in differing.items() if name not in NAMED and None not in values]
    own.sort(key=lambda name: name.startswith(LEAST))  # how long it ran says less than what it did
    labels = []
    for config in configs:
        names = " x ".join(config[name] for name in NAMED[1:])
        parts = [f"{config.get('env.id')}: {names}" if "env.id" in differing else names]
        parts += [f"{name}={config[name]}" for name in own[:MOST_NAMED]]
        labels.append(", ".join(parts))
    counted: dict[str, int] = {}
    for place, label in enumerate(labels):
        counted[label] = counted.get(label, 0) + 1
        if counted[label] > 1:
            labels[place] = f"{label} ({counted[label]})"
    return labels


def _columns(run: Run, x: str, y: str) -> tuple[Floats, Floats]:
    pairs = [(number(record, x), number(record, y)) for record in run.train]
    found = sorted((one, other) for one, other in pairs if one is not None and other is not None)
    return np.array([one for one, _ in found]), np.array([other for _, other in found])
