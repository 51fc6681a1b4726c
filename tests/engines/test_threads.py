"""What the threads engine promises beyond the contract: shared memory, clocks, first weights, no leftovers.

Threads are held at events, never by time; what is random in the storm comes from a seed, and holds for every order in
which the operating system may run the threads.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from qfleet.algos.base import Algorithm
from qfleet.engines import inline
from qfleet.engines.base import Future, RoleRef
from qfleet.engines.threads import Config, Engine
from qfleet.errors import CallFailed, QfleetError, RoleDied, ValueLost
from qfleet.roles.blueprint import Blueprint
from qfleet.types import Receipt, Reply


class Role:
    """Shares events and lists with the test, for it lives in the same memory."""

    def __init__(self, name: str, closed: list[str] | None = None) -> None:
        self.name = name
        self.closed = closed
        self.num_calls = 0

    def make(self, value: object) -> Reply:
        return Reply(Receipt(), value)

    def hold(self, begun: threading.Event, released: threading.Event) -> Reply:
        begun.set()
        released.wait()
        return Reply(Receipt(), "late")

    def exit(self) -> None:
        sys.exit(99)

    def raise_lost(self) -> None:
        raise ValueLost("decoy")

    def thread(self) -> Reply:
        return Reply(Receipt(), threading.current_thread())

    def average(self, value: float, after: threading.Event, arriving: threading.Event) -> Iterator[torch.Tensor]:
        after.wait()
        tensor = torch.tensor([value])
        arriving.set()
        yield tensor
        return Reply(Receipt(), tensor.item())

    def count(self, *values: object) -> Reply:
        self.num_calls += 1
        return Reply(Receipt(num_samples=1), (self.name, self.num_calls))

    def fail(self, *values: object) -> None:
        raise ValueError("decoy 99")

    def close(self) -> None:
        if self.closed is not None:
            self.closed.append(self.name)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(Config(), 0)
    yield made
    made.close()


@pytest.fixture
def events() -> Iterator[list[threading.Event]]:
    """[begun, released]; released is set at the end, so that a failed test leaves no thread behind."""
    made = [threading.Event(), threading.Event()]
    yield made
    made[1].set()


def call(engine: Engine, role: RoleRef, method: str, *args: object) -> Future:
    future = engine.submit(role, method, *args)
    assert engine.wait(timeout=60) is future
    return future


def test_a_payload_is_the_very_object(engine: Engine) -> None:
    first, second = engine.spawn("first", Role, "a"), engine.spawn("second", Role, "b")
    value = np.zeros(3)
    made = call(engine, first, "make", value)
    assert engine.payload(made) is value
    assert engine.payload(call(engine, second, "make", made)) is value


def test_each_life_has_a_thread_of_its_own(engine: Engine) -> None:
    roles = [engine.spawn(f"role-{i}", Role, str(i)) for i in range(2)]
    threads = [engine.payload(call(engine, role, "thread")) for role in [*roles, *roles]]
    assert threads[:2] == threads[2:]
    engine.respawn(roles[0])
    threads.append(engine.payload(call(engine, roles[0], "thread")))
    assert len({*threads, threading.current_thread()}) == 4
    assert all(isinstance(thread, threading.Thread) and thread.daemon for thread in threads)


def test_a_call_that_runs_too_long_ends_the_run_with_one_line(events: list[threading.Event]) -> None:
    engine = Engine(Config(role_timeout=0.01), 0)
    role = engine.spawn("worker-3", Role, "a")
    engine.submit(role, "hold", *events)
    with pytest.raises(QfleetError, match=r"role worker-3: hold has not returned for 0\.01 s.*engine\.role_timeout"):
        engine.wait()
    engine.close()  # does not wait for it


def test_who_waits_for_a_member_is_not_on_the_clock(events: list[threading.Event]) -> None:
    engine = Engine(Config(role_timeout=0.05), 0)
    waiting, busy = engine.spawn("waiting", Role, "a"), engine.spawn("busy", Role, "b")
    begun, released = events
    now = threading.Event()
    now.set()
    engine.all_reduce([waiting, busy], "average", [(1.0, now, begun), (2.0, released, now)])
    with pytest.raises(QfleetError, match="role busy: average has not returned"):
        engine.wait()
    engine.close()


def test_a_killed_call_is_off_the_clock_and_closes_its_role_when_it_returns(events: list[threading.Event]) -> None:
    engine = Engine(Config(), 0)
    closed: list[str] = []
    role, other = engine.spawn("role", Role, "a", closed), engine.spawn("other", Role, "b")
    thread = engine.payload(call(engine, role, "thread"))
    assert isinstance(thread, threading.Thread)
    held = engine.submit(role, "hold", *events)
    events[0].wait()
    engine.kill(role)
    assert not engine._running
    assert closed == []
    events[1].set()
    thread.join(60)
    assert closed == ["a"]
    assert engine.wait() is held
    assert isinstance(held.error, RoleDied), "its late answer is dropped"
    assert engine.wait(timeout=1) is None
    call(engine, other, "make", 1)
    engine.close()


def test_a_roles_exit_is_its_failure(engine: Engine) -> None:
    role = engine.spawn("role", Role, "a")
    with pytest.raises(CallFailed, match=r"role\.exit failed: SystemExit: 99"):
        engine.result(call(engine, role, "exit"))
    assert engine.payload(call(engine, role, "make", 1)) == 1


def test_a_lost_value_that_a_role_raises_is_its_own_failure(engine: Engine) -> None:
    with pytest.raises(CallFailed, match="decoy"):
        engine.result(call(engine, engine.spawn("role", Role, "a"), "raise_lost"))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_the_mean_does_not_depend_on_who_comes_first(engine: Engine, order: tuple[int, ...]) -> None:
    group = [engine.spawn(f"member-{rank}", Role, str(rank)) for rank in range(3)]
    # In float32 1e8 + 1 = 1e8, so that (1e8 + 1) - 1e8 = 0, while in another order (1e8 - 1e8) + 1 = 1.
    values = [1e8, 1.0, -1e8]
    turns = [threading.Event() for _ in range(4)]
    turns[0].set()
    args = [(values[rank], turns[order.index(rank)], turns[order.index(rank) + 1]) for rank in range(3)]
    futures = engine.all_reduce(group, "average", args)
    assert {id(engine.wait(timeout=60)) for _ in group} == {id(future) for future in futures}
    assert [engine.payload(future) for future in futures] == [0.0] * 3


def test_a_member_that_is_stopped_at_its_yield_frees_the_others(engine: Engine, events: list[threading.Event]) -> None:
    first, second = engine.spawn("first", Role, "a"), engine.spawn("second", Role, "b")
    begun, released = events
    engine.submit(second, "hold", threading.Event(), released)
    _, theirs = engine.all_reduce([first, second], "average", [(1.0, begun, begun), (2.0, begun, begun)])
    begun.set()
    engine.stop(first)
    released.set()
    held, lost = engine.wait(timeout=60), engine.wait(timeout=60)
    assert held is not None
    assert engine.payload(held) == "late"
    assert lost is theirs
    with pytest.raises(ValueLost, match="first"):
        engine.result(theirs)
    assert engine.wait(timeout=1) is None


def test_a_stopped_roles_answer_that_nobody_has_taken_is_dropped_too(engine: Engine) -> None:
    role, other = engine.spawn("role", Role, "a"), engine.spawn("other", Role, "b")
    engine.submit(role, "make", 99)
    after = engine.submit(role, "make", 98, lane="evaluation")
    assert engine.wait(timeout=60, lane="evaluation") is after  # so the first one has its answer
    engine.stop(role)
    assert engine.wait(timeout=60) is None
    assert engine.payload(call(engine, other, "make", 1)) == 1


def test_close_leaves_no_thread_and_closes_each_role_once(engine: Engine) -> None:
    before = set(threading.enumerate())
    closed: list[str] = []
    for i in range(3):
        engine.respawn(engine.spawn(f"role-{i}", Role, str(i), closed))
    engine.close()
    assert set(threading.enumerate()) <= before
    assert set(closed) == {"0", "1", "2"}
    assert max(Counter(closed).values()) <= 2, "one for each life that was built"


def test_another_engines_checkpoint_is_no_hindrance(engine: Engine) -> None:
    engine.load_state_dict(inline.Engine(inline.Config(), 3).state_dict())
    assert engine.state_dict() == {}


class Parameters:
    """A role that is nothing but a network with the run's first weights."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.vector = blueprint.build_network().vector.clone()

    def get(self) -> Reply:
        return Reply(Receipt(), self.vector)


def test_roles_built_side_by_side_have_the_first_weights_of_inline(
    engine: Engine, blueprint: Blueprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_algorithm = Blueprint.build_algorithm

    def give_way(self: Blueprint) -> Algorithm:
        """Between the seeding of torch's global generator and the draws from it: let every other thread run."""
        for _ in range(100):
            time.sleep(0)
        return build_algorithm(self)

    monkeypatch.setattr(Blueprint, "build_algorithm", give_way)
    reference = inline.Engine(inline.Config(), 0)
    future = reference.submit(reference.spawn("role", Parameters, blueprint), "get")
    assert reference.wait() is future
    wanted = future.payload
    assert isinstance(wanted, torch.Tensor)
    before = torch.random.get_rng_state()
    futures = [engine.submit(engine.spawn(f"role-{i}", Parameters, blueprint), "get") for i in range(16)]
    assert {id(engine.wait(timeout=60)) for _ in futures} == {id(future) for future in futures}
    for future in futures:
        vector = engine.payload(future)
        assert isinstance(vector, torch.Tensor)
        assert vector.equal(wanted)
    assert torch.random.get_rng_state().equal(before), "the global generator is as it was"


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can, so that what is not guarded collides."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("seed", range(3))
def test_every_call_comes_back_once_through_a_storm(engine: Engine, seed: int) -> None:
    generator = np.random.default_rng(seed)
    roles = [engine.spawn(f"role-{i}", Role, f"role-{i}") for i in range(8)]
    open_calls: dict[str, dict[int, Future]] = {"training": {}, "evaluation": {}}
    values: list[Future] = []
    kinds: Counter[str] = Counter()

    def submit(lane: str) -> None:
        role = roles[generator.integers(8)]
        method = "fail" if generator.random() < 0.1 else "count"
        args = [values[generator.integers(len(values))]] if values else []
        future = engine.submit(role, method, *args, lane=lane)
        open_calls[lane][id(future)] = future

    def reduce() -> None:
        now = threading.Event()
        now.set()
        ranks = generator.permutation(8)[:3]
        for future in engine.all_reduce([roles[i] for i in ranks], "average", [(1.0, now, now)] * 3):
            open_calls["training"][id(future)] = future

    def receive(lane: str) -> None:
        future = engine.wait(timeout=60, lane=lane)
        assert future is not None, f"{len(open_calls[lane])} calls never came back"
        assert open_calls[lane].pop(id(future)) is future, "it came back twice"
        kinds[type(future.error).__name__] += 1
        if future.method == "count":
            values.append(future)
            if future.error is None:
                assert engine.payload(future)[0] == future.role.name  # type: ignore[index]
            del values[:-20]

    num_submitted = 0
    for _ in range(2000):
        lane = ("training", "evaluation")[generator.integers(2)]
        dice = generator.random()
        if dice < 0.02:
            role = roles[generator.integers(8)]
            engine.kill(role)
            if generator.random() < 0.8:
                engine.respawn(role)
        elif dice < 0.05:
            engine.respawn(roles[generator.integers(8)])
        elif dice < 0.08:
            reduce()
            num_submitted += 3
        elif dice < 0.55 or not open_calls[lane]:
            submit(lane)
            num_submitted += 1
        else:
            receive(lane)
    for lane in open_calls:
        while open_calls[lane]:
            receive(lane)
        assert engine.wait(timeout=1, lane=lane) is None
    assert kinds.total() == num_submitted
    assert set(kinds) == {"NoneType", "CallFailed", "RoleDied", "ValueLost"}, "all four ends occurred"
