"""`qfleet evaluate`: greedy episodes of a run's best policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples
from qfleet.errors import UsageError

EXAMPLES = examples(
    "qfleet evaluate runs/acrobot",
    "qfleet evaluate runs/acrobot --episodes 1000 --seed 7",
    "qfleet evaluate runs/acrobot --json",
    "qfleet evaluate runs/pong --video pong.mp4",
)


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("evaluate", epilog=EXAMPLES)(evaluate)


def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    episodes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many; else the run's evaluation.final_episodes.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", min=0, help="Seed of the episodes; never those seen in training.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also record one episode, as .mp4 or .gif.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Play greedy episodes with the best policy of a run and print its score."""
    from qfleet.machine import set_up_torch
    from qfleet.outcome import return_statistics
    from qfleet.policy import make_blueprint, read_policy
    from qfleet.roles.evaluator import Evaluator
    from qfleet.seeding import derive_seed

    refuse_others(run_dir)
    if video is not None:
        from qfleet.evaluation.video import check_video

        check_video(video)
    config, spec, snapshot, facts = read_policy(run_dir / "best")
    out = Output(as_json, quiet)
    num_episodes = episodes or config.evaluation.final_episodes
    out.say(
        f"{spec.env_id}: {config.algo.name} policy of {facts['num_env_steps']:,} env steps "
        f"(validation return {facts['mean_return']:.1f} over {facts['episodes']} episodes)"
    )
    set_up_torch(config, spec)
    evaluator = Evaluator(make_blueprint(config, spec), config.evaluation)
    try:
        # Another name than any in training, so that no seed gives the episodes that training or validation saw.
        episode_seed = derive_seed(config.seed if seed is None else seed, "evaluate")
        receipt = evaluator.evaluate(snapshot, num_episodes, episode_seed)
    finally:
        evaluator.close()
    score = return_statistics(receipt.episode_returns)
    result = {
        **score,
        "env": spec.env_id,
        "run_dir": str(run_dir),
        "version": snapshot.version,
        "num_env_steps": facts["num_env_steps"],
        "validation_return": facts["mean_return"],
        "seed": config.seed if seed is None else seed,
        "mean_length": sum(receipt.episode_lengths) / len(receipt.episode_lengths),
    }
    if video is not None:
        from qfleet.evaluation.video import record_episode
        from qfleet.policy import Policy

        limit = spec.max_episode_steps or config.evaluation.max_episode_steps
        policy = Policy(make_blueprint(config, spec), snapshot)
        film = record_episode(policy, config.env, video, derive_seed(episode_seed, "video"), limit)
        result["video"] = {**dataclasses.asdict(film), "path": str(video)}
        out.say(
            f"{video}: {film.num_frames:,} frames at {film.fps:g} a second, return {film.episode_return:.1f}"
            + ("" if film.is_complete else f", left off after {film.episode_length:,} env steps")
        )
    line = (
        f"return {score['mean_return']:.2f} +/- {score['std_return']:.2f} "
        f"(min {score['min_return']:.1f}, max {score['max_return']:.1f}) over {num_episodes} episodes"
    )
    out.result(result, line)
    return 0


def refuse_others(run_dir: Path) -> None:
    """Refuse what is no run, or several.

    Raises:
        UsageError: one line, naming what to give instead.
    """
    if (run_dir / "config.toml").is_file() or (run_dir / "best").is_dir():
        return
    members = sorted(path.parent.name for path in run_dir.glob("seed-*/config.toml"))
    if members:
        raise UsageError(f"{run_dir}: several runs; give one of them: {run_dir / members[0]} (of {', '.join(members)})")
    if not run_dir.exists():
        raise UsageError(f"{run_dir}: no such directory")
    raise UsageError(f"{run_dir}: no run here (config.toml is missing)")
