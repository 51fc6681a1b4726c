"""EnvBatch: E environments stepped together, every autoreset mode told as one kind of EnvStep.

The first hop of a transition. Here it is settled which steps are transitions, which observation really
followed, and what an episode returned; no transition ever spans two episodes. Autoreset modes are those of
https://farama.org/Vector-Autoreset-Mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from qfleet.envs.masks import read_masks, require_legal_action
from qfleet.envs.state import VectorState
from qfleet.errors import CheckpointError, EnvError, UsageError
from qfleet.types import Array, BoolArray, EnvSpec, EnvStep, IntArray

AnyVectorEnv = gym.vector.VectorEnv[Any, Any, Any]


class EnvBatch:
    """A Gymnasium vector environment with one meaning of a step, and its own episode accounting.

    Arrays that it returns are never written again: they may be kept without a copy, and must not be written to.

    Args:
        env: the vector environment; Box observations, Discrete actions per sub-environment.
        spec: what it looks like to training; `has_action_mask` says whether masks are read.
        reward_scale, reward_clip: applied to `EnvStep.reward` (scale, then clip), never to episode returns.
        life_loss: tell a lost life (info["lives"]) as a termination; the episode, and its return, go on.

    Raises:
        UsageError: the environment does not declare how it resets itself.
    """

    def __init__(
        self,
        env: AnyVectorEnv,
        spec: EnvSpec,
        *,
        reward_scale: float = 1.0,
        reward_clip: float | None = None,
        life_loss: bool = False,
    ) -> None:
        self.num_envs: int = env.num_envs
        self.spec = spec
        self._env = env
        self._mode = autoreset_mode(env, spec.env_id)
        self._state = VectorState.find(env)
        self._reward_scale = reward_scale
        self._reward_clip = reward_clip
        self._plain_reward = reward_scale == 1.0 and reward_clip is None
        self._life_loss = life_loss
        self._lives: IntArray = np.zeros(self.num_envs, dtype=np.int64)
        self._copies_obs = not getattr(env, "gives_fresh_arrays", False)
        self._obs_dtype = np.dtype(spec.obs_dtype)
        self._action_dtype = env.action_space.dtype or np.dtype(np.int64)
        self._first_action = int(getattr(env.single_action_space, "start", 0))
        self._plain_actions = self._first_action == 0 and self._action_dtype == np.int64

        self._ones = np.ones(self.num_envs, dtype=np.float64)
        self._all_valid = _read_only(np.ones(self.num_envs, dtype=np.bool_))
        self._no_returns = _read_only(np.empty(0, dtype=np.float64))
        self._no_index = _read_only(np.empty(0, dtype=np.int64))

        self._started = False
        # Which environments spend the coming step on resetting themselves (NEXT_STEP); None if none does.
        self._resetting: BoolArray | None = None
        self._obs: Array = np.zeros((self.num_envs, *spec.obs_shape), dtype=self._obs_dtype)
        self._action_mask: BoolArray | None = None
        self._clear_episodes()

    @property
    def obs(self) -> Array:
        """[E, *O], what to act on now."""
        return self._obs

    @property
    def action_mask(self) -> BoolArray | None:
        """bool [E, A], True = legal now; None without masks. A row that waits for its reset may be all True."""
        return self._action_mask

    @property
    def offers_state(self) -> bool:
        """Whether `get_state` and `set_state` work: the environment itself, or each copy of it, offers both."""
        return self._state is not None

    def reset(self, seed: int) -> Array:
        """Begin a new episode everywhere. Returns obs [E, *O]. Unfinished episodes are forgotten, not counted.

        Raises:
            EnvError: an observation of another shape than the spec's, or no legal action.
        """
        raw_obs, info = self._env.reset(seed=int(seed))
        obs = self._own_obs(raw_obs)
        if obs.shape != self._obs.shape:
            self._refuse(f"its observations have shape {obs.shape[1:]}, its space promises {self.spec.obs_shape}")
        self._obs = obs
        self._clear_episodes()
        if self.spec.has_action_mask:
            self._action_mask = self._masks(info, needed=self._all_valid)
        if self._life_loss:
            self._lives = self._read_lives(info)
        self._started = True
        return obs

    def step(self, actions: IntArray) -> EnvStep:
        """One env step in each of the E environments.

        Args:
            actions: int64 [E], 0 <= action < A. Ignored where an environment is due to reset itself.

        Raises:
            EnvError: a NaN or infinite reward, no legal action, or a final observation that is missing.
            RuntimeError: `reset` was never called.
        """
        if not self._started:
            raise RuntimeError("EnvBatch.step before EnvBatch.reset")
        if not self._plain_actions:
            actions = (actions + self._first_action).astype(self._action_dtype)
        raw_obs, raw_reward, raw_terminated, raw_truncated, info = self._env.step(actions)

        # np.array copies: vector environments may write the next step into the arrays of this one.
        obs = self._own_obs(raw_obs)
        reward = np.array(raw_reward, dtype=np.float64)
        terminated = np.array(raw_terminated, dtype=np.bool_)
        truncated = np.array(raw_truncated, dtype=np.bool_)
        valid = self._all_valid
        if self._resetting is not None:
            valid = ~self._resetting
            reward[self._resetting] = 0.0
            terminated &= valid
            truncated &= valid
            self._resetting = None

        self._returns += reward
        self._lengths += valid
        # A dot product is the cheapest way to see one NaN or infinity; only then look for it.
        if not math.isfinite(reward.dot(self._ones)):
            self._refuse_reward(reward)

        ended = terminated | truncated
        if self._life_loss:
            lives, before = self._read_lives(info), self._lives
            self._lives = lives
            # Where an episode has ended, or begins, these may be the next one's lives.
            terminated |= (lives < before) & valid & ~ended
        if np.count_nonzero(ended):
            return self._end_episodes(obs, reward, terminated, truncated, valid, ended, info)
        mask = self._masks(info, needed=self._all_valid) if self.spec.has_action_mask else None
        self._obs = obs
        self._action_mask = mask
        return EnvStep(
            next_obs=obs,
            reward=self._training_reward(reward),
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            obs=obs,
            next_action_mask=mask,
            episode_returns=self._no_returns,
            episode_lengths=self._no_index,
            episode_envs=self._no_index,
        )

    def close(self) -> None:
        """Release the environments; calling it twice is fine."""
        self._env.close()

    def get_state(self) -> dict[str, Array]:
        """Everything that decides the next steps, as arrays: the environments' own state and the accounting.

        Raises:
            RuntimeError: `offers_state` is False, or `reset` was never called.
        """
        if self._state is None or not self._started:
            raise RuntimeError(f"{self.spec.env_id} offers no state now; ask EnvBatch.offers_state, after reset")
        waiting = np.zeros(self.num_envs, dtype=np.bool_) if self._resetting is None else self._resetting
        state: dict[str, Array] = {
            "obs": self._obs.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "resetting": waiting.copy(),
            "lives": self._lives.copy(),
        }
        if self._action_mask is not None:
            state["action_mask"] = self._action_mask.copy()
        return state | self._state.get()

    def set_state(self, state: Mapping[str, Array]) -> None:
        """Continue from what `get_state` returned, bit for bit.

        Raises:
            CheckpointError: the state is of another environment, or of another number of them.
            RuntimeError: `offers_state` is False.
        """
        if self._state is None:
            raise RuntimeError(f"{self.spec.env_id} offers no state; ask EnvBatch.offers_state")
        names = {"obs", "returns", "lengths", "resetting"} | ({"action_mask"} if self.spec.has_action_mask else set())
        if not names <= state.keys() or state["obs"].shape != self._obs.shape:
            raise CheckpointError(
                f"the saved environment state does not fit {self.num_envs} x {self.spec.env_id}; "
                "resume with the environment that it was saved from"
            )
        # A reset brings wrappers and vector environment into the state in which a step is allowed.
        self.reset(seed=0)
        self._state.set(state, lengths=state["lengths"], resetting=state["resetting"])
        self._obs = state["obs"].astype(self._obs_dtype)
        self._returns = state["returns"].astype(np.float64)
        self._lengths = state["lengths"].astype(np.int64)
        self._lives = state.get("lives", self._lives).astype(np.int64)
        self._resetting = state["resetting"].astype(np.bool_) if state["resetting"].any() else None
        if self.spec.has_action_mask:
            self._action_mask = state["action_mask"].astype(np.bool_)

    def _end_episodes(
        self,
        obs: Array,
        reward: Array,
        terminated: BoolArray,
        truncated: BoolArray,
        valid: BoolArray,
        ended: BoolArray,
        info: dict[str, Any],
    ) -> EnvStep:
        """The step in which at least one episode ended: where its last observation is depends on the mode."""
        (index,) = ended.nonzero()
        episode_returns, episode_lengths = self._returns[index], self._lengths[index]
        next_obs = obs
        mask = next_mask = None
        if self._mode is AutoresetMode.SAME_STEP:
            next_obs = self._final_obs(obs, index, info)
            if self.spec.has_action_mask:
                mask = self._masks(info, needed=self._all_valid)
                final = self._masks(info.get("final_info", {}), needed=ended & ~terminated)
                next_mask = np.where(ended[:, None], final, mask)
        else:
            if self.spec.has_action_mask:
                # Nothing is bootstrapped from a terminal observation, so it may come without legal actions.
                mask = next_mask = self._masks(info, needed=~terminated)
            if self._mode is AutoresetMode.NEXT_STEP:
                self._resetting = ended
            else:
                obs, mask = self._reset_ended(next_mask, ended)
        self._returns[index] = 0.0
        self._lengths[index] = 0
        self._obs = obs
        self._action_mask = mask
        return EnvStep(
            next_obs=next_obs,
            reward=self._training_reward(reward),
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            obs=obs,
            next_action_mask=next_mask,
            episode_returns=episode_returns,
            episode_lengths=episode_lengths,
            episode_envs=index,
        )

    def _final_obs(self, obs: Array, index: IntArray, info: dict[str, Any]) -> Array:
        """[E, *O] with the K ended rows replaced by info["final_obs"] (an object array, or a dense one)."""
        final = info.get("final_obs")
        next_obs = obs.copy()
        for i in index:
            if final is None or final[i] is None:
                self._refuse(f"env {i} ended an episode without info['final_obs'], which autoreset same_step must give")
            next_obs[i] = final[i]
        return next_obs

    def _reset_ended(self, next_mask: BoolArray | None, ended: BoolArray) -> tuple[Array, BoolArray | None]:
        """Reset the ended environments ourselves (AutoresetMode.DISABLED). Returns obs and mask to act on."""
        raw_obs, info = self._env.reset(options={"reset_mask": ended.copy()})
        if next_mask is None:
            return self._own_obs(raw_obs), None
        first = self._masks(info, needed=ended)
        return self._own_obs(raw_obs), np.where(ended[:, None], first, next_mask)

    def _masks(self, info: Mapping[str, Any], needed: BoolArray) -> BoolArray:
        """bool [E, A] from info; rows in `needed` must have a legal action, the others become all True without one."""
        masks = read_masks(info, self.num_envs, self.spec.num_actions, self.spec.env_id)
        return require_legal_action(masks, needed, self.spec.env_id, self._lengths)

    def _own_obs(self, raw_obs: Array) -> Array:
        return np.array(raw_obs, dtype=self._obs_dtype, order="C") if self._copies_obs else raw_obs

    def _read_lives(self, info: Mapping[str, Any]) -> IntArray:
        lives = info.get("lives")
        if lives is None:
            self._refuse("it tells no info['lives'], which env.atari.life_loss needs")
        return np.array(lives, dtype=np.int64)

    def _training_reward(self, reward: Array) -> Array:
        if self._plain_reward:
            return reward.astype(np.float32)
        scaled = reward * self._reward_scale
        if self._reward_clip is not None:
            np.clip(scaled, -self._reward_clip, self._reward_clip, out=scaled)
        return scaled.astype(np.float32)

    def _clear_episodes(self) -> None:
        self._returns = np.zeros(self.num_envs, dtype=np.float64)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._resetting = None

    def _refuse_reward(self, reward: Array) -> None:
        for i in np.flatnonzero(~np.isfinite(reward)):
            self._refuse(
                f"env {i} gave reward {reward[i]} at step {self._lengths[i]} of its episode; "
                "rewards must be finite numbers, so fix the environment's reward"
            )

    def _refuse(self, what: str) -> NoReturn:
        raise EnvError(f"environment {self.spec.env_id}: {what}")


def autoreset_mode(env: AnyVectorEnv, env_id: str) -> AutoresetMode:
    """The autoreset mode that a vector environment declares in its metadata.

    Raises:
        UsageError: it declares none, so its transitions could not be told from resets.
    """
    declared = env.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(declared)
    except ValueError:
        raise UsageError(
            f"environment {env_id}: its vector version declares no metadata['autoreset_mode'] "
            f"(found {declared!r}); use --set env.vectorization=sync"
        ) from None


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
