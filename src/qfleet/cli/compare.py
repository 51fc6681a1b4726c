"""`qfleet compare`: options to a comparison, its cells behind the display, and its tables."""

from __future__ import annotations

import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples, least_width
from qfleet.cli.interrupts import Interrupts
from qfleet.cli.train import EngineOption, RecipeOption, SetOption, module_names, play

if TYPE_CHECKING:
    from rich.table import Table

    from qfleet.comparison.cells import Outcome, Summary
    from qfleet.comparison.plan import Cell, Plan, Request
    from qfleet.comparison.results import Comparison
    from qfleet.experiment import Experiment

EXAMPLES = examples(
    "qfleet compare CartPole-v1 --strategies serial,parameter_server,all_reduce --budget env_steps=20000",
    "qfleet compare CartPole-v1 --strategies parameter_server,parameter_server:wait=async --workers 4",
    "qfleet compare CartPole-v1 --strategies serial,serial:algo.double=false --seeds 10 --out runs/double",
)
LEARNING = ("held_out_return", "env_steps_to_threshold", "seconds_to_threshold")
SPEED = ("env_steps_per_second", "updates_per_second", "bytes_moved")
LAGS = ("staleness", "policy_lag", "priority_age")


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("compare", epilog=EXAMPLES)(compare)


def compare(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="A Gymnasium environment: CartPole-v1, or my_package:MyEnv-v0.")
    ],
    strategies: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help=f"What to compare: {module_names('strategies')}; each may be followed by settings, "
            "as in parameter_server:wait=async:num_servers=2.",
        ),
    ],
    algos: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Each strategy with each of these; else the recipe's own.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds of each, the same for all.")] = 5,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=N", help="Of each run: env_steps=N, updates=N or seconds=N; else the recipe's limit."
        ),
    ] = None,
    engine: EngineOption = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Workers of each strategy that has any.")
    ] = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes, and goes on; else a new one under runs/.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Compare strategies: the same budget and the same seeds for all, run in turn.

    The same command with the same --out goes on where it was stopped: finished runs are not run again.

    Exit codes: 0 all runs finished, 1 some failed, 2 wrong request, 130 or 143 interrupted.
    """
    from qfleet.comparison.cells import check_folder
    from qfleet.comparison.plan import Request, make_plan
    from qfleet.run_config import parse_override

    overrides = dict(parse_override(text) for text in settings or [])
    request = Request(env, strategies, algos, seeds, budget, engine, recipe, workers, overrides)
    console = Output(as_json, quiet)
    plan = make_plan(request, out or default_folder(env))
    check_folder(plan)
    command = command_line(request, settings or [], plan.out)
    with Interrupts() as interrupts:
        return run(plan, command, console, interrupts)


def default_folder(env: str) -> Path:
    """runs/compare-<env>-<time>."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", env).strip("-")
    return Path("runs") / f"compare-{name}-{datetime.now():%Y%m%d-%H%M%S}"


def command_line(request: Request, settings: list[str], out: Path) -> str:
    """The command that makes a comparison, or goes on with it."""
    words = ["qfleet", "compare", request.env, "--strategies", request.strategies]
    options = {
        "--algos": request.algos,
        "--seeds": request.num_seeds,
        "--budget": request.budget,
        "--engine": request.engine,
        "--workers": request.num_workers,
        "--recipe": request.recipe,
    }
    for name, value in options.items():
        words += [] if value is None else [name, str(value)]
    for setting in settings:
        words += ["--set", setting]
    return shlex.join([*words, "--out", str(out)])


def run(plan: Plan, command: str, out: Output, interrupts: Interrupts) -> int:
    """Run what is left to run, and report; returns the exit code."""
    from qfleet.comparison.cells import look, run_cells
    from qfleet.comparison.report import write_json, write_report
    from qfleet.comparison.results import compare as sum_up

    there = look(plan)
    num_cells, num_there = len(there), sum(outcome.status == "finished" for outcome in there)
    out.say(f"{plan.env}: {len(plan.variants)} variants x {len(plan.seeds)} seeds, {plan.budget} each; in {plan.out}")
    if num_there:
        out.say(f"{num_there} of {num_cells} runs are finished already")
    write_json(sum_up(plan, there, command), plan.out)

    def play_cell(cell: Cell, experiment: Experiment) -> Summary:
        label = f"{cell.variant.label} seed {cell.seed} ({len(outcomes) + 1} of {num_cells})"
        return play(experiment, out, interrupts, label)

    outcomes: list[Outcome] = []
    for outcome in run_cells(plan, play_cell):
        outcomes.append(outcome)
        if outcome.is_new:
            out.say(cell_line(outcome))
            write_json(sum_up(plan, outcomes, command), plan.out)
        if interrupts.number is not None:
            break
    # An interrupt leaves out what comes later in the order, which may have been run before.
    done = {outcome.cell.run_dir for outcome in outcomes}
    outcomes += [outcome for outcome in there if outcome.cell.run_dir not in done]
    comparison = sum_up(plan, outcomes, command)
    for warning in write_report(comparison, plan.out):
        out.note(warning)
    return report(comparison, plan.out, out, interrupts)


def report(comparison: Comparison, folder: Path, out: Output, interrupts: Interrupts) -> int:
    """Print a comparison; returns the exit code."""
    from qfleet.comparison.report import PAGE_NAME, PICTURE_NAME
    from qfleet.comparison.wording import notes

    if comparison.count("finished"):
        for names in (LEARNING, SPEED, LAGS):
            shown = table(comparison, names)
            if shown is not None:
                out.show(shown)
    failures = [cell for cell in comparison.cells if cell.status == "failed"]
    for cell in failures:
        out.note(f"failed: {cell.label} seed {cell.seed}: {cell.error}")
    for line in notes(comparison):
        out.say(line)
    for name in (PAGE_NAME, PICTURE_NAME):
        if (folder / name).is_file():
            out.say(f"  {folder / name}")
    if interrupts.number is not None:
        out.note(f"interrupted; go on with: {comparison.command}")
    out.result(comparison.to_json(), result_line(comparison, folder) if out.quiet else None)
    return interrupts.exit_code or (1 if failures else 0)


def cell_line(outcome: Outcome) -> str:
    """A cell that was run now, in a line."""
    name = f"{outcome.cell.variant.label} seed {outcome.cell.seed}"
    if outcome.summary is None:
        return f"{name}: {outcome.status}{'' if outcome.error is None else f': {outcome.error}'}"
    score, steps = outcome.summary["eval"], outcome.summary["num_env_steps"]
    mean = f"held-out return {score['mean_return']:.1f}, " if isinstance(score, dict) else ""
    return f"{name}: {mean}{steps:,} env steps, {outcome.summary['train_seconds']:.1f} s"


def result_line(comparison: Comparison, folder: Path) -> str:
    """A comparison in one line."""
    from qfleet.report.wording import middle

    scores = [f"{one.label} {middle(one.measures.get('held_out_return'), 'return')}" for one in comparison.variants]
    return f"{comparison.env}: held-out return {', '.join(scores)}, {folder}"


def table(comparison: Comparison, names: tuple[str, ...]) -> Table | None:
    """Variants, a row each, with the interval below each number; None where none of these numbers is known."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from qfleet.comparison.wording import is_shown, reached, title_of
    from qfleet.report.measures import MEASURES
    from qfleet.report.wording import interval, middle

    chosen = [measure for measure in MEASURES if measure.name in names and is_shown(measure, comparison)]
    if not chosen:
        return None
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    if "held_out_return" in names:
        shown.title, shown.title_justify, shown.title_style = title_of(comparison), "left", "bold"
        shown.min_width = len(title_of(comparison))
    # One setting and one kind of role to a line leaves room for the numbers.
    about = [(variant.label.replace(":", "\n:"), "\n".join(variant.roles)) for variant in comparison.variants]
    shown.add_column("", no_wrap=True, min_width=least_width("", [text for pair in about for text in pair]))
    columns = [
        [
            (middle(number, measure.format), interval(number, measure.format))
            for variant in comparison.variants
            for number in [variant.measures.get(measure.name)]
        ]
        for measure in chosen
    ]
    heads = [measure.title for measure in chosen]
    if any(measure.name.endswith("to_threshold") for measure in chosen):
        heads.append(f"reached {comparison.threshold:g}")
        columns.append([(reached(variant), "") for variant in comparison.variants])
    for head, texts in zip(heads, columns, strict=True):
        shown.add_column(head, justify="right", min_width=least_width(head, [text for pair in texts for text in pair]))
    for pairs in zip(about, *columns, strict=True):
        shown.add_row(*(Text.assemble(first, (f"\n{below}" if below else "", "dim")) for first, below in pairs))
    return shown
