"""What a run writes down while it goes: metrics.jsonl (the source of every curve) and TensorBoard events.

What goes elsewhere too is in remote_logs.py. Floor 6.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qfleet.errors import QfleetError
from qfleet.histogram import LagHistogram
from qfleet.remote_logs import RemoteLog

Record = dict[str, float | int | str | None]


class MetricsWriter:
    """Appends records, each one JSON object on a line.

    Args:
        run_dir: the run directory.
        tensorboard: write TensorBoard events too, under run_dir/tensorboard.
        offset: length in bytes that metrics.jsonl is cut to first; a resumed run drops what came after its checkpoint.
        resumed_at: the env step of that checkpoint.
        remote: where else numbers go; closed with this.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        tensorboard: bool,
        offset: int = 0,
        resumed_at: int | None = None,
        remote: Sequence[RemoteLog] = (),
    ) -> None:
        self._remote = list(remote)
        self.path = run_dir / "metrics.jsonl"
        self._file = self.path.open("ab")
        self._file.truncate(min(offset, self.path.stat().st_size))
        self._file.seek(0, 2)
        self._events = EventLog(run_dir / "tensorboard", resumed_at) if tensorboard else None

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(
        self, kind: str, num_env_steps: int, values: Record, histograms: Mapping[str, LagHistogram] | None = None
    ) -> None:
        """One record; `kind` is "train", "evaluation" or "event". Numbers go to TensorBoard too, and so do histograms.

        A remote log that fails is left out from then on, and an event RemoteLogLost says so.

        Raises:
            QfleetError: the disk is full.
        """
        record = {"kind": kind, "num_env_steps": num_env_steps, **values}
        numbers = {f"{kind}/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            if self._events is not None:
                self._events.write(num_env_steps, numbers)
                self._events.write_histograms(
                    num_env_steps, {f"{kind}/{name}": value for name, value in (histograms or {}).items()}
                )
        except OSError as error:
            raise QfleetError(
                f"cannot write {self.path}: {error.strerror or error}; free space and --resume"
            ) from error
        for log in list(self._remote):
            try:
                log.write(num_env_steps, numbers)
            except Exception as error:  # its own errors have no common base; the run is worth more than its copy
                self._remote.remove(log)
                why = f"{type(error).__name__}: {error}"
                self.write("event", num_env_steps, {"event": "RemoteLogLost", "log": log.name, "why": why})

    def close(self) -> None:
        """Close the files."""
        # Each write flushes, so that closing fails only where a write has failed, and has been reported, before.
        with contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
        for log in self._remote:
            with contextlib.suppress(Exception):
                log.close()


class EventLog:
    """TensorBoard scalars and histograms, by TensorBoard's own record writer (torch's takes a second to import).

    Args:
        folder: the log directory.
        resumed_at: env step from which on TensorBoard is to forget what was written before; None for a new run.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = Event
        self._summary: Any = Summary
        self._histogram: Any = HistogramProto
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))
        if resumed_at is not None:
            self._writer.add_event(Event(step=resumed_at + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Scalars by tag, at an env step."""
        summary = self._summary(
            value=[self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def write_histograms(self, step: int, histograms: Mapping[str, LagHistogram]) -> None:
        """Histograms by tag, at an env step; one bucket each for the lags that occurred."""
        values = []
        for tag, histogram in histograms.items():
            rows = histogram.rows()
            proto = self._histogram(
                min=0.0,
                max=float(histogram.largest),
                num=float(histogram.num),
                sum=float(histogram.total),
                bucket_limit=[high + 0.5 for _, high, _ in rows],
                bucket=[float(count) for _, _, count in rows],
            )
            values.append(self._summary.Value(tag=tag, histo=proto))
        if values:
            summary = self._summary(value=values)
            self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All records of a run; a last line that was cut off by a crash is left out."""
    records = []
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
