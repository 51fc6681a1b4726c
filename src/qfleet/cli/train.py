"""`qfleet train`: options to a run, or to a series of seeds; then the run with its display, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples
from qfleet.cli.interrupts import NOTHING_TO_SAVE, Interrupts
from qfleet.errors import UsageError

if TYPE_CHECKING:
    from qfleet.experiment import Experiment
    from qfleet.series import Series

EXAMPLES = examples(
    "qfleet train CartPole-v1",
    "qfleet train CartPole-v1 --seed 3 --set algo.learning_rate=0.001 --set algo.dueling=true",
    "qfleet train CartPole-v1 --seeds 5 --json",
    "qfleet train Acrobot-v1 --until-return -90 --max-env-steps 200000 --run-dir runs/acrobot",
    "qfleet train Pendulum-v1 --set env.discretize=5 --max-seconds 60",
    "qfleet train my_package:MyEnv-v0 --recipe my_recipe.toml",
    "qfleet train CartPole-v1 --strategy parameter_server --workers 4",
    "qfleet train --resume runs/acrobot --max-env-steps 400000",
    "qfleet train --resume runs/fleet --workers 2",
)


def module_names(folder: str) -> str:
    """What an option may name: the modules in a folder of the package, which are not imported for that."""
    package = Path(__file__).parents[1] / folder
    return ", ".join(sorted(path.stem for path in package.glob("*.py") if path.stem not in ("__init__", "base")))


EnvArgument = Annotated[
    str | None,
    typer.Argument(metavar="ENV", help="A Gymnasium environment: CartPole-v1, or my_package:MyEnv-v0."),
]
AlgoOption = Annotated[str | None, typer.Option(metavar="NAME", help=f"What is learned: {module_names('algos')}.")]
StrategyOption = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"How the work is split: {module_names('strategies')}.")
]
EngineOption = Annotated[str | None, typer.Option(metavar="NAME", help=f"Where it runs: {module_names('engines')}.")]
WorkersOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="Workers, where the strategy has any.")]
SeedOption = Annotated[int | None, typer.Option(metavar="S", min=0, help="Seed of all random numbers.")]
RecipeOption = Annotated[
    str | None, typer.Option(metavar="NAME|FILE", help="What to start from; else the environment's own recipe.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field by its dotted name; may be repeated."),
]
UntilReturnOption = Annotated[
    str | None,
    typer.Option(metavar="R", help="Stop once validation confirms this mean return; or: registered, never."),
]
MaxEnvStepsOption = Annotated[int | None, typer.Option(metavar="N", help="Stop after N env steps.")]
MaxSecondsOption = Annotated[float | None, typer.Option(metavar="T", help="Stop after T seconds of training.")]
SeedsOption = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Run N seeds one after the other; report the spread.")
]
RunDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A new directory for the run; else one under runs/.")
]
ResumeOption = Annotated[
    Path | None, typer.Option(metavar="RUN_DIR", help="Continue a run from its newest checkpoint.")
]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="Leave the run on its Ray cluster and return; see qfleet attach.")
]


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, apart from how to print it."""

    env: str | None
    resume: Path | None
    recipe: str | None
    run_dir: Path | None
    num_workers: int | None
    num_seeds: int | None
    overrides: dict[str, object]


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("train", epilog=EXAMPLES)(train)


def train(
    env: EnvArgument = None,
    algo: AlgoOption = None,
    strategy: StrategyOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    seed: SeedOption = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    until_return: UntilReturnOption = None,
    max_env_steps: MaxEnvStepsOption = None,
    max_seconds: MaxSecondsOption = None,
    seeds: SeedsOption = None,
    run_dir: RunDirOption = None,
    resume: ResumeOption = None,
    detach: DetachOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Train an agent, or continue a run with --resume.

    Ctrl-C saves a checkpoint and prints the command that continues.

    Exit codes: 0 ended by its stop rule, 1 failed, 2 wrong request, 130 or 143 interrupted.
    """
    from qfleet.run_config import parse_override

    choices: dict[str, object] = {
        "algo": algo,
        "strategy": strategy,
        "engine": engine,
        "seed": seed,
        "stop.until_return": None if until_return is None else parse_override(f"value={until_return}")[1],
        "stop.max_env_steps": max_env_steps,
        "stop.max_seconds": max_seconds,
    }
    overrides = {key: value for key, value in choices.items() if value is not None}
    overrides.update(parse_override(text) for text in settings or [])
    request = Request(env, resume, recipe, run_dir, workers, seeds, overrides)
    out = Output(as_json, quiet)
    if detach:
        return leave(request, out)
    with Interrupts() as interrupts:
        if resume is None:
            experiment = new_experiment(request)
            if seeds is None:
                return run_one(experiment, out, interrupts)
            return run_series(new_series(experiment, seeds, run_dir), out, interrupts)
        refuse_with_resume(request)
        if workers is not None and has_workers_on_resume(resume, workers):
            overrides["strategy.num_workers"] = workers
        if is_series(resume):
            from qfleet.series import Series

            return run_series(Series.resume(resume, overrides), out, interrupts)
        return run_one(resumed_experiment(resume, overrides), out, interrupts)


def new_experiment(request: Request) -> Experiment:
    """The experiment that the options describe.

    Raises:
        UsageError, ConfigError: one line, naming what is wrong.
    """
    from qfleet.experiment import Experiment
    from qfleet.recipe import find_recipe
    from qfleet.run_config import change_config

    env = request.env
    if env is None and request.recipe is not None:
        env = find_recipe(request.recipe).env_id
        if env is None:
            raise UsageError(
                f"recipe {request.recipe} leaves the environment open; "
                f"name one: qfleet train CartPole-v1 --recipe {request.recipe}"
            )
    if env is None:
        raise UsageError("no environment is named; name one, for example: qfleet train CartPole-v1")
    experiment = Experiment.from_recipe(
        env, recipe=request.recipe, run_dir=request.run_dir, overrides=request.overrides
    )
    if request.num_workers is not None and check_workers(experiment.config.strategy, request.num_workers):
        experiment.config = change_config(experiment.config, [("strategy.num_workers", request.num_workers)])
    return experiment


def check_workers(strategy: object, num_workers: int) -> bool:
    """Whether the strategy has a number of workers to set.

    Raises:
        UsageError: it has none, and more than one is asked for.
    """
    from qfleet.plugins import list_plugins, load_plugin

    if _has_workers(type(strategy)):
        return True
    if num_workers == 1:
        return False
    name = getattr(strategy, "name", "this strategy")
    able = [other for other in list_plugins("strategy") if _has_workers(load_plugin("strategy", other).Config)]
    advice = f"choose --strategy {', '.join(able)}" if able else "no strategy installed here takes workers yet"
    raise UsageError(f"--workers {num_workers}: strategy {name} runs one worker; {advice}")


def _has_workers(config: type) -> bool:
    return "num_workers" in getattr(config, "model_fields", {})


def leave(request: Request, out: Output) -> int:
    """Start the run on its cluster and leave it there; returns the exit code.

    Raises:
        UsageError: a series of seeds, which takes one run after the other from here.
    """
    from qfleet.cli.detach import detach

    resume = request.resume
    if request.num_seeds is not None or (resume is not None and is_series(resume)):
        raise UsageError("--detach with a series of seeds: detach one run per seed instead, with --seed")
    if resume is None:
        return detach(new_experiment(request), out)
    refuse_with_resume(request)
    return detach(resumed_experiment(resume, request.overrides), out)


def new_series(experiment: Experiment, num_seeds: int, run_dir: Path | None) -> Series:
    """A series that begins with this experiment's configuration."""
    from qfleet.series import Series

    series = Series(experiment.config, num_seeds, run_dir)
    series.recipe = experiment.recipe
    return series


def is_series(run_dir: Path) -> bool:
    """Whether a directory holds a series of seeds."""
    from qfleet.series import SERIES_NAME

    return (run_dir / SERIES_NAME).is_file()


def refuse_with_resume(request: Request) -> None:
    """Refuse what a resumed run cannot take; the fields of --set are checked where the run is read.

    Raises:
        UsageError: naming the option.
    """
    given = {
        f"the environment {request.env}": request.env,
        "--recipe": request.recipe,
        "--run-dir": request.run_dir,
        "--seeds": request.num_seeds,
    }
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--resume with {name}: a resumed run keeps its own; leave it out")


def has_workers_on_resume(run_dir: Path, num_workers: int) -> bool:
    """`check_workers` for a run, or a series, that is there already.

    Raises:
        UsageError: no run there, or its strategy has no number of workers.
    """
    from qfleet.recipe import read_config
    from qfleet.series import Series

    if is_series(run_dir):
        return check_workers(Series.resume(run_dir).config.strategy, num_workers)
    path = run_dir / "config.toml"
    if not path.is_file():
        raise UsageError(f"{run_dir}: no run here (config.toml is missing)")
    return check_workers(read_config(path).strategy, num_workers)


def resumed_experiment(run_dir: Path, overrides: dict[str, object]) -> Experiment:
    """The run in a directory, with something left to do.

    Raises:
        UsageError: no run there, it is complete, or it cannot take these overrides.
        CheckpointError: none of its checkpoints is whole.
    """
    from qfleet.experiment import Experiment

    experiment = Experiment.resume(run_dir, overrides)
    reason = experiment.why_complete()
    if reason is not None:
        raise UsageError(f"{run_dir}: this run is complete: {reason}")
    return experiment


def run_one(experiment: Experiment, out: Output, interrupts: Interrupts) -> int:
    """Run it and print its result; returns the exit code."""
    from qfleet.cli.summary import lag_table, next_commands, places, run_line, run_table

    summary = play(experiment, out, interrupts, str(experiment.config.env.id))
    interrupted = summary["stop_reason"] == "interrupted"
    out.show(run_table(summary))
    lags = lag_table(summary)
    if lags is not None:
        out.show(lags)
        out.say(str(summary["bottleneck"]))
    for line in ["", "where things are", *places(experiment.run_dir)]:
        out.say(line)
    if not interrupted:
        for line in ["", "what to type next", *next_commands(summary)]:
            out.say(line)
    if interrupted:
        out.interrupted(experiment.run_dir, is_saved=not experiment.config.engine.computes_nothing)
    out.result(summary, run_line(summary) if out.quiet and not interrupted else None)
    return interrupts.exit_code if interrupted else 0


def run_series(series: Series, out: Output, interrupts: Interrupts) -> int:
    """Run the members one after the other and print their spread; returns the exit code."""
    from qfleet.cli.summary import run_line, series_line, series_table
    from qfleet.experiment import Experiment

    summaries: list[dict[str, object]] = []
    num_run = 0
    for seed, member in series.members():
        label = f"{series.config.env.id} seed {seed} ({len(summaries) + 1} of {len(series.seeds)})"
        if isinstance(member, Experiment):
            summary = play(member, out, interrupts, label)
            num_run += 1
        else:
            summary = member
        if summary["stop_reason"] != "interrupted":
            summaries.append(summary)
            out.say(run_line(summary))
        if interrupts.number is not None:
            out.interrupted(series.run_dir, is_saved=not series.config.engine.computes_nothing)
            break
    if not num_run:
        raise UsageError(f"{series.run_dir}: all {len(series.seeds)} runs are complete; to go on, raise a stop option")
    if summaries:
        total, warnings = series.finish(summaries)
        for warning in warnings:
            out.note(warning)
        out.show(series_table(summaries, total["spread"]))  # type: ignore[arg-type]
        out.say(f"runs and their curve: {series.run_dir}")
        out.result(total, series_line(total) if out.quiet else None)
    else:
        out.result({"run_dir": str(series.run_dir), "stop_reason": "interrupted", "runs": []}, None)
    return interrupts.exit_code


def play(experiment: Experiment, out: Output, interrupts: Interrupts, label: str) -> dict[str, object]:
    """Run an experiment behind the display; returns its summary."""
    from qfleet.cli.progress import Progress
    from qfleet.experiment import Finished

    if experiment.config.engine.computes_nothing:
        interrupts.message = NOTHING_TO_SAVE
    if interrupts.number is not None:
        experiment.interrupt()  # the signal came while it was being set up
    experiment.check_run_dir()
    out.say(experiment.describe())
    told = len(experiment.warnings)
    for warning in experiment.warnings:
        out.note(warning)
    summary: dict[str, object] = {}
    progress = Progress(experiment, label, is_shown=not out.quiet)
    interrupts.on_first = [progress.close, experiment.interrupt]
    with progress:
        for event in experiment.stream():
            progress.update(event)
            if isinstance(event, Finished):
                summary = event.summary
    for warning in experiment.warnings[told:]:
        out.note(warning)
    return summary
