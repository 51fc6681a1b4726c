"""The one pacing rule: how many updates the transitions inserted so far allow, and how many inserts the updates do.

Serial training asks `updates_allowed`. Where collecting and training run beside each other, `Pace` holds back whichever
is ahead; its counts include what calls under way have reserved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


def updates_allowed(
    num_inserted: int, num_samples: int, min_transitions: int, samples_per_insert: float, batch_size: int
) -> int:
    """How many more updates of `batch_size` samples fit under `samples_per_insert`.

    Inserts count from `min_transitions` on; `num_samples` includes samples reserved by calls under way.
    """
    budget = (num_inserted - min_transitions) * samples_per_insert - num_samples
    return max(0, int(budget // batch_size))


def measured_samples_per_insert(num_inserted: int, num_samples: int, min_transitions: int) -> float:
    """Transitions trained on per transition inserted since `min_transitions` were in; 0 before that."""
    counted = num_inserted - min_transitions
    return num_samples / counted if counted > 0 else 0.0


def insert_slack(samples_per_insert: float, batch_size: int, num_in_flight: int) -> float:
    """How many transitions the collecting side may be ahead, so that neither side waits for the other for ever.

    Two batches' worth of inserts, which keeps the measured ratio within 2% of the asked one from 100 batches on; but
    where that is less, one batch's worth plus `num_in_flight`, the transitions that the collecting calls under way at
    one time bring together, plus one for rounding. The ratio is then within 2% once 50 times the slack was inserted.
    """
    inserts_per_batch = batch_size / samples_per_insert
    return max(2.0 * inserts_per_batch, inserts_per_batch + num_in_flight + 1)


@dataclass(slots=True)
class Pace:
    """Who may go on, over all collecting and training roles. Counted by the coordinator, saved in a checkpoint.

    With c = num_inserted - min_transitions, the two rules keep

        samples_per_insert * (c - slack)  <=  num_samples_reserved  <=  samples_per_insert * c

    after the warm-up, but for what a role that died has just given back. So the measured ratio is never above the asked
    one, and below it by a part of slack / c at most.

    Attributes:
        num_inserted: transitions inserted, over all shards.
        num_samples_reserved: transitions trained on, or promised to training calls under way.
        min_transitions: inserts before the first update; they do not count.
        samples_per_insert: transitions trained on per transition inserted, asked for.
        batch_size: samples in one update, over all learners that share it.
    """

    num_inserted: int
    num_samples_reserved: int
    min_transitions: int
    samples_per_insert: float
    batch_size: int

    def updates_allowed(self) -> int:
        """How many more updates may be reserved now."""
        return updates_allowed(
            self.num_inserted,
            self.num_samples_reserved,
            self.min_transitions,
            self.samples_per_insert,
            self.batch_size,
        )

    def reserve(self, num_updates: int) -> None:
        """Counts updates as their call is submitted.

        Raises:
            ValueError: more than `updates_allowed`, or a negative number.
        """
        if not 0 <= num_updates <= self.updates_allowed():
            raise ValueError(f"cannot reserve {num_updates} updates: {self.updates_allowed()} are allowed")
        self.num_samples_reserved += num_updates * self.batch_size

    def release(self, num_updates: int) -> None:
        """Gives back reserved updates that will not be done, as when their role died.

        Raises:
            ValueError: more than were reserved, or a negative number.
        """
        num_samples = num_updates * self.batch_size
        if not 0 <= num_samples <= self.num_samples_reserved:
            raise ValueError(
                f"cannot release {num_updates} updates of {self.batch_size} samples: "
                f"{self.num_samples_reserved} samples are reserved"
            )
        self.num_samples_reserved -= num_samples

    def drop_owed(self) -> None:
        """Counts the updates that are owed as made: what they were to be made on is lost."""
        owed_on = max(0, self.num_inserted - self.min_transitions)
        self.num_samples_reserved = round(owed_on * self.samples_per_insert)

    def inserts_allowed(self, slack: float, num_in_flight: int = 0) -> int:
        """How many more transitions may be asked for before the training side must catch up.

        Args:
            slack: how many transitions the collecting side may be ahead; at least `insert_slack`, or both may wait.
            num_in_flight: transitions that collecting calls under way will still insert.
        """
        budget = (self.num_inserted - self.min_transitions) * self.samples_per_insert - self.num_samples_reserved
        return max(0, math.floor(slack - budget / self.samples_per_insert) - num_in_flight)
