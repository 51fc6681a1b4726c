"""`qfleet attach`: look on at a run that was started with --detach, see its end, or ask it to stop."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples
from qfleet.cli.interrupts import Interrupts

if TYPE_CHECKING:
    from qfleet.experiment import Experiment

EXAMPLES = examples("qfleet attach runs/fleet", "qfleet attach runs/fleet --stop", "qfleet attach runs/fleet --json")
INTERRUPTED = 130


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("attach", epilog=EXAMPLES)(attach)


def attach(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory of qfleet train --detach.")],
    stop: Annotated[bool, typer.Option("--stop", help="Ask the run to save and stop.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Show a detached run until it ends, and its result; Ctrl-C leaves it running.

    Exit codes: those of the run; 0 after --stop, 130 after Ctrl-C or where somebody else has stopped it.
    """
    from qfleet.attached import DetachedRun
    from qfleet.cli.train import run_one

    out = Output(as_json, quiet)
    run = DetachedRun(run_dir)
    if stop:
        run.stop()
    try:
        run.open()
        # A DetachedRun has what run_one asks of an Experiment; a signal is not for the run, so nobody handles it.
        code = run_one(cast("Experiment", run), out, Interrupts())
    except KeyboardInterrupt:
        print(f"detached: the run goes on; {how_to_attach(run_dir)}", file=sys.stderr, flush=True)
        return INTERRUPTED
    return INTERRUPTED if run.was_interrupted and not stop else code


def how_to_attach(run_dir: Path) -> str:
    """The command."""
    return f"attach again with: qfleet attach {shlex.quote(str(run_dir))}"
