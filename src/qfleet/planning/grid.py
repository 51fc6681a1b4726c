"""What is to be planned: strategies and sizes become cells, each with the configuration that `qfleet train` would run.

    parameter_server:wait=async x 1,2,4,...,64 -> a cell each; one that cannot be is a cell with the reason why not

Floor 7.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from qfleet.algos.base import ReplayAlgorithmConfig
from qfleet.comparison.plan import Request as Choices
from qfleet.comparison.plan import configure, parse_strategies, starting_point
from qfleet.errors import ConfigError, UsageError
from qfleet.experiment import Experiment
from qfleet.plugins import list_plugins, load_plugin
from qfleet.policy import make_blueprint
from qfleet.run_config import RunConfig, change_config, check_fit
from qfleet.types import EnvSpec

MAX_WORKERS = 100_000
# Of "all": the rules of a parameter server are what there is to choose between.
EXPANDED = {"parameter_server": ("wait=sync", "wait=ssp", "wait=async")}
# Settings that change when calls are made, and not which calls, nor what they cost.
FREE_SETTINGS = frozenset({"wait", "bound", "merge", "backup_workers", "in_flight", "num_groups", "fraction"})
ROWS_PER_WORKER = 2  # batches that a worker's share of the replay holds at least


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for.

    Attributes:
        env: environment id, or a recipe that names its environment.
        strategies: as `qfleet compare` takes them, or "all".
        workers: as `parse_sizes` takes them.
        algo, recipe: None for the recipe's own, and the environment's.
        overrides: dotted names and values, for all.
    """

    env: str
    strategies: str = "all"
    workers: str = "1,2,4,...,1024"
    algo: str | None = None
    recipe: str | None = None
    overrides: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """A strategy at a size.

    Attributes:
        label: the strategy as it was asked for.
        num_workers: of it; 1 for one that has none.
        config: on engine sim with nothing computed; None where it cannot be.
        why_not: the reason, in a line.
    """

    label: str
    num_workers: int
    config: RunConfig | None
    why_not: str | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Which one it is."""
        return self.label, self.num_workers


@dataclass(frozen=True, slots=True)
class Grid:
    """A checked request: the environment, and all cells, strategy by strategy."""

    env: str
    spec: EnvSpec
    cells: list[Cell]

    def calibrating(self) -> list[tuple[str, RunConfig]]:
        """Labels and configurations of one worker, one for each set of roles whose calls may cost differently."""
        found: dict[str, tuple[str, RunConfig]] = {}
        for cell in self.cells:
            if cell.config is None:
                continue
            strategy, settings = parse_strategies(cell.label)[0]
            rest = {key: value for key, value in settings.items() if key not in FREE_SETTINGS}
            key = f"{strategy}{sorted(rest.items())}"
            if key not in found:
                found[key] = strategy, of_size(cell.config, 1)
        return list(found.values())


def make_grid(request: Request) -> Grid:
    """Check a request.

    Raises:
        UsageError, ConfigError: what is wrong with all of it, in a line. What is wrong with a cell is told by the cell.
    """
    sizes = parse_sizes(request.workers)
    labels = list(_labels(request.strategies))
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UsageError(f"--strategies: {twice} is named twice")
    choices = [parse_strategies(label)[0] for label in labels]
    overrides = dict(request.overrides)
    for name in ("strategy", "strategy.name", "engine", "engine.name", "engine.compute", "engine.cluster"):
        if name in overrides:
            raise UsageError(f"--set {name}: qfleet plan says this itself; use --strategies and --cluster")
    asked = Choices(
        request.env, request.strategies, engine="sim", recipe=request.recipe, overrides={**overrides, "device": "cpu"}
    )
    env_id, recipe = starting_point(asked)
    cells: list[Cell] = []
    spec, first = None, None
    for label, (strategy, settings) in zip(labels, choices, strict=True):
        has_workers = "num_workers" in load_plugin("strategy", strategy).Config.model_fields
        for size in sizes if has_workers else [1]:
            try:
                one = dataclasses.replace(asked, num_workers=size)
                config = configure(one, env_id, recipe, request.algo or "", strategy, settings)
                config = of_size(change_config(config, [("engine.compute", "none")]), None)
                check_fit(config)
                if spec is None:
                    spec = Experiment(config).spec
                    make_blueprint(config, spec, "cpu").build_network(trainable=False)
                cells.append(Cell(label, size, config))
            except (UsageError, ConfigError) as error:
                first = first or error
                cells.append(Cell(label, size, None, str(error)))
    if spec is None:
        assert first is not None
        raise first
    return Grid(env_id, spec, cells)


def parse_sizes(text: str) -> list[int]:
    """`1,2,4,...,64`: positive integers; three dots go on as the two numbers before them do, by factor or by step.

    Raises:
        UsageError: not of this form.
    """
    sizes: list[int] = []
    parts = [part.strip() for part in text.split(",")]
    is_open = False
    for part in parts:
        if part in ("...", "…"):
            if len(sizes) < 2 or is_open:
                raise UsageError(f"--workers {text}: write two numbers before the dots, for example 1,2,4,...,64")
            is_open = True
            continue
        if not part.isdecimal() or not 1 <= int(part) <= MAX_WORKERS:
            raise UsageError(f"--workers {text}: {part!r} is no number of workers; write 1,2,4,...,64 or 8")
        if is_open:
            sizes += _between(sizes[-2], sizes[-1], int(part), text)
            is_open = False
        sizes.append(int(part))
    if is_open:
        raise UsageError(f"--workers {text}: after the dots comes the last number")
    return sorted(set(sizes))


def of_size(config: RunConfig, num_workers: int | None) -> RunConfig:
    """The configuration with so many workers, and room in each one's replay for some batches; None: as it is."""
    changes: list[tuple[str, object]] = []
    fields = type(config.strategy).model_fields
    if num_workers is not None and "num_workers" in fields:
        changes.append(("strategy.num_workers", num_workers))
        if "num_groups" in fields:
            groups = int(getattr(config.strategy, "num_groups"))  # noqa: B009
            changes.append(("strategy.num_groups", min(groups, num_workers)))
    number = num_workers or int(getattr(config.strategy, "num_workers", 1))
    if isinstance(config.algo, ReplayAlgorithmConfig):
        least = ROWS_PER_WORKER * config.algo.batch_size * number
        changes.append(("replay.capacity", max(config.replay.capacity, least)))
    return change_config(config, changes)


def _labels(text: str) -> Iterable[str]:
    if text.strip() != "all":
        yield from (part.strip() for part in text.split(","))
        return
    for name in list_plugins("strategy"):
        if name in EXPANDED:
            yield from (f"{name}:{setting}" for setting in EXPANDED[name])
        else:
            yield name


def _between(first: int, second: int, last: int, text: str) -> list[int]:
    """What the dots stand for."""
    if second <= first or last <= second:
        raise UsageError(f"--workers {text}: the numbers around the dots must grow")
    found: list[int] = []
    is_factor = second % first == 0
    value = second
    while True:
        value = value * (second // first) if is_factor else value + second - first
        if value >= last:
            return found
        found.append(value)
