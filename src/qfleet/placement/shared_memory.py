"""Where the members of a group are processes of one machine: memory that all of them map, and sockets to say "ready".

    waits for               unblocked by
    SharedMemory()          every peer's call; a peer's end, which hangs up on ours; the deadline
    exchange                every peer's word; a peer's end, which hangs up; the deadline

Each member writes into a piece of its own, which the others map and only read. Pieces and sockets have no name in the
file system (memfd_create and abstract sockets, Linux), so nothing is left behind however the members end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import time
import warnings
from pathlib import Path

import torch

SLOT_BYTES = 8 << 20  # what is larger goes in several rounds; a page of it is taken only once it is written to
_WORD = struct.Struct("<q")


class PeerGone(Exception):
    """A peer has ended, or did not come or answer in time."""


def machine_key() -> str | None:
    """What two processes have in common that may share memory: the kernel's start and the network namespace.

    None where this cannot be had.
    """
    if not hasattr(os, "memfd_create"):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/net').readlink()} {os.getuid()}"
    except OSError:
        return None


def listen(name: str) -> socket.socket:
    """A socket at which the peers can call from now on, under a name that is in no file system."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    listener.listen(128)
    return listener


class SharedMemory:
    """One member's connection to all others.

    Args:
        names: each member's listening name, by rank; all listen already.
        rank: this one's.
        listener: this one's own.
        deadline: by time.monotonic().

    Raises:
        PeerGone: not all came.
    """

    def __init__(self, names: list[str], rank: int, listener: socket.socket, deadline: float) -> None:
        self.rank, self.size = rank, len(names)
        self._round = 0
        self._outgoing: dict[int, socket.socket] = {}  # each member calls each; one that ends hangs up on all
        self._incoming: dict[int, socket.socket] = {}
        file = os.memfd_create(f"qfleet-{rank}", os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, 2 * SLOT_BYTES)
            pieces = {rank: mmap.mmap(file, 2 * SLOT_BYTES)}
            for peer, name in enumerate(names):
                if peer != rank:
                    self._outgoing[peer] = connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    connection.settimeout(_left(deadline))
                    connection.connect(f"\0{name}")
                    socket.send_fds(connection, [_WORD.pack(rank)], [file])
            while len(self._incoming) < self.size - 1:
                peer, connection, piece = self._answer(listener, deadline)
                self._incoming[peer], pieces[peer] = connection, piece
        except (OSError, PeerGone) as error:
            self.close()
            raise PeerGone(str(error)) from error
        finally:
            os.close(file)
        self._slots = [[_slot(pieces[member], parity) for member in range(self.size)] for parity in (0, 1)]

    def _answer(self, listener: socket.socket, deadline: float) -> tuple[int, socket.socket, mmap.mmap]:
        """The next peer that calls, and its piece; whoever is not of this user is sent away."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        for connection in self._outgoing.values():  # nothing comes by these but the end of their peer
            poll.register(connection, select.POLLIN)
        while True:
            ready = [file for file, _ in poll.poll(1e3 * _left(deadline))]
            if listener.fileno() not in ready:
                raise PeerGone("a member ended while the group met" if ready else "not all members came in time")
            connection, _ = listener.accept()
            connection.settimeout(_left(deadline))
            _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user != os.getuid():
                connection.close()
                continue
            hello, files, _, _ = socket.recv_fds(connection, _WORD.size, 1)
            if not files:
                raise PeerGone("a member ended while the group met")
            piece = mmap.mmap(files[0], 2 * SLOT_BYTES, access=mmap.ACCESS_READ)
            os.close(files[0])
            return int(_WORD.unpack(hello)[0]), connection, piece

    def exchange(self, word: int, deadline: float) -> list[int]:
        """Every member's word, by rank; nobody has another's before that one has said its own.

        Raises:
            PeerGone: a member has ended, or was silent until the deadline.
        """
        words = [word] * self.size
        message = _WORD.pack(word)
        try:
            for connection in self._outgoing.values():
                connection.send(message)
            for peer, connection in self._incoming.items():
                words[peer] = self._hear(peer, connection, deadline)
        except OSError as error:
            raise PeerGone(str(error)) from error
        return words

    def _hear(self, peer: int, connection: socket.socket, deadline: float) -> int:
        connection.settimeout(_left(deadline))
        message = connection.recv(_WORD.size)
        if len(message) < _WORD.size:
            raise PeerGone(f"member {peer} has ended")
        return int(_WORD.unpack(message)[0])

    def mean_(self, tensor: torch.Tensor, word: int, deadline: float) -> list[int]:
        """Write the mean into a contiguous tensor in memory, summed by rank; returns every member's word.

        Where a member says another word, the tensor is left as it is. A slot is written again two rounds later, and by
        then everybody has said, with the round between, that it has read it.
        """
        flat = tensor.view(-1)
        per_round = SLOT_BYTES // tensor.element_size()
        words = [word] * self.size
        for first in range(0, len(flat), per_round):
            part = flat[first : first + per_round]
            self._round += 1
            num_bytes = len(part) * part.element_size()
            slots = [slot[:num_bytes].view(part.dtype) for slot in self._slots[self._round % 2]]
            slots[self.rank].copy_(part)
            words = self.exchange(word, deadline)
            if len(set(words)) > 1:
                break
            part.copy_(slots[0])
            for slot in slots[1:]:
                part.add_(slot)
            part.div_(self.size)
        return words

    def close(self) -> None:
        """Hang up; the others see that."""
        for connection in (*self._outgoing.values(), *self._incoming.values()):
            with contextlib.suppress(OSError):
                connection.close()


def _slot(piece: mmap.mmap, parity: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the others' are not for writing
        return torch.frombuffer(piece, dtype=torch.uint8, count=SLOT_BYTES, offset=parity * SLOT_BYTES)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
