"""Turns vector-environment steps into n-step transitions: the first stop of a transition, before replay.

A window opens at each step of each of E environments and closes n steps later, or at its episode's end. The sum
is G = sum_k gamma^k r_k (Sutton, 1988); a window closed early is discounted by the steps that it really holds.
All environments at once: no Python per transition.
"""

from __future__ import annotations

import numpy as np

from qfleet.errors import EnvError
from qfleet.types import Array, BoolArray, EnvSpec, EnvStep, IntArray, Transitions


class NStepAdder:
    """Holds the open windows of E environments.

    A termination gives discount 0, a truncation gamma^k and the true final observation; where an environment
    reports both, termination wins. Steps with `valid` False open no window and drop what was open.

    Args:
        num_envs: E.
        spec: shapes and dtypes of the environment.
        n_step: n, at least 1.
        gamma: discount per env step, in [0, 1].

    Raises:
        ValueError: n_step or gamma is out of range.
    """

    def __init__(self, num_envs: int, spec: EnvSpec, n_step: int, gamma: float) -> None:
        if n_step < 1 or not 0.0 <= gamma <= 1.0:
            raise ValueError(f"n_step must be at least 1 and gamma in [0, 1], got {n_step} and {gamma}")
        self.num_envs, self.n_step, self.gamma, self._spec = num_envs, n_step, gamma, spec
        # By window length, [n + 1].
        self._discounts = (gamma ** np.arange(n_step + 1, dtype=np.float64)).astype(np.float32)
        self._full_discounts = np.full(num_envs, self._discounts[n_step])
        # The last n steps as a ring over the first axis; a step's slot is its number modulo n.
        self._obs: Array = np.zeros((n_step, num_envs, *spec.obs_shape), spec.obs_dtype)
        self._actions = np.zeros((n_step, num_envs), np.int64)
        self._rewards = np.zeros((n_step, num_envs), np.float64)
        self._next_slot = 0
        self._num_open = np.zeros(num_envs, np.int64)  # open windows per environment, at most n - 1
        self._all_full = n_step == 1  # every environment closes exactly one window at its next valid step

    def add(self, obs: Array, actions: IntArray, step: EnvStep) -> Transitions:
        """Takes one step of all environments and returns the windows that it closes.

        Arrays of the result may be those of the arguments (never copies of the ring that change later), so store
        them before an environment writes into its buffers again.

        Args:
            obs: [E, *O], what was acted on.
            actions: int64 [E].
            step: what the environments answered.

        Returns:
            N transitions, those of longer windows first, then by environment; N is E while no episode ends.

        Raises:
            EnvError: the environment declared action masks and this step has none.
        """
        if self._spec.has_action_mask and step.next_action_mask is None:
            raise EnvError(f"{self._spec.env_id} declares action masks, but a step came without next_action_mask")
        count = np.count_nonzero
        num_terminated = int(count(step.terminated))
        all_valid = int(count(step.valid)) == self.num_envs
        if self.n_step == 1:
            return self._add_single(obs, actions, step, all_valid, num_terminated > 0)
        slot = self._next_slot
        self._obs[slot] = obs
        self._actions[slot] = actions
        self._rewards[slot] = step.reward
        self._next_slot = oldest = (slot + 1) % self.n_step
        if not (self._all_full and all_valid) or num_terminated or count(step.truncated):
            return self._add_general(slot, step)
        returns = self._rewards[slot]
        for age in range(1, self.n_step):
            returns = self._rewards[slot - age] + self.gamma * returns
        return Transitions(
            obs=self._obs[oldest].copy(),
            action=self._actions[oldest].copy(),
            reward=returns.astype(np.float32),
            discount=self._full_discounts.copy(),
            next_obs=step.next_obs,
            next_action_mask=step.next_action_mask,
        )

    def flush(self, obs: Array, action_mask: BoolArray | None = None) -> Transitions:
        """Closes all open windows as truncations that bootstrap from `obs`; a reset of the environments follows.

        Args:
            obs: [E, *O], what would have been acted on next.
            action_mask: bool [E, A] of `obs`, needed where the environment has masks.

        Returns:
            N transitions, those of longer windows first, then by environment.

        Raises:
            EnvError: the environment declared action masks and `action_mask` is None.
        """
        if self._spec.has_action_mask and action_mask is None:
            raise EnvError(f"{self._spec.env_id} declares action masks, but flush got no action_mask")
        ages = np.arange(self.n_step)[:, None]
        closed = ages < self._num_open
        terminated = np.zeros(self.num_envs, np.bool_)
        last_slot = (self._next_slot - 1) % self.n_step
        transitions = self._close(last_slot, closed, terminated, obs, action_mask)
        self._num_open[:] = 0
        self._all_full = self.n_step == 1
        return transitions

    def state_dict(self) -> dict[str, Array]:
        """The open windows, as copies."""
        return {
            "obs": self._obs.copy(),
            "actions": self._actions.copy(),
            "rewards": self._rewards.copy(),
            "num_open": self._num_open.copy(),
            "next_slot": np.array(self._next_slot, np.int64),
        }

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            ValueError: an array is missing or of another shape or dtype (another E, n or environment).
        """
        ours = self.state_dict()
        for name, value in ours.items():
            got = state.get(name)
            if got is None or got.shape != value.shape or got.dtype != value.dtype:
                raise ValueError(f"n-step state: {name} must be {value.dtype} {list(value.shape)}")
        self._obs[:], self._actions[:], self._rewards[:] = state["obs"], state["actions"], state["rewards"]
        self._num_open[:] = state["num_open"]
        self._next_slot = int(state["next_slot"])
        self._all_full = bool(np.all(self._num_open == self.n_step - 1))

    def _add_single(
        self, obs: Array, actions: IntArray, step: EnvStep, all_valid: bool, any_terminated: bool
    ) -> Transitions:
        """One-step windows never stay open: the step is the transition."""
        discount = self._full_discounts.copy()
        if any_terminated:
            discount[step.terminated] = 0.0
        mask = step.next_action_mask
        if all_valid:
            return Transitions(obs, actions, step.reward, discount, step.next_obs, mask)
        envs = np.flatnonzero(step.valid)
        return Transitions(
            obs=obs[envs],
            action=actions[envs],
            reward=step.reward[envs],
            discount=discount[envs],
            next_obs=step.next_obs[envs],
            next_action_mask=None if mask is None else mask[envs],
        )

    def _add_general(self, slot: int, step: EnvStep) -> Transitions:
        """A step at which some window is not full yet, or some episode ends, or some environment is resetting."""
        open_now = np.where(step.valid, self._num_open + 1, 0)
        ended = (step.terminated | step.truncated) & step.valid
        ages = np.arange(self.n_step)[:, None]
        closed = (ages < open_now) & (ended | (ages == self.n_step - 1))
        transitions = self._close(slot, closed, step.terminated, step.next_obs, step.next_action_mask)
        self._num_open = np.where(ended, 0, np.minimum(open_now, self.n_step - 1))
        self._all_full = int(self._num_open.min()) == self.n_step - 1
        return transitions

    def _close(
        self, slot: int, closed: BoolArray, terminated: BoolArray, next_obs: Array, mask: BoolArray | None
    ) -> Transitions:
        """The windows marked in `closed` (bool [n, E], by age: 0 holds only the step in `slot`) as transitions."""
        returns = np.empty((self.n_step, self.num_envs))
        returns[0] = self._rewards[slot]
        for age in range(1, self.n_step):
            np.multiply(returns[age - 1], self.gamma, out=returns[age])
            returns[age] += self._rewards[slot - age]
        reversed_ages, envs = np.nonzero(closed[::-1])
        ages = self.n_step - 1 - reversed_ages
        slots = (slot - ages) % self.n_step
        discount = self._discounts[ages + 1]
        discount[terminated[envs]] = 0.0
        return Transitions(
            obs=self._obs[slots, envs],
            action=self._actions[slots, envs],
            reward=returns[ages, envs].astype(np.float32),
            discount=discount,
            next_obs=next_obs[envs],
            next_action_mask=None if mask is None else mask[envs],
        )
