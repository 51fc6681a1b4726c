"""Requests become batches: together where they come together, at once where nothing runs, or refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from qfleet.serving.batching import Batcher, Model
from qfleet.serving.counters import Counters
from qfleet.serving.requests import RequestError
from qfleet.types import Array


class Echo:
    """A policy whose value of action 0 is the observation; counts its batches and waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def infer(self, obs: Array) -> tuple[Array, Array]:
        self.batches.append(len(obs))
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        with np.errstate(invalid="ignore"):
            return np.concatenate([obs, -obs], axis=1), obs[:, 0].astype(np.int64)


def batcher(echo: Any, *, in_loop: bool, version: bytes = b"v1", **changes: Any) -> Batcher:
    options: dict[str, Any] = {"max_batch": 4, "max_wait": 60.0, "max_queue": 8, "max_age": 60.0, "num_threads": 1}
    return Batcher(Model(echo, version, in_loop), Counters(), **{**options, **changes})


def rows(*values: float) -> Array:
    return np.array(values, np.float32)[:, None]


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("in_loop", [True, False])
def test_each_request_gets_its_own_rows(in_loop: bool) -> None:
    async def scenario() -> None:
        echo = Echo()
        made = batcher(echo, in_loop=in_loop)
        futures = [made.submit(rows(1)), made.submit(rows(2, 3)), made.submit(rows(4)), made.submit(rows(5, 6))]
        found = await asyncio.gather(*futures)
        assert [item.actions.tolist() for item in found] == [[1], [2, 3], [4], [5, 6]]
        assert found[1].q_values.tolist() == [[2, -2], [3, -3]]
        assert echo.batches == [4, 2], "four that came together, then what did not fit"

    run(scenario)


def test_what_overflows_is_refused_and_the_rest_of_its_batch_answered() -> None:
    async def scenario() -> None:
        made = batcher(Echo(), in_loop=True)
        first, second = made.submit(rows(1)), made.submit(rows(2, np.inf))
        assert (await first).q_values.tolist() == [[1, -1]]
        with pytest.raises(RequestError, match="values overflow") as caught:
            await second
        assert (caught.value.status, caught.value.field) == (400, "obs")

    run(scenario)


def test_what_comes_while_a_batch_runs_makes_the_next_one() -> None:
    async def scenario() -> None:
        echo = Echo()
        echo.gate.clear()
        made = batcher(echo, in_loop=False)
        first = made.submit(rows(1))
        while not echo.batches:
            await asyncio.sleep(0)
        later = [made.submit(rows(value)) for value in (2, 3)]
        echo.gate.set()
        await asyncio.gather(first, *later)
        assert echo.batches == [1, 2], "the first did not wait for others; nor did the rest, once nothing ran"

    run(scenario)


def test_a_free_thread_waits_for_others_only_while_another_runs() -> None:
    async def scenario() -> None:
        echo = Echo()
        echo.gate.clear()
        made = batcher(echo, in_loop=False, num_threads=2)
        futures = [made.submit(rows(1, 2, 3))]
        while not echo.batches:
            await asyncio.sleep(0)
        for value in (4, 5):
            futures.append(made.submit(rows(value)))
            await asyncio.sleep(0)
        assert echo.batches == [3], "two wait for a third, at most max_wait: then both batches are of one size"
        futures.append(made.submit(rows(6)))
        while len(echo.batches) < 2:
            await asyncio.sleep(0)
        assert echo.batches == [3, 3]
        echo.gate.set()
        await asyncio.gather(*futures)

    run(scenario)


def test_too_many_are_told_to_come_back() -> None:
    async def scenario() -> None:
        made = batcher(Echo(), in_loop=True)
        futures = [made.submit(rows(1, 2, 3, 4)), made.submit(rows(5, 6, 7))]
        with pytest.raises(RequestError, match="7 observations wait") as caught:
            made.submit(rows(8, 9))
        assert caught.value.status == 429
        futures.append(made.submit(rows(8)))
        await asyncio.gather(*futures)
        await made.submit(rows(1, 2, 3, 4))

    run(scenario)


def test_a_batch_is_one_models_from_start_to_end() -> None:
    async def scenario() -> None:
        echo = Echo()
        echo.gate.clear()
        made = batcher(echo, in_loop=False)
        first = made.submit(rows(1))
        while not echo.batches:
            await asyncio.sleep(0)
        second = made.submit(rows(2))
        made.model = Model(Echo(), b"v2", False)  # type: ignore[arg-type]
        echo.gate.set()
        assert ((await first).version, (await second).version) == (b"v1", b"v2")

    run(scenario)


@pytest.mark.parametrize("in_loop", [True, False])
def test_an_inference_that_raises_fails_its_batch_and_no_other(in_loop: bool) -> None:
    async def scenario() -> None:
        echo = Echo()
        echo.error = RuntimeError("secret path")
        made = batcher(echo, in_loop=in_loop)
        with pytest.raises(RequestError, match=r"^inference failed; try again$") as caught:
            await made.submit(rows(1))
        assert caught.value.status == 503
        echo.error = None
        assert (await made.submit(rows(2))).actions.tolist() == [2]

    run(scenario)


def test_requests_that_nobody_waits_for_or_that_are_too_old_are_not_inferred() -> None:
    async def scenario() -> None:
        echo = Echo()
        made = batcher(echo, in_loop=True)
        gone, kept = made.submit(rows(1, 2)), made.submit(rows(3))
        gone.cancel()
        assert (await kept).actions.tolist() == [3]
        assert echo.batches == [1]
        old = batcher(echo, in_loop=True, max_age=-1.0).submit(rows(4))
        with pytest.raises(RequestError, match="waited too long"):
            await old
        assert echo.batches == [1]

    run(scenario)
