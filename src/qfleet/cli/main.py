"""The `qfleet` command. Nothing here imports torch, so that `qfleet --help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qfleet.cli import attach, compare, doctor, evaluate, export, plan, recipes, report, scale, serve, train
from qfleet.cli.console import DebugOption, Group, examples
from qfleet.version import __version__

app = typer.Typer(
    name="qfleet",
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Train one Q-network on any fleet: algorithm, strategy and engine are three independent choices.",
    epilog=examples(
        "qfleet train CartPole-v1",
        "qfleet evaluate runs/CartPole-v1-dqn-20260101-120000-seed0",
        "qfleet recipes",
        "qfleet doctor",
    ),
)


def print_version(wanted: bool) -> None:
    """The answer to --version."""
    if wanted:
        print(f"qfleet {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Options that stand before the command; --debug is read by `Group`, wherever it stands."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


train.add_to(app)
scale.add_to(app)
attach.add_to(app)
evaluate.add_to(app)
export.add_to(app)
serve.add_to(app)
compare.add_to(app)
report.add_to(app)
plan.add_to(app)
recipes.add_to(app)
doctor.add_to(app)


def main() -> None:
    """Entry point of the `qfleet` script."""
    # As with `python -m`: environments and networks beside the user are found by their module's name.
    sys.path.append(str(Path.cwd()))
    app()
