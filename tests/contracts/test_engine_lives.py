"""What every engine must keep to when roles die, come back, and average tensors among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
import torch

from qfleet.engines.base import Engine, Future, Part, RoleRef
from qfleet.errors import CallFailed, RoleDied, ValueLost
from qfleet.types import Receipt, Reply


class Counter:
    """A role with a state of its own: a new life starts at `start` again."""

    def __init__(self, label: str, start: int) -> None:
        self.label = label
        self.value = start

    def add(self, amount: int) -> Reply:
        self.value += amount
        return Reply(Receipt(), (self.label, self.value))

    def pair(self) -> Reply:
        return Reply(Receipt(), (self.label, self.value))

    def echo(self, value: object) -> Reply:
        return Reply(Receipt(), value)

    def hold(self, begun: str, released: str) -> Reply:
        with Path(begun).open("wb", buffering=0) as pipe:
            pipe.write(b"x")
        with Path(released).open("rb", buffering=0) as pipe:
            pipe.read(1)
        return self.add(99)


class Member(Counter):
    """A member of a group; it keeps what it has seen of the means in `seen`."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"member {rank}", 0)
        self.rank = rank

    def average(self, first: list[float], num_rounds: int) -> Iterator[torch.Tensor]:
        """In round k it gives first + k * 3 ** rank, from within a larger tensor whose first entry is nobody's."""
        seen = []
        for k in range(num_rounds):
            held = torch.tensor([99.0, *first])
            held[1:] += k * 3.0**self.rank
            yield held[1:]
            seen.append(held.tolist())
        return Reply(Receipt(version=self.rank), seen)

    def average_or_raise(self, failing_rank: int, failing_round: int) -> Iterator[torch.Tensor]:
        for k in range(3):
            if (self.rank, k) == (failing_rank, failing_round):
                raise ValueError("decoy 98")
            yield torch.ones(2)

    def average_times(self, num_yields: int) -> Iterator[torch.Tensor]:
        for _ in range(num_yields):
            yield torch.ones(2)

    def average_shape(self, size: int) -> Iterator[torch.Tensor]:
        yield torch.ones(size)

    def average_values(self, values: list[float]) -> Iterator[torch.Tensor]:
        tensor = torch.tensor(values)
        yield tensor
        return Reply(Receipt(), tensor)


class Gate(Protocol):
    """The fixture of conftest.py."""

    @property
    def paths(self) -> tuple[str, str]: ...
    def wait_until_one_has_begun(self) -> None: ...
    def let_one_go(self) -> None: ...


def call(engine: Engine, role: RoleRef, method: str, *args: object) -> Future:
    future = engine.submit(role, method, *args)
    assert engine.wait(timeout=60) is future
    return future


def wait_for_all(engine: Engine, futures: Sequence[Future]) -> None:
    """Each of them comes back exactly once, and nothing else does."""
    done = [engine.wait(timeout=60) for _ in futures]
    assert {id(future) for future in done} == {id(future) for future in futures}
    assert engine.wait(timeout=1) is None


def failure(engine: Engine, future: Future) -> Exception:
    with pytest.raises((RoleDied, ValueLost, CallFailed)) as caught:
        engine.result(future)
    return caught.value


def assert_died(engine: Engine, future: Future, role: RoleRef, incarnation: int) -> None:
    error = failure(engine, future)
    assert isinstance(error, RoleDied)
    assert (error.role, error.incarnation, error.cause) == (role.name, incarnation, "killed")
    assert future.incarnation == incarnation


def members(engine: Engine, size: int) -> list[RoleRef]:
    return [engine.spawn(f"member-{rank}", Member, rank) for rank in range(size)]


def test_a_killed_roles_calls_come_back_as_its_death(engine: Engine) -> None:
    doomed, other = engine.spawn("doomed", Counter, "a", 5), engine.spawn("other", Counter, "b", 7)
    pending = [engine.submit(doomed, "add", 1) for _ in range(3)]
    healthy = engine.submit(other, "add", 1)
    engine.kill(doomed)
    late = engine.submit(doomed, "add", 1)
    wait_for_all(engine, [*pending, healthy, late])
    for future in [*pending, late]:
        assert_died(engine, future, doomed, 0)
    assert engine.payload(healthy) == ("b", 8)
    engine.kill(doomed)  # twice is fine
    assert engine.wait(timeout=1) is None


def test_a_killed_role_stays_known(engine: Engine) -> None:
    doomed = engine.spawn("doomed", Counter, "a", 5)
    engine.kill(doomed)
    assert engine.incarnation(doomed) == 0
    with pytest.raises(ValueError, match="doomed"):
        engine.spawn("doomed", Counter, "a", 5)
    engine.respawn(doomed)
    assert engine.payload(call(engine, doomed, "add", 1)) == ("a", 6)


def test_a_new_life_is_built_as_the_first_one_and_knows_nothing_of_it(engine: Engine) -> None:
    role = engine.spawn("role", Counter, "a", 5)
    assert engine.incarnation(role) == 0
    assert engine.payload(call(engine, role, "add", 99)) == ("a", 104)
    for life in (1, 2):
        former = engine.submit(role, "add", 98)
        engine.respawn(role)
        assert engine.incarnation(role) == life
        present = engine.submit(role, "add", 1)
        wait_for_all(engine, [former, present])
        assert_died(engine, former, role, life - 1)
        assert engine.payload(present) == ("a", 6)
        assert present.incarnation == life


def test_calls_between_death_and_a_new_life_belong_to_the_dead_one(engine: Engine) -> None:
    role = engine.spawn("role", Counter, "a", 5)
    engine.kill(role)
    between = engine.submit(role, "add", 1)
    engine.respawn(role)
    present = engine.submit(role, "add", 2)
    wait_for_all(engine, [between, present])
    assert_died(engine, between, role, 0)
    assert engine.payload(present) == ("a", 7)


def test_a_call_that_is_running_dies_with_its_role_and_its_late_answer_is_dropped(engine: Engine, gate: Gate) -> None:
    role, other = engine.spawn("role", Counter, "a", 5), engine.spawn("other", Counter, "b", 7)
    held = engine.submit(role, "hold", *gate.paths)
    if engine.is_concurrent:
        gate.wait_until_one_has_begun()
    engine.kill(role)
    assert engine.wait(timeout=60) is held, "at once, not when it would have returned"
    assert_died(engine, held, role, 0)
    engine.respawn(role)
    gate.let_one_go()
    assert engine.payload(call(engine, role, "add", 1)) == ("a", 6), "the late call touched another life's state"
    assert engine.payload(call(engine, other, "add", 1)) == ("b", 8)
    assert_died(engine, held, role, 0)
    assert engine.wait(timeout=1) is None


@pytest.mark.parametrize("respawned", [False, True])
def test_a_completed_value_survives_its_maker_or_is_lost_but_is_never_another(engine: Engine, respawned: bool) -> None:
    maker, healthy = engine.spawn("maker", Counter, "a", 5), engine.spawn("healthy", Counter, "b", 7)
    made = call(engine, maker, "add", 1)
    pair = engine.submit(maker, "pair", num_parts=2)
    assert engine.wait(timeout=60) is pair
    engine.kill(maker)
    if respawned:
        engine.respawn(maker)
        call(engine, maker, "add", 93)  # a decoy of the same maker and method
    for argument, value in ((made, ("a", 6)), (Part(pair, 0), "a"), (Part(pair, 1), 6)):
        used = call(engine, healthy, "echo", argument)
        try:
            assert engine.payload(used) == value
        except ValueLost as error:
            assert error.producer == "maker"


def test_a_killed_roles_pending_value_is_lost_to_others(engine: Engine) -> None:
    maker, healthy = engine.spawn("maker", Counter, "a", 5), engine.spawn("healthy", Counter, "b", 7)
    pending = engine.submit(maker, "add", 1)
    engine.kill(maker)
    wait_for_all(engine, [pending])
    error = failure(engine, call(engine, healthy, "echo", pending))
    assert isinstance(error, ValueLost)
    assert error.producer == "maker"


def test_all_reduce_writes_the_mean_into_each_members_own_tensor(engine: Engine) -> None:
    group = members(engine, 3)
    # Round k: member r gives first_r + k 3^r. Means of the firsts: (1 + 2 + 6) / 3 = 3 and (10 + 20 + 60) / 3 = 30;
    # the mean of k 3^r is k (1 + 3 + 9) / 3 = 13 k / 3.
    firsts = [[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]]
    futures = engine.all_reduce(group, "average", [(first, 3) for first in firsts])
    assert [future.role for future in futures] == group
    wait_for_all(engine, futures)
    assert [engine.result(future).version for future in futures] == [0, 1, 2], "each has its own answer"
    seen = [engine.payload(future) for future in futures]
    assert seen[0] == seen[1] == seen[2], "the same bits everywhere"
    assert torch.tensor(seen[0]).allclose(torch.tensor([[99.0, 3 + 13 * k / 3, 30 + 13 * k / 3] for k in range(3)]))


def test_all_reduce_of_one_changes_no_bit(engine: Engine) -> None:
    values = [0.1, -0.0, 1e-45, 3.4e38, -7.0 / 3.0]
    (future,) = engine.all_reduce(members(engine, 1), "average_values", [(values,)])
    wait_for_all(engine, [future])
    answer = engine.payload(future)
    assert isinstance(answer, torch.Tensor)
    assert answer.numpy().tobytes() == torch.tensor(values).numpy().tobytes()


def test_all_reduce_comes_back_on_its_lane(engine: Engine) -> None:
    group = members(engine, 2)
    futures = engine.all_reduce(group, "average", [([1.0], 1), ([2.0], 1)], lane="evaluation")
    assert engine.wait(timeout=1) is None
    assert {id(engine.wait(timeout=60, lane="evaluation")) for _ in group} == {id(future) for future in futures}
    assert [engine.payload(future) for future in futures] == [[[99.0, 1.5]]] * 2


@pytest.mark.parametrize("failing_round", [0, 2])
def test_a_member_that_raises_breaks_the_call_for_all(engine: Engine, failing_round: int) -> None:
    group = members(engine, 3)
    futures = engine.all_reduce(group, "average_or_raise", [(1, failing_round)] * 3)
    wait_for_all(engine, futures)
    errors = [failure(engine, future) for future in futures]
    assert [type(error) for error in errors] == [ValueLost, CallFailed, ValueLost]
    assert "decoy 98" in str(errors[1])
    assert [getattr(errors[rank], "producer", None) for rank in (0, 2)] == ["member-1"] * 2
    again = engine.all_reduce(group, "average", [([3.0 * rank], 1) for rank in range(3)])
    wait_for_all(engine, again)
    assert [engine.payload(future) for future in again] == [[[99.0, 3.0]]] * 3, "the members live on"


def test_a_member_that_is_dead_already_breaks_the_call_for_all(engine: Engine) -> None:
    group = members(engine, 3)
    engine.kill(group[1])
    futures = engine.all_reduce(group, "average", [([1.0], 1)] * 3)
    wait_for_all(engine, futures)
    assert_died(engine, futures[1], group[1], 0)
    for rank in (0, 2):
        error = failure(engine, futures[rank])
        assert isinstance(error, ValueLost)
        assert error.producer == "member-1"
    engine.respawn(group[1])
    again = engine.all_reduce(group, "average", [([3.0 * rank], 1) for rank in range(3)])
    wait_for_all(engine, again)
    assert [engine.payload(future) for future in again] == [[[99.0, 3.0]]] * 3


@pytest.mark.parametrize("late", [False, True], ids=["it stands waiting", "it has not arrived"])
def test_a_member_killed_before_the_mean_breaks_the_call_for_all(engine: Engine, gate: Gate, late: bool) -> None:
    group = members(engine, 2)
    busy, doomed = (group[1], group[1]) if late else (group[1], group[0])
    if engine.is_concurrent:
        before = [engine.submit(busy, "hold", *gate.paths)]
        gate.wait_until_one_has_begun()
    else:
        before = [engine.submit(busy, "add", 1) for _ in range(8)]
    futures = engine.all_reduce(group, "average", [([1.0], 1)] * 2)
    done = [] if engine.is_concurrent else [engine.wait(timeout=60) for _ in range(6)]
    engine.kill(doomed)
    gate.let_one_go()
    pending = [future for future in [*before, *futures] if not any(future is other for other in done)]
    wait_for_all(engine, pending)
    assert_died(engine, futures[group.index(doomed)], doomed, 0)
    error = failure(engine, futures[1 - group.index(doomed)])
    assert isinstance(error, ValueLost)
    assert error.producer == doomed.name


def test_a_member_that_is_stopped_breaks_the_call_for_the_others(engine: Engine) -> None:
    group = members(engine, 2)
    engine.stop(group[1])
    futures = engine.all_reduce(group, "average", [([1.0], 1)] * 2)
    wait_for_all(engine, futures)
    assert isinstance(failure(engine, futures[1]), RoleDied)
    assert isinstance(failure(engine, futures[0]), ValueLost)


@pytest.mark.parametrize(
    ("method", "args"), [("average_times", (2, 3)), ("average_times", (1, 0)), ("average_shape", (2, 3))]
)
def test_members_out_of_step_are_an_error(engine: Engine, method: str, args: tuple[int, int]) -> None:
    group = members(engine, 2)
    futures = engine.all_reduce(group, method, [(argument,) for argument in args])
    wait_for_all(engine, futures)
    assert CallFailed in {type(failure(engine, future)) for future in futures}
    again = engine.all_reduce(group, "average", [([1.0], 1), ([2.0], 1)])
    wait_for_all(engine, again)
    assert [engine.payload(future) for future in again] == [[[99.0, 1.5]]] * 2, "the members live on"


def test_a_group_that_cannot_meet_is_refused_whole(engine: Engine) -> None:
    group = members(engine, 2)
    pending = engine.submit(group[1], "add", 1)
    with pytest.raises(ValueError, match="member-0"):
        engine.all_reduce([group[0], group[0]], "average", [([1.0], 1)] * 2)
    with pytest.raises(ValueError):
        engine.all_reduce(group, "average", [([1.0], 1)])
    with pytest.raises(ValueError, match="add is not completed"):
        engine.all_reduce(group, "average", [([1.0], 1), (pending, 1)])
    wait_for_all(engine, [pending])  # nothing of the refused calls was queued
