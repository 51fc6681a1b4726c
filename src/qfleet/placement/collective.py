"""The mean over a group of processes, without the coordinator.

    waits for               unblocked by
    Group()                 every member's arrival in the store that the first member opened; its deadline
    Group.agree             every member's word on what it is about to do; the death of one; its deadline
    Group.mean_             every member's tensor; the death of one; its deadline

By shared memory where all members are on one machine, else by torch.distributed (gloo); between GPUs by nccl. With
each tensor the members agree on its shape, so one that is out of step or has failed is found out at once and nobody
is left waiting. Process groups are made and dropped at will: torch's global one is left alone.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
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

from qfleet.placement.shared_memory import PeerGone, SharedMemory, listen, machine_key

_END, _FAILED = -1, 1 << 40  # words that are no tensor's; _FAILED is above every other
_POLL_SECONDS = 0.02
_FIRST_CONNECT_SECONDS = 1.0


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
    deadline = time.monotonic() + seconds
    patience = _FIRST_CONNECT_SECONDS
    while True:
        limit = max(0.001, min(patience, deadline - time.monotonic()))
        try:
            socket.create_connection((ip, int(port)), limit).close()  # TCPStore would try again and again
        except OSError as error:
            raise RuntimeError(f"{address}: {error}") from error
        try:
            store = TCPStore(ip, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=limit))
        except RuntimeError:  # of many who connect at once some are not heard (torch 2.13)
            if time.monotonic() > deadline:
                raise
            patience *= 2
        else:
            store.set_timeout(timedelta(seconds=seconds))
            return PrefixStore(f"group-{group_id}", store)


def _compare(word: int, highest: int, lowest: int) -> None:
    if highest == _FAILED and word != _FAILED:
        raise BrokenGroup("a member failed")
    if highest != lowest:
        raise ValueError("the members of a group must yield equally often, and tensors of one shape and type")


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the others need to know of a member to meet it.

    Attributes:
        machine: equal for members that may share memory; None for one that cannot.
        name: where it listens on its machine.
        store: "ip:port" of the first member's store, "" from the others.
    """

    machine: str | None
    name: str
    store: str


class Door:
    """Where a member can be met; it stays open until the member knows all others."""

    def __init__(self, store: str) -> None:
        machine = machine_key()
        name = f"qfleet-{os.getpid()}-{secrets.token_hex(8)}"
        self.listener = listen(name) if machine is not None else None
        self.arrival = Arrival(machine, name, store)

    def close(self) -> None:
        """Nobody else may come."""
        if self.listener is not None:
            self.listener.close()


class Group:
    """One member's place in a group.

    Args:
        group_id: one number per group of lives, agreed by all.
        rank: of this member.
        door: this member's, which is closed at the end.
        arrivals: of all members, by rank.
        ip: this machine's address, as the other members see it.
        seconds: until all must have met.
        owns_gpus: every member has a GPU of its own, so that CUDA tensors may go by nccl; else they go through memory.

    Raises:
        BrokenGroup: not all came.
    """

    def __init__(
        self, group_id: int, rank: int, door: Door, arrivals: list[Arrival], ip: str, seconds: float, owns_gpus: bool
    ) -> None:
        self.rank, self.size = rank, len(arrivals)
        self._group_id, self._address = group_id, arrivals[0].store
        self._owns_gpus = owns_gpus
        deadline = time.monotonic() + seconds
        self._shared: SharedMemory | None = None
        self._gloo: _Backend | None = None
        self._nccl: _Backend | None = None
        self.num_bytes = 0  # of the tensors averaged so far
        machine = door.arrival.machine
        try:
            if door.listener is not None and all(arrival.machine == machine for arrival in arrivals):
                names = [arrival.name for arrival in arrivals]
                self._shared = SharedMemory(names, rank, door.listener, deadline)
            else:
                self._store = _connect(self._address, group_id, seconds)
                self._store.set(f"arrived-{rank}", "1")
                self._await_arrivals(deadline)
                self._gloo = self._make_gloo(ip, seconds)
        except (RuntimeError, PeerGone) as error:
            raise BrokenGroup(str(error)) from error
        finally:
            door.close()

    def _make_gloo(self, ip: str, seconds: float) -> _Backend:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=seconds)
        options._devices = [ProcessGroupGloo.create_device(hostname=ip)]
        return cast(_Backend, ProcessGroupGloo(self._store, self.rank, self.size, options))

    def _await_arrivals(self, deadline: float) -> None:
        """Ask again and again: one that waits in the store could not be told that somebody will not come."""
        waiting = [f"arrived-{rank}" for rank in range(self.size)]
        while not self._store.check(waiting):
            if time.monotonic() > deadline or self._store.check(["broken"]):
                raise BrokenGroup("not all members came")
            time.sleep(_POLL_SECONDS)

    def agree(self, word: int, deadline: float) -> None:
        """Whether all members say the same, by `deadline` of time.monotonic().

        Raises:
            BrokenGroup: one has failed, or is gone.
            ValueError: they say different things.
        """
        if self._shared is not None:
            try:
                words = self._shared.exchange(word, deadline)
            except PeerGone as error:
                raise BrokenGroup(str(error)) from error
            _compare(word, max(words), min(words))
        else:
            extremes = torch.tensor([word, -word])
            self._reduce(self._gloo, extremes, ReduceOp.MAX, deadline)
            _compare(word, int(extremes[0]), -int(extremes[1]))

    def mean_(self, tensor: torch.Tensor, deadline: float) -> None:
        """Write the mean over the group into the tensor.

        Raises:
            BrokenGroup: a member has failed, or is gone.
            ValueError: the members' tensors are of different shapes or types.
        """
        word = zlib.crc32(repr((tuple(tensor.shape), tensor.dtype, tensor.device.type)).encode())
        data = tensor.detach()
        by_nccl = data.is_cuda and self._owns_gpus
        carrier = data.contiguous()
        if not by_nccl:
            carrier = carrier.cpu()
        if by_nccl or self._shared is None:
            self.agree(word, deadline)
            self._reduce(self._nccl_group(deadline) if by_nccl else self._gloo, carrier, ReduceOp.SUM, deadline)
            carrier /= self.size
        else:
            try:
                words = self._shared.mean_(carrier, word, deadline)
            except PeerGone as error:
                raise BrokenGroup(str(error)) from error
            _compare(word, max(words), min(words))
        if carrier.data_ptr() != data.data_ptr():
            data.copy_(carrier)
        self.num_bytes += data.nbytes

    def close(self) -> None:
        """Leave; the others find the group broken."""
        if self._shared is not None:
            self._shared.close()

    def _reduce(
        self, backend: _Backend | None, tensor: torch.Tensor, operation: ReduceOp.RedOpType, deadline: float
    ) -> None:
        assert backend is not None
        limit = timedelta(seconds=max(deadline - time.monotonic(), 0.001))
        options = AllreduceOptions()
        options.reduceOp, options.timeout = operation, limit  # type: ignore[assignment]
        try:
            backend.allreduce([tensor], options).wait(limit)
        except RuntimeError as error:
            raise BrokenGroup(str(error)) from error

    def _nccl_group(self, deadline: float) -> _Backend:
        if self._nccl is None:
            options = torch.distributed.ProcessGroupNCCL.Options()
            seconds = max(deadline - time.monotonic(), 0.001)
            options._timeout = timedelta(seconds=seconds)
            store = PrefixStore("nccl", _connect(self._address, self._group_id, seconds))
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
        except StopIteration as end:
            if group is not None:
                group.agree(_END, deadline)
            return end.value
        except Exception:
            announce_failure(group, deadline)
            raise
        if group is not None:
            group.mean_(tensor, deadline)


def announce_failure(group: Group | None, deadline: float) -> None:
    """Let the others go instead of waiting for a member that has failed."""
    if group is not None:
        try:
            group.agree(_FAILED, deadline)
        except (BrokenGroup, ValueError):
            return
