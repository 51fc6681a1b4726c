"""Supervisor: what becomes of a call that failed. Restarts are counted by cause, shown, and limited.

RoleDied     the role is respawned, within its budget; the strategy gives it back what it needs
ValueLost    nobody is restarted; the strategy submits the call again, or goes on without it
CallFailed   one of our own errors (diverged, a broken environment) ends the run: doing it again would not help;
             any other exception has left the role in an unknown state, so it is respawned like a dead one
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from qfleet.engines.base import Engine, Future, RoleRef
from qfleet.errors import CallFailed, QfleetError, RestartsExhausted, RoleDied, ValueLost
from qfleet.strategies.base import Control, RoleRestarted
from qfleet.strategies.base.config import FleetConfig
from qfleet.types import Receipt

SECONDS_PER_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A call that gave no answer.

    Attributes:
        future: the call.
        error: why.
        restarted: what to tell the session where the role was respawned because of it, else None.
    """

    future: Future
    error: QfleetError
    restarted: RoleRestarted | None = None


class Supervisor:
    """Respawns roles within a budget.

    Args:
        engine: where the roles live.
        config: `max_restarts` of one role, `max_restarts_per_minute` of all together.
        control: receives the counts, and the failure past the budget.
    """

    def __init__(self, engine: Engine, config: FleetConfig, control: Control) -> None:
        self.engine = engine
        self.config = config
        self.control = control
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

    def _restart(self, future: Future, error: RoleDied | CallFailed, cause: str) -> Loss:
        role = future.role
        if future.incarnation < self.engine.incarnation(role):
            return Loss(future, error)  # one more call of a life whose end has been dealt with
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

    def _is_exhausted(self, role: RoleRef) -> bool:
        now = self.engine.now()
        while self._recent and now - self._recent[0] > SECONDS_PER_MINUTE:
            self._recent.popleft()
        return (
            self._num_restarts.get(role.name, 0) >= self.config.max_restarts
            or len(self._recent) >= self.config.max_restarts_per_minute
        )
