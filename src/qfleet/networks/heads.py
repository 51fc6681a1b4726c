"""Heads: from features to one value per action, or to a distribution of N numbers per action.

Linear, dueling, each plain or noisy. Heads that read more than features are in networks/implicit.py. Floor 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from qfleet.networks.noisy import NoisyLinear
from qfleet.networks.torso import Torso


def linear_layer(in_features: int, out_features: int, *, noisy: bool) -> nn.Module:
    """A plain or a noisy linear layer."""
    return NoisyLinear(in_features, out_features) if noisy else nn.Linear(in_features, out_features)


class LinearHead(nn.Module):
    """One linear layer: features [B, F] -> Q-values [B, A]."""

    def __init__(self, num_features: int, num_actions: int, *, noisy: bool) -> None:
        super().__init__()
        self.values = linear_layer(num_features, num_actions, noisy=noisy)

    def forward(self, features: Tensor) -> Tensor:
        """float [B, F] -> float [B, A]."""
        values: Tensor = self.values(features)
        return values


class DuelingHead(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean_a A(s, a) (Wang et al. 2016, equation 9)."""

    def __init__(self, num_features: int, num_actions: int, *, noisy: bool) -> None:
        super().__init__()
        self.value = linear_layer(num_features, 1, noisy=noisy)
        self.advantage = linear_layer(num_features, num_actions, noisy=noisy)

    def forward(self, features: Tensor) -> Tensor:
        """float [B, F] -> float [B, A]."""
        advantage: Tensor = self.advantage(features)
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class DistributionHead(nn.Module):
    """One linear layer: features [B, F] -> N numbers for each action [B, A, N]."""

    def __init__(self, num_features: int, num_actions: int, num_atoms: int, *, noisy: bool) -> None:
        super().__init__()
        self.shape = (num_actions, num_atoms)
        self.values = linear_layer(num_features, num_actions * num_atoms, noisy=noisy)

    def forward(self, features: Tensor) -> Tensor:
        """float [B, F] -> float [B, A, N]."""
        values: Tensor = self.values(features)
        return values.reshape(-1, *self.shape)


class DuelingDistributionHead(nn.Module):
    """z_i(s, a) = V_i(s) + A_i(s, a) - mean_a A_i(s, a) for each i of N (Hessel et al. 2018, Rainbow)."""

    def __init__(self, num_features: int, num_actions: int, num_atoms: int, *, noisy: bool) -> None:
        super().__init__()
        self.shape = (num_actions, num_atoms)
        self.value = linear_layer(num_features, num_atoms, noisy=noisy)
        self.advantage = linear_layer(num_features, num_actions * num_atoms, noisy=noisy)

    def forward(self, features: Tensor) -> Tensor:
        """float [B, F] -> float [B, A, N]."""
        advantage: Tensor = self.advantage(features).reshape(-1, *self.shape)
        value: Tensor = self.value(features).unsqueeze(1)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class QNetwork(nn.Module):
    """Torso and head: observations [B, *O] -> Q-values [B, A], or a distribution for each action [B, A, N]."""

    def __init__(self, torso: Torso, head: nn.Module) -> None:
        super().__init__()
        self.torso = torso
        self.head = head

    def forward(self, obs: Tensor, *inputs: Tensor) -> Tensor:
        """[B, *O], and what else the head reads -> float [B, A] or [B, A, N]."""
        values: Tensor = self.head(self.torso(obs), *inputs)
        return values
