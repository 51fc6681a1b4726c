"""What every command shares: options, where lines are printed, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qfleet.errors import CallFailed, QfleetError, RestartsExhausted, in_one_line

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def examples(*lines: str) -> str:
    """An epilog of examples for `--help`, one to a line."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


class Output:
    """Where a command's lines go.

    Results belong on standard output. With --json only the JSON object does, and the rest goes to standard error;
    with --quiet the rest is left out.

    Args:
        as_json: print the result as JSON.
        quiet: leave out everything but the result.
    """

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def say(self, line: str = "") -> None:
        """A line beside the result."""
        if not self.quiet:
            print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def show(self, renderable: object) -> None:
        """A rich table beside the result."""
        if not self.quiet:
            from rich.console import Console

            Console(file=sys.stderr if self.as_json else sys.stdout, highlight=False).print(renderable)

    def note(self, line: str) -> None:
        """A warning, on standard error in every mode."""
        print(f"note: {line}", file=sys.stderr, flush=True)

    def interrupted(self, run_dir: Path, *, is_saved: bool = True) -> None:
        """What an interrupted run left, and the command that continues it; on standard error in every mode."""
        if not is_saved:
            print("interrupted: nothing was computed, so nothing was saved", file=sys.stderr, flush=True)
            return
        command = f"qfleet train --resume {shlex.quote(str(run_dir))}"
        print(f"interrupted: saved; continue with: {command}", file=sys.stderr, flush=True)

    def result(self, values: Mapping[str, object], line: str | None = None) -> None:
        """The result: as JSON, else as `line` where there is one."""
        if self.as_json:
            print(json.dumps(values), flush=True)
        elif line is not None:
            print(line, flush=True)


class Group(TyperGroup):
    """The command line's root: runs a command and turns whatever it raises into one line and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override, unused-ignore]
        """Run the command; an interrupt is a failure like the others, told in one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _StoppedError("stopped at once; nothing was saved beyond the last checkpoint") from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse and run; exits unless `standalone_mode` is off."""
        argv = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(argv, prog_name or "qfleet", complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            code = report(error, as_json="--json" in argv, debug="--debug" in argv)
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code


class _StoppedError(QfleetError):
    exit_code = 130


def report(error: Exception, *, as_json: bool, debug: bool) -> int:
    """Print a failure: its traceback if asked for, one line, and with --json the same as an object.

    Returns:
        the exit code.
    """
    message, code = explain(error)
    if debug:
        traceback.print_exception(error)
        if isinstance(error, CallFailed | RestartsExhausted) and error.remote_traceback:
            print(error.remote_traceback, file=sys.stderr)
    print(f"error: {message}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"error": message, "exit_code": code}), flush=True)
    return code


def explain(error: Exception) -> tuple[str, int]:
    """A failure as one line, and its exit code: 2 where the request is wrong, 1 where it could not be carried out."""
    if isinstance(error, QfleetError):
        return in_one_line(error), error.exit_code
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's own: an unknown option, a value of the wrong type
        path = getattr(getattr(error, "ctx", None), "command_path", "qfleet")
        return f"{in_one_line(format_message()).rstrip('.')}; see {path} --help", getattr(error, "exit_code", 2)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or type(error).__name__).lower()}", 1
    return f"internal: {type(error).__name__}: {in_one_line(error)}; run again with --debug for the traceback", 1


def least_width(head: str, texts: Iterable[str]) -> int:
    """Of a column of numbers: no word of its head and no line of its cells is broken or cut."""
    words = [*head.split(), *(line for text in texts for line in text.split("\n"))]
    return max(map(len, words), default=0)
