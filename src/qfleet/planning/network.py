"""What a message costs between two processes of this machine: latency and bandwidth over its loopback.

A cluster's own network is slower; its file says by how much. Floor 7.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

NUM_PINGS, PING = 1_000, 64
NUM_BYTES, NUM_SENDS = 4 << 20, 8
# Answers each ping with as many bytes, then each large message with one byte.
ECHO = f"""
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as line:
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    def take(number):
        while number:
            got = len(line.recv(min(number, 1 << 20)))
            if not got: sys.exit()
            number -= got
    for _ in range({NUM_PINGS}):
        take({PING}); line.sendall(b"x" * {PING})
    for _ in range({NUM_SENDS}):
        take({NUM_BYTES}); line.sendall(b"x")
"""


@dataclass(frozen=True, slots=True)
class Transport:
    """Messages, and the coordinator that they go to.

    Attributes:
        latency: seconds of a small message, one way.
        bandwidth: bytes a second.
        origin: where both are from.
        coordinator_seconds: what an answer keeps the coordinator busy.
        coordinator_origin: where that is from.
    """

    latency: float
    bandwidth: float
    origin: str
    coordinator_seconds: float = 0.0
    coordinator_origin: str = ""


def measure_loopback() -> Transport:
    """Half of the median round trip of a small message, and bytes a second of large ones; a fraction of a second."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(10.0)
        process = subprocess.Popen([sys.executable, "-c", ECHO, str(door.getsockname()[1])])
        try:
            line, _ = door.accept()
            with line:
                line.settimeout(10.0)
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pings = [_round_trip(line, PING, PING) for _ in range(NUM_PINGS)]
                sends = [_round_trip(line, NUM_BYTES, 1) for _ in range(NUM_SENDS)]
        finally:
            process.kill()
            process.wait()
    latency = statistics.median(pings) / 2
    seconds = max(statistics.median(sends) - 2 * latency, 1e-9)
    return Transport(
        float(f"{latency:.3g}"), float(f"{NUM_BYTES / seconds:.3g}"), "measured (loopback of this machine)"
    )


def _round_trip(line: socket.socket, num_sent: int, num_answered: int) -> float:
    message = bytes(num_sent)
    began = time.perf_counter()
    line.sendall(message)
    while num_answered:
        num_answered -= len(line.recv(num_answered))
    return time.perf_counter() - began
