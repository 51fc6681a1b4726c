"""Elastic restore: the replays that N roles saved are dealt out to M others, fewer or more.

`redistribution` is the plan, `merge_replay` carries it out for one new role; both stand beside segments.py, between a
checkpoint and the first sample. Rows keep their content and priorities; keys start anew, since those of two
shards would clash.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qfleet.replay.buffer import FloatVector, Replay, SamplerState, leaf_without_priority
from qfleet.replay.layout import FRAMES, ROWS, frame_layout, is_frame_stack, ring_layout, row_dtype
from qfleet.replay.segments import CHUNK_BYTES, CheckedSave, open_save, read_rows
from qfleet.replay.storage import transitions_of
from qfleet.types import EnvSpec, IntArray, SavedFile, Transitions

_NUM_RUNS = 8


@dataclass(frozen=True)
class ReplaySource:
    """A part of one saved replay: of its rows, oldest first, those at places k with k % num_parts == part.

    Of a replay that stores frames once, a part is eight runs of rows spread over all ages instead, as many rows in all:
    neighbours share frames, and scattered rows would need several each.

    Attributes:
        folder, files: as `load_replay` takes them.
        part, num_parts: which rows; 0 and 1 take all.
    """

    folder: Path
    files: list[SavedFile]
    part: int = 0
    num_parts: int = 1


def redistribution(old_names: list[str], new_names: list[str]) -> dict[str, list[tuple[str, int, int]]]:
    """Which parts of the old roles' replays each new role takes: {new: [(old, part, num_parts), ...]}.

    As many roles as before take one each, in order. Fewer take whole ones in turn, old i going to new i % M. More
    share: old i is split evenly over the new j with j % N == i. Every part is given to exactly one role.

    Raises:
        ValueError: a name comes twice, or there are replays and nobody to take them.
    """
    num_old, num_new = len(old_names), len(new_names)
    if len(set(old_names)) < num_old or len(set(new_names)) < num_new:
        raise ValueError(f"names must differ, got {old_names} and {new_names}")
    if num_old and not num_new:
        raise ValueError(f"no role is there to take the replays of {old_names}")
    plan: dict[str, list[tuple[str, int, int]]] = {name: [] for name in new_names}
    if num_new <= num_old:
        for index, old in enumerate(old_names):
            plan[new_names[index % num_new]].append((old, 0, 1))
    elif num_old:
        for index, new in enumerate(new_names):
            part, shared = divmod(index, num_old)
            num_parts = -(-(num_new - shared) // num_old)
            plan[new].append((old_names[shared], part, num_parts))
    return plan


def merge_replay(replay: Replay, sources: Sequence[ReplaySource]) -> int:
    """Fills an empty replay from parts of saved ones; everything is checked before anything changes.

    Rows go in by age, oldest first; of more than fit the oldest are left out. Age is compared between sources as
    key / num_inserted, how far into its own run's insertions a row came: shards that were fed side by side interleave
    as they were fed. Saved priorities are kept exactly, leaf for leaf; rows of a uniform replay enter a prioritized
    one at the largest priority seen. The generator stays the replay's own.

    Args:
        replay: nothing was inserted into it yet.
        sources: of the environment of `replay`, and of its alpha where both are prioritized.

    Returns:
        number of rows taken, `len(replay)`.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
        ValueError: the replay is not empty, or a part is out of range.
    """
    if replay.num_inserted:
        raise ValueError(f"only an empty replay can be filled; this one has had {replay.num_inserted} insertions")
    for source in sources:
        if not 0 <= source.part < source.num_parts:
            raise ValueError(f"part {source.part} of {source.num_parts} is no part")
    own = replay.sampler_state()

    def check(saved: SamplerState) -> None:
        if own.leaves is not None and saved.leaves is not None:
            replay.check_sampler_state(dataclasses.replace(saved, generator=own.generator))

    spec = replay.storage.spec
    layouts = [ring_layout(spec), *([frame_layout(spec)] if is_frame_stack(spec) else [])]
    saves = [open_save(layouts, source.folder, source.files, check) for source in sources]
    origins, keys = _oldest_first(saves, sources)
    origins, keys = origins[-replay.capacity :], keys[-replay.capacity :]
    num_per_batch = max(1, CHUNK_BYTES // row_dtype(spec).itemsize)
    for begin in range(0, len(keys), num_per_batch):
        batch = slice(begin, begin + num_per_batch)
        replay.storage.insert(_read(spec, saves, origins[batch], keys[batch]))
    if own.leaves is not None:
        replay.restore_sampler(_merged_state(own, saves, origins, keys))
    return len(replay)


def _oldest_first(saves: list[CheckedSave], sources: Sequence[ReplaySource]) -> tuple[IntArray, IntArray]:
    """(index of the save, key in it) of every row taken, int64 [N] each, by age."""
    keys = [
        save.tables[ROWS].first + _places(save, source.part, source.num_parts)
        for save, source in zip(saves, sources, strict=True)
    ]
    if not keys:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ages = [(part + 0.5) / max(save.tables[ROWS].end, 1) for part, save in zip(keys, saves, strict=True)]
    order = np.argsort(np.concatenate(ages), kind="stable")
    origins = np.repeat(np.arange(len(keys)), [len(part) for part in keys])
    return origins[order], np.concatenate(keys)[order]


def _places(save: CheckedSave, part: int, num_parts: int) -> IntArray:
    """Which rows, counted from the oldest, make up a part; int64, rising. Parts differ by one row at most."""
    rows = save.tables[ROWS]
    num = rows.end - rows.first
    if FRAMES not in save.tables or num_parts == 1:
        return np.arange(part, num, num_parts)
    # Run r of each part in turn, then run r + 1: [_NUM_RUNS, num_parts] lengths.
    sizes = num // num_parts + (np.arange(num_parts) < num % num_parts)
    lengths = np.diff(np.arange(_NUM_RUNS + 1)[:, None] * sizes // _NUM_RUNS, axis=0)
    owners = np.repeat(np.tile(np.arange(num_parts), _NUM_RUNS), lengths.ravel())
    return np.flatnonzero(owners == part)


def _read(spec: EnvSpec, saves: list[CheckedSave], origins: IntArray, keys: IntArray) -> Transitions:
    """The rows (save origins[k], key keys[k]) in order; within one save keys rise."""
    records = np.empty(len(keys), row_dtype(spec))
    for origin, save in enumerate(saves):
        mine = np.flatnonzero(origins == origin)
        if len(mine):
            for name, values in read_rows(save, keys[mine]).items():
                records[name][mine] = values
    return transitions_of(records)


def _merged_state(own: SamplerState, saves: list[CheckedSave], origins: IntArray, keys: IntArray) -> SamplerState:
    """The saved leaves in the new order, the largest leaf ever seen, and the replay's own generator."""
    assert own.alpha is not None
    max_leaf = max((save.state.max_leaf or 0.0 for save in saves), default=0.0)
    leaves: FloatVector = np.full(len(keys), leaf_without_priority(max_leaf, own.alpha))
    for origin, save in enumerate(saves):
        if save.state.leaves is not None:
            mine = origins == origin
            leaves[mine] = save.state.leaves[keys[mine] - save.tables[ROWS].first]
    return dataclasses.replace(own, max_leaf=max_leaf, leaves=leaves)
