"""Bytes of a payload on its way from role to role: its arrays, texts and numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

import numpy as np


def part_sizes(payload: object, num_parts: int) -> tuple[int, ...]:
    """Bytes of each part of a payload, which is a sequence of that length where `num_parts` is above 1."""
    if num_parts == 1:
        return (payload_bytes(payload),)
    assert isinstance(payload, Sequence)
    return tuple(map(payload_bytes, payload))


_FIELDS: dict[type, tuple[str, ...]] = {}  # of the dataclasses that have been seen


def payload_bytes(value: object) -> int:
    """Bytes of the arrays, texts and numbers in a payload; what holds them together is not counted."""
    kind = type(value)
    if kind is np.ndarray:
        return int(cast(np.ndarray[Any, Any], value).nbytes)
    if value is None:
        return 0
    if kind is int or kind is float:
        return 8
    names = _FIELDS.get(kind)
    if names is None and is_dataclass(value):
        names = _FIELDS[kind] = tuple(one.name for one in fields(value))
    if names is not None:
        return sum([payload_bytes(getattr(value, name)) for name in names])
    torch = sys.modules.get("torch")  # who has not imported it has no tensors
    if isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor)):
        return int(value.nbytes)
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(payload_bytes(key) + payload_bytes(one) for key, one in value.items())
    if isinstance(value, Sequence):
        return sum(map(payload_bytes, value))
    return 8
