"""Configuration sections that every run has, and the rule that turns bad input into one clear line.

A section is a frozen pydantic model. Algorithms, strategies, engines, networks and environments keep their own
sections in their own files; `recipe.py` puts all of them together into one RunConfig. Floor 0.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from qfleet.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """One table of a recipe: immutable, and strict about names, types and ranges.

    TOML has no null, so the word "none" stands for it where a field may be None: `max_grad_norm = "none"`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_none(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        optional = {name for name, info in cls.model_fields.items() if NoneType in get_args(info.annotation)}
        return {name: None if name in optional and value == "none" else value for name, value in values.items()}

    @model_serializer(mode="wrap")
    def _write_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        # A None that is left out would come back as the default, so it is left out only where that is None too.
        values: dict[str, object] = handler(self)
        for name, info in type(self).model_fields.items():
            if getattr(self, name) is None and info.default is not None:
                values[name] = "none"
        return values


class ReplayConfig(Section):
    """Replay memory and its pace.

    `samples_per_insert` is the number of transitions trained on per transition inserted, counted from the moment
    that `min_transitions` are in; it holds over all shards. `store_frames_once` "auto" does so where an observation
    looks like a stack of frames: uint8 [K, H, W] with K smaller than H and W, at least 2 and not 3. `directory` holds
    observations in a file without a name instead of memory, `compression` keeps frames compressed.
    """

    capacity: PositiveInt = 100_000
    store_frames_once: bool | Literal["auto"] = "auto"
    directory: str | None = None
    compression: Literal["lz4"] | None = None
    sampler: Literal["uniform", "prioritized"] = "uniform"
    samples_per_insert: PositiveFloat = 8.0
    min_transitions: PositiveInt = 1_000
    priority_exponent: Fraction = 0.6
    importance_exponent_start: Fraction = 0.4
    importance_exponent_end: Fraction = 1.0
    importance_anneal_updates: PositiveInt = 100_000


class EvaluationConfig(Section):
    """Validation during training, and the held-out score at the end; both greedy, on complete episodes.

    `num_envs` None takes one environment per episode where the environment has its own vector version, else at most 16.
    `max_episode_steps` is the time limit of an evaluation episode where the environment has none, so that a policy
    that never ends an episode cannot hold up a run.
    """

    every_env_steps: PositiveInt = 10_000
    episodes: PositiveInt = 20
    final_episodes: PositiveInt = 100
    num_envs: PositiveInt | None = None
    max_episode_steps: PositiveInt = 27_000


class StopConfig(Section):
    """When a run ends: at the first limit that is met.

    `until_return` is a number, "registered" (the threshold in the environment's registration, if it has one) or
    "never". A validation that reaches it is confirmed on `confirm_episodes` fresh validation episodes, and counts when
    mean - `confirm_stderr` standard errors is still at or above the target.
    """

    until_return: FiniteFloat | Literal["registered", "never"] = "registered"
    confirm_episodes: PositiveInt = 100
    confirm_stderr: NonNegativeFloat = 1.0
    max_env_steps: PositiveInt | None = 100_000
    max_updates: PositiveInt | None = None
    max_seconds: PositiveFloat | None = None


class CheckpointConfig(Section):
    """Scheduled checkpoints. One is always written at the end and at an interrupt."""

    every_env_steps: PositiveInt = 50_000
    keep: PositiveInt = 2


class LoggingConfig(Section):
    """How often a line goes to metrics.jsonl and TensorBoard, and where else it goes; see remote_logs.py."""

    every_env_steps: PositiveInt = 1_000
    tensorboard: bool = True
    wandb: str | None = None
    mlflow: str | None = None


class InitConfig(Section):
    """What a new run starts from; `from` is a run directory whose best policy gives the first weights."""

    from_run: str | None = Field(default=None, alias="from")


SectionType = TypeVar("SectionType", bound=BaseModel)
MAX_SHOWN = 100  # characters of a whole table that a message shows


def parse_section(cls: type[SectionType], data: Mapping[str, object], where: str) -> SectionType:
    """Validate one table.

    Args:
        cls: the section's class.
        data: its raw values.
        where: dotted name of the table, for the message ("algo", "replay"; "" at the top).

    Raises:
        ConfigError: naming the field, the value and the fix.
    """
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(explain(error, cls, where)) from None


def explain(error: ValidationError, cls: type[BaseModel], where: str) -> str:
    """The first problem of a pydantic error as one line: field, value, fix."""
    problems = error.errors(include_url=False)
    # A name that is wrong explains why the right one is missing, not the other way round.
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    section, path, rest = cls, [where] if where else [], list(problem["loc"])
    while rest:
        part = str(rest.pop(0))
        names = {info.alias or name: name for name, info in section.model_fields.items()}
        path.append(part)
        if part not in names:
            break  # an unknown field; anything after a leaf field is a union's tag, which says nothing to a user
        inner = section.model_fields[names[part]].annotation
        if get_origin(inner) is dict and rest:
            path.append(repr(rest[0]))  # whose value it is
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        section = inner
    field, value = ".".join(path), problem["input"]
    if problem["type"] == "extra_forbidden":
        names_here = [info.alias or name for name, info in section.model_fields.items()]
        return f"{field} = {value!r}: no such field; {did_you_mean(path[-1], names_here)}"
    if problem["type"] == "missing":
        if rest:  # of a tuple
            return f"{field} = {value!r}: it takes more values"
        return f"{field}: this field is required"
    message = problem["msg"].removeprefix("Value error, ").replace("valid dictionary", "table")
    shown = f" = {value!r}" if not isinstance(value, dict) or len(repr(value)) < MAX_SHOWN else ""
    return f"{field}{shown}: {message[:1].lower()}{message[1:]}"


def did_you_mean(name: str, candidates: list[str]) -> str:
    """A hint: the nearest valid name, or all of them where none is near."""
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return "valid names: " + ", ".join(sorted(candidates))
