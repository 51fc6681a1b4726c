"""qfleet: one Q-learner mapped onto any fleet. Algorithm, strategy and engine are three independent choices.

The two names below load torch when they are first used, so that importing qfleet costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from qfleet.version import __version__

if TYPE_CHECKING:
    from qfleet.experiment import Experiment
    from qfleet.policy import load_policy

# Idle OpenMP threads spin for milliseconds by default, on the cores that environments are stepped on meanwhile: a step
# of 32 Atari games took 8 ms in place of 5 (benchmarks/atari_stepping.py). Read once, when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = ["Experiment", "__version__", "load_policy"]

_HOMES = {"Experiment": "qfleet.experiment", "load_policy": "qfleet.policy"}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'qfleet' has no attribute {name!r}")
