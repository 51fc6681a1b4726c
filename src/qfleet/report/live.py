"""`qfleet watch`: the report of runs under way, served to this machine only and renewed as they write.

    GET /         the page, with the one script that asks for it again
    GET /events   server-sent events: "changed" whenever a run's files have

waits for                    unblocked by
a browser's stream           a look at the files every POLL_SECONDS; the end of the server
the page                     another browser's page being made: one at a time, and kept until the files change

Only reads, so that it cannot disturb training. Any other Host than this machine's own names is refused: a page from
elsewhere whose name has been pointed here (DNS rebinding) reads nothing. Standard library only. Floor 7.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

from qfleet.errors import QfleetError
from qfleet.report.make import make_report
from qfleet.report.page import report_page, state_of
from qfleet.report.runs import find_runs, fingerprint

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]")
POLL_SECONDS = 1.0
QUIET_POLLS = 15  # a line that says nothing, so that a browser that went away is found out
MAX_STREAMS = 32
TIMEOUT = 30.0  # of a client that says nothing
# Takes over what is new between <main> and </main>; boxes, details and the focus stay as the reader left them.
SCRIPT = """
"use strict";
const events = new EventSource("events");
async function renew() {
  const answer = await fetch("./");
  if (!answer.ok) { return; }
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.querySelectorAll("input").forEach(function (box) {
    const other = fresh.getElementById(box.id);
    if (other) { other.checked = box.checked; }
  });
  const open = Array.from(document.querySelectorAll("details"), function (one) { return one.open; });
  fresh.querySelectorAll("details").forEach(function (one, place) { one.open = open[place] || false; });
  const scrolled = Array.from(document.querySelectorAll(".scroll"), function (one) { return one.scrollLeft; });
  const reached = "input, summary, .scroll";
  const place = Array.from(document.querySelectorAll(reached)).indexOf(document.activeElement);
  document.title = fresh.title;
  document.querySelector("style").replaceWith(fresh.querySelector("style"));
  document.querySelector("main").replaceWith(document.adoptNode(fresh.querySelector("main")));
  document.querySelectorAll(".scroll").forEach(function (one, place) { one.scrollLeft = scrolled[place] || 0; });
  const next = document.querySelectorAll(reached)[place];
  if (next) { next.focus({ preventScroll: true }); }
}
events.addEventListener("changed", renew);
""".strip()


class Watch:
    """What is watched, and its page as of the newest look.

    Args:
        folders: as for a report.
        poll_seconds: between two looks.
    """

    def __init__(self, folders: Sequence[Path], poll_seconds: float = POLL_SECONDS) -> None:
        self.folders = list(folders)
        self.poll_seconds = poll_seconds
        self.is_over = threading.Event()
        self._lock = threading.Lock()
        self._page: tuple[object, str, str] | None = None
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)

    def look(self) -> object:
        """What changes when a run has written something; a series may have new members."""
        return fingerprint(find_runs(self.folders))

    def page(self) -> tuple[str, str]:
        """The page and its state in a line, made anew where something has changed.

        Raises:
            QfleetError: nothing can be read.
        """
        with self._lock:
            seen = self.look()
            if self._page is None or self._page[0] != seen:
                report = make_report(self.folders, has_film=False)
                self._page = (seen, report_page(report, script=SCRIPT), state_of(report))
            return self._page[1], self._page[2]

    def changes(self) -> Iterator[str | None]:
        """A state whenever there is a new one, first the present one; None where nothing has happened for a while."""
        seen, quiet = object(), 0
        while not self.is_over.is_set():
            now = self.look()
            quiet += 1
            if now != seen:
                seen, quiet = now, 0
                try:
                    yield self.page()[1]
                except QfleetError as error:  # a run that is just being made, or moved away
                    yield str(error)
            elif quiet >= QUIET_POLLS:
                quiet = 0
                yield None
            self.is_over.wait(self.poll_seconds)


class Server(ThreadingHTTPServer):
    """Serves one Watch on this machine's own address.

    Args:
        watch: what.
        port: 0 for any that is free.

    Raises:
        QfleetError: the port is taken, or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, watch: Watch, port: int) -> None:
        self.watch = watch
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise QfleetError(f"port {port}: {why.lower()}; choose another with --port") from error

    @property
    def url(self) -> str:
        """Where to look."""
        return f"http://{HOST}:{self.server_port}/"

    def stop(self) -> None:
        """End streams and server; for another thread than the one that serves."""
        self.watch.is_over.set()
        self.shutdown()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    timeout = TIMEOUT

    def do_GET(self) -> None:
        """The page, or the stream."""
        if not self._is_for_us():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "this page is for this machine only\n")
        elif self.path == "/":
            self._send_page()
        elif self.path == "/events":
            self._stream()
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is / and /events\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nobody asked."""

    @property
    def _watch(self) -> Watch:
        return cast(Server, self.server).watch

    def _is_for_us(self) -> bool:
        name = self.headers.get("Host", "")
        return name in {f"{host}:{cast(Server, self.server).server_port}" for host in NAMES}

    def _send_page(self) -> None:
        try:
            self._answer(HTTPStatus.OK, "text/html", self._watch.page()[0])
        except QfleetError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n")

    def _stream(self) -> None:
        streams = self._watch.streams
        if not streams.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", "too many readers\n")
            return
        try:
            self.send_response(HTTPStatus.OK)
            self._say_headers("text/event-stream", None)
            for state in self._watch.changes():
                line = ":\n\n" if state is None else f"event: changed\ndata: {json.dumps({'state': state})}\n\n"
                self.wfile.write(line.encode())
                self.wfile.flush()
        finally:
            streams.release()

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self._say_headers(kind, len(content))
        self.wfile.write(content)

    def _say_headers(self, kind: str, length: int | None) -> None:
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
