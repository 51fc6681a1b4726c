"""Saves and loads a replay by segments: each save writes only the rows inserted since the one before.

Rows go into chunk files named by their range of keys, `replay-<first>-<end>-<digest>.safetensors`; counters,
priorities and the generator, which change all the time, into one `replay-state-<tag>-<digest>.safetensors` per save.
The digest keeps two runs, or two shards, from ever writing other bytes under a name that a manifest lists. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qfleet.errors import CheckpointError
from qfleet.replay.buffer import Replay, SamplerState
from qfleet.replay.storage import RingStorage
from qfleet.storage import write_file
from qfleet.types import Array, SavedFile

CHUNK_BYTES = 128 << 20  # rows are copied once to be written; this bounds the copy
_METADATA_KEY = "qfleet"  # one key: safetensors writes several in no fixed order, and the digest would change
_DIGEST_LENGTH = 12
_CHUNK_NAME = re.compile(r"replay-(\d{12,})-(\d{12,})-[0-9a-f]+\.safetensors")
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
    """A chunk file, its path relative to the save's folder, and the keys [first, end) of its rows."""

    path: str
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class CheckedSave:
    """A save whose files are all there and fit: rows of keys [first, num_inserted), and what decided the draws.

    Attributes:
        folder: what the paths of `chunks` are relative to.
        first, num_inserted: the range of keys that is to be read; `first` may lie above the oldest saved key.
        state: generator and priorities, those of all saved rows.
        chunks: in order of keys, covering the range.
    """

    folder: Path
    first: int
    num_inserted: int
    state: SamplerState
    chunks: list[Chunk]


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
    storage = replay.storage
    kept, start = [], storage.first_live_key
    for file in previous:
        chunk = _parse(file.path)
        if chunk is None:
            continue
        if chunk.end > storage.num_inserted:
            raise CheckpointError(
                f"{file.path} holds rows up to key {chunk.end}, but this replay has had {storage.num_inserted}; "
                "it is not an earlier save of this replay"
            )
        if chunk.end > storage.first_live_key:
            kept.append(file)
            start = max(start, chunk.end)
    rows_per_chunk = max(1, CHUNK_BYTES // storage.row_bytes)
    kept.extend(
        _save_chunk(storage, folder, first, min(first + rows_per_chunk, storage.num_inserted))
        for first in range(start, storage.num_inserted, rows_per_chunk)
    )
    kept.append(_save_state(replay, folder, tag))
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
    storage = replay.storage
    save = open_save(storage, folder, files, replay.check_sampler_state, storage.capacity)
    columns = storage.columns()
    for chunk in save.chunks:
        begin = max(save.first, chunk.first)
        values = _read_chunk(save.folder, chunk, begin, chunk.end)
        for name, column in columns.items():
            for slots, part in _slots(begin, chunk.end, storage.capacity):
                column[slots] = values[name][part]
    storage.restore_counters(save.first, save.num_inserted)
    replay.restore_sampler(save.state)


def open_save(
    storage: RingStorage,
    folder: Path,
    files: Sequence[SavedFile],
    check_state: Callable[[SamplerState], None],
    max_rows: int | None = None,
) -> CheckedSave:
    """Checks every file of a save against `storage`, which is not changed; no row is read yet.

    Args:
        storage: whose columns the rows must have.
        folder: what the paths of `files` are relative to.
        files: what `save_replay` returned.
        check_state: raises ValueError on a sampler state that cannot be used.
        max_rows: only the newest so many rows are needed; None needs all.

    Raises:
        CheckpointError: as `load_replay`.
    """
    chunks, state_paths = [], []
    for file in files:
        chunk = _parse(file.path)
        if chunk is None:
            state_paths.append(file.path)
        else:
            chunks.append(chunk)
    if len(state_paths) != 1:
        raise CheckpointError(f"a replay save has one replay-state file, this one lists {len(state_paths)}")
    first, num_inserted, state = _load_state(folder, state_paths[0], check_state)
    if max_rows is not None:
        first = max(first, num_inserted - max_rows)
    chunks = sorted((chunk for chunk in chunks if chunk.end > first), key=lambda chunk: chunk.first)
    covered = first
    for chunk in chunks:
        _check_chunk(storage, folder, chunk)
        if chunk.first <= covered:
            covered = max(covered, chunk.end)
    if covered != num_inserted:
        raise CheckpointError(
            f"{state_paths[0]} needs rows of keys {first} to {num_inserted}, but the chunk files give {covered} as end"
        )
    return CheckedSave(folder, first, num_inserted, state, chunks)


def read_rows(save: CheckedSave, first: int, end: int) -> dict[str, Array]:
    """The columns [end - first, ...] of keys `first` to `end` - 1, which lie in the save's range; at least one."""
    pieces = []
    for chunk in save.chunks:
        if chunk.end > first and first < end:
            stop = min(end, chunk.end)
            pieces.append(_read_chunk(save.folder, chunk, first, stop))
            first = stop
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _save_chunk(storage: RingStorage, folder: Path, first: int, end: int) -> SavedFile:
    tensors = {
        name: np.concatenate([column[slots] for slots, _ in _slots(first, end, storage.capacity)])
        for name, column in storage.columns().items()
    }
    metadata = {"kind": "rows", "first_key": first, "end_key": end}
    return _write(folder, f"replay-{first:012d}-{end:012d}", tensors, metadata)


def _save_state(replay: Replay, folder: Path, tag: str) -> SavedFile:
    state = replay.sampler_state()
    tensors: dict[str, Array] = {
        "counters": np.array([replay.storage.first_live_key, replay.storage.num_inserted], np.int64)
    }
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
        return Chunk(path, int(match[1]), int(match[2]))
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


def _load_state(folder: Path, path: str, check_state: Callable[[SamplerState], None]) -> tuple[int, int, SamplerState]:
    """(first key, num_inserted, sampler state) of a state file, checked."""
    try:
        with safe_open(folder / path, framework="np") as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            names = set(file.keys())
            counters = file.get_tensor("counters")
            leaves = file.get_tensor("leaves") if "leaves" in names else None
        if metadata.get("kind") != "state" or counters.shape != (2,) or counters.dtype != np.int64:
            raise ValueError("it holds no counters and generator state")
        first, num_inserted = (int(counter) for counter in counters)
        if not 0 <= first <= num_inserted:
            raise ValueError(f"keys {first} to {num_inserted} are no range")
        if leaves is not None and (leaves.shape != (num_inserted - first,) or leaves.dtype != np.float64):
            raise ValueError(f"leaves must be float64 [{num_inserted - first}]")
        state = SamplerState(metadata["generator"], metadata["alpha"], metadata["max_leaf"], leaves)
        check_state(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a usable replay state: {error}") from error
    return first, num_inserted, state


def _check_chunk(storage: RingStorage, folder: Path, chunk: Chunk) -> None:
    expected = {
        name: (_TENSOR_TYPES[str(column.dtype)], [chunk.end - chunk.first, *column.shape[1:]])
        for name, column in storage.columns().items()
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
