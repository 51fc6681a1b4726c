"""Importance weights for prioritized replay. Replay gives probabilities; only the learner turns them into weights.

Schaul et al. (2016), Prioritized Experience Replay, section 3.4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def importance_weights(
    probabilities_B: npt.NDArray[np.float64], num_transitions: int, exponent: float
) -> npt.NDArray[np.float32]:
    """w_i = (N P(i))^-exponent / max_j w_j, over the global batch.

    Args:
        probabilities_B: float64 [B], the chance that one draw picks this transition; all positive.
        num_transitions: N, how many transitions could have been drawn.
        exponent: beta, from 0 (no correction) to 1 (full).

    Returns:
        float32 [B], the largest one 1.
    """
    assert probabilities_B.ndim == 1
    weights_B = np.power(num_transitions * probabilities_B, -exponent)
    return np.asarray(weights_B / weights_B.max(), dtype=np.float32)
