"""The errors that a user can meet, each one line long: what was wrong, where, and what to do.

The command line prints the line and exits with `exit_code`; a traceback appears only with `--debug`.
Floor 0: imports nothing of qfleet.
"""

from __future__ import annotations


class QfleetError(Exception):
    """A failure that a user can act on. Exit code 1."""

    exit_code = 1


class UsageError(QfleetError):
    """The request itself is wrong: an unknown name, a bad value, an environment that does not fit. Exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration field is unknown, of the wrong type or out of range; the message names field, value and fix."""


class EnvError(QfleetError):
    """An environment broke its contract while running (NaN reward, wrong shape, no legal action)."""


class DivergenceError(QfleetError):
    """A loss, gradient or parameter turned NaN or infinite."""


class CheckpointError(QfleetError):
    """A checkpoint is missing, truncated, altered or of another network; nothing of it was loaded."""


class ExportError(QfleetError):
    """An exported policy disagrees with the one that it was made of; no file was written."""


class MissingExtraError(UsageError):
    """An optional package is not installed; the message says which extra to install."""


class RoleDied(QfleetError):
    """A role's process or thread is gone. Its unfinished calls are lost.

    Args:
        role: name of the role.
        incarnation: which life of the role died; the first is 0.
        cause: how, in a word or a few: "killed", "timeout", "process died", "node lost", "no room"; restarts are
            counted by it.
    """

    def __init__(self, role: str, incarnation: int, cause: str = "process died") -> None:
        super().__init__(f"role {role} (incarnation {incarnation}) died: {cause}")
        self.role = role
        self.incarnation = incarnation
        self.cause = cause


class NoRoom(RoleDied):
    """A role found no place on the cluster in time; the message says what it asks for and what there is."""

    def __init__(self, role: str, incarnation: int, message: str) -> None:
        super().__init__(role, incarnation, "no room")
        self.args = (message,)


class ValueLost(QfleetError):
    """A healthy role could not get an argument because the role that produced it is gone."""

    def __init__(self, producer: str) -> None:
        super().__init__(f"a value made by role {producer} is gone")
        self.producer = producer


class RestartsExhausted(QfleetError):
    """A role failed more often than its restart budget allows. `remote_traceback` is its first one, "" if it has none.

    Args:
        message: role, counts and the last failure.
        remote_traceback: the role's own traceback as text.
    """

    def __init__(self, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback


class CallFailed(QfleetError):
    """A role's method raised. The message is the role's own; `remote_traceback` is its traceback as text."""

    def __init__(self, role: str, method: str, cause: str, remote_traceback: str) -> None:
        super().__init__(f"{role}.{method} failed: {cause}")
        self.role = role
        self.method = method
        self.remote_traceback = remote_traceback


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_one_line(said: object) -> str:
    """A message, such as an error's, in one line: every run of white space is a space."""
    return " ".join(str(said).split())
