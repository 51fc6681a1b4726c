"""Recipes: named starting points, TOML files that come with qfleet or are the user's. Floor 6."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from qfleet.config import did_you_mean
from qfleet.envs.make import probe_spec
from qfleet.envs.source import EnvFactory
from qfleet.errors import UsageError
from qfleet.plugins import PLUGIN_SECTIONS, learns_from, load_plugin
from qfleet.run_config import RunConfig, build_config


@dataclass(frozen=True, slots=True)
class Family:
    """Environments that share recipes, called `<name>-<what it is>`.

    Attributes:
        name: what the recipes' names begin with.
        starts, ends: how the environments' ids start, or end.
        default: the recipe that is taken where none is named.
    """

    name: str
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    default: str


FAMILIES = (
    Family("atari", ("ALE/",), ("NoFrameskip-v0", "NoFrameskip-v4"), "atari-pqn"),
    Family("minatar", ("MinAtar/",), (), "minatar-dqn"),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named starting point.

    Attributes:
        name: file name without .toml.
        summary: its first comment line.
        values: raw tables.
        text: the TOML as it was written.
    """

    name: str
    summary: str
    values: dict[str, object]
    text: str

    @property
    def env_id(self) -> str | None:
        """The environment it was made for, None if it leaves that open."""
        env = self.values.get("env", {})
        value = env.get("id") if isinstance(env, dict) else None
        return str(value) if value is not None else None

    @property
    def algo(self) -> str:
        """The algorithm that it sets."""
        table = self.values.get("algo", {})
        return str(table.get("name", PLUGIN_SECTIONS["algo"][1]) if isinstance(table, dict) else table)

    @property
    def fits(self) -> str:
        """The environments that it is made for, in words: an id, a family's, or any."""
        patterns = [f"{family.starts[0]}*" for family in FAMILIES if self.name.startswith(f"{family.name}-")]
        return self.env_id or (patterns[0] if patterns else "any environment")


def list_recipes() -> list[Recipe]:
    """The recipes that come with qfleet."""
    folder = resources.files("qfleet.recipes")
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=lambda path: path.name)
    return [_parse_recipe(path.name.removesuffix(".toml"), path.read_text("utf-8")) for path in paths]


def find_recipe(name: str, env_id: str | None = None) -> Recipe:
    """A recipe by name, or by the path of a TOML file.

    Args:
        env_id: the environment; for one of a family `rainbow` is that family's, `atari-rainbow`, where it has one.

    Raises:
        UsageError: no such recipe, no such file, or not TOML.
    """
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    family = family_of(env_id or "")
    if family is not None and f"{family.name}-{name}" in recipes:
        return recipes[f"{family.name}-{name}"]
    if name in recipes:
        return recipes[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise UsageError(f"recipe {name!r}: no such recipe; {did_you_mean(name, list(recipes))} (or give a .toml file)")
    try:
        return _parse_recipe(path.stem, path.read_text("utf-8"), where=name)
    except OSError as error:
        raise UsageError(f"recipe {name}: {error.strerror or error}") from None


def recipe_for_env(env_id: str, algo: str | None = None) -> Recipe | None:
    """The recipe made for this environment, else its family's: with `algo`, with one that learns alike, the default."""
    recipes = list_recipes()
    own = next((recipe for recipe in recipes if recipe.env_id == env_id), None)
    family = family_of(env_id)
    if own is not None or family is None:
        return own
    of_family = [recipe for recipe in recipes if recipe.name.startswith(f"{family.name}-")]
    of_family.sort(key=lambda recipe: recipe.name != family.default)  # the default one first
    if algo is None:
        return of_family[0]
    named = [recipe for recipe in of_family if recipe.name == f"{family.name}-{algo}"]
    like = named or [recipe for recipe in of_family if recipe.algo == algo]
    alike = like or [recipe for recipe in of_family if _learns_from(recipe.algo) == _learns_from(algo)]
    return (alike or of_family)[0]


def choose_recipe(
    env_id: str, name: str | None, overrides: list[tuple[str, object]], env: EnvFactory | None = None
) -> Recipe:
    """The recipe named, else the environment's own or its family's, else the default for its observations.

    What was not named is fitted to the algorithm in `overrides`, see `fit_to`.

    Args:
        env_id: the environment.
        name: recipe name or TOML file.
        overrides: dotted names and values; those of env.* matter for the probe.
        env: a callable that makes the environment.
    """
    if name is not None:
        return find_recipe(name, env_id)
    algo = next((str(value) for key, value in reversed(overrides) if key in ("algo", "algo.name")), None)
    own = recipe_for_env(env_id, algo) if env is None else None
    if own is None:
        of_env = [(key, value) for key, value in overrides if key.startswith("env.")]
        spec = probe_spec(build_config({}, [("env.id", env_id), *of_env]).env, env)
        own = find_recipe("image" if len(spec.obs_shape) >= 2 and spec.obs_dtype == "uint8" else "vector")
    return own if algo is None else fit_to(own, algo)


def fit_to(recipe: Recipe, algo: str) -> Recipe:
    """A recipe that the user did not name, for the algorithm that they did.

    Where its [algo] has fields that the algorithm lacks, that table and [replay] are another algorithm's: without them
    this one begins with its own defaults.
    """
    table = recipe.values.get("algo", {})
    if not isinstance(table, dict) or set(table) <= set(load_plugin("algo", algo).Config.model_fields):
        return recipe
    values = {section: table for section, table in recipe.values.items() if section not in ("algo", "replay")}
    return replace(recipe, name=f"{recipe.name} without its [algo] and [replay]", values=values)


def family_of(env_id: str) -> Family | None:
    """The family of an environment, None if it has none; a module that registers it may stand before it."""
    name = env_id.rpartition(":")[2]
    return next((family for family in FAMILIES if name.startswith(family.starts) or name.endswith(family.ends)), None)


def _learns_from(algo: str) -> str:
    return learns_from(load_plugin("algo", algo))


def read_config(path: Path) -> RunConfig:
    """A run's config.toml.

    Raises:
        UsageError, ConfigError: missing, not TOML, or not valid.
    """
    return build_config(find_recipe(str(path)).values, [], is_read_back=True)


def _parse_recipe(name: str, text: str, where: str | None = None) -> Recipe:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {where or name}: not TOML: {error}") from None
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    return Recipe(name, first.removeprefix("#").strip() if first.startswith("#") else "", values, text)
