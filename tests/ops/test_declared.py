"""Observations become what a policy takes, or are refused: nothing is rounded in silence."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.errors import UsageError
from qfleet.ops.declared import as_declared


@pytest.mark.parametrize(
    ("obs", "dtype", "expected"),
    [
        ([1, 2.5], "float32", [1.0, 2.5]),
        (np.array([0.1, 1e300]), "float32", [np.float32(0.1), np.inf]),  # too large is for who looks at the range
        ([0, 255], "uint8", [0, 255]),
        ([0.0, 255.0], "uint8", [0, 255]),
        ([0, 1], "bool", [False, True]),
    ],
)
def test_what_the_dtype_holds_is_taken(obs: object, dtype: str, expected: list[float]) -> None:
    with np.errstate(over="ignore"):
        found = as_declared(obs, dtype)
    assert found.dtype == dtype
    assert found.tolist() == expected


def test_the_declared_dtype_is_not_copied() -> None:
    obs = np.zeros(3, np.uint8)
    assert as_declared(obs, "uint8") is obs


@pytest.mark.parametrize(
    ("obs", "dtype"),
    [
        ([0.0, 0.5], "uint8"),  # scaled already: as bytes these would all be 0
        ([256], "uint8"),
        ([-1], "uint8"),
        ([np.nan], "uint8"),
        ([2], "bool"),
        ("no", "uint8"),
        (["a"], "float32"),
        ([1j], "float32"),
        ([[1], [1, 2]], "float32"),
        (None, "bool"),
    ],
)
def test_what_it_does_not_hold_is_refused(obs: object, dtype: str) -> None:
    with pytest.raises(UsageError, match=f"^observation: {dtype} is needed"):
        as_declared(obs, dtype)
