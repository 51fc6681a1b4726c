"""Behaviour policies: which action, how often, and never an illegal one."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.ops.exploration import epsilon_greedy, greedy, random_legal, sample_policy

NUM_DRAWS = 20_000


def frequencies(actions: np.ndarray, num_actions: int) -> np.ndarray:
    return np.bincount(actions, minlength=num_actions) / len(actions)


def test_greedy_takes_the_first_of_equals_and_only_legal_ones() -> None:
    q_values = np.array([[1.0, 3.0, 3.0], [99.0, -5.0, 98.0]])
    np.testing.assert_array_equal(greedy(q_values), [1, 0])
    mask = np.array([[True, False, True], [False, True, False]])
    np.testing.assert_array_equal(greedy(q_values, mask), [2, 1])


def test_greedy_leaves_the_values_as_they_were() -> None:
    q_values = np.array([[99.0, 1.0]])
    greedy(q_values, np.array([[False, True]]))
    np.testing.assert_array_equal(q_values, [[99.0, 1.0]])


def test_random_legal_is_uniform_over_the_legal() -> None:
    mask = np.tile([True, False, True, True], (NUM_DRAWS, 1))
    drawn = frequencies(random_legal(4, mask, np.random.default_rng(0)), 4)
    assert drawn[1] == 0
    # Standard error sqrt(1/3 * 2/3 / 20000) = 0.0033; five of them.
    np.testing.assert_allclose(drawn[[0, 2, 3]], 1 / 3, atol=0.017)


def test_random_legal_draws_each_row_by_its_own_mask() -> None:
    mask = np.eye(5, dtype=bool)
    np.testing.assert_array_equal(random_legal(5, mask, np.random.default_rng(1)), np.arange(5))


def test_epsilon_greedy_frequencies() -> None:
    # Greedy is action 2: it gets 0.7 + 0.3 / 4 = 0.775, each other one 0.3 / 4 = 0.075.
    q_values = np.tile([1.0, 0.0, 9.0, 2.0], (NUM_DRAWS, 1))
    drawn = frequencies(epsilon_greedy(q_values, 0.3, np.random.default_rng(2)), 4)
    np.testing.assert_allclose(drawn, [0.075, 0.075, 0.775, 0.075], atol=0.015)


def test_epsilon_greedy_frequencies_under_a_mask() -> None:
    # The best, action 2, is illegal, so greedy is action 3: 0.6 + 0.4 / 2 = 0.8; action 1 gets 0.4 / 2 = 0.2.
    q_values = np.tile([98.0, 0.0, 99.0, 2.0], (NUM_DRAWS, 1))
    mask = np.tile([False, True, False, True], (NUM_DRAWS, 1))
    drawn = frequencies(epsilon_greedy(q_values, 0.4, np.random.default_rng(3), mask), 4)
    np.testing.assert_allclose(drawn, [0.0, 0.2, 0.0, 0.8], atol=0.015)
    assert drawn[0] == drawn[2] == 0


@pytest.mark.parametrize("masked", [False, True])
def test_epsilon_zero_is_greedy_and_one_ignores_the_values(masked: bool) -> None:
    generator = np.random.default_rng(4)
    q_values = np.tile([0.0, 5.0], (NUM_DRAWS, 1))
    mask = np.ones((NUM_DRAWS, 2), dtype=bool) if masked else None
    assert (epsilon_greedy(q_values, 0.0, generator, mask) == 1).all()
    np.testing.assert_allclose(frequencies(epsilon_greedy(q_values, 1.0, generator, mask), 2), 0.5, atol=0.018)


def test_one_epsilon_per_row() -> None:
    q_values = np.tile([0.0, 5.0], (NUM_DRAWS, 1))
    epsilon = np.where(np.arange(NUM_DRAWS) % 2 == 0, 0.0, 1.0)
    actions = epsilon_greedy(q_values, epsilon, np.random.default_rng(5))
    assert (actions[::2] == 1).all()
    np.testing.assert_allclose(frequencies(actions[1::2], 2), 0.5, atol=0.025)


@pytest.mark.parametrize("masked", [False, True])
def test_randomness_used_does_not_depend_on_the_values(masked: bool) -> None:
    # So that a change of one network value never shifts every later draw.
    states = []
    for q_values in (np.zeros((7, 3)), np.arange(21.0).reshape(7, 3)):
        generator = np.random.default_rng(6)
        epsilon_greedy(q_values, 0.5, generator, np.ones((7, 3), dtype=bool) if masked else None)
        states.append(generator.random())
    assert states[0] == states[1]


def test_sample_policy_is_as_often_as_its_probability() -> None:
    policy = np.tile(np.array([0.0, 0.5, 0.2, 0.0, 0.3, 0.0], np.float32), (NUM_DRAWS, 1))
    drawn = frequencies(sample_policy(policy, np.random.default_rng(0)), 6)
    assert (drawn[[0, 3, 5]] == 0).all()
    # Standard error at most sqrt(0.25 / 20000) = 0.0035; five of them.
    np.testing.assert_allclose(drawn[[1, 2, 4]], [0.5, 0.2, 0.3], atol=0.018)


def test_sample_policy_draws_each_row_by_its_own_probabilities() -> None:
    np.testing.assert_array_equal(sample_policy(np.eye(5), np.random.default_rng(1)), np.arange(5))


def test_sample_policy_never_falls_off_the_end() -> None:
    """Rounding may leave a row a little below 1, and the last action impossible: the largest draw is still inside."""

    class Largest(np.random.Generator):
        def random(self, size: int) -> np.ndarray:  # type: ignore[override]
            return np.full(size, np.nextafter(1.0, 0.0))

    policy = np.array([[0.3, 0.6999, 0.0]], np.float32)
    np.testing.assert_array_equal(sample_policy(policy, Largest(np.random.PCG64(0))), [1])
