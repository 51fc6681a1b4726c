"""Settings without a meaning for an algorithm that learns from rollouts are refused in one line, at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfleet.errors import ConfigError, UsageError
from qfleet.experiment import Experiment

MakeExperiment = Callable[..., Experiment]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay.capacity": 5000}, r"replay.capacity = 5000: a2c learns from rollouts .* algo.rollout_steps"),
        (
            {"replay.capacity": 5},
            r"replay.capacity = 5: a2c learns from rollouts and keeps no replay; leave \[replay\] out",
        ),
        ({"replay.capacity": 100_000}, r"replay.capacity = 100000: a2c"),  # the default
        ({"strategy.collect_steps": 1}, r"strategy.collect_steps = 1: a2c collects whole"),  # the default
        ({"replay.samples_per_insert": 2.0}, r"replay.samples_per_insert = 2.0: a2c"),
        ({"replay.sampler": "prioritized"}, r"replay.sampler = 'prioritized': a2c"),
        ({"strategy.collect_steps": 4}, r"strategy.collect_steps = 4: a2c collects whole .* algo.rollout_steps"),
        (
            {"algo.num_minibatches": 3},
            r"algo.num_minibatches = 3: .* algo.rollout_steps \* env.num_envs = 4 \* 4 = 16 steps",
        ),
        ({"algo.batch_size": 16}, r"algo.batch_size = 16: no such field"),
        ({"algo.target_tau": 0.1}, r"algo.target_tau = 0.1: no such field"),
        ({"algo.exploration.end": 0.1}, r"algo.exploration = .*: no such field"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused_in_one_line(experiment: MakeExperiment, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        experiment("CartPole-v1", {"algo": "a2c", **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", ["distributed_replay", "federated"])
@pytest.mark.parametrize("algo", ["a2c", "pqn"])
def test_strategies_that_give_replay_are_refused(experiment: MakeExperiment, algo: str, strategy: str) -> None:
    with pytest.raises(UsageError, match=f"--algo {algo} does not fit --strategy {strategy}.*{algo} x serial"):
        experiment("CartPole-v1", {"algo": algo, "strategy": strategy})


@pytest.mark.parametrize(("field", "value"), [("replay.capacity", 5000), ("strategy.collect_steps", 4)])
def test_trajectories_need_no_replay_either(experiment: MakeExperiment, field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{field} = {value}: vtrace .* algo.rollout_steps"):
        experiment("CartPole-v1", {"algo": "vtrace", "strategy": "actor_learner", field: value})


@pytest.mark.parametrize(
    ("algo", "strategy"), [("dqn", "actor_learner"), ("a2c", "actor_learner"), ("vtrace", "distributed_replay")]
)
def test_a_pair_that_does_not_fit_names_those_that_do(experiment: MakeExperiment, algo: str, strategy: str) -> None:
    with pytest.raises(UsageError, match=f"--algo {algo} does not fit --strategy {strategy}.*vtrace x actor_learner"):
        experiment("CartPole-v1", {"algo": algo, "strategy": strategy})


def test_a_written_configuration_reads_back(experiment: MakeExperiment) -> None:
    run = experiment("CartPole-v1", {"algo": "pqn", "strategy": "all_reduce", "stop.max_env_steps": 64})
    assert "rollouts: 4 x 4 steps in each of 4 roles" in run.describe()
    run.run()
    assert Experiment.resume(run.run_dir).config == run.config
    text = (run.run_dir / "config.toml").read_text()
    assert "[strategy]" in text
    assert "collect_steps" not in text, "what pqn does not read is not written"
    assert "[replay]" not in text


def test_a_run_that_wrote_defaults_down_goes_on(experiment: MakeExperiment, tmp_path: Path) -> None:
    """Defaults in a user's file are refused, in a run's own directory they are not, which earlier versions wrote."""
    run = experiment("CartPole-v1", {"algo": "pqn", "stop.max_env_steps": 64})
    run.run()
    path = run.run_dir / "config.toml"
    path.write_text(
        path.read_text().replace("[strategy]", "[strategy]\ncollect_steps = 1") + "[replay]\nsampler = 'uniform'\n"
    )
    assert Experiment.resume(run.run_dir).config == run.config
    path.write_text(path.read_text().replace("uniform", "prioritized"))
    with pytest.raises(ConfigError, match=r"replay.sampler = 'prioritized': pqn"):
        Experiment.resume(run.run_dir)
    mine = tmp_path / "mine.toml"
    mine.write_text("[algo]\nname = 'pqn'\n[replay]\nsampler = 'uniform'\n")
    with pytest.raises(ConfigError, match=r"replay.sampler = 'uniform': pqn learns from rollouts and keeps no replay"):
        Experiment.from_recipe("CartPole-v1", recipe=str(mine))


@pytest.mark.parametrize(("recipe", "wait"), [("a2c", "sync"), ("a3c", "async")])
def test_recipes_leave_the_environment_open(recipe: str, wait: str) -> None:
    config = Experiment.from_recipe("qfleet/Identity-v0", recipe=recipe).config
    assert (config.algo.name, config.strategy.wait) == ("a2c", wait)  # type: ignore[attr-defined]
    assert Experiment.from_recipe("qfleet/Identity-v0", recipe="pqn").config.network.layer_norm
    assert Experiment.from_recipe("qfleet/Identity-v0", recipe="impala").config.strategy.name == "actor_learner"
    with pytest.raises(UsageError, match="no environment is named"):
        Experiment(config.model_copy(update={"env": config.env.model_copy(update={"id": None})}))
