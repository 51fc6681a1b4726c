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


def global_scale(smallest_R: npt.NDArray[np.float64], rank: int, exponent: float) -> float:
    """What the weights of one rank's batch are multiplied by, so that the largest of all ranks' together is 1.

    Each rank gives the same share of the global batch from a replay of its own, so R and N are the same factor for
    all: w_i = (P(i) / min_j P(j))^-exponent, with the minimum over all ranks. `importance_weights` took it over one.

    Args:
        smallest_R: float64 [R], the smallest probability in each rank's batch; all positive.
        rank: whose batch.
        exponent: beta.

    Returns:
        (min_j P(j) / the rank's own minimum)^exponent, at most 1.
    """
    return float((smallest_R.min() / smallest_R[rank]) ** exponent)
