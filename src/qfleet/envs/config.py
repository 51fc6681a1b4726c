"""The `[env]` part of a run's configuration: which environment, how many copies, how they are stepped.

`make.py` reads every field here; nothing else does. Floor 2, the start of a transition's path.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from qfleet.config import Fraction, NonNegativeInt, PositiveInt, Section

Vectorization = Literal["auto", "native", "sync", "subprocess"]
Autoreset = Literal["auto", "next_step", "same_step"]


class AtariConfig(Section):
    """The field's preprocessing of Atari games (Mnih et al. 2015; Machado et al. 2018); refused elsewhere.

    Attributes:
        preprocessing: False leaves a game as it is registered: 210 x 160 in colour, with `env.kwargs`.
        frame_skip: frames of the emulator in one env step; the last two are merged by their maximum.
        stack: newest frames in one observation, oldest first; black ones before an episode's first.
        size: width and height of an observation in pixels, gray.
        noop_max: an episode begins with 0 to this many no-ops (1 to this many where each copy steps alone).
        fire_reset: an episode begins with FIRE where the game has it, for those that wait for it.
        sticky_actions: the chance that a frame repeats the action before; "registered" is 0.25 for ALE/*-v5, 0 for
            NoFrameskip-v4.
        life_loss: whether a lost life is a termination to learn from. The game goes on, and its return is of all lives.
        full_action_space: all 18 actions of the console instead of those that the game reads.
        num_threads: threads of ale-py's own vector version; "auto" is as many as torch has in this process.
    """

    preprocessing: bool = True
    frame_skip: PositiveInt = 4
    stack: PositiveInt = 4
    size: PositiveInt = 84
    noop_max: NonNegativeInt = 30
    fire_reset: bool = True
    sticky_actions: Fraction | Literal["registered"] = "registered"
    life_loss: bool = False
    full_action_space: bool = False
    num_threads: PositiveInt | Literal["auto"] = "auto"


class ImageConfig(Section):
    """Preprocessing of other environments with images: uint8 [H, W] or [H, W, 3]. By default there is none.

    Attributes:
        size: width and height in pixels; None leaves them.
        gray: colour to gray.
        stack: newest frames in one observation, oldest first, as [stack, H, W], or [3 * stack, H, W] in colour.
        skip: how often an action is repeated; the rewards are summed, the newest frame is observed.
    """

    size: PositiveInt | None = None
    gray: bool = False
    stack: PositiveInt = 1
    skip: PositiveInt = 1


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
        atari: preprocessing of Atari games.
        image: preprocessing of other environments with images.
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
    atari: AtariConfig = AtariConfig()
    image: ImageConfig = ImageConfig()
