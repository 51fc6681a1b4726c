"""C51, QR-DQN, IQN and the Munchausen target against references written as plain loops, for their options."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qfleet.algos import c51, dqn, iqn, qr_dqn
from qfleet.algos.base import Batch
from qfleet.errors import ConfigError
from qfleet.experiment import Experiment
from qfleet.networks.flat import FlatNetwork
from qfleet.networks.noisy import noisy_layers
from qfleet.networks.torso import NetworkConfig
from qfleet.ops.exploration import greedy
from qfleet.run_config import build_config
from qfleet.types import EnvSpec, Transitions

BATCH, NUM_OBS, NUM_ACTIONS, NUM_ATOMS = 7, 3, 3, 6
SPEC = EnvSpec("Decoy-v99", (NUM_OBS,), "float32", NUM_ACTIONS)
ATOMS = np.linspace(-2.0, 3.0, NUM_ATOMS)
Output = Callable[[nn.Module, Tensor, str], Tensor]  # module, obs, purpose -> [B, A, N]

ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "c51": (c51, {"num_atoms": NUM_ATOMS, "v_min": -2.0, "v_max": 3.0}),
    "qr_dqn": (qr_dqn, {"num_quantiles": 5, "kappa": 0.7}),
    "iqn": (iqn, {"num_quantiles": 5, "num_target_quantiles": 4, "num_policy_quantiles": 3, "num_cosines": 6}),
}


def transitions(masked: bool) -> Transitions:
    generator = np.random.default_rng(2)
    mask = generator.random((BATCH, NUM_ACTIONS)) < 0.6
    mask[:, 0] = True
    discount = np.full(BATCH, 0.9, np.float32)
    discount[[1, 4]] = 0.0
    mask[1] = False  # a terminal state without any legal action
    return Transitions(
        obs=generator.normal(size=(BATCH, NUM_OBS)).astype(np.float32),
        action=generator.integers(NUM_ACTIONS, size=BATCH),
        reward=generator.normal(0, 2, BATCH).astype(np.float32),
        discount=discount,
        next_obs=generator.normal(size=(BATCH, NUM_OBS)).astype(np.float32),
        next_action_mask=mask if masked else None,
    )


def networks(algorithm: Any) -> tuple[FlatNetwork, FlatNetwork]:
    """Online and target: different weights, noise drawn."""
    made = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        module = algorithm.build_network(NetworkConfig(hidden=(8,), layer_norm=True), SPEC)
        for layer in noisy_layers(module):
            layer.resample(torch.Generator().manual_seed(seed))
        made.append(FlatNetwork(module, trainable=seed == 3))
    return made[0], made[1]


def output_of(name: str, config: Any) -> Output:
    """The network's output as numbers of which autograd knows where they come from."""

    def output(module: nn.Module, obs: Tensor, purpose: str) -> Tensor:
        if name != "iqn":
            return module(obs)
        count = {"learn": config.num_quantiles, "target": config.num_target_quantiles}
        return module(obs, module.head.fractions(len(obs), count.get(purpose, config.num_policy_quantiles), purpose))

    return output


def means(name: str, rows_AN: np.ndarray) -> np.ndarray:
    if name != "c51":
        return rows_AN.mean(axis=1)
    chances = np.exp(rows_AN) / np.exp(rows_AN).sum(axis=1, keepdims=True)
    return chances @ ATOMS


def log_policy(q_values: np.ndarray, legal: list[int], temperature: float) -> dict[int, float]:
    best = max(q_values[a] for a in legal)
    total = sum(math.exp((q_values[a] - best) / temperature) for a in legal)
    return {a: (q_values[a] - best) / temperature - math.log(total) for a in legal}


def goal_rows(name: str, config: Any, output: Output, online: nn.Module, target: nn.Module, data: Transitions) -> Any:
    """For each transition the values of its target, and their probabilities."""
    numbers = {}
    for key, module, obs, purpose in (
        ("next", target, data.next_obs, "target"),
        ("choice", online if config.double else target, data.next_obs, "choice"),
        ("present", target, data.obs, "present"),
    ):
        numbers[key] = output(module, torch.from_numpy(obs), purpose).detach().double().numpy()
    rows = []
    for i in range(BATCH):
        legal = list(range(NUM_ACTIONS))
        if data.next_action_mask is not None and data.next_action_mask[i].any():
            legal = np.flatnonzero(data.next_action_mask[i]).tolist()
        reward, discount = float(data.reward[i]), float(data.discount[i])
        choosing = means(name, numbers["choice"][i])
        if getattr(config, "munchausen", False):
            temperature = config.munchausen_temperature
            present = log_policy(means(name, numbers["present"][i]), list(range(NUM_ACTIONS)), temperature)
            scaled = temperature * present[data.action[i]]
            reward += config.munchausen_alpha * min(max(scaled, config.munchausen_lowest), 0.0)
            policy = log_policy(choosing, legal, temperature)
            values = sum(math.exp(log) * (numbers["next"][i][a] - temperature * log) for a, log in policy.items())
            rows.append((reward + discount * values, None))
            continue
        best = max(legal, key=lambda action: choosing[action])
        row = numbers["next"][i][best]
        if name == "c51":
            rows.append((reward + discount * ATOMS, np.exp(row) / np.exp(row).sum()))
        else:
            rows.append((reward + discount * row, None))
    return rows


def reference(name: str, config: Any, online: nn.Module, target: nn.Module, data: Transitions, weights: Any) -> Any:
    """(loss, priorities) one transition after the other; the loss knows its gradient."""
    output = output_of(name, config)
    rows = goal_rows(name, config, output, online, target, data)
    present = output(online, torch.from_numpy(data.obs), "learn")
    fractions = [(i + 0.5) / present.shape[2] for i in range(present.shape[2])]
    total, priorities = torch.zeros(()), []
    for i, (values, chances) in enumerate(rows):
        mine = present[i, data.action[i]]
        weight = 1.0 if weights is None else float(weights[i])
        if name == "c51":
            spread = np.zeros(NUM_ATOMS)
            for value, chance in zip(values, chances, strict=True):
                position = min(max(value, -2.0), 3.0) + 2.0  # atoms are one apart
                lower = min(math.floor(position), NUM_ATOMS - 2)
                spread[lower] += chance * (lower + 1 - position)
                spread[lower + 1] += chance * (position - lower)
            cost = -(torch.from_numpy(spread).float() * mine.log_softmax(0)).sum()
            known = sum(p * math.log(p) for p in spread if p > 0)
            priorities.append(cost.item() + known)
        else:
            if name == "iqn":
                fractions = online.head.fractions(BATCH, present.shape[2], "learn")[i].tolist()
            cost, size = torch.zeros(()), 0.0
            for tau, quantile in zip(fractions, mine, strict=True):
                for value in values:
                    error = float(value) - quantile
                    kappa = config.kappa
                    huber = 0.5 * error**2 if abs(error.item()) <= kappa else kappa * (error.abs() - 0.5 * kappa)
                    cost = cost + abs(tau - float(error.item() < 0)) * huber / kappa / len(values)
                    size += abs(error.item()) / len(values) / len(fractions)
            priorities.append(size)
        total = total + weight * cost / BATCH
    return total, priorities


CASES = [
    (name, options, masked, weighted)
    for name in ALGORITHMS
    for options, masked, weighted in (
        ({}, False, False),
        ({"double": True}, True, True),
        ({"double": True, "dueling": True, "noisy": True}, True, False),
    )
]
CASES += [("iqn", {"munchausen": True, "munchausen_temperature": 0.5}, True, True)]
CASES += [("iqn", {"head_hidden": 5, "noisy": True}, True, False)]


@pytest.mark.parametrize(("name", "options", "masked", "weighted"), CASES)
def test_loss_priorities_and_gradient(name: str, options: dict[str, Any], masked: bool, weighted: bool) -> None:
    module, sizes = ALGORITHMS[name]
    config = module.Config(**{"double": False} | sizes | options)
    algorithm = module.Algorithm(config)
    online, target = networks(algorithm)
    assert online._explicit is not None, "the torso's layers are written out, and a linear head's too"
    is_linear = name != "iqn" and not (config.dueling or config.noisy)
    assert (online._explicit.tail is None) == is_linear
    twin = copy.deepcopy(online.module)
    data = transitions(masked)
    batch = Batch.of(data, torch.device("cpu"))
    weights = np.random.default_rng(3).random(BATCH).astype(np.float32) if weighted else None
    assert online.gradient is not None
    online.gradient.fill_(99.0)  # what was there before must not be added to
    before = online.vector.clone(), target.vector.clone()
    output = algorithm.backpropagate(online, target, batch, None if weights is None else torch.from_numpy(weights))
    loss, priorities = reference(name, config, twin, target.module, data, weights)
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    np.testing.assert_allclose(output.priority, priorities, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(algorithm.priorities(online, target, batch), output.priority, rtol=1e-5, atol=1e-6)
    gradient = torch.autograd.grad(loss, list(twin.parameters()))
    np.testing.assert_allclose(online.gradient, torch.cat([g.reshape(-1) for g in gradient]), rtol=1e-3, atol=1e-5)
    assert torch.equal(before[0], online.vector) and torch.equal(before[1], target.vector)
    assert not output.loss.requires_grad and not output.priority.requires_grad


@pytest.mark.parametrize("name", ALGORITHMS)
def test_action_values_are_the_means(name: str) -> None:
    module, sizes = ALGORITHMS[name]
    config = module.Config(**sizes)
    algorithm = module.Algorithm(config)
    online, _ = networks(algorithm)
    obs = torch.randn(4, NUM_OBS, generator=torch.Generator().manual_seed(1))
    values = algorithm.action_values(online, obs)
    if name == "iqn":
        fractions = online.module.head.fractions(1, config.num_policy_quantiles, "act")
        rows = online.module(obs, fractions)
    else:
        rows = online.module(obs)
    expected = [means(name, row.detach().numpy()) for row in rows]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
    assert greedy(values.numpy()).shape == (4,)


def test_c51_by_hand() -> None:
    # Atoms 0 and 4. Zero weights: all probabilities 1/2, all means 2. Reward 1, discount 0.5: 0 goes to 1 and 4 to 3,
    # that is (3/4, 1/4) and (1/4, 3/4), each with chance 1/2: the target is (1/2, 1/2), which is there already.
    algorithm = c51.Algorithm(c51.Config(num_atoms=2, v_min=0.0, v_max=4.0))
    online, target = networks(algorithm)
    online.vector.zero_()
    target.vector.zero_()
    data = transitions(masked=False)
    data.reward[:], data.discount[:] = 1.0, 0.5
    output = algorithm.backpropagate(online, target, Batch.of(data, torch.device("cpu")), None)
    assert output.loss.item() == pytest.approx(math.log(2.0))
    assert output.mean_value.item() == 2.0
    np.testing.assert_allclose(output.priority, 0.0, atol=1e-6)
    np.testing.assert_allclose(online.gradient, 0.0, atol=1e-7)
    # A termination: 1 alone, (3/4, 1/4): KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812.
    data.discount[:] = 0.0
    output = algorithm.backpropagate(online, target, Batch.of(data, torch.device("cpu")), None)
    np.testing.assert_allclose(output.priority, 0.130812, rtol=1e-4)


def test_munchausen_dqn_by_hand() -> None:
    # Q(s, .) = obs * weight. The target's weights are (0, ln 3): at obs 1 Q is (0, ln 3), at next obs 2 (0, 2 ln 3).
    algorithm = dqn.Algorithm(
        dqn.Config(double=False, munchausen=True, munchausen_alpha=0.5, munchausen_temperature=1.0, loss="mse")
    )
    online = FlatNetwork(nn.Linear(1, 2, bias=False))
    target = FlatNetwork(nn.Linear(1, 2, bias=False), trainable=False)
    online.vector.copy_(torch.tensor([1.0, 7.0]))
    target.vector.copy_(torch.tensor([0.0, math.log(3.0)]))
    data = Transitions(
        obs=np.array([[1.0]], np.float32),
        action=np.array([1]),
        reward=np.array([1.0], np.float32),
        discount=np.array([0.5], np.float32),
        next_obs=np.array([[2.0]], np.float32),
    )
    # The bonus is 0.5 ln(3/4) = -0.143841, the soft value ln(1 + 9) = 2.302585: 1 - 0.143841 + 1.151293 = 2.007452.
    output = algorithm.backpropagate(online, target, Batch.of(data, torch.device("cpu")), None)
    assert output.priority.item() == pytest.approx(7.0 - 2.007452)
    np.testing.assert_allclose(online.gradient, [0.0, 7.0 - 2.007452], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo": "dqn", "algo.munchausen": True}, "algo.munchausen = True: .*; set algo.double=false"),
        (
            {"algo": "iqn", "algo.munchausen": True, "algo.n_step": 3},
            "algo.munchausen = True: .*; set algo.n_step=1",
        ),
        ({"algo": "c51", "algo.v_max": -10.0}, "algo.v_max = -10.0: must be above algo.v_min, -10"),
        ({"algo": "c51", "algo.munchausen": True}, "algo.munchausen = True: no such field"),
        ({"algo": "qr_dqn", "algo.num_atoms": 51}, "algo.num_atoms = 51: no such field"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        build_config({}, list(changes.items()))


@pytest.mark.parametrize("algo", ["dqn", "iqn"])
def test_a_run_refuses_it_as_itself(experiment: Callable[..., Experiment], algo: str) -> None:
    with pytest.raises(ConfigError, match=r"algo\.munchausen: qfleet/MaskedChain-v0 has action masks"):
        experiment("qfleet/MaskedChain-v0", {"algo": algo, "algo.double": False, "algo.munchausen": True}).run()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_actors_give_initial_priorities(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module, given = ALGORITHMS[name][0], []
    priorities = module.Algorithm.priorities

    def watched(*args: Any) -> Tensor:
        given.append(priorities(*args))
        return given[-1]

    monkeypatch.setattr(module.Algorithm, "priorities", watched)
    changes = {
        "algo": name,
        **{f"algo.{key}": value for key, value in ALGORITHMS[name][1].items()},
        "strategy": "distributed_replay",
        "replay.sampler": "prioritized",
        "algo.exploration": "per_env",
        "algo.n_step": 3,
    }
    assert experiment("qfleet/Chain-v0", changes).run()["num_updates"] > 10
    values = torch.cat(given)
    assert len(values) > 100 and bool((values >= 0).all()) and float(values.std()) > 0


@pytest.mark.parametrize("module", [dqn, iqn])
def test_munchausen_needs_to_know_what_was_legal(module: Any) -> None:
    spec = EnvSpec("Masked-v0", (NUM_OBS,), "float32", NUM_ACTIONS, has_action_mask=True)
    with pytest.raises(ConfigError, match=r"algo\.munchausen: Masked-v0 has action masks"):
        module.Algorithm(module.Config(double=False, munchausen=True)).build_network(NetworkConfig(), spec)
