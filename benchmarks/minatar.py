"""MinAtar's games by the family's recipes over several seeds: scores, curves, and the page of the documentation.

    python benchmarks/minatar.py --jobs 2 --runs runs/minatar --record runs/minatar.jsonl
    python benchmarks/minatar.py --only-page --record runs/minatar.jsonl --out minatar.md --picture minatar.png

Each run is a `qfleet train` of its own with one thread; `--jobs` of them at once, so seconds are no speed claim. What
the record holds is not run again, and what was interrupted is resumed. Nothing is tuned per game.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness import markdown_page, markdown_table, write_page
from recorded import Entry, Training, run_waiting

# Env steps of each game's runs.
BUDGETS = {
    "Breakout": 1_000_000,
    "SpaceInvaders": 1_000_000,
    "Freeway": 300_000,
    "Asterix": 300_000,
    "Seaquest": 300_000,
}
RECIPES = ("dqn", "rainbow")


def training_of(game: str, recipe: str, seed: int, more: str = "") -> Training:
    words = ("train", f"MinAtar/{game}-v1", "--recipe", recipe, *shlex.split(more), "--seed", str(seed))
    about: dict[str, str | int] = {"game": game, "recipe": recipe, "seed": seed}
    return Training(f"{game}-{recipe}-{seed}", about, words, ("--max-env-steps", str(BUDGETS[game])))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; not more than cores")
    parser.add_argument("--runs", type=Path, default=Path("runs/minatar"), help="folder of the run directories")
    parser.add_argument("--record", type=Path, required=True, help="JSON Lines file; finished runs are added")
    parser.add_argument("--only-page", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument("--picture", type=Path, help="PNG of the learning curves")
    parser.add_argument("--qfleet", help="command in place of the installed qfleet")
    parser.add_argument("--qfleet-args", default="", help="more arguments for every `qfleet train`")
    parser.add_argument("--games", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    return parser.parse_args()


def row(game: str, recipe: str, entries: Sequence[Entry], more: str) -> list[str]:
    training = training_of(game, recipe, 0, more)
    command = shlex.join(["qfleet", *training.words[:-2], *training.limits])
    finals = np.array([entry["eval"]["mean_return"] for entry in entries])
    each = ", ".join(f"{value:.1f}" for value in finals)
    best = [max(value for *_, value in entry["curve"]) for entry in entries]
    seconds = np.median([entry["train_seconds"] for entry in entries])
    spread = f"{finals.mean():.1f} ± {finals.std(ddof=1):.1f}" if len(finals) > 1 else f"{finals.mean():.1f}"
    return [game, recipe, spread, each, f"{np.mean(best):.1f}", f"{seconds:,.0f}", f"`{command}`"]


def draw(groups: dict[tuple[str, str], list[Entry]], path: Path) -> None:
    """A panel per game, a line per recipe, the seeds' range around it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    games = list(dict.fromkeys(game for game, _ in groups))
    figure, panels = pyplot.subplots(
        1, len(games), figsize=(3.2 * len(games), 3.0), squeeze=False, layout="constrained"
    )
    lines = {}
    for panel, game in zip(panels[0], games, strict=True):
        for (other, recipe), entries in groups.items():
            if other != game:
                continue
            length = min(len(entry["curve"]) for entry in entries)
            curves = np.array([entry["curve"][:length] for entry in entries])
            steps, values = curves[0, :, 0] / 1e6, curves[:, :, 2]
            color = f"C{RECIPES.index(recipe)}"
            (lines[recipe],) = panel.plot(steps, values.mean(axis=0), color=color)
            panel.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=color)
        panel.set_title(game)
        panel.set_xlabel("million env steps")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("greedy return, 30 episodes")
    panels[0][0].legend(lines.values(), lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    args = parse_arguments()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    keys = [(game, recipe, seed) for game in args.games for recipe in args.recipes for seed in seeds]
    # The short ones first, seed by seed: a sitting that is interrupted leaves whole games.
    in_turn = sorted(keys, key=lambda key: (BUDGETS[key[0]], key[0], key[2]))
    trainings = [training_of(*key, args.qfleet_args) for key in in_turn]
    record = run_waiting(trainings, args, lambda entry: f"{entry['eval']['mean_return']:.1f}")
    groups: dict[tuple[str, str], list[Entry]] = {}
    for game, recipe, seed in keys:
        if (entry := record.get(training_of(game, recipe, seed).name)) is not None:
            groups.setdefault((game, recipe), []).append(entry)
    headers = ["game", "recipe", "held-out return, mean ± std", "each seed", "best validation", "seconds", "command"]
    table = markdown_table(headers, [row(*key, entries, args.qfleet_args) for key, entries in groups.items()])
    notes = [
        "Held-out: greedy episodes of the best validated policy on seeds of their own, at the end of the run.",
        "Seconds: median of the training clock, with as many runs at once as cores.",
    ]
    if args.picture is not None:
        draw(groups, args.picture)
    write_page(markdown_page("MinAtar", sys.executable, table, notes), args.out)


if __name__ == "__main__":
    main()
