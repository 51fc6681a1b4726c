"""The mean over a group of processes, without the coordinator: torch.distributed (gloo, nccl) between the members.

    waits for               unblocked by
    Group()                 every member's arrival in the store that the first member opened; its deadline
    Group.agree             every member's word on what it is about to do; the death of one; its deadline
    Group.mean_             every member's tensor; the death of one; its deadline

Before each tensor the members agree on its shape, so one that is out of step or has failed is found out at once and
nobody is left waiting. Process groups are made and dropped at will: torch's global one is left alone.
"""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch._C._distributed_c10d import (
    AllreduceOptions,
    PrefixStore,
    ProcessGroupGloo,
    ReduceOp,
    Store,
    TCPStore,
)

_END, _FAILED = -1, 1 << 40  # words that are no tensor's; _FAILED is above every other
_POLL = timedelta(milliseconds=100)
_CONNECT_SECONDS = 5.0


class BrokenGroup(Exception):
    """A member is gone, or has failed, or did not come in time."""


class _Work(Protocol):
    def wait(self, timeout: timedelta) -> bool: ...


class _Backend(Protocol):
    """What torch's stubs leave out of its process groups."""

    def allreduce(self, tensors: list[torch.Tensor], options: AllreduceOptions) -> _Work: ...


def open_store(ip: str) -> tuple[TCPStore, str]:
    """A store on a free port, as long as it is held, and its address as "ip:port"."""
    store = TCPStore(ip, 0, is_master=True, wait_for_workers=False)
    return store, f"{ip}:{store.port}"


def break_group(address: str, group_id: int, seconds: float) -> None:
    """Tell members that still wait for others to arrive that somebody will not; best effort within `seconds`."""
    try:
        _connect(address, group_id, seconds).set("broken", "1")
    except RuntimeError:  # its host is gone or frozen; then the members find out by themselves
        return


def _connect(address: str, group_id: int, seconds: float) -> Store:
    """The group's part of a store. Raises RuntimeError at once where nobody listens any more."""
    ip, _, port = address.rpartition(":")
    limit = min(seconds, _CONNECT_SECONDS)
    try:
        socket.create_connection((ip, int(port)), limit).close()  # TCPStore would try again and again
    except OSError as error:
        raise RuntimeError(f"{address}: {error}") from error
    store = TCPStore(ip, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=limit))
    return PrefixStore(f"group-{group_id}", store)


class Group:
    """One member's place in a group.

    Args:
        group_id: one number per group of lives, agreed by all.
        rank, size: of this member, of the group.
        address: of the first member's store.
        ip: this machine's address, as the other members see it.
        seconds: until all must have arrived.
        owns_gpus: every member has a GPU of its own, so that CUDA tensors may go by nccl; else they go through memory.

    Raises:
        BrokenGroup: not all arrived.
    """

    def __init__(
        self, group_id: int, rank: int, size: int, address: str, ip: str, seconds: float, owns_gpus: bool
    ) -> None:
        self.rank, self.size = rank, size
        self._owns_gpus = owns_gpus
        deadline = time.monotonic() + seconds
        limit = timedelta(seconds=seconds)
        try:
            self._store = _connect(address, group_id, seconds)
            self._store.set(f"arrived-{rank}", "1")
            self._await_arrivals(deadline)
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._timeout = limit
            options._devices = [ProcessGroupGloo.create_device(hostname=ip)]
            self._gloo = cast(_Backend, ProcessGroupGloo(self._store, rank, size, options))
        except RuntimeError as error:
            raise BrokenGroup(str(error)) from error
        self._nccl: _Backend | None = None

    def _await_arrivals(self, deadline: float) -> None:
        waiting = [f"arrived-{rank}" for rank in range(self.size)]
        while waiting:
            try:
                self._store.wait([waiting[0]], _POLL)
                waiting.pop(0)
            except RuntimeError as error:
                if time.monotonic() > deadline or self._store.check(["broken"]):
                    raise BrokenGroup(f"{waiting[0]}: {error}") from error

    def agree(self, word: int, seconds: float) -> None:
        """Whether all members say the same.

        Raises:
            BrokenGroup: one has failed, or is gone.
            ValueError: they say different things.
        """
        words = torch.tensor([word, -word])
        self._reduce(self._gloo, words, ReduceOp.MAX, seconds)
        highest, lowest = int(words[0]), -int(words[1])
        if highest == _FAILED and word != _FAILED:
            raise BrokenGroup("a member failed")
        if highest != lowest:
            raise ValueError("the members of a group must yield equally often, and tensors of one shape and type")

    def mean_(self, tensor: torch.Tensor, seconds: float) -> None:
        """Write the mean over the group into the tensor. Members have agreed on its shape."""
        data = tensor.detach()
        by_nccl = data.is_cuda and self._owns_gpus
        carrier = data if by_nccl and data.is_contiguous() else data.contiguous()
        if not by_nccl:
            carrier = carrier.cpu()
        self._reduce(self._nccl_group(seconds) if by_nccl else self._gloo, carrier, ReduceOp.SUM, seconds)
        carrier /= self.size
        if carrier.data_ptr() != data.data_ptr():
            data.copy_(carrier)

    def _reduce(self, backend: _Backend, tensor: torch.Tensor, operation: ReduceOp.RedOpType, seconds: float) -> None:
        limit = timedelta(seconds=max(seconds, 0.001))
        options = AllreduceOptions()
        options.reduceOp, options.timeout = operation, limit  # type: ignore[assignment]
        try:
            backend.allreduce([tensor], options).wait(limit)
        except RuntimeError as error:
            raise BrokenGroup(str(error)) from error

    def _nccl_group(self, seconds: float) -> _Backend:
        if self._nccl is None:
            options = torch.distributed.ProcessGroupNCCL.Options()
            options._timeout = timedelta(seconds=seconds)
            store = PrefixStore("nccl", self._store)
            self._nccl = cast(_Backend, torch.distributed.ProcessGroupNCCL(store, self.rank, self.size, options))
        return self._nccl


def run_averaging(steps: Iterator[torch.Tensor], group: Group | None, deadline: float) -> object:
    """Run a member's generator; each tensor that it yields becomes the mean over the group. Returns its return value.

    Args:
        steps: the generator.
        group: this member's place in the group, None for a group of one.
        deadline: by time.monotonic(), for all of it.

    Raises:
        BrokenGroup: another member failed, or is gone.
        ValueError: the members are out of step.
    """
    while True:
        try:
            tensor = next(steps)
            word = zlib.crc32(repr((tuple(tensor.shape), tensor.dtype, tensor.device.type)).encode())
        except StopIteration as end:
            if group is not None:
                group.agree(_END, deadline - time.monotonic())
            return end.value
        except Exception:
            announce_failure(group, deadline)
            raise
        if group is not None:
            group.agree(word, deadline - time.monotonic())
            group.mean_(tensor, deadline - time.monotonic())


def announce_failure(group: Group | None, deadline: float) -> None:
    """Let the others go instead of waiting for a member that has failed."""
    if group is not None:
        try:
            group.agree(_FAILED, deadline - time.monotonic())
        except (BrokenGroup, ValueError):
            return
