"""Rows of an action and their transpose, the action to bootstrap from: by hand, with decoys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.ops import distributions


def test_select_takes_one_row_and_scatter_is_its_transpose() -> None:
    rows = torch.tensor([[[99.0, 98.0], [1.0, 2.0]], [[3.0, 4.0], [97.0, 96.0]]])
    actions = torch.tensor([1, 0])
    np.testing.assert_array_equal(distributions.select_action_rows(rows, actions), [[1, 2], [3, 4]])
    scattered = distributions.scatter_action_rows(torch.tensor([[5.0, 6.0], [7.0, 8.0]]), actions, 2)
    np.testing.assert_array_equal(scattered, [[[0, 0], [5, 6]], [[7, 8], [0, 0]]])
    # <select(Z), g> = <Z, scatter(g)>: 5 * 1 + 6 * 2 + 7 * 3 + 8 * 4.
    assert (rows * scattered).sum().item() == 70


def test_the_best_action_is_legal() -> None:
    q_values = torch.tensor([[1.0, 99.0, 2.0], [-5.0, -7.0, 98.0], [99.0, 98.0, 97.0]])
    mask = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    assert distributions.best_action(q_values, mask).tolist() == [2, 0, 0]
    assert distributions.best_action(q_values).tolist() == [1, 2, 0]


def test_bootstrapped_rows_by_hand() -> None:
    # 1 + 0.5 * (2, 4) = (2, 3); a termination: 3 + 0 * 99 = 3 for each.
    rows = distributions.bootstrapped_rows(
        torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.0]), torch.tensor([[2.0, 4.0], [99.0, 98.0]])
    )
    np.testing.assert_array_equal(rows, [[2, 3], [3, 3]])


def test_wrong_ranks_are_refused() -> None:
    with pytest.raises(AssertionError, match="rank 1"):
        distributions.bootstrapped_rows(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(AssertionError, match="rank 3"):
        distributions.select_action_rows(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
