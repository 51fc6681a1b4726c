"""The one pacing rule: how many updates the transitions inserted so far allow."""

from __future__ import annotations


def updates_allowed(
    num_inserted: int, num_samples: int, min_transitions: int, samples_per_insert: float, batch_size: int
) -> int:
    """How many more updates of `batch_size` samples fit under `samples_per_insert`.

    Inserts count from `min_transitions` on; `num_samples` includes samples reserved by calls under way.
    """
    budget = (num_inserted - min_transitions) * samples_per_insert - num_samples
    return max(0, int(budget // batch_size))


def measured_samples_per_insert(num_inserted: int, num_samples: int, min_transitions: int) -> float:
    """Transitions trained on per transition inserted since `min_transitions` were in; 0 before that."""
    counted = num_inserted - min_transitions
    return num_samples / counted if counted > 0 else 0.0
