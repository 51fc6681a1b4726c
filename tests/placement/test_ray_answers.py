"""The order in which Ray's answers reach the lanes: a life's calls in turn, however Ray's threads bring them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future as Promise
from itertools import permutations

import pytest

pytest.importorskip("ray")

from qfleet.engines.base import Future, RoleRef
from qfleet.errors import CallFailed, RoleDied
from qfleet.placement.lanes import Lanes
from qfleet.placement.ray_answers import Answers, Arrivals
from qfleet.placement.ray_calls import Call, Life
from qfleet.placement.ray_deadlines import Deadlines
from qfleet.placement.ray_host import Answer, Raised
from qfleet.placement.traffic import Traffic
from qfleet.types import Receipt


class Ref:
    """A reference whose answer the test brings when it wants to."""

    def __init__(self) -> None:
        self.promise: Promise[object] = Promise()

    def future(self) -> Promise[object]:
        return self.promise


class Books:
    """An engine's books without Ray: calls, and answers in any order."""

    def __init__(self) -> None:
        self.lanes, self.arrivals = Lanes(), Arrivals()
        self.answers = Answers(self.arrivals, self.lanes, Deadlines(60.0, 60.0), Traffic())
        self.num_calls = 0

    def call(self, life: Life, lane: str = "training") -> Call:
        future = Future(RoleRef(life.name), f"method_{self.num_calls}", lane)
        call = Call(self.num_calls, future, life, [None, Ref()])
        self.num_calls += 1
        self.lanes.of(lane).num_open += 1
        self.answers.watch(call)
        return call

    def completed(self, lane: str = "training") -> list[str]:
        self.arrivals.take()
        done = self.lanes.of(lane).done
        names = [future.method for future in done]
        done.clear()
        return names


def bring(call: Call, answer: object = None) -> None:
    call.refs[-1].promise.set_result(answer or Answer(receipt=Receipt(version=call.number)))


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def life() -> Life:
    return Life("worker-0", 0, actor=None, clock=0.0, is_built=True)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_lifes_calls_complete_in_the_order_in_which_they_were_made(
    books: Books, life: Life, order: tuple[int, ...]
) -> None:
    calls = [books.call(life) for _ in range(4)]
    heard: list[str] = []
    for place, index in enumerate(order):
        bring(calls[index])
        heard += books.completed()
        brought = set(order[: place + 1])
        in_turn = next((number for number in range(4) if number not in brought), 4)
        assert heard == [call.future.method for call in calls[:in_turn]]
    assert [call.future.receipt.version for call in calls if call.future.receipt] == [0, 1, 2, 3]
    assert not life.calls
    assert books.lanes.of("training").num_open == 0


def test_lanes_of_one_life_wait_for_each_other_and_lives_do_not(books: Books, life: Life) -> None:
    other = Life("worker-1", 0, actor=None, clock=0.0, is_built=True)
    first, second, third = books.call(life, "validation"), books.call(life), books.call(other)
    bring(second)
    bring(third)
    assert books.completed() == [third.future.method]
    bring(first)
    assert books.completed("validation") == [first.future.method]
    assert books.completed() == [second.future.method]


def test_a_failure_takes_its_turn_too(books: Books, life: Life) -> None:
    first, second = books.call(life), books.call(life)
    bring(second, Answer(raised=Raised("ValueError: no", "", None)))
    assert books.completed() == []
    bring(first)
    assert books.completed() == [first.future.method, second.future.method]
    assert first.future.error is None
    assert isinstance(second.future.error, CallFailed)


@pytest.mark.parametrize("end", ["lose", "drop"])
def test_an_answer_that_is_held_back_ends_with_its_life(
    books: Books, life: Life, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda actor, no_restart: None)
    first, second = books.call(life), books.call(life)
    bring(second)
    assert books.completed() == []
    ways: dict[str, Callable[[], None]] = {
        "lose": lambda: books.answers.lose(life, "killed"),
        "drop": lambda: books.answers.drop([life]),
    }
    ways[end]()
    bring(first)
    assert books.completed() == ([first.future.method, second.future.method] if end == "lose" else [])
    assert books.lanes.of("training").num_open == 0
    if end == "lose":
        assert all(isinstance(call.future.error, RoleDied) for call in (first, second))
