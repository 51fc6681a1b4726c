"""How much memory a replay may take: asked before anything is allocated, refused in one line.

The ring is committed lazily by the operating system, so an oversized one would fail hours later, when it fills.
Reads the limits of control groups (versions 1 and 2) and /proc/meminfo; elsewhere the physical memory.
"""

from __future__ import annotations

import os
from pathlib import Path

from qfleet.errors import ConfigError

_MIB = 1 << 20
_SUGGESTED_SHARE = 0.9  # of what is available; the rest is for networks and environments


def check_memory(capacity: int, required: int, available: int | None = None) -> None:
    """Refuses a replay of `capacity` transitions whose `required` bytes exceed the `available` ones.

    Args:
        capacity: number of transitions asked for (the field `replay.capacity`).
        required: bytes that the full replay takes, see `storage.required_bytes`.
        available: bytes to compare with; None asks the machine.

    Raises:
        ConfigError: it does not fit; the message says what is asked, what there is and which capacity would fit.
    """
    if available is None:
        available = available_memory()
    if available is None or required <= available:
        return
    fitting = int(capacity * _SUGGESTED_SHARE * available / required)
    raise ConfigError(
        f"replay.capacity: {capacity} transitions take {required / _MIB:,.0f} MiB when full, "
        f"but {available / _MIB:,.0f} MiB are available; at most {fitting} would fit"
    )


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process may still take: the smallest of the machine's and its control groups' room.

    Args:
        proc: where the kernel's process files are.
        cgroups: where control groups are mounted.

    Returns:
        bytes, or None where nothing tells.
    """
    rooms = [_meminfo_available(proc), *_cgroup_rooms(proc, cgroups)]
    known = [room for room in rooms if room is not None]
    return max(min(known), 0) if known else None


def _meminfo_available(proc: Path) -> int | None:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _cgroup_rooms(proc: Path, cgroups: Path) -> list[int]:
    """The room left in each control group that this process is in, ancestors included: each of them can refuse."""
    rooms = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = (
                cgroups / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # Inside a container the path may be the host's; then only the mounted root is there to be read.
        folder = root / path.strip("/")
        for group in [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]:
            room = _group_room(group, limit, usage, cache)
            if room is not None:
                rooms.append(room)
    return rooms


def _group_room(group: Path, limit: str, usage: str, cache: str) -> int | None:
    limit_text, usage_text = _read(group / limit).strip(), _read(group / usage).strip()
    if not limit_text.isdigit() or not usage_text.isdigit():  # version 2 writes "max" for no limit
        return None
    # The page cache that nobody uses counts as usage, but the kernel gives it back before it refuses memory.
    reclaimable = 0
    for line in _read(group / "memory.stat").splitlines():
        if line.split()[:1] == [cache]:
            reclaimable = int(line.split()[1])
    return int(limit_text) - int(usage_text) + reclaimable


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
