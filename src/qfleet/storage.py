"""Files that are whole or absent: written under a temporary name, synced, then renamed. Floor 0."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from qfleet.errors import CheckpointError, QfleetError
from qfleet.types import SavedFile


def write_file(folder: Path, name: str, content: bytes, *, chosen_by: str = "--run-dir") -> SavedFile:
    """Write folder/name in one step, as far as any reader can tell.

    Args:
        folder: an existing or new folder; the result's path is relative to it.
        name: relative path, "/" between its parts.
        content: the bytes.
        chosen_by: the option that says where to, for the error.

    Raises:
        QfleetError: the disk is full or not writable; nothing that was there before is harmed.
    """
    path = folder / name
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error says more
            temporary.unlink(missing_ok=True)
        raise QfleetError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another {chosen_by}"
        ) from error
    return SavedFile(path=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_verified(folder: Path, file: SavedFile) -> bytes:
    """The content of a saved file, after size and SHA-256 have been checked.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    path = folder / file.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if len(content) != file.num_bytes:
        raise CheckpointError(
            f"{path}: {len(content)} bytes, the manifest says {file.num_bytes}: truncated or replaced"
        )
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise CheckpointError(f"{path}: SHA-256 differs from the manifest's: the file was altered")
    return content


def _sync_folder(folder: Path) -> None:
    """Make a rename itself survive a power cut."""
    if os.name == "nt":  # Windows opens no folders, and needs no such thing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
