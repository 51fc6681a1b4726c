"""`qfleet recipes`: what there is to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples

if TYPE_CHECKING:
    from qfleet.recipe import Recipe

LIST_EXAMPLES = examples("qfleet recipes", "qfleet recipes --json", "qfleet recipes show cartpole")
SHOW_EXAMPLES = examples(
    "qfleet recipes show cartpole",
    "qfleet recipes show cartpole > mine.toml",
    "qfleet train CartPole-v1 --recipe mine.toml",
)


def add_to(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    group = typer.Typer()
    group.callback(invoke_without_command=True, epilog=LIST_EXAMPLES)(list_all)
    group.command("show", epilog=SHOW_EXAMPLES)(show)
    app.add_typer(group, name="recipes")


def list_all(
    ctx: typer.Context, as_json: JsonOption = False, quiet: QuietOption = False, debug: DebugOption = False
) -> int:
    """List the recipes that come with qfleet; `recipes show NAME` prints one."""
    if ctx.invoked_subcommand is not None:
        return 0
    from qfleet.recipe import list_recipes

    out = Output(as_json, quiet)
    found = list_recipes()
    if not as_json and not quiet:
        width = max(len(recipe.name) for recipe in found)
        for recipe in found:
            print(f"{recipe.name:<{width}}  {recipe.fits:<16} {axes(recipe)}\n{'':<{width}}  {recipe.summary}")
        print(
            "\nqfleet train ENV takes the recipe of its environment, else that of its family (ALE/*: atari-pqn, "
            "MinAtar/*: minatar-dqn;\n--recipe rainbow or --algo iqn takes another of the family's), else vector or "
            "image by its observations."
        )
    names = "\n".join(recipe.name for recipe in found)
    out.result({"recipes": [describe(recipe) for recipe in found]}, names if quiet else None)
    return 0


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe's name, or a TOML file.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Print a recipe as TOML."""
    from qfleet.recipe import find_recipe

    recipe = find_recipe(name)
    Output(as_json, quiet).result({**describe(recipe), "toml": recipe.text}, recipe.text.rstrip("\n"))
    return 0


def axes(recipe: Recipe) -> str:
    """algorithm x strategy x engine, with what the recipe leaves open as its default."""
    from qfleet.plugins import PLUGIN_SECTIONS

    names = []
    for section, (_, default) in PLUGIN_SECTIONS.items():
        table = recipe.values.get(section, {})
        names.append(str(table.get("name", default) if isinstance(table, dict) else table))
    return " x ".join(names)


def describe(recipe: Recipe) -> dict[str, object]:
    """A recipe for --json."""
    return {"name": recipe.name, "summary": recipe.summary, "env": recipe.env_id, "axes": axes(recipe)}
