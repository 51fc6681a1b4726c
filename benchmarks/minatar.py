"""MinAtar's games by the family's recipes over several seeds: scores, curves, and the page of the documentation.

    python benchmarks/minatar.py --jobs 2 --runs runs/minatar --record docs/results/minatar.jsonl
    python benchmarks/minatar.py --only-page --record docs/results/minatar.jsonl --out minatar.md --picture minatar.png

Each run is a `qfleet train` of its own with one thread; `--jobs` of them at once, so seconds are no speed claim. What
the record holds is not run again, and what was interrupted is resumed. Nothing is tuned per game.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import Json, last_json_object, markdown_page, markdown_table, qfleet_command, write_page

# Env steps of each game's runs.
BUDGETS = {
    "Breakout": 1_000_000,
    "SpaceInvaders": 1_000_000,
    "Freeway": 300_000,
    "Asterix": 300_000,
    "Seaquest": 300_000,
}
RECIPES = ("dqn", "rainbow")


@dataclass(frozen=True, order=True)
class Cell:
    """One run."""

    seed: int
    game: str
    recipe: str

    @property
    def name(self) -> str:
        return f"{self.game}-{self.recipe}-{self.seed}"

    @property
    def words(self) -> list[str]:
        """The arguments of `qfleet` that train it, without the output."""
        limit = ["--max-env-steps", str(BUDGETS[self.game])]
        return ["train", f"MinAtar/{self.game}-v1", "--recipe", self.recipe, "--seed", str(self.seed), *limit]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; not more than cores")
    parser.add_argument("--runs", type=Path, default=Path("runs/minatar"), help="folder of the run directories")
    parser.add_argument("--record", type=Path, required=True, help="JSON Lines file; finished runs are added")
    parser.add_argument("--only-page", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument("--picture", type=Path, help="PNG of the learning curves")
    parser.add_argument("--qfleet", help="command in place of the installed qfleet")
    return parser.parse_args()


def read_record(path: Path) -> dict[str, dict[str, Json]]:
    """Finished runs by name."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {str(entry["name"]): entry for entry in map(json.loads, lines)}


def curve_of(run_dir: Path) -> list[list[float]]:
    """[env steps, mean greedy return] of each validation."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [[r["num_env_steps"], r["mean_return"]] for r in records if r["kind"] == "evaluation"]


def play(cell: Cell, args: argparse.Namespace) -> dict[str, Json]:
    """Train it, or go on with it; what the record is to hold."""
    run_dir = args.runs / cell.name
    words = cell.words
    if (run_dir / "checkpoints").is_dir():
        words = ["train", "--resume", str(run_dir), "--max-env-steps", str(BUDGETS[cell.game])]
    output = ["--json", "--quiet"] if "--resume" in words else ["--json", "--quiet", "--run-dir", str(run_dir)]
    done = subprocess.run([*qfleet_command(args.qfleet), *words, *output], capture_output=True, text=True, check=False)
    summary = last_json_object(done.stdout)
    if summary is None or done.returncode:
        sys.exit(f"{cell.name}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    kept = ("eval", "num_env_steps", "num_frames", "num_updates", "num_episodes", "train_seconds")
    return {"name": cell.name, **vars(cell), **{key: summary[key] for key in kept}, "curve": curve_of(run_dir)}


def run_cells(cells: Iterable[Cell], args: argparse.Namespace) -> None:
    args.record.parent.mkdir(parents=True, exist_ok=True)

    def finish(cell: Cell) -> None:
        entry = play(cell, args)
        with args.record.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{cell.name}: {entry['eval']['mean_return']:.1f}", file=sys.stderr, flush=True)  # type: ignore[index]

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(finish, cells))


def row(game: str, recipe: str, entries: Sequence[dict[str, Json]]) -> list[str]:
    words = Cell(0, game, recipe).words
    command = shlex.join(["qfleet", *words]).replace("--seed 0 ", "")
    finals = np.array([entry["eval"]["mean_return"] for entry in entries])  # type: ignore[index]
    each = ", ".join(f"{value:.1f}" for value in finals)
    best = [max(value for _, value in entry["curve"]) for entry in entries]  # type: ignore[union-attr, misc]
    seconds = np.median([entry["train_seconds"] for entry in entries])
    spread = f"{finals.mean():.1f} ± {finals.std(ddof=1):.1f}" if len(finals) > 1 else f"{finals.mean():.1f}"
    return [game, recipe, spread, each, f"{np.mean(best):.1f}", f"{seconds:,.0f}", f"`{command}`"]


def draw(groups: dict[tuple[str, str], list[dict[str, Json]]], path: Path) -> None:
    """A panel per game, a line per recipe, the seeds' range around it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    games = list(dict.fromkeys(game for game, _ in groups))
    figure, panels = pyplot.subplots(
        1, len(games), figsize=(3.2 * len(games), 3.0), squeeze=False, layout="constrained"
    )
    for panel, game in zip(panels[0], games, strict=True):
        for (other, recipe), entries in groups.items():
            if other != game:
                continue
            length = min(len(entry["curve"]) for entry in entries)  # type: ignore[arg-type]
            curves = np.array([entry["curve"][:length] for entry in entries])  # type: ignore[index]
            steps, values = curves[0, :, 0] / 1e6, curves[:, :, 1]
            (line,) = panel.plot(steps, values.mean(axis=0), label=recipe)
            panel.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color())
        panel.set_title(game)
        panel.set_xlabel("million env steps")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("greedy return, 30 episodes")
    panels[0][0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    args = parse_arguments()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    cells = sorted(Cell(seed, game, recipe) for game in args.games for recipe in args.recipes for seed in seeds)
    record = read_record(args.record)
    if not args.only_page:
        # The short ones first: an interrupted sitting leaves whole games.
        waiting = [cell for cell in cells if cell.name not in record]
        run_cells(sorted(waiting, key=lambda cell: (BUDGETS[cell.game], cell.game, cell)), args)
        record = read_record(args.record)
    groups: dict[tuple[str, str], list[dict[str, Json]]] = {}
    for cell in sorted(cells, key=lambda cell: (list(BUDGETS).index(cell.game), cell.recipe, cell.seed)):
        if cell.name in record:
            groups.setdefault((cell.game, cell.recipe), []).append(record[cell.name])
    headers = [
        "game",
        "recipe",
        "held-out return, mean ± std over seeds",
        "each seed",
        "best validation",
        "seconds",
        "command",
    ]
    table = markdown_table(headers, [row(*key, entries) for key, entries in groups.items()])
    notes = [
        "Held-out: greedy episodes of the best validated policy on seeds of their own, at the end of the run.",
        "Seconds: median of the training clock with as many runs at once as cores.",
    ]
    if args.picture is not None:
        draw(groups, args.picture)
    write_page(markdown_page("MinAtar", sys.executable, table, notes), args.out)


if __name__ == "__main__":
    main()
