"""Processes of this machine by number and start time: a number used again is not taken for its former owner.

And what a process of ours asks of glibc.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True, slots=True)
class Process:
    """A process; `started` is its start in clock ticks since boot, "" where the system does not tell."""

    pid: int
    started: str


def this_process() -> Process:
    """The caller's."""
    return Process(os.getpid(), _started(os.getpid()) or "")


def is_running(process: Process) -> bool:
    """Whether it is there still; one that has ended and was not yet collected by its parent is not."""
    return bool(process.started) and _started(process.pid) == process.started


def end(process: Process) -> None:
    """SIGKILL, which a frozen process dies of too."""
    if is_running(process):
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def wait_until_gone(processes: list[Process], seconds: float) -> list[Process]:
    """Wait for processes to end; returns those that have not."""
    deadline = time.monotonic() + seconds
    left = [process for process in processes if is_running(process)]
    while left and time.monotonic() < deadline:
        time.sleep(0.005)
        left = [process for process in left if is_running(process)]
    return left


def _started(pid: int) -> str | None:
    """Field 22 of /proc/<pid>/stat; None if there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def keep_large_blocks() -> None:
    """Let glibc reuse blocks of up to 32 MiB: it would give each back at once, and have every page zeroed anew.

    An update from images allocates a hundred megabytes of activations. Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
