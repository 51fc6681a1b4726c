"""Notices of machines that are about to be taken away: a checkpoint at once, then the roles there begin elsewhere.

Beside session.py, floor 6. What a role has built up by then is in the checkpoint, from which its strategy's supervisor
gives it a new life as after any death; what it had published is still to be had where it was.
"""

from __future__ import annotations

from qfleet.engines.base import Engine, Placement, RoleRef, WarningEngine
from qfleet.run_config import RunConfig
from qfleet.strategies.base.config import FleetConfig


class Notices:
    """What the engine has been told, and what of it has been acted upon.

    Args:
        engine: where the roles live; one that is never warned is never asked.
        config: the run's. Without checkpoints nothing is done, and without a supervisor nobody is moved.
    """

    def __init__(self, engine: Engine, config: RunConfig) -> None:
        is_heard = isinstance(engine, WarningEngine) and not config.engine.computes_nothing
        self._engine = engine
        self._warned = engine if isinstance(engine, WarningEngine) and is_heard else None
        self._is_supervised = isinstance(config.strategy, FleetConfig)
        self._known: dict[str, float] = {}

    def is_due(self) -> bool:
        """Whether there is a notice that no checkpoint has followed yet."""
        if self._warned is None:
            return False
        return any(self._known.get(name) != moment for name, moment in self._warned.notices().items())

    def move(self) -> None:
        """A checkpoint is committed: end the lives that are about to end, where there is room for their next one."""
        if self._warned is None:
            return
        for name, moment in list(self._warned.notices().items()):
            if self._known.get(name) != moment:
                self._known[name] = moment
                if self._is_supervised and self._engine.room_for(Placement()) > 0:
                    self._engine.kill(RoleRef(name))
