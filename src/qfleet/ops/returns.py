"""Targets from trajectories: lambda returns, generalised advantages, V-trace.

Between a rollout and the minibatches made of it. Shapes: T time, E environments, time first; a discount of 0 cuts, so
a trajectory may run through several episodes. Vectorised over E, a loop over T.
Sutton (1988), Schulman et al. (2016, GAE), Espeholt et al. (2018, V-trace).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VTrace:
    """What V-trace gives the learner.

    Attributes:
        target: float32 [T, E], v_t, what the value of each observation acted on should be.
        advantage: float32 [T, E], rho_t (r_t + discount_t v_{t+1} - V_t), the factor of grad log pi(a_t | x_t).
    """

    target: Float32Array
    advantage: Float32Array


def lambda_returns(reward: Float32Array, discount: Float32Array, value: Float32Array, trace: float) -> Float32Array:
    """G_t = r_t + discount_t ((1 - lambda) V_{t+1} + lambda G_{t+1}), with G_T = V_T.

    Sutton and Barto (2018), equation 12.18; with V = max_a Q it is the Q(lambda) of Gallici et al. (2024, PQN).

    Args:
        reward: float32 [T, E].
        discount: float32 [T, E], gamma, 0 where the episode ended at this step.
        value: float32 [T + 1, E], of each observation acted on and of the one after the last step.
        trace: lambda; 0 is the one-step target, 1 the n-step return that bootstraps from the last value.

    Returns:
        float32 [T, E].
    """
    _assert_shapes(reward, discount, value)
    returns = np.empty_like(reward)
    next_return_E = value[-1]
    for t in reversed(range(len(reward))):
        blended_E = value[t + 1] + np.float32(trace) * (next_return_E - value[t + 1])
        next_return_E = returns[t] = reward[t] + discount[t] * blended_E
    return returns


def gae(reward: Float32Array, discount: Float32Array, value: Float32Array, trace: float) -> Float32Array:
    """A_t = delta_t + discount_t lambda A_{t+1}, with delta_t = r_t + discount_t V_{t+1} - V_t.

    Schulman et al. (2016), equation 16: the lambda return minus the value. Arguments and result as of
    `lambda_returns`.
    """
    _assert_shapes(reward, discount, value)
    advantage = reward + discount * value[1:] - value[:-1]
    decay_TE = discount * np.float32(trace)
    for t in reversed(range(len(reward) - 1)):
        advantage[t] += decay_TE[t] * advantage[t + 1]
    return advantage


def vtrace(
    log_ratio: Float32Array,
    reward: Float32Array,
    discount: Float32Array,
    value: Float32Array,
    *,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    trace: float = 1.0,
) -> VTrace:
    """V-trace targets and policy gradient advantages of trajectories that an older policy mu has made.

        rho_t = min(rho_clip, pi(a_t | x_t) / mu(a_t | x_t)),   c_t = lambda min(c_clip, the same ratio)
        delta_t = rho_t (r_t + discount_t V_{t+1} - V_t)
        v_t - V_t = delta_t + discount_t c_t (v_{t+1} - V_{t+1}),   v_T = V_T

    Espeholt et al. (2018), equation 1 in the recursive form of its remark 1, and the policy gradient of section 4.2.

    Args:
        log_ratio: float32 [T, E], log pi(a_t | x_t) - log mu(a_t | x_t).
        reward, discount: float32 [T, E]; as for `lambda_returns`.
        value: float32 [T + 1, E], by the learner's own network.
        rho_clip: decides which policy's values are learned: infinity gives those of pi, 0 those of mu.
        c_clip: how far a temporal difference reaches back; it changes the variance, not what is learned.
        trace: lambda.

    Returns:
        Targets and advantages, float32 [T, E] each.
    """
    _assert_shapes(reward, discount, value)
    assert log_ratio.shape == reward.shape, f"log_ratio {log_ratio.shape}, reward {reward.shape}"
    # The larger clip bounds the ratio before the exponential, which could not hold an unlikely action's.
    largest = np.log(max(rho_clip, c_clip)) if max(rho_clip, c_clip) > 0 else 0.0
    ratio_TE = np.exp(np.minimum(log_ratio, np.float32(largest)))
    rho_TE = np.minimum(ratio_TE, np.float32(rho_clip))
    decay_TE = discount * np.minimum(ratio_TE, np.float32(c_clip)) * np.float32(trace)
    correction = rho_TE * (reward + discount * value[1:] - value[:-1])
    for t in reversed(range(len(reward) - 1)):
        correction[t] += decay_TE[t] * correction[t + 1]
    target = value[:-1] + correction
    next_target_TE = np.concatenate([target[1:], value[-1:]])
    return VTrace(target, rho_TE * (reward + discount * next_target_TE - value[:-1]))


def _assert_shapes(reward: Float32Array, discount: Float32Array, value: Float32Array) -> None:
    assert reward.ndim == 2, f"expected rank 2, got shape {reward.shape}"
    assert discount.shape == reward.shape, f"discount {discount.shape}, reward {reward.shape}"
    assert value.shape == (len(reward) + 1, reward.shape[1]), f"value {value.shape}, reward {reward.shape}"
