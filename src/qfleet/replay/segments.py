"""Saves and loads a replay by segments: each save writes only the rows inserted since the one before.

Rows go into chunk files named by their range of keys, `replay-<first>-<end>-<digest>.safetensors`, frames that are
stored once into `replay-frames-<first>-<end>-<digest>.safetensors`; counters, priorities and the generator, which
change all the time, into one `replay-state-<tag>-<digest>.safetensors` per save. The digest keeps two runs, or two
shards, from ever writing other bytes under a name that a manifest lists. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qfleet.errors import CheckpointError
from qfleet.replay.buffer import Replay, SamplerState
from qfleet.replay.layout import FRAMES, ROWS, Layout, Table
from qfleet.storage import write_file
from qfleet.types import Array, IntArray, SavedFile

CHUNK_BYTES = 128 << 20  # rows are copied once to be written; this bounds the copy
_METADATA_KEY = "qfleet"  # one key: safetensors writes several in no fixed order, and the digest would change
_DIGEST_LENGTH = 12
_CHUNK_NAME = re.compile(r"replay-(?:(frames)-)?(\d{12,})-(\d{12,})-[0-9a-f]+\.safetensors")
_STATE_NAME = re.compile(r"replay-state-.+\.safetensors")
_TAG = re.compile(r"[A-Za-z0-9._-]+")
_TENSOR_TYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}  # numpy's names to safetensors' names


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk file, its path relative to the save's folder, and the numbers [first, end) of its table's entries."""

    path: str
    table: str
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class SavedTable:
    """Entries [first, end) of a table, and the chunks that cover them, in order."""

    first: int
    end: int
    chunks: list[Chunk]


@dataclass(frozen=True, slots=True)
class CheckedSave:
    """A save whose files are all there and fit.

    Attributes:
        folder: what the paths of chunks are relative to.
        state: generator and priorities, those of all saved rows.
        tables: by name; `rows` holds the range of keys.
    """

    folder: Path
    state: SamplerState
    tables: dict[str, SavedTable]


def save_replay(replay: Replay, folder: Path, previous: Sequence[SavedFile], tag: str) -> list[SavedFile]:
    """Writes what changed since `previous` was saved, each file fsynced under a temporary name and then renamed.

    Args:
        replay: any replay; it is not changed.
        folder: where to write; made if missing.
        previous: what the last save (or the save that was loaded) returned; empty writes everything.
        tag: names this save, unique per folder: letters, digits, ".", "_", "-".

    Returns:
        all files that make up this save, paths relative to `folder`. Chunks of `previous` without a live row are
        not among them; whoever keeps the manifests removes files that none lists.

    Raises:
        CheckpointError: `previous` is not of this replay.
        ValueError: the tag holds other characters.
    """
    if not _TAG.fullmatch(tag):
        raise ValueError(f"tag {tag!r} may hold only letters, digits, '.', '_' and '-'")
    kept: list[SavedFile] = []
    tables = replay.storage.tables()
    for name, table in tables.items():
        kept.extend(_save_table(name, table, folder, previous))
    kept.append(_save_state(replay, tables, folder, tag))
    return kept


def load_replay(replay: Replay, folder: Path, files: Sequence[SavedFile]) -> None:
    """Replaces a replay's content by a save, of whichever capacity; everything is checked before anything changes.

    Keys stay valid. A smaller replay takes the newest rows, a larger one all. In one of the same capacity sampling
    goes on bit for bit. Hashes are the caller's business.

    Args:
        replay: of the kind, environment and alpha that the save was made with.
        folder: what the paths of `files` are relative to.
        files: what `save_replay` returned.

    Raises:
        CheckpointError: a file is missing, damaged or of another kind, shape, dtype or range; the message names it.
    """
    tables = replay.storage.tables()
    capacities = {name: table.capacity for name, table in tables.items()}
    save = open_save([replay.storage.layout], folder, files, replay.check_sampler_state, capacities)
    for name, table in tables.items():
        for chunk in save.tables[name].chunks:
            begin = max(save.tables[name].first, chunk.first)
            values = _read_chunk(save.folder, chunk, begin, chunk.end)
            for column_name, column in table.columns.items():
                for slots, part in _slots(begin, chunk.end, table.capacity):
                    column[slots] = values[column_name][part]
    replay.storage.restore_counters([(save.tables[name].first, save.tables[name].end) for name in tables])
    replay.restore_sampler(save.state)


def open_save(
    layouts: Sequence[Layout],
    folder: Path,
    files: Sequence[SavedFile],
    check_state: Callable[[SamplerState], None],
    max_entries: Mapping[str, int] | None = None,
) -> CheckedSave:
    """Checks every file of a save; no row is read yet.

    Args:
        layouts: one of them the save must have.
        folder: what the paths of `files` are relative to.
        files: what `save_replay` returned.
        check_state: raises ValueError on a sampler state that cannot be used.
        max_entries: only the newest so many entries of each table are needed; None needs all.

    Raises:
        CheckpointError: as `load_replay`.
    """
    chunks: list[Chunk] = []
    state_paths = []
    for file in files:
        chunk = _parse(file.path)
        if chunk is None:
            state_paths.append(file.path)
        else:
            chunks.append(chunk)
    if len(state_paths) != 1:
        raise CheckpointError(f"a replay save has one replay-state file, this one lists {len(state_paths)}")
    ranges, state = _load_state(folder, state_paths[0], check_state)
    layout = next((layout for layout in layouts if len(layout) == len(ranges)), None)
    if layout is None:
        raise CheckpointError(
            f"{state_paths[0]} is of a replay that {'stores' if len(ranges) > 1 else 'does not store'} frames once, "
            "this one differs; set replay.store_frames_once as it was"
        )
    tables = {}
    for (name, dtype), (first, end) in zip(layout.items(), ranges, strict=True):
        if max_entries is not None:
            first = max(first, end - max_entries[name])
        needed = sorted((c for c in chunks if c.table == name and c.end > first), key=lambda chunk: chunk.first)
        covered = first
        for chunk in needed:
            _check_chunk(dtype, folder, chunk)
            if chunk.first <= covered:
                covered = max(covered, chunk.end)
        if covered != end:
            what = "rows of keys" if name == ROWS else f"{name} of numbers"
            raise CheckpointError(
                f"{state_paths[0]} needs {what} {first} to {end}, but the chunk files give {covered} as end"
            )
        tables[name] = SavedTable(first, end, needed)
    return CheckedSave(folder, state, tables)


def read_rows(save: CheckedSave, keys: IntArray) -> dict[str, Array]:
    """The columns [N, ...] of rows `keys` (int64 [N], rising, in the save's range, at least one), frames put in.

    Raises:
        CheckpointError: a row names a frame that the save does not hold.
    """
    rows = _read_entries(save, ROWS, keys)
    if FRAMES in save.tables:
        stored = save.tables[FRAMES]
        numbers, index = np.unique(rows.pop("frames"), return_inverse=True)
        if numbers[0] < stored.first or numbers[-1] >= stored.end:
            raise CheckpointError(f"{save.tables[ROWS].chunks[0].path}: a row names a frame that was not saved")
        # [N, 2, K, H, W]
        pixels = _read_entries(save, FRAMES, numbers)["pixels"][index.reshape(len(keys), 2, -1)]
        rows |= {"obs": pixels[:, 0], "next_obs": pixels[:, 1]}
    return rows


def _read_entries(save: CheckedSave, name: str, numbers: IntArray) -> dict[str, Array]:
    """The columns of the entries `numbers` (int64 [N], rising) of a table; reads no more than one chunk at a time."""
    pieces, done = [], 0
    for chunk in save.tables[name].chunks:
        stop = int(np.searchsorted(numbers, chunk.end))
        if stop > done:
            wanted = numbers[done:stop]
            values = _read_chunk(save.folder, chunk, int(wanted[0]), int(wanted[-1]) + 1)
            pieces.append({column: value[wanted - wanted[0]] for column, value in values.items()})
            done = stop
    return {column: np.concatenate([piece[column] for piece in pieces]) for column in pieces[0]}


def _save_table(name: str, table: Table, folder: Path, previous: Sequence[SavedFile]) -> list[SavedFile]:
    """The chunks of `previous` that are still needed, and new ones for what they do not hold."""
    kept, start = [], table.first
    for file in previous:
        chunk = _parse(file.path)
        if chunk is None or chunk.table != name:
            continue
        if chunk.end > table.end:
            raise CheckpointError(
                f"{file.path} holds {name} up to {chunk.end}, but this replay has had {table.end}; "
                "it is not an earlier save of this replay"
            )
        if chunk.end > table.first:
            kept.append(file)
            start = max(start, chunk.end)
    entries_per_chunk = max(1, CHUNK_BYTES // table.entry_bytes)
    kept.extend(
        _save_chunk(name, table, folder, first, min(first + entries_per_chunk, table.end))
        for first in range(start, table.end, entries_per_chunk)
    )
    return kept


def _save_chunk(name: str, table: Table, folder: Path, first: int, end: int) -> SavedFile:
    tensors = {
        column_name: np.concatenate([column[slots] for slots, _ in _slots(first, end, table.capacity)])
        for column_name, column in table.columns.items()
    }
    metadata = {"kind": name, "first_key": first, "end_key": end}
    prefix = "replay" if name == ROWS else f"replay-{name}"
    return _write(folder, f"{prefix}-{first:012d}-{end:012d}", tensors, metadata)


def _save_state(replay: Replay, tables: dict[str, Table], folder: Path, tag: str) -> SavedFile:
    state = replay.sampler_state()
    counters = [number for table in tables.values() for number in (table.first, table.end)]
    tensors: dict[str, Array] = {"counters": np.array(counters, np.int64)}
    if state.leaves is not None:
        tensors["leaves"] = state.leaves
    metadata = {"kind": "state", "generator": state.generator, "alpha": state.alpha, "max_leaf": state.max_leaf}
    return _write(folder, f"replay-state-{tag}", tensors, metadata)


def _write(folder: Path, stem: str, tensors: dict[str, Array], metadata: dict[str, Any]) -> SavedFile:
    data = save(tensors, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    digest = hashlib.sha256(data).hexdigest()
    return write_file(folder, f"{stem}-{digest[:_DIGEST_LENGTH]}.safetensors", data)


def _parse(path: str) -> Chunk | None:
    """The chunk that a path names, None for a state file; CheckpointError for anything else."""
    name = Path(path).name
    match = _CHUNK_NAME.fullmatch(name)
    if match:
        return Chunk(path, match[1] or ROWS, int(match[2]), int(match[3]))
    if _STATE_NAME.fullmatch(name):
        return None
    raise CheckpointError(f"{path} is not a file of a replay save")


def _slots(first: int, end: int, capacity: int) -> Iterator[tuple[slice, slice]]:
    """Where keys [first, end) lie, at most one turn of the ring: (slice of slots, slice of key - first) pieces."""
    key = first
    while key < end:
        slot = key % capacity
        length = min(end - key, capacity - slot)
        yield slice(slot, slot + length), slice(key - first, key - first + length)
        key += length


def _load_state(
    folder: Path, path: str, check_state: Callable[[SamplerState], None]
) -> tuple[list[tuple[int, int]], SamplerState]:
    """(first, end) of each table, rows first, and the sampler state of a state file, checked."""
    try:
        with safe_open(folder / path, framework="np") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            names = set(file.keys())
            counters = file.get_tensor("counters")
            leaves = file.get_tensor("leaves") if "leaves" in names else None
        if metadata.get("kind") != "state" or counters.shape not in ((2,), (4,)) or counters.dtype != np.int64:
            raise ValueError("it holds no counters and generator state")
        ranges = [(int(first), int(end)) for first, end in counters.reshape(-1, 2)]
        for first, end in ranges:
            if not 0 <= first <= end:
                raise ValueError(f"keys {first} to {end} are no range")
        num_rows = ranges[0][1] - ranges[0][0]
        if leaves is not None and (leaves.shape != (num_rows,) or leaves.dtype != np.float64):
            raise ValueError(f"leaves must be float64 [{num_rows}]")
        state = SamplerState(metadata["generator"], metadata["alpha"], metadata["max_leaf"], leaves)
        check_state(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a usable replay state: {error}") from error
    return ranges, state


def _check_chunk(dtype: np.dtype[Any], folder: Path, chunk: Chunk) -> None:
    columns = {name: dtype[name] for name in dtype.names or ()}
    expected = {
        name: (_TENSOR_TYPES[str(column.base)], [chunk.end - chunk.first, *column.shape])
        for name, column in columns.items()
    }
    try:
        with safe_open(folder / chunk.path, framework="np") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{chunk.path} is not a usable chunk of replay rows: {error}") from error
    if (metadata.get("first_key"), metadata.get("end_key")) != (chunk.first, chunk.end):
        raise CheckpointError(f"{chunk.path} does not hold the rows of the keys in its name")
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{chunk.path}: {name} is {found.get(name)}, but this replay's environment needs {expected.get(name)}"
            )


def _read_chunk(folder: Path, chunk: Chunk, first: int, end: int) -> dict[str, Array]:
    """The columns of keys `first` to `end` - 1, which lie in the chunk."""
    with safe_open(folder / chunk.path, framework="np") as file:
        rows = slice(first - chunk.first, end - chunk.first)
        return {name: file.get_slice(name)[rows] for name in file.keys()}  # noqa: SIM118 - not a mapping
