"""Transitions on the wire: frames that a batch shares travel once.

Between an actor and the replay of another process, and between that replay and the learner. In a rollout of frame
stacks each frame is in up to 2 K observations; packed, a transition costs about one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qfleet.types import BoolArray, IntArray, Sample, Transitions


@dataclass(frozen=True, slots=True)
class PackedTransitions:
    """N transitions whose observations are stacks of K of F frames; the other fields are those of `Transitions`.

    Attributes:
        frames: uint8 [F, H, W].
        obs_index, next_index: int32 [N, K], in [0, F).
    """

    frames: npt.NDArray[np.uint8]
    obs_index: npt.NDArray[np.int32]
    next_index: npt.NDArray[np.int32]
    action: IntArray
    reward: npt.NDArray[np.float32]
    discount: npt.NDArray[np.float32]
    next_action_mask: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.action)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        mask = 0 if self.next_action_mask is None else self.next_action_mask.nbytes
        arrays = (self.frames, self.obs_index, self.next_index, self.action, self.reward, self.discount)
        return mask + sum(array.nbytes for array in arrays)


@dataclass(frozen=True, slots=True)
class PackedSample:
    """A `Sample` whose transitions are packed."""

    keys: IntArray
    transitions: PackedTransitions
    probabilities: npt.NDArray[np.float64]
    num_transitions: int


def pack(transitions: Transitions) -> PackedTransitions:
    """Stores equal frames once; all arrays are new, except those other than observations.

    Raises:
        ValueError: observations are not uint8 [N, K, H, W].
    """
    obs, next_obs = transitions.obs, transitions.next_obs
    if obs.ndim != 4 or obs.dtype != np.uint8 or obs.shape != next_obs.shape or obs.dtype != next_obs.dtype:
        raise ValueError(f"only stacks of frames can be packed, uint8 [N, K, H, W]; got {obs.dtype} {list(obs.shape)}")
    from qfleet.replay import frame_table  # loads numba, which whoever only unpacks can do without

    num, num_stack, *shape = obs.shape
    pool = frame_table.as_words(obs), frame_table.as_words(next_obs)
    index = all_frames(num, num_stack)
    source = frame_table.find_unique(pool, index)
    words = np.empty((len(source), pool[0].shape[1]), np.uint64)
    in_obs = source < len(pool[0])
    words[in_obs], words[~in_obs] = pool[0][source[in_obs]], pool[1][source[~in_obs] - len(pool[0])]
    return PackedTransitions(
        frames=np.ascontiguousarray(frame_table.as_frames(words, (shape[0], shape[1]))),
        obs_index=index[:, :num_stack].copy(),
        next_index=index[:, num_stack:].copy(),
        action=transitions.action,
        reward=transitions.reward,
        discount=transitions.discount,
        next_action_mask=transitions.next_action_mask,
    )


def unpack(packed: PackedTransitions) -> Transitions:
    """The transitions that were packed, bit for bit.

    Raises:
        IndexError: an index points outside the frames.
    """
    return Transitions(
        obs=packed.frames.take(packed.obs_index, axis=0),
        action=packed.action,
        reward=packed.reward,
        discount=packed.discount,
        next_obs=packed.frames.take(packed.next_index, axis=0),
        next_action_mask=packed.next_action_mask,
    )


def pack_sample(sample: Sample) -> PackedSample:
    """A sample for the wire; see `pack`."""
    return PackedSample(sample.keys, pack(sample.transitions), sample.probabilities, sample.num_transitions)


def unpack_sample(packed: PackedSample) -> Sample:
    """The sample that was packed."""
    return Sample(packed.keys, unpack(packed.transitions), packed.probabilities, packed.num_transitions)


def all_frames(num: int, num_stack: int) -> npt.NDArray[np.int32]:
    """int32 [N, 2 K]: where the frames of N transitions are if all obs come first, then all next_obs."""
    index = np.arange(2 * num * num_stack, dtype=np.int32).reshape(2, num, num_stack)
    return np.ascontiguousarray(index.transpose(1, 0, 2)).reshape(num, 2 * num_stack)
