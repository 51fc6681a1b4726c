"""Times each call of a run where it is carried out, on any engine: the strategy runs unchanged, its roles are wrapped.

    spawn -> Metered(role): seconds of each call, in its receipt -> wait() takes them out again and notes the rest

Moments are of the machine's monotonic clock, which its processes share. Floor 7.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch

from qfleet.engines.base import Engine, Future, Part, Placement, RoleRef
from qfleet.types import Receipt, Reply

_BEGAN, _SECONDS, _CPU, _STEPS = "metered.began", "metered.seconds", "metered.cpu", "metered.steps"
ANYWHERE = Placement()
SMALL_SHARE = 0.125  # as engine sim tells a step's yield from one that is only averaged beside it


@dataclass(frozen=True, slots=True)
class Metering:
    """One call.

    Attributes:
        role, method: who did what.
        seconds: in the method itself, waiting for its group left out.
        cpu_seconds: of the role's process since its last call ended, or NaN where roles share one process.
        submitted, began, ended, answered: moments, in seconds: at the caller, at the role, at the role, at the caller.
        num_payloads: other calls' payloads among its arguments.
        num_env_steps, num_updates, num_samples: what its receipt counts.
        num_steps: means that it took part in; 0 for a call of no group.
    """

    role: str
    method: str
    seconds: float
    cpu_seconds: float
    submitted: float
    began: float
    ended: float
    answered: float
    num_payloads: int
    num_env_steps: int
    num_updates: int
    num_samples: int
    num_steps: int


class Metered:
    """A role that times its own calls.

    Args:
        build, args: how the role is made.
    """

    def __init__(self, build: Callable[..., object], *args: object) -> None:
        self._role = build(*args)
        self._cpu = time.process_time()

    def __getattr__(self, name: str) -> object:
        """The role's attribute; a method comes with its clock."""
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._role, name)
        if not callable(method) or name == "close":
            return method

        def timed(*args: object) -> object:
            began = time.perf_counter()
            answer = method(*args)
            if isinstance(answer, Generator):
                return self._steps(answer, began)
            return self._noted(answer, began, time.perf_counter() - began, 0)

        return timed

    def _steps(
        self, steps: Generator[torch.Tensor, None, object], began: float
    ) -> Generator[torch.Tensor, None, Reply]:
        """The role's own seconds between the yields, at which it waits for its group."""
        seconds, largest, num_steps = 0.0, 0, 0
        while True:
            resumed = time.perf_counter()
            try:
                tensor = next(steps)
            except StopIteration as end:
                return self._noted(end.value, began, seconds + time.perf_counter() - resumed, num_steps)
            seconds += time.perf_counter() - resumed
            largest = max(largest, tensor.nbytes)
            num_steps += tensor.nbytes >= SMALL_SHARE * largest
            yield tensor

    def _noted(self, answer: object, began: float, seconds: float, num_steps: int) -> Reply:
        if not isinstance(answer, Reply):
            answer = Reply(answer if isinstance(answer, Receipt) else Receipt(), None)
        cpu, self._cpu = self._cpu, time.process_time()
        answer.receipt.metrics |= {
            _BEGAN: began,
            _SECONDS: seconds,
            _CPU: self._cpu - cpu,
            _STEPS: float(num_steps),
        }
        return answer


class MeteredEngine:
    """An engine whose calls are timed.

    Args:
        engine: carries them out.

    Attributes:
        calls: every call that was answered, in that order.
        coordinator_cpu: CPU seconds of this process at each answer, by the place in `calls`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_concurrent = engine.is_concurrent
        self.has_processes = not getattr(engine, "is_one_process", True)
        self.calls: list[Metering] = []
        self.coordinator_cpu: list[float] = []
        self._submitted: dict[Future, tuple[float, int]] = {}

    def spawn(self, name: str, build: Callable[..., object], *args: object, placement: Placement = ANYWHERE) -> RoleRef:
        """Make the role, wrapped."""
        return self.engine.spawn(name, Metered, build, *args, placement=placement)

    def submit(self, role: RoleRef, method: str, *args: object, lane: str = "training", num_parts: int = 1) -> Future:
        """Note the moment."""
        now = time.perf_counter()
        future = self.engine.submit(role, method, *args, lane=lane, num_parts=num_parts)
        self._submitted[future] = now, _num_payloads(args)
        return future

    def all_reduce(
        self, group: Sequence[RoleRef], method: str, args: Sequence[tuple[object, ...]], lane: str = "training"
    ) -> list[Future]:
        """Note the moment."""
        now = time.perf_counter()
        futures = self.engine.all_reduce(group, method, args, lane)
        self._submitted |= {future: (now, _num_payloads(own)) for future, own in zip(futures, args, strict=True)}
        return futures

    def wait(self, timeout: float | None = None, lane: str = "training") -> Future | None:
        """Note what the call took."""
        future = self.engine.wait(timeout, lane)
        if future is not None:
            submitted, num_payloads = self._submitted.pop(future)
            if future.receipt is not None and _BEGAN in future.receipt.metrics:
                self._note(future, future.receipt, submitted, num_payloads)
        return future

    def _note(self, future: Future, receipt: Receipt, submitted: float, num_payloads: int) -> None:
        began, seconds, cpu, steps = (receipt.metrics.pop(name) for name in (_BEGAN, _SECONDS, _CPU, _STEPS))
        self.coordinator_cpu.append(time.process_time())
        self.calls.append(
            Metering(
                future.role.name,
                future.method,
                seconds,
                cpu if self.has_processes else float("nan"),
                submitted,
                began,
                began + seconds,
                time.perf_counter(),
                num_payloads,
                receipt.num_env_steps,
                receipt.num_updates,
                receipt.num_samples,
                int(steps),
            )
        )

    # As the engine does it

    def result(self, future: Future) -> Receipt:
        """The receipt of a completed call."""
        return self.engine.result(future)

    def payload(self, future: Future) -> object:
        """The payload of a completed call."""
        return self.engine.payload(future)

    def stop(self, role: RoleRef) -> None:
        """End a role."""
        self.engine.stop(role)

    def kill(self, role: RoleRef) -> None:
        """End a role without asking it."""
        self.engine.kill(role)

    def respawn(self, role: RoleRef) -> None:
        """A new life, wrapped like the first."""
        self.engine.respawn(role)

    def incarnation(self, role: RoleRef) -> int:
        """Which life of the role is the present one."""
        return self.engine.incarnation(role)

    def room_for(self, placement: Placement) -> int:
        """How many more roles would find room."""
        return self.engine.room_for(placement)

    def now(self) -> float:
        """The engine's clock."""
        return self.engine.now()

    def state_dict(self) -> dict[str, object]:
        """The engine's."""
        return self.engine.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The engine's."""
        self.engine.load_state_dict(state)

    def close(self) -> None:
        """End all roles."""
        self.engine.close()


def _num_payloads(args: Sequence[object]) -> int:
    return sum(isinstance(argument, Future | Part) for argument in args)
