"""Behaviour policies: from action values to actions. numpy, because environments live there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qfleet.types import BoolArray, FloatArray, IntArray


def greedy(q_values_EA: FloatArray, action_mask_EA: BoolArray | None = None) -> IntArray:
    """argmax over the legal actions; the first one where several are equal. float [E, A] -> int64 [E]."""
    assert q_values_EA.ndim == 2
    if action_mask_EA is not None:
        q_values_EA = np.where(action_mask_EA, q_values_EA, -np.inf)
    actions_E: IntArray = q_values_EA.argmax(axis=1)
    return actions_E


def random_legal(num_actions: int, action_mask_EA: BoolArray, generator: np.random.Generator) -> IntArray:
    """One legal action a row, each legal one equally likely. bool [E, A] -> int64 [E]."""
    keys_EA = generator.random((len(action_mask_EA), num_actions))
    actions_E: IntArray = np.where(action_mask_EA, keys_EA, -1.0).argmax(axis=1)
    return actions_E


def epsilon_greedy(
    q_values_EA: FloatArray,
    epsilon: float | npt.NDArray[np.float64],
    generator: np.random.Generator,
    action_mask_EA: BoolArray | None = None,
) -> IntArray:
    """With probability epsilon (a number, or one per row) a uniformly random legal action, else the greedy one.

    float [E, A] -> int64 [E]. Draws the same amount of randomness whatever the values are.
    """
    num_rows, num_actions = q_values_EA.shape
    actions_E = greedy(q_values_EA, action_mask_EA)
    explore_E = generator.random(num_rows) < epsilon
    if action_mask_EA is None:
        return np.where(explore_E, generator.integers(num_actions, size=num_rows), actions_E)
    return np.where(explore_E, random_legal(num_actions, action_mask_EA, generator), actions_E)


def sample_policy(policy_EA: FloatArray, generator: np.random.Generator) -> IntArray:
    """One action a row, each as often as its probability says; never one of probability 0. float [E, A] -> int64 [E].

    Rows need not add up to exactly 1. Draws one number a row.
    """
    assert policy_EA.ndim == 2
    cumulative_EA = policy_EA.cumsum(axis=1, dtype=np.float64)
    threshold_E = generator.random(len(policy_EA)) * cumulative_EA[:, -1]
    actions_E: IntArray = (cumulative_EA > threshold_E[:, None]).argmax(axis=1)
    return actions_E
