"""A run's whole configuration: raw tables and the user's overrides, checked.

Algorithms, strategies and engines bring their own sections (plugins.py). Floor 6.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping
from types import ModuleType
from typing import Literal

import tomli_w
from pydantic import SerializeAsAny, field_validator

from qfleet.algos.base import AlgorithmConfig, RolloutConfig
from qfleet.config import (
    CheckpointConfig,
    EvaluationConfig,
    InitConfig,
    LoggingConfig,
    NonNegativeInt,
    PositiveInt,
    ReplayConfig,
    Section,
    StopConfig,
    parse_section,
)
from qfleet.engines.base import EngineConfig
from qfleet.envs.config import EnvConfig
from qfleet.errors import ConfigError, UsageError
from qfleet.networks.torso import NetworkConfig
from qfleet.plugins import PLUGIN_SECTIONS, fits, learns_from, list_plugins, load_plugin
from qfleet.roles.blueprint import pace_of
from qfleet.strategies.base import StrategyConfig

# Tables that a plain word may stand for: `--set network=my.nets:MyNet` sets network.kind.
SHORTHANDS = {
    "env": "id",
    "algo": "name",
    "strategy": "name",
    "engine": "name",
    "network": "kind",
    "algo.optimizer": "name",
    "algo.exploration": "kind",
    "init": "from",
}
# What may change when a run is resumed: where it runs and on how many roles, never what is learned.
RESUMABLE = frozenset({"stop", "checkpoint", "logging", "device", "num_threads", "engine"})
RESUMABLE_COUNTS = frozenset(
    {
        "num_workers",
        "num_servers",
        "num_shards",
        "num_learners",
        "max_restarts",
        "max_restarts_per_minute",
        "worker_cpus",
        "worker_gpus",
        "worker_resources",
    }
)


# By section, what decides nothing where an algorithm learns from rollouts instead of replay.
UNREAD_BY_ROLLOUTS = {"replay": frozenset(ReplayConfig.model_fields), "strategy": frozenset({"collect_steps"})}


class RunConfig(Section):
    """All of a run. `device` is cpu, cuda or auto; `num_threads` is torch's per process, "auto" by kind of network."""

    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: PositiveInt | Literal["auto"] = "auto"
    env: EnvConfig = EnvConfig()
    algo: SerializeAsAny[AlgorithmConfig]
    network: NetworkConfig = NetworkConfig()
    strategy: SerializeAsAny[StrategyConfig]
    engine: SerializeAsAny[EngineConfig]
    replay: ReplayConfig = ReplayConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    stop: StopConfig = StopConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    init: InitConfig = InitConfig()

    @field_validator("replay")
    @classmethod
    def _room_before_start(cls, value: ReplayConfig) -> ReplayConfig:
        if value.min_transitions > value.capacity:
            raise ValueError(f"min_transitions {value.min_transitions} is above capacity {value.capacity}")
        return value

    @property
    def pace(self) -> ReplayConfig:
        """The replay section as the algorithm takes it: one rollout of its own, where it learns from rollouts."""
        return pace_of(self.algo, self.replay, self.env.num_envs)

    def learning_sha256(self) -> str:
        """Digest of the settings that a resumed run must share: all but those that `is_resumable` allows to change.

        Values that are defaults stay out, so that a field which a later version adds does not orphan older runs.
        """
        values = self.model_dump(mode="json", by_alias=True, exclude=set(RESUMABLE), exclude_defaults=True)
        values["strategy"] = {name: value for name, value in values["strategy"].items() if name not in RESUMABLE_COUNTS}
        values["engine"] = {}  # as inline had it when an engine was still a part of this
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The complete configuration, but for what its algorithm does not read; reading it back gives an equal one."""
        unread = UNREAD_BY_ROLLOUTS if isinstance(self.algo, RolloutConfig) else {}
        exclude = {section: set(fields) for section, fields in unread.items()}
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=exclude)
        return tomli_w.dumps({name: value for name, value in values.items() if value != {} or name not in unread})


def build_config(
    values: dict[str, object], overrides: list[tuple[str, object]], *, is_read_back: bool = False
) -> RunConfig:
    """Check a recipe's tables with the user's overrides on top.

    Args:
        values: raw tables.
        overrides: dotted names and values, applied in order.
        is_read_back: the tables are of a run, not of a user: they may hold defaults that its algorithm does not read.

    Raises:
        ConfigError: naming the field, the value and the fix.
    """
    raw, written = copy.deepcopy(values), {} if is_read_back else copy.deepcopy(values)
    for key, value in overrides:
        apply_override(raw, key, value)
        apply_override(written, key, value)
    modules: dict[str, ModuleType] = {}
    for section, (_, default) in PLUGIN_SECTIONS.items():
        table = raw.get(section, {})
        table = {"name": table} if isinstance(table, str) else table
        if not isinstance(table, dict):
            raise ConfigError(f"{section} = {table!r}: this is a table, or a name")
        modules[section] = load_plugin(section, str(table.get("name", default)))
        raw[section] = parse_section(modules[section].Config, table, section)
    if isinstance(raw["algo"], RolloutConfig) and fits(modules["strategy"], modules["algo"]):
        _refuse_unread(raw["algo"].name, written)
    if isinstance(raw.get("network"), str):
        raw["network"] = {"kind": raw["network"]}
    return parse_section(RunConfig, raw, "")


def change_config(config: RunConfig, overrides: list[tuple[str, object]]) -> RunConfig:
    """A complete configuration with dotted names changed, checked again.

    Another algorithm, strategy or engine begins with its own defaults.

    Raises:
        ConfigError: naming the field, the value and the fix.
    """
    raw = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    for key, value in overrides:
        section = key.removesuffix(".name")
        if section in PLUGIN_SECTIONS and raw[section]["name"] != value:
            raw[section] = {"name": value}
    return build_config(raw, overrides, is_read_back=True)


def is_resumable(key: str) -> bool:
    """Whether a dotted name may change when a run is resumed."""
    section, _, name = key.partition(".")
    return section in RESUMABLE or (section == "strategy" and name.split(".")[0] in RESUMABLE_COUNTS)


def check_fit(config: RunConfig) -> None:
    """Refuse an algorithm that the strategy cannot train, and fields that have no meaning for it.

    Raises:
        UsageError: naming the pairs that fit.
        ConfigError: naming the field and what takes its place.
    """
    algo, strategy = config.algo.name, config.strategy.name
    algorithm = load_plugin("algo", algo)
    if fits(load_plugin("strategy", strategy), algorithm):
        _check_unread(config)
        return
    strategies = {name: load_plugin("strategy", name) for name in list_plugins("strategy")}
    algorithms = {name: load_plugin("algo", name) for name in list_plugins("algo")}
    pairs = [
        f"{one} x {other}"
        for one, its in algorithms.items()
        for other, module in strategies.items()
        if (one == algo or other == strategy) and fits(module, its)
    ]
    raise UsageError(
        f"--algo {algo} does not fit --strategy {strategy}: {algo} learns from {learns_from(algorithm)}; "
        f"pairs that fit: {', '.join(pairs) or 'none'}"
    )


def _check_unread(config: RunConfig) -> None:
    """Where an algorithm learns from rollouts, these decide nothing: nobody should believe that they do."""
    if not isinstance(config.algo, RolloutConfig):
        return
    changed: dict[str, object] = {}
    for section, fields in UNREAD_BY_ROLLOUTS.items():
        values = getattr(config, section)
        infos = {name: info for name, info in type(values).model_fields.items() if name in fields}
        changed[section] = {n: getattr(values, n) for n, info in infos.items() if getattr(values, n) != info.default}
    _refuse_unread(config.algo.name, changed)
    _ = config.pace  # raises where a rollout cannot be cut into its minibatches


def _refuse_unread(algo: str, tables: Mapping[str, object]) -> None:
    """Raise for the first field in these tables that an algorithm which learns from rollouts does not read."""
    for section, fields in UNREAD_BY_ROLLOUTS.items():
        table = tables.get(section)
        for field, value in table.items() if isinstance(table, dict) else ():
            if field not in fields:
                continue
            fix = "collects whole rollouts; leave it out"
            if section == "replay":
                fix = "learns from rollouts and keeps no replay; leave [replay] out"
            raise ConfigError(f"{section}.{field} = {value!r}: {algo} {fix} and set algo.rollout_steps")


def apply_override(raw: dict[str, object], key: str, value: object) -> None:
    """Set one dotted name in raw tables, in place."""
    if key in SHORTHANDS and isinstance(value, str):
        key = f"{key}.{SHORTHANDS[key]}"
    *path, last = key.split(".")
    table = raw
    for part in path:
        found = table.get(part)
        inner: dict[str, object] = found if isinstance(found, dict) else {}
        if isinstance(found, str):  # a shorthand in the recipe itself
            inner = {SHORTHANDS.get(part, "name"): found}
        table[part] = inner
        table = inner
    table[last] = value


def parse_override(text: str) -> tuple[str, object]:
    """`key=value` from the command line; the value is TOML where it can be read so, else a string.

    Raises:
        UsageError: there is no "=" or no key.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: write key=value, for example --set algo.learning_rate=0.001")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
