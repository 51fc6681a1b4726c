"""Action masks out of a vector environment's info: info["action_mask"], True = legal.

Gymnasium batches the infos row by row and marks the rows that are present in info["_action_mask"]. A row that
is absent or all illegal is fatal where it would be acted on or bootstrapped from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qfleet.errors import EnvError
from qfleet.types import BoolArray, IntArray


def read_masks(info: Mapping[str, Any], num_envs: int, num_actions: int, env_id: str) -> BoolArray:
    """bool [E, A]; a row that info does not hold is all False.

    Raises:
        EnvError: a mask of another length than A.
    """
    masks = np.zeros((num_envs, num_actions), dtype=np.bool_)
    rows = info.get("action_mask")
    if rows is None:
        return masks
    present = info.get("_action_mask", np.ones(num_envs, dtype=np.bool_))
    # Rows given as lists arrive as objects, which only row by row become an array.
    for i in np.flatnonzero(present) if rows.dtype == object else ():
        masks[i] = _checked(np.asarray(rows[i]), num_actions, env_id)
    if rows.dtype != object and present.any():
        _checked(rows[0], num_actions, env_id)
        masks[present] = rows[present]
    return masks


def require_legal_action(masks: BoolArray, needed: BoolArray, env_id: str, lengths: IntArray) -> BoolArray:
    """`masks` with every row usable: rows without a legal action become all True if not `needed`.

    Args:
        masks: bool [E, A], changed in place and returned.
        needed: bool [E], rows that will be acted on or bootstrapped from.
        lengths: int64 [E], steps of the running episodes, for the message.

    Raises:
        EnvError: a needed row has no legal action.
    """
    blocked = ~masks.any(axis=1)
    if not blocked.any():
        return masks
    for i in np.flatnonzero(blocked & needed):
        raise EnvError(
            f"environment {env_id}: env {i} has no legal action after step {lengths[i]} of its episode "
            "(info['action_mask'] is missing or all zero); give it one, or terminate the episode there"
        )
    masks[blocked] = True
    return masks


def _checked(mask: Any, num_actions: int, env_id: str) -> Any:
    if np.shape(mask) != (num_actions,):
        raise EnvError(
            f"environment {env_id}: info['action_mask'] has shape {np.shape(mask)} for {num_actions} actions; "
            "give one flag per action"
        )
    return mask
