"""What a replay is to the roles above it, whichever way it draws: insert, sample, update_priorities.

Replay gives probabilities, never weights: only the learner turns them into importance weights, over the global
batch. A uniform replay accepts and ignores priorities, so that a caller need not know which one it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qfleet.errors import QfleetError
from qfleet.replay.packing import PackedTransitions
from qfleet.replay.storage import Storage
from qfleet.types import IntArray, Sample, Transitions

FloatVector = npt.NDArray[np.float64]

PRIORITY_EPSILON = 1e-6  # keeps a transition whose TD error was zero drawable


class EmptyReplayError(QfleetError):
    """A sample was asked of a replay that has nothing to draw from."""


class InvalidPriorityError(QfleetError):
    """A priority is NaN, infinite or negative: most often the sign of a loss that diverged."""


@dataclass(frozen=True, slots=True)
class SamplerState:
    """All that decides a replay's future draws, beside its rows.

    Attributes:
        generator: the numpy bit generator's state as JSON.
        alpha: the priority exponent, None for a uniform replay.
        max_leaf: largest exponentiated priority seen, None for a uniform replay.
        leaves: float64 [len], exponentiated priorities in order of keys, None for a uniform replay.
    """

    generator: str
    alpha: float | None = None
    max_leaf: float | None = None
    leaves: FloatVector | None = None


def leaf_without_priority(max_leaf: float, alpha: float) -> float:
    """The leaf of a transition that comes without a priority: the largest seen, that of priority 1 before any was."""
    return max_leaf or (1.0 + PRIORITY_EPSILON) ** alpha


class Replay(Protocol):
    """A bounded store of transitions with a rule for drawing from it.

    Attributes:
        storage: the rows; the rule never looks inside them.
        capacity: most transitions kept.
        num_inserted: transitions inserted since the beginning, overwritten ones included.
        nbytes: bytes when full, the sampler's own included.
        total: what one draw divides by: the sum of exponentiated priorities, the number of rows of a uniform replay.
    """

    storage: Storage

    @property
    def capacity(self) -> int: ...

    @property
    def num_inserted(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def total(self) -> float: ...

    def __len__(self) -> int: ...

    def insert(self, transitions: Transitions | PackedTransitions, priorities: FloatVector | None = None) -> IntArray:
        """Stores N transitions; `priorities` float64 [N] are |TD errors|, None means the largest seen so far.

        Returns:
            int64 [N], their keys.

        Raises:
            InvalidPriorityError: a priority is NaN, infinite or negative; nothing was inserted.
            ValueError: shapes or dtypes differ from the environment's.
        """
        ...

    def sample(self, batch_size: int) -> Sample:
        """Draws `batch_size` transitions, with replacement.

        Raises:
            EmptyReplayError: nothing was inserted yet.
        """
        ...

    def update_priorities(self, keys: IntArray, priorities: FloatVector) -> int:
        """Sets the priorities (float64 [B], |TD errors|) of `keys` (int64 [B]); stale keys are left out.

        Returns:
            how many were applied; 0 for a uniform replay.

        Raises:
            InvalidPriorityError: a priority is NaN, infinite or negative; none was applied.
        """
        ...

    def sampler_state(self) -> SamplerState:
        """What to save beside the rows so that the draws go on bit for bit."""
        ...

    def check_sampler_state(self, state: SamplerState) -> None:
        """Raises ValueError if `state` is not one that this replay can take over; changes nothing."""
        ...

    def restore_sampler(self, state: SamplerState) -> None:
        """Takes over a state that passed the check, after the rows and their counters are in place."""
        ...
