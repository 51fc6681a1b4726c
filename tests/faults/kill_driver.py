"""Trains on Ray in a process of its own, strikes at role processes, and tells what was left; started by
test_ray_kills.py.

Its argument is a JSON object:

    run_dir, env, overrides   a new run on the ray engine
    recipe                    its recipe
    strikes                   how often to strike
    first, last               env steps between which the moments are drawn
    kinds                     prefixes of the names of the roles to be struck, in turn
    signal                    "KILL" or "STOP"
    seed                      of moments and victims

A strike falls between two events of the run, where nobody knows what the roles are doing just then; now and then it
hits two roles. The answer is a line of JSON, see `Facts`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import qfleet.experiment
import qfleet.strategies.base.servers
from qfleet.engines.base import Engine, RoleRef
from qfleet.engines.ray import Engine as RayEngine
from qfleet.experiment import Experiment, Finished
from qfleet.placement.processes import Process, is_running, wait_until_gone
from qfleet.replay.redistribute import ReplaySource, merge_replay
from qfleet.roles.blueprint import Blueprint
from qfleet.roles.parameter_server import ParameterServer
from qfleet.strategies.base import Drained, Event, RoleRestarted, Rollout, Update
from qfleet.types import Receipt, Reply, SavedFile, Ticket

LANE = "facts"
# How a role says which version of the parameters it holds.
ASK_VERSION = {"server": ("publish",), "learner": ("publish", True), "aggregator": ("publish",)}


@dataclass
class Facts:
    """What became of a run.

    Attributes:
        struck: how often, by role.
        frozen_left: struck processes that run still.
        restarts: [role, cause] in order.
        versions: by role that holds the parameters, what it says at the end.
        went_back: updates whose version was below that of the one before.
        rollouts, inserted: env steps and insertions that the events tell of.
        rows: transitions in the last checkpoint.
        applied: by server, [version, tickets] in the order of their commits.
        num_processes, num_files: of this run, while it lasted; files in shared memory.
        left_processes, left_files: of those, and Ray's folder, after the engine was closed.
    """

    struck: dict[str, int] = field(default_factory=dict)
    frozen_left: int = 0
    restarts: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    went_back: list[int] = field(default_factory=list)
    rollouts: int = 0
    inserted: int = 0
    rows: int = 0
    applied: dict[str, list[Any]] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, int] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    num_processes: int = 0
    num_files: int = 0
    left_processes: list[str] = field(default_factory=list)
    left_files: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Recording(ParameterServer):
    """A server that writes down which pushes it has applied; what it wrote outlives it."""

    path = ""

    def stage(self, tickets: list[Ticket], *pushes: Any) -> Receipt:
        before = dict(self.acknowledged)
        self._fresh = [one for one in tickets if (one.incarnation, one.sequence) > before.get(one.worker, (-1, -1))]
        return super().stage(tickets, *pushes)

    def commit(self, *args: Any) -> Reply:
        fresh, self._fresh = self._fresh, []
        reply = super().commit(*args)
        if fresh:
            tickets = [[one.worker, one.incarnation, one.sequence] for one in fresh]
            with Path(self.path).open("a") as file:
                file.write(json.dumps([self.name, self.version, tickets]) + "\n")
        return reply


class Striker:
    """Strikes at drawn moments."""

    def __init__(self, command: dict[str, Any], facts: Facts) -> None:
        self.generator = np.random.default_rng(command["seed"])
        low, high = command["first"], command["last"]
        self.moments = sorted(self.generator.integers(low, high, size=command["strikes"]).tolist())
        self.kinds: list[str] = command["kinds"]
        self.signal = signal.Signals[f"SIG{command['signal']}"]
        self.facts = facts
        self.processes: list[Process] = []

    def look(self, engine: RayEngine, num_env_steps: int) -> None:
        """Strike if it is time."""
        if self.moments and num_env_steps >= self.moments[0]:
            for _ in range(2 if len(self.moments) % 3 == 0 else 1):
                self._strike(engine)

    def _strike(self, engine: RayEngine) -> None:
        kind = self.kinds[len(self.moments) % len(self.kinds)]
        living = {name: engine.process_of(RoleRef(name)) for name in engine._roles if name.startswith(kind)}
        names = [
            name
            for name, process in living.items()
            if process is not None and is_running(process) and process not in self.processes
        ]
        if not names or not self.moments:
            return  # nobody is there to be struck; at the next event, then
        name = names[int(self.generator.integers(len(names)))]
        process = living[name]
        assert process is not None
        os.kill(process.pid, self.signal)
        self.processes.append(process)
        self.moments.pop(0)
        self.facts.struck[name] = self.facts.struck.get(name, 0) + 1


def main() -> None:
    """One run."""
    command = json.loads(sys.argv[1])
    qfleet.experiment.draw_learning_curve = lambda *args: None
    qfleet.strategies.base.servers.ParameterServer = Recording  # type: ignore[misc]
    run_dir = Path(command["run_dir"])
    Recording.path = str(run_dir.with_suffix(".applied"))
    Path(Recording.path).touch()
    facts, started = Facts(), time.monotonic()
    striker = Striker(command, facts)
    recipe, overrides = command["recipe"], command["overrides"]
    run = Experiment.from_recipe(command["env"], recipe=recipe, run_dir=run_dir, overrides=overrides)
    family: list[Process] = []
    folder, version = "", 0
    for event in run.stream():
        if isinstance(event, Finished):
            facts.summary = event.summary
            family, facts.left_files = below(os.getpid()), shared_files()
            facts.num_processes, facts.num_files = len(family), len(facts.left_files)
            assert Path(folder).is_dir()
            continue
        assert run.session is not None
        engine, counters = run.session.engine, run.session.control.counters
        assert isinstance(engine, RayEngine)
        note(event, facts)
        if isinstance(event, Update):
            if event.receipt.version < version:
                facts.went_back.append(event.receipt.version)
            version = event.receipt.version
        if isinstance(event, Drained):  # nothing is in flight, so this may ask the roles
            facts.versions = versions(engine)
            facts.rows = saved_rows(run._blueprint(run.spec, "cpu"), run_dir / "checkpoints", event.files)
        striker.look(engine, counters.num_env_steps)
        assert engine._cluster is not None
        folder = str(engine._cluster._folder)
    assert run.session is not None
    facts.counters = dataclasses.asdict(run.session.control.counters)
    facts.tallies = run.session.control.tallies
    for line in Path(Recording.path).read_text().splitlines():
        server, its_version, tickets = json.loads(line)
        facts.applied.setdefault(server, []).append([its_version, tickets])
    left = wait_until_gone(family, 30.0)
    facts.left_processes = [str(process) for process in left]
    facts.left_files = [path for path in [*facts.left_files, folder] if Path(path).exists()]
    facts.frozen_left = sum(map(is_running, striker.processes))
    facts.seconds = time.monotonic() - started
    print(json.dumps(dataclasses.asdict(facts)), flush=True)


def note(event: Event, facts: Facts) -> None:
    """Count what the events tell."""
    if isinstance(event, RoleRestarted):
        facts.restarts.append((event.role, event.cause))
    elif isinstance(event, Rollout):
        facts.rollouts += event.receipt.num_env_steps
        facts.inserted += event.receipt.num_inserted
    elif isinstance(event, Drained):
        facts.inserted += sum(event.inserted.values())


def versions(engine: Engine) -> dict[str, int]:
    """What each role that holds the parameters says."""
    found = {}
    names = list(engine._roles)  # type: ignore[attr-defined]
    for name in names:
        kind = name.partition("-")[0]
        if kind == "worker" and "server-0" not in names and "aggregator" not in names:
            question: tuple[Any, ...] = ("standing",)  # a rank of all-reduce
        elif kind == "learner" and "shard-0" not in names:
            question = ("snapshot",)  # every update of its publishes
        elif kind in ASK_VERSION:
            question = ASK_VERSION[kind]
        else:
            continue
        future = engine.submit(RoleRef(name), *question, lane=LANE)
        assert engine.wait(lane=LANE) is future
        if future.error is None:
            found[name] = engine.result(future).version
    return found


def saved_rows(blueprint: Blueprint, folder: Path, files: dict[str, list[SavedFile]]) -> int:
    """Transitions in a checkpoint, read from its files."""
    num_rows = 0
    for role, own in files.items():
        if role.startswith(("worker-", "shard-")):
            own = own[1:] if role.startswith("worker-") else own  # the first is the worker's state
            stripped = [SavedFile(file.path.removeprefix(f"{role}/"), file.num_bytes, file.sha256) for file in own]
            num_rows += merge_replay(blueprint.build_replay("books"), [ReplaySource(folder / role, stripped)])
    return num_rows


def below(pid: int) -> list[Process]:
    """All processes that descend from one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [Process(int(stat.parent.name), fields[19]), *below(int(stat.parent.name))]
    return found


def shared_files() -> list[str]:
    """Files of shared memory that this process or one below it has mapped."""
    found = set()
    for pid in [os.getpid(), *(process.pid for process in below(os.getpid()))]:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        found |= {line[line.index("/dev/shm/") :].split(" (deleted)")[0] for line in lines if "/dev/shm/" in line}
    return sorted(found)


if __name__ == "__main__":
    main()
