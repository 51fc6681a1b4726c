"""The processes that serve: uvicorn with limits on slow clients, and a parent that keeps several of them alive.

Several workers accept from one socket, which the parent opened. A worker that dies is started again, and the server
stops when that happens too often.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from qfleet.errors import QfleetError, UsageError
from qfleet.serving.app import ServingApp
from qfleet.serving.settings import Settings

ENVIRONMENT = "QFLEET_SERVING"
BACKLOG = 2048
MAX_CONNECTIONS = 8192
KEEP_ALIVE_SECONDS = 75
MAX_RESTARTS, RESTART_WINDOW = 5, 60.0


class PatientServer(uvicorn.Server):
    """uvicorn that hangs up on clients which take too long over a request, and drains when it is told to stop.

    Args:
        config: uvicorn's.
        app: told when to send clients away.
        settings: how long requests may take.
    """

    def __init__(self, config: uvicorn.Config, app: ServingApp, settings: Settings) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings
        self._busy_since: dict[Any, tuple[object, float]] = {}

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            self._hang_up_on_the_slow()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what comes for a little while, each answer the last on its connection; then stop."""
        self._app.is_draining = True
        await asyncio.sleep(self._settings.drain_seconds)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override, unused-ignore]
        """Stop at SIGTERM and Ctrl-C; unlike uvicorn's own, a stop that was asked for is no failure."""
        stops = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in stops}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hang_up_on_the_slow(self) -> None:
        """Close connections on which one and the same request is unfinished for too long; idle ones are uvicorn's."""
        now, limit = time.monotonic(), self._settings.timeout_seconds * 1.5
        busy: dict[Any, tuple[object, float]] = {}
        for connection in list(self.server_state.connections):
            if getattr(connection, "timeout_keep_alive_task", None) is not None:
                continue
            request = getattr(connection, "cycle", None)
            seen, since = self._busy_since.get(connection, (request, now))
            if seen is not request:
                since = now
            if now - since > limit:
                transport = getattr(connection, "transport", None)
                if transport is not None:
                    transport.abort()
                continue
            busy[connection] = (request, since)
        self._busy_since = busy


def open_socket(settings: Settings) -> socket.socket:
    """The listening socket.

    Raises:
        QfleetError: the port is taken.
        UsageError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What is accepted inherits it: head and body of an answer leave at once, not 40 ms apart (Nagle, delayed ACK).
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        message = f"cannot listen on {settings.host}:{settings.port}: {str(reason).lower()}"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise QfleetError(f"{message}; choose another with --port") from None
        raise UsageError(message) from None
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def check_tls(settings: Settings) -> None:
    """Refuse a certificate that cannot be used.

    Raises:
        UsageError: naming the files.
    """
    if settings.tls_cert is None:
        return
    assert settings.tls_key is not None
    for option, file in ("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key):
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise UsageError(f"{option} {file}: {(error.strerror or type(error).__name__).lower()}") from None
    try:
        # An empty password, for OpenSSL would ask whoever sits at the terminal for one.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"--tls-cert {settings.tls_cert} --tls-key {settings.tls_key}: {reason}; "
            "a certificate and its key without a password are needed, both as PEM"
        ) from None


def serve(settings: Settings, listener: socket.socket, worker: int = 0) -> None:
    """Serve in this process until SIGTERM or Ctrl-C."""
    app = ServingApp(settings, worker)
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    config = uvicorn.Config(
        app,
        http=_http_protocol(),
        loop="uvloop" if has_uvloop else "asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.timeout_seconds) + 1,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    with contextlib.suppress(KeyboardInterrupt):
        PatientServer(config, app, settings).run([listener])


def _http_protocol() -> Any:
    """httptools where it is installed; else h11, which is slower and bounds headers by itself."""
    if importlib.util.find_spec("httptools") is None:
        return "h11"
    from qfleet.serving.http import BoundedProtocol

    return BoundedProtocol


class WorkerPool:
    """Several processes on one socket.

    Args:
        settings: of all of them.
        listener: what they accept from.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._workers: list[subprocess.Popen[bytes]] = []
        self._deaths: list[float] = []
        self._is_stopping = False

    def run(self) -> None:
        """Start the workers and keep them alive until SIGTERM or Ctrl-C.

        Raises:
            QfleetError: they die again and again.
        """
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._workers = [self._start(index) for index in range(self._settings.num_workers)]
            while not self._is_stopping:
                time.sleep(0.1)
                self._replace_dead()
        finally:
            for worker in self._workers:
                if worker.poll() is None:
                    worker.terminate()
            for worker in self._workers:
                worker.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "qfleet.serving.worker", str(index), str(self._listener.fileno())],
            env={**os.environ, ENVIRONMENT: self._settings.to_json()},
            pass_fds=[self._listener.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the parent, which tells the workers once
        )

    def _replace_dead(self) -> None:
        for index, worker in enumerate(self._workers):
            code = worker.poll()
            if code is None or self._is_stopping:
                continue
            now = time.monotonic()
            self._deaths = [when for when in self._deaths if now - when < RESTART_WINDOW] + [now]
            if len(self._deaths) > MAX_RESTARTS:
                raise QfleetError(f"workers died {len(self._deaths)} times in {RESTART_WINDOW:.0f} s; the last: {code}")
            logging.getLogger("qfleet.serving").error("worker %d died (exit code %d); started again", index, code)
            self._workers[index] = self._start(index)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True
