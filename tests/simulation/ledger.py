"""Books kept beside a run, by independent means: what was pushed and merged, sent and held back, inserted and keyed.

A ledger listens at the roles and the coordinator's merges while a run goes on, and raises Violation at the first entry
that does not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from qfleet.replay.storage import RingStorage
from qfleet.roles.push import Encoder
from qfleet.strategies.base.push_pull import PushPull
from qfleet.strategies.base.servers import Merge, ServerGroup


class Violation(AssertionError):
    """An invariant does not hold."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise Violation(message)


class Ledger:
    """The books of one run.

    Args:
        learning_rate: of plain SGD without clipping, so that the parameters are w_0 - alpha * (sum of merged pushes);
            None where another optimizer makes that untrue.
    """

    def __init__(self, learning_rate: float | None) -> None:
        self.learning_rate = learning_rate
        self.violation: Violation | None = None  # found inside a role, where it would pass for the role's failure
        self.merged: set[tuple[str, int, int]] = set()
        self.expected: np.ndarray | None = None
        self.residuals: dict[int, tuple[object, np.ndarray]] = {}
        self.keys: dict[int, tuple[object, int]] = {}
        self.num_merges = self.num_encoded = self.num_inserts = self.num_starts = 0

    def merge(self, group: ServerGroup, merge: Merge) -> None:
        """All servers have committed: each push once, and the parameters have moved by just that."""
        engine: Any = group.engine
        roles = [engine._roles[ref.name] for ref in group.refs]
        # One that died since is to begin at this very version; there is nothing to see before that.
        is_settled = not group._reviving and all(role.is_alive for role in roles)
        servers = sorted((role.built for role in roles), key=lambda server: server.first) if is_settled else []
        versions = {server.version for server in servers}
        check(not is_settled or versions == {group.version}, f"servers at {versions}, known is {group.version}")
        self.num_merges += 1
        fresh = []
        for ticket, push in zip(merge.tickets, merge.pushes, strict=True):
            name = (ticket.worker, ticket.incarnation, ticket.sequence)
            check(name not in self.merged, f"push {name} was merged twice")
            self.merged.add(name)
            value: Any = push.payload
            pieces = value.content if push.num_parts > 1 else [value.content]
            fresh.append(np.concatenate([piece.decode() for piece in pieces]).astype(np.float64))
        check(bool(fresh) or not merge.tickets, "a merge of nothing")
        check(merge.num_refused == 0, f"{merge.num_refused} fresh pushes were refused")
        if self.learning_rate is None or not fresh:
            return
        if self.expected is None:
            self.expected = self.initial.astype(np.float64).copy()
        self.expected -= self.learning_rate * merge.scale * np.mean(fresh, axis=0)
        if is_settled:
            actual = np.concatenate([server.online.numpy() for server in servers])
            error = float(np.abs(actual - self.expected).max())
            check(error < 1e-3, f"version {group.version}: the parameters are {error:.3g} off the pushes merged")

    def begin(self, group: ServerGroup) -> None:
        """The parameters before the first merge."""
        engine: Any = group.engine
        built = [engine._roles[ref.name].built for ref in group.refs]
        if any(server is None for server in built):
            self.learning_rate = None  # one has died already: what it began with is not to be seen
            return
        servers = sorted(built, key=lambda server: server.first)
        self.initial = np.concatenate([server.online.numpy() for server in servers]).copy()

    def encode(self, encoder: Encoder, before: np.ndarray, vector: np.ndarray, pieces: list[Any]) -> None:
        """With error feedback nothing is lost: what is sent and what is held back are what was there."""
        self.num_encoded += 1
        known = self.residuals.get(id(encoder))
        if known is not None:
            check(np.array_equal(known[1], before), "what the last push held back is not what this one began with")
        sent = np.concatenate([piece.decode() for piece in pieces])
        difference = float(np.abs(vector.astype(np.float64) + before - sent - encoder.residual).max())
        check(difference < 1e-5, f"a push has lost {difference:.3g}")
        self.residuals[id(encoder)] = (encoder, encoder.residual.copy())

    def insert(self, storage: RingStorage, keys: np.ndarray) -> None:
        """A key names one insertion for ever."""
        if not len(keys):
            return
        self.num_inserts += len(keys)
        _, newest = self.keys.get(id(storage), (storage, -1))
        check(bool((np.diff(keys) > 0).all()) and int(keys[0]) > newest, f"key {int(keys[0])} was used before")
        self.keys[id(storage)] = (storage, int(keys[-1]))

    def start(self, loop: PushPull, job: Any) -> None:
        """The stale synchronous bound, by the clocks of those who are there."""
        if job.kind != "push" or loop.rules.bound is None:
            return
        self.num_starts += 1
        group = job.member.group
        lead = job.clock - min(group.clocks.of.values())
        check(lead <= loop.rules.bound, f"{job.member.ref.name} starts {lead} clocks ahead, bound {loop.rules.bound}")


@contextmanager
def watching(ledger: Ledger) -> Iterator[None]:
    """Listen at roles and merges as long as this lasts."""
    undo: list[Callable[[], None]] = []

    def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, make(original))
        undo.append(lambda: setattr(owner, name, original))

    def in_role(book: Callable[..., None], *entry: Any) -> None:
        try:
            book(*entry)
        except Violation as violation:
            ledger.violation = violation
            raise

    def finish(original: Any) -> Any:
        def wrapped(self: ServerGroup, merge: Merge) -> Merge:
            tickets = list(merge.tickets)
            scale = merge.scale
            # The books are closed before the next merge begins.
            group_begin = self._begin
            self._begin = lambda: None  # type: ignore[method-assign]
            try:
                original(self, merge)
                check(merge.tickets == tickets and merge.scale == scale, "a merge changed while it was finished")
                ledger.merge(self, merge)
            finally:
                self._begin = group_begin  # type: ignore[method-assign]
            self._begin()
            return merge

        return wrapped

    def start(original: Any) -> Any:
        def wrapped(self: ServerGroup, saved: Any) -> None:
            original(self, saved)
            ledger.begin(self)

        return wrapped

    def encode(original: Any) -> Any:
        def wrapped(self: Encoder, vector: np.ndarray, buffers: np.ndarray) -> Any:
            before = self.residual.copy()
            pieces = original(self, vector, buffers)
            if self.compression == "top_k":
                in_role(ledger.encode, self, before, vector, pieces)
            return pieces

        return wrapped

    def insert(original: Any) -> Any:
        def wrapped(self: RingStorage, transitions: Any) -> Any:
            keys = original(self, transitions)
            in_role(ledger.insert, self, keys)
            return keys

        return wrapped

    def submit(original: Any) -> Any:
        def wrapped(self: PushPull, job: Any, method: str, *args: object) -> None:
            ledger.start(self, job)
            original(self, job, method, *args)

        return wrapped

    wrap(ServerGroup, "_finish", finish)
    wrap(ServerGroup, "start", start)
    wrap(Encoder, "encode", encode)
    wrap(RingStorage, "insert", insert)
    wrap(PushPull, "_submit", submit)
    try:
        yield
    finally:
        for step in reversed(undo):
            step()
