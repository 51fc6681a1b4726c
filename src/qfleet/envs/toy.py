"""Small environments with known answers, for tests and for checking that an algorithm learns at all.

Importing this module registers qfleet/Identity-v0, Chain-v0, Bandit-v0, MaskedChain-v0, ShortOrLong-v0 and Script-v0;
the name alone is enough for `make_env_batch`. All of them can be saved and continued exactly (get_state, set_state).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from qfleet.types import Array, BoolArray

Obs = npt.NDArray[np.float32]
Info = dict[str, Any]
StepResult = tuple[Obs, float, bool, bool, Info]
_WORD = (1 << 64) - 1


class ToyEnv(gym.Env[Obs, Any]):
    """An environment whose whole state is `counters` and its random generator.

    Args:
        num_obs: size of the one-hot (or counting) observation vector.
        num_actions: A.
        num_counters: how many integers, beside the random generator, decide what comes next.
        high: largest value of an observation.
    """

    def __init__(self, num_obs: int, num_actions: int, num_counters: int, high: float = 1.0) -> None:
        self.observation_space = spaces.Box(0.0, high, (num_obs,), np.float32)
        self.action_space = spaces.Discrete(num_actions)
        self.counters = np.zeros(num_counters, dtype=np.int64)

    def get_state(self) -> dict[str, Array]:
        """The counters int64 and the PCG64 generator as uint64 [6]."""
        generator: dict[str, Any] = dict(self.np_random.bit_generator.state)
        words = [word for key in ("state", "inc") for word in _two_words(generator["state"][key])]
        words += [generator["has_uint32"], generator["uinteger"]]
        return {"counters": self.counters.copy(), "generator": np.array(words, dtype=np.uint64)}

    def set_state(self, state: dict[str, Array]) -> None:
        """Go on from what `get_state` returned."""
        self.counters = state["counters"].astype(np.int64)
        words = [int(word) for word in state["generator"]]
        self.np_random.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": words[0] << 64 | words[1], "inc": words[2] << 64 | words[3]},
            "has_uint32": words[4],
            "uinteger": words[5],
        }

    def _one_hot(self, index: int) -> Obs:
        assert self.observation_space.shape is not None
        obs = np.zeros(self.observation_space.shape, dtype=np.float32)
        obs[index] = 1.0
        return obs


class Identity(ToyEnv):
    """The observation says which action is right: reward 1 for it, 0 otherwise; the next one is drawn anew.

    Best return: `length`. Chance: length / num_actions.

    Args:
        num_actions: A, and the size of the one-hot observation.
        length: env steps in an episode, which then terminates.
    """

    def __init__(self, num_actions: int = 4, length: int = 1) -> None:
        super().__init__(num_obs=num_actions, num_actions=num_actions, num_counters=2)
        self.length = length

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """A new right action."""
        super().reset(seed=seed, options=options)
        self.counters[:] = self.np_random.integers(len(self._one_hot(0))), 0
        return self._one_hot(int(self.counters[0])), {}

    def step(self, action: int) -> StepResult:
        """Reward 1 if `action` is the one shown."""
        reward = float(action == self.counters[0])
        self.counters[:] = self.np_random.integers(len(self._one_hot(0))), self.counters[1] + 1
        return self._one_hot(int(self.counters[0])), reward, bool(self.counters[1] >= self.length), False, {}


class Chain(ToyEnv):
    """States 0 to S-1 in a row; action 1 goes right, action 0 left (or stays, in state 0).

    Going right in the last state gives reward 1, everything else 0. Then, in mode "terminate", the episode is
    over; in mode "continue" it goes on in the last state for ever, so that only a time limit ends it and the
    values below come out only where truncated episodes are bootstrapped.

    Args:
        num_states: S, the size of the one-hot observation.
        mode: "terminate" or "continue".
        time_limit: truncate after this many env steps, None for never.
        random_start: begin in any state with equal chance instead of state 0.
    """

    def __init__(
        self,
        num_states: int = 5,
        mode: Literal["terminate", "continue"] = "terminate",
        time_limit: int | None = None,
        random_start: bool = False,
        num_actions: int = 2,
    ) -> None:
        super().__init__(num_obs=num_states, num_actions=num_actions, num_counters=2)
        self.num_states = num_states
        self.mode = mode
        self.time_limit = time_limit
        self.random_start = random_start

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """State 0, or any."""
        super().reset(seed=seed, options=options)
        self.counters[:] = self.np_random.integers(self.num_states) if self.random_start else 0, 0
        return self._one_hot(int(self.counters[0])), self._info()

    def step(self, action: int) -> StepResult:
        """One move."""
        state, reward, terminated = self._move(int(self.counters[0]), int(action))
        self.counters[:] = state, self.counters[1] + 1
        truncated = self.time_limit is not None and bool(self.counters[1] >= self.time_limit)
        return self._one_hot(state), reward, terminated, truncated, self._info()

    def optimal_q(self, gamma: float) -> npt.NDArray[np.float64]:
        """Q* [S, A] by the closed form: the last state is worth 1 in mode "terminate", 1 / (1 - gamma) in
        "continue", and each move away from it costs a factor gamma. Time limits do not enter: they truncate."""
        best = 1.0 if self.mode == "terminate" else 1.0 / (1.0 - gamma)
        values = best * gamma ** np.arange(self.num_states - 1, -1, -1)
        left = gamma * values[np.maximum(np.arange(self.num_states) - 1, 0)]
        return np.stack([left, values], axis=1)

    def _move(self, state: int, action: int) -> tuple[int, float, bool]:
        """Next state, reward, terminated."""
        if action == 0:
            return max(state - 1, 0), 0.0, False
        if state == self.num_states - 1:
            return state, 1.0, self.mode == "terminate"
        return state + 1, 0.0, False

    def _info(self) -> Info:
        return {}


class MaskedChain(Chain):
    """A Chain with action masks and a third action, "skip", that goes two to the right.

    Left is legal except in state 0, right always, skip in even states that have a state two to the right. An
    illegal action raises ValueError. Arguments as for Chain.
    """

    def __init__(
        self,
        num_states: int = 5,
        mode: Literal["terminate", "continue"] = "terminate",
        time_limit: int | None = None,
        random_start: bool = False,
    ) -> None:
        super().__init__(num_states, mode, time_limit, random_start, num_actions=3)

    def action_mask(self, state: int) -> BoolArray:
        """bool [3]: which of left, right, skip are legal in `state`."""
        return np.array([state > 0, True, state % 2 == 0 and state + 2 < self.num_states])

    def optimal_q(self, gamma: float) -> npt.NDArray[np.float64]:
        """Q* [S, 3], -inf where illegal; states from the right to the left, since an optimal way never goes back."""
        q = np.full((self.num_states, 3), -np.inf)
        last = self.num_states - 1
        q[last, 1] = 1.0 if self.mode == "terminate" else 1.0 / (1.0 - gamma)
        for state in range(last - 1, -1, -1):
            q[state, 1] = gamma * q[state + 1].max()
            if self.action_mask(state)[2]:
                q[state, 2] = gamma * q[state + 2].max()
        for state in range(1, self.num_states):
            q[state, 0] = gamma * q[state - 1, 1:].max()
        return q

    def _move(self, state: int, action: int) -> tuple[int, float, bool]:
        if not self.action_mask(state)[action]:
            raise ValueError(f"action {action} is illegal in state {state}")
        return (state + 2, 0.0, False) if action == 2 else super()._move(state, action)

    def _info(self) -> Info:
        return {"action_mask": self.action_mask(int(self.counters[0]))}


class Bandit(ToyEnv):
    """One step, then the end: action a pays one of the two amounts outcomes[a], each with chance 1/2.

    The default has a safe arm and a better one whose single payments are now lower, now higher: for checking
    learned return distributions, whose quantiles are the two amounts.

    Args:
        outcomes: A pairs of amounts.
    """

    def __init__(self, outcomes: Sequence[Sequence[float]] = ((0.4, 0.4), (0.0, 1.0))) -> None:
        super().__init__(num_obs=1, num_actions=len(outcomes), num_counters=0)
        self.outcomes: npt.NDArray[np.float64] = np.asarray(outcomes, dtype=np.float64)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """The one observation, [1]."""
        super().reset(seed=seed, options=options)
        return self._one_hot(0), {}

    def step(self, action: int) -> StepResult:
        """Pay, and terminate."""
        return self._one_hot(0), float(self.outcomes[action, self.np_random.integers(2)]), True, False, {}

    def optimal_q(self) -> npt.NDArray[np.float64]:
        """Q* [A]: the mean of the two amounts."""
        return np.asarray(self.outcomes.mean(axis=1))


class ShortOrLong(ToyEnv):
    """An episode is short or long with chance 1/2, and every env step pays 1, whatever is done.

    The mean return is (short + long) / 2. Who stops a vector environment after the first N episodes that ended sees
    mostly short ones, and a mean far below.

    Args:
        short, long: env steps of an episode, which then terminates.
        num_actions: A.
    """

    def __init__(self, short: int = 1, long: int = 20, num_actions: int = 2) -> None:
        super().__init__(num_obs=2, num_actions=num_actions, num_counters=2)
        self.lengths = (short, long)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """An episode whose length is drawn."""
        super().reset(seed=seed, options=options)
        self.counters[:] = self.np_random.integers(2), 0
        return self._one_hot(int(self.counters[0])), {}

    def step(self, action: int) -> StepResult:
        """Reward 1."""
        self.counters[1] += 1
        is_over = bool(self.counters[1] >= self.lengths[self.counters[0]])
        return self._one_hot(int(self.counters[0])), 1.0, is_over, False, {}


class Script(ToyEnv):
    """Replays a script; each observation says whose it is: [tag, episode, step in the episode, last action].

    `tag` is the seed of the first reset, so copies in a vector environment (seeds s, s+1, ...) can be told
    apart, and each begins the script `stagger * tag` entries in, so that their episodes end at different times.

    Args:
        rewards: reward of each entry; the script starts again after the last one.
        ends: what each entry does to the episode: "" nothing, "terminated", "truncated" or "both".
        stagger: see above.
        masks: offer info["action_mask"], in which one action is illegal (`illegal_action`); taking it raises.
        num_actions: A.
    """

    def __init__(
        self,
        rewards: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0),
        ends: Sequence[str] = ("", "", "terminated", "", "truncated"),
        stagger: int = 0,
        masks: bool = False,
        num_actions: int = 4,
    ) -> None:
        super().__init__(num_obs=4, num_actions=num_actions, num_counters=5, high=2.0**24)
        if len(rewards) != len(ends):
            raise ValueError(f"a script needs one end per reward, got {len(rewards)} rewards and {len(ends)} ends")
        self.rewards = tuple(rewards)
        self.ends = tuple(ends)
        self.stagger = stagger
        self.masks = masks
        self.num_actions = num_actions
        # tag, episode (-1 before the first), step in the episode, last action, next entry of the script
        self.counters[:] = 0, -1, 0, 0, 0

    def illegal_action(self, episode: int, step: int) -> int:
        """The one action that is illegal after `step` steps of an episode."""
        return (3 * episode + step) % self.num_actions

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Obs, Info]:
        """The next episode; with a seed, the first one."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self.counters[:] = seed, -1, 0, 0, seed * self.stagger % len(self.rewards)
        self.counters[1] += 1
        self.counters[2:4] = 0
        return self._obs(), self._info()

    def step(self, action: int) -> StepResult:
        """The next entry of the script."""
        _, episode, step, _, entry = (int(counter) for counter in self.counters)
        if self.masks and action == self.illegal_action(episode, step):
            raise ValueError(f"action {action} is illegal at step {step} of episode {episode}")
        self.counters[2:] = step + 1, action, (entry + 1) % len(self.rewards)
        end = self.ends[entry]
        terminated, truncated = end in ("terminated", "both"), end in ("truncated", "both")
        return self._obs(), self.rewards[entry], terminated, truncated, self._info()

    def _obs(self) -> Obs:
        return self.counters[:4].astype(np.float32)

    def _info(self) -> Info:
        if not self.masks:
            return {}
        legal = np.arange(self.num_actions) != self.illegal_action(int(self.counters[1]), int(self.counters[2]))
        return {"action_mask": legal}


def _two_words(value: int) -> list[int]:
    return [value >> 64 & _WORD, value & _WORD]


for _env in (Identity, Chain, MaskedChain, Bandit, ShortOrLong, Script):
    gym.register(id=f"qfleet/{_env.__name__}-v0", entry_point=f"{__name__}:{_env.__name__}")
