"""The Munchausen target: by hand, with decoys (99, 98) where nothing may look, and against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.ops import munchausen

# At temperature 1 the policy of (0, ln 3) is (1/4, 3/4); its logarithms are -1.386294 and -0.287682.
Q_VALUES = torch.tensor([[0.0, math.log(3.0)]])


def test_the_bonus_by_hand() -> None:
    q_values = Q_VALUES.expand(2, 2)
    bonus = munchausen.munchausen_bonus(q_values, torch.tensor([0, 1]), 0.5, 1.0, -1.0)
    # Half of max(-1.386294, -1), and half of -0.287682.
    assert bonus.tolist() == pytest.approx([-0.5, -0.143841])
    # At temperature 1/2 the policy is (1, 9) / 10: 0.5 ln 0.1 = -1.151293, 0.5 ln 0.9 = -0.052680.
    bonus = munchausen.munchausen_bonus(q_values, torch.tensor([0, 1]), 1.0, 0.5, -2.0)
    assert bonus.tolist() == pytest.approx([-1.151293, -0.052680], rel=1e-5)


def test_the_soft_value_by_hand() -> None:
    # It is temperature * ln(sum_a exp(Q / temperature)): ln 4, and ln(1 + 9) / 2.
    assert munchausen.soft_value(Q_VALUES, 1.0).tolist() == pytest.approx([math.log(4.0)])
    assert munchausen.soft_value(Q_VALUES, 0.5).tolist() == pytest.approx([0.5 * math.log(10.0)])


def test_soft_rows_by_hand() -> None:
    # The means (1/4 * 4 + 3/4 * 8, 1/4 * 0 + 3/4 * 4) = (7, 3), and the policy's entropy 0.562335 for each.
    rows = torch.tensor([[[4.0, 0.0], [8.0, 4.0]]])
    got = munchausen.soft_rows(Q_VALUES, rows, 1.0)
    np.testing.assert_allclose(got, [[7.562335, 3.562335]], rtol=1e-6)


def test_illegal_actions_have_no_part() -> None:
    q_values = torch.tensor([[0.0, 99.0, math.log(3.0)], [98.0, 2.0, 99.0]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert munchausen.soft_value(q_values, 1.0, mask).tolist() == pytest.approx([math.log(4.0), 2.0])
    assert munchausen.scaled_log_policy(q_values, 1.0, mask)[1].tolist() == [-math.inf, 0.0, -math.inf]
    # None legal: a terminal state, whose value meets a discount of 0 and must be a number.
    assert munchausen.soft_value(q_values, 1.0, torch.zeros(2, 3, dtype=torch.bool)).isfinite().all()


def test_a_small_temperature_neither_overflows_nor_leaves_the_maximum() -> None:
    # 300 / 0.03 = 10,000: exp of it is infinite in every float. One action's probability is 1, the others' 0.
    q_values = torch.tensor([[300.0, 0.0, -300.0]])
    assert munchausen.soft_value(q_values, 0.03).tolist() == [300.0]
    assert munchausen.munchausen_bonus(q_values, torch.tensor([1]), 0.9, 0.03, -1.0).tolist() == pytest.approx([-0.9])


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([0.03, 0.3, 2.0]), st.booleans())
def test_equals_plain_loops(seed: int, num_actions: int, temperature: float, masked: bool) -> None:
    generator = np.random.default_rng(seed)
    batch, num_rows = 4, 3
    q_values = generator.normal(size=(batch, num_actions))
    rows = generator.normal(size=(batch, num_actions, num_rows))
    mask = generator.random((batch, num_actions)) < 0.5
    mask[np.arange(batch), generator.integers(num_actions, size=batch)] = True
    if not masked:
        mask[:] = True
    expected, log_policy = np.zeros((batch, num_rows)), np.zeros((batch, num_actions))
    for i in range(batch):
        best = max(q_values[i, a] for a in range(num_actions) if mask[i, a])
        total = sum(math.exp((q_values[i, a] - best) / temperature) for a in range(num_actions) if mask[i, a])
        for a in range(num_actions):
            log_policy[i, a] = (q_values[i, a] - best) / temperature - math.log(total) if mask[i, a] else -math.inf
            for j in range(num_rows):
                if mask[i, a]:
                    chance = math.exp(log_policy[i, a])
                    expected[i, j] += chance * (rows[i, a, j] - temperature * log_policy[i, a])
    mask_tensor = torch.from_numpy(mask) if masked else None
    got = munchausen.soft_rows(torch.from_numpy(q_values), torch.from_numpy(rows), temperature, mask_tensor)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    scaled = munchausen.scaled_log_policy(torch.from_numpy(q_values), temperature, mask_tensor)
    np.testing.assert_allclose(scaled, temperature * log_policy, rtol=1e-9, atol=1e-12)
    # Of the values themselves: temperature * log sum exp.
    soft = munchausen.soft_value(torch.from_numpy(q_values), temperature, mask_tensor)
    for i in range(batch):
        best = max(q_values[i][mask[i]])
        log_sum = math.log(sum(math.exp((value - best) / temperature) for value in q_values[i][mask[i]]))
        assert soft[i].item() == pytest.approx(best + temperature * log_sum)
