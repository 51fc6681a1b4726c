"""The actor-critic loss by hand, and its written-out gradient against autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfleet.ops.actor_critic import actor_critic_loss, entropy, log_policy

LOG_3 = math.log(3)


def test_log_policy_by_hand() -> None:
    # Odds 1 : 3 give probabilities 1/4 and 3/4; an illegal action's logit, 99, is a decoy.
    logits = torch.tensor([[0.0, LOG_3, 99.0], [0.0, LOG_3, -torch.inf]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    np.testing.assert_allclose(log_policy(logits, mask).exp(), [[0.25, 0.75, 0], [0.25, 0.75, 0]], rtol=1e-6)


def test_entropy_by_hand() -> None:
    # Uniform over two of three: log 2. One action for sure: 0. 1/4 and 3/4: 0.25 log 4 + 0.75 log(4/3).
    policies = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.75, 0.0]])
    expected = [math.log(2), 0.0, 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    np.testing.assert_allclose(entropy(policies.log()), expected, rtol=1e-6)


def test_loss_and_gradient_by_hand() -> None:
    # Two rows, two actions, value last. Row 0: p = [1/4, 3/4], action 0, advantage 2, V 5, target 3, weight 1.
    # Row 1 has weight 0: its numbers (99, 98) are decoys. All is divided by the 2 rows. Without entropy:
    # logits: 2 * ([1/4, 3/4] - [1, 0]) / 2 = [-0.75, 0.75];   value: 0.5 * (5 - 3) / 2 = 0.5
    # policy loss: -2 log(1/4) / 2 = log 4;   value loss: (5 - 3)^2 / 2 / 2 = 1
    output = torch.tensor([[0.0, LOG_3, 5.0], [99.0, 98.0, 97.0]])
    rows = (torch.tensor([0, 1]), torch.tensor([2.0, 99.0]), torch.tensor([3.0, 98.0]), torch.tensor([1.0, 0.0]))
    logs = log_policy(output[:, :-1])
    out = actor_critic_loss(output, logs, *rows, entropy_bonus=0.0, value_coefficient=0.5)
    np.testing.assert_allclose(out.gradient, [[-0.75, 0.75, 0.5], [0, 0, 0]], rtol=1e-6)
    assert float(out.policy_loss) == pytest.approx(math.log(4))
    assert float(out.value_loss) == pytest.approx(1.0)
    assert float(out.loss) == pytest.approx(math.log(4) + 0.5)
    # The entropy of row 0 is H = 0.25 log 4 + 0.75 log(4/3); beta 2, over 2 rows: the loss falls by H, the gradient
    # grows by p (log p + H).
    bonus = actor_critic_loss(output, logs, *rows, entropy_bonus=2.0, value_coefficient=0.5)
    h = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert float(bonus.entropy) == pytest.approx(h / 2)
    assert float(bonus.loss) == pytest.approx(float(out.loss) - h)
    grown = [0.25 * (math.log(0.25) + h), 0.75 * (math.log(0.75) + h), 0.0]
    np.testing.assert_allclose(bonus.gradient[0] - out.gradient[0], grown, rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_gradient_is_autograds(seed: int, is_masked: bool, entropy_bonus: float, value_coefficient: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_actions = 5, 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    output = (2 * normal(num_rows, num_actions + 1)).requires_grad_()
    action = torch.randint(num_actions, (num_rows,), generator=generator)
    advantage, target, weight = normal(num_rows), normal(num_rows), normal(num_rows).abs()
    mask = None
    if is_masked:
        mask = torch.rand(num_rows, num_actions, generator=generator) > 0.4
        mask[torch.arange(num_rows), action] = True

    # The formula, said in another way: a categorical distribution over the legal actions.
    logits = output[:, :-1]
    if mask is not None:
        logits = logits.masked_fill(~mask, -1e9)
    policy = torch.distributions.Categorical(logits=logits)
    value_loss = (output[:, -1] - target).square() / 2
    losses = -advantage * policy.log_prob(action) - entropy_bonus * policy.entropy() + value_coefficient * value_loss
    loss = (weight * losses).mean()
    (expected,) = torch.autograd.grad(loss, output)

    detached = output.detach()
    out = actor_critic_loss(
        detached,
        log_policy(detached[:, :-1], mask),
        action,
        advantage,
        target,
        weight,
        entropy_bonus=entropy_bonus,
        value_coefficient=value_coefficient,
    )
    np.testing.assert_allclose(out.gradient, expected, rtol=1e-9, atol=1e-12)
    assert float(out.loss) == pytest.approx(float(loss.detach()), rel=1e-9)
