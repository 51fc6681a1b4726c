"""Lambda returns, GAE and V-trace by hand, in their limits, and against plain double loops of the formulas."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.ops.returns import gae, lambda_returns, vtrace

Float32 = npt.NDArray[np.float32]


def column(*values: float) -> Float32:
    """Time first, one environment."""
    return np.array(values, np.float32)[:, None]


# Three steps; the episode ends at the second one, so its next value (99) is a decoy.
REWARD = column(1, 2, 4)
DISCOUNT = column(0.5, 0, 0.5)
VALUE = column(3, 5, 99, 8)


def test_lambda_returns_by_hand() -> None:
    # From the end, lambda 0.5: G_2 = 4 + 0.5 * 8 = 8, G_1 = 2 + 0 = 2,
    # G_0 = 1 + 0.5 * (0.5 * 5 + 0.5 * 2) = 1 + 0.5 * 3.5 = 2.75.
    np.testing.assert_array_equal(lambda_returns(REWARD, DISCOUNT, VALUE, 0.5), column(2.75, 2, 8))


def test_gae_by_hand() -> None:
    # delta = [1 + 0.5 * 5 - 3, 2 + 0 - 5, 4 + 0.5 * 8 - 99] = [0.5, -3, -91]; discount * lambda = [0.25, 0, 0.25]:
    # A_2 = -91, A_1 = -3 + 0 * -91 = -3, A_0 = 0.5 + 0.25 * -3 = -0.25. And 2.75 - 3 = -0.25, as G_0 - V_0 has it.
    np.testing.assert_array_equal(gae(REWARD, DISCOUNT, VALUE, 0.5), column(-0.25, -3, -91))


def test_vtrace_by_hand() -> None:
    # Two steps that do not end. Ratios 2 and 0.5 with rho_clip 1.5, c_clip 1: rho = [1.5, 0.5], c = [1, 0.5].
    # delta = [1.5 * (1 + 0.5 * 4 - 2), 0.5 * (3 + 0.5 * 6 - 4)] = [1.5, 1]
    # v_1 = 4 + 1 = 5;  v_0 = 2 + 1.5 + 0.5 * 1 * (5 - 4) = 4
    # advantages: 1.5 * (1 + 0.5 * 5 - 2) = 2.25 (with v_1, not V_1);  0.5 * (3 + 0.5 * 6 - 4) = 1
    out = vtrace(
        np.log(column(2, 0.5)), column(1, 3), column(0.5, 0.5), column(2, 4, 6), rho_clip=1.5, c_clip=1.0, trace=1.0
    )
    np.testing.assert_allclose(out.target, column(4, 5), rtol=1e-6)
    np.testing.assert_allclose(out.advantage, column(2.25, 1), rtol=1e-6)


def test_vtrace_lambda_shortens_the_trace_only() -> None:
    # As above with lambda 0.5: v_0 = 2 + 1.5 + 0.5 * 0.5 * 1 * (5 - 4) = 3.75; the advantages still use v_1 = 5.
    out = vtrace(
        np.log(column(2, 0.5)), column(1, 3), column(0.5, 0.5), column(2, 4, 6), rho_clip=1.5, c_clip=1.0, trace=0.5
    )
    np.testing.assert_allclose(out.target, column(3.75, 5), rtol=1e-6)
    np.testing.assert_allclose(out.advantage, column(2.25, 1), rtol=1e-6)


def test_the_two_clips_are_not_exchanged() -> None:
    # Ratio 4 at both steps, all values 0, rewards and discounts 1. rho_clip 1, c_clip 3: delta = [1, 1], v_1 = 1,
    # v_0 = 1 + 1 * 3 * 1 = 4. The other way round: delta = [3, 3], v_1 = 3, v_0 = 3 + 1 * 1 * 3 = 6.
    ones, zeros, ratio = column(1, 1), column(0, 0, 0), np.log(column(4, 4))
    np.testing.assert_allclose(vtrace(ratio, ones, ones, zeros, rho_clip=1, c_clip=3).target, column(4, 1))
    np.testing.assert_allclose(vtrace(ratio, ones, ones, zeros, rho_clip=3, c_clip=1).target, column(6, 3))


def test_ratios_beyond_what_a_float_holds_are_clipped() -> None:
    # exp(200) is infinite in float32; an action that the learner has given up has ratio 0 and teaches nothing.
    out = vtrace(column(200, -200), column(1, 1), column(1, 1), column(0, 0, 0))
    np.testing.assert_array_equal(out.target, column(1, 0))
    np.testing.assert_array_equal(out.advantage, column(1, 0))


@st.composite
def trajectories(draw: st.DrawFn) -> tuple[Float32, Float32, Float32, Float32]:
    """log_ratio, reward, discount (some 0), value."""
    num_steps, num_envs = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (num_steps, num_envs)
    goes_on = generator.random(shape) > draw(st.sampled_from([0.0, 0.3]))
    return (
        generator.normal(0, 1, shape).astype(np.float32),
        generator.normal(0, 2, shape).astype(np.float32),
        np.where(goes_on, draw(st.sampled_from([0.9, 1.0])), 0).astype(np.float32),
        generator.normal(0, 3, (num_steps + 1, num_envs)).astype(np.float32),
    )


LAMBDAS = st.sampled_from([0.0, 0.65, 0.95, 1.0])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@given(trajectories(), LAMBDAS)
@settings(deadline=None)
def test_lambda_returns_are_the_weighted_n_step_returns(
    arrays: tuple[Float32, Float32, Float32, Float32], trace: float
) -> None:
    _, reward, discount, value = arrays
    num_steps, num_envs = reward.shape
    expected = np.zeros_like(reward)
    for e in range(num_envs):
        for t in range(num_steps):
            n_step_returns = []  # of 1, 2, ... steps from t, each bootstrapped from the value after them
            total, weight = 0.0, 1.0
            for k in range(t, num_steps):
                total += weight * float(reward[k, e])
                weight *= float(discount[k, e])
                n_step_returns.append(total + weight * float(value[k + 1, e]))
            last = n_step_returns.pop()
            blended = sum((1 - trace) * trace**n * each for n, each in enumerate(n_step_returns))
            expected[t, e] = blended + trace ** len(n_step_returns) * last
    result = lambda_returns(reward, discount, value, trace)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, **CLOSE)


@given(trajectories(), LAMBDAS)
@settings(deadline=None)
def test_gae_is_the_discounted_sum_of_errors(arrays: tuple[Float32, Float32, Float32, Float32], trace: float) -> None:
    _, reward, discount, value = arrays
    num_steps, num_envs = reward.shape
    expected = np.zeros_like(reward)
    for e in range(num_envs):
        for t in range(num_steps):
            weight = 1.0
            for k in range(t, num_steps):
                delta = float(reward[k, e]) + float(discount[k, e]) * float(value[k + 1, e]) - float(value[k, e])
                expected[t, e] += weight * delta
                weight *= trace * float(discount[k, e])
    result = gae(reward, discount, value, trace)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, **CLOSE)
    np.testing.assert_allclose(result, lambda_returns(reward, discount, value, trace) - value[:-1], **CLOSE)


@given(trajectories(), LAMBDAS, st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.5, 1.0, 2.0]))
@settings(deadline=None)
def test_vtrace_is_equation_one(
    arrays: tuple[Float32, Float32, Float32, Float32], trace: float, rho_clip: float, c_clip: float
) -> None:
    """v_s = V_s + sum_t gamma^(t-s) (prod_{i=s}^{t-1} c_i) rho_t (r_t + gamma V_{t+1} - V_t), each discount its own."""
    log_ratio, reward, discount, value = arrays
    num_steps, num_envs = reward.shape
    target, advantage = np.zeros_like(reward), np.zeros_like(reward)
    for e in range(num_envs):
        ratio = [math.exp(float(log_ratio[t, e])) for t in range(num_steps)]
        v = [float(x) for x in value[:, e]]
        for s in range(num_steps):
            weight = 1.0
            for t in range(s, num_steps):
                error = float(reward[t, e]) + float(discount[t, e]) * float(value[t + 1, e]) - float(value[t, e])
                v[s] += weight * min(rho_clip, ratio[t]) * error
                weight *= float(discount[t, e]) * trace * min(c_clip, ratio[t])
        for s in range(num_steps):
            target[s, e] = v[s]
            error = float(reward[s, e]) + float(discount[s, e]) * v[s + 1] - float(value[s, e])
            advantage[s, e] = min(rho_clip, ratio[s]) * error
    out = vtrace(log_ratio, reward, discount, value, rho_clip=rho_clip, c_clip=c_clip, trace=trace)
    assert out.target.dtype == out.advantage.dtype == np.float32
    np.testing.assert_allclose(out.target, target, **CLOSE)
    np.testing.assert_allclose(out.advantage, advantage, **CLOSE)


@given(trajectories())
@settings(deadline=None)
def test_vtrace_at_lag_0_is_the_on_policy_n_step_target(arrays: tuple[Float32, Float32, Float32, Float32]) -> None:
    _, reward, discount, value = arrays
    out = vtrace(np.zeros_like(reward), reward, discount, value, rho_clip=1.0, c_clip=1.0)
    np.testing.assert_allclose(out.target, lambda_returns(reward, discount, value, 1.0), **CLOSE)
    np.testing.assert_allclose(out.advantage, gae(reward, discount, value, 1.0), **CLOSE)


@given(trajectories())
@settings(deadline=None)
def test_lambda_1_is_the_bootstrapped_monte_carlo_return(arrays: tuple[Float32, Float32, Float32, Float32]) -> None:
    _, reward, discount, value = arrays
    expected, following = [], value[-1]
    for t in reversed(range(len(reward))):
        following = reward[t] + discount[t] * following
        expected.append(following)
    np.testing.assert_allclose(lambda_returns(reward, discount, value, 1.0), expected[::-1], **CLOSE)


@given(trajectories())
@settings(deadline=None)
def test_lambda_0_is_the_one_step_target(arrays: tuple[Float32, Float32, Float32, Float32]) -> None:
    log_ratio, reward, discount, value = arrays
    one_step = reward + discount * value[1:]
    np.testing.assert_allclose(lambda_returns(reward, discount, value, 0.0), one_step, **CLOSE)
    np.testing.assert_allclose(gae(reward, discount, value, 0.0), one_step - value[:-1], **CLOSE)
    out = vtrace(np.zeros_like(log_ratio), reward, discount, value, trace=0.0)
    np.testing.assert_allclose(out.target, one_step, **CLOSE)


@given(trajectories(), LAMBDAS)
@settings(deadline=None)
def test_discount_0_cuts(arrays: tuple[Float32, Float32, Float32, Float32], trace: float) -> None:
    """Nothing after an episode's end reaches back across it."""
    log_ratio, reward, discount, value = arrays
    middle = len(reward) // 2
    discount[middle] = 0
    others = [log_ratio.copy(), reward.copy(), discount.copy(), value.copy()]
    for array in others:
        array[middle + 1 :] += 77
    before = slice(0, middle + 1)
    assert np.array_equal(
        lambda_returns(reward, discount, value, trace)[before], lambda_returns(*others[1:], trace)[before]
    )
    assert np.array_equal(gae(reward, discount, value, trace)[before], gae(*others[1:], trace)[before])
    ours, theirs = vtrace(log_ratio, reward, discount, value, trace=trace), vtrace(*others, trace=trace)
    assert np.array_equal(ours.target[before], theirs.target[before])
    assert np.array_equal(ours.advantage[before], theirs.advantage[before])


@pytest.mark.parametrize("wrong", ["value", "discount"])
def test_shapes_are_asserted(wrong: str) -> None:
    value = VALUE[:-1] if wrong == "value" else VALUE
    discount = DISCOUNT[:-1] if wrong == "discount" else DISCOUNT
    for function in (lambda_returns, gae):
        with pytest.raises(AssertionError, match=wrong):
            function(REWARD, discount, value, 0.9)
    with pytest.raises(AssertionError, match=wrong):
        vtrace(np.zeros_like(REWARD), REWARD, discount, value)
