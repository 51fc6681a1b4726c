"""Making environments: an EnvConfig becomes an EnvBatch, or the EnvSpec that networks and replay are sized by.

The only place that knows how copies are stepped: by the environment's own vector version, one after the other
in this process, or one process each.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import signal
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode

from qfleet.envs import atari
from qfleet.envs.attributes import set_attributes
from qfleet.envs.config import EnvConfig, ImageConfig
from qfleet.envs.masks import read_masks
from qfleet.envs.source import EnvFactory, EnvSource, find_source, missing_package
from qfleet.envs.spaces import fits_unwrapped, obs_dtype, one_line
from qfleet.envs.state import VectorState
from qfleet.envs.vector import AnyVectorEnv, EnvBatch, autoreset_mode
from qfleet.errors import EnvError, UsageError, first_line, in_one_line
from qfleet.types import EnvSpec

_ASKED = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}


class _UnusableError(Exception):
    """The environment's own vector version does not fit; the message says why."""


def make_env_batch(config: EnvConfig, num_envs: int | None = None, factory: EnvFactory | None = None) -> EnvBatch:
    """The environments that one role steps. Call `reset` before the first step.

    Args:
        config: which environment, and how.
        num_envs: E, instead of `config.num_envs`.
        factory: a callable that takes `config.kwargs` and returns one environment, instead of `config.id`. With
            vectorization "subprocess" it must be picklable by cloudpickle, and a script that makes such a batch
            needs `if __name__ == "__main__":`, as with any use of multiprocessing.

    Raises:
        UsageError: an unknown id, arguments it does not take, or spaces that Q-learning cannot use.
        MissingExtraError: the environment needs a package that is not installed.
        EnvError: its constructor failed.
    """
    source = find_source(config, factory)
    env = _make_vector_env(source, config, config.num_envs if num_envs is None else num_envs)
    try:
        spec = _spec_of(env, source)
        return EnvBatch(
            env,
            spec,
            reward_scale=config.reward_scale,
            reward_clip=config.reward_clip,
            life_loss=source.is_preprocessed_atari and config.atari.life_loss,
        )
    except BaseException:
        env.close()
        raise


def probe_spec(config: EnvConfig, factory: EnvFactory | None = None) -> EnvSpec:
    """What training needs to know about the environment; makes one copy, resets it and closes it.

    Raises:
        As `make_env_batch`.
    """
    # One process fewer to start: a copy in this process answers the same questions.
    in_process = {"vectorization": "sync"} if config.vectorization == "subprocess" else {}
    batch = make_env_batch(config.model_copy(update=in_process), num_envs=1, factory=factory)
    batch.close()
    return batch.spec


def _make_vector_env(source: EnvSource, config: EnvConfig, num_envs: int) -> AnyVectorEnv:
    if config.vectorization in ("auto", "native"):
        try:
            return _make_native(source, config.autoreset, num_envs)
        except _UnusableError as error:
            if config.vectorization == "native":
                raise UsageError(
                    f"environment {source.label}: env.vectorization=native is not possible: {error}; "
                    "use env.vectorization=auto"
                ) from error
    mode = _ASKED.get(config.autoreset, AutoresetMode.SAME_STEP)
    builders = [source.build] * num_envs
    # copy=False: EnvBatch makes the one copy that is needed.
    if config.vectorization != "subprocess":
        return gym.vector.SyncVectorEnv(builders, copy=False, autoreset_mode=mode)
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if context == "forkserver":
        # The server imports once what each of its children would otherwise import again.
        multiprocessing.set_forkserver_preload(["__main__", __name__])
    builders = [functools.partial(_build_in_child, source, os.getpid())] * num_envs
    return gym.vector.AsyncVectorEnv(builders, copy=False, context=context, autoreset_mode=mode)


def _build_in_child(source: EnvSource, parent: int) -> gym.Env[Any, Any]:
    """One copy in its own process, which ignores Ctrl-C: that reaches every process of a terminal, and the run still
    has to save itself. (Gymnasium also makes one copy in the parent, to see its spaces.)"""
    if os.getpid() != parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return source.build()


def _make_native(source: EnvSource, autoreset: str, num_envs: int) -> AnyVectorEnv:
    """The environment's own vector version.

    Raises:
        _UnusableError: there is none, or it cannot do what is asked.
    """
    registration = source.registration
    if registration is None or registration.vector_entry_point is None:
        raise _UnusableError("it has no vector version of its own")
    if source.image != ImageConfig():
        raise _UnusableError("[env.image] needs wrappers")
    kwargs: dict[str, Any] = dict(source.kwargs)
    try:
        if autoreset in _ASKED and _takes(registration.vector_entry_point, "autoreset_mode"):
            kwargs["autoreset_mode"] = _ASKED[autoreset]
        if atari.is_atari(registration):
            kwargs = _atari_arguments(source, kwargs, num_envs)
        elif source.max_episode_steps is not None:
            kwargs["max_episode_steps"] = source.max_episode_steps
        env = gym.make_vec(registration, num_envs, vectorization_mode="vector_entry_point", **kwargs)
        env = atari.AtariVector(env) if atari.is_atari(registration) else env
    except ImportError as error:
        raise _UnusableError(str(missing_package(source.label, error))) from error
    except (TypeError, gym.error.Error) as error:
        raise _UnusableError(in_one_line(error)) from error
    try:
        set_attributes(env, source.attributes, source.label)
    except UsageError as error:
        env.close()
        raise _UnusableError(str(error)) from error
    reason = _misfit(env, source, autoreset)
    if reason is not None:
        env.close()
        raise _UnusableError(reason)
    return env


def _atari_arguments(source: EnvSource, kwargs: dict[str, Any], num_envs: int) -> dict[str, Any]:
    """For ale-py's vector version, which can do nothing but preprocessed games.

    Raises:
        _UnusableError: it is not to be preprocessed.
    """
    if not source.atari.preprocessing:
        raise _UnusableError("the games' own vector version is preprocessed, and env.atari.preprocessing is false")
    source.refuse_for_atari()
    # Same-step is what wastes no step on resetting, as with copies that are stepped one by one.
    arguments: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, **kwargs}
    return arguments | atari.vector_arguments(source.atari, source.max_episode_steps, num_envs)


def _misfit(env: AnyVectorEnv, source: EnvSource, autoreset: str) -> str | None:
    """Why a native vector environment cannot be used, None if it can."""
    if source.discretize is not None or not fits_unwrapped(env.single_observation_space, env.single_action_space):
        return "its spaces need wrappers"
    try:
        mode = autoreset_mode(env, source.label)
    except UsageError as error:
        return str(error)
    if autoreset in _ASKED and mode is not _ASKED[autoreset]:
        return f"it resets itself in mode {mode.name.lower()}, not env.autoreset={autoreset}"
    return None


def _takes(entry_point: Any, argument: str) -> bool:
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    return argument in inspect.signature(creator).parameters


def _spec_of(env: AnyVectorEnv, source: EnvSource) -> EnvSpec:
    """The spec, after a look at the first infos: whether there are masks shows only there."""
    obs_space, action_space = env.single_observation_space, env.single_action_space
    assert isinstance(action_space, gym.spaces.Discrete)
    num_actions = int(action_space.n)
    # A seeded reset of an Atari game reads its cartridge anew, some 0.1 s for each copy; its infos are known.
    info: dict[str, Any] = {} if isinstance(env, atari.AtariVector) else _first_info(env, source)
    has_action_mask = "action_mask" in info
    if has_action_mask:
        read_masks(info, env.num_envs, num_actions, source.label)
    return EnvSpec(
        env_id=source.label,
        obs_shape=tuple(obs_space.shape or ()),
        obs_dtype=obs_dtype(obs_space),
        num_actions=num_actions,
        has_action_mask=has_action_mask,
        max_episode_steps=source.time_limit,
        return_threshold=source.return_threshold,
        offers_state=VectorState.find(env) is not None,
        is_native=not isinstance(env, (gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv)),
        frames_per_step=source.frames_per_step,
    )


def _first_info(env: AnyVectorEnv, source: EnvSource) -> dict[str, Any]:
    """What a first reset tells beside observations.

    Raises:
        EnvError: it failed.
    """
    try:
        _, info = env.reset(seed=0)
    except Exception as error:
        # The user's reset may raise anything; the traceback stays behind the line as its cause.
        raise EnvError(
            f"environment {source.label}: its first reset failed: {type(error).__name__}: {first_line(error)} "
            f"(an observation must fit {one_line(env.single_observation_space)})"
        ) from error
    return dict(info)
