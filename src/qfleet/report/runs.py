"""What a run directory tells, be the run finished or under way; nothing in it is ever written. Floor 7.

find_runs  folders that were named -> run directories; a series stands for its seeds
read_run   config.toml, metrics.jsonl, summary.json, machine.json, the newest checkpoint's lags -> Run
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from qfleet.errors import CheckpointError, QfleetError, UsageError, in_one_line
from qfleet.histogram import LagHistogram
from qfleet.machine import is_running, read_machines
from qfleet.metrics import read_metrics
from qfleet.recipe import read_config
from qfleet.report.measures import Measured, Trace, read_trace
from qfleet.run_config import RunConfig
from qfleet.run_dir import why_no_run

SO_FAR = (
    "num_env_steps", "num_updates", "num_episodes", "train_seconds", "env_steps_per_second", "updates_per_second",
)  # fmt: skip
State = Literal["finished", "under way", "stopped"]
Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as far as it has been written down.

    Attributes:
        path: its directory.
        config: its configuration.
        state: "stopped" is neither finished nor held by a process of this machine.
        summary: summary.json of a finished run; else what its newest records tell, by the same names.
        trace: its validations.
        train: records of its training, in order.
        num_restarts: of roles, by cause.
        machines: where it was started and resumed.
        target: the return it was to reach; None without one.
    """

    path: Path
    config: RunConfig
    state: State
    summary: Values
    trace: Trace
    train: Sequence[Values]
    num_restarts: Mapping[str, int]
    machines: Sequence[Mapping[str, str]]
    target: float | None

    @property
    def measured(self) -> Measured:
        """For the measures of measures.py."""
        return Measured(self.summary, self.trace, self.target)

    @property
    def num_env_steps(self) -> int:
        """How far it has come."""
        return int(number(self.summary, "num_env_steps") or 0)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A directory that was named and is no run, or a damaged one; `why` is one line."""

    path: Path
    why: str


def number(values: Values, name: str) -> float | None:
    """A number among JSON values; None where there is none of that name."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else None


def table_of(values: Values, name: str) -> Values:
    """A table among JSON values; empty where there is none of that name."""
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Run directories in the order given, each once; a series and a comparison stand for their runs, in order of seeds.

    What holds no run is handed on, so that reading it says what is wrong.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        pattern = "runs/*/seed-*/config.toml" if (folder / "comparison.json").is_file() else "seed-*/config.toml"
        members = [] if (folder / "config.toml").is_file() else list(folder.glob(pattern))
        for path in sorted((member.parent for member in members), key=_seed) or [folder]:
            found[path] = None
    return list(found)


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[Unreadable]]:
    """Those that can be read, and those that cannot."""
    runs, unreadable = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except QfleetError as error:
            why = in_one_line(error)
            unreadable.append(Unreadable(path, why.removeprefix(f"{path}: ")))
    return runs, unreadable


def read_run(path: Path) -> Run:
    """A run.

    Raises:
        UsageError: there is none.
        ConfigError, CheckpointError: a file is damaged, or of another program.
    """
    if not (path / "config.toml").is_file():
        raise UsageError(f"{path}: {why_no_run(path)}")
    try:
        config = read_config(path / "config.toml")
        summary: Values | None = None
        if (path / "summary.json").is_file():
            summary = json.loads((path / "summary.json").read_bytes())
            if not isinstance(summary, dict):
                raise ValueError("summary.json holds no table")
        records = [cast(Values, record) for record in read_metrics(path)]
        train = [record for record in records if record["kind"] == "train"]
        trace = read_trace(path)
        known = summary if summary is not None else _so_far(path, config, train)
        restarts = {
            name.removeprefix("restarts."): int(str(count))
            for name, count in table_of(known, "tallies").items()
            if name.startswith("restarts.")
        }
    except QfleetError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: a damaged run ({type(error).__name__}: {error})") from error
    state: State = "finished" if summary is not None else "under way" if is_running(path) else "stopped"
    target = number(known, "target_return")
    return Run(path, config, state, known, trace, train, restarts, read_machines(path), target)


def fingerprint(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """What changes when a run writes something that a report shows: names, sizes and times of its files."""
    seen = []
    for path in paths:
        for name in ("config.toml", "metrics.jsonl", "summary.json"):
            try:
                facts = (path / name).stat()
            except OSError:
                continue
            seen.append((f"{path}/{name}", facts.st_size, facts.st_mtime_ns))
    return tuple(seen)


def _so_far(path: Path, config: RunConfig, train: Sequence[Values]) -> Values:
    """A summary of a run that has none yet."""
    last = train[-1] if train else {}
    shares = {name.removeprefix("share_"): value for name, value in last.items() if name.startswith("share_")}
    known = {name: last[name] for name in SO_FAR if name in last}
    asked = config.stop.until_return
    return {
        **known,
        "target_return": asked if isinstance(asked, int | float) else _registered(path) if asked != "never" else None,
        "time_shares": shares,
        "lags": _newest_lags(path),
        "samples_per_insert_asked": config.pace.samples_per_insert,
        "samples_per_insert_measured": last.get("samples_per_insert"),
        "tallies": {name: value for name, value in last.items() if name.startswith("restarts.")},
    }


def _registered(path: Path) -> float | None:
    """The environment's threshold, which the best policy so far says."""
    try:
        return number(json.loads((path / "best" / "policy.json").read_bytes())["spec"], "return_threshold")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _newest_lags(path: Path) -> Values:
    """Histograms of lags as of the newest checkpoint; metrics.jsonl holds no histograms."""
    manifests = sorted(path.glob("checkpoints/manifest-*.json"))
    try:
        states = json.loads(manifests[-1].read_bytes())["session"]["tracker"]["lags"]
        return {name: LagHistogram.of_state(state).summary() for name, state in states.items()}
    except (IndexError, OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        return {}


def _seed(path: Path) -> tuple[str, int, str]:
    digits = re.sub(r"\D", "", path.name)
    return path.parent.name, int(digits or 0), path.name
