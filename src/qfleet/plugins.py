"""Which algorithms, strategies and engines there are, and which pairs fit.

They are found by module name, so adding a file adds a choice; each brings its own section of a configuration. Floor 6.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from qfleet.config import (
    did_you_mean,
)
from qfleet.errors import ConfigError

PLUGIN_SECTIONS = {
    "algo": ("qfleet.algos", "dqn"),
    "strategy": ("qfleet.strategies", "serial"),
    "engine": ("qfleet.engines", "inline"),
}


def list_plugins(section: str) -> list[str]:
    """Names that [algo], [strategy] or [engine] may take: the modules in that folder."""
    package = importlib.import_module(PLUGIN_SECTIONS[section][0])
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name != "base")


def load_plugin(section: str, name: str) -> ModuleType:
    """The module of an algorithm, strategy or engine.

    Raises:
        ConfigError: there is none of this name.
    """
    names = list_plugins(section)
    if name not in names:
        raise ConfigError(f"{section}.name = {name!r}: no such {section}; {did_you_mean(name, names)}")
    return importlib.import_module(f"{PLUGIN_SECTIONS[section][0]}.{name}")


def fits(strategy: ModuleType, algorithm: ModuleType) -> bool:
    """Whether a strategy can train an algorithm.

    A strategy's module may define `fits(Algorithm)`, or NEEDS, the kinds of data it can give an algorithm to learn
    from ({"replay"} unless it says otherwise); `Algorithm.learns_from` names the one that the algorithm takes.
    """
    check = getattr(strategy, "fits", None)
    if check is not None:
        return bool(check(algorithm.Algorithm))
    return learns_from(algorithm) in getattr(strategy, "NEEDS", frozenset({"replay"}))


def learns_from(algorithm: ModuleType) -> str:
    """ "replay", "rollouts" or "trajectories"; see algos/base.py."""
    return str(getattr(algorithm.Algorithm, "learns_from", "replay"))
