"""Replays in files and compressed ones: row by row what memory holds, bounded, saved and gone in the end."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from qfleet.config import ReplayConfig
from qfleet.errors import ConfigError
from qfleet.replay import disk, memory
from qfleet.replay.frames import FrameStorage, required_frame_bytes
from qfleet.replay.segments import load_replay, save_replay
from qfleet.replay.storage import RingStorage
from qfleet.replay.uniform import UniformReplay
from qfleet.roles.blueprint import disk_bytes, replay_bytes, stores_frames_once
from qfleet.types import EnvSpec

from .frame_streams import EVEN, SPEC, Stream

ATARI = EnvSpec("Pong", (4, 84, 84), "uint8", 6)


def build(kind: str, capacity: int, spec: EnvSpec, directory, reach: int | None = None) -> FrameStorage:
    if kind == "disk":
        return FrameStorage(capacity, spec, reach, directory=directory)
    pytest.importorskip("lz4")
    return FrameStorage(capacity, spec, reach, is_compressed=True)


def live_of(storage):
    return np.arange(storage.first_live_key, storage.num_inserted)


@pytest.mark.parametrize("kind", ["disk", "compressed"])
@pytest.mark.parametrize("spec", [SPEC, EVEN])
@pytest.mark.parametrize(("num_shades", "reach", "steps_per_batch"), [(None, None, 1), (3, 7, 5), (5, 2, 40)])
def test_frames_kept_elsewhere_are_those_of_memory(
    tmp_path, assert_equal, kind, spec, num_shades, reach, steps_per_batch
):
    stream = Stream(spec, 3, 2, seed=4, num_shades=num_shades, end_share=0.2)
    plain, other = FrameStorage(50, spec, reach), build(kind, 50, spec, tmp_path, reach)
    for batch in stream.batches(120, steps_per_batch):
        np.testing.assert_array_equal(plain.insert(batch), other.insert(batch))
        other.check_valid()
        assert (other.num_frames, other.first_live_key) == (plain.num_frames, plain.first_live_key)
        slots = plain.slots_of(live_of(plain))
        assert_equal(other.gather(slots), plain.gather(slots))


@pytest.mark.parametrize("kind", ["disk", "compressed"])
@pytest.mark.parametrize("back", ["memory", "same"])
def test_a_save_goes_from_any_place_to_any_other_and_on(tmp_path, assert_equal, kind, back):
    stream = Stream(SPEC, 3, 2, seed=1, num_shades=40, end_share=0.2)
    replays = [UniformReplay(60, SPEC, np.random.default_rng(0), storage=FrameStorage(60, SPEC))]
    replays.append(UniformReplay(60, SPEC, np.random.default_rng(0), storage=build(kind, 60, SPEC, tmp_path / "a")))
    for batch in stream.batches(90, 3):
        for replay in replays:
            replay.insert(batch)
    files = save_replay(replays[1], tmp_path / "save", [], "one")
    storage = FrameStorage(60, SPEC) if back == "memory" else build(kind, 60, SPEC, tmp_path / "b")
    loaded = UniformReplay(60, SPEC, np.random.default_rng(9), storage=storage)
    load_replay(loaded, tmp_path / "save", files)
    for batch in stream.batches(30, 3):  # frames shared with those of before the save are found again
        for replay in (*replays, loaded):
            replay.insert(batch)
        got, want = loaded.sample(16), replays[0].sample(16)
        np.testing.assert_array_equal(got.keys, want.keys)
        assert_equal(got.transitions, want.transitions)
    assert storage.num_frames == replays[0].storage.num_frames


def test_whole_rows_lie_in_a_file_too(tmp_path, numbered, assert_equal, spec):
    ring, other = RingStorage(10, spec), RingStorage(10, spec, tmp_path)
    for storage in (ring, other):
        storage.insert(numbered(spec, range(14)))
    assert_equal(other.gather(np.arange(10)), ring.gather(np.arange(10)))
    assert (other.nbytes, ring.nbytes) == (0, ring.rows.nbytes)


def test_the_file_has_its_blocks_and_no_name(tmp_path):
    before = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    array = disk.zeros((1000, 1 << 13), np.dtype(np.uint8), tmp_path / "new")
    assert before - os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize >= 7 << 20  # others write here too
    assert list((tmp_path / "new").iterdir()) == []
    assert type(array) is np.ndarray
    array[999] = 7
    assert array[[0, 999]].sum() == 7 << 13


def test_a_full_disk_is_one_line_before_the_first_transition(tmp_path, monkeypatch):
    def refuse(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "posix_fallocate", refuse)
    with pytest.raises(ConfigError, match=r"replay\.directory = '.*': the replay takes 701 MiB there, [\d,]+ MiB are"):
        FrameStorage(102_320, ATARI, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"replay\.directory = '.*file': .*; choose another"):
        RingStorage(4, SPEC, tmp_path / "file")


def test_only_what_is_in_memory_counts_against_it(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1 << 20)
    with pytest.raises(ConfigError, match="MiB are available"):
        FrameStorage(2000, ATARI)
    storage = FrameStorage(2000, ATARI, directory=tmp_path)
    assert storage.nbytes == required_frame_bytes(2000, ATARI, directory=tmp_path) < 1 << 20
    config = ReplayConfig(capacity=2000, directory=str(tmp_path))
    assert replay_bytes(config, ATARI) == storage.nbytes
    assert disk_bytes(config, ATARI) == storage._ring.words.nbytes


def test_a_hundred_thousand_transitions_and_more_take_no_more_than_promised():
    for capacity in (100_000, 400_000, 1_000_000):
        assert required_frame_bytes(capacity, ATARI) / capacity <= 7300


@pytest.mark.parametrize("other", [{"directory": "/tmp"}, {"store_frames_once": False}])
def test_compression_without_its_place_is_refused(other):
    with pytest.raises(ConfigError, match=f"leave it out, or replay.{next(iter(other))}"):
        stores_frames_once(ReplayConfig(compression="lz4", **other), ATARI)


def test_compression_is_for_frames_only():
    vector = EnvSpec("CartPole-v1", (4,), "float32", 2)
    with pytest.raises(ConfigError, match=r"^replay.compression = 'lz4': .*not stacks of frames.*; leave it out"):
        stores_frames_once(ReplayConfig(compression="lz4"), vector)


def test_compressed_frames_count_what_they_take():
    pytest.importorskip("lz4")
    storage = FrameStorage(200, ATARI, is_compressed=True)
    empty = storage.nbytes
    for batch in Stream(ATARI, 4, end_share=0.0).batches(100, 10):
        storage.insert(batch)
    # 216 frames at most are here, of 7056 bytes, nearly all zero: some tens of bytes and 41 of bookkeeping each
    assert 100 * 41 < storage.nbytes - empty < 500 * 150
