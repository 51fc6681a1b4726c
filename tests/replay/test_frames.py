"""Frames stored once against the ring that stores each in full: bit for bit the same, at a frame a transition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.errors import ConfigError
from qfleet.replay import frame_table, memory
from qfleet.replay.frames import FrameStorage, required_frame_bytes
from qfleet.replay.layout import looks_like_frames
from qfleet.replay.packing import pack, unpack
from qfleet.replay.prioritized import PrioritizedReplay
from qfleet.replay.storage import RingStorage, required_bytes
from qfleet.replay.uniform import UniformReplay
from qfleet.types import EnvSpec, Transitions

from .frame_streams import EVEN, SPEC, Stream, concatenate


def live_of(storage):
    return np.arange(storage.first_live_key, storage.num_inserted)


def transition(*shades: int, spec: EnvSpec = SPEC) -> Transitions:
    """One transition whose 2 K frames have these shades."""
    frames = np.array(shades, np.uint8).reshape(1, 2, spec.obs_shape[0], 1, 1)
    frames = np.broadcast_to(frames, (1, 2, *spec.obs_shape)).copy()
    number = np.array([shades[-1]])
    scalar = number.astype(np.float32)
    return Transitions(frames[:, 0], number % spec.num_actions, scalar, scalar, frames[:, 1])


@settings(deadline=None)  # the first example compiles
@given(
    spec=st.sampled_from([SPEC, EVEN]),
    capacity=st.integers(1, 40),
    num_envs=st.integers(1, 5),
    n_step=st.integers(1, 4),
    num_shades=st.sampled_from([None, 2, 5, 200]),
    end_share=st.sampled_from([0.0, 0.1, 0.7]),
    reach=st.sampled_from([None, 1, 7]),
    steps_per_batch=st.integers(1, 12),
    packed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_the_ring_that_stores_everything(
    assert_equal, spec, capacity, num_envs, n_step, num_shades, end_share, reach, steps_per_batch, packed, seed
):
    stream = Stream(
        spec, num_envs, n_step, seed=seed, num_shades=num_shades, end_share=end_share, invalid_share=end_share / 2
    )
    ring, frames = RingStorage(capacity, spec), FrameStorage(capacity, spec, reach)
    for batch in stream.batches(30, steps_per_batch):
        keys = frames.insert(pack(batch) if packed else batch)
        np.testing.assert_array_equal(keys, ring.insert(batch))
        frames.check_valid()
        assert frames.num_inserted == ring.num_inserted
        assert ring.first_live_key <= frames.first_live_key
        assert len(frames) >= min(len(ring), 1)
        live = live_of(frames)
        asked = np.arange(-1, frames.num_inserted + 2)
        np.testing.assert_array_equal(asked[frames.is_live(asked)], live)
        got = frames.gather(frames.slots_of(live))
        assert_equal(got, ring.gather(ring.slots_of(live)))
        assert_equal(unpack(frames.gather_packed(frames.slots_of(live))), got)
        if frames.num_dropped == 0:
            assert frames.first_live_key == ring.first_live_key


@pytest.mark.parametrize(("n_step", "steps_per_batch"), [(1, 1), (3, 1), (3, 8), (5, 2)])
def test_a_transition_costs_one_frame_and_none_goes_early(n_step, steps_per_batch):
    # 4 environments; nothing ends. Each step brings one frame, each environment K - 1 of its first stack repeat it.
    stream = Stream(SPEC, 4, n_step, end_share=0.0)
    storage = FrameStorage(64, SPEC)
    for batch in stream.batches(200, steps_per_batch):
        storage.insert(batch)
    assert storage.num_frames == 4 + 4 * 200
    assert (storage.num_dropped, len(storage)) == (0, 64)


def test_episodes_of_128_steps_still_fill_the_capacity():
    stream = Stream(SPEC, 4, 3, end_share=1 / 128, seed=1)
    # Needed are 4 environments x (n + K = 6) frames back; there are 3000 + 23 + 64 + 12 frames for 3000 rows
    storage = FrameStorage(3000, SPEC, reach=64)
    for batch in stream.batches(3000):
        storage.insert(batch)
    # About one frame a step and one an episode; twelve thousand steps, 94 episodes
    assert storage.num_frames < 12_000 * 1.02
    assert (storage.num_dropped, len(storage)) == (0, 3000)


def test_frames_that_nobody_shares_push_rows_out_early_and_are_counted(assert_equal):
    # Capacity 40, reach 40: 40 + 2 + 40 + 12 = 94 frames, and each row brings 6 of its own: 15 rows are whole.
    ring, storage = RingStorage(40, SPEC), FrameStorage(40, SPEC)
    for index in range(30):
        batch = transition(*range(6 * index, 6 * index + 6))
        ring.insert(batch)
        storage.insert(batch)
    assert (len(storage), storage.num_dropped, storage.first_live_key) == (15, 15, 15)
    live = live_of(storage)
    assert_equal(storage.gather(live), ring.gather(live))


def test_a_frame_beyond_reach_is_stored_again_so_that_no_row_dies_with_it():
    storage = FrameStorage(100, SPEC, reach=10)
    storage.insert(transition(0, 0, 1, 0, 1, 2))  # three frames
    assert storage.num_frames == 3
    for index in range(3):
        storage.insert(transition(*range(10 + 6 * index, 16 + 6 * index)))
    assert storage.num_frames == 21
    storage.insert(transition(25, 26, 27, 26, 27, 0))  # 25 to 27 are in reach; 0 is twenty frames back
    assert storage.num_frames == 22
    storage.insert(transition(0, 0, 0, 0, 0, 0))  # and now it is not
    assert storage.num_frames == 22


def test_a_ring_in_which_a_row_could_overwrite_its_own_frames_is_refused():
    pool = np.zeros((2, 1), np.uint64), np.zeros((0, 1), np.uint64)
    index = np.zeros((1, 4), np.int32)
    frame_table.FrameRing(10, 1, reach=6).store(pool, np.arange(1), index, 0)
    with pytest.raises(ValueError, match="10 frames are too few for 7 in reach and rows of 4"):
        frame_table.FrameRing(10, 1, reach=7).store(pool, np.arange(1), index, 0)


def colliding_frames() -> tuple[np.ndarray, np.ndarray]:
    """Two frames of two words with one hash: each step a -> fold((a ^ word) x prime) is the same for equal a ^ word."""
    prime, full = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def after(word: int) -> int:
        value = ((prime ^ word) * prime) & full
        return value ^ (value >> 32)

    one = (5, 77)
    two = (6, after(5) ^ 77 ^ after(6))
    return np.array(one, np.uint64), np.array(two, np.uint64)


def test_equal_hashes_of_different_frames_are_told_apart(assert_equal):
    words = colliding_frames()
    assert frame_table._hash(words[0]) == frame_table._hash(words[1])
    one, two = (word.view(np.uint8).reshape(4, 4) for word in words)
    assert not np.array_equal(one, two)
    mask = np.ones((1, 300), np.bool_)
    scalar = np.ones(1, np.float32)
    batch = Transitions(
        np.stack([one, two])[None], np.ones(1, np.int64), scalar, scalar, np.stack([two, one])[None], mask
    )
    storage = FrameStorage(4, EVEN)
    storage.insert(batch)  # told apart inside one batch
    storage.insert(batch)  # and against what is stored
    assert storage.num_frames == 2
    assert_equal(storage.gather(np.array([0, 1])), concatenate([batch, batch]))


@pytest.mark.parametrize("change", [lambda f: f[..., -1, -1], lambda f: f[..., 0, 0], lambda f: f[..., 2, 1]])
def test_one_pixel_makes_another_frame(change, assert_equal):
    first, second = transition(1, 1, 1, 1, 1, 1), transition(1, 1, 1, 1, 1, 1)
    change(second.next_obs)[...] ^= 128
    storage = FrameStorage(9, SPEC)
    storage.insert(concatenate([first, second]))
    assert storage.num_frames == 2
    assert_equal(storage.gather(np.arange(2)), concatenate([first, second]))


def test_gathered_columns_are_fresh_writable_tensors(assert_equal):
    batch = transition(1, 2, 3, 2, 3, 4)
    storage = FrameStorage(8, SPEC)
    storage.insert(batch)
    gathered = storage.gather(np.array([0, 0]))
    for name in ("obs", "next_obs", "reward", "discount", "action"):
        value = getattr(gathered, name)
        torch.from_numpy(value)[0] = 0
        assert np.all(value[0] == 0)
        np.testing.assert_array_equal(value[1], getattr(batch, name)[0])
    assert_equal(storage.gather(np.array([0])), batch)  # the ring kept its own


def test_read_only_and_strided_batches_are_taken(assert_equal):
    stream = Stream(SPEC, 3)
    batch = concatenate([stream.step() for _ in range(4)])
    reversed_batch = Transitions(
        batch.obs[::-1], batch.action[::-1], batch.reward[::-1], batch.discount[::-1], batch.next_obs[::-1]
    )
    batch.obs.flags.writeable = batch.next_obs.flags.writeable = False
    storage = FrameStorage(30, SPEC)
    storage.insert(batch)
    storage.insert(reversed_batch)
    assert_equal(storage.gather(np.arange(24)), concatenate([batch, reversed_batch]))


def test_bytes_are_true_and_known_before_anything_is_allocated(monkeypatch):
    atari = EnvSpec("Pong", (4, 84, 84), "uint8", 6)
    storage = FrameStorage(1000, atari)
    assert required_frame_bytes(1000, atari) == storage.nbytes
    # A row: 8 numbers of 8 bytes, 8 bytes of return and discount, an action, padded: 80. Frames: 1000 + 7 of slack,
    # 1000 in reach, 16 spare, each 7056 bytes and 16 of bookkeeping; a table of 512 x 4 places.
    assert storage.nbytes == 1000 * 80 + 2023 * (7056 + 16) + 512 * 4 * 8
    assert required_frame_bytes(1_000_000, atari) < required_bytes(1_000_000, atari) / 6.5
    monkeypatch.setattr(memory, "available_memory", lambda: 10 << 20)
    with pytest.raises(ConfigError, match=r"replay\.capacity: 1000000 transitions take .* MiB when full"):
        FrameStorage(1_000_000, atari)


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((4, 84, 84), "uint8", True),
        ((2, 84, 84), "uint8", True),
        ((1, 84, 84), "uint8", False),
        ((3, 84, 84), "uint8", False),  # colours
        ((84, 84, 4), "uint8", False),  # channels last
        ((4, 84, 84), "float32", False),
        ((4, 84), "uint8", False),
    ],
)
def test_what_looks_like_frames(shape, dtype, expected):
    assert looks_like_frames(EnvSpec("x", shape, dtype, 2)) is expected


def test_what_does_not_fit_is_refused_and_changes_nothing():
    with pytest.raises(ConfigError, match=r"replay\.capacity: 0"):
        FrameStorage(0, SPEC)
    with pytest.raises(ValueError, match="no stack of frames"):
        FrameStorage(4, EnvSpec("Vector-v0", (3,), "float32", 2))
    storage, batch = FrameStorage(4, SPEC), transition(1, 2, 3, 2, 3, 4)
    with pytest.raises(ValueError, match="of 4 transitions, not 5"):
        PrioritizedReplay(5, SPEC, np.random.default_rng(0), 0.6, storage=storage)
    packed = pack(batch)
    for bad, match in (
        (dataclasses.replace(batch, obs=batch.obs[:, :2]), "obs must be"),
        (dataclasses.replace(batch, next_obs=batch.next_obs.astype(np.int8)), "next_obs must be"),
        (dataclasses.replace(batch, reward=np.zeros(2, np.float32)), "reward"),
        (dataclasses.replace(packed, frames=packed.frames[:, :3]), "frames must be"),
        (dataclasses.replace(packed, frames=packed.frames[:2]), "points outside of the 2 frames"),
        (dataclasses.replace(packed, obs_index=packed.obs_index - 1), "obs_index points outside"),
        (dataclasses.replace(packed, next_index=packed.next_index.astype(np.int64)), "next_index must be int32"),
        (dataclasses.replace(packed, discount=np.zeros(2, np.float32)), "discount"),
    ):
        with pytest.raises(ValueError, match=match):
            storage.insert(bad)
        assert (storage.num_inserted, storage.num_frames) == (0, 0)


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_replays_never_draw_what_frames_have_left(kind):
    storage, generator = FrameStorage(40, SPEC), np.random.default_rng(0)
    replay: UniformReplay | PrioritizedReplay = (
        UniformReplay(40, SPEC, generator, storage=storage)
        if kind == "uniform"
        else PrioritizedReplay(40, SPEC, generator, 1.0, storage=storage)
    )
    shades = iter(range(10**6))
    for index in range(100):
        fresh = [next(shades) % 251 for _ in range(6)]
        replay.insert(transition(*fresh), np.array([1000.0 if index < 80 else 1.0]))
        sample = replay.sample(20)
        assert sample.keys.min() >= storage.first_live_key
        assert sample.num_transitions == len(replay)
        np.testing.assert_array_equal(sample.transitions.reward, (6 * sample.keys + 5) % 251)
    assert storage.num_dropped == 85  # 15 rows have all their frames, see above
    assert replay.update_priorities(np.arange(100), np.ones(100)) == (0 if kind == "uniform" else 15)
    probabilities = dict(zip(*(lambda s: (s.keys.tolist(), s.probabilities.tolist()))(replay.sample(600)), strict=True))
    assert sorted(probabilities) == list(range(85, 100))
    assert list(probabilities.values()) == pytest.approx([1 / 15] * 15)
