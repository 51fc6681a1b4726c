"""`qfleet plan`: options to a plan, its progress, and its table."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples, least_width
from qfleet.cli.train import AlgoOption, RecipeOption, SetOption, module_names

if TYPE_CHECKING:
    from rich.table import Table

    from qfleet.planning.cluster import PlannedCluster
    from qfleet.planning.results import PlanResult, Row

EXAMPLES = examples(
    "qfleet plan CartPole-v1",
    "qfleet plan CartPole-v1 --strategies all_reduce,parameter_server:wait=async --workers 1,2,4,...,64",
    "qfleet plan CartPole-v1 --workers 8 --cluster cluster.toml --target-return 475 --seeds 5 --out plan.html",
    "qfleet plan CartPole-v1 --engine ray --save-cluster measured.toml",
)


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("plan", epilog=EXAMPLES)(plan)


def plan(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="A Gymnasium environment: CartPole-v1, or my_package:MyEnv-v0.")
    ],
    strategies: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help=f"What to plan: all, or {module_names('strategies')}; each may be followed by settings, "
            "as in parameter_server:wait=async:num_servers=2.",
        ),
    ] = "all",
    workers: Annotated[
        str, typer.Option(metavar="N,N,...", help="Sizes; three dots go on as the two numbers before them do.")
    ] = "1,2,4,...,1024",
    cluster: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What calls, messages and machines cost; what it leaves open is measured."),
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Take the costs of a past run instead of measuring.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="On which calls are measured: inline, or ray with all that Ray adds.")
    ] = "inline",
    save_cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the costs, to be edited and given with --cluster.")
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prices of machines, in place of the dated list that comes with qfleet."),
    ] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME", help="A machine of the prices; else the one whose core costs least.")
    ] = None,
    target_return: Annotated[
        float | None, typer.Option(metavar="R", help="Learn, in virtual time, until this return: time and money to it.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Seeds of each learned configuration.")] = 3,
    learn: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Sizes that are learned; else those of up to 16 workers.")
    ] = None,
    max_env_steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Env steps of a learned run; else the recipe's limit.")
    ] = None,
    recipe: RecipeOption = None,
    algo: AlgoOption = None,
    settings: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page (.html), with pictures beside it.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Plan a run: which strategy, on how many workers, how fast and for how much; simulated with measured costs.

    Exit codes: 0 planned, 1 nothing could be, 2 wrong request.
    """
    from qfleet.errors import UsageError
    from qfleet.planning.grid import Request, make_grid, parse_sizes
    from qfleet.planning.planner import Learning
    from qfleet.planning.planner import plan as make_plan
    from qfleet.planning.prices import read_prices
    from qfleet.planning.sources import Sources, find_costs, read_file
    from qfleet.run_config import parse_override

    console = Output(as_json, quiet)
    if learn is not None and target_return is None:
        raise UsageError(f"--learn {learn}: say what is to be reached, with --target-return")
    if engine not in ("inline", "threads", "ray"):
        raise UsageError(f"--engine {engine}: calls are measured on inline, threads or ray")
    if from_run is not None and engine != "inline":
        raise UsageError("--from-run and --engine: costs are either of a past run or measured; leave one out")
    overrides = dict(parse_override(text) for text in settings or [])
    table = read_prices(prices)
    table.choose(machine)
    read_file(cluster)
    if out is not None and out.suffix != ".html":
        raise UsageError(f"--out {out}: a page is written; give a name that ends in .html")
    for path in (out, save_cluster):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.absolute().parent}")
    sizes = parse_sizes(workers) if learn is None else sorted({*parse_sizes(workers), *parse_sizes(learn)})
    request = Request(env, strategies, ",".join(map(str, sizes)), algo, recipe, overrides)
    grid = make_grid(request)
    planned = find_costs(grid, Sources(cluster, from_run, engine), console.say)
    show_origins(planned, console)
    if save_cluster is not None:
        save_cluster.write_text(planned.to_toml(), "utf-8")
        console.say(f"costs written to {save_cluster}")
    learning = None
    if target_return is not None:
        learned = None if learn is None else tuple(parse_sizes(learn))
        learning = Learning(target_return, seeds, learned, max_env_steps)
    command = shlex.join(["qfleet", *sys.argv[1:]])
    result = make_plan(grid, planned, table, machine, learning, command, console.say)
    return report(result, out, console)


def report(result: PlanResult, out: Path | None, console: Output) -> int:
    """Print a plan; returns the exit code."""
    from qfleet.planning.wording import LIMIT, MONEY, SPEED, title_of

    for names, title in ((SPEED, title_of(result)), (LIMIT, ""), (MONEY, "")):
        console.show(table_of(result, names, title))
    for name, why in result.refused():
        console.say(f"{name}: {why}")
    for label, text in result.saturates.items():
        console.say(f"{label}: first saturates: {text}")
    from qfleet.planning.page import prices_text

    console.say(prices_text(result))
    if out is not None:
        write(result, out, console)
    chosen = result.recommendation
    console.say(f"recommended: {chosen.why}" if chosen is not None else "recommended: nothing")
    line = chosen.why if console.quiet and chosen is not None else None
    console.result(result.to_json(), line)
    return 0 if any(row.timing is not None for row in result.rows) else 1


def write(result: PlanResult, out: Path, console: Output) -> None:
    """Write the page, and the picture beside it; a picture is worth no plan."""
    from qfleet.planning.page import page
    from qfleet.planning.picture import draw_picture

    out.write_text(page(result), "utf-8")
    console.say(f"  {out}")
    picture = out.with_suffix(".png")
    try:
        draw_picture(result, picture)
        console.say(f"  {picture}")
    except Exception as error:
        console.note(f"{picture} was not drawn: {type(error).__name__}: {error}")


def show_origins(cluster: PlannedCluster, console: Output) -> None:
    """Where each number is from."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, title="What calls and messages cost", title_justify="left")
    for name in ("what", "cost", "from"):
        shown.add_column(name, overflow="fold")
    for one in cluster.origins:
        shown.add_row(one.name, one.value, one.source)
    console.show(shown)


def table_of(result: PlanResult, names: tuple[str, ...], title: str) -> Table:
    """A row for each strategy and size that was timed."""
    from rich import box
    from rich.table import Table

    from qfleet.planning.wording import LIMIT, cell, heads, split_label

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.title, shown.title_justify, shown.title_style = title or None, "left", "bold"
    shown.min_width = len(title)
    longest = max((len(part) for label in result.strategies() for part in split_label(label).split("\n")), default=0)
    shown.add_column("", no_wrap=True, min_width=longest)
    shown.add_column("workers", justify="right", no_wrap=True)
    columns = heads(names, result)
    for name in columns:
        if name in LIMIT:
            shown.add_column(name, overflow="fold")
        else:
            texts = [cell(row, name) for row in result.rows if row.timing is not None]
            shown.add_column(name, justify="right", min_width=least_width(name, texts), no_wrap=" " not in name)
    for label in result.strategies():
        own = [row for row in result.rows if row.label == label and row.timing is not None]
        lines = [*split_label(label).split("\n"), *[""] * len(own)]
        for index, row in enumerate(own):
            # The last row takes what is left of the name.
            name = "\n".join(lines[index:]).rstrip() if index == len(own) - 1 else lines[index]
            cells = [cell(row, column) for column in columns]
            shown.add_row(name, f"{row.num_workers:,}", *cells, style=style_of(row, result))
    return shown


def style_of(row: Row, result: PlanResult) -> str:
    """The recommended row stands out."""
    chosen = result.recommendation
    is_chosen = chosen is not None and (chosen.label, chosen.num_workers) == (row.label, row.num_workers)
    return "bold" if is_chosen else ""
