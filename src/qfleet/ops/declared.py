"""Observations that a user hands to a policy, as the dtype that it takes. Needs numpy only, as clients do."""

from __future__ import annotations

import numpy as np

from qfleet.errors import UsageError
from qfleet.types import Array


def as_declared(obs: object, dtype: np.dtype | str) -> Array:
    """Observations as an array of the declared dtype; floats may lose precision, nothing else may change.

    Args:
        obs: an array, or nested lists.
        dtype: as the environment declares it.

    Raises:
        UsageError: they are no numbers, or numbers that the dtype does not hold, such as scaled pixels for uint8.
    """
    dtype = np.dtype(dtype)
    try:
        if dtype.kind == "f":
            return np.asarray(obs, dtype)
        given = np.asarray(obs)
        if given.dtype == dtype:
            return given
        with np.errstate(invalid="ignore"):
            typed = given.astype(dtype)
        is_held = np.array_equal(typed, given)
    except (ValueError, TypeError, OverflowError):
        is_held = False
    if not is_held:
        raise UsageError(f"observation: {dtype} is needed, as the environment gives it; nothing is rounded or cut off")
    return typed
