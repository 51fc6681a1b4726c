"""N saved replays into M new ones: a plan that uses each part once, rows by age, priorities leaf for leaf."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfleet.errors import CheckpointError
from qfleet.replay import redistribute
from qfleet.replay.prioritized import PrioritizedReplay
from qfleet.replay.redistribute import ReplaySource, merge_replay, redistribution
from qfleet.replay.segments import save_replay
from qfleet.replay.uniform import UniformReplay


def make(kind, spec, capacity=100, seed=0, alpha=0.6):
    generator = np.random.default_rng(seed)
    if kind == "uniform":
        return UniformReplay(capacity, spec, generator)
    return PrioritizedReplay(capacity, spec, generator, alpha)


def saved(folder, replay, numbers, numbered, priorities=None):
    """Inserts the transitions called `numbers` in two saves and returns all of it as a source."""
    numbers = np.asarray(numbers)
    half = len(numbers) // 2
    files = []
    for tag, part in (("a", slice(0, half)), ("b", slice(half, None))):
        replay.insert(numbered(replay.storage.spec, numbers[part]), None if priorities is None else priorities[part])
        files = save_replay(replay, folder, files, tag)
    return ReplaySource(folder, files)


def content(replay):
    """What `numbered` called the live transitions, oldest first: reward is half the number."""
    keys = np.arange(replay.storage.first_live_key, replay.num_inserted)
    return (replay.storage.gather(replay.storage.slots_of(keys)).reward * 2).astype(int).tolist()


@given(num_old=st.integers(0, 12), num_new=st.integers(1, 12))
def test_the_plan_uses_every_part_exactly_once(num_old, num_new):
    old, new = [f"old-{i}" for i in range(num_old)], [f"new-{i}" for i in range(num_new)]
    plan = redistribution(old, new)
    assert list(plan) == new
    given_out = [part for parts in plan.values() for part in parts]
    assert len(given_out) == len(set(given_out))
    for name in old:
        parts = [(part, num_parts) for other, part, num_parts in given_out if other == name]
        assert sorted(parts) == [(part, len(parts)) for part in range(len(parts))]
        assert parts
    sizes = [len(parts) for parts in plan.values()]
    assert max(sizes) - min(sizes) <= 1 or num_old == 0


def test_the_plan_by_hand():
    assert redistribution(["a", "b"], ["x", "y"]) == {"x": [("a", 0, 1)], "y": [("b", 0, 1)]}
    # fewer: a, c, e to x; b, d to y
    fewer = redistribution(list("abcde"), ["x", "y"])
    assert fewer == {"x": [("a", 0, 1), ("c", 0, 1), ("e", 0, 1)], "y": [("b", 0, 1), ("d", 0, 1)]}
    # more: w, y, v share a; x, z share b
    more = redistribution(["a", "b"], list("wxyzv"))
    assert more == {"w": [("a", 0, 3)], "x": [("b", 0, 2)], "y": [("a", 1, 3)], "z": [("b", 1, 2)], "v": [("a", 2, 3)]}


def test_plans_that_lose_or_double_replays_are_refused():
    with pytest.raises(ValueError, match="no role"):
        redistribution(["a"], [])
    with pytest.raises(ValueError, match="differ"):
        redistribution(["a", "a"], ["x"])
    with pytest.raises(ValueError, match="differ"):
        redistribution(["a"], ["x", "x"])


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_two_replays_become_one_by_age(tmp_path, spec, kind, numbered, assert_equal):
    # Fed side by side, the second twice as fast: row k of 3 came at (k + 1/2)/3, row k of 6 at (k + 1/2)/6.
    one = saved(tmp_path / "1", make(kind, spec), [0, 1, 2], numbered)
    two = saved(tmp_path / "2", make(kind, spec), range(50, 56), numbered)
    merged = make(kind, spec, seed=5)
    assert merge_replay(merged, [one, two]) == len(merged) == merged.num_inserted == 9
    # 1/12 50, 2/12 0, 3/12 51, 5/12 52, 6/12 1, 7/12 53, 9/12 54, 10/12 2, 11/12 55
    expected = [50, 0, 51, 52, 1, 53, 54, 2, 55]
    assert content(merged) == expected
    assert_equal(merged.storage.gather(np.arange(9)), numbered(spec, expected))
    assert merged.sample(4).keys.shape == (4,)


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_the_oldest_go_when_there_are_too_many(tmp_path, vector_spec, kind, numbered):
    one = saved(tmp_path / "1", make(kind, vector_spec, capacity=4), range(10), numbered)  # 6 to 9 live, of 10
    two = saved(tmp_path / "2", make(kind, vector_spec), range(50, 55), numbered)
    # ages .65 .75 .85 .95 and .1 .3 .5 .7 .9
    merged = make(kind, vector_spec, capacity=5)
    assert merge_replay(merged, [one, two]) == 5
    assert content(merged) == [53, 7, 8, 54, 9]
    merged.insert(numbered(vector_spec, [70]))
    assert content(merged) == [7, 8, 54, 9, 70]


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_parts_are_disjoint_and_whole(tmp_path, vector_spec, kind, numbered, monkeypatch):
    row_bytes = make(kind, vector_spec).storage.row_bytes
    monkeypatch.setattr(redistribute, "CHUNK_BYTES", 2 * row_bytes)  # several batches
    source = saved(tmp_path, make(kind, vector_spec, capacity=8), range(11), numbered)  # 3 to 10 live
    contents = []
    for part in range(3):
        replay = make(kind, vector_spec)
        merge_replay(replay, [dataclasses.replace(source, part=part, num_parts=3)])
        contents.append(content(replay))
    assert contents == [[3, 6, 9], [4, 7, 10], [5, 8]]


@settings(deadline=None)  # it writes files
@given(num_old=st.integers(1, 4), num_new=st.integers(1, 4), sizes=st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_a_round_trip_over_any_numbers_of_roles_loses_nothing(
    tmp_path_factory, vector_spec, numbered, num_old, num_new, sizes
):
    folder = tmp_path_factory.mktemp("saves")
    old, new = [f"old-{i}" for i in range(num_old)], [f"new-{i}" for i in range(num_new)]
    sources, everything = {}, {}
    for index, name in enumerate(old):
        numbers = np.arange(sizes[index]) + 100 * index
        replay = make("prioritized", vector_spec, alpha=0.5)
        sources[name] = saved(folder / name, replay, numbers, numbered, numbers + 1.0)
        everything |= {int(number): float(number + 1.0 + 1e-6) ** 0.5 for number in numbers}
    found = {}
    for parts in redistribution(old, new).values():
        replay = make("prioritized", vector_spec, alpha=0.5)
        merge_replay(replay, [dataclasses.replace(sources[o], part=p, num_parts=n) for o, p, n in parts])
        found |= dict(zip(content(replay), replay.sampler_state().leaves.tolist(), strict=True))
    assert found == everything


def test_priorities_are_kept_leaf_for_leaf_and_the_largest_seen_goes_on(tmp_path, vector_spec, numbered):
    first, second = make("prioritized", vector_spec), make("prioritized", vector_spec)
    one = saved(tmp_path / "1", first, [0, 1], numbered, np.array([3.0, 0.0]))
    two = saved(tmp_path / "2", second, [10, 11], numbered, np.array([0.1, 7.0]))
    second.update_priorities(np.array([1]), np.array([0.2]))  # 7 was seen, and is gone
    two = dataclasses.replace(two, files=save_replay(second, two.folder, two.files, "c"))
    merged = make("prioritized", vector_spec)
    merge_replay(merged, [one, two])
    assert content(merged) == [0, 10, 1, 11]
    merged.insert(numbered(vector_spec, [20]))
    expected = (np.array([3.0, 0.1, 0.0, 0.2, 7.0]) + 1e-6) ** 0.6
    assert merged.sampler_state().leaves.tolist() == expected.tolist()
    sample = merged.sample(200)
    np.testing.assert_allclose(sample.probabilities, (expected / expected.sum())[sample.keys])


def test_kinds_may_differ(tmp_path, vector_spec, numbered):
    uniform = saved(tmp_path / "u", make("uniform", vector_spec), [0, 1], numbered)
    ranked = saved(tmp_path / "p", make("prioritized", vector_spec), [10, 11], numbered, np.array([0.5, 2.0]))
    plain = make("uniform", vector_spec)
    merge_replay(plain, [uniform, ranked])
    assert content(plain) == [0, 10, 1, 11]
    merged = make("prioritized", vector_spec, alpha=0.6)
    merge_replay(merged, [uniform, ranked])
    assert merged.sampler_state().leaves.tolist() == ((np.array([2.0, 0.5, 2.0, 2.0]) + 1e-6) ** 0.6).tolist()
    alone = make("prioritized", vector_spec, alpha=0.6)
    merge_replay(alone, [uniform])
    assert alone.sampler_state().leaves.tolist() == [(1.0 + 1e-6) ** 0.6] * 2


def test_nothing_to_take_leaves_a_working_replay(tmp_path, vector_spec, numbered):
    replay = make("prioritized", vector_spec)
    assert merge_replay(replay, []) == 0
    assert merge_replay(replay, [saved(tmp_path, make("uniform", vector_spec), [], numbered)]) == 0
    replay.insert(numbered(vector_spec, [4]))
    assert content(replay) == [4]


def test_everything_is_checked_before_anything_changes(tmp_path, vector_spec, numbered):
    good = saved(tmp_path / "1", make("prioritized", vector_spec), [0, 1], numbered)
    other = saved(tmp_path / "2", make("prioritized", vector_spec, alpha=0.5), [0, 1], numbered)
    foreign = saved(tmp_path / "3", make("uniform", dataclasses.replace(vector_spec, obs_shape=(4,))), [0, 1], numbered)
    bad = saved(tmp_path / "4", make("uniform", vector_spec), [0, 1], numbered)
    (bad.folder / bad.files[1].path).write_bytes(b"short")
    cut = dataclasses.replace(good, files=good.files[1:])
    replay = make("prioritized", vector_spec)
    for source, match in (
        (other, r"replay-state-b.*alpha 0\.5"),
        (foreign, r"replay-000000000000-.*obs"),
        (bad, bad.files[1].path),
        (cut, "needs rows of keys 0 to 2"),
    ):
        with pytest.raises(CheckpointError, match=match):
            merge_replay(replay, [good, source])
        assert (replay.num_inserted, len(replay)) == (0, 0)
        assert not replay.storage.rows.any()
    with pytest.raises(ValueError, match="part 2 of 2"):
        merge_replay(replay, [dataclasses.replace(good, part=2, num_parts=2)])
    replay.insert(numbered(vector_spec, [1]))
    with pytest.raises(ValueError, match="empty"):
        merge_replay(replay, [good])
