"""V-trace actor-critic: learns from trajectories of older versions of its policy, corrected by importance ratios.

The learning half of IMPALA; strategies/actor_learner.py is the other. Espeholt et al. (2018). The equations are in
ops/returns.py (targets, advantages) and ops/actor_critic.py (loss and gradient).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qfleet.algos.base import LearnsFrom, LossOutput, PolicyAlgorithm, PolicyConfig, rollout_rows
from qfleet.config import Fraction, PositiveFloat
from qfleet.networks.flat import FlatNetwork
from qfleet.ops.actor_critic import actor_critic_loss, log_policy
from qfleet.ops.q_learning import select_action_values
from qfleet.ops.returns import vtrace
from qfleet.types import Trajectories


class Config(PolicyConfig):
    """The [algo] section of a V-trace recipe.

    Attributes:
        rho_clip: the largest importance ratio of a temporal difference; decides whose values are learned.
        c_clip: the largest one in the product by which a difference reaches back.
        trace_lambda: lambda of the returns; below 1 less variance, and targets nearer to the values themselves.
    """

    name: str = "vtrace"
    rho_clip: PositiveFloat = 1.0
    c_clip: PositiveFloat = 1.0
    trace_lambda: Fraction = 1.0


class Algorithm(PolicyAlgorithm):
    """Actor-critic with V-trace targets.

    Args:
        config: the [algo] section.
    """

    learns_from: LearnsFrom = "trajectories"

    def __init__(self, config: Config) -> None:
        self.config = config

    def backpropagate(self, online: FlatNetwork, trajectories: Trajectories) -> LossOutput:
        """Fill online.gradient from whole trajectories [T, E, ...], which may be of several behaviour policies.

        The observations after the last steps go through the network with the others, for their values; no gradient
        comes back through them, nor through targets and advantages.
        """
        num_steps, num_envs = trajectories.action.shape
        obs = np.concatenate([trajectories.obs, trajectories.last_obs[None]])
        obs_B = torch.from_numpy(obs.reshape(-1, *obs.shape[2:])).to(online.vector.device)

        def gradient_of(output: Tensor) -> tuple[Tensor, LossOutput]:
            gradient = torch.zeros_like(output)
            num_rows = num_steps * num_envs
            value = output[:, -1].reshape(num_steps + 1, num_envs).cpu().numpy()
            gradient[:num_rows], result = self.loss(output[:num_rows], value, trajectories)
            return gradient, result

        return online.backpropagate(obs_B, gradient_of)

    @torch.no_grad()
    def loss(self, output: Tensor, value: np.ndarray, trajectories: Trajectories) -> tuple[Tensor, LossOutput]:
        """The actor-critic loss on V-trace's advantages and targets, mean over the valid steps.

        Args:
            output: float [T * E, A + 1], of the observations acted on, time first: logits, then the value.
            value: float32 [T + 1, E], the values with those of the last observations.
            trajectories: what was acted on, by which probabilities.

        Returns:
            The gradient in the output, and what the learner reports; "mean_ratio" is that of pi(a) / mu(a), which is 1
            on-policy, before it is clipped.
        """
        config, device = self.config, output.device

        def rows(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).flatten(0, 1).to(device)

        mask = None if trajectories.action_mask is None else rows(trajectories.action_mask)
        action = rows(trajectories.action)
        log_policy_BA = log_policy(output[:, :-1], mask)
        log_prob = select_action_values(log_policy_BA, action).reshape(value[:-1].shape).cpu().numpy()
        log_ratio = log_prob - trajectories.log_prob
        corrected = vtrace(
            log_ratio,
            trajectories.reward,
            trajectories.discount,
            value,
            rho_clip=config.rho_clip,
            c_clip=config.c_clip,
            trace=config.trace_lambda,
        )
        weight = rollout_rows(trajectories, corrected.target).weight
        out = actor_critic_loss(
            output,
            log_policy_BA,
            action,
            rows(corrected.advantage),
            rows(corrected.target),
            torch.from_numpy(weight).to(device),
            entropy_bonus=config.entropy_bonus,
            value_coefficient=config.value_coefficient,
        )
        ratio = np.exp(np.minimum(log_ratio[trajectories.valid], 20.0))
        extras = {
            "policy_loss": out.policy_loss,
            "value_loss": out.value_loss,
            "entropy": out.entropy,
            "mean_ratio": torch.tensor(ratio.mean()),
        }
        return out.gradient, LossOutput(out.loss, torch.tensor(value[:-1].mean()), extras=extras)
