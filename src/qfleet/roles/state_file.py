"""A role's state in a checkpoint: arrays and small JSON values in one safetensors file. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from qfleet.errors import CheckpointError
from qfleet.storage import read_verified, write_file
from qfleet.types import SavedFile


def write_state(
    root: Path, name: str, tag: str, arrays: Mapping[str, np.ndarray], values: Mapping[str, object]
) -> SavedFile:
    """Write `<name>/state-<tag>.safetensors` under `root`; `values` are JSON values by key.

    Raises:
        QfleetError: the disk is full or not writable.
    """
    content = save_tensors(dict(arrays), {key: json.dumps(value) for key, value in values.items()})
    return write_file(root, f"{name}/state-{tag}.safetensors", content)


def read_state(root: Path, file: SavedFile) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Arrays and values of a file that `write_state` wrote.

    Raises:
        CheckpointError: missing, altered or of another kind.
    """
    content = read_verified(root, file)
    try:
        with safe_open(root / file.path, framework="np") as opened:
            metadata = opened.metadata() or {}
        return load_tensors(content), {key: json.loads(value) for key, value in metadata.items()}
    except Exception as error:
        raise CheckpointError(f"{root / file.path}: not a state file of this version: {error}") from error
