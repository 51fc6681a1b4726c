"""IQN: a network that gives the quantile of any fraction of the return; M-IQN with the Munchausen target.

Dabney, Ostrovski, Silver, Munos (2018); Vieillard et al. (2020). Fractions are random numbers of the role that asks,
through the head (networks/implicit.py); an evaluation takes fixed ones. The equations are in ops/quantiles.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qfleet.algos.base import Batch, LearnsFrom, LossOutput, MunchausenConfig
from qfleet.algos.qr_dqn import quantile_loss
from qfleet.config import NonNegativeFloat, PositiveFloat, PositiveInt
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import QNetwork
from qfleet.networks.implicit import ImplicitQuantileHead
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops.distributions import best_action, bootstrapped_rows, select_action_rows
from qfleet.ops.munchausen import munchausen_bonus, soft_rows
from qfleet.ops.quantiles import quantile_huber
from qfleet.types import EnvSpec


class Config(MunchausenConfig):
    """The [algo] section of an IQN recipe; the defaults are the paper's, for Atari.

    Of the counts of fractions, `num_quantiles` is N of the paper, `num_target_quantiles` N', `num_policy_quantiles` K.
    """

    name: str = "iqn"
    learning_rate: PositiveFloat = 5e-5
    batch_size: PositiveInt = 32
    target_period_updates: PositiveInt = 2_500
    double: bool = False
    num_quantiles: PositiveInt = 64
    num_target_quantiles: PositiveInt = 64
    num_policy_quantiles: PositiveInt = 32
    num_cosines: PositiveInt = 64
    head_hidden: PositiveInt | None = None
    kappa: NonNegativeFloat = 1.0
    dueling: bool = False
    noisy: bool = False


class Algorithm:
    """Implicit quantile network.

    Args:
        config: the [algo] section.
    """

    learns_from: LearnsFrom = "replay"

    def __init__(self, config: Config) -> None:
        self.config = config

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] and fractions [B, N] -> their quantiles [B, A, N].

        Raises:
            ConfigError: an option does not fit the environment.
        """
        config = self.config
        config.refuse_masks(spec)
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        head = ImplicitQuantileHead(
            torso.num_features,
            spec.num_actions,
            num_fractions=config.num_policy_quantiles,
            num_cosines=config.num_cosines,
            hidden=config.head_hidden,
            dueling=config.dueling,
            noisy=config.noisy,
        )
        return QNetwork(torso, head)

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """Means over K fractions, the same ones for all of `obs`: [B, *O] -> float [B, A]."""
        fractions_1K = _head(network).fractions(1, self.config.num_policy_quantiles, "act")
        values: Tensor = network.infer(obs, fractions_1K).mean(dim=2)
        return values

    @torch.no_grad()
    def targets(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """Values that the distribution of (s, a) should have, with equal chances: float [B, N']."""
        config, size = self.config, len(batch.action)
        num_values, num_choosing = config.num_target_quantiles, config.num_policy_quantiles
        fractions = _head(target).fractions(size, num_values, "target")
        if config.double:
            next_BAM = target.infer(batch.next_obs, fractions)
            choosing_BAK = online.infer(batch.next_obs, _head(online).fractions(size, num_choosing, "choice"))
        else:  # the same network chooses: one call for both
            fractions = torch.cat([fractions, _head(target).fractions(size, num_choosing, "choice")], dim=1)
            next_BAM, choosing_BAK = target.infer(batch.next_obs, fractions).split([num_values, num_choosing], dim=2)
        next_q_values_BA = choosing_BAK.mean(dim=2)
        if not config.munchausen:
            action_B = best_action(next_q_values_BA, batch.next_action_mask)
            return bootstrapped_rows(batch.reward, batch.discount, select_action_rows(next_BAM, action_B))
        temperature = config.munchausen_temperature
        present_BAK = target.infer(batch.obs, _head(target).fractions(size, num_choosing, "present"))
        reward_B = batch.reward + munchausen_bonus(
            present_BAK.mean(dim=2), batch.action, config.munchausen_alpha, temperature, config.munchausen_lowest
        )
        next_BM = soft_rows(next_q_values_BA, next_BAM, temperature, batch.next_action_mask)
        return bootstrapped_rows(reward_B, batch.discount, next_BM)

    @torch.no_grad()
    def priorities(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """Mean error of each transition, as `quantile_loss` reports it: float [B]."""
        target_BM = self.targets(online, target, batch)
        fractions_BN = _head(online).fractions(len(batch.action), self.config.num_quantiles, "learn")
        values_BN = select_action_rows(online.infer(batch.obs, fractions_BN), batch.action)
        return quantile_huber(values_BN, fractions_BN, target_BM, self.config.kappa)[2]

    def backpropagate(
        self, online: FlatNetwork, target: FlatNetwork, batch: Batch, weights_B: Tensor | None
    ) -> LossOutput:
        """Fill online.gradient with the gradient of `quantile_loss` on a batch, at N fractions of each transition."""
        target_BM = self.targets(online, target, batch)
        fractions_BN = _head(online).fractions(len(batch.action), self.config.num_quantiles, "learn")
        kappa = self.config.kappa
        return online.backpropagate(
            batch.obs,
            lambda values: quantile_loss(values, fractions_BN, target_BM, batch.action, weights_B, kappa),
            fractions_BN,
        )


def _head(network: FlatNetwork) -> ImplicitQuantileHead:
    head = network.module.head
    assert isinstance(head, ImplicitQuantileHead), "this network was built by another algorithm"
    return head
