"""From a name to a recipe for one environment: what `env.id` stands for, and how to make one copy of it.

A recipe is found once, in the process that was asked, and travels to subprocesses whole; so a name that the
user's script registered is known there too.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec as Registration

from qfleet.envs import atari
from qfleet.envs.attributes import set_attributes
from qfleet.envs.config import AtariConfig, EnvConfig, ImageConfig
from qfleet.envs.images import wrap_image
from qfleet.envs.spaces import SingleEnv, adapt_spaces
from qfleet.errors import EnvError, MissingExtraError, UsageError, first_line

EnvFactory = Callable[..., gym.Env[Any, Any]]

# Names whose registration happens on importing a module: how they start or end, and the module.
_REGISTERED_BY = (
    (("qfleet/",), (), "qfleet.envs.toy"),
    (("ALE/",), ("NoFrameskip-v0", "NoFrameskip-v4"), "ale_py"),
    (("MinAtar/",), (), "qfleet.envs.minatar"),
)
# The module that an environment misses, and what installs it.
_INSTALLED_BY = {
    "Box2D": "qfleet[box2d]",
    "ale_py": "qfleet[atari]",
    "cv2": "qfleet[atari]",
    "opencv": "qfleet[atari]",
    "minatar": "qfleet[minatar]",
    "mujoco": "gymnasium[mujoco]",
}


@dataclass(frozen=True)
class EnvSource:
    """How to make one copy of an environment.

    Attributes:
        label: its name in messages and in EnvSpec.env_id.
        registration: Gymnasium's entry, or None where `factory` makes it.
        factory: a callable that takes `kwargs`, or None where Gymnasium makes it.
        kwargs: for the constructor.
        attributes: numbers to set on what it made.
        max_episode_steps: the time limit asked for, None to keep the registered one.
        discretize: values per dimension of a continuous action.
        atari: preprocessing, where it is one of ale-py's games.
        image: preprocessing, where it is another environment with images.
    """

    label: str
    registration: Registration | None
    factory: EnvFactory | None
    kwargs: dict[str, object]
    attributes: dict[str, float]
    max_episode_steps: int | None
    discretize: int | None
    atari: AtariConfig
    image: ImageConfig

    @property
    def is_preprocessed_atari(self) -> bool:
        """Whether it is an Atari game with the field's preprocessing."""
        return atari.is_atari(self.registration) and self.atari.preprocessing

    @property
    def frames_per_step(self) -> int:
        """Frames of the game that one env step shows."""
        if self.is_preprocessed_atari:
            return self.atari.frame_skip
        if atari.is_atari(self.registration):
            assert self.registration is not None
            skip = {**self.registration.kwargs, **self.kwargs}.get("frameskip")
            return skip if isinstance(skip, int) else 1
        return self.image.skip

    @property
    def time_limit(self) -> int | None:
        """The time limit in env steps that is asked for or registered."""
        if self.max_episode_steps is not None:
            return self.max_episode_steps
        if self.is_preprocessed_atari:
            return atari.max_steps(self.atari)
        registered = self.registration.max_episode_steps if self.registration else None
        return None if registered is None else -(-registered // self.image.skip)

    @property
    def return_threshold(self) -> float | None:
        """The return at which the registration calls the environment solved."""
        threshold = self.registration.reward_threshold if self.registration else None
        return None if threshold is None else float(threshold)

    def build(self) -> SingleEnv:
        """A new environment with `fits_unwrapped` spaces.

        Raises:
            MissingExtraError: it needs a package that is not installed.
            UsageError: unknown constructor arguments or attributes, not a gymnasium.Env, or spaces that cannot be
                adapted.
            EnvError: its constructor failed.
        """
        try:
            env = self._construct()
        except (ImportError, gym.error.DependencyNotInstalled) as error:
            raise missing_package(self.label, error) from error
        except TypeError as error:
            if "argument" not in str(error):
                raise EnvError(f"environment {self.label} could not be made: {first_line(error)}") from error
            raise UsageError(
                f"environment {self.label} does not take env.kwargs={self.kwargs}: {first_line(error)}"
            ) from error
        except UsageError:
            raise
        except Exception as error:
            # A user's constructor may raise anything; the traceback stays behind it as the cause.
            message = f"environment {self.label} could not be made: {type(error).__name__}: {first_line(error)}"
            raise EnvError(message) from error
        set_attributes(env, self.attributes, self.label)
        return adapt_spaces(env, self.label, self.discretize)

    def _construct(self) -> SingleEnv:
        if self.is_preprocessed_atari:
            assert self.registration is not None
            self.refuse_for_atari()
            return atari.make_single(self.registration, self.kwargs, self.atari, self.max_episode_steps)
        if self.image == ImageConfig():
            return self._construct_plain(self.max_episode_steps)
        # A time limit inside of the wrappers would count frames.
        env = wrap_image(self._construct_plain(-1), self.image, self.label)
        return env if self.time_limit is None else gym.wrappers.TimeLimit(env, self.time_limit)

    def refuse_for_atari(self) -> None:
        """Check that nothing else is asked for than the Atari preprocessing.

        Raises:
            UsageError: naming the field to set instead.
        """
        atari.check_arguments(self.kwargs, self.label)
        if self.image != ImageConfig():
            raise UsageError(
                f"environment {self.label}: Atari games are preprocessed by [env.atari]; leave [env.image] out, or "
                "--set env.atari.preprocessing=false"
            )

    def _construct_plain(self, time_limit: int | None) -> SingleEnv:
        """As registered or as the factory makes it; a time limit of None is the registered one, -1 none."""
        if self.registration is not None:
            # Checker and order wrapper are for finding mistakes by hand; here they would cost time in every step.
            registration = copy.deepcopy(self.registration)
            registration.order_enforce = False
            made: SingleEnv = gym.make(
                registration, max_episode_steps=time_limit, disable_env_checker=True, **self.kwargs
            )
            if registration.entry_point == "minatar.gym:BaseEnv":
                from qfleet.envs.minatar import SeededGame  # loads minatar

                made = SeededGame(made)
            return made
        assert self.factory is not None
        env: object = self.factory(**self.kwargs)
        if not isinstance(env, gym.Env):
            raise UsageError(f"environment {self.label}: it made a {type(env).__name__}, which is not a gymnasium.Env")
        return env if time_limit in (None, -1) else gym.wrappers.TimeLimit(env, time_limit)


def find_source(config: EnvConfig, factory: EnvFactory | None = None) -> EnvSource:
    """What `config` (or, where given, `factory`) stands for.

    Raises:
        UsageError: no id, an id that nothing registers (with the nearest ones), a module or name that is absent, or
            settings of Atari games for what is none.
        MissingExtraError: the package that registers the id is not installed.
    """
    registration: Registration | None = None
    label = config.id
    if factory is not None:
        label = label or str(getattr(factory, "__qualname__", type(factory).__name__))
    elif label is None:
        raise UsageError("no environment is named; give one, for example CartPole-v1")
    elif ":" in label:
        registration, factory = _find_in_module(label)
    else:
        registration = _find_registered(label)
    asked = ", ".join(f"env.atari.{name}" for name in config.atari.model_dump(exclude_defaults=True))
    if asked and not atari.is_atari(registration):
        raise UsageError(
            f"environment {label}: it is no Atari game, and nothing would read {asked}; leave that out "
            "(preprocessing of other images is [env.image])"
        )
    return EnvSource(
        label,
        registration,
        factory,
        dict(config.kwargs),
        dict(config.attributes),
        config.max_episode_steps,
        config.discretize,
        config.atari,
        config.image,
    )


def missing_package(label: str, error: Exception) -> MissingExtraError:
    """The one line for an environment that needs a package which is not installed.

    Args:
        error: an ImportError, or Gymnasium's DependencyNotInstalled with an ImportError as its cause.
    """
    root = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    module = (getattr(root, "name", None) or "").partition(".")[0]
    install = next((extra for name, extra in _INSTALLED_BY.items() if name.lower() in str(error).lower()), module)
    needs = module or first_line(error)
    return MissingExtraError(f"environment {label} needs {needs}, which is not installed: pip install '{install}'")


def _find_registered(name: str) -> Registration:
    for starts, ends, module in _REGISTERED_BY:
        if name.startswith(starts) or name.endswith(ends):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise missing_package(name, error) from error
    if name not in gym.registry:
        for _, _, module in _REGISTERED_BY:  # so that what they offer can be proposed
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        raise UsageError(f"no environment is called {name!r}{_nearest(name, list(gym.registry))}")
    return gym.spec(name)


def _find_in_module(label: str) -> tuple[Registration | None, EnvFactory | None]:
    module_name, _, name = label.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise UsageError(
            f"environment {label}: cannot import the module {module_name!r} "
            f"({type(error).__name__}: {first_line(error)}); is it installed, or its folder on PYTHONPATH?"
        ) from error
    if name in gym.registry:
        return gym.spec(name), None
    found = getattr(module, name, None)
    if callable(found):
        return None, found
    callables = [key for key, value in vars(module).items() if callable(value)]
    raise UsageError(
        f"environment {label}: importing {module_name} registers no {name!r}, and it holds no callable of that name"
        f"{_nearest(name, [*callables, *gym.registry])}"
    )


def _nearest(name: str, known: list[str]) -> str:
    # A name without its family ("Pong-v5") is near too; where two families have it, the first one counts.
    by_lower = {key.lower().rpartition("/")[2]: key for key in reversed(known)} | {key.lower(): key for key in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(by_lower[key] for key in near)}?" if near else ""
