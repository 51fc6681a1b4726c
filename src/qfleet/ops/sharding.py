"""One prioritized draw over several replay shards: how many each gives, and how probable each transition was.

Draw shard s with p_s = total_s / sum, then i within s with p(i | s) = priority_i / total_s. The product is
priority_i / sum: the same as one replay holding all (Schaul et al. 2016; Horgan et al. 2018 for the fleet).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qfleet.types import IntArray

FloatVector = npt.NDArray[np.float64]


def shard_shares(totals_S: FloatVector) -> FloatVector:
    """p_s = total_s / sum. float64 [S], the sum of priorities in each shard -> float64 [S].

    Raises:
        ValueError: a total is NaN, infinite or negative, or all are 0.
    """
    totals_S = np.asarray(totals_S, np.float64)
    total = float(totals_S.sum())
    if not np.all(totals_S >= 0.0) or not 0.0 < total < np.inf:
        raise ValueError(f"the shards' totals must be finite, none negative and some positive, got {totals_S.tolist()}")
    return totals_S / total


def draw_counts(totals_S: FloatVector, batch_size: int, generator: np.random.Generator) -> IntArray:
    """How many transitions of the batch each shard gives: multinomial, in proportion to its total priority.

    A shard whose total is 0 gives none. Where only one has a total it gives all, and no randomness is drawn.

    Args:
        totals_S: float64 [S], the sum of priorities in each shard, as its sum tree has it.
        batch_size: B, transitions to draw.

    Returns:
        int64 [S], summing to B.

    Raises:
        ValueError: a total is NaN, infinite or negative, or all are 0.
    """
    shares_S = shard_shares(totals_S)
    counts_S = np.zeros(len(shares_S), np.int64)
    # Empty shards stay out of the draw: numpy gives what rounding leaves over to the last category, whatever its share.
    filled = np.flatnonzero(shares_S)
    counts_S[filled] = generator.multinomial(batch_size, shares_S[filled])
    return counts_S


def global_probabilities(local_probability_B: FloatVector, share: float) -> FloatVector:
    """p(i) = p(i | s) * p_s: the chance that one draw over all shards picks i. float64 [B] -> float64 [B].

    Args:
        local_probability_B: float64 [B], the chance within the shard, as it was drawn there.
        share: p_s, of the totals that `draw_counts` was given. With that one the product is the chance with which i
            was really drawn, even where the shard's total has changed meanwhile.

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a shard's share is {share}; it must be above 0 and at most 1")
    return local_probability_B * share
