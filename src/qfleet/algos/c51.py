"""C51: the return as probabilities of fixed atoms, learned by cross-entropy; with its options, Rainbow.

Bellemare, Dabney, Munos (2017). Double, dueling, noisy, n-step and prioritized by KL as in Hessel et al. (2018). The
equations are in ops/categorical.py.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, FiniteFloat, ValidationInfo, field_validator
from torch import Tensor, nn

from qfleet.algos.base import Batch, LearnsFrom, LossOutput, ReplayAlgorithmConfig
from qfleet.config import PositiveFloat, PositiveInt
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.heads import DistributionHead, DuelingDistributionHead, QNetwork
from qfleet.networks.torso import NetworkConfig, Torso
from qfleet.ops import categorical
from qfleet.ops.distributions import best_action, bootstrapped_rows, scatter_action_rows, select_action_rows
from qfleet.types import EnvSpec


class Config(ReplayAlgorithmConfig):
    """The [algo] section of a C51 recipe; the defaults are the paper's, for Atari.

    Returns beyond `v_min` and `v_max` count as these: both must hold what an episode can bring, discounted.
    """

    name: str = "c51"
    learning_rate: PositiveFloat = 2.5e-4
    batch_size: PositiveInt = 32
    target_period_updates: PositiveInt = 2_500
    num_atoms: Annotated[int, Field(ge=2)] = 51
    v_min: FiniteFloat = -10.0
    v_max: FiniteFloat = 10.0
    double: bool = False
    dueling: bool = False
    noisy: bool = False

    @field_validator("v_max")
    @classmethod
    def _above_v_min(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("v_min", -torch.inf):
            raise ValueError(f"must be above algo.v_min, {info.data['v_min']:g}")
        return value


class Algorithm:
    """Categorical deep Q-network.

    Args:
        config: the [algo] section.
    """

    learns_from: LearnsFrom = "replay"

    def __init__(self, config: Config) -> None:
        self.config = config
        self._atoms = torch.linspace(config.v_min, config.v_max, config.num_atoms)

    def build_network(self, network: NetworkConfig, spec: EnvSpec) -> nn.Module:
        """Observations [B, *O] -> logits of the atoms [B, A, N]."""
        torso = Torso(network, spec.obs_shape, spec.obs_dtype)
        head_class = DuelingDistributionHead if self.config.dueling else DistributionHead
        num_atoms, noisy = self.config.num_atoms, self.config.noisy
        return QNetwork(torso, head_class(torso.num_features, spec.num_actions, num_atoms, noisy=noisy))

    def action_values(self, network: FlatNetwork, obs: Tensor) -> Tensor:
        """Expected returns: [B, *O] -> float [B, A]."""
        logits_BAN: Tensor = network.infer(obs)
        return categorical.expected_values(logits_BAN, self.atoms(logits_BAN))

    def atoms(self, like: Tensor) -> Tensor:
        """The returns that the probabilities are of, float [N], where `like` is."""
        if self._atoms.device != like.device:
            self._atoms = self._atoms.to(like.device)
        return self._atoms

    @torch.no_grad()
    def targets(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """What the probabilities of the atoms of (s, a) should be: float [B, N]."""
        next_logits_BAN = target.infer(batch.next_obs)
        atoms_N = self.atoms(next_logits_BAN)
        choosing_BAN = online.infer(batch.next_obs) if self.config.double else next_logits_BAN
        action_B = best_action(categorical.expected_values(choosing_BAN, atoms_N), batch.next_action_mask)
        probabilities_BN = select_action_rows(next_logits_BAN, action_B).softmax(dim=1)
        values_BN = bootstrapped_rows(batch.reward, batch.discount, atoms_N.unsqueeze(0))
        return categorical.project(values_BN, probabilities_BN, atoms_N)

    @torch.no_grad()
    def loss(
        self, logits_BAN: Tensor, target_BN: Tensor, action_B: Tensor, weights_B: Tensor | None
    ) -> tuple[Tensor, LossOutput]:
        """Mean over the batch of weight * cross-entropy; the priority is the KL divergence, which is 0 where it fits.

        Returns:
            The gradient, float [B, A, N], and what the learner reports.
        """
        logits_BN = select_action_rows(logits_BAN, action_B)
        losses_B = categorical.cross_entropy(logits_BN, target_BN)
        priority_B = (losses_B - categorical.entropy(target_BN)).clamp_min(0.0)
        gradient_BN = categorical.cross_entropy_gradient(logits_BN, target_BN) / len(losses_B)
        if weights_B is not None:
            losses_B = losses_B * weights_B
            gradient_BN = gradient_BN * weights_B.unsqueeze(1)
        gradient_BAN = scatter_action_rows(gradient_BN, action_B, logits_BAN.shape[1])
        value = (logits_BN.softmax(dim=1) @ self.atoms(logits_BN)).mean()
        return gradient_BAN, LossOutput(losses_B.mean(), value, priority_B)

    @torch.no_grad()
    def priorities(self, online: FlatNetwork, target: FlatNetwork, batch: Batch) -> Tensor:
        """KL divergence of each transition, as `loss` reports it: float [B]."""
        target_BN = self.targets(online, target, batch)
        logits_BN = select_action_rows(online.infer(batch.obs), batch.action)
        losses_B = categorical.cross_entropy(logits_BN, target_BN)
        return (losses_B - categorical.entropy(target_BN)).clamp_min(0.0)

    def backpropagate(
        self, online: FlatNetwork, target: FlatNetwork, batch: Batch, weights_B: Tensor | None
    ) -> LossOutput:
        """Fill online.gradient with the gradient of `loss` on a batch."""
        target_BN = self.targets(online, target, batch)
        return online.backpropagate(batch.obs, lambda logits: self.loss(logits, target_BN, batch.action, weights_B))
