"""Rows shared out among threads, for copies that numpy or numba make: both let other threads run meanwhile. Floor 1."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def in_parts(work: Callable[[int, int], object], num_rows: int, least: int) -> None:
    """Call `work(begin, end)` for all rows, by as many threads as torch has here, `least` rows or more for each."""
    num_parts = max(min(torch.get_num_threads(), num_rows // least), 1)
    bounds = [num_rows * part // num_parts for part in range(num_parts + 1)]
    others = [_pool(os.getpid()).submit(work, *bounds[part : part + 2]) for part in range(1, num_parts)]
    work(0, bounds[1])
    for other in others:
        other.result()


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """One a process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(os.cpu_count(), "rows")
