"""Optimizer steps on one flat vector, in place, as their papers write them.

A server that holds a slice of the vector calls the same functions on its slice.
"""

from __future__ import annotations

import math

from torch import Tensor


def adam_step_(
    vector: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    num_steps: int,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Adam (Kingma and Ba 2015, algorithm 1). float [P] each; `num_steps` counts this one, from 1.

    Updates `vector`, `first_moment` and `second_moment`.
    """
    first_moment.lerp_(gradient, 1.0 - beta1)
    second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    bias1 = 1.0 - beta1**num_steps
    bias2 = 1.0 - beta2**num_steps
    denominator = second_moment.sqrt().div_(math.sqrt(bias2)).add_(epsilon)
    vector.addcdiv_(first_moment, denominator, value=-learning_rate / bias1)


def rmsprop_step_(
    vector: Tensor, gradient: Tensor, second_moment: Tensor, learning_rate: float, decay: float, epsilon: float
) -> None:
    """RMSProp (Hinton 2012, lecture 6e), epsilon outside the root. Updates `vector` and `second_moment`."""
    second_moment.mul_(decay).addcmul_(gradient, gradient, value=1.0 - decay)
    vector.addcdiv_(gradient, second_moment.sqrt().add_(epsilon), value=-learning_rate)


def sgd_step_(vector: Tensor, gradient: Tensor, learning_rate: float) -> None:
    """theta <- theta - alpha g."""
    vector.add_(gradient, alpha=-learning_rate)


def clip_scale(gradient_norm: float, max_norm: float) -> float:
    """What to multiply a gradient by so that its norm is at most `max_norm` (Pascanu et al. 2013)."""
    return min(1.0, max_norm / (gradient_norm + 1e-12))
