"""Incremental saves: only new rows are written, any capacity can load them, and the draws go on bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qfleet.errors import CheckpointError, QfleetError
from qfleet.replay import segments
from qfleet.replay.prioritized import PrioritizedReplay
from qfleet.replay.segments import load_replay, save_replay
from qfleet.replay.uniform import UniformReplay
from qfleet.types import EnvSpec


def make(kind: str, spec: EnvSpec, capacity: int = 10, seed: int = 0, alpha: float = 0.6):
    generator = np.random.default_rng(seed)
    if kind == "uniform":
        return UniformReplay(capacity, spec, generator)
    return PrioritizedReplay(capacity, spec, generator, alpha)


@pytest.fixture(params=["uniform", "prioritized"])
def kind(request):
    return request.param


@pytest.fixture
def fill(numbered):
    def _fill(replay, num):
        first = replay.num_inserted
        keys = replay.insert(numbered(replay.storage.spec, range(first, first + num)))
        replay.update_priorities(keys, (keys % 5) + 0.5)

    return _fill


def chunk_paths(files):
    return ["-".join(file.path.split("-")[:3]) for file in files if "state" not in file.path]


def assert_same_draws(left, right, assert_equal):
    for _ in range(5):
        one, two = left.sample(7), right.sample(7)
        np.testing.assert_array_equal(one.keys, two.keys)
        np.testing.assert_array_equal(one.probabilities, two.probabilities)
        assert_equal(one.transitions, two.transitions)
        priorities = np.linspace(0, 3, 7)
        assert left.update_priorities(one.keys, priorities) == right.update_priorities(two.keys, priorities)


@pytest.mark.parametrize("num", [0, 4, 10, 27])
def test_loaded_replay_goes_on_bit_for_bit(tmp_path, spec, kind, fill, numbered, assert_equal, num):
    original = make(kind, spec)
    fill(original, num)
    if num:
        original.sample(3)  # the generator is somewhere in its stream
    loaded = make(kind, spec, seed=99)
    fill(loaded, 3)  # what was there before is replaced
    load_replay(loaded, tmp_path, save_replay(original, tmp_path, [], "a"))
    assert (loaded.num_inserted, len(loaded)) == (original.num_inserted, len(original))
    for replay in (original, loaded):
        replay.insert(numbered(spec, range(num, num + 2)))  # at the largest priority seen, which was saved too
    assert_same_draws(original, loaded, assert_equal)


def test_each_save_writes_only_new_rows(tmp_path, vector_spec, kind, fill, assert_equal):
    replay = make(kind, vector_spec)
    fill(replay, 4)
    first = save_replay(replay, tmp_path, [], "a")
    fill(replay, 5)
    second = save_replay(replay, tmp_path, first, "b")
    third = save_replay(replay, tmp_path, second, "c")
    assert chunk_paths(first) == ["replay-000000000000-000000000004"]
    assert chunk_paths(second) == ["replay-000000000000-000000000004", "replay-000000000004-000000000009"]
    assert chunk_paths(third) == chunk_paths(second)
    assert first[0] == second[0]
    states = {file.path for files in (first, second, third) for file in files if "state" in file.path}
    assert len(states) == 3, "an older manifest still needs its own priorities"
    loaded = make(kind, vector_spec, seed=5)
    load_replay(loaded, tmp_path, third)
    assert_same_draws(replay, loaded, assert_equal)


def test_older_saves_stay_loadable(tmp_path, vector_spec, kind, fill):
    replay = make(kind, vector_spec)
    fill(replay, 4)
    first = save_replay(replay, tmp_path, [], "a")
    fill(replay, 4)
    save_replay(replay, tmp_path, first, "b")
    loaded = make(kind, vector_spec)
    load_replay(loaded, tmp_path, first)
    assert loaded.num_inserted == 4


def test_chunks_without_a_live_row_are_left_out(tmp_path, vector_spec, kind, fill, assert_equal):
    replay, files = make(kind, vector_spec), []
    for _ in range(4):
        fill(replay, 6)
        files = save_replay(replay, tmp_path, files, f"at{replay.num_inserted}")
    # 24 inserted, 14 to 23 live: the chunk 12-18 still holds four of them, 0-6 and 6-12 hold none
    assert chunk_paths(files) == ["replay-000000000012-000000000018", "replay-000000000018-000000000024"]
    loaded = make(kind, vector_spec)
    load_replay(loaded, tmp_path, files)
    assert_same_draws(replay, loaded, assert_equal)
    fill(replay, 100)
    assert chunk_paths(save_replay(replay, tmp_path, files, "z")) == ["replay-000000000114-000000000124"]


@pytest.mark.parametrize("capacity", [3, 7, 25])
def test_another_capacity_keeps_the_newest_and_their_keys(
    tmp_path, vector_spec, kind, fill, numbered, assert_equal, capacity
):
    original = make(kind, vector_spec, capacity=10)
    fill(original, 23)
    other = make(kind, vector_spec, capacity=capacity)
    load_replay(other, tmp_path, save_replay(original, tmp_path, [], "a"))
    kept = min(capacity, 10)
    assert (len(other), other.num_inserted, other.storage.first_live_key) == (kept, 23, 23 - kept)
    assert set(other.sample(400).keys.tolist()) == set(range(23 - kept, 23))
    if kind == "prioritized":
        odds = (np.arange(23 - kept, 23) % 5 + 0.5 + 1e-6) ** 0.6
        sample = other.sample(50)
        np.testing.assert_allclose(sample.probabilities, odds[sample.keys - (23 - kept)] / odds.sum())
        assert other.update_priorities(np.array([12, 22]), np.ones(2)) == 1  # 12 was stale when saved
    # Growing on from there, up to and past the new capacity, and saving again
    files = save_replay(other, tmp_path, [], "b")
    fill(other, 9)
    live = np.arange(32 - min(capacity, kept + 9), 32)
    assert len(other) == len(live)
    assert set(other.sample(900).keys.tolist()) == set(live.tolist())
    again = make(kind, vector_spec, capacity=capacity)
    load_replay(again, tmp_path, save_replay(other, tmp_path, files, "c"))
    assert_equal(again.storage.gather(again.storage.slots_of(live)), numbered(vector_spec, live))
    assert_same_draws(other, again, assert_equal)


def test_large_saves_are_split(tmp_path, vector_spec, kind, fill, assert_equal, monkeypatch):
    replay = make(kind, vector_spec)
    monkeypatch.setattr(segments, "CHUNK_BYTES", 4 * replay.storage.row_bytes + 1)
    fill(replay, 15)
    files = save_replay(replay, tmp_path, [], "a")
    ranges = [(5, 9), (9, 13), (13, 15)]
    assert chunk_paths(files) == [f"replay-{first:012d}-{end:012d}" for first, end in ranges]
    loaded = make(kind, vector_spec)
    load_replay(loaded, tmp_path, files)
    assert_same_draws(replay, loaded, assert_equal)


def test_files_are_what_the_manifest_says_and_nothing_else_is_left(tmp_path, vector_spec, kind, fill):
    replay = make(kind, vector_spec)
    fill(replay, 4)
    files = save_replay(replay, tmp_path / "new", [], "a")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {file.path for file in files}
    for file in files:
        data = (tmp_path / "new" / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.num_bytes, file.sha256)


def test_other_rows_of_the_same_keys_never_overwrite_a_file(tmp_path, vector_spec, kind, fill, numbered):
    one, two = make(kind, vector_spec), make(kind, vector_spec)
    fill(one, 4)
    two.insert(numbered(vector_spec, range(100, 104)))
    files = save_replay(one, tmp_path, [], "a")
    save_replay(two, tmp_path, [], "a")
    for file in files:
        assert hashlib.sha256((tmp_path / file.path).read_bytes()).hexdigest() == file.sha256


def test_a_failed_write_leaves_no_file_behind(tmp_path, vector_spec, kind, fill, monkeypatch):
    replay = make(kind, vector_spec)
    fill(replay, 4)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(QfleetError, match=r"cannot write .*replay-.*No space left .*free space"):
        save_replay(replay, tmp_path, [], "a")
    assert list(tmp_path.iterdir()) == []


def test_previous_must_be_of_this_replay(tmp_path, vector_spec, kind, fill):
    longer, shorter = make(kind, vector_spec), make(kind, vector_spec)
    fill(longer, 9)
    fill(shorter, 4)
    files = save_replay(longer, tmp_path, [], "a")
    with pytest.raises(CheckpointError, match=r"000000000009.* not an earlier save"):
        save_replay(shorter, tmp_path, files, "b")
    with pytest.raises(ValueError, match="tag"):
        save_replay(shorter, tmp_path, [], "../b")


def _saved(tmp_path: Path, kind: str, spec: EnvSpec, fill):
    replay = make(kind, spec)
    fill(replay, 6)
    first = save_replay(replay, tmp_path, [], "a")
    fill(replay, 3)
    return save_replay(replay, tmp_path, first, "b")


def _refused(tmp_path, replay, files, match, fill):
    fill(replay, 2)
    before = replay.storage.rows.copy()
    with pytest.raises(CheckpointError, match=match):
        load_replay(replay, tmp_path, files)
    assert replay.num_inserted == 2, "a refused load changes nothing"
    np.testing.assert_array_equal(replay.storage.rows, before)


@pytest.mark.parametrize(
    "other",
    [
        {"obs_shape": (4,)},
        {"obs_dtype": "float64"},
        {"num_actions": 300},
        {"has_action_mask": True},
    ],
)
def test_another_environment_is_refused_by_file_name(tmp_path, vector_spec, kind, fill, other):
    files = _saved(tmp_path, kind, vector_spec, fill)
    replay = make(kind, dataclasses.replace(vector_spec, **other))
    _refused(tmp_path, replay, files, r"replay-000000000000-000000000006.*needs", fill)


def test_missing_and_damaged_files_are_refused_by_name(tmp_path, vector_spec, kind, fill):
    files = _saved(tmp_path, kind, vector_spec, fill)
    _refused(tmp_path, make(kind, vector_spec), files[1:], "needs rows of keys 0 to 9", fill)
    _refused(tmp_path, make(kind, vector_spec), files[:-1], "lists 0", fill)
    for file in (files[1], files[2]):
        path = tmp_path / file.path
        data = path.read_bytes()
        path.write_bytes(data[:-3])
        _refused(tmp_path, make(kind, vector_spec), files, path.name, fill)
        path.unlink()
        _refused(tmp_path, make(kind, vector_spec), files, path.name, fill)
        path.write_bytes(data)
    foreign = [*files, dataclasses.replace(files[0], path="weights.safetensors")]
    _refused(tmp_path, make(kind, vector_spec), foreign, r"weights\.safetensors", fill)


def test_rows_under_another_name_are_refused(tmp_path, vector_spec, kind, fill):
    files = _saved(tmp_path, kind, vector_spec, fill)
    first, second = tmp_path / files[0].path, tmp_path / files[1].path
    second.write_bytes(first.read_bytes())
    _refused(tmp_path, make(kind, vector_spec), files, f"{second.name} does not hold", fill)


def test_state_without_counters_or_with_other_lengths_is_refused(tmp_path, vector_spec, fill):
    files = _saved(tmp_path, "prioritized", vector_spec, fill)
    path = tmp_path / files[-1].path
    tensors = load_file(path)
    metadata = {"qfleet": '{"kind": "state", "generator": "{}", "alpha": 0.6, "max_leaf": 1.0}'}
    for changed, match in (
        ({**tensors, "leaves": tensors["leaves"][1:]}, "leaves must be"),
        ({**tensors, "counters": np.array([9, 0])}, "no range"),
        (tensors, "generator state"),
    ):
        save_file({name: np.ascontiguousarray(value) for name, value in changed.items()}, path, metadata)
        _refused(tmp_path, make("prioritized", vector_spec), files, f"{path.name}.*{match}", fill)


def test_another_kind_alpha_or_generator_is_refused(tmp_path, vector_spec, fill):
    prioritized = _saved(tmp_path / "p", "prioritized", vector_spec, fill)
    uniform = _saved(tmp_path / "u", "uniform", vector_spec, fill)
    _refused(tmp_path / "p", make("uniform", vector_spec), prioritized, "saved by a prioritized", fill)
    _refused(tmp_path / "u", make("prioritized", vector_spec), uniform, "saved by a uniform", fill)
    _refused(tmp_path / "p", make("prioritized", vector_spec, alpha=0.5), prioritized, "alpha 0.6", fill)
    philox = UniformReplay(10, vector_spec, np.random.Generator(np.random.Philox(0)))
    _refused(tmp_path / "u", philox, uniform, "not one of Philox", fill)
