"""The `[env]` part of a run's configuration: which environment, how many copies, how they are stepped.

`make.py` reads every field here; nothing else does. Floor 2, the start of a transition's path.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from qfleet.config import Section

Vectorization = Literal["auto", "native", "sync", "subprocess"]
Autoreset = Literal["auto", "next_step", "same_step"]


class EnvConfig(Section):
    """Which environment to train on, and how to step many copies of it.

    Attributes:
        id: a registered Gymnasium name ("CartPole-v1"), one behind a module that registers it
            ("my_package:MyEnv-v0"), or a callable that returns an environment ("my_package.module:MyEnv").
            None leaves it open, for a recipe that takes the environment from the command line.
        kwargs: keyword arguments for the environment's constructor.
        attributes: numbers of the unwrapped environment that are set once it is made, such as CartPole's `length` and
            `gravity`; what CartPole computes from them follows.
        num_envs: environments stepped together by one role.
        vectorization: "native" is the environment's own vector version, "sync" steps one copy after the other
            in this process, "subprocess" gives each copy a process, "auto" is native where it fits, else sync.
        autoreset: which Gymnasium autoreset mode to ask for. "auto" is the native version's own, else same_step,
            which wastes no step on resetting. Training sees the same transitions in each.
        max_episode_steps: time limit in env steps, instead of the registered one; None keeps the registered one.
        discretize: number of evenly spaced values per dimension of a continuous (Box) action.
        reward_scale: the training reward is the environment's times this; episode returns stay raw.
        reward_clip: the scaled training reward is then clipped to [-reward_clip, reward_clip].
    """

    id: str | None = None
    kwargs: dict[str, object] = Field(default_factory=dict)
    attributes: dict[str, FiniteFloat] = Field(default_factory=dict)
    num_envs: int = Field(default=16, ge=1)
    vectorization: Vectorization = "auto"
    autoreset: Autoreset = "auto"
    max_episode_steps: int | None = Field(default=None, ge=1)
    discretize: int | None = Field(default=None, ge=2)
    reward_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    reward_clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
