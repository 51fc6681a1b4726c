"""Load for benchmarks/serving.py: keep-alive HTTP/1.1 connections, each with one request under way.

Written on asyncio's protocols rather than a client library, for the load shares the cores with the server. Closed loop
without --rate: each connection sends its next request when the answer is in. With --rate requests are due at fixed
times, and latency counts from when a request was due, so a server that falls behind cannot hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import deque


class Connection(asyncio.Protocol):
    """One connection: sends, and calls back with each status."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""
        self.start = 0.0
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, due: float) -> None:
        self.start = due
        self.is_busy = True
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        headers = self.buffer[:head].lower()
        at = headers.find(b"content-length:")
        if at >= 0:
            end = headers.find(b"\r\n", at)
            length = int(headers[at + 15 : end if end >= 0 else None])
            if len(self.buffer) < head + 4 + length:
                return
        elif not self.buffer.endswith(b"0\r\n\r\n"):  # chunked
            return
        status = int(self.buffer[9:12])
        self.buffer = b""
        self.is_busy = False
        self.load.answered(self, status)

    def connection_lost(self, error: Exception | None) -> None:
        self.load.lost += not self.load.is_closing


class Load:
    """All connections, and what they measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.rate: float | None = args.rate
        if args.image:
            body = random.Random(0).randbytes(args.image * 4 * 84 * 84)
            kind = "application/octet-stream"
        else:
            body, kind = args.json.encode(), "application/json"
        head = (
            f"POST {args.path} HTTP/1.1\r\nHost: {args.host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        )
        self.request = head.encode() + b"\r\n" + body
        self.latencies: list[float] = []
        self.errors = self.lost = 0
        self.is_over = self.is_closing = False
        self.idle: list[Connection] = []
        self.due: deque[float] = deque()

    def answered(self, connection: Connection, status: int) -> None:
        now = time.perf_counter()
        self.latencies.append(now - connection.start)
        self.errors += status != 200
        if self.is_over:
            return
        if self.rate is None:
            connection.ask(now)
        elif self.due:
            connection.ask(self.due.popleft())
        else:
            self.idle.append(connection)

    async def run(self, host: str, port: int, num_connections: int, seconds: float) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(lambda: Connection(self), host, port) for _ in range(num_connections)]
        connections = [connection for _, connection in made]
        start = time.perf_counter()
        if self.rate is None:
            for connection in connections:
                connection.ask(time.perf_counter())
            await asyncio.sleep(seconds)
        else:
            self.idle = connections
            await self.pace(start, seconds)
        self.is_over = True
        elapsed = time.perf_counter() - start
        count = len(self.latencies)
        # What is under way gets its answer.
        for _ in range(100):
            if not any(connection.is_busy for connection in connections):
                break
            await asyncio.sleep(0.05)
        unanswered = sum(connection.is_busy for connection in connections)
        self.is_closing = True
        for transport, _ in made:
            transport.abort()
        ordered = sorted(self.latencies[:count])
        return {
            "requests_per_second": count / elapsed,
            "p50_ms": ordered[count // 2] * 1e3,
            "p99_ms": ordered[int(count * 0.99)] * 1e3,
            "max_ms": ordered[-1] * 1e3,
            "errors": self.errors + self.lost,
            "unanswered": unanswered,
        }

    async def pace(self, start: float, seconds: float) -> None:
        assert self.rate is not None
        draw = random.Random(0)
        next_due = start
        while (now := time.perf_counter()) < start + seconds:
            while next_due <= now:
                if self.idle:
                    self.idle.pop().ask(next_due)
                else:
                    self.due.append(next_due)
                next_due += draw.expovariate(self.rate)  # independent clients
            await asyncio.sleep(max(next_due - time.perf_counter(), 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/act")
    parser.add_argument("--json", default='{"obs": [0.01, -0.02, 0.03, 0.04]}', help="the body")
    parser.add_argument("--image", type=int, help="send this many images of noise as raw bytes instead")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, help="requests per second over all connections; else as many as it takes")
    args = parser.parse_args()
    try:
        import uvloop

        runner = uvloop.run
    except ImportError:
        runner = asyncio.run
    print(json.dumps(runner(Load(args).run(args.host, args.port, args.connections, args.seconds))))


if __name__ == "__main__":
    main()
