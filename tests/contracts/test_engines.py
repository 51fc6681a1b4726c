"""What every engine must keep to: calls, values, parts, lanes, failures. Modules are found by themselves, new ones too.

An engine is held to the protocol of engines/base.py by roles that know nothing of learning.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch

from qfleet.engines.base import Engine, Future, Part, Placement, RoleRef
from qfleet.errors import CallFailed, RoleDied, ValueLost
from qfleet.types import Receipt, Reply


class Probe:
    """A role whose answers give away who was called with what."""

    def __init__(self, label: str, closed: str = "") -> None:
        self.label = label
        self.closed = closed

    def count(self, num_updates: int) -> Receipt:
        return Receipt(num_updates=num_updates)

    def make(self, value: object) -> Reply:
        return Reply(Receipt(version=7), (self.label, value))

    def nothing(self) -> None:
        return None

    def pieces(self, *values: object) -> Reply:
        return Reply(Receipt(version=len(values)), values)

    def mean(self) -> Generator[torch.Tensor, None, Receipt]:
        yield torch.ones(6)
        return Receipt()

    def touch(self, path: str) -> None:
        Path(path).touch()

    def hold(self, begun: str, released: str) -> None:
        """Say that the call is running, and do not return until told."""
        with Path(begun).open("wb", buffering=0) as pipe:
            pipe.write(b"x")
        with Path(released).open("rb", buffering=0) as pipe:
            pipe.read(1)

    def fail(self) -> None:
        raise ValueError("decoy 99")

    def close(self) -> None:
        if self.closed:
            Path(self.closed).write_text(self.label)


class Gate(Protocol):
    """The fixture of conftest.py."""

    @property
    def paths(self) -> tuple[str, str]: ...
    def wait_until_one_has_begun(self) -> None: ...
    def let_one_go(self) -> None: ...


def call(engine: Engine, role: RoleRef, method: str, *args: object, lane: str = "training") -> Future:
    future = engine.submit(role, method, *args, lane=lane)
    assert engine.wait(timeout=60, lane=lane) is future
    return future


def test_every_method_of_the_protocol_is_there(engine: Engine) -> None:
    wanted = [name for name in vars(Engine) if not name.startswith("_")]
    assert len(wanted) >= 14
    for name in wanted:
        theirs = inspect.signature(getattr(type(engine), name)).parameters
        assert list(theirs) == list(inspect.signature(getattr(Engine, name)).parameters), name


def test_an_engine_says_whether_calls_run_beside_the_caller_and_keeps_to_it(engine: Engine, gate: Gate) -> None:
    assert type(engine.is_concurrent) is bool
    roles = [engine.spawn(f"probe-{i}", Probe, str(i)) for i in range(2)]
    if engine.is_concurrent:
        held = [engine.submit(role, "hold", *gate.paths) for role in roles]
        for _ in roles:
            gate.wait_until_one_has_begun()  # both are under way at once, and nobody waits for them
        for _ in roles:
            gate.let_one_go()
        assert {id(engine.wait(timeout=60)) for _ in roles} == {id(future) for future in held}
    else:
        touched = Path(gate.paths[0]).with_name("touched")
        pending = engine.submit(roles[0], "touch", str(touched))
        assert not touched.exists(), "nothing runs before wait"
        assert engine.wait(timeout=60) is pending
        assert touched.exists()


def test_there_is_room_for_a_role(engine: Engine) -> None:
    assert engine.room_for(Placement()) >= 1
    engine.spawn("placed", Probe, "a", placement=Placement(num_cpus=1.0, near="pack"))


def test_spawn_builds_once_and_names_are_unique(engine: Engine) -> None:
    role = engine.spawn("probe-0", Probe, "label")
    assert role == RoleRef("probe-0")
    with pytest.raises(ValueError, match="probe-0"):
        engine.spawn("probe-0", Probe, "other")
    assert engine.payload(call(engine, role, "make", 1)) == ("label", 1), "the first one is still there"


def test_an_answer_has_two_halves(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "label")
    both = call(engine, role, "make", "value")
    assert engine.result(both).version == 7
    assert engine.payload(both) == ("label", "value")
    assert engine.result(call(engine, role, "count", 3)).num_updates == 3
    assert engine.result(call(engine, role, "nothing")) == Receipt()
    assert (both.role, both.method, both.lane) == (role, "make", "training")


def test_nothing_under_way_gives_none(engine: Engine) -> None:
    assert engine.wait(timeout=1) is None
    role = engine.spawn("probe", Probe, "label")
    call(engine, role, "nothing")
    assert engine.wait(timeout=1) is None, "each completion is handed out once"


def test_every_submitted_call_comes_back_and_one_roles_in_order(engine: Engine) -> None:
    roles = [engine.spawn(f"probe-{i}", Probe, str(i)) for i in range(3)]
    submitted = [engine.submit(role, "make", turn) for turn in range(4) for role in roles]
    done = [engine.wait(timeout=60) for _ in submitted]
    assert {id(future) for future in done} == {id(future) for future in submitted}
    for i, role in enumerate(roles):
        answers = [engine.payload(future) for future in done if future is not None and future.role == role]
        assert answers == [(str(i), turn) for turn in range(4)]


def test_a_completed_future_stands_for_its_payload(engine: Engine) -> None:
    first, second = engine.spawn("first", Probe, "a"), engine.spawn("second", Probe, "b")
    made = call(engine, first, "make", 99)
    assert engine.payload(call(engine, second, "make", made)) == ("b", ("a", 99))
    assert engine.payload(made) == ("a", 99), "passing it on uses nothing up"


def test_a_payload_may_travel_in_parts(engine: Engine) -> None:
    first, second = engine.spawn("first", Probe, "a"), engine.spawn("second", Probe, "b")
    made = engine.submit(first, "pieces", "left", "right", num_parts=2)
    assert engine.wait(timeout=60) is made
    assert (made.num_parts, engine.result(made).version) == (2, 2)
    assert engine.payload(call(engine, second, "make", Part(made, 1))) == ("b", "right")
    assert engine.payload(call(engine, second, "make", Part(made, 0))) == ("b", "left")
    whole = engine.payload(made)
    assert isinstance(whole, Sequence)
    assert list(whole) == ["left", "right"], "using its parts uses nothing up"


def test_a_payload_of_another_number_of_parts_is_the_calls_failure(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    made = engine.submit(role, "pieces", 97, 98, 99, num_parts=2)
    assert engine.wait(timeout=60) is made
    with pytest.raises(CallFailed, match=r"probe\.pieces failed: .*2 parts"):
        engine.result(made)
    with pytest.raises(ValueLost, match="probe"):
        engine.result(call(engine, role, "make", Part(made, 1)))


def test_a_part_of_a_future_that_is_not_completed_is_refused(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    pending = engine.submit(role, "pieces", 1, 2, num_parts=2)
    with pytest.raises(ValueError, match="pieces is not completed"):
        engine.submit(role, "make", Part(pending, 1))
    assert engine.wait(timeout=60) is pending


def test_a_future_that_is_not_completed_is_refused(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    pending = engine.submit(role, "make", 1)
    with pytest.raises(ValueError, match="make is not completed"):
        engine.submit(role, "make", pending)
    assert engine.wait(timeout=60) is pending
    assert engine.wait(timeout=1) is None, "the refused call was never queued"


def test_a_call_that_raises_gives_the_roles_own_traceback(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    failed = call(engine, role, "fail")
    for ask in (engine.result, engine.payload):
        with pytest.raises(CallFailed, match=r"probe\.fail failed: ValueError: decoy 99") as caught:
            ask(failed)
        assert (caught.value.role, caught.value.method) == ("probe", "fail")
        assert 'raise ValueError("decoy 99")' in caught.value.remote_traceback
    assert engine.payload(call(engine, role, "make", 2)) == ("a", 2), "the role lives on"


class Unbuildable:
    def __init__(self) -> None:
        raise ValueError("decoy 98")


def test_a_role_that_cannot_be_built_fails_its_first_call(engine: Engine) -> None:
    role = engine.spawn("probe", Unbuildable)
    with pytest.raises(CallFailed, match=r"probe\.make failed: ValueError: decoy 98") as caught:
        engine.result(call(engine, role, "make", 1))
    assert 'raise ValueError("decoy 98")' in caught.value.remote_traceback


def test_a_value_that_never_came_to_be_is_lost_not_none(engine: Engine) -> None:
    producer, healthy = engine.spawn("producer", Probe, "a"), engine.spawn("healthy", Probe, "b")
    failed = call(engine, producer, "fail")
    with pytest.raises(ValueLost, match="producer") as caught:
        engine.result(call(engine, healthy, "make", failed))
    assert caught.value.producer == "producer"
    engine.stop(producer)
    dead = call(engine, producer, "make", 1)
    with pytest.raises(ValueLost, match="producer"):
        engine.result(call(engine, healthy, "make", dead))


def test_lanes_do_not_mix(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    training = engine.submit(role, "make", "training")
    evaluation = engine.submit(role, "make", "evaluation", lane="evaluation")
    assert engine.wait(timeout=60, lane="evaluation") is evaluation
    assert engine.wait(timeout=1, lane="evaluation") is None
    assert engine.wait(timeout=60) is training
    assert engine.payload(evaluation) == ("a", "evaluation")
    # A value made on one lane is good on the other.
    assert engine.payload(call(engine, role, "make", evaluation)) == ("a", ("a", "evaluation"))


def test_what_roles_get_from_each_other_is_counted_once_each(engine: Engine) -> None:
    maker, taker, other = (engine.spawn(name, Probe, "a") for name in ("maker", "taker", "other"))
    traffic = getattr(engine, "traffic")  # noqa: B009  (no part of the protocol: an engine need not count)

    def counted(role: RoleRef, argument: object, lane: str = "training") -> int:
        before = traffic.num_bytes
        engine.result(call(engine, role, "make", argument, lane=lane))
        return int(traffic.num_bytes - before)

    made = call(engine, maker, "make", np.zeros(100))
    assert traffic.num_bytes == 0, "an argument that is no payload"
    # The label's letter, and 100 numbers of 8 bytes.
    assert counted(taker, made) == 801
    assert counted(taker, made) == 0, "it has it already"
    assert counted(maker, made) == 0, "its own"
    assert counted(other, made, lane="evaluation") == 0
    pieces = engine.submit(maker, "pieces", np.zeros(10), np.zeros(99), num_parts=2)
    assert engine.wait(timeout=60) is pieces
    assert counted(taker, Part(pieces, 0)) == 80
    assert counted(other, pieces) == 80 + 792
    # A ring of three: each sends 2 (3 - 1) / 3 of 24 bytes.
    before = traffic.num_bytes
    futures = engine.all_reduce([maker, taker, other], "mean", [(), (), ()])
    assert {engine.wait(timeout=60) for _ in futures} == set(futures)
    assert traffic.num_bytes - before == 3 * 32


def test_a_stopped_role_is_dead_and_its_calls_are_dropped(engine: Engine, tmp_path: Path) -> None:
    doomed = engine.spawn("doomed", Probe, "a", str(tmp_path / "closed"))
    other = engine.spawn("other", Probe, "b")
    engine.submit(doomed, "make", 99)
    engine.stop(doomed)
    assert (tmp_path / "closed").read_text() == "a", "its close was called"
    call(engine, other, "nothing")  # the next completion is not the dropped call's
    late = call(engine, doomed, "make", 98)
    with pytest.raises(RoleDied, match="doomed") as caught:
        engine.result(late)
    assert (caught.value.role, caught.value.incarnation) == ("doomed", 0)


def test_close_closes_every_role(engine: Engine, tmp_path: Path) -> None:
    paths = [tmp_path / f"closed-{i}" for i in range(2)]
    for i, path in enumerate(paths):
        engine.spawn(f"probe-{i}", Probe, f"label-{i}", str(path))
    engine.close()
    assert [path.read_text() for path in paths] == ["label-0", "label-1"]
    engine.close()  # twice is fine


def test_the_engines_state_is_json_and_comes_back(engine: Engine) -> None:
    role = engine.spawn("probe", Probe, "a")
    before = engine.now()
    for _ in range(3):
        call(engine, role, "nothing")
    assert engine.now() > before
    state = json.loads(json.dumps(engine.state_dict()))
    engine.load_state_dict(state)
    assert json.loads(json.dumps(engine.state_dict())) == state
