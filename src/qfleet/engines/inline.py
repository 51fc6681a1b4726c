"""Inline: one thread, one process, the embedded default.

    waits for                 unblocked by
    wait()                    running one pending call itself: drawn from the seed among the first calls of each role

Nothing runs before `wait`, and the draw is the only source of order, so every run, asynchronous strategies included,
replays bit for bit from its seed.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable

from qfleet.engines.base import EngineConfig, Future, RoleRef
from qfleet.errors import CallFailed, QfleetError, RoleDied, ValueLost
from qfleet.seeding import derive_generator, generator_state, set_generator_state
from qfleet.types import Receipt, Reply


class Config(EngineConfig):
    """The [engine] section of the inline engine; it has no settings of its own."""

    name: str = "inline"


class Engine:
    """Runs every role in this thread.

    Args:
        config: the [engine] section.
        seed: fixes the order in which pending calls run.
    """

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        self._generator = derive_generator(seed, "engine", "inline")
        self._roles: dict[str, object] = {}
        self._pending: dict[str, dict[str, deque[tuple[Future, tuple[object, ...]]]]] = {}
        self._num_calls = 0

    def spawn(self, name: str, build: Callable[..., object], *args: object) -> RoleRef:
        """Build the role here and now."""
        if name in self._roles:
            raise ValueError(f"role {name} exists already")
        self._roles[name] = build(*args)
        return RoleRef(name)

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training") -> Future:
        """Queue the call; it runs inside a later `wait`."""
        future = Future(role, method, lane)
        for argument in args:
            if isinstance(argument, Future) and argument.receipt is None and argument.error is None:
                raise ValueError(f"{role.name}.{method}: an argument of {argument.method} is not completed yet")
        queues = self._pending.setdefault(lane, {})
        queue = queues.get(role.name)
        if queue is None:
            queue = queues[role.name] = deque()
        queue.append((future, args))
        return future

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """Run one pending call of the lane and return it; None when nothing is pending. Never blocks."""
        queues = self._pending.get(lane)
        if not queues:
            return None
        names = list(queues)
        name = names[0] if len(names) == 1 else names[int(self._generator.integers(len(names)))]
        queue = queues[name]
        future, args = queue.popleft()
        if not queue:
            del queues[name]
        self._run(future, args)
        return future

    def result(self, future: Future) -> Receipt:
        """The receipt, or the role's own failure."""
        if future.error is not None:
            raise future.error
        if future.receipt is None:
            raise ValueError(f"{future.role.name}.{future.method} has not completed")
        return future.receipt

    def payload(self, future: Future) -> object:
        """The payload itself: nothing is copied here."""
        self.result(future)
        return future.payload

    def stop(self, role: RoleRef) -> None:
        """Forget the role and its pending calls."""
        built = self._roles.pop(role.name, None)
        for queues in self._pending.values():
            queues.pop(role.name, None)
        close = getattr(built, "close", None)
        if close is not None:
            close()

    def now(self) -> float:
        """The number of calls run so far."""
        return float(self._num_calls)

    def state_dict(self) -> dict[str, object]:
        """The draw's random state and the call count, for a checkpoint."""
        return {"generator": generator_state(self._generator), "num_calls": self._num_calls}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue the draws where a checkpoint left them."""
        set_generator_state(self._generator, state["generator"])
        self._num_calls = int(str(state["num_calls"]))

    def close(self) -> None:
        """Close every role."""
        for name in list(self._roles):
            self.stop(RoleRef(name))

    def _run(self, future: Future, args: tuple[object, ...]) -> None:
        role = self._roles.get(future.role.name)
        self._num_calls += 1
        if role is None:
            future.error = RoleDied(future.role.name, 0)
            return
        for argument in args:
            if isinstance(argument, Future) and argument.error is not None:
                future.error = ValueLost(argument.role.name)  # its payload never came to be; None would pass for one
                return
        values = [argument.payload if isinstance(argument, Future) else argument for argument in args]
        try:
            answer = getattr(role, future.method)(*values)
        except Exception as error:
            cause = str(error) if isinstance(error, QfleetError) else f"{type(error).__name__}: {error}"
            failure = CallFailed(future.role.name, future.method, cause, traceback.format_exc())
            failure.__cause__ = error
            future.error = failure
            return
        if isinstance(answer, Reply):
            future.receipt, future.payload = answer.receipt, answer.payload
        elif isinstance(answer, Receipt):
            future.receipt = answer
        else:
            future.receipt = Receipt()
