"""How long a call takes on a simulated cluster: a draw of its role's and method's distribution, by the role's speed.

Each role draws from a generator of its own, derived from the seed by name, so that a new role shifts nobody's numbers.
A constant draws nothing. Times when many are slow together are derived from the seed as well.
"""

from __future__ import annotations

from bisect import bisect_right
from fnmatch import fnmatchcase

import numpy as np

from qfleet.placement.cluster_file import ClusterFile, Compute, Slowdown
from qfleet.seeding import derive_generator, derive_seed, generator_state, set_generator_state
from qfleet.types import Receipt

# A network of two small layers and CartPole on one CPU core; what is not named here is bookkeeping.
DEFAULTS = (
    Compute(role="evaluator", seconds=0.0),
    Compute(method="collect*", per="env_step", seconds=5e-5),
    Compute(method="rollout", per="env_step", seconds=5e-5),
    Compute(method="gradient", seconds=5e-4),
    Compute(method="local_update", per="sample", seconds=2e-5),
    Compute(method="train_together", seconds=5e-4),
    Compute(method="learn_together", seconds=5e-4),
    Compute(method="train*", per="update", seconds=5e-4),
    Compute(method="learn", per="update", seconds=5e-4),
    Compute(seconds=1e-4),
)


class CostModel:
    """Seconds of calls.

    Args:
        file: the cluster's.
        seed: of all draws.
    """

    def __init__(self, file: ClusterFile, seed: int) -> None:
        self.file = file
        self.seed = seed
        self._tables = (*file.compute, *DEFAULTS)
        self._slowdowns = [_Windows(table, seed, index) for index, table in enumerate(file.slowdown)]

    def of_role(self, name: str, has_gpu: bool) -> RoleCosts:
        """The costs of one role."""
        return RoleCosts(self, name, has_gpu)

    def find(self, name: str, has_gpu: bool, method: str) -> Compute:
        """The first table that matches."""
        device = "gpu" if has_gpu else "cpu"
        for table in self._tables:
            is_device = table.device in ("any", device)
            if is_device and fnmatchcase(name, table.role) and fnmatchcase(method, table.method):
                return table
        raise AssertionError("the last default matches everything")

    def speed(self, name: str) -> float:
        """How many times as fast as the tables say the role is; the first pattern that matches counts."""
        return next((speed for pattern, speed in self.file.speed.items() if fnmatchcase(name, pattern)), 1.0)

    def slowdown(self, name: str, time: float) -> float:
        """By how much calls of this role that begin at `time` are slowed down."""
        factor = 1.0
        for windows in self._slowdowns:
            factor *= windows.factor(name, time)
        return factor


class RoleCosts:
    """Draws for one role, in all its lives.

    Args:
        model: the cluster's.
        name, has_gpu: which role, and what it asked for.
    """

    def __init__(self, model: CostModel, name: str, has_gpu: bool) -> None:
        self.model = model
        self.name = name
        self.has_gpu = has_gpu
        self._inverse_speed = 1.0 / model.speed(name)
        self._tables: dict[str, Compute] = {}
        self._constants: dict[str, float] = {}  # of the methods whose seconds are not drawn
        self._may_be_slow = bool(model.file.slowdown)
        self._generator = None if all(_is_constant(table) for table in model.file.compute) else self._derived()

    def draw(self, method: str, time: float) -> float:
        """Seconds of one unit of `method` that begins at `time`."""
        seconds = self._constants.get(method)
        if seconds is None:
            seconds = self._draw(self._table(method)) * self._inverse_speed
        return seconds * self.model.slowdown(self.name, time) if self._may_be_slow else seconds

    def seconds(self, method: str, time: float, receipt: Receipt | None, num_payloads: int = 0) -> float:
        """Seconds of a whole call, by what its receipt counts; of a call that failed, one unit."""
        table = self._tables.get(method) or self._table(method)
        per = table.per
        seconds = self.draw(method, time)
        if per != "call" and receipt is not None:
            seconds *= {
                "env_step": receipt.num_env_steps,
                "update": receipt.num_updates,
                "sample": receipt.num_samples,
            }[per]
        if num_payloads and table.payload_seconds:
            further = num_payloads * table.payload_seconds * self._inverse_speed
            seconds += further * self.model.slowdown(self.name, time)
        return seconds

    def state(self) -> object:
        """JSON values; None where nothing is drawn."""
        return None if self._generator is None else generator_state(self._generator)

    def load_state(self, state: object) -> None:
        """Continue from `state`."""
        if state is not None and self._generator is not None:
            set_generator_state(self._generator, state)

    def _derived(self) -> np.random.Generator:
        return derive_generator(self.model.seed, "sim", "compute", self.name)

    def _table(self, method: str) -> Compute:
        table = self._tables.get(method)
        if table is None:
            table = self._tables[method] = self.model.find(self.name, self.has_gpu, method)
            if table.seconds is not None and _is_constant(table):
                self._constants[method] = table.seconds * self._inverse_speed
        return table

    def _draw(self, table: Compute) -> float:
        if table.distribution == "constant":
            assert table.seconds is not None
            return table.seconds
        generator = self._generator
        assert generator is not None
        if table.distribution == "lognormal":
            assert table.seconds is not None
            assert table.sigma is not None
            # exp(N(mu, sigma)) has the mean exp(mu + sigma^2 / 2).
            return table.seconds * float(np.exp(table.sigma * generator.standard_normal() - 0.5 * table.sigma**2))
        if table.distribution == "shifted_exponential":
            assert table.shift is not None
            assert table.scale is not None
            return table.shift + table.scale * float(generator.standard_exponential())
        if table.distribution == "pareto":
            assert table.minimum is not None
            assert table.alpha is not None
            return table.minimum * (1.0 + float(generator.pareto(table.alpha)))  # numpy's begins at 0
        assert table.values is not None
        return table.values[int(generator.integers(len(table.values)))]


class _Windows:
    """The times of one slowdown, made up as far as they are asked for."""

    def __init__(self, table: Slowdown, seed: int, index: int) -> None:
        self.table = table
        self.seed = derive_seed(seed, "sim", "slowdown", index)
        self._generator = derive_generator(self.seed, "times")
        self._bounds = [0.0]  # even places: an end, odd places: a beginning
        self._place = 0

    def factor(self, name: str, time: float) -> float:
        table = self.table
        if not fnmatchcase(name, table.role):
            return 1.0
        bounds = self._bounds
        while bounds[-1] <= time:
            mean = table.every if len(bounds) % 2 else table.seconds
            bounds.append(bounds[-1] + mean * float(self._generator.standard_exponential()))
        place = bisect_right(bounds, time)
        if place % 2:  # between an end and the next beginning
            return 1.0
        is_hit = derive_seed(self.seed, place, name) < table.share * 2**32
        return table.factor if is_hit else 1.0


def _is_constant(table: Compute) -> bool:
    return table.distribution == "constant"


def measured(receipt: Receipt, seconds: float, waiting: float = 0.0) -> dict[str, float]:
    """A receipt's busy seconds by activity, scaled so that they add up to what the call took on the virtual clock.

    Args:
        receipt: with the seconds that the call took in this process.
        seconds: what it took on the virtual clock.
        waiting: what of that it stood waiting for its group.
    """
    if len(receipt.seconds) == 1 and "all_reduce" not in receipt.seconds:
        return dict.fromkeys(receipt.seconds, seconds - waiting)
    busy = {name: value for name, value in receipt.seconds.items() if name != "all_reduce"}
    total = sum(busy.values())
    scale = (seconds - waiting) / total if total > 0 else 0.0
    scaled = {name: value * scale for name, value in busy.items()}
    return scaled | {"all_reduce": waiting} if "all_reduce" in receipt.seconds else scaled
