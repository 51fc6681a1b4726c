"""Variants of one environment: what a federated client's own one has different from the run's.

A change is named shortly ({"length": 1.0}); here it is found out whether it is a field of [env], an argument of the
environment's constructor or one of its numbers. Floor 2, beside the start of a transition's path.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from gymnasium.envs.registration import load_env_creator

from qfleet.config import parse_section
from qfleet.envs.config import EnvConfig
from qfleet.envs.source import EnvFactory, EnvSource, find_source
from qfleet.errors import ConfigError


def vary(config: EnvConfig, changes: Mapping[str, object], where: str, factory: EnvFactory | None = None) -> EnvConfig:
    """`config` with changes.

    Args:
        config: the run's environment.
        changes: by name: a field of [env] ("num_envs"; "kwargs" and "attributes" are merged), else an argument of the
            constructor, else a number of the environment, as `env.attributes` sets them.
        where: the field that the changes stand in, for messages.
        factory: a callable that makes the environment, instead of `config.id`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
        UsageError: the environment is unknown. Whether it has such a number shows when it is made.
    """
    fields = {name: value for name, value in changes.items() if name in EnvConfig.model_fields}
    others = {name: value for name, value in changes.items() if name not in fields}
    tables: dict[str, dict[str, object]] = {"kwargs": dict(config.kwargs), "attributes": dict(config.attributes)}
    for name, table in tables.items():
        change = fields.pop(name, {})
        if not isinstance(change, dict):
            raise ConfigError(f"{where}.{name} = {change!r}: this is a table")
        table.update(change)
    source = find_source(config, factory)
    for name, value in others.items():
        if _constructor_takes(source, name):
            tables["kwargs"][name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            tables["attributes"][name] = value
        else:
            raise ConfigError(
                f"{where}.{name} = {value!r}: neither a field of [env] nor an argument of {source.label}'s "
                "constructor, and its attributes take numbers"
            )
    return parse_section(EnvConfig, {**config.model_dump(), **fields, **tables}, where)


def _constructor_takes(source: EnvSource, name: str) -> bool:
    creator = source.factory if source.registration is None else source.registration.entry_point
    try:
        found = load_env_creator(creator) if isinstance(creator, str) else creator
        return found is not None and name in inspect.signature(found).parameters
    except (ImportError, AttributeError, TypeError, ValueError):
        return False  # making it will say what is wrong
