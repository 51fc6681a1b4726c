"""What happens to roles in processes of their own: killed, frozen, without a place, on a cluster of other versions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from qfleet.engines.base import Engine, Future, Part, Placement, RoleRef
from qfleet.errors import CallFailed, DivergenceError, NoRoom, QfleetError, RoleDied, UsageError, ValueLost
from qfleet.placement.processes import Process, is_running, this_process, wait_until_gone
from qfleet.types import Receipt, Reply

pytestmark = pytest.mark.ray
MakeEngine = Callable[..., Engine]


class Probe:
    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def process(self) -> Reply:
        return Reply(Receipt(), this_process())

    def arrays(self, size: int) -> Reply:
        return Reply(Receipt(), (np.full(size, 5.0), np.full(size, 99.0)))

    def look(self, array: np.ndarray) -> Reply:
        return Reply(Receipt(), (float(array.sum()), array.flags.writeable, array.flags.owndata))

    def diverge(self) -> None:
        raise DivergenceError("loss is nan at update 7")

    def unpicklable(self) -> Reply:
        return Reply(Receipt(), (row for row in "decoy"))

    def say(self) -> None:
        print("through Python")
        os.write(2, b"past Python\n")

    def settings(self) -> Reply:
        return Reply(Receipt(), (torch.get_num_threads(), (torch.tensor([1e-39]) * 0.5).item()))

    def average(self, dying_rank: int, dying_round: int) -> Iterator[torch.Tensor]:
        mean = torch.tensor([99.0])
        for k in range(3):
            if (self.rank, k) == (dying_rank, dying_round):
                os.kill(os.getpid(), signal.SIGKILL)
            mean = torch.tensor([float(self.rank)])
            yield mean
        return Reply(Receipt(), mean.item())


@pytest.fixture
def make_engine(shared_ray: None) -> Iterator[MakeEngine]:
    """make_engine(role_timeout=2.0): an engine on the session's Ray."""
    from qfleet.engines.ray import Config, Engine

    made = []

    def make(**settings: object) -> Engine:
        made.append(Engine(Config(**settings), 0))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def call(engine: Engine, role: RoleRef, method: str, *args: object, num_parts: int = 1) -> Future:
    future = engine.submit(role, method, *args, num_parts=num_parts)
    assert engine.wait(timeout=60) is future
    return future


def process_of(engine: Engine, role: RoleRef) -> Process:
    process = engine.payload(call(engine, role, "process"))
    assert isinstance(process, Process)
    assert is_running(process)
    assert process.pid != os.getpid(), "a process of its own"
    return process


def failures(engine: Engine, futures: Sequence[Future]) -> list[Exception]:
    """Their failures, once all are back, each exactly once."""
    done = [engine.wait(timeout=60) for _ in futures]
    assert {id(future) for future in done} == {id(future) for future in futures}
    errors = []
    for future in futures:
        with pytest.raises(QfleetError) as caught:
            engine.result(future)
        errors.append(caught.value)
    return errors


def test_kill_9_is_a_death_of_every_call_under_way_and_of_nobody_else(make_engine: MakeEngine) -> None:
    engine = make_engine()
    doomed, other = engine.spawn("doomed", Probe), engine.spawn("other", Probe)
    process = process_of(engine, doomed)
    assert engine.process_of(doomed) == process  # type: ignore[attr-defined]
    os.kill(process.pid, signal.SIGSTOP)  # so that none of the calls can run before the kill
    pending = [engine.submit(doomed, "process") for _ in range(100)]
    os.kill(process.pid, signal.SIGKILL)
    for error in failures(engine, pending):
        assert isinstance(error, RoleDied)
        assert (error.role, error.incarnation, error.cause) == ("doomed", 0, "process died")
    assert engine.process_of(doomed) is None  # type: ignore[attr-defined]
    assert engine.wait(timeout=1) is None
    process_of(engine, other)
    engine.respawn(doomed)
    assert engine.incarnation(doomed) == 1
    assert process_of(engine, doomed) != process


def test_a_frozen_role_is_dead_after_role_timeout_and_its_process_is_gone(make_engine: MakeEngine) -> None:
    engine = make_engine(role_timeout=1.0)
    frozen, other = engine.spawn("frozen", Probe), engine.spawn("other", Probe)
    process = process_of(engine, frozen)
    os.kill(process.pid, signal.SIGSTOP)
    pending = [engine.submit(frozen, "process") for _ in range(2)]
    healthy = engine.submit(other, "process")
    assert engine.wait(timeout=60) is healthy
    for error in failures(engine, pending):
        assert isinstance(error, RoleDied)
        assert error.cause == "timeout"
    assert not is_running(process)
    process_of(engine, other)


def test_an_idle_role_does_not_time_out(make_engine: MakeEngine) -> None:
    engine = make_engine(role_timeout=1.0)
    idle, frozen = engine.spawn("idle", Probe), engine.spawn("frozen", Probe)
    process = process_of(engine, idle)
    os.kill(process_of(engine, frozen).pid, signal.SIGSTOP)
    failures(engine, [engine.submit(frozen, "process")])  # so a role_timeout has passed
    assert process_of(engine, idle) == process


@pytest.mark.parametrize("size", [4, 400_000], ids=["in the reply", "in shared memory"])
def test_a_payload_survives_its_maker_and_reaches_a_role_without_a_copy(make_engine: MakeEngine, size: int) -> None:
    engine = make_engine()
    maker, reader = engine.spawn("maker", Probe), engine.spawn("reader", Probe)
    made = call(engine, maker, "arrays", size, num_parts=2)
    os.kill(process_of(engine, maker).pid, signal.SIGKILL)
    failures(engine, [engine.submit(maker, "process")])
    seen = engine.payload(call(engine, reader, "look", Part(made, 0)))
    assert seen == (5.0 * size, False, False), "read-only, and a view"
    pieces = engine.payload(made)
    assert isinstance(pieces, list)
    assert [piece.sum() for piece in pieces] == [5.0 * size, 99.0 * size]


def test_a_users_own_error_comes_back_as_itself(make_engine: MakeEngine) -> None:
    engine = make_engine()
    (error,) = failures(engine, [engine.submit(engine.spawn("probe", Probe), "diverge")])
    assert isinstance(error, CallFailed)
    assert str(error) == "probe.diverge failed: loss is nan at update 7"
    assert isinstance(error.__cause__, DivergenceError)


def test_a_payload_that_cannot_travel_is_the_calls_failure(make_engine: MakeEngine) -> None:
    engine = make_engine()
    probe = engine.spawn("probe", Probe)
    (error,) = failures(engine, [engine.submit(probe, "unpicklable")])
    assert isinstance(error, CallFailed)
    assert "cannot pickle 'generator'" in str(error)
    process_of(engine, probe)


def assert_meets(engine: Engine, group: list[RoleRef]) -> None:
    """Means of the ranks: (0 + 1 + 2) / 3 = 1."""
    futures = engine.all_reduce(group, "average", [(-1, 0)] * len(group))
    for _ in futures:
        assert engine.wait(timeout=60) is not None
    assert [engine.payload(future) for future in futures] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dying_rank", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["the first one", "another"])
def test_a_group_that_lost_a_member_forms_anew(make_engine: MakeEngine, dying_rank: int) -> None:
    engine = make_engine()
    group = [engine.spawn(f"member-{rank}", Probe, rank) for rank in range(3)]
    assert_meets(engine, group)
    dead = group[dying_rank].name
    errors = failures(engine, engine.all_reduce(group, "average", [(dying_rank, 1)] * 3))
    for role, error in zip(group, errors, strict=True):
        assert isinstance(error, RoleDied if role.name == dead else ValueLost)
        assert getattr(error, "producer", dead) == dead
    engine.respawn(group[dying_rank])
    assert_meets(engine, group)


def test_a_frozen_member_breaks_its_group_and_the_others_live_on(make_engine: MakeEngine) -> None:
    engine = make_engine(role_timeout=4.0)
    group = [engine.spawn(f"member-{rank}", Probe, rank) for rank in range(3)]
    assert_meets(engine, group)
    healthy = [process_of(engine, role) for role in group[:2]]
    frozen = process_of(engine, group[2])
    os.kill(frozen.pid, signal.SIGSTOP)
    errors = failures(engine, engine.all_reduce(group, "average", [(-1, 0)] * 3))
    assert [type(error) for error in errors] == [ValueLost, ValueLost, RoleDied]
    assert [getattr(error, "producer", "") for error in errors] == ["member-2", "member-2", ""]
    assert not is_running(frozen)
    engine.respawn(group[2])
    assert_meets(engine, group)
    assert [process_of(engine, role) for role in group[:2]] == healthy


def test_a_role_without_a_place_is_told_in_one_line(make_engine: MakeEngine) -> None:
    engine = make_engine(placement_timeout=0.5)
    placement = Placement(custom={"decoy": 3.0})
    assert engine.room_for(placement) == 0
    assert engine.room_for(Placement()) > 0
    role = engine.spawn("worker-7", Probe, placement=placement)
    future = engine.submit(role, "process")
    assert engine.wait(timeout=60) is future
    with pytest.raises(NoRoom, match=r"worker-7 found no place in 0\.5 s") as caught:
        engine.result(future)
    assert (caught.value.role, caught.value.incarnation, caught.value.cause) == ("worker-7", 0, "no room")
    assert "asks for 3 decoy, and the cluster has" in str(caught.value)
    assert re.search(r"0 decoy \(0 free\)", str(caught.value))
    assert "\n" not in str(caught.value)


def test_each_life_writes_a_file_of_its_own_and_torch_is_set_up(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    engine.set_up_hosts(tmp_path / "logs", 3)  # type: ignore[attr-defined]
    role = engine.spawn("worker-0", Probe)
    call(engine, role, "say")
    assert engine.payload(call(engine, role, "settings")) == (3, 0.0), "threads, and denormals are flushed"
    engine.respawn(role)
    call(engine, role, "say")
    for life in (0, 1):
        text = (tmp_path / "logs" / f"worker-0-{life}.log").read_text()
        assert sorted(text.splitlines()) == ["past Python", "through Python"]


def test_another_version_is_refused_by_name(shared_ray: None) -> None:
    from qfleet.placement.ray_cluster import Cluster, check_versions, versions

    theirs = Cluster(None)._versions_of_nodes()
    assert list(theirs.values()) == [versions()]
    check_versions("auto", versions(), theirs)
    for name in ("Python", "torch", "qfleet"):
        other = {node: {**there, name: "0.98"} for node, there in theirs.items()}
        with pytest.raises(UsageError, match=rf"{name} 0\.98, this process {re.escape(versions()[name])}") as caught:
            check_versions("auto", versions(), other)
        assert "\n" not in str(caught.value)


def run(script: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *args], capture_output=True, text=True, timeout=100, check=False
    )


def test_a_cluster_is_joined_by_its_address(shared_ray: None) -> None:
    import ray

    script = """
        import sys
        from qfleet.engines.ray import Config, Engine
        from qfleet.errors import UsageError
        from qfleet.placement import ray_cluster
        from qfleet.types import Receipt

        class Probe:
            def seven(self):
                return Receipt(version=7)

        truth = ray_cluster.check_versions
        ray_cluster.check_versions = lambda address, here, nodes: truth(address, {**here, "torch": "0.98"}, nodes)
        engine = Engine(Config(address=sys.argv[1]), 0)
        try:
            engine.spawn("probe", Probe)
        except UsageError as error:
            print(error)
        ray_cluster.check_versions = truth
        role = engine.spawn("probe", Probe)
        future = engine.submit(role, "seven")
        assert engine.wait(60) is future
        print(engine.result(future).version)
        engine.close()
    """
    done = run(script, ray.get_runtime_context().gcs_address)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert re.search(r"runs torch \S+, this process 0\.98", lines[0])
    assert lines[1] == "7"
    assert ray.is_initialized()


OWN_RAY = """
    import os, signal, sys
    from pathlib import Path
    from qfleet.engines.ray import Config, Engine
    from qfleet.placement import processes
    from qfleet.types import Receipt, Reply

    class Probe:
        def pid(self):
            return Reply(Receipt(), os.getpid())

    def below(pid):
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # Ray's agents outlive a crash by most of a minute: they try to report it first.
            is_agent = b"Agent" in stat.with_name("cmdline").read_bytes() and sys.argv[1] == "crash"
            if int(fields[1]) == pid and not is_agent:
                found += [(int(stat.parent.name), fields[19]), *below(int(stat.parent.name))]
        return found

    engine = Engine(Config(), 0)
    roles = [engine.spawn(f"probe-{i}", Probe) for i in range(2)]
    futures = [engine.submit(role, "pid") for role in roles]
    for _ in roles:
        engine.wait(60)
    pids = [engine.payload(future) for future in futures]
    family = below(os.getpid())
    assert set(pids) <= {pid for pid, _ in family}
    token = b"RAY_AUTH_MODE=token" in Path(f"/proc/{pids[0]}/environ").read_bytes().split(b"\\0")
    print(token, engine._cluster._folder, *(f"{pid}:{started}" for pid, started in family), flush=True)
    if sys.argv[1] == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(pids[0], signal.SIGSTOP)
    engine.close()
    for pid, started in family:
        assert not processes.is_running(processes.Process(pid, started)), pid
"""


@pytest.mark.parametrize("end", ["close", "crash"])
def test_nothing_is_left_of_a_ray_that_was_started_for_a_run(end: str) -> None:
    before = set(Path("/dev/shm").iterdir())
    done = run(OWN_RAY, end)
    assert done.returncode == (0 if end == "close" else -signal.SIGKILL), done.stderr
    has_token, folder, *family = done.stdout.split()
    assert has_token == "True", "a Ray that anybody on the network may use"
    assert len(family) >= 4, "two roles, and Ray's own"
    processes = [Process(int(pid), started) for pid, _, started in (one.partition(":") for one in family)]
    assert wait_until_gone(processes, 30.0) == []
    assert set(Path("/dev/shm").iterdir()) <= before
    if end == "close":
        assert not Path(folder).exists()
        assert done.stderr == ""
    else:  # nobody is left to remove Ray's own logs
        shutil.rmtree(folder, ignore_errors=True)


def test_without_ray_the_extra_is_named() -> None:
    done = run(
        """
        import sys
        sys.modules["ray"] = None
        from qfleet.errors import MissingExtraError
        from qfleet.plugins import list_plugins
        from qfleet.run_config import build_config
        assert "ray" in list_plugins("engine")
        try:
            build_config({}, [("env.id", "CartPole-v1"), ("engine", "ray")])
        except MissingExtraError as error:
            print(error)
        """
    )
    assert "pip install 'qfleet[ray]'" in done.stdout, done.stderr
