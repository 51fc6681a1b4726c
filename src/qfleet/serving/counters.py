"""What a server counts, and how Prometheus is told.

A worker adds to a row of its own in a file that all workers map, so that whichever of them is asked answers for all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

LATENCY_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
STATUSES = (200, 400, 401, 405, 408, 413, 415, 429, 503)
_LATENCY = 0
_LATENCY_SUM = _LATENCY + len(LATENCY_SECONDS) + 1
_BATCH = _LATENCY_SUM + 1
_BATCH_SUM = _BATCH + len(BATCH_SIZES) + 1
_STATUS = _BATCH_SUM + 1
_QUEUE = _STATUS + len(STATUSES) + 1
_RELOADS = _QUEUE + 1
_REFUSED_RELOADS = _RELOADS + 1
_FAILED_INFERENCES = _REFUSED_RELOADS + 1
ROW = _FAILED_INFERENCES + 1


class Counters:
    """The row of one worker.

    Args:
        path: the file that all workers share, made by `make_file`; None for a server of one process.
        worker: which row is this process's.
    """

    def __init__(self, path: str | None = None, worker: int = 0) -> None:
        self._rows = np.zeros((1, ROW)) if path is None else np.memmap(path, np.float64, "r+").reshape(-1, ROW)
        self._row = self._rows[worker if path is not None else 0]
        self._row[_QUEUE] = 0.0  # a worker that was restarted has nothing waiting
        self._status_index = {status: _STATUS + index for index, status in enumerate(STATUSES)}

    @staticmethod
    def make_file(path: Path, num_workers: int) -> None:
        """A file of zeros with a row for each worker."""
        path.write_bytes(bytes(8 * ROW * num_workers))

    def answered(self, status: int, seconds: float) -> None:
        """One answer of /v1/act, whatever it was."""
        row = self._row
        row[self._status_index.get(status, _QUEUE - 1)] += 1.0
        if status == 200:
            row[_LATENCY + bisect_left(LATENCY_SECONDS, seconds)] += 1.0
            row[_LATENCY_SUM] += seconds

    def inferred(self, num_rows: int) -> None:
        """One inference of a batch."""
        self._row[_BATCH + bisect_left(BATCH_SIZES, num_rows)] += 1.0
        self._row[_BATCH_SUM] += num_rows

    def queued(self, num_rows: int) -> None:
        """How many observations wait now."""
        self._row[_QUEUE] = num_rows

    def failed(self) -> None:
        """An inference that raised."""
        self._row[_FAILED_INFERENCES] += 1.0

    def reloaded(self, *, refused: bool = False) -> None:
        """A new model was taken, or refused."""
        self._row[_REFUSED_RELOADS if refused else _RELOADS] += 1.0

    def exposition(self, version: str) -> bytes:
        """All workers' numbers in Prometheus's text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Totals(self._rows.sum(axis=0), version))
        return generate_latest(registry)


class _Totals(Collector):
    def __init__(self, row: np.ndarray, version: str) -> None:
        self._row = row
        self._version = version

    def collect(self) -> Iterator[Metric]:
        row = self._row
        yield _histogram("qfleet_act_seconds", "Seconds from a request's headers to its answer.", LATENCY_SECONDS, row)
        yield _histogram("qfleet_batch_size", "Observations in one inference.", BATCH_SIZES, row[_BATCH:])
        answers = CounterMetricFamily("qfleet_act_answers", "Answers of /v1/act by status.", labels=["status"])
        for index, status in enumerate([*map(str, STATUSES), "other"]):
            answers.add_metric([status], row[_STATUS + index])
        yield answers
        yield GaugeMetricFamily("qfleet_queue_observations", "Observations that wait.", row[_QUEUE])
        reloads = CounterMetricFamily("qfleet_reloads", "New models, by what became of them.", labels=["result"])
        reloads.add_metric(["taken"], row[_RELOADS])
        reloads.add_metric(["refused"], row[_REFUSED_RELOADS])
        yield reloads
        yield CounterMetricFamily("qfleet_failed_inferences", "Inferences that raised.", row[_FAILED_INFERENCES])
        model = GaugeMetricFamily("qfleet_model", "The model that acts in the worker that answers.", labels=["version"])
        model.add_metric([self._version], 1.0)
        yield model


def _histogram(name: str, text: str, bounds: tuple[float, ...], counts: np.ndarray) -> HistogramMetricFamily:
    """A histogram whose counts, one above all bounds, and sum stand at the start of a row."""
    cumulative = np.cumsum(counts[: len(bounds) + 1])
    labels = [*map(str, bounds), "+Inf"]
    buckets = list(zip(labels, cumulative.tolist(), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=float(counts[len(bounds) + 1]))
