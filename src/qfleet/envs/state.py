"""Saving the state of environments that offer it: `get_state() -> dict[str, array]` and `set_state(dict)`.

Offered by a vector environment as a whole, or by every copy inside a SyncVectorEnv. Where it is offered a
checkpoint holds the environments too, and a resumed run goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation, OrderEnforcing, PassiveEnvChecker, TimeLimit

from qfleet.envs.spaces import TableAction
from qfleet.errors import CheckpointError
from qfleet.types import Array, BoolArray, IntArray

# Wrappers without memory, apart from TimeLimit's count, which is the episode's length. Any other wrapper between
# the caller and get_state might remember something, so it must offer the two methods itself.
_TRANSPARENT = (FlattenObservation, OrderEnforcing, PassiveEnvChecker, TimeLimit, TableAction)


@runtime_checkable
class Stateful(Protocol):
    """What an environment defines to be saved exactly: every number that decides its next steps, as arrays."""

    def get_state(self) -> dict[str, Array]:
        """Copies of the arrays that decide what comes next, the random generator included."""
        ...

    def set_state(self, state: dict[str, Array]) -> None:
        """Go on from what `get_state` returned."""
        ...


class VectorState:
    """The saved state of a vector environment: `holders` are its parts that offer one, by key prefix."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], holders: dict[str, Stateful]) -> None:
        self._env = env
        self._holders = holders

    @classmethod
    def find(cls, env: gym.vector.VectorEnv[Any, Any, Any]) -> VectorState | None:
        """The state of `env`, or None if it, or one of its sub-environments, does not offer it."""
        if isinstance(env, Stateful):
            return cls(env, {"vector/": env})
        if not isinstance(env, gym.vector.SyncVectorEnv):
            return None
        holders = [_find_stateful(sub_env) for sub_env in env.envs]
        found = {f"env/{i}/": holder for i, holder in enumerate(holders) if holder is not None}
        return cls(env, found) if len(found) == env.num_envs else None

    def get(self) -> dict[str, Array]:
        """All arrays, each name behind its holder's prefix."""
        return {
            f"{prefix}{name}": array
            for prefix, holder in self._holders.items()
            for name, array in holder.get_state().items()
        }

    def set(self, state: Mapping[str, Array], lengths: IntArray, resetting: BoolArray) -> None:
        """Give each holder its arrays back. The environment has just been reset.

        Args:
            lengths: int64 [E], steps of the running episodes: what a TimeLimit has counted.
            resetting: bool [E], which sub-environments reset themselves at the next step.

        Raises:
            CheckpointError: a holder's arrays are not in `state`.
        """
        for prefix, holder in self._holders.items():
            own = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
            if not own:
                raise CheckpointError(f"the saved environment state has nothing for {prefix.rstrip('/')}")
            holder.set_state(own)
        if isinstance(self._env, gym.vector.SyncVectorEnv):
            # Gymnasium has no public way to set this, nor the count of a TimeLimit.
            self._env._autoreset_envs = resetting.copy()
            for sub_env, length in zip(self._env.envs, lengths, strict=True):
                _set_elapsed(sub_env, int(length))


def _find_stateful(env: gym.Env[Any, Any]) -> Stateful | None:
    layer = env
    while not isinstance(layer, Stateful):
        if not isinstance(layer, gym.Wrapper) or type(layer) not in _TRANSPARENT:
            return None
        layer = layer.env
    return layer


def _set_elapsed(env: gym.Env[Any, Any], num_env_steps: int) -> None:
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, TimeLimit):
            vars(layer)["_elapsed_steps"] = num_env_steps
        layer = layer.env
