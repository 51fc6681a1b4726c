"""The network that is exported: observations in, values and the greedy action out, preprocessing inside.

Built on `Algorithm.action_values`, so a new algorithm is exported without a line here.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from qfleet.algos.base import Algorithm, PolicyAlgorithm
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.noisy import set_mean_only
from qfleet.roles.blueprint import Blueprint
from qfleet.types import ParamSnapshot


class _TracedNetwork:
    """What `action_values` sees of a FlatNetwork, with the module's own forward in place of the written-out one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def infer(self, obs: Tensor, *inputs: Tensor) -> Tensor:
        """The module's output: [B, *O], and what its head reads beside the features -> what it returns."""
        output: Tensor = self.module(obs, *inputs)
        return output


class GreedyNetwork(nn.Module):
    """obs [B, *O] -> q_values float32 [B, A], action int64 [B].

    Args:
        algorithm: gives the values.
        network: its module, with the parameters that are to be exported.
    """

    def __init__(self, algorithm: Algorithm, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._algorithm = algorithm
        self._traced = cast(FlatNetwork, _TracedNetwork(network))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Values and the first of the best actions."""
        values = self._algorithm.action_values(self._traced, obs)
        return values, values.argmax(dim=1)


def build_greedy_network(blueprint: Blueprint, snapshot: ParamSnapshot) -> GreedyNetwork:
    """The network of a snapshot with tensors of its own, noise off, ready to be traced.

    Raises:
        CheckpointError: the snapshot is of another layout.
    """
    flat = blueprint.build_network(trainable=False)
    flat.load(snapshot)
    algorithm = blueprint.build_algorithm()
    # A module of its own: tracing takes views of one vector for parameters that share memory.
    with torch.random.fork_rng(devices=[]):
        module = algorithm.build_network(blueprint.network, blueprint.spec).float().eval()
    module.load_state_dict({name: value.clone() for name, value in flat.module.state_dict().items()})
    module.requires_grad_(False)
    set_mean_only(module, True)
    return GreedyNetwork(algorithm, module).eval()


def meaning_of_values(algorithm: Algorithm) -> str:
    """What the output called q_values holds."""
    if isinstance(algorithm, PolicyAlgorithm):
        return "logits of the policy, not action values: the greedy action is the most probable one"
    return "action values: expected discounted returns"
