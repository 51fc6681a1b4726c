"""QR-DQN: the return as N values, the quantiles at fixed fractions, learned by the quantile Huber loss.

Dabney, Rowland, Bellemare, Munos (2018). Double, dueling, noisy and n-step as in DQN. The equations are in
ops/quantiles.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qfleet.algos.base import Batch, LearnsFrom, LossOutput, ReplayAlgorithmConfig
from qfleet.config import NonNegativeFloat, PositiveFloat, PositiveInt
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import DistributionHead, DuelingDistributionHead, QNetwork
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops.distributions import best_action, bootstrapped_rows, scatter_action_rows, select_action_rows
from qfleet.ops.quantiles import midpoints, quantile_huber
from qfleet.types import EnvSpec


class Config(ReplayAlgorithmConfig):
    """The [algo] section of a QR-DQN recipe; the defaults are the paper's, for Atari.

    Errors up to `kappa` count as squares: quantiles nearer to each other than that come out drawn together.
    """

    name: str = "qr_dqn"
    learning_rate: PositiveFloat = 5e-5
    batch_size: PositiveInt = 32
    target_period_updates: PositiveInt = 2_500
    num_quantiles: PositiveInt = 200
    kappa: NonNegativeFloat = 1.0
    double: bool = False
    dueling: bool = False
    noisy: bool = False


class Algorithm:
    """Quantile regression deep Q-network.

    Args:
        config: the [algo] section.
    """

    learns_from: LearnsFrom = "replay"

    def __init__(self, config: Config) -> None:
        self.config = config
        self._fractions = midpoints(config.num_quantiles).unsqueeze(0)

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] -> quantiles [B, A, N]."""
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        head_class = DuelingDistributionHead if self.config.dueling else DistributionHead
        num_quantiles, noisy = self.config.num_quantiles, self.config.noisy
        return QNetwork(torso, head_class(torso.num_features, spec.num_actions, num_quantiles, noisy=noisy))

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """Means of the quantiles: [B, *O] -> float [B, A]."""
        values: Tensor = network.infer(obs).mean(dim=2)
        return values

    def fractions(self, like: Tensor) -> Tensor:
        """tau of each quantile, float [1, N], where `like` is."""
        if self._fractions.device != like.device:
            self._fractions = self._fractions.to(like.device)
        return self._fractions

    @torch.no_grad()
    def targets(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """Values that the distribution of (s, a) should have, with equal chances: float [B, N]."""
        next_BAN = target.infer(batch.next_obs)
        choosing_BAN = online.infer(batch.next_obs) if self.config.double else next_BAN
        action_B = best_action(choosing_BAN.mean(dim=2), batch.next_action_mask)
        return bootstrapped_rows(batch.reward, batch.discount, select_action_rows(next_BAN, action_B))

    @torch.no_grad()
    def priorities(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """Mean error of each transition, as `quantile_loss` reports it: float [B]."""
        target_BM = self.targets(online, target, batch)
        values_BN = select_action_rows(online.infer(batch.obs), batch.action)
        return quantile_huber(values_BN, self.fractions(values_BN), target_BM, self.config.kappa)[2]

    def backpropagate(
        self, online: FlatNetwork, target: FlatNetwork, batch: Batch, weights_B: Tensor | None
    ) -> LossOutput:
        """Fill online.gradient with the gradient of `quantile_loss` on a batch."""
        target_BM = self.targets(online, target, batch)
        fractions_1N, kappa = self.fractions(target_BM), self.config.kappa
        return online.backpropagate(
            batch.obs, lambda values: quantile_loss(values, fractions_1N, target_BM, batch.action, weights_B, kappa)
        )


@torch.no_grad()
def quantile_loss(
    quantiles_BAN: Tensor,
    fractions_BN: Tensor,
    target_BM: Tensor,
    action_B: Tensor,
    weights_B: Tensor | None,
    kappa: float,
) -> tuple[Tensor, LossOutput]:
    """Mean over the batch of weight * quantile Huber loss; the priority is the mean size of the errors of all pairs.

    Args:
        quantiles_BAN: the network's output, at `fractions_BN` (float [B, N] or [1, N]).
        target_BM: what `targets` gave.
        action_B: the actions taken, int64.
        weights_B: importance weights; None for all ones.
        kappa: up to where an error counts as its square.

    Returns:
        The gradient, float [B, A, N], and what the learner reports.
    """
    values_BN = select_action_rows(quantiles_BAN, action_B)
    losses_B, gradient_BN, priority_B = quantile_huber(values_BN, fractions_BN, target_BM, kappa)
    gradient_BN = gradient_BN / len(losses_B)
    if weights_B is not None:
        losses_B = losses_B * weights_B
        gradient_BN = gradient_BN * weights_B.unsqueeze(1)
    gradient_BAN = scatter_action_rows(gradient_BN, action_B, quantiles_BAN.shape[1])
    return gradient_BAN, LossOutput(losses_B.mean(), values_BN.mean(), priority_B)
