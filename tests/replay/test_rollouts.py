"""The rollout buffer gives every row once an epoch, in an order of its own, and goes on bit for bit after a load."""

from __future__ import annotations

import numpy as np
import pytest

from qfleet.errors import CheckpointError
from qfleet.replay.buffer import EmptyReplayError
from qfleet.replay.rollouts import RolloutBuffer
from qfleet.seeding import derive_generator
from qfleet.types import RolloutBatch

NUM_ROWS = 12


def rollout(first: int = 0, *, masked: bool = False) -> RolloutBatch:
    """Rows numbered from `first`: every column of row k says k."""
    number = np.arange(first, first + NUM_ROWS)
    return RolloutBatch(
        obs=np.stack([number, number + 0.5], axis=1).astype(np.float32),
        action=number,
        weight=number.astype(np.float32),
        target=number.astype(np.float32),
        advantage=number.astype(np.float32) if masked else None,
        action_mask=np.stack([number % 2 == 0, number % 2 == 1], axis=1) if masked else None,
    )


def buffer(*rollouts: RolloutBatch) -> RolloutBuffer:
    made = RolloutBuffer(NUM_ROWS, derive_generator(3, "rows"))
    for rows in rollouts:
        made.insert(rows)
    return made


def test_an_epoch_holds_every_row_once_and_the_next_one_has_another_order() -> None:
    filled = buffer(rollout())
    epochs = [np.concatenate([filled.sample(4).action for _ in range(3)]) for _ in range(2)]
    for order in epochs:
        assert sorted(order) == list(range(NUM_ROWS))
        assert list(order) != list(range(NUM_ROWS)), "shuffled"
    assert list(epochs[0]) != list(epochs[1])


def test_columns_stay_together() -> None:
    rows = buffer(rollout(masked=True)).sample(6)
    for column in (rows.weight, rows.target, rows.advantage, rows.obs[:, 0], rows.obs[:, 1] - 0.5):
        np.testing.assert_array_equal(column, rows.action)
    assert rows.action_mask is not None
    np.testing.assert_array_equal(rows.action_mask[:, 0], rows.action % 2 == 0)


def test_one_minibatch_is_the_rollout_as_it_is() -> None:
    filled = buffer(rollout())
    for _ in range(2):
        np.testing.assert_array_equal(filled.sample(NUM_ROWS).action, np.arange(NUM_ROWS))


def test_a_new_rollout_takes_the_place_of_what_is_left_of_the_last_one() -> None:
    filled = buffer(rollout())
    assert filled.is_fresh
    filled.sample(4)
    assert not filled.is_fresh
    filled.insert(rollout(100))
    assert filled.is_fresh
    assert min(np.concatenate([filled.sample(4).action for _ in range(6)])) == 100
    assert (len(filled), filled.num_inserted) == (NUM_ROWS, 2 * NUM_ROWS)


@pytest.mark.parametrize("num_drawn", [0, 1, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_a_loaded_buffer_gives_the_minibatches_that_the_saved_one_gives(num_drawn: int, masked: bool) -> None:
    saved, loaded = buffer(rollout(masked=masked)), RolloutBuffer(NUM_ROWS, derive_generator(99, "another"))
    for _ in range(num_drawn):
        saved.sample(4)
    arrays, values = saved.state_dict()
    loaded.load_state_dict({name: array.copy() for name, array in arrays.items()}, values)
    assert loaded.is_fresh == saved.is_fresh == (num_drawn == 0)
    for _ in range(7):  # into the epoch after the next
        expected, got = saved.sample(4), loaded.sample(4)
        np.testing.assert_array_equal(got.obs, expected.obs)
        np.testing.assert_array_equal(got.action, expected.action)
        assert (got.advantage is None) == (expected.advantage is None) == (not masked)


def test_an_empty_buffer_says_so_and_may_be_saved() -> None:
    empty, other = buffer(), buffer(rollout())
    with pytest.raises(EmptyReplayError, match="no rollout"):
        empty.sample(4)
    assert not empty.is_fresh
    other.load_state_dict(*empty.state_dict())
    with pytest.raises(EmptyReplayError):
        other.sample(4)


def test_a_rollout_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="12 rows for a buffer of 8"):
        RolloutBuffer(8, derive_generator(3, "rows")).insert(rollout())
    with pytest.raises(CheckpointError, match="12 rows, this run's 8"):
        RolloutBuffer(8, derive_generator(3, "rows")).load_state_dict(*buffer(rollout()).state_dict())
