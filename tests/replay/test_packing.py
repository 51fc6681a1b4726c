"""Transitions on the wire: each frame of a batch once, and the same transitions at the other end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.replay.frames import FrameStorage
from qfleet.replay.packing import pack, pack_sample, unpack, unpack_sample
from qfleet.replay.storage import RingStorage
from qfleet.replay.uniform import UniformReplay
from qfleet.types import EnvSpec

from .frame_streams import EVEN, SPEC, Stream, concatenate


@settings(deadline=None)  # the first example compiles
@given(
    spec=st.sampled_from([SPEC, EVEN]),
    num_envs=st.integers(1, 4),
    n_step=st.integers(1, 3),
    num_shades=st.sampled_from([None, 2]),
    num_steps=st.integers(1, 12),
)
def test_unpacked_is_what_was_packed(assert_equal, spec, num_envs, n_step, num_shades, num_steps):
    stream = Stream(spec, num_envs, n_step, num_shades=num_shades, end_share=0.2)
    for batch in stream.batches(24, num_steps):
        packed = pack(batch)
        assert len(packed) == len(batch)
        assert_equal(unpack(packed), batch)
        assert len({frame.tobytes() for frame in packed.frames}) == len(packed.frames)  # none twice
        used = np.concatenate([packed.obs_index.ravel(), packed.next_index.ravel()])
        assert set(used.tolist()) == set(range(len(packed.frames)))  # none too many


def test_a_rollout_costs_about_one_frame_a_transition():
    # 8 environments, 20 steps, nothing ends: a frame each at first, then one a step
    batch = concatenate([Stream(SPEC, 8, end_share=0.0, seed=3).step() for _ in range(1)])
    assert len(pack(batch).frames) == 8 + 8
    rollout = next(Stream(SPEC, 8, end_share=0.0).batches(20, 20))
    assert len(pack(rollout).frames) == 8 + 8 * 20


def test_bytes_on_the_wire():
    atari = EnvSpec("Pong", (4, 84, 84), "uint8", 6)
    rollout = next(Stream(atari, 4, end_share=0.0).batches(10, 10))
    packed = pack(rollout)
    # 44 frames of 7056 bytes; 40 transitions of 8 indices of 4 bytes, action 8, reward and discount 4 each
    assert packed.nbytes == 44 * 7056 + 40 * (32 + 16)


def test_either_storage_takes_packed_ones(assert_equal):
    batch = next(Stream(EVEN, 3, 2).batches(9, 9))
    for storage in (RingStorage(50, EVEN), FrameStorage(50, EVEN)):
        keys = storage.insert(pack(batch))
        assert_equal(storage.gather(storage.slots_of(keys)), batch)


def test_samples_travel_packed(assert_equal):
    replay = UniformReplay(50, EVEN, np.random.default_rng(0))
    replay.insert(next(Stream(EVEN, 3, 2).batches(9, 9)))
    sample = replay.sample(12)
    packed = pack_sample(sample)
    assert len(packed.transitions.frames) < 2 * 2 * 12
    back = unpack_sample(packed)
    assert_equal(back.transitions, sample.transitions)
    np.testing.assert_array_equal(back.keys, sample.keys)
    np.testing.assert_array_equal(back.probabilities, sample.probabilities)
    assert back.num_transitions == sample.num_transitions


def test_only_stacks_of_frames_are_packed(numbered, vector_spec):
    with pytest.raises(ValueError, match="float32"):
        pack(numbered(vector_spec, range(3)))
