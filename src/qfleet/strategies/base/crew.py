"""What a crew of workers finds in a checkpoint: who saved, and where a worker's saved replay lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qfleet.replay.redistribute import ReplaySource, redistribution
from qfleet.types import SavedFile

PREFIX = "worker-"


def worker_name(number: int) -> str:
    """The role name of the worker with this number."""
    return f"{PREFIX}{number}"


def worker_number(name: str) -> int:
    """The number in a worker's name."""
    return int(name.removeprefix(PREFIX))


def saved_workers(files: Mapping[str, list[SavedFile]]) -> list[str]:
    """Names of the workers among the roles of a checkpoint, by number."""
    return sorted((role for role in files if role.startswith(PREFIX)), key=worker_number)


def replay_source(
    folder: str, name: str, files: list[SavedFile], part: int = 0, num_parts: int = 1
) -> list[ReplaySource]:
    """Where (a part of) a worker's saved replay lies: nowhere, or in one place.

    Args:
        folder: the run's checkpoints folder.
        name: the worker that saved.
        files: what its `save` returned: the first is its state, the others are the replay's.
        part, num_parts: which rows, as in ReplaySource.
    """
    if len(files) < 2:
        return []
    own = [SavedFile(file.path.removeprefix(f"{name}/"), file.num_bytes, file.sha256) for file in files[1:]]
    return [ReplaySource(Path(folder) / name, own, part, num_parts)]


def replay_shares(
    folder: str, files: Mapping[str, list[SavedFile]], new_names: list[str]
) -> dict[str, list[ReplaySource]]:
    """The saved replays of all workers, dealt out to `new_names`, fewer or more; nothing is left out."""
    shares = redistribution(saved_workers(files), new_names)
    return {
        new: [source for old, part, num in parts for source in replay_source(folder, old, files[old], part, num)]
        for new, parts in shares.items()
    }
