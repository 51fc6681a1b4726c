"""`qfleet scale`: another number of workers for a run that is under way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples
from qfleet.errors import UsageError

EXAMPLES = examples("qfleet scale runs/fleet --workers 8", "qfleet scale runs/fleet --workers 1 --json")


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("scale", epilog=EXAMPLES)(scale)


def scale(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run that is under way.")],
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="How many workers it is to have from now on.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Have a run under way hire workers, or let some go; it says so as they join and leave."""
    from qfleet.steering import ask_workers

    check_scalable(run_dir, workers)
    ask_workers(run_dir, workers)
    out = Output(as_json, quiet)
    out.result(
        {"run_dir": str(run_dir), "num_workers": workers}, f"{run_dir}: asked for {workers} workers, within a second"
    )
    return 0


def check_scalable(run_dir: Path, num_workers: int) -> None:
    """Refuse what is no run under way with a number of workers.

    Raises:
        UsageError: one line, naming what to do instead.
    """
    from qfleet.cli.train import check_workers
    from qfleet.machine import is_running
    from qfleet.recipe import read_config

    if not (run_dir / "config.toml").is_file():
        raise UsageError(f"{run_dir}: no run here (config.toml is missing)")
    strategy = read_config(run_dir / "config.toml").strategy
    if not check_workers(strategy, num_workers):
        raise UsageError(f"--workers {num_workers}: strategy {strategy.name} always runs one worker")
    if is_running(run_dir):
        return
    if (run_dir / "summary.json").is_file():
        raise UsageError(f"{run_dir}: this run is finished; there is nothing to scale")
    raise UsageError(
        f"{run_dir}: nobody is training here; continue it with: qfleet train --resume {run_dir} --workers {num_workers}"
    )
