"""Uniform replay: each transition is as likely as any other (Lin, 1992; Mnih et al., 2015).

Stands between the actor's insertions and the learner's samples where no priorities are kept.
"""

from __future__ import annotations

import json

import numpy as np

from qfleet.replay.buffer import EmptyReplayError, FloatVector, SamplerState
from qfleet.replay.packing import PackedTransitions
from qfleet.replay.storage import RingStorage, Storage
from qfleet.types import EnvSpec, IntArray, Sample, Transitions


class UniformReplay:
    """Draws uniformly, with replacement, from a ring of the newest transitions. See `buffer.Replay`.

    Args:
        capacity: most transitions kept.
        spec: shapes and dtypes of the environment.
        generator: where the draws come from; nobody else should use it.
        storage: an empty one to use instead of a new RingStorage of `capacity`.

    Raises:
        ConfigError: capacity is below 1, or the full ring does not fit into memory.
    """

    def __init__(
        self, capacity: int, spec: EnvSpec, generator: np.random.Generator, *, storage: Storage | None = None
    ) -> None:
        self.storage: Storage = RingStorage(capacity, spec) if storage is None else storage
        self._generator = generator

    @property
    def capacity(self) -> int:
        """Most transitions kept."""
        return self.storage.capacity

    @property
    def num_inserted(self) -> int:
        """Transitions inserted since the beginning, overwritten ones included."""
        return self.storage.num_inserted

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return self.storage.nbytes

    @property
    def total(self) -> float:
        """The number of rows: each weighs 1."""
        return float(len(self.storage))

    def __len__(self) -> int:
        return len(self.storage)

    def insert(self, transitions: Transitions | PackedTransitions, priorities: FloatVector | None = None) -> IntArray:
        """Stores N transitions and returns their keys, int64 [N]. `priorities` have no meaning here."""
        return self.storage.insert(transitions)

    def sample(self, batch_size: int) -> Sample:
        """Draws `batch_size` transitions uniformly, with replacement.

        Raises:
            EmptyReplayError: nothing was inserted yet.
        """
        storage = self.storage
        first, end = storage.first_live_key, storage.num_inserted
        if first == end:
            raise EmptyReplayError("replay is empty: insert transitions before sampling")
        keys = self._generator.integers(first, end, batch_size)
        slots = keys if end <= storage.capacity else storage.slots_of(keys)
        return Sample(keys, storage.gather(slots), np.full(batch_size, 1.0 / (end - first)), end - first)

    def update_priorities(self, keys: IntArray, priorities: FloatVector) -> int:
        """Does nothing and returns 0: there are no priorities here."""
        return 0

    def sampler_state(self) -> SamplerState:
        """The generator's state; nothing else decides the draws."""
        return SamplerState(generator=json.dumps(self._generator.bit_generator.state))

    def check_sampler_state(self, state: SamplerState) -> None:
        """Raises ValueError if `state` is not a uniform replay's, or of another bit generator."""
        if state.leaves is not None:
            raise ValueError("it was saved by a prioritized replay; this one is uniform")
        check_generator_state(self._generator, state.generator)

    def restore_sampler(self, state: SamplerState) -> None:
        """Goes on drawing where `state` left off."""
        self._generator.bit_generator.state = json.loads(state.generator)


def check_generator_state(generator: np.random.Generator, saved: str) -> None:
    """Raises ValueError if the JSON `saved` is not a state of this generator's kind of bit generator."""
    state = json.loads(saved)
    ours = generator.bit_generator.state
    if not isinstance(state, dict) or state.get("bit_generator") != ours["bit_generator"]:
        raise ValueError(f"its generator state is not one of {ours['bit_generator']}")
    try:
        type(generator.bit_generator)().state = state
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"its generator state is damaged: {error!r}") from error
