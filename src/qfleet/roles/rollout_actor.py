"""RolloutActor: environments and a behaviour policy; from observations to one rollout, which is learned from at once.

Beside actor.py, for algorithms without a replay. Inference is one call per vector step, and one more per rollout for
what values must be bootstrapped from: the observation after the last step, and where time limits have struck.
"""

from __future__ import annotations

import time

import numpy as np

from qfleet.networks.flat import FlatNetwork
from qfleet.roles.actor import BaseActor, count_step
from qfleet.roles.blueprint import Blueprint
from qfleet.types import Array, BoolArray, EnvStep, IntArray, Progress, Receipt, Trajectories


class RolloutActor(BaseActor):
    """Steps a batch of environments for a whole rollout. Arguments as those of BaseActor."""

    def __init__(
        self, blueprint: Blueprint, name: str, network: FlatNetwork, rank: int = 0, num_actors: int = 1
    ) -> None:
        super().__init__(blueprint, name, network, rank, num_actors)
        self.algorithm = blueprint.build_acting_algorithm()
        self.gamma = blueprint.algo.gamma

    def rollout(self, progress: Progress, num_vector_steps: int, version: int, receipt: Receipt) -> Trajectories:
        """`num_vector_steps` vector steps by the network as it is, which is at `version`.

        Adds counts, seconds and rows ("inserted": those in which an environment only reset itself, too) to `receipt`.
        """
        envs = self.envs
        recording = _Recording(envs.obs, envs.action_mask, num_vector_steps, envs.num_envs)
        clock, epsilon = time.perf_counter, self.epsilon(progress)
        acting = stepping = 0.0
        for t in range(num_vector_steps):
            started = clock()
            obs, mask = envs.obs, envs.action_mask
            self._resample_noise()
            acted = self.algorithm.act(self.network, obs, mask, epsilon, self.generator)
            chosen = clock()
            step = envs.step(acted.action)
            recording.obs[t], recording.action[t] = obs, acted.action
            recording.log_prob[t], recording.value[t] = acted.log_prob, acted.value
            if mask is not None and recording.mask is not None:
                recording.mask[t] = mask
            recording.end_step(t, step)
            count_step(step, receipt)
            acting += chosen - started
            stepping += clock() - chosen
        started = clock()
        trajectories = self._close(recording, version)
        receipt.num_inserted += num_vector_steps * envs.num_envs
        receipt.seconds["inference"] = receipt.seconds.get("inference", 0.0) + acting + clock() - started
        receipt.seconds["environment"] = receipt.seconds.get("environment", 0.0) + stepping
        receipt.metrics |= self.metrics(progress)
        return trajectories

    def _close(self, recording: _Recording, version: int) -> Trajectories:
        """Bootstrap the truncated steps, and value the observation after the last step, in one inference call."""
        envs, num_envs = self.envs, self.envs.num_envs
        last_obs, last_mask = envs.obs, envs.action_mask
        obs = np.concatenate([last_obs, *recording.cut_obs]) if recording.cut_obs else last_obs
        mask = last_mask
        if mask is not None and recording.cut_obs:
            mask = np.concatenate([mask, *recording.cut_masks])
        values = self.algorithm.values(self.network, obs, mask)
        recording.value[-1] = values[:num_envs]
        discount = np.float32(self.gamma) * recording.goes_on
        if recording.cut_obs:
            steps, cut_envs = np.concatenate(recording.cut_steps), np.concatenate(recording.cut_envs)
            recording.reward[steps, cut_envs] += np.float32(self.gamma) * values[num_envs:]
        return Trajectories(
            obs=recording.obs,
            action=recording.action,
            reward=recording.reward,
            discount=discount,
            valid=recording.valid,
            log_prob=recording.log_prob,
            value=recording.value,
            last_obs=last_obs,
            action_mask=recording.mask,
            last_action_mask=last_mask,
            version=version,
        )

    def cut(self, tag: str) -> None:
        """Bring the environments to a state that a checkpoint can hold: their own, or a start from `tag`'s seed.

        A rollout is over when a checkpoint is made, and its end was bootstrapped: nothing is left open.
        """
        if not self.envs.offers_state:
            self.restart(tag)


class _Recording:
    """Arrays of a rollout under way, [T, E, ...], and the K observations that truncations are bootstrapped from."""

    def __init__(self, obs: Array, mask: BoolArray | None, num_steps: int, num_envs: int) -> None:
        shape = (num_steps, num_envs)
        self.obs = np.empty((num_steps, *obs.shape), obs.dtype)
        self.action: IntArray = np.empty(shape, np.int64)
        self.reward = np.empty(shape, np.float32)
        self.goes_on = np.ones(shape, np.float32)
        self.valid: BoolArray = np.ones(shape, np.bool_)
        self.log_prob = np.empty(shape, np.float32)
        self.value = np.empty((num_steps + 1, num_envs), np.float32)
        self.mask: BoolArray | None = None if mask is None else np.empty((num_steps, *mask.shape), np.bool_)
        self.cut_steps: list[IntArray] = []
        self.cut_envs: list[IntArray] = []
        self.cut_obs: list[Array] = []
        self.cut_masks: list[BoolArray] = []

    def end_step(self, t: int, step: EnvStep) -> None:
        """Reward and end of each environment's step `t`."""
        self.reward[t] = step.reward
        ended = step.terminated | step.truncated
        self.valid[t] = step.valid
        # A step of resetting leads nowhere that it could be rewarded for.
        self.goes_on[t] = step.valid & ~ended
        if len(step.episode_envs) == 0:
            return
        (cut,) = (step.truncated & ~step.terminated).nonzero()
        if len(cut):
            self.cut_steps.append(np.full(len(cut), t))
            self.cut_envs.append(cut)
            self.cut_obs.append(step.next_obs[cut])
            if step.next_action_mask is not None:
                self.cut_masks.append(step.next_action_mask[cut])
