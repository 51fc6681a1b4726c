"""Streams of transitions whose observations are stacks of frames, as an actor makes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qfleet.replay.n_step import NStepAdder
from qfleet.types import EnvSpec, EnvStep, Transitions

SPEC = EnvSpec("Frames-v0", (3, 4, 5), "uint8", 4)  # 20 bytes a frame: padded to 24
EVEN = EnvSpec("Even-v0", (2, 4, 4), "uint8", 300, has_action_mask=True)  # two whole words


class Stream:
    """E environments whose episodes begin with a stack of one frame repeated, and end at random.

    Args:
        spec: of the environment.
        num_envs: E.
        n_step: n.
        num_shades: frames are one shade all over, drawn from so many; few make equal frames common.
        end_share: chance that an episode ends at a step.
        invalid_share: chance that an environment only resets itself at a step.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        n_step: int = 1,
        *,
        seed: int = 0,
        num_shades: int | None = None,
        end_share: float = 0.1,
        invalid_share: float = 0.0,
    ) -> None:
        self.spec, self.num_envs, self.num_shades = spec, num_envs, num_shades
        self.end_share, self.invalid_share = end_share, invalid_share
        self._rng = np.random.default_rng(seed)
        self._adder = NStepAdder(num_envs, spec, n_step, 0.9)
        self._count = 0
        self._obs = np.stack([self._first() for _ in range(num_envs)])

    def _frame(self) -> np.ndarray:
        """A shade of few, or a frame that was never there before."""
        shape = self.spec.obs_shape[1:]
        if self.num_shades is not None:
            return np.full(shape, self._rng.integers(self.num_shades), np.uint8)
        self._count += 1
        frame = np.zeros(shape, np.uint8)
        frame.reshape(-1)[-4:] = np.frombuffer(np.uint32(self._count).tobytes(), np.uint8)
        return frame

    def _first(self) -> np.ndarray:
        return np.repeat(self._frame()[None], self.spec.obs_shape[0], axis=0)

    def step(self) -> Transitions:
        """What one vector step gives to replay; at times nothing."""
        num, rng = self.num_envs, self._rng
        new = np.stack([self._frame() for _ in range(num)])
        next_obs = np.concatenate([self._obs[:, 1:], new[:, None]], axis=1)
        valid = rng.random(num) >= self.invalid_share
        ended = (rng.random(num) < self.end_share) & valid
        terminated = ended & (rng.random(num) < 0.5)
        obs = next_obs.copy()
        for env in np.flatnonzero(ended | ~valid):
            obs[env] = self._first()
        mask = rng.random((num, self.spec.num_actions)) < 0.5 if self.spec.has_action_mask else None
        step = EnvStep(
            next_obs=next_obs,
            reward=rng.random(num).astype(np.float32),
            terminated=terminated,
            truncated=ended & ~terminated,
            valid=valid,
            obs=obs,
            next_action_mask=mask,
            episode_returns=np.zeros(0),
            episode_lengths=np.zeros(0, np.int64),
            episode_envs=np.zeros(0, np.int64),
        )
        transitions = self._adder.add(self._obs, rng.integers(0, self.spec.num_actions, num), step)
        self._obs = obs
        return transitions

    def batches(self, num_steps: int, steps_per_batch: int = 1) -> Iterator[Transitions]:
        """`num_steps` steps, several in one batch as a rollout has them."""
        pending: list[Transitions] = []
        for index in range(num_steps):
            pending.append(self.step())
            if len(pending) == steps_per_batch or index == num_steps - 1:
                yield concatenate(pending)
                pending = []


def concatenate(parts: list[Transitions]) -> Transitions:
    """One batch of several."""
    masks = [part.next_action_mask for part in parts if part.next_action_mask is not None]
    return Transitions(
        obs=np.concatenate([part.obs for part in parts]),
        action=np.concatenate([part.action for part in parts]),
        reward=np.concatenate([part.reward for part in parts]),
        discount=np.concatenate([part.discount for part in parts]),
        next_obs=np.concatenate([part.next_obs for part in parts]),
        next_action_mask=np.concatenate(masks) if masks else None,
    )
