"""Supervisor: what becomes of a call that failed. Restarts are counted by cause, shown, and limited.

RoleDied     the role is respawned, within its budget; the strategy gives it back what it needs
ValueLost    nobody is restarted; the strategy submits the call again, or goes on without it
CallFailed   one of our own errors (diverged, a broken environment) ends the run: doing it again would not help;
             any other exception has left the role in an unknown state, so it is respawned like a dead one
NoRoom       a worker that is not the last one is let go until there is room; at the start of a run it ends the run
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.errors import CallFailed, NoRoom, QfleetError, RestartsExhausted, RoleDied, ValueLost
from qfleet.strategies.base import Control, RoleRestarted
from qfleet.strategies.base.config import FleetConfig
from qfleet.strategies.base.openings import Openings
from qfleet.types import Receipt

SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A call that gave no answer.

    Attributes:
        future: the call.
        error: why.
        restarted: what to tell the session where the role was respawned because of it, else None.
        is_let_go: whether it is a worker without a place, to be dismissed instead.
    """

    future: Future
    error: QfleetError
    restarted: RoleRestarted | None = None
    is_let_go: bool = False


class Supervisor:
    """Respawns roles within a budget.

    Args:
        engine: where the roles live.
        config: `max_restarts` of one role, `max_restarts_per_minute` of all together.
        control: receives the counts, and the failure past the budget.
        workers: gives the names of the workers, for a strategy that goes on with fewer; None for the others.

    Attributes:
        openings: when to hire again those that were let go.
        joiners: names of the workers hired in the middle of the run.
    """

    def __init__(
        self,
        engine: Engine,
        config: FleetConfig,
        control: Control,
        workers: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.control = control
        self.openings = Openings(engine, config.worker_placement())
        self.joiners: set[str] = set()
        self._workers = workers
        self._num_restarts: dict[str, int] = {}
        self._recent: deque[float] = deque()
        self._first_traceback: dict[str, str] = {}

    def receive(self, future: Future) -> Receipt | Loss:
        """The receipt of a completed call, or what was lost; the role is respawned where it has to be.

        Raises:
            QfleetError: one that doing it again would not mend, or a second failure past the budget.
        """
        try:
            return self.engine.result(future)
        except RoleDied as error:
            return self._restart(future, error, error.cause)
        except ValueLost as error:
            self.control.count("values_lost")
            return Loss(future, error)
        except CallFailed as error:
            if isinstance(error.__cause__, QfleetError):
                raise
            return self._restart(future, error, "exception")

    def losses(self, futures: Sequence[Future]) -> list[Loss]:
        """Those of these completed calls that gave no answer, as `receive` says."""
        return [outcome for outcome in map(self.receive, futures) if isinstance(outcome, Loss)]

    def _restart(self, future: Future, error: RoleDied | CallFailed, cause: str) -> Loss:
        role = future.role
        if future.incarnation < self.engine.incarnation(role):
            return Loss(future, error)  # one more call of a life whose end has been dealt with
        if isinstance(error, RoleDied) and self._is_let_go(future, error):
            self.openings.wait()
            self.control.count("workers_without_room")
            return Loss(future, error, is_let_go=True)
        if isinstance(error, CallFailed):
            self._first_traceback.setdefault(role.name, error.remote_traceback)
        if self._is_exhausted(role):
            failure = RestartsExhausted(
                f"{role.name} failed again after {self._num_restarts.get(role.name, 0)} restarts (at most "
                f"{self.config.max_restarts} of one role, {self.config.max_restarts_per_minute} a minute of all): "
                f"{error}; see strategy.max_restarts",
                self._first_traceback.get(role.name, ""),
            )
            if self.control.failure is not None:
                raise failure from error
            self.control.failure = failure  # the session saves what there is, with a last life of this role, and stops
        self._num_restarts[role.name] = self._num_restarts.get(role.name, 0) + 1
        self._recent.append(self.engine.now())
        self.control.count(f"restarts.{cause}")
        self.engine.respawn(role)
        return Loss(future, error, RoleRestarted(role.name, self.engine.incarnation(role), cause, str(error)))

    def _is_let_go(self, future: Future, error: RoleDied) -> bool:
        """Whether the crew goes on without this role.

        Raises:
            NoRoom: it is of those that the run was to begin with.
        """
        name = future.role.name
        if isinstance(error, NoRoom) and future.incarnation == 0 and name not in self.joiners:
            raise error
        workers = () if self._workers is None else self._workers()
        if name not in workers or len(workers) < 2:
            return False
        # Its machine has taken its place along; of a process that died, the place is there still.
        return isinstance(error, NoRoom) or (error.cause == "node lost" and not self.openings.has_room())

    def _is_exhausted(self, role: RoleRef) -> bool:
        now = self.engine.now()
        while self._recent and now - self._recent[0] > SECONDS_PER_MINUTE:
            self._recent.popleft()
        return (
            self._num_restarts.get(role.name, 0) >= self.config.max_restarts
            or len(self._recent) >= self.config.max_restarts_per_minute
        )
