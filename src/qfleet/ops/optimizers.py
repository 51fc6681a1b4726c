"""Optimizer steps on one flat vector, in place, as their papers write them.

A server that holds a slice of the vector calls the same functions on its slice.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.adam import adam


def adam_step_(
    vector: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    num_steps: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Adam (Kingma and Ba 2015, algorithm 1) by torch's fused kernel: one pass over memory instead of five.

    Args:
        vector, gradient, first_moment, second_moment: float [P] each; all but the gradient are updated.
        num_steps: float scalar, steps taken before this one; grows by one.
        learning_rate, beta1, beta2, epsilon: as in the paper.
    """
    adam(
        [vector],
        [gradient],
        [first_moment],
        [second_moment],
        [],
        [num_steps],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=learning_rate,
        weight_decay=0.0,
        eps=epsilon,
        maximize=False,
    )
    increment_version(vector)  # the fused kernel does not, and caches go by it


def radam_step_(
    vector: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    num_steps: Tensor,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Rectified Adam (Liu et al. 2020, algorithm 2): no adaptive step before the second moment can be trusted.

    Arguments as of `adam_step_`.
    """
    num_steps += 1
    step = float(num_steps)
    first_moment.lerp_(gradient, 1.0 - beta1)
    second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    rate = learning_rate / (1.0 - beta1**step)
    decay = beta2**step
    longest = 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * decay / (1.0 - decay)
    if length <= 5.0:
        vector.add_(first_moment, alpha=-rate)
        return
    rectified = ((length - 4) * (length - 2) * longest) / ((longest - 4) * (longest - 2) * length)
    rate *= math.sqrt(rectified * (1.0 - decay))
    vector.addcdiv_(first_moment, second_moment.sqrt().add_(epsilon), value=-rate)


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
