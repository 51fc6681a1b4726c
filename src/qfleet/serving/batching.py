"""Micro-batches: observations of requests that arrive together go through the network together.

An idle server never waits. Small networks run in the event loop itself, after all requests that this turn of it has
read; larger ones in threads, where what arrives meanwhile makes the next batch.

waits for                              unblocked by
a request's future                     its batch; an inference that raises fails its batch
pending observations, threads busy     an inference that ends, as many as run in a thread, or `max_wait` seconds
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from qfleet.onnx_policy import OnnxPolicy
from qfleet.serving.counters import Counters
from qfleet.serving.requests import RequestError
from qfleet.types import Array, FloatArray, IntArray

logger = logging.getLogger("qfleet.serving")
# A batch that takes longer would keep the loop from reading: it goes to a thread.
MAX_LOOP_SECONDS = 0.0015
INFERENCE_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Model:
    """A policy that acts: it, its version as bytes for answers, and whether its batches run in the event loop."""

    policy: OnnxPolicy
    version: bytes
    in_loop: bool


@dataclass(frozen=True, slots=True)
class Inferred:
    """The rows of one request: float32 [B, A], int64 [B], and which model gave them."""

    q_values: FloatArray
    actions: IntArray
    version: bytes


@dataclass(slots=True)
class _Waiting:
    obs: Array
    future: asyncio.Future[Inferred]
    since: float


class Batcher:
    """Collects observations, runs the model and hands each request its rows.

    Args:
        model: the first model; assign `model` to swap it: a batch is one model's from start to end.
        counters: told of batches and of the queue.
        max_batch: observations in one inference.
        max_wait: seconds that a batch may wait for more while another runs.
        max_queue: observations that may wait.
        max_age: seconds after which a request that still waits is given up.
        num_threads: inferences at once, where the model is too slow for the event loop.
    """

    def __init__(
        self,
        model: Model,
        counters: Counters,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        max_age: float,
        num_threads: int,
    ) -> None:
        self.model = model
        self._counters = counters
        self._max_batch, self._max_wait = max_batch, max_wait
        self._max_queue, self._max_age = max_queue, max_age
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, "inference", initializer=_give_way)
        self._waiting: deque[_Waiting] = deque()
        self._num_rows = 0
        self._num_running = 0
        self._rows_running = 0
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def submit(self, obs: Array) -> asyncio.Future[Inferred]:
        """Queue observations [B, *O], B at most max_batch; the future gives their rows.

        Raises:
            RequestError: 429, too many wait.
        """
        if self._num_rows + len(obs) > self._max_queue:
            raise RequestError(429, "server", f"{self._num_rows} observations wait already; try again")
        future: asyncio.Future[Inferred] = self._loop.create_future()
        self._waiting.append(_Waiting(obs, future, time.monotonic()))
        self._num_rows += len(obs)
        if not self._is_scheduled:
            self._is_scheduled = True
            # After every request that is being read in this turn of the loop.
            self._loop.call_soon(self._turn)
        return future

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self.model.in_loop:
            while self._waiting:
                batch = self._take()
                if batch:
                    self._infer_here(batch)
        else:
            self._start()
        self._counters.queued(self._num_rows)

    def _start(self) -> None:
        """Start inferences in threads, as many as there are threads for."""
        while self._waiting and self._num_running < self._num_threads:
            age = time.monotonic() - self._waiting[0].since
            # A batch as large as those that run: equal shares keep all threads at work, for any number of clients.
            is_enough = self._num_rows >= min(self._max_batch, self._rows_running / max(self._num_running, 1))
            if self._num_running and not is_enough and age < self._max_wait:
                if self._timer is None:
                    self._timer = self._loop.call_later(self._max_wait - age, self._time_is_up)
                return
            batch = self._take()
            if not batch:
                continue
            model, obs = self.model, _stack(batch)
            self._num_running += 1
            self._rows_running += len(obs)
            running = self._loop.run_in_executor(self._pool, model.policy.infer, obs)
            running.add_done_callback(functools.partial(self._finish, batch, model))

    def _time_is_up(self) -> None:
        self._timer = None
        self._start()

    def _finish(self, batch: list[_Waiting], model: Model, done: asyncio.Future[tuple[FloatArray, IntArray]]) -> None:
        self._num_running -= 1
        self._rows_running -= sum(len(item.obs) for item in batch)
        error = done.exception()
        if error is None:
            self._hand_out(batch, model, *done.result())
        else:
            self._fail(batch, error)
        self._start()
        self._counters.queued(self._num_rows)

    def _infer_here(self, batch: list[_Waiting]) -> None:
        model = self.model
        try:
            q_values, actions = model.policy.infer(_stack(batch))
        except Exception as error:  # onnxruntime's own errors have no common base
            self._fail(batch, error)
        else:
            self._hand_out(batch, model, q_values, actions)

    def _take(self) -> list[_Waiting]:
        """The next requests that fit into a batch, without those that nobody waits for any more."""
        batch: list[_Waiting] = []
        num_rows, oldest = 0, time.monotonic() - self._max_age
        while self._waiting and num_rows + len(self._waiting[0].obs) <= self._max_batch:
            item = self._waiting.popleft()
            self._num_rows -= len(item.obs)
            if item.future.done():
                continue
            if item.since < oldest:
                item.future.set_exception(RequestError(503, "server", "waited too long; try again"))
                continue
            batch.append(item)
            num_rows += len(item.obs)
        return batch

    def _hand_out(self, batch: list[_Waiting], model: Model, q_values: FloatArray, actions: IntArray) -> None:
        self._counters.inferred(len(actions))
        is_finite = np.isfinite(q_values).all()
        start = 0
        for item in batch:
            stop = start + len(item.obs)
            if item.future.done():
                pass
            elif is_finite or np.isfinite(q_values[start:stop]).all():
                item.future.set_result(Inferred(q_values[start:stop], actions[start:stop], model.version))
            else:  # JSON has no word for them, and the best of them means nothing
                item.future.set_exception(RequestError(400, "obs", "so large that this policy's values overflow"))
            start = stop

    def _fail(self, batch: list[_Waiting], error: BaseException) -> None:
        self._counters.failed()
        logger.error("inference failed: %s: %s", type(error).__name__, error)
        for item in batch:
            if not item.future.done():
                item.future.set_exception(RequestError(503, "server", "inference failed; try again"))


def _give_way() -> None:
    """A thread that infers leaves the processor to the event loop, which brings it work and takes its answers away."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), INFERENCE_NICENESS)


def _stack(batch: list[_Waiting]) -> Array:
    return batch[0].obs if len(batch) == 1 else np.concatenate([item.obs for item in batch])


def open_model(policy: OnnxPolicy, max_batch: int) -> Model:
    """A policy ready to act, once its golden observations give the values that they gave at export.

    Raises:
        CheckpointError: they do not.
    """
    policy.check_golden()
    golden = policy.description.golden.obs
    obs = np.concatenate([golden] * (max_batch // len(golden) + 1))[:max_batch]
    policy.infer(obs)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        policy.infer(obs)
        seconds.append(time.perf_counter() - start)
    return Model(policy, policy.version.encode(), min(seconds) <= MAX_LOOP_SECONDS)
