"""Bad configuration gets one line: the field, the value, the nearest valid name of its own section."""

from __future__ import annotations

from pathlib import Path

import pytest

from qfleet.errors import ConfigError, UsageError
from qfleet.experiment import Experiment
from qfleet.recipe import find_recipe
from qfleet.run_config import build_config

WRONG = [
    ("stragety.collect_steps", 2, "stragety = {'collect_steps': 2}: no such field; did you mean strategy?"),
    ("env.num_env", 3, "env.num_env = 3: no such field; did you mean num_envs?"),
    ("network.hiden", [3], "network.hiden = [3]: no such field; did you mean hidden?"),
    ("replay.capcity", 9, "replay.capcity = 9: no such field; did you mean capacity?"),
    (
        "algo.optimizer.max_gradnorm",
        1.0,
        "algo.optimizer.max_gradnorm = 1.0: no such field; did you mean max_grad_",
    ),
    ("algo.lerning_rate", 0.1, "algo.lerning_rate = 0.1: no such field; did you mean learning_rate?"),
    ("init.fro", "x", "init.fro = 'x': no such field; did you mean from?"),
    ("algo.optimizer.beta1", 1.0, "algo.optimizer.beta1 = 1.0: input should be less than 1"),
    ("stop.until_return", float("nan"), "stop.until_return = nan: input should be"),
    ("stop.until_return", "soon", "stop.until_return = 'soon': input should be"),
    ("replay.capacity", 0, "replay.capacity = 0: input should be greater than or equal to 1"),
    ("algo.batch_size", "many", "algo.batch_size = 'many': input should be a valid integer"),
    ("num_threads", 0, "num_threads = 0: input should be"),
    ("strategy", "serail", "strategy.name = 'serail': no such strategy; did you mean serial?"),
    ("algo", 3, "algo = 3: this is a table, or a name"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_one_line(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(find_recipe("cartpole").values, [(field, value)])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_none_takes_back_what_a_recipe_sets() -> None:
    values: dict[str, object] = {"env": {"id": "CartPole-v1", "reward_clip": 1.0}}
    assert build_config(values, []).env.reward_clip == 1.0
    assert build_config(values, [("env.reward_clip", "none")]).env.reward_clip is None


def test_a_recipe_that_names_its_environment_is_enough() -> None:
    experiment = Experiment.from_recipe("cartpole")
    assert (experiment.config.env.id, experiment.recipe) == ("CartPole-v1", "cartpole")
    assert experiment.config == Experiment.from_recipe("CartPole-v1").config


def test_a_new_default_does_not_change_whose_run_it_is() -> None:
    values = find_recipe("cartpole").values
    plain = build_config(values, []).learning_sha256()
    assert build_config(values, [("replay.priority_exponent", 0.6)]).learning_sha256() == plain  # the default
    for field, value in (("seed", 1), ("replay.priority_exponent", 0.5), ("algo.gamma", 0.9)):
        assert build_config(values, [(field, value)]).learning_sha256() != plain
    for field, value in (("stop.max_env_steps", 1), ("device", "cpu"), ("num_threads", 2), ("checkpoint.keep", 9)):
        assert build_config(values, [(field, value)]).learning_sha256() == plain


def test_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe 'cartpol': no such recipe; did you mean cartpole"):
        find_recipe("cartpol")
