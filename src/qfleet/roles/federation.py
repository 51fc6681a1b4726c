"""What travels between federated clients and their aggregator: parameters down, parameters up, and nothing else.

No transition, no observation, no priority: a client's data never leaves it (McMahan et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from qfleet.errors import ConfigError
from qfleet.types import BoolArray, ParamSnapshot

Personal = Literal["none", "head"]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GlobalModel(ParamSnapshot):
    """A version of the global model as clients begin a round with it; immutable.

    Attributes:
        target: float32 [P], the target network, or None where it has not changed since the version before.
        target_version: version at which the target last changed.
    """

    target: Float32 | None = None
    target_version: int = 0


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What a client sends back after its local updates.

    Attributes:
        vector: float32 [S], its parameters as far as they are shared: all P, or those outside a personal head.
        buffers: float32 [F], its float buffers (running statistics, no observations).
        num_samples: transitions trained on since the round began: its weight.
        layout_hash: of the whole parameter vector.
    """

    vector: Float32
    buffers: Float32
    num_samples: int
    layout_hash: str

    @property
    def num_bytes(self) -> int:
        """What travels."""
        return self.vector.nbytes + self.buffers.nbytes


def shared_parameters(module: nn.Module, personal: Personal) -> BoolArray:
    """bool [P]: which entries of the parameter vector are averaged; the others stay with each client.

    Raises:
        ConfigError: a personal head is asked for of a network without a part called `head`.
    """
    is_shared = [
        np.full(parameter.numel(), not (personal == "head" and name.startswith("head.")))
        for name, parameter in module.named_parameters()
    ]
    mask: BoolArray = np.concatenate(is_shared)
    if personal == "head" and (mask.all() or not mask.any()):
        raise ConfigError(
            "strategy.personal = 'head': the network has no head beside something to share; use personal = 'none'"
        )
    return mask
