"""The page of runs under way: served to this machine only, and renewed when a run writes."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from qfleet.cli.report import serve
from qfleet.errors import QfleetError, UsageError
from qfleet.report.live import MAX_STREAMS, SCRIPT, Server, Watch

WriteRun = Callable[..., Path]
TIMEOUT = 20.0
XHTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture
def run_dir(write_run: WriteRun) -> Path:
    return write_run("a", summary=None)


@pytest.fixture
def server(run_dir: Path) -> Iterator[Server]:
    made = Server(Watch([run_dir], poll_seconds=0.01), 0)
    thread = threading.Thread(target=serve, args=(made,))
    thread.start()
    yield made
    made.stop()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def ask(server: Server, path: str, **headers: str) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=TIMEOUT)
    connection.request("GET", path, headers=headers)
    return connection.getresponse(), connection


def next_event(stream: http.client.HTTPResponse) -> dict[str, Any]:
    """Skips lines that say nothing."""
    line = b""
    while not line.startswith(b"data: "):
        line = stream.readline()
        assert line, "the stream has ended"
    return dict(json.loads(line.removeprefix(b"data: ")))


def write_more(run_dir: Path, steps: int) -> None:
    record = {"kind": "train", "num_env_steps": steps, "num_updates": 1, "train_seconds": 1.0, "mean_return": 1.0}
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def test_page_and_event_follow_what_the_run_writes(server: Server, run_dir: Path) -> None:
    answer, _ = ask(server, "/")
    first = answer.read().decode()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "1 run: 1 stopped; 200 env steps." in first
    assert ElementTree.fromstring(first).findtext(f"{XHTML}body/{XHTML}script") == SCRIPT
    stream, connection = ask(server, "/events")
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert next_event(stream) == {"state": "1 run: 1 stopped; 200 env steps."}
    write_more(run_dir, 777)
    assert next_event(stream) == {"state": "1 run: 1 stopped; 777 env steps."}
    assert "777 env steps." in ask(server, "/")[0].read().decode()
    connection.close()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", ""])
def test_another_host_is_refused(server: Server, host: str) -> None:
    for path in ("/", "/events"):
        answer, _ = ask(server, path, Host=host.format(port=server.server_port))
        assert answer.status == 403
        assert b"env steps" not in answer.read()
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert ask(server, "/", Host=f"{name}:{server.server_port}")[0].status == 200


def test_nothing_else_is_served(server: Server, run_dir: Path) -> None:
    for path in ("/config.toml", "/../a/config.toml", f"//{run_dir}/config.toml", "/events/"):
        assert ask(server, path)[0].status == 404
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=TIMEOUT)
    connection.request("POST", "/")
    assert connection.getresponse().status == 501


def test_readers_are_bounded(server: Server) -> None:
    taken = [server.watch.streams.acquire(blocking=False) for _ in range(MAX_STREAMS)]
    assert all(taken)
    assert ask(server, "/events")[0].status == 503
    server.watch.streams.release()
    stream, connection = ask(server, "/events")
    assert stream.status == 200
    connection.close()


def test_a_run_that_goes_away_is_told_and_ends_nothing(server: Server, run_dir: Path) -> None:
    stream, connection = ask(server, "/events")
    next_event(stream)
    (run_dir / "config.toml").unlink()
    assert "no run here" in next_event(stream)["state"]
    assert ask(server, "/")[0].status == 503
    connection.close()


def test_a_page_is_made_once_for_all_who_ask(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch([run_dir])
    page = watch.page()
    monkeypatch.setattr("qfleet.report.live.make_report", lambda *args, **kwargs: pytest.fail("made again"))
    assert watch.page() is not page
    assert watch.page() == page


def test_a_quiet_stream_says_that_it_is_there(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfleet.report.live.QUIET_POLLS", 2)
    changes = Watch([run_dir], poll_seconds=0.0).changes()
    assert [next(changes) is None for _ in range(3)] == [False, True, True]


def test_port_that_is_taken_and_runs_that_are_none(run_dir: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(QfleetError, match=rf"^port {port}: address already in use; choose another with --port$"):
            Server(Watch([run_dir]), port)
    with pytest.raises(UsageError, match="nowhere: no such directory"):
        Watch([tmp_path / "nowhere"]).page()


def test_ctrl_c_ends_it_and_its_streams(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(Watch([run_dir]), 0)

    def interrupted(poll_interval: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve_forever", interrupted)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert serve(server) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert list(server.watch.changes()) == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.server_port), timeout=TIMEOUT)
