"""What can be evaluated: the best policy of a run directory, an exported ONNX file, a served policy, or chance.

    open_player("runs/cartpole")  ->  Player(act, spec, env, about)

Each is opened by its name, so that another process can open it as well. Floor 7.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from qfleet.config import EvaluationConfig
from qfleet.envs.config import EnvConfig
from qfleet.envs.make import probe_spec
from qfleet.errors import CheckpointError, UsageError
from qfleet.ops.exploration import random_legal
from qfleet.policy import Policy, make_blueprint, read_policy
from qfleet.types import Array, BoolArray, EnvSpec, IntArray

Act = Callable[[Array, BoolArray | None], IntArray]
RANDOM = "random"
TOKEN_VARIABLE = "QFLEET_TOKEN"


@dataclass(frozen=True, slots=True)
class Player:
    """A policy ready to play.

    Attributes:
        begin: called with a seed and the number of actions A before each block of episodes; gives what maps
            observations [B, *O] and, where the environment has them, masks bool [B, A] to actions int64 [B]. Only
            chance looks at either.
        spec: the observations and actions that it takes; None for one that does not say.
        env: the environment it was trained on; None for one that does not say.
        limits: where the environment has no time limit.
        about: what is known of it: "algo", "num_env_steps", "validation_return", ...
        seed: of the run.
    """

    begin: Callable[[int, int], Act]
    spec: EnvSpec | None
    env: EnvConfig | None
    limits: EvaluationConfig = field(default_factory=EvaluationConfig)
    about: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0


def kind_of(target: str) -> Literal["run", "onnx", "url", "random"]:
    """What a target is, by its name alone."""
    if target == RANDOM:
        return "random"
    if target.startswith(("http://", "https://")):
        return "url"
    return "onnx" if target.endswith(".onnx") else "run"


def open_player(target: str) -> Player:
    """The policy that a target names.

    Raises:
        UsageError: nothing of that name.
        CheckpointError: it is damaged, or holds no policy.
        MissingExtraError: reading it needs a package that is not installed.
    """
    opened = {"run": _open_run, "onnx": _open_onnx, "url": _open_url, "random": _open_random}
    return opened[kind_of(target)](target)


def find_env(player: Player, env_id: str | None) -> EnvConfig:
    """What a player plays on: its own environment, or another one that takes the same actions.

    Args:
        player: who plays.
        env_id: another environment's id; None for its own.

    Raises:
        UsageError: no environment is known, or one with other observations or actions.
    """
    if env_id is None:
        if player.env is None or player.env.id is None:
            raise UsageError("this policy does not say which environment it is for; name it with --env")
        return player.env
    own = player.env
    if own is not None and own.id == env_id:
        return own
    # How observations and actions are adapted stays; arguments of another environment's constructor do not.
    env = EnvConfig(id=env_id) if own is None else own.model_copy(update={"id": env_id, "kwargs": {}, "attributes": {}})
    spec = probe_spec(env)
    if player.spec is not None:
        ours = (player.spec.obs_shape, player.spec.obs_dtype, player.spec.num_actions)
        theirs = (spec.obs_shape, spec.obs_dtype, spec.num_actions)
        if ours != theirs:
            raise UsageError(
                f"--env {env_id}: its observations and number of actions are {theirs}, this policy takes {ours}"
            )
    return env


def _open_run(target: str) -> Player:
    config, spec, snapshot, facts = read_policy(Path(target) / "best")
    policy = Policy(make_blueprint(config, spec), snapshot)
    about = {
        "algo": config.algo.name,
        "version": snapshot.version,
        "num_env_steps": facts["num_env_steps"],
        "validation_return": facts["mean_return"],
        "validation_episodes": facts["episodes"],
    }
    return Player(lambda *_: _batched(policy.act), spec, config.env, config.evaluation, about, config.seed)


def _open_onnx(target: str) -> Player:
    if not Path(target).is_file():
        raise UsageError(f"{target}: no such file")
    from qfleet.onnx_policy import OnnxPolicy  # whoever evaluates runs alone needs no onnxruntime

    policy = OnnxPolicy.read(target)
    return _described(target, policy, policy.description.body)


def _open_url(target: str) -> Player:
    from qfleet.client import PolicyClient  # nor httpx

    client = PolicyClient(target, os.environ.get(TOKEN_VARIABLE))
    return _described(target, client, client.describe())


class _Acting(Protocol):
    @property
    def spec(self) -> EnvSpec: ...
    def act(self, obs: Array, action_mask: BoolArray | None = None) -> int | IntArray: ...


def _described(target: str, policy: _Acting, body: Mapping[str, Any]) -> Player:
    """A policy that says of itself what `qfleet export` wrote."""
    try:
        env, facts = EnvConfig.model_validate(body["env"]), dict(body.get("facts", {}))
        about = {
            "algo": str(body["algo"]),
            "version": facts.get("version"),
            "num_env_steps": facts.get("num_env_steps"),
            "validation_return": facts.get("mean_return"),
            "validation_episodes": facts.get("episodes"),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{target}: its description is damaged ({type(error).__name__}: {error})") from error
    return Player(lambda *_: _batched(policy.act), policy.spec, env, about=about)


def _open_random(target: str) -> Player:
    def begin(seed: int, num_actions: int) -> Act:
        generator = np.random.default_rng(seed)

        def act(obs: Array, action_mask: BoolArray | None) -> IntArray:
            if action_mask is None:
                action_mask = np.ones((len(obs), num_actions), dtype=np.bool_)
            return random_legal(num_actions, action_mask, generator)

        return act

    return Player(begin, None, None)


def _batched(act: Callable[[Array, BoolArray | None], int | IntArray]) -> Act:
    return lambda obs, action_mask: np.atleast_1d(np.asarray(act(obs, action_mask), dtype=np.int64))
