"""Schedules over the global counters: epsilon, the importance exponent, the learning rate."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def linear(start: float, end: float, duration: int, count: int) -> float:
    """From `start` at count 0 to `end` at `duration`, and `end` from there on."""
    return start + (end - start) * min(count / duration, 1.0)


def cosine(start: float, end: float, duration: int, count: int) -> float:
    """Half a cosine from `start` to `end` (Loshchilov and Hutter 2017, without restarts)."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(count / duration, 1.0)))


def apex_epsilons(base: float, alpha: float, num_actors: int) -> npt.NDArray[np.float64]:
    """epsilon_i = base^(1 + alpha i / (N - 1)), one per actor or environment; float64 [N].

    Horgan et al. (2018), Distributed Prioritized Experience Replay, section 4.1 (base 0.4, alpha 7).
    """
    if num_actors == 1:
        return np.array([base])
    return np.asarray(base ** (1.0 + alpha * np.arange(num_actors) / (num_actors - 1)), dtype=np.float64)
