"""Saves of replays that store frames once: each in one file, draws that go on bit for bit, either kind to either."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.errors import CheckpointError
from qfleet.replay import segments
from qfleet.replay.frames import FrameStorage
from qfleet.replay.prioritized import PrioritizedReplay
from qfleet.replay.redistribute import ReplaySource, merge_replay
from qfleet.replay.segments import load_replay, save_replay
from qfleet.replay.storage import RingStorage
from qfleet.replay.uniform import UniformReplay

from .frame_streams import SPEC, Stream
from .test_frames import live_of, transition


def make(kind, capacity=40, seed=0, *, once=True, reach=None):
    generator = np.random.default_rng(seed)
    storage = FrameStorage(capacity, SPEC, reach) if once else RingStorage(capacity, SPEC)
    if kind == "uniform":
        return UniformReplay(capacity, SPEC, generator, storage=storage)
    return PrioritizedReplay(capacity, SPEC, generator, 0.6, storage=storage)


@pytest.fixture(params=["uniform", "prioritized"])
def kind(request):
    return request.param


def feed(replay, batches):
    for batch in batches:
        keys = replay.insert(batch)
        replay.update_priorities(keys, (keys % 5) + 0.5)


def ranges(files, table):
    """(first, end) of a table's chunk files."""
    pattern = r"replay-(\d+)-(\d+)-" if table == "rows" else r"replay-frames-(\d+)-(\d+)-"
    matches = [re.match(pattern, file.path) for file in files]
    return [(int(match[1]), int(match[2])) for match in matches if match]


def assert_same_future(left, right, batches, assert_equal):
    """Insertions, drops and draws go the same way in both."""
    for batch in batches:
        for replay in (left, right):
            replay.insert(batch)
        assert left.storage.first_live_key == right.storage.first_live_key
        assert left.storage.num_frames == right.storage.num_frames
        one, two = left.sample(7), right.sample(7)
        np.testing.assert_array_equal(one.keys, two.keys)
        np.testing.assert_array_equal(one.probabilities, two.probabilities)
        assert_equal(one.transitions, two.transitions)
        assert left.update_priorities(one.keys, np.ones(7)) == right.update_priorities(two.keys, np.ones(7))


@settings(deadline=None)  # the first example compiles
@given(
    kind=st.sampled_from(["uniform", "prioritized"]),
    capacity=st.integers(1, 40),
    reach=st.sampled_from([None, 3]),
    num_shades=st.sampled_from([None, 3]),
    end_share=st.sampled_from([0.0, 0.1, 0.9]),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_a_loaded_replay_goes_on_bit_for_bit(
    tmp_path_factory, assert_equal, kind, capacity, reach, num_shades, end_share, lengths, seed
):
    folder = tmp_path_factory.mktemp("save")
    stream = Stream(SPEC, 3, 2, seed=seed, num_shades=num_shades, end_share=end_share, invalid_share=end_share / 3)
    original, files = make(kind, capacity, reach=reach), []
    for index, length in enumerate(lengths):
        feed(original, stream.batches(length))
        files = save_replay(original, folder, files, f"at{index}")
    loaded = make(kind, capacity, seed=99, reach=reach)
    feed(loaded, Stream(SPEC, 3, seed=5).batches(4))  # what was there before is replaced
    load_replay(loaded, folder, files)
    loaded.storage.check_valid()
    live = live_of(original.storage)
    assert live.tolist() == live_of(loaded.storage).tolist()
    assert_equal(
        loaded.storage.gather(loaded.storage.slots_of(live)), original.storage.gather(original.storage.slots_of(live))
    )
    after = [batch for batch in stream.batches(40) if len(batch)]
    assert_same_future(original, loaded, after, assert_equal)


def test_every_frame_is_written_once(tmp_path, kind):
    stream, replay, files, written = Stream(SPEC, 2, end_share=0.0), make(kind, 100), [], 0
    for index in range(4):
        feed(replay, stream.batches(5))
        before = {file.path for file in files}
        files = save_replay(replay, tmp_path, files, f"at{index}")
        written += sum(file.num_bytes for file in files if "frames" in file.path and file.path not in before)
    # 2 environments: a frame each, then one a step; rows and frames are named by ranges that do not overlap
    assert ranges(files, "rows") == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert ranges(files, "frames") == [(0, 12), (12, 22), (22, 32), (32, 42)]
    assert written < 42 * 20 + 4 * 400  # pixels and four headers


def test_frames_stay_listed_while_a_row_or_the_table_needs_them(tmp_path, kind, assert_equal):
    stream, replay, files = Stream(SPEC, 1, end_share=0.0), make(kind, 10, reach=4), []
    for index in range(6):
        feed(replay, stream.batches(4))
        files = save_replay(replay, tmp_path, files, f"at{index}")
    # Rows 14 to 23 live. Row k has the frames k - 2 to k + 1 (frame 0 is the first stack), so 12 on are needed.
    assert ranges(files, "rows") == [(12, 16), (16, 20), (20, 24)]
    assert ranges(files, "frames") == [(9, 13), (13, 17), (17, 21), (21, 25)]
    loaded = make(kind, 10, seed=3, reach=4)
    load_replay(loaded, tmp_path, files)
    assert_same_future(replay, loaded, stream.batches(30), assert_equal)


@pytest.mark.parametrize("capacity", [3, 17, 80])
def test_another_capacity_takes_the_newest(tmp_path, kind, assert_equal, capacity):
    stream, original = Stream(SPEC, 3, 2, seed=4), make(kind, 40)
    feed(original, stream.batches(60))
    end = original.num_inserted
    other = make(kind, capacity, seed=9)
    load_replay(other, tmp_path, save_replay(original, tmp_path, [], "a"))
    other.storage.check_valid()
    live = live_of(other.storage)
    assert live.tolist() == list(range(end - min(capacity, 40), end))
    expected = original.storage.gather(original.storage.slots_of(live))
    assert_equal(other.storage.gather(other.storage.slots_of(live)), expected)
    feed(other, stream.batches(100))
    assert len(other) == capacity
    assert set(other.sample(900).keys.tolist()) == set(live_of(other.storage).tolist())


def test_rows_whose_frames_do_not_fit_any_more_are_dropped_on_loading(tmp_path, kind):
    original = make(kind, 40)
    feed(original, (transition(*range(6 * index, 6 * index + 6)) for index in range(12)))
    other = make(kind, 10, seed=1)  # 10 + 0 + 10 + 12 frames: five rows of six
    load_replay(other, tmp_path, save_replay(original, tmp_path, [], "a"))
    assert live_of(other.storage).tolist() == [7, 8, 9, 10, 11]
    sample = other.sample(50)
    np.testing.assert_array_equal(sample.transitions.reward, 6 * sample.keys + 5)
    assert set(sample.keys.tolist()) == {7, 8, 9, 10, 11}


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("source_once", [True, False])
def test_merging_takes_saves_of_either_storage(tmp_path, kind, assert_equal, monkeypatch, once, source_once):
    monkeypatch.setattr(segments, "CHUNK_BYTES", 300)  # rows and frames over several files
    sources, kept = [], []
    stream = Stream(SPEC, 2, 3)
    for name in ("a", "b"):
        replay = make(kind, 40, once=source_once)
        feed(replay, stream.batches(30))
        sources.append(ReplaySource(tmp_path / name, save_replay(replay, tmp_path / name, [], "t")))
        live = live_of(replay.storage)
        rows = replay.storage.gather(replay.storage.slots_of(live))
        kept.append((rows, replay.sampler_state().leaves))
    merged = make(kind, 100, once=once)
    assert merge_replay(merged, sources) == sum(len(rows) for rows, _ in kept)
    got = merged.storage.gather(np.arange(len(merged)))
    leaves = merged.sampler_state().leaves
    for rows, saved_leaves in kept:
        places = places_of(rows, got)
        assert places == sorted(places)
        assert_equal(merged.storage.gather(np.array(places)), rows)
        if leaves is not None:
            np.testing.assert_array_equal(leaves[places], saved_leaves)


def places_of(rows, among):
    """Where the rows are; frames are never drawn twice, so that the observations name a row."""
    names = [obs.tobytes() + next_obs.tobytes() for obs, next_obs in zip(among.obs, among.next_obs, strict=True)]
    place = {name: index for index, name in enumerate(names)}
    return [place[obs.tobytes() + next_obs.tobytes()] for obs, next_obs in zip(rows.obs, rows.next_obs, strict=True)]


@pytest.mark.parametrize("num_parts", [2, 3, 5])
def test_a_split_loses_nothing_though_each_part_has_only_its_share_of_the_capacity(tmp_path, kind, num_parts):
    # A share of the capacity has a share of the frames: rows scattered over the ages would need two to four each.
    capacity = 6001
    replay = make(kind, capacity)
    feed(replay, Stream(SPEC, 3, 2, end_share=0.02).batches(2100, 30))
    assert len(replay) == capacity
    files = save_replay(replay, tmp_path, [], "t")
    rows = replay.storage.gather(replay.storage.slots_of(live_of(replay.storage)))
    found = []
    for part in range(num_parts):
        share = make(kind, -(-capacity // num_parts))
        assert merge_replay(share, [ReplaySource(tmp_path, files, part, num_parts)]) in (
            capacity // num_parts,
            -(-capacity // num_parts),
        )
        places = places_of(share.storage.gather(np.arange(len(share))), rows)
        assert places == sorted(places)
        assert places[0] < capacity / 8  # some of the oldest
        assert places[-1] > capacity * 7 / 8  # and of the newest
        found += places
    assert sorted(found) == list(range(capacity))


def refused(folder, replay, files, match):
    feed(replay, Stream(SPEC, 1, seed=8).batches(3))
    before = replay.storage.gather(np.arange(3))
    with pytest.raises(CheckpointError, match=match):
        load_replay(replay, folder, files)
    assert replay.num_inserted == 3, "a refused load changes nothing"
    np.testing.assert_array_equal(replay.storage.gather(np.arange(3)).obs, before.obs)


def test_damaged_and_missing_frames_are_refused_by_name(tmp_path, kind):
    replay = make(kind)
    feed(replay, Stream(SPEC, 2).batches(10))
    files = save_replay(replay, tmp_path, [], "a")
    (frames,) = [file for file in files if "frames" in file.path]
    refused(tmp_path, make(kind), [file for file in files if file != frames], "needs frames of numbers 0 to")
    path = tmp_path / frames.path
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    refused(tmp_path, make(kind), files, path.name)
    path.unlink()
    refused(tmp_path, make(kind), files, path.name)
    feed(replay, Stream(SPEC, 2).batches(2))
    with pytest.raises(CheckpointError, match="not an earlier save"):
        save_replay(make(kind), tmp_path, files, "b")


def test_the_other_storage_is_refused_with_the_setting_to_change(tmp_path, kind):
    for once, match in ((True, r"stores frames once.*replay\.store_frames_once"), (False, "does not store frames")):
        replay = make(kind, once=once)
        feed(replay, Stream(SPEC, 2).batches(10))
        files = save_replay(replay, tmp_path / str(once), [], "a")
        refused(tmp_path / str(once), make(kind, once=not once), files, match)
