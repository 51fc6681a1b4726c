"""Same seed, same parameters, bit for bit; another seed, others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qfleet.engines.inline import Config, Engine
from qfleet.experiment import Experiment
from qfleet.types import Receipt

MakeExperiment = Callable[..., Experiment]
VARIANTS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "prioritized": {"replay.sampler": "prioritized"},
    "noisy": {"algo.noisy": True, "algo.exploration": "none"},
}


def final_sha256(experiment: Experiment) -> str:
    sha256 = experiment.run()["parameters_sha256"]
    assert isinstance(sha256, str)
    return sha256


@pytest.mark.parametrize("env_id", ["CartPole-v1", "qfleet/Identity-v0"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_seed_decides_the_parameters(experiment: MakeExperiment, env_id: str, variant: str) -> None:
    hashes = [
        final_sha256(experiment(env_id, {"seed": seed, **VARIANTS[variant]}, run_dir=name))
        for seed, name in [(3, "a"), (3, "b"), (4, "c")]
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_looking_changes_nothing(experiment: MakeExperiment) -> None:
    # Logging and validation more often, a TensorBoard, another place: what is learned stays the same.
    plain = final_sha256(experiment("qfleet/Script-v0", run_dir="plain"))
    watched = {"logging.every_env_steps": 4, "logging.tensorboard": True, "evaluation.every_env_steps": 50}
    assert final_sha256(experiment("qfleet/Script-v0", watched, run_dir="watched")) == plain


class Echo:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def note(self) -> Receipt:
        self.log.append(self.name)
        return Receipt()


def order(seed: int, num_calls: int = 40, restart_at: int | None = None) -> list[str]:
    """In which order an inline engine runs the calls of four roles; at `restart_at` a new engine takes over."""
    log: list[str] = []
    engine = Engine(Config(), seed)
    for number in range(num_calls):
        if number == restart_at:
            saved = engine.state_dict()
            engine = Engine(Config(), seed=99)
            engine.load_state_dict(saved)
        roles = [engine.spawn(f"role-{number}-{i}", Echo, log, str(i)) for i in range(4)]
        for role in roles:
            engine.submit(role, "note")
        while engine.wait() is not None:
            pass
    return log


def test_the_order_of_calls_is_drawn_from_the_seed() -> None:
    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert sorted(order(seed=1)) == sorted("0123" * 40)
    assert len({tuple(order(seed=1)[i : i + 4]) for i in range(0, 160, 4)}) > 10, "all kinds of orders come up"


def test_a_restored_engine_goes_on_with_the_same_order() -> None:
    assert order(seed=1, restart_at=20) == order(seed=1)
