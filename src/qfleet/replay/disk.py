"""Arrays in files of their own, for a replay that is larger than memory: written and read through the page cache.

Beside memory.py, below storage.py and frames.py. A file has its whole size from the beginning, so that a disk without
room for it is known before the first transition, and it has no name: the system takes it away with its process, however
that ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from qfleet.errors import ConfigError
from qfleet.types import Array

_MIB = 1 << 20


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any], directory: Path | None) -> Array:
    """An array of zeros, in memory or in a file without a name.

    Args:
        shape: at least one axis.
        dtype: of fixed size.
        directory: where the file is to lie; made if missing. None is memory.

    Raises:
        ConfigError: the directory cannot be written, or has no room.
    """
    if directory is None:
        return np.zeros(shape, dtype)
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, prefix="replay-", suffix=".bin") as file:
            _reserve(file.fileno(), max(num_bytes, 1))
            array: Array = np.memmap(file, dtype, "r+", shape=shape).view(np.ndarray)
    except OSError as error:
        raise ConfigError(_no_room(directory, num_bytes, error)) from None
    return array


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Give a file its blocks: a page that has none when it is written would end the process without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.truncate(descriptor, num_bytes)


def _no_room(directory: Path, num_bytes: int, error: OSError) -> str:
    if error.errno != errno.ENOSPC:
        return f"replay.directory = '{directory}': {error.strerror or error}; choose another"
    free = shutil.disk_usage(directory).free
    return (
        f"replay.directory = '{directory}': the replay takes {num_bytes / _MIB:,.0f} MiB there, {free / _MIB:,.0f} MiB "
        "are free; lower replay.capacity, or choose another"
    )
