"""Numbers of an environment changed after it is made, before its first reset: gravity, the length of a pole.

For environments whose constructor does not take them. What an environment has computed from such a number in its
constructor is computed anew where `_DERIVED` knows how; a property of the environment's own needs no entry there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from qfleet.config import did_you_mean
from qfleet.errors import UsageError

# Gymnasium's CartPole, alone and as a vector: name, what it is computed from, and how.
_DERIVED: tuple[tuple[str, tuple[str, ...], Callable[..., float]], ...] = (
    ("total_mass", ("masscart", "masspole"), lambda masscart, masspole: masspole + masscart),
    ("polemass_length", ("masspole", "length"), lambda masspole, length: masspole * length),
)


def set_attributes(
    env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any], attributes: Mapping[str, float], label: str
) -> None:
    """Set numbers of the unwrapped environment, all copies of a native vector version alike.

    Args:
        env: not reset yet.
        attributes: names and new values.
        label: the environment's name, for the message.

    Raises:
        UsageError: there is no number of that name.
    """
    inner = env.unwrapped
    for name, value in attributes.items():
        present = getattr(inner, name, None)
        if name.startswith("_") or not _is_number(present):
            known = [key for key in dir(inner) if not key.startswith("_") and _is_number(getattr(inner, key, None))]
            raise UsageError(
                f"environment {label}: env.attributes.{name} = {value!r}: it has no number of that name; "
                f"{did_you_mean(name, known)}"
            )
        keeps_integer = isinstance(present, int | np.integer) and float(value).is_integer()
        setattr(inner, name, int(value) if keeps_integer else value)
    for name, sources, formula in _DERIVED:
        is_stale = name not in attributes and any(source in attributes for source in sources)
        if is_stale and all(hasattr(inner, needed) for needed in (name, *sources)):
            setattr(inner, name, formula(*(getattr(inner, source) for source in sources)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
