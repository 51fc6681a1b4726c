"""RolloutBuffer: the replay of a worker that learns from its present rollout, and from nothing else.

Between an algorithm's `prepare` and the learner: it gives the rollout's rows in shuffled minibatches, epoch after
epoch, until the next rollout takes its place (Mnih et al. 2016 go over it once; Schulman et al. 2017 several times).
"""

from __future__ import annotations

import json

import numpy as np

from qfleet.errors import CheckpointError
from qfleet.replay.buffer import EmptyReplayError
from qfleet.types import Array, IntArray, RolloutBatch

_COLUMNS = ("obs", "action", "weight", "target", "advantage", "action_mask")


class RolloutBuffer:
    """One rollout of N rows.

    How often it is gone over is the caller's business: the next epoch begins where one is over. A rollout that is cut
    into one minibatch is not shuffled.

    Args:
        capacity: N.
        generator: where the order of the rows comes from; nobody else should use it.

    Attributes:
        num_inserted: rows inserted since the beginning, those of earlier rollouts included.
    """

    def __init__(self, capacity: int, generator: np.random.Generator) -> None:
        self.capacity = capacity
        self.num_inserted = 0
        self._generator = generator
        self._rows: RolloutBatch | None = None
        # The rows in this epoch's order.
        self._order: IntArray = np.empty(0, np.int64)
        self._shuffled: RolloutBatch | None = None
        self._num_drawn = 0

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    @property
    def is_fresh(self) -> bool:
        """Whether there is a rollout that nothing was drawn from yet."""
        return self._rows is not None and self._num_drawn == 0

    def insert(self, rows: RolloutBatch) -> None:
        """The next rollout takes the place of the present one.

        Raises:
            ValueError: it has another number of rows than `capacity`.
        """
        if len(rows) != self.capacity:
            raise ValueError(f"a rollout of {len(rows)} rows for a buffer of {self.capacity}")
        self._rows = rows
        self.num_inserted += len(rows)
        self._num_drawn = 0

    def sample(self, batch_size: int) -> RolloutBatch:
        """The next `batch_size` rows, which divide the rollout, of the epoch; views, not to be written to.

        Raises:
            EmptyReplayError: there is no rollout.
        """
        if self._rows is None:
            raise EmptyReplayError("there is no rollout: collect one before training")
        first = self._num_drawn % self.capacity
        self._num_drawn += batch_size
        if batch_size == self.capacity:
            return self._rows
        if first == 0:
            self._order = self._generator.permutation(self.capacity)
            self._shuffled = self._rows.rows(self._order)
        assert self._shuffled is not None
        return self._shuffled.rows(slice(first, first + batch_size))

    def state_dict(self) -> tuple[dict[str, Array], dict[str, object]]:
        """Arrays and JSON values with which the same minibatches follow."""
        arrays: dict[str, Array] = {}
        if self._rows is not None:
            columns = {name: getattr(self._rows, name) for name in _COLUMNS}
            arrays = {f"rollout.{name}": column for name, column in columns.items() if column is not None}
            arrays["rollout.order"] = self._order
        state = json.dumps(self._generator.bit_generator.state)
        return arrays, {"num_inserted": self.num_inserted, "num_drawn": self._num_drawn, "generator": state}

    def load_state_dict(self, arrays: dict[str, Array], values: dict[str, object]) -> None:
        """Continue from `state_dict`.

        Raises:
            CheckpointError: the rollout has another number of rows.
        """
        self._rows = self._shuffled = None
        columns = {name: arrays.get(f"rollout.{name}") for name in _COLUMNS}
        if columns["obs"] is not None:
            rows = RolloutBatch(**columns)  # type: ignore[arg-type]
            if len(rows) != self.capacity:
                raise CheckpointError(
                    f"the checkpoint's rollout has {len(rows)} rows, this run's {self.capacity}; "
                    "resume with the environments and the algorithm's settings that it was saved with"
                )
            self._rows, self._order = rows, arrays["rollout.order"]
            self._shuffled = rows.rows(self._order) if len(self._order) else None
        self.num_inserted = int(str(values["num_inserted"]))
        self._num_drawn = int(str(values["num_drawn"]))
        self._generator.bit_generator.state = json.loads(str(values["generator"]))
