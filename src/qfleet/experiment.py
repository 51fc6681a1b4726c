"""Experiment: configuration + strategy + engine -> run directory. The only place that sees both of the latter two.

    Experiment.from_recipe("CartPole-v1", seed=1).run()
    for event in Experiment.from_recipe("CartPole-v1").stream(): ...

Floor 6.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from qfleet.checkpoint import CheckpointStore, Manifest
from qfleet.curve import draw_learning_curve
from qfleet.engines.base import Engine, HostingEngine
from qfleet.envs.make import probe_spec
from qfleet.envs.source import EnvFactory
from qfleet.errors import CheckpointError, QfleetError, UsageError
from qfleet.machine import (
    DETACHED_NAME,
    LOCK_NAME,
    RunLock,
    choose_device,
    choose_num_threads,
    is_one_process,
    note_machine,
    set_up_torch,
)
from qfleet.outcome import describe_memory, describe_roles, summarize
from qfleet.plugins import load_plugin
from qfleet.policy import make_blueprint, read_policy
from qfleet.recipe import choose_recipe, list_recipes, read_config
from qfleet.roles.blueprint import Blueprint
from qfleet.run_config import (
    RESUMABLE,
    RESUMABLE_COUNTS,
    RunConfig,
    build_config,
    change_config,
    check_fit,
    is_resumable,
)
from qfleet.run_dir import clear_run_dir, default_run_dir
from qfleet.schedule import Schedule, has_reached, limit_met, target_return
from qfleet.session import Session
from qfleet.storage import write_file
from qfleet.strategies.base import Counters, Event
from qfleet.types import EnvSpec

IN_RUN_DIR = "run"  # replay.directory: a folder in the run directory


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """The run is over; `summary` is what `--json` prints."""

    summary: dict[str, object]


class Experiment:
    """One run.

    Args:
        config: the complete configuration.
        run_dir: a new directory, or None for runs/<env>-<algo>-<time>-seed<seed>.
        env: a callable that makes the environment, instead of config.env.id.

    Attributes:
        recipe: name of the recipe that the configuration began with, None if it was built by hand.
        session: the counters, clocks and schedules of the run, once `stream` has begun; for displays.
        is_detached: whether it runs as an actor of a cluster, see detached.py.
        warnings: what the user should know, a line each (such as a damaged checkpoint that was passed over).
    """

    def __init__(self, config: RunConfig, run_dir: str | Path | None = None, env: EnvFactory | None = None) -> None:
        self.config = config
        self.run_dir = Path(run_dir) if run_dir is not None else default_run_dir(config)
        self.recipe: str | None = None
        self.session: Session | None = None
        self.is_detached = False
        self.warnings: list[str] = []
        self._factory = env
        self._spec: EnvSpec | None = None
        self._manifest: Manifest | None = None
        self._is_resumed = False
        self._interrupted = False
        if env is None and config.env.id is None:
            raise UsageError("env.id: no environment is named; give one, for example qfleet train CartPole-v1")
        check_fit(config)

    @classmethod
    def from_recipe(
        cls,
        env_or_recipe: str,
        *,
        recipe: str | None = None,
        seed: int | None = None,
        run_dir: str | Path | None = None,
        env: EnvFactory | None = None,
        overrides: dict[str, object] | None = None,
    ) -> Experiment:
        """An experiment from an environment's name, or a recipe's.

        Args:
            env_or_recipe: an environment id, or a recipe that names its environment; with `env`, any name for it.
            recipe: recipe name or TOML file; None picks the environment's own, else a default by observation type.
            seed, run_dir: as in the configuration.
            env: a callable that makes the environment.
            overrides: dotted names and values, for example {"algo.learning_rate": 1e-3}.

        Raises:
            UsageError, ConfigError: one line, naming what is wrong.
        """
        changes = list((overrides or {}).items())
        if seed is not None:
            changes.append(("seed", seed))
        env_id = env_or_recipe
        if recipe is None and env is None:
            named = next((one for one in list_recipes() if one.name == env_or_recipe and one.env_id), None)
            if named is not None:
                env_id, recipe = str(named.env_id), named.name
        chosen = choose_recipe(env_id, recipe, changes, env)
        experiment = cls(build_config(chosen.values, [("env.id", env_id), *changes]), run_dir, env)
        experiment.recipe = chosen.name
        return experiment

    @classmethod
    def resume(
        cls, run_dir: str | Path, overrides: dict[str, object] | None = None, env: EnvFactory | None = None
    ) -> Experiment:
        """Continue a run from its newest whole checkpoint.

        Args:
            run_dir: the run directory.
            overrides: changes to stop.*, checkpoint.*, logging.*, engine.*, device, num_threads, and the strategy's
                numbers of roles, restart limits and placement only; on another device, engine, thread count or number
                of roles the run goes on, but no longer bit for bit.

        Raises:
            UsageError: no run there, or an override that would change what is learned.
            CheckpointError: there are checkpoints, but none is whole.
        """
        folder = Path(run_dir)
        if not (folder / "config.toml").is_file():
            raise UsageError(f"{folder}: no run here (config.toml is missing)")
        changes = list((overrides or {}).items())
        for key, _ in changes:
            if not is_resumable(key):
                names = ", ".join([*sorted(RESUMABLE), *(f"strategy.{name}" for name in sorted(RESUMABLE_COUNTS))])
                raise UsageError(
                    f"--resume with {key}: a resumed run keeps its settings except {names}; "
                    f"to start anew from its weights use --set init.from={folder}"
                )
        config = read_config(folder / "config.toml")
        changed = change_config(config, changes)
        if config.engine.computes_nothing or changed.engine.computes_nothing:
            raise UsageError(
                f"{folder}: a run that computes nothing (engine.compute = 'none') leaves nothing to resume and resumes "
                "nothing; start a new one"
            )
        experiment = cls(changed, folder, env)
        experiment._is_resumed = True
        experiment._manifest, refused = CheckpointStore(folder / "checkpoints", 1).newest_whole(
            experiment.config.learning_sha256()
        )
        experiment.warnings += [f"passed over a damaged checkpoint: {fault}" for fault in refused]
        if experiment._manifest is None:
            experiment.warnings.append(f"{folder}: no checkpoint yet, the run starts from its beginning")
        return experiment

    def run(self) -> dict[str, object]:
        """Run to the end and return the summary."""
        summary: dict[str, object] = {}
        for event in self.stream():
            if isinstance(event, Finished):
                summary = event.summary
        return summary

    def interrupt(self) -> None:
        """Save and stop at the next opportunity; safe in a signal handler."""
        self._interrupted = True
        if self.session is not None:
            self.session.interrupt()

    def stream(self) -> Iterator[Event]:
        """Every event of the run, the last one Finished. Closing the iterator early stops the run without saving."""
        started = time.perf_counter()
        spec = self.spec
        device = choose_device(self.config.device, spec)
        blueprint = self._blueprint(spec, device)
        engine = load_engine(self.config, self.run_dir)
        self.check_run_dir()
        existed = self.run_dir.exists() and not self.is_detached
        self._warn_of_short_episodes(spec)
        strategy = load_plugin("strategy", self.config.strategy.name)
        session = None
        num_threads_before = torch.get_num_threads()
        lock = RunLock(self.run_dir)
        try:
            write_file(self.run_dir, "config.toml", self.config.to_toml().encode())
            # A summary of before would pass for the result of what begins now.
            (self.run_dir / "summary.json").unlink(missing_ok=True)
            if not self.is_detached:
                (self.run_dir / DETACHED_NAME).unlink(missing_ok=True)
            num_threads = set_up_torch(self.config, spec)
            compile_seconds = self._prepare(blueprint)
            note_machine(self.run_dir, device=device, threads=str(num_threads))
            evaluated = getattr(strategy, "evaluation_blueprints", None)
            blueprints = None if evaluated is None else evaluated(blueprint, self.config.strategy)
            session = Session(self.config, blueprint, engine, strategy.run, self.run_dir, self._manifest, blueprints)
            self.session = session
            if self._interrupted:
                session.interrupt()
            yield from session.stream()
            summary = self._finish(session, started, num_threads, compile_seconds)
            yield Finished(summary)
        except QfleetError:
            # Nothing was trained, so the same command, corrected, must find its run directory free again.
            is_untouched = session is None or session.control.counters.num_env_steps == 0
            if is_untouched and not self._is_resumed and not existed:
                clear_run_dir(self.run_dir, (DETACHED_NAME, "logs") if self.is_detached else ())
            raise
        finally:
            engine.close()
            # The caller's process goes on as it was; torch cannot tell whether denormals were flushed, they rarely are.
            torch.set_num_threads(num_threads_before)
            torch.set_flush_denormal(False)
            lock.release()  # last: until the roles are closed, the directory is still theirs

    @property
    def spec(self) -> EnvSpec:
        """The environment's facts; the first look makes one copy of it."""
        if self._spec is None:
            self._spec = probe_spec(self.config.env, self._factory)
        return self._spec

    def describe(self) -> str:
        """What is about to run, in one line: the choices, how many roles, and the replay's size over all of them."""
        config, num_threads = self.config, choose_num_threads(self.config, self.spec)
        threads = f"{num_threads} thread{'s' if num_threads != 1 else ''}"
        if not is_one_process(config):
            threads += " per role"
        origin = "no recipe" if self.recipe is None else f"recipe {self.recipe}"
        if self._is_resumed:
            origin = f"resumed at {self._counters().num_env_steps:,} env steps"
        return ", ".join(
            [
                f"{config.env.id} ({origin}): {config.algo.name} x {config.strategy.name} x {config.engine.name}",
                *describe_roles(config),
                f"seed {config.seed}",
                f"{choose_device(config.device, self.spec)}, {threads}{self._describe_path()}",
                describe_memory(config, self.spec),
                f"run dir: {self.run_dir}",
            ]
        )

    def _describe_path(self) -> str:
        """How images are computed; nothing for other observations, whose networks have but one way."""
        if len(self.spec.obs_shape) < 2:
            return ""
        path = make_blueprint(self.config, self.spec, choose_device(self.config.device, self.spec)).compute_path()
        return f", {path.describe()}{' (compiling takes a minute, once)' if path.is_compiled else ''}"

    def _prepare(self, blueprint: Blueprint) -> float:
        """Compile what is to be compiled before the run's clock starts; returns seconds, and says what did not work."""
        path = blueprint.compute_path()
        if path.note:
            self.warnings.append(path.note)
        if not path.is_compiled or not is_one_process(self.config):
            return 0.0
        started = time.perf_counter()
        blueprint.compile_update()
        seconds = time.perf_counter() - started
        self.warnings.append(f"compiling the update: {seconds:.0f} s, once; not counted as training")
        return seconds

    def why_complete(self) -> str | None:
        """Why a resumed run has nothing left to do, and which option gives it more; None if it goes on."""
        if self._manifest is None or not (self.run_dir / "summary.json").is_file():
            return None  # the last score is still to be played, where only the summary is missing
        tracker, counters = self._manifest.session["tracker"], self._counters()
        schedule = Schedule(**self._manifest.session["schedule"])  # type: ignore[arg-type]
        target = target_return(self.config, self.spec)
        if has_reached(schedule, target):
            steps = schedule.env_steps_to_threshold or counters.num_env_steps
            return f"it reached its target of {target:g} at {steps:,} env steps; to go on, raise --until-return"
        limit = limit_met(self.config.stop, counters, float(tracker["train_seconds"]))  # type: ignore[index]
        if limit is None:
            return None
        option = "--set stop.max_updates" if limit == "max_updates" else f"--{limit.replace('_', '-')}"
        return f"it has used up stop.{limit} = {getattr(self.config.stop, limit):,}; to go on, raise {option}"

    def _counters(self) -> Counters:
        return Counters(**self._manifest.counters) if self._manifest is not None else Counters()

    def _blueprint(self, spec: EnvSpec, device: str) -> Blueprint:
        blueprint = dataclasses.replace(make_blueprint(self.config, spec, device), env_factory=self._factory)
        if blueprint.replay.directory == IN_RUN_DIR:
            here = {"directory": str(self.run_dir / "replay")}
            blueprint = dataclasses.replace(blueprint, replay=blueprint.replay.model_copy(update=here))
        if self._manifest is not None:
            mine = {"obs_shape": list(spec.obs_shape), "obs_dtype": spec.obs_dtype, "num_actions": spec.num_actions}
            theirs = {key: self._manifest.spec[key] for key in mine}
            theirs["obs_shape"] = list(theirs["obs_shape"])  # type: ignore[call-overload]
            if mine != theirs:
                raise CheckpointError(f"{self.run_dir}: the checkpoint is of another environment: {theirs}, now {mine}")
        source = self.config.init.from_run
        if source is None or self._manifest is not None:
            return blueprint
        _, _, snapshot, _ = read_policy(Path(source) / "best")
        return dataclasses.replace(blueprint, initial=dataclasses.replace(snapshot, version=0))

    def _warn_of_short_episodes(self, spec: EnvSpec) -> None:
        """A checkpoint restarts the episodes of an environment that cannot be saved: are there any whole ones left?"""
        config = self.config
        between = config.checkpoint.every_env_steps // config.env.num_envs
        if not spec.offers_state and spec.max_episode_steps is not None and between < spec.max_episode_steps:
            self.warnings.append(
                f"each checkpoint restarts the episodes of {config.env.id}, every {between:,} steps of a copy; they "
                f"may take {spec.max_episode_steps:,}; raise checkpoint.every_env_steps"
            )

    def check_run_dir(self) -> None:
        """Refuse to start a new run where there is something already.

        Raises:
            UsageError: the run directory is not empty.
        """
        if self._is_resumed or not self.run_dir.exists():
            return
        # These are of a run that ended, or was killed, before it had a configuration: nothing to continue there.
        empty = (LOCK_NAME, DETACHED_NAME, "logs")
        if any(path.name not in empty and path.suffix != ".part" for path in self.run_dir.iterdir()):
            raise UsageError(
                f"{self.run_dir}: this directory is not empty; continue it with --resume {self.run_dir}, "
                "or choose another --run-dir"
            )

    def _finish(self, session: Session, started: float, num_threads: int, compile_seconds: float) -> dict[str, object]:
        interrupted = session.stop_reason == "interrupted"
        summary = summarize(session, num_threads)
        summary["compute_path"] = session.blueprint.compute_path().describe()
        summary["compile_seconds"] = compile_seconds
        try:
            draw_learning_curve(self.run_dir, summary)
        except Exception as error:
            # A plot is worth no run: whatever matplotlib (a missing font cache, a broken install) does is a warning.
            self.warnings.append(f"learning_curve.png was not drawn: {type(error).__name__}: {error}")
        summary["total_seconds"] = time.perf_counter() - started
        if not interrupted:  # a summary in the run directory says that the run is complete
            write_file(self.run_dir, "summary.json", json.dumps(summary, indent=1).encode())
        return summary


def load_engine(config: RunConfig, run_dir: Path) -> Engine:
    """The engine that the configuration names; processes of its own log into the run directory, a file for each life.

    Many processes share the cores already, so "auto" gives each of them one thread.
    """
    engine: Engine = load_plugin("engine", config.engine.name).Engine(config.engine, config.seed)
    if isinstance(engine, HostingEngine):
        engine.set_up_hosts(run_dir / "logs", 1 if config.num_threads == "auto" else config.num_threads)
    return engine
