"""`qfleet evaluate`: greedy episodes of a policy, and how fast its run came to it."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples
from qfleet.errors import QfleetError
from qfleet.run_dir import refuse_others

if TYPE_CHECKING:
    from rich.table import Table

    from qfleet.envs.config import EnvConfig
    from qfleet.evaluation.convergence import Convergence
    from qfleet.evaluation.players import Player
    from qfleet.evaluation.score import Score
    from qfleet.evaluation.video import Film

EXAMPLES = examples(
    "qfleet evaluate runs/acrobot",
    "qfleet evaluate runs/acrobot --episodes 1000 --seed 7 --workers 4",
    "qfleet evaluate acrobot.onnx --json",
    "qfleet evaluate http://127.0.0.1:8000 --env Acrobot-v1",
    "qfleet evaluate runs/pong --video pong.mp4",
)
DEFAULT_EPISODES = 100  # of a policy that is no run
MOST_ACTIONS = 8  # that are named in a line


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("evaluate", epilog=EXAMPLES)(evaluate)


def evaluate(
    policy: Annotated[
        str,
        typer.Argument(
            metavar="RUN_DIR|FILE.onnx|URL",
            help='A run directory, an exported policy, or where one is served; "random" plays by chance.',
        ),
    ],
    env: Annotated[
        str | None, typer.Option(metavar="ENV", help="Another environment with the same observations and actions.")
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="How many; else the run's evaluation.final_episodes, or 100."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, help="Seed of the episodes; never those seen in training.")
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that play; the result is the same for any number.")
    ] = 1,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also record one episode, as .mp4 or .gif.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Play complete greedy episodes and print the score; of a run also how fast it learned.

    A served policy that needs a token is asked with the one in QFLEET_TOKEN.
    """
    from qfleet.evaluation.episodes import make_plan, play
    from qfleet.evaluation.players import find_env, kind_of, open_player
    from qfleet.evaluation.score import score

    out = Output(as_json, quiet)
    if video is not None:
        from qfleet.evaluation.video import check_video

        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames need no window, and no word about there being none
        check_video(video)
    if kind_of(policy) == "run":
        refuse_others(Path(policy))
    player = open_player(policy)
    where = find_env(player, env)
    chosen_seed = player.seed if seed is None else seed
    num_episodes = episodes or (player.limits.final_episodes if kind_of(policy) == "run" else DEFAULT_EPISODES)
    out.say(f"{where.id}: {describe(player, policy)}")
    plan = make_plan(policy, where, player.limits, num_episodes, chosen_seed)
    started = time.perf_counter()
    found = score(play(plan, workers))
    seconds = time.perf_counter() - started
    result = {
        **found.to_json(),
        "env": where.id,
        "run_dir" if kind_of(policy) == "run" else "policy": policy,
        **player.about,
        "seed": chosen_seed,
    }
    for line in score_lines(found, seconds):
        out.say(line)
    if video is not None:
        from qfleet.evaluation.video import record_episode

        film = record_episode(player, where, video, plan.seed)
        result["video"] = {**dataclasses.asdict(film), "path": str(video)}
        out.say(film_line(film))
    if kind_of(policy) == "run" and where == player.env:
        way = None
        try:
            way = how_fast(player, Path(policy), where)
        except QfleetError as error:  # the score is there, and worth more
            out.note(f"how fast it learned is unknown: {error}")
        result["convergence"] = None if way is None else way.to_json()
        if way is not None:
            out.say(way_line(way))
            out.show(way_table(way))
    out.result(result, score_line(found) if quiet else None)
    return 0


def describe(player: Player, name: str) -> str:
    """Who plays, in words."""
    about = player.about
    if about.get("num_env_steps") is None or about.get("validation_return") is None:
        return f"policy {name}"
    return (
        f"{about['algo']} policy of {about['num_env_steps']:,} env steps "
        f"(validation return {about['validation_return']:.1f} over {about['validation_episodes']} episodes)"
    )


def how_fast(player: Player, run_dir: Path, env: EnvConfig) -> Convergence | None:
    """The run's way from chance to its target; plays a few random episodes."""
    from qfleet.evaluation.convergence import RANDOM_EPISODES, read_convergence
    from qfleet.evaluation.episodes import make_plan, play
    from qfleet.evaluation.players import RANDOM

    assert player.spec is not None
    chance = play(make_plan(RANDOM, env, player.limits, RANDOM_EPISODES, player.seed)).returns
    return read_convergence(run_dir, player.spec, sum(chance) / len(chance))


def score_line(found: Score) -> str:
    """A score in one line."""
    return (
        f"return {found.mean:.2f} +/- {found.std:.2f} (min {found.min:.1f}, max {found.max:.1f}) "
        f"over {found.num_episodes} episodes"
    )


def score_lines(found: Score, seconds: float) -> list[str]:
    """A score in a few lines."""
    shares = sorted(enumerate(found.actions), key=lambda one: -one[1])
    named = ", ".join(f"{action}: {share:.1%}" for action, share in shares[:MOST_ACTIONS])
    more = f" and {len(shares) - MOST_ACTIONS} more" if len(shares) > MOST_ACTIONS else ""
    return [
        score_line(found),
        f"  mean's 95% interval {found.low:.2f} .. {found.high:.2f}, median {found.median:.2f}, "
        f"interquartile mean {found.iqm:.2f}",
        f"  length {found.mean_length:.1f} env steps (min {found.min_length:,}, max {found.max_length:,}), "
        f"played in {seconds:.1f} s",
        f"  actions {named}{more}",
    ]


def way_line(way: Convergence) -> str:
    """What the table of levels is about."""
    target = "its target" if way.is_asked else "its best validation"
    area = "" if way.area is None else f" ({way.area:.0%} of the way)"
    return (
        f"trained {way.train_seconds:.1f} s, {way.num_env_steps:,} env steps; average return over them "
        f"{way.average_return:.1f}{area}; the way from chance ({way.random_return:.1f}) to {target} "
        f"({way.target_return:g}):"
    )


def way_table(way: Convergence) -> Table:
    """Levels, a row each."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("way", "return", "env steps", "seconds"):
        shown.add_column(name, justify="right")
    for level in way.levels:
        never = level.num_env_steps is None or level.train_seconds is None
        reached = ("never", "never") if never else (f"{level.num_env_steps:,}", f"{level.train_seconds:.2f}")
        shown.add_row(f"{level.share:.0%}", f"{level.level:.1f}", *reached)
    return shown


def film_line(film: Film) -> str:
    """What was recorded."""
    left_off = "" if film.is_complete else f", left off after {film.episode_length:,} env steps"
    about = f"{film.num_frames:,} frames at {film.fps:g} a second, return {film.episode_return:.1f}"
    return f"{film.path}: {about}{left_off}"
