"""The optimizer of one parameter vector (or of a server's slice of it): state vectors and a learning-rate schedule."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from qfleet.config import Fraction, PositiveFloat, PositiveInt, Section
from qfleet.ops.optimizers import adam_step_, radam_step_, rmsprop_step_, sgd_step_
from qfleet.ops.schedules import cosine, linear

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """Optimizer and learning-rate schedule.

    `decay_updates` is how many updates the schedule takes from `learning_rate` to `learning_rate * end_fraction`.
    `epsilon` is Adam's, RAdam's and RMSProp's; `max_grad_norm` clips the global norm, None leaves it.
    """

    name: Literal["adam", "radam", "rmsprop", "sgd"] = "adam"
    epsilon: PositiveFloat = 1e-8
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    rmsprop_decay: Decay = 0.99
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    decay_updates: PositiveInt = 100_000
    end_fraction: Fraction = 0.0
    max_grad_norm: PositiveFloat | None = 10.0


class VectorOptimizer:
    """Optimizer state beside one vector.

    Attributes:
        moments: float32 [M, P], the state vectors: M = 2 for adam and radam (first, second), 1 for rmsprop, 0 for sgd.
        num_steps: float scalar tensor, steps taken.
    """

    def __init__(self, config: OptimizerConfig, learning_rate: float, vector: Tensor) -> None:
        self.config = config
        self.learning_rate = learning_rate
        self.vector = vector
        num_moments = {"adam": 2, "radam": 2, "rmsprop": 1, "sgd": 0}[config.name]
        self.moments = torch.zeros(num_moments, vector.numel(), device=vector.device)
        self.num_steps = torch.zeros((), device=vector.device)

    def current_learning_rate(self, num_updates: int) -> float:
        """The schedule's value after `num_updates` global updates."""
        config = self.config
        if config.schedule == "constant":
            return self.learning_rate
        schedule = linear if config.schedule == "linear" else cosine
        end = self.learning_rate * config.end_fraction
        return schedule(self.learning_rate, end, config.decay_updates, num_updates)

    def step(self, gradient: Tensor, num_updates: int, rate_scale: float = 1.0) -> None:
        """Apply one gradient (float32 [P]) to the vector, in place; `rate_scale` is a factor on the learning rate."""
        config = self.config
        rate = self.current_learning_rate(num_updates) * rate_scale
        if config.name in ("adam", "radam"):
            first, second = self.moments[0], self.moments[1]
            step_ = adam_step_ if config.name == "adam" else radam_step_
            step_(
                self.vector, gradient, first, second, self.num_steps, rate, config.beta1, config.beta2, config.epsilon
            )
        elif config.name == "rmsprop":
            rmsprop_step_(self.vector, gradient, self.moments[0], rate, config.rmsprop_decay, config.epsilon)
            self.num_steps += 1
        else:
            sgd_step_(self.vector, gradient, rate)
            self.num_steps += 1
