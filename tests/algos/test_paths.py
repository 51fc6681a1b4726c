"""Learners on every way to compute a network: the loss curve is the reference's, up to the precision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qfleet.algos.base import _tensor
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.learner import BaseLearner, Learner, RolloutLearner
from qfleet.run_config import build_config
from qfleet.types import EnvSpec, RolloutBatch, Sample, Transitions

SPEC = EnvSpec("Images-v0", (2, 36, 40), "uint8", 3)
NUM_UPDATES, BATCH = 30, 32


def blueprint(algo: str, device: str = "cpu", **network: object) -> Blueprint:
    settings: list[tuple[str, object]] = [("algo", algo), ("network.hidden", [64]), ("algo.learning_rate", 1e-3)]
    if algo == "pqn":
        settings += [("algo.rollout_steps", 8), ("algo.num_minibatches", 2), ("network.layer_norm", True)]
    config = build_config({}, [*settings, *((f"network.{name}", value) for name, value in network.items())])
    return Blueprint(config.env, None, SPEC, algo, config.algo, config.network, config.replay, 3, device)


def pictures(generator: np.random.Generator) -> np.ndarray:
    """Blobs whose place and brightness tell the reward: there is something to be learned."""
    obs = np.zeros((BATCH, *SPEC.obs_shape), np.uint8)
    for row, (y, x, shade) in enumerate(generator.integers((0, 0, 50), (26, 30, 256), (BATCH, 3))):
        obs[row, :, y : y + 10, x : x + 10] = shade
    return obs


def drawn(algo: str, generator: np.random.Generator) -> Sample | RolloutBatch:
    obs, action = pictures(generator), generator.integers(0, 3, BATCH)
    reward = (obs.reshape(BATCH, -1).mean(axis=1) / 255.0 * (action + 1)).astype(np.float32)
    if algo == "pqn":
        return RolloutBatch(obs, action, np.ones(BATCH, np.float32), reward, None, None)
    batch = Transitions(obs, action, reward, np.full(BATCH, 0.9, np.float32), pictures(generator))
    return Sample(np.arange(BATCH), batch, np.full(BATCH, 1 / 100), 100)


def losses(plan: Blueprint) -> np.ndarray:
    generator = np.random.default_rng(7)
    learner: BaseLearner = RolloutLearner(plan, "l") if plan.algo_name == "pqn" else Learner(plan, "l")
    curve = []
    for _ in range(NUM_UPDATES):
        learner.learn(drawn(plan.algo_name, generator))
        curve.append(learner.loss)
    return np.array(curve)


@pytest.mark.parametrize("algo", ["dqn", "c51", "iqn", "pqn"])
def test_the_loss_curve_of_bfloat16_is_that_of_float32(algo: str) -> None:
    reference = losses(blueprint(algo, precision="float32"))
    other = losses(blueprint(algo, precision="bfloat16"))
    assert not np.array_equal(reference, other)  # or the path was not taken
    assert reference[-5:].mean() < reference[:5].mean()  # and it does learn
    # Rounding by 0.2% moves the first loss by about as much; later ones are of networks that went apart a little.
    assert other[0] == pytest.approx(reference[0], rel=0.01)
    assert np.abs(other - reference).sum() < 0.08 * reference.sum()


def test_actors_and_targets_take_the_learners_path() -> None:
    learner = Learner(blueprint("dqn", precision="bfloat16"), "l")
    assert learner.online.path == learner.target.path
    assert learner.online.path.precision == "bfloat16"
    assert blueprint("dqn").compute_path().is_reference  # small networks stay as they are


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["dqn", "pqn"])
def test_the_loss_curve_of_a_compiled_update_is_the_references_and_repeats(algo: str) -> None:
    plan = blueprint(algo, precision="float32", compile="always")
    if plan.compute_path().note:
        pytest.skip(plan.compute_path().note)
    plan.compile_update()
    reference, once, again = losses(blueprint(algo, precision="float32")), losses(plan), losses(plan)
    np.testing.assert_allclose(once, reference, rtol=0.05, atol=0.005 * reference[0])
    np.testing.assert_array_equal(once, again)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algo", ["dqn", "pqn"])
def test_a_gpu_learns_what_the_cpu_does(algo: str) -> None:
    plan = blueprint(algo, precision="float32", compile="never")
    np.testing.assert_allclose(losses(dataclasses.replace(plan, device="cuda")), losses(plan), rtol=0.05, atol=1e-3)
    assert np.isfinite(losses(blueprint(algo, device="cuda"))).all()  # bfloat16 and compiled, where it can


def test_what_goes_to_another_device_is_copied_whole_from_strided_views() -> None:
    block = np.arange(2 * 6 * 4, dtype=np.uint8).reshape(2, 6, 4)
    moved = _tensor(block[:, ::2], torch.device("meta"))
    assert (moved.shape, moved.dtype, moved.device.type) == ((2, 3, 4), torch.uint8, "meta")
    assert _tensor(block[:, ::2], torch.device("cpu")).data_ptr() == block.ctypes.data
