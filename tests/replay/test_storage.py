"""The ring of packed rows: every column in its place, keys with generations, views fit for torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfleet.errors import ConfigError
from qfleet.replay import memory
from qfleet.replay.layout import row_dtype
from qfleet.replay.storage import RingStorage, required_bytes
from qfleet.types import EnvSpec


def test_every_column_comes_back_as_inserted(spec, numbered, assert_equal):
    storage = RingStorage(10, spec)
    keys = storage.insert(numbered(spec, range(7)))
    np.testing.assert_array_equal(keys, np.arange(7))
    order = np.array([6, 0, 3, 3])
    assert_equal(storage.gather(order), numbered(spec, order))


@given(capacity=st.integers(1, 9), sizes=st.lists(st.integers(0, 23), max_size=8))
def test_ring_holds_the_newest_rows_under_any_batch_sizes(numbered, assert_equal, vector_spec, capacity, sizes):
    storage, inserted = RingStorage(capacity, vector_spec), 0
    for size in sizes:
        keys = storage.insert(numbered(vector_spec, range(inserted, inserted + size)))
        np.testing.assert_array_equal(keys, np.arange(inserted, inserted + size))
        inserted += size
        live = np.arange(max(inserted - capacity, 0), inserted)
        assert (len(storage), storage.num_inserted) == (len(live), inserted)
        asked = np.arange(-1, inserted + 2)
        np.testing.assert_array_equal(asked[storage.is_live(asked)], live)
        assert_equal(storage.gather(storage.slots_of(live)), numbered(vector_spec, live))


def test_gathered_columns_are_writable_tensors_of_one_block(spec, numbered):
    storage = RingStorage(8, spec)
    storage.insert(numbered(spec, range(8)))
    gathered = storage.gather(np.array([1, 5, 2]))
    for name in ("obs", "next_obs", "reward", "discount", "action"):
        value = getattr(gathered, name)
        tensor = torch.from_numpy(value)
        tensor[0] = 0
        assert np.all(value[0] == 0), f"{name} is not shared with torch"
        if name != "action":
            assert np.may_share_memory(value, gathered.obs.base)
    np.testing.assert_array_equal(storage.gather(np.array([1])).obs, numbered(spec, [1]).obs)  # the ring kept its own


def test_row_is_packed_and_its_bytes_are_known_before_allocation():
    cart_pole = EnvSpec("CartPole-v1", (4,), "float32", 2)
    # 16 + 16 observations, 4 reward, 4 discount, 1 action = 41, padded to 48
    assert row_dtype(cart_pole).itemsize == 48
    assert required_bytes(1000, cart_pole) == RingStorage(1000, cart_pole).nbytes == 48_000
    # 28224 twice, 8, 1 and a mask of 6 = 56463, padded to 56464
    atari = EnvSpec("Pong", (4, 84, 84), "uint8", 6, has_action_mask=True)
    assert required_bytes(1, atari) == 56_464
    # 300 actions need two bytes: 2 x 3 observations + 8 + 2 = 16 (action at offset 14)
    assert row_dtype(EnvSpec("X", (3,), "uint8", 300)).itemsize == 16
    # 70000 actions need four, aligned: 8 + 6 = 14, action at 16, end at 20, padded to 24
    row = row_dtype(EnvSpec("X", (3,), "uint8", 70_000))
    assert row.fields is not None
    assert (row.fields["action"][1], row.itemsize) == (16, 24)


def test_rows_of_read_only_arrays_are_accepted(vector_spec, numbered, assert_equal):
    transitions = numbered(vector_spec, range(3))
    for field in dataclasses.fields(transitions):
        value = getattr(transitions, field.name)
        if value is not None:
            value.flags.writeable = False
    storage = RingStorage(3, vector_spec)
    storage.insert(transitions)
    assert_equal(storage.gather(np.arange(3)), transitions)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("obs", np.zeros((1, 3), np.float32)),  # would broadcast
        ("next_obs", np.zeros((4, 3), np.float64)),  # would be narrowed
        ("reward", np.zeros(1, np.float32)),
        ("discount", np.zeros(5, np.float32)),
    ],
)
def test_other_shapes_and_dtypes_are_refused(vector_spec, numbered, field, value):
    storage = RingStorage(8, vector_spec)
    with pytest.raises(ValueError, match=field):
        storage.insert(dataclasses.replace(numbered(vector_spec, range(4)), **{field: value}))
    assert storage.num_inserted == 0


def test_missing_mask_is_refused(numbered):
    spec = EnvSpec("Masked", (2,), "float32", 3, has_action_mask=True)
    without = dataclasses.replace(numbered(spec, range(2)), next_action_mask=None)
    with pytest.raises(ValueError, match="next_action_mask"):
        RingStorage(4, spec).insert(without)


def test_capacity_below_one_is_refused(vector_spec):
    with pytest.raises(ConfigError, match=r"replay\.capacity: 0"):
        RingStorage(0, vector_spec)


def test_a_ring_that_cannot_ever_fit_is_refused_before_allocation(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10 << 20)
    atari = EnvSpec("Pong", (4, 84, 84), "uint8", 6)
    with pytest.raises(ConfigError, match=r"replay\.capacity: 1000000 transitions take .* at most 167 would fit"):
        RingStorage(1_000_000, atari)
    RingStorage(167, atari)


def test_numba_stays_out_until_prioritized_replay_is_imported():
    modules = "qfleet.replay.uniform, qfleet.replay.n_step, qfleet.replay.redistribute, qfleet.replay.packing"
    code = f"import sys, {modules}; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
