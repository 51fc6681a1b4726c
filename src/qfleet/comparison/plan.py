"""What is to be compared: variants, seeds and a budget become cells in the order in which they run.

    parameter_server:wait=async          a variant: a strategy, then its settings, each after a colon
    A seed 0, B seed 0, A seed 1, ...    the cells: in turn, so that drift of the machine hits all alike

Everything that a user can get wrong is refused here, before anything runs. Floor 7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qfleet.config import did_you_mean
from qfleet.errors import UsageError
from qfleet.experiment import Experiment
from qfleet.machine import choose_device
from qfleet.placement.cluster_file import read_cluster
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint
from qfleet.recipe import Recipe, choose_recipe, fit_to, list_recipes
from qfleet.replay.memory import check_memory
from qfleet.roles.blueprint import replay_bytes
from qfleet.run_config import RunConfig, build_config, change_config, parse_override
from qfleet.schedule import target_return

RUNS_NAME = "runs"
BUDGETS = {"env_steps": "max_env_steps", "updates": "max_updates", "seconds": "max_seconds"}
# What variants may differ in; the rest is the same for all of them, else they would not be compared in one thing.
OWN_SECTIONS = frozenset({"strategy", "algo", "engine", "network", "replay"})


@dataclass(frozen=True, slots=True)
class Budget:
    """What each cell may use up: `amount` of "env_steps", "updates" or "seconds" (of training)."""

    kind: str
    amount: float

    def stop_settings(self) -> list[tuple[str, object]]:
        """The stop rule of a cell: this limit only. A target ends no cell, else the curves would end there."""
        amount = self.amount if self.kind == "seconds" else int(self.amount)
        limits = {name: amount if kind == self.kind else "none" for kind, name in BUDGETS.items()}
        return [("stop.until_return", "never"), *((f"stop.{name}", value) for name, value in limits.items())]

    def __str__(self) -> str:
        return f"{self.amount:,g} {self.kind.replace('_', ' ')}"


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the things compared.

    Attributes:
        label: what it is called in tables and pictures; with one algorithm the strategy as it was asked for.
        folder: its folder's name.
        config: of its first seed, the budget included.
    """

    label: str
    folder: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the comparison: a variant with a seed."""

    variant: Variant
    seed: int
    run_dir: Path

    @property
    def config(self) -> RunConfig:
        """The cell's own configuration."""
        return change_config(self.variant.config, [("seed", self.seed)])


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for.

    Attributes:
        env: environment id, or a recipe that names its environment.
        strategies: as `parse_strategies` takes them.
        algos: names; empty for the recipe's own.
        num_seeds: how many, from the recipe's seed on.
        budget: as `parse_budget` takes it; None for the env steps of the recipe.
        engine, recipe: None for the environment's own.
        num_workers: of each strategy that has workers; None for the recipe's.
        overrides: dotted names and values, for all variants.
    """

    env: str
    strategies: str
    algos: str | None = None
    num_seeds: int = 5
    budget: str | None = None
    engine: str | None = None
    recipe: str | None = None
    num_workers: int | None = None
    overrides: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked request.

    Attributes:
        env: environment id.
        variants, seeds, budget: see Request.
        threshold: the return to reach, None without one.
        out: the comparison's folder.
        recipe: the name of what all configurations began with.
    """

    env: str
    variants: list[Variant]
    seeds: list[int]
    budget: Budget
    threshold: float | None
    out: Path
    recipe: str

    def cells(self) -> Iterator[Cell]:
        """Every run, in the order in which they run: the first seed of each variant, then the second of each."""
        for seed in self.seeds:
            for variant in self.variants:
                yield Cell(variant, seed, self.out / RUNS_NAME / variant.folder / f"seed-{seed}")


def make_plan(request: Request, out: Path) -> Plan:
    """Check a request: names, fields, pairs, the environment, networks and devices.

    Raises:
        UsageError, ConfigError: one line, naming what is wrong.
    """
    choices = parse_strategies(request.strategies)
    algos = ["" if request.algos is None else name for name in _split(request.algos or "dqn", "--algos", "dqn,c51")]
    _check_overrides(request.overrides, [name for name, _ in choices])
    _check_workers(request.num_workers, [name for name, _ in choices])
    env_id, recipe = starting_point(request)
    variants: list[Variant] = []
    spec, budget = None, None
    for algo in algos:
        for strategy, settings in choices:
            config = configure(request, env_id, recipe, algo, strategy, settings)
            budget = budget or _budget_of(request, config)
            label = ":".join([strategy, *(f"{key}={value}" for key, value in settings.items())])
            label = f"{algo} x {label}" if len(algos) > 1 else label
            experiment = Experiment(change_config(config, budget.stop_settings()), out)
            spec = experiment.spec
            read_cluster(getattr(config.engine, "cluster", None))  # refuse a wrong file before anything runs
            # Refuse what would not fit this machine, or these observations.
            check_memory(config.replay.capacity, replay_bytes(config.replay, spec))
            make_blueprint(config, spec, choose_device(config.device, spec)).build_network(trainable=False)
            variants.append(_distinct(label, experiment.config, variants))
    assert spec is not None
    assert budget is not None
    seeds = list(range(config.seed, config.seed + request.num_seeds))
    return Plan(env_id, variants, seeds, budget, target_return(config, spec), out, recipe.name)


def parse_strategies(text: str) -> list[tuple[str, dict[str, object]]]:
    """`serial,parameter_server:wait=async:num_servers=2` as names with their settings, by dotted name.

    A setting without a dot is a field of the strategy; one with a dot is any other field in which variants may differ,
    such as algo.learning_rate. A value is TOML where it can be read so, else a string.

    Raises:
        UsageError: not of this form, or a field that has to be the same for all.
        ConfigError: no such strategy.
    """
    found: list[tuple[str, dict[str, object]]] = []
    for variant in _split(text, "--strategies", "serial,parameter_server:wait=async"):
        name, *pieces = variant.split(":")
        load_plugin("strategy", name)
        settings: dict[str, object] = {}
        for piece in pieces:
            if "=" not in piece.strip("= "):
                raise UsageError(
                    f"--strategies {variant}: {piece!r} is no setting; write {name}:key=value, "
                    "for example parameter_server:wait=async"
                )
            key, value = parse_override(piece)
            section = key.partition(".")[0]
            if "." in key and section not in OWN_SECTIONS:
                names = ", ".join(sorted(OWN_SECTIONS))
                raise UsageError(
                    f"--strategies {variant}: {key} is the same for all variants, give it with --set; they may differ "
                    f"in {names}"
                )
            settings[key.removeprefix("strategy.")] = value
        found.append((name, settings))
    return found


def parse_budget(text: str) -> Budget:
    """`env_steps=20000`, `updates=1e4` or `seconds=30`.

    Raises:
        UsageError: another kind, or not a positive amount.
    """
    kind, equals, amount = text.partition("=")
    kind = kind.strip()
    if not equals:
        raise UsageError(f"--budget {text}: write kind=amount, for example --budget env_steps=20000")
    if kind not in BUDGETS:
        raise UsageError(f"--budget {text}: no budget is called {kind!r}; {did_you_mean(kind, list(BUDGETS))}")
    try:
        value = float(amount)
    except ValueError:
        raise UsageError(f"--budget {text}: {amount!r} is not a number") from None
    is_whole = kind == "seconds" or value.is_integer()
    if not (0 < value < float("inf") and is_whole):
        raise UsageError(f"--budget {text}: {amount} is not a positive {'number' if kind == 'seconds' else 'integer'}")
    return Budget(kind, value)


def starting_point(request: Request) -> tuple[str, Recipe]:
    """The environment's id, and the recipe to start from."""
    named = next((one for one in list_recipes() if one.name == request.env and one.env_id), None)
    if request.recipe is None and named is not None:
        return str(named.env_id), named
    return request.env, choose_recipe(request.env, request.recipe, list(request.overrides.items()))


def configure(
    request: Request, env_id: str, recipe: Recipe, algo: str, strategy: str, settings: dict[str, object]
) -> RunConfig:
    """A variant's configuration but for its budget: what `qfleet train` would make of the same options.

    What the recipe or --set says of a strategy holds for the variants that it fits, and a variant has the last word.
    """
    values = dict((fit_to(recipe, algo) if algo and request.recipe is None else recipe).values)
    table = values.get("strategy", {})
    if isinstance(table, dict) and table.get("name", "serial") != strategy:
        values["strategy"] = {}
    names = load_plugin("strategy", strategy).Config.model_fields
    changes: list[tuple[str, object]] = [("env.id", env_id), ("strategy.name", strategy)]
    changes += [("algo.name", algo)] if algo else []
    changes += [("engine.name", request.engine)] if request.engine is not None else []
    if request.num_workers is not None and "num_workers" in names:
        changes.append(("strategy.num_workers", request.num_workers))
    for key, value in request.overrides.items():
        section, _, rest = key.partition(".")
        if section != "strategy" or rest.split(".")[0] in names:
            changes.append((key, value))
    changes += [(key if "." in key else f"strategy.{key}", value) for key, value in settings.items()]
    return build_config(values, changes)


def _check_overrides(overrides: dict[str, object], strategies: list[str]) -> None:
    """Refuse in --set what other options say, and a field of a strategy that none of those compared has."""
    own = {"strategy": "--strategies", "strategy.name": "--strategies", "algo": "--algos", "algo.name": "--algos"}
    own |= {f"stop.{name}": f"--budget {kind}=..." for kind, name in BUDGETS.items()}
    names = {name for strategy in strategies for name in load_plugin("strategy", strategy).Config.model_fields}
    for key in overrides:
        if key in own:
            raise UsageError(f"--set {key}: a comparison takes this from {own[key]}")
        section, _, rest = key.partition(".")
        if section == "strategy" and rest.split(".")[0] not in names:
            raise UsageError(f"--set {key}: none of the strategies compared has it; {did_you_mean(rest, list(names))}")


def _check_workers(num_workers: int | None, strategies: list[str]) -> None:
    able = [name for name in strategies if "num_workers" in load_plugin("strategy", name).Config.model_fields]
    if num_workers is not None and num_workers > 1 and not able:
        raise UsageError(f"--workers {num_workers}: none of the strategies compared has workers; leave it out")


def _budget_of(request: Request, config: RunConfig) -> Budget:
    """The budget asked for, else the recipe's own limit."""
    if request.budget is not None:
        return parse_budget(request.budget)
    for kind, name in BUDGETS.items():
        amount = getattr(config.stop, name)
        if amount is not None:
            return Budget(kind, float(amount))
    raise UsageError("the recipe has no limit; give one, for example --budget env_steps=20000")


def _distinct(label: str, config: RunConfig, others: list[Variant]) -> Variant:
    """A variant, unless it is one of the others by another name.

    Raises:
        UsageError: naming the two.
    """
    variant = Variant(label, re.sub(r"[^A-Za-z0-9_.=+-]+", "-", label), config)
    for other in others:
        if other.config == config:
            raise UsageError(f"--strategies: {other.label} and {label} are the same; leave one out")
        if other.folder == variant.folder:
            raise UsageError(f"--strategies: {other.label} and {label} would share the folder {variant.folder}")
    return variant


def _split(text: str, option: str, example: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option} {text!r}: write names with commas between them, for example {option} {example}")
    return parts
