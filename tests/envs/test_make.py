"""What an environment's name stands for, how its copies are stepped, and what is refused in which words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from pydantic import ValidationError

from qfleet.envs.config import EnvConfig
from qfleet.envs.make import make_env_batch, probe_spec
from qfleet.envs.toy import Script
from qfleet.errors import EnvError, MissingExtraError, UsageError
from qfleet.types import EnvSpec


def refusal(config: EnvConfig, factory: Any = None, error: type[Exception] = UsageError) -> str:
    with pytest.raises(error) as caught:
        make_env_batch(config, factory=factory)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An importable package of a user: my_package registers Mine-v0, my_package.module holds a class."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', entry_point='my_package.module:Mine', max_episode_steps=9)\n"
    )
    (folder / "module.py").write_text(
        "from qfleet.envs.toy import Chain\n"
        "class Mine(Chain):\n"
        "    def __init__(self, size=3):\n"
        "        super().__init__(num_states=size)\n"
        "def not_an_env():\n"
        "    return 3\n"
        "def needs_size(size):\n"
        "    return Mine(size)\n"
        "def broken():\n"
        "    raise KeyError('no such level')\n"
    )
    (folder / "misspelt.py").write_text("import numpyy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    gym.registry.pop("Mine-v0", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_spec_of_cartpole() -> None:
    config = EnvConfig(id="CartPole-v1")
    expected = EnvSpec(
        "CartPole-v1", (4,), "float32", 2, False, max_episode_steps=500, return_threshold=475.0, is_native=True
    )
    assert probe_spec(config) == make_env_batch(config).spec == expected


def test_num_envs_comes_from_the_config_unless_given() -> None:
    config = EnvConfig(id="CartPole-v1", num_envs=3)
    assert make_env_batch(config).reset(0).shape == (3, 4)
    assert make_env_batch(config, num_envs=5).reset(0).shape == (5, 4)


@pytest.mark.parametrize(
    ("config", "vector_class", "mode"),
    [
        ({}, CartPoleVectorEnv, AutoresetMode.NEXT_STEP),
        ({"vectorization": "native"}, CartPoleVectorEnv, AutoresetMode.NEXT_STEP),
        ({"autoreset": "next_step"}, CartPoleVectorEnv, AutoresetMode.NEXT_STEP),
        # CartPole's own version cannot reset in the same step, so it is not the one that fits.
        ({"autoreset": "same_step"}, SyncVectorEnv, AutoresetMode.SAME_STEP),
        ({"vectorization": "sync"}, SyncVectorEnv, AutoresetMode.SAME_STEP),
        ({"vectorization": "sync", "autoreset": "next_step"}, SyncVectorEnv, AutoresetMode.NEXT_STEP),
        ({"kwargs": {"sutton_barto_reward": True}}, CartPoleVectorEnv, AutoresetMode.NEXT_STEP),
    ],
)
def test_vectorization(config: dict[str, Any], vector_class: type, mode: AutoresetMode) -> None:
    batch = make_env_batch(EnvConfig(id="CartPole-v1", num_envs=2, **config))
    assert isinstance(batch._env, vector_class)
    assert batch._env.metadata["autoreset_mode"] is mode


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_constructor_arguments_arrive(vectorization: Any) -> None:
    kwargs = {"sutton_barto_reward": True}
    batch = make_env_batch(EnvConfig(id="CartPole-v1", num_envs=2, kwargs=kwargs, vectorization=vectorization))
    batch.reset(seed=0)
    # This variant pays 0 while the pole stands, where the usual one pays 1.
    assert batch.step(np.zeros(2, dtype=np.int64)).reward.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("vectorization", ["native", "sync"])
@pytest.mark.parametrize("autoreset", ["auto", "next_step"])
def test_max_episode_steps(vectorization: Any, autoreset: Any) -> None:
    config = EnvConfig(
        id="CartPole-v1", num_envs=2, max_episode_steps=4, vectorization=vectorization, autoreset=autoreset
    )
    batch = make_env_batch(config)
    assert batch.spec.max_episode_steps == 4
    batch.reset(seed=0)
    steps = [batch.step(np.array([0, 1])) for _ in range(4)]
    assert [step.truncated.tolist() for step in steps] == [[False, False]] * 3 + [[True, True]]


def test_max_episode_steps_of_a_factory() -> None:
    config = EnvConfig(num_envs=1, max_episode_steps=2, kwargs={"ends": ("", "", "", "", "")})
    batch = make_env_batch(config, factory=Script)
    batch.reset(seed=0)
    assert [bool(batch.step(np.zeros(1, dtype=np.int64)).truncated[0]) for _ in range(4)] == [False, True] * 2


class BothModes(CartPoleVectorEnv):
    """A native version that can be asked for its mode."""

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> None:
        super().__init__(num_envs)
        self.metadata = {"autoreset_mode": autoreset_mode}


def test_a_native_version_is_asked_for_the_mode_where_it_has_a_choice() -> None:
    gym.register("BothModes-v0", entry_point="qfleet.envs.toy:Chain", vector_entry_point=BothModes)
    try:
        modes = {}
        for autoreset in ("auto", "next_step", "same_step"):
            config = EnvConfig(id="BothModes-v0", vectorization="native", autoreset=autoreset)
            modes[autoreset] = make_env_batch(config)._env.metadata["autoreset_mode"].name.lower()
        assert modes == {"auto": "next_step", "next_step": "next_step", "same_step": "same_step"}
    finally:
        del gym.registry["BothModes-v0"]


def test_a_native_version_that_lacks_its_package_gives_way_to_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "package_that_is_absent", None)
    gym.register(
        "HalfThere-v0",
        entry_point="qfleet.envs.toy:Chain",
        vector_entry_point="package_that_is_absent.fast:FastChain",
    )
    try:
        assert isinstance(make_env_batch(EnvConfig(id="HalfThere-v0", num_envs=2))._env, SyncVectorEnv)
        assert "needs package_that_is_absent, which is not installed" in refusal(
            EnvConfig(id="HalfThere-v0", vectorization="native")
        )
    finally:
        del gym.registry["HalfThere-v0"]


def run_script(batch: Any) -> list[Any]:
    batch.reset(seed=0)
    steps = [batch.step(np.full(batch.num_envs, k % 3)) for k in range(12)]
    return [(s.next_obs.tolist(), s.obs.tolist(), s.reward.tolist(), s.episode_returns.tolist()) for s in steps]


def test_subprocesses_give_the_same_steps_as_this_process() -> None:
    # A function of this test: only cloudpickle can send it to another process.
    def build(**kwargs: Any) -> Script:
        return Script(rewards=(1.0, 2.0, 4.0), ends=("", "terminated", "truncated"), **kwargs)

    config = EnvConfig(vectorization="subprocess", num_envs=2, kwargs={"stagger": 1})
    batch = make_env_batch(config, factory=build)
    try:
        assert isinstance(batch._env, AsyncVectorEnv)
        in_process = make_env_batch(config.model_copy(update={"vectorization": "sync"}), factory=build)
        assert run_script(batch) == run_script(in_process)
        assert not batch.offers_state
    finally:
        batch.close()


def test_a_name_behind_the_module_that_registers_it(user_package: None) -> None:
    spec = probe_spec(EnvConfig(id="my_package:Mine-v0", kwargs={"size": 6}))
    assert spec == EnvSpec("my_package:Mine-v0", (6,), "float32", 2, max_episode_steps=9, offers_state=True)


def test_a_class_in_a_module(user_package: None) -> None:
    config = EnvConfig(id="my_package.module:Mine", kwargs={"size": 6}, max_episode_steps=5)
    assert probe_spec(config) == EnvSpec(
        "my_package.module:Mine", (6,), "float32", 2, max_episode_steps=5, offers_state=True
    )


def test_a_factory_gets_the_kwargs_and_gives_its_name() -> None:
    spec = probe_spec(EnvConfig(kwargs={"masks": True, "num_actions": 5}), factory=Script)
    assert spec == EnvSpec("Script", (4,), "float32", 5, has_action_mask=True, offers_state=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no environment is named; give one, for example CartPole-v1"),
        ({"id": "CartPol-v1"}, "no environment is called 'CartPol-v1'; did you mean CartPole-v1"),
        ({"id": "cartpole-v1"}, "no environment is called 'cartpole-v1'; did you mean CartPole-v1"),
        ({"id": "LunarLander-v2"}, "no environment is called 'LunarLander-v2'; did you mean LunarLander-v3"),
        ({"id": "qfleet/Chian-v0"}, "no environment is called 'qfleet/Chian-v0'; did you mean qfleet/Chain-v0"),
        ({"id": "no such thing"}, "no environment is called 'no such thing'"),
        (
            {"id": "no_such_package:Env-v0"},
            "environment no_such_package:Env-v0: cannot import the module 'no_such_package' (ModuleNotFoundError: "
            "No module named 'no_such_package'); is it installed, or its folder on PYTHONPATH?",
        ),
        (
            {"id": "my_package.misspelt:Mine"},
            "environment my_package.misspelt:Mine: cannot import the module 'my_package.misspelt' "
            "(ModuleNotFoundError: No module named 'numpyy'); is it installed, or its folder on PYTHONPATH?",
        ),
        (
            {"id": "my_package.module:Mien"},
            "environment my_package.module:Mien: importing my_package.module registers no 'Mien', and it holds no "
            "callable of that name; did you mean Mine",
        ),
        (
            {"id": "my_package.module:not_an_env"},
            "environment my_package.module:not_an_env: it made a int, which is not a gymnasium.Env",
        ),
        (
            {"id": "my_package.module:needs_size"},
            "environment my_package.module:needs_size does not take env.kwargs={}: "
            "needs_size() missing 1 required positional argument: 'size'",
        ),
        (
            {"id": "CartPole-v1", "kwargs": {"gravity": 3}},
            "environment CartPole-v1 does not take env.kwargs={'gravity': 3}: "
            "CartPoleEnv.__init__() got an unexpected keyword argument 'gravity'",
        ),
        (
            {"id": "MountainCar-v0", "vectorization": "native"},
            "environment MountainCar-v0: env.vectorization=native is not possible: it has no vector version of its "
            "own; use env.vectorization=auto",
        ),
        (
            {"id": "CartPole-v1", "vectorization": "native", "autoreset": "same_step"},
            "environment CartPole-v1: env.vectorization=native is not possible: it resets itself in mode next_step, "
            "not env.autoreset=same_step; use env.vectorization=auto",
        ),
    ],
)
def test_refusals(config: dict[str, Any], message: str, user_package: None) -> None:
    assert refusal(EnvConfig(**config)).startswith(message)


def test_a_constructor_that_fails_is_reported_in_one_line(user_package: None) -> None:
    message = refusal(EnvConfig(id="my_package.module:broken"), error=EnvError)
    assert message == "environment my_package.module:broken could not be made: KeyError: 'no such level'"


LOADED = ("gymnasium.envs.box2d", "gymnasium.envs.phys2d", "qfleet.envs.minatar")


@pytest.mark.parametrize(
    ("env_id", "package", "install"),
    [
        ("LunarLander-v3", "Box2D", "qfleet[box2d]"),
        ("ALE/Pong-v5", "ale_py", "qfleet[atari]"),
        ("ALE/Pong-v5", "cv2", "qfleet[atari]"),
        ("PongNoFrameskip-v4", "ale_py", "qfleet[atari]"),
        ("MinAtar/Breakout-v1", "minatar", "qfleet[minatar]"),
        ("phys2d/CartPole-v1", "jax", "jax"),
    ],
)
def test_a_missing_package_names_what_installs_it(
    env_id: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(LOADED)]:
        monkeypatch.delitem(sys.modules, name)
    # Without opencv ale-py's own vector version still works; a single copy does not.
    vectorization = "sync" if package == "cv2" else "auto"
    message = refusal(EnvConfig(id=env_id, vectorization=vectorization), error=MissingExtraError)
    assert message == f"environment {env_id} needs {package}, which is not installed: pip install '{install}'"


@pytest.mark.parametrize(
    "fields",
    [
        {"num_env": 3},
        {"num_envs": 0},
        {"vectorization": "threads"},
        {"autoreset": "disabled"},
        {"max_episode_steps": 0},
        {"discretize": 1},
        {"reward_scale": 0.0},
        {"reward_clip": -1.0},
    ],
)
def test_the_config_refuses_what_nothing_could_honour(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        EnvConfig(**fields)
