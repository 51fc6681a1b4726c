"""Importance weights for prioritized replay. Replay gives probabilities; only the learner turns them into weights.

Schaul et al. (2016), Prioritized Experience Replay, section 3.4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def importance_weights(
    probabilities_B: npt.NDArray[np.float64],
    num_transitions: int,
    exponent: float,
    smallest_probability: float | None = None,
) -> npt.NDArray[np.float32]:
    """w_i = (N P(i))^-exponent / max_j w_j, over the global batch.

    Args:
        probabilities_B: float64 [B], the chance that one draw picks this transition; all positive.
        num_transitions: N, how many transitions could have been drawn.
        exponent: beta, from 0 (no correction) to 1 (full).
        smallest_probability: of the global batch, where these B are one learner's part of it; None: these are all.

    Returns:
        float32 [B]; the largest one of the global batch is 1.
    """
    assert probabilities_B.ndim == 1
    weights_B = np.power(num_transitions * probabilities_B, -exponent)
    if smallest_probability is None:
        largest = weights_B.max()
    else:
        largest = np.power(num_transitions * smallest_probability, -exponent)
    return np.asarray(weights_B / largest, dtype=np.float32)
