"""Optimizer steps by hand, and against torch's own over 50 random steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qfleet.ops.optimizers import adam_step_, clip_scale, radam_step_, rmsprop_step_, sgd_step_

NUM_STEPS = 50


def test_sgd_by_hand() -> None:
    vector = torch.tensor([1.0, 2.0])
    sgd_step_(vector, torch.tensor([10.0, -4.0]), 0.5)
    np.testing.assert_array_equal(vector, [-4.0, 4.0])  # 1 - 0.5 * 10, 2 + 0.5 * 4


def test_the_first_adam_step_is_the_learning_rate_against_the_sign() -> None:
    # m = 0.1 g and v = 0.001 g^2; bias-corrected g and g^2; so the step is 0.5 g / (|g| + 1e-8) = +-0.5.
    vector, first, second, num_steps = torch.tensor([1.0, 1.0]), torch.zeros(2), torch.zeros(2), torch.zeros(())
    adam_step_(vector, torch.tensor([4.0, -0.01]), first, second, num_steps, 0.5, 0.9, 0.999, 1e-8)
    assert num_steps.item() == 1
    np.testing.assert_allclose(vector, [0.5, 1.5], rtol=1e-5)
    np.testing.assert_allclose(first, [0.4, -0.001], rtol=1e-5)
    np.testing.assert_allclose(second, [0.016, 1e-7], rtol=1e-4)


def test_the_first_radam_steps_are_momentum() -> None:
    # With beta2 = 0.999 the average's length is 1 at first, too short to adapt by: the step is 0.5 g whatever |g| is.
    vector, first, second, num_steps = torch.tensor([1.0, 1.0]), torch.zeros(2), torch.zeros(2), torch.zeros(())
    radam_step_(vector, torch.tensor([4.0, -0.01]), first, second, num_steps, 0.5, 0.9, 0.999, 1e-8)
    assert num_steps.item() == 1
    np.testing.assert_allclose(vector, [-1.0, 1.005], rtol=1e-5)


def test_rmsprop_by_hand() -> None:
    # v = 0.75 * 0 + 0.25 * 16 = 4; step = 0.3 * 4 / (2 + 1) = 0.4, epsilon outside the root.
    vector, second = torch.tensor([1.0]), torch.zeros(1)
    rmsprop_step_(vector, torch.tensor([4.0]), second, 0.3, 0.75, 1.0)
    np.testing.assert_allclose(vector, [0.6], rtol=1e-6)
    np.testing.assert_allclose(second, [4.0])


Step = Callable[[torch.Tensor, torch.Tensor], None]


def adam(num_parameters: int) -> Step:
    first, second = torch.zeros(2, num_parameters)
    num_steps = torch.zeros(())
    return lambda vector, gradient: adam_step_(vector, gradient, first, second, num_steps, 0.03, 0.8, 0.95, 1e-4)


def radam(num_parameters: int) -> Step:
    first, second, num_steps = torch.zeros(num_parameters), torch.zeros(num_parameters), torch.zeros(())
    return lambda vector, gradient: radam_step_(vector, gradient, first, second, num_steps, 0.03, 0.8, 0.95, 1e-4)


def rmsprop(num_parameters: int) -> Step:
    second = torch.zeros(num_parameters)
    return lambda vector, gradient: rmsprop_step_(vector, gradient, second, 0.03, 0.9, 1e-3)


def sgd(num_parameters: int) -> Step:
    return lambda vector, gradient: sgd_step_(vector, gradient, 0.03)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adam, lambda p: torch.optim.Adam([p], lr=0.03, betas=(0.8, 0.95), eps=1e-4)),
        (radam, lambda p: torch.optim.RAdam([p], lr=0.03, betas=(0.8, 0.95), eps=1e-4)),
        (rmsprop, lambda p: torch.optim.RMSprop([p], lr=0.03, alpha=0.9, eps=1e-3)),
        (sgd, lambda p: torch.optim.SGD([p], lr=0.03)),
    ],
    ids=["adam", "radam", "rmsprop", "sgd"],
)
def test_equals_torch_over_random_steps(
    ours: Callable[[int], Step], theirs: Callable[[torch.Tensor], torch.optim.Optimizer]
) -> None:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(40, generator=generator)
    reference = vector.clone().requires_grad_()
    step, optimizer = ours(40), theirs(reference)
    for number in range(1, NUM_STEPS + 1):
        gradient = torch.randn(40, generator=generator) * 10.0 ** (number % 5 - 2)
        step(vector, gradient)
        reference.grad = gradient.clone()
        optimizer.step()
        np.testing.assert_allclose(vector, reference.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", [adam, radam, rmsprop, sgd])
def test_a_slice_of_the_vector_steps_like_the_whole(rule: Callable[[int], Step]) -> None:
    # 37 = 13 + 24: neither part is a multiple of a SIMD register, so the kernels' edges are in it.
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(37, generator=generator)
    sliced = whole.clone()
    step_whole, step_left, step_right = rule(37), rule(13), rule(24)
    for _ in range(20):
        gradient = torch.randn(37, generator=generator)
        step_whole(whole, gradient)
        step_left(sliced[:13], gradient[:13])
        step_right(sliced[13:], gradient[13:])
    np.testing.assert_allclose(whole, sliced, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("norm", "expected"), [(5.0, 0.4), (2.0, 1.0), (0.5, 1.0), (0.0, 1.0)])
def test_clip_scale_by_hand(norm: float, expected: float) -> None:
    # At most norm 2: 2 / 5 = 0.4 shrinks, below it nothing is enlarged.
    assert clip_scale(norm, 2.0) == pytest.approx(expected)
