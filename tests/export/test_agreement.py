"""When an export agrees with its policy: hand-worked values, actions and returns."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.errors import ExportError
from qfleet.export.agreement import compare, compare_returns
from qfleet.onnx_policy import relative_errors

# Two clear rows; the third's best two are 1e-5 of 100 apart, which is less than 1e-4.
REFERENCE = np.array([[1.0, 2.0, -4.0], [0.0, 10.0, 3.0], [100.0, 99.999, 0.0]])


def test_errors_are_relative_to_the_largest_value_of_a_row() -> None:
    # 0.002 of 4, 0.01 of 10, and a value that is not there.
    values = np.array([[1.002, 2.0, -4.0], [0.01, 10.0, 3.0], [np.nan, 99.999, 0.0]])
    assert relative_errors(REFERENCE, values).tolist() == pytest.approx([5e-4, 1e-3, np.inf])


def test_what_agrees() -> None:
    agreement = compare(REFERENCE, REFERENCE * (1 + 5e-5), np.array([1, 1, 1]))
    agreement.require()  # row 2 may act otherwise: its best two are as good as equal
    assert agreement.max_relative_error == pytest.approx(5e-5)
    assert (agreement.num_observations, agreement.num_clear, agreement.num_different) == (3, 2, 0)
    assert agreement.equal_actions == pytest.approx(2 / 3)
    assert "q_values within 5.0e-05" in agreement.line()


@pytest.mark.parametrize(
    ("values", "actions", "message"),
    [
        (REFERENCE * (1 + 2e-4), [1, 1, 0], "differ by 0.0002 relative"),
        (np.full((3, 3), np.nan), [1, 1, 0], "differ by inf relative"),
        (REFERENCE, [1, 2, 0], "1 of 2 clear greedy actions"),
    ],
    ids=["values", "nan", "actions"],
)
def test_what_does_not(values: np.ndarray, actions: list[int], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        compare(REFERENCE, values, np.array(actions)).require()


def test_int8_is_judged_by_its_actions_and_its_return() -> None:
    reference = np.tile([[1.0, 2.0]], (100, 1))
    actions = np.ones(100, np.int64)
    actions[0] = 0
    # Means 10 and 8; variances of the means (2^2 / 3) / 4 = 1/3 each (values 8, 8, 12, 12: deviation 2, n - 1 = 3,
    # sum of squares 16, so 16 / 3 / 4 = 4/3): the difference's error is sqrt(4/3 + 0).
    returns = compare_returns([8, 8, 12, 12], [8, 8, 8, 8])
    assert returns.stderr == pytest.approx((4 / 3) ** 0.5)
    compare(reference, reference * 1.5, actions, None, returns).require()  # 99% equal, 2 below within 2 * 1.155
    with pytest.raises(ExportError, match=r"return 7\.00 over 4 episodes"):
        compare(reference, reference, actions, None, compare_returns([8, 8, 12, 12], [7, 7, 7, 7])).require()
    actions[1] = 0
    with pytest.raises(ExportError, match=r"98\.0% of the greedy actions"):
        compare(reference, reference, actions, None, returns).require()
