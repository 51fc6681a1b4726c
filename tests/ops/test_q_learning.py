"""Q-learning targets worked by hand, with decoys (99, 98) where nothing may look, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qfleet.ops import q_learning


def test_select_action_values_takes_one_entry_per_row() -> None:
    q_values = torch.tensor([[99.0, 1.0, 98.0], [2.0, 99.0, 98.0]])
    np.testing.assert_array_equal(q_learning.select_action_values(q_values, torch.tensor([1, 0])), [1.0, 2.0])


def test_select_action_values_sends_gradient_to_the_action_taken_only() -> None:
    q_values = torch.zeros(2, 3, requires_grad=True)
    q_learning.select_action_values(q_values, torch.tensor([2, 1])).sum().backward()
    np.testing.assert_array_equal(q_values.grad, [[0, 0, 1], [0, 1, 0]])


def test_mask_illegal_leaves_legal_values_and_needs_no_mask() -> None:
    q_values = torch.tensor([[1.0, 99.0], [98.0, 2.0]])
    masked = q_learning.mask_illegal(q_values, torch.tensor([[True, False], [False, True]]))
    np.testing.assert_array_equal(masked, [[1.0, -np.inf], [-np.inf, 2.0]])
    assert q_learning.mask_illegal(q_values, None) is q_values


def test_max_value_is_over_legal_actions() -> None:
    next_q_values = torch.tensor([[3.0, 99.0, -1.0], [-5.0, -7.0, 98.0]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(q_learning.max_value(next_q_values, mask), [3.0, -5.0])
    np.testing.assert_array_equal(q_learning.max_value(next_q_values), [99.0, 98.0])


def test_double_q_chooses_by_online_and_values_by_target() -> None:
    # Online prefers action 1, then action 0. The target's own maxima (99, 98) and the online's values (97, 96)
    # are decoys: only the target at the online's choice counts.
    next_q_target = torch.tensor([[99.0, 4.0, -1.0], [5.0, 98.0, 0.0]])
    next_q_online = torch.tensor([[1.0, 97.0, 2.0], [96.0, 3.0, 4.0]])
    np.testing.assert_array_equal(q_learning.double_q_value(next_q_target, next_q_online), [4.0, 5.0])


def test_double_q_never_chooses_an_illegal_action() -> None:
    next_q_target = torch.tensor([[7.0, 99.0, 98.0]])
    next_q_online = torch.tensor([[-3.0, 99.0, 98.0]])
    mask = torch.tensor([[True, False, False]])
    np.testing.assert_array_equal(q_learning.double_q_value(next_q_target, next_q_online, mask), [7.0])


def test_bootstrapped_target_by_hand() -> None:
    # 1 + 0.5 * 4 = 3; a termination: 2 + 0 * 99 = 2; a two-step discount: -1 + 0.81 * 10 = 7.1.
    target = q_learning.bootstrapped_target(
        torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.5, 0.0, 0.81]), torch.tensor([4.0, 99.0, 10.0])
    )
    np.testing.assert_allclose(target, [3.0, 2.0, 7.1], rtol=1e-6)


def test_a_terminal_state_without_legal_actions_is_worth_nothing() -> None:
    # The maximum over no action would be -inf, and 0 * -inf NaN.
    values, masks = torch.tensor([[99.0, 98.0], [1.0, 99.0]]), torch.tensor([[False, False], [True, False]])
    assert q_learning.max_value(values, masks).tolist() == [0.0, 1.0]
    assert q_learning.double_q_value(values, values, masks).isfinite().all()


def test_huber_by_hand() -> None:
    # delta 1: 0.5 * 0.5^2 = 0.125; 1 * (3 - 0.5) = 2.5 on both sides. delta 2: 0.5 * 1.5^2 = 1.125; 2 * (3 - 1) = 4.
    np.testing.assert_allclose(q_learning.huber(torch.tensor([0.5, 3.0, -3.0]), 1.0), [0.125, 2.5, 2.5])
    np.testing.assert_allclose(q_learning.huber(torch.tensor([1.5, -3.0]), 2.0), [1.125, 4.0])


def test_huber_gradient_is_the_clipped_error() -> None:
    error = torch.tensor([0.5, -0.25, 3.0, -99.0], requires_grad=True)
    q_learning.huber(error, 1.0).sum().backward()
    np.testing.assert_allclose(error.grad, [0.5, -0.25, 1.0, -1.0])


def test_half_square_has_the_error_as_gradient() -> None:
    error = torch.tensor([3.0, -4.0], requires_grad=True)
    losses = q_learning.half_square(error)
    losses.sum().backward()
    np.testing.assert_array_equal(losses.detach(), [4.5, 8.0])
    np.testing.assert_array_equal(error.grad, [3.0, -4.0])


def test_huber_gradient_is_autograds() -> None:
    error = torch.tensor([0.2, -0.25, 0.3, 3.0, -99.0], requires_grad=True)
    q_learning.huber(error, 0.3).sum().backward()
    np.testing.assert_allclose(q_learning.huber_gradient(error.detach(), 0.3), [0.2, -0.25, 0.3, 0.3, -0.3])
    np.testing.assert_allclose(error.grad, [0.2, -0.25, 0.3, 0.3, -0.3])


def test_scatter_to_actions_puts_one_entry_a_row_and_transposes_select() -> None:
    scattered = q_learning.scatter_to_actions(torch.tensor([5.0, -7.0]), torch.tensor([2, 0]), 3)
    np.testing.assert_array_equal(scattered, [[0, 0, 5], [-7, 0, 0]])
    # <select(Q), g> = <Q, scatter(g)>: 5 * 3 + -7 * 4.
    q_values = torch.tensor([[99.0, 98.0, 3.0], [4.0, 99.0, 98.0]])
    assert (q_values * scattered).sum().item() == 5 * 3 - 7 * 4


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_targets_equal_plain_loops(double: bool, masked: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    batch, num_actions = 17, 5
    target, online = generator.normal(size=(2, batch, num_actions)).astype(np.float32)
    reward = generator.normal(size=batch).astype(np.float32)
    discount = generator.choice([0.0, 0.9, 0.81], size=batch).astype(np.float32)
    mask = generator.random((batch, num_actions)) < 0.5
    mask[np.arange(batch), generator.integers(num_actions, size=batch)] = True
    if not masked:
        mask[:] = True

    expected = []
    for i in range(batch):
        best = None
        for a in range(num_actions):
            judge = online if double else target
            if mask[i, a] and (best is None or judge[i, a] > judge[i, best]):
                best = a
        assert best is not None
        expected.append(float(reward[i]) + float(discount[i]) * float(target[i, best]))

    mask_tensor = torch.from_numpy(mask) if masked else None
    if double:
        value = q_learning.double_q_value(torch.from_numpy(target), torch.from_numpy(online), mask_tensor)
    else:
        value = q_learning.max_value(torch.from_numpy(target), mask_tensor)
    got = q_learning.bootstrapped_target(torch.from_numpy(reward), torch.from_numpy(discount), value)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_wrong_ranks_are_refused() -> None:
    # [B, 1] beside [B] would broadcast to [B, B] in silence.
    with pytest.raises(AssertionError, match="rank 1"):
        q_learning.bootstrapped_target(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3))
    with pytest.raises(AssertionError, match="rank 2"):
        q_learning.max_value(torch.zeros(3))
    with pytest.raises(AssertionError, match="rank 1"):
        q_learning.select_action_values(torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64))
