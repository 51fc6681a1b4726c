"""What happened on a simulated cluster, one JSON line each: the same seed gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from qfleet.errors import ConfigError


class EventLog:
    """Writes events in the order of the virtual clock.

    Args:
        path: where to; None writes nothing.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self._file: IO[str] | None = None
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115
            except OSError as error:
                raise ConfigError(
                    f"engine.event_log = {path!r}: {error.strerror or error}; name another file"
                ) from None

    @property
    def is_on(self) -> bool:
        """Whether anything is written."""
        return self._file is not None

    def write(self, time: float, event: str, role: str = "", facts: Mapping[str, object] | None = None) -> None:
        """One line: when, what, to whom."""
        if self._file is not None:
            line = {"time": time, "event": event} | ({"role": role} if role else {}) | dict(facts or {})
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """All lines are on disk."""
        if self._file is not None:
            self._file.close()
            self._file = None
