"""Changing a run while it runs: `qfleet scale` leaves a wish in RUN_DIR/control.json, the session looks for it.

Floor 6.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from qfleet.storage import write_file

CONTROL_NAME = "control.json"
LOOK_SECONDS = 1.0


def ask_workers(run_dir: Path, num_workers: int) -> None:
    """Leave the wish for `num_workers` workers, in one step.

    Raises:
        QfleetError: it cannot be written.
    """
    write_file(run_dir, CONTROL_NAME, json.dumps({"num_workers": num_workers}).encode())


class Steering:
    """The running side: reads each new wish once.

    A wish is for the process that runs now: one that an earlier process has left is removed.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / CONTROL_NAME
        self._path.unlink(missing_ok=True)
        self._seen: tuple[int, int] | None = None
        self._next = 0.0

    def poll(self) -> int | None:
        """The number of workers wished for since the last look, None if there is no new wish; looks once a second."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + LOOK_SECONDS
        try:
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_ino) == self._seen:
                return None
            self._seen = (status.st_mtime_ns, status.st_ino)
            wanted = json.loads(self._path.read_bytes())["num_workers"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # no wish, or none of ours
        return wanted if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1 else None
