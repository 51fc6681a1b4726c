"""A served policy: in this process (`client`), or in one of its own on a free port (`start_server`)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("onnxscript")

from starlette.testclient import TestClient

from qfleet.serving.app import ServingApp
from qfleet.serving.settings import Settings

TOKEN = "a-token-for-the-tests"
ENTRY = "from qfleet.cli.main import main; main()"


@pytest.fixture
def model(cartpole_onnx: Path, tmp_path: Path) -> Path:
    """A copy of the exported policy that a test may replace."""
    return Path(shutil.copy(cartpole_onnx, tmp_path / "policy.onnx"))


@pytest.fixture(scope="session")
def other_onnx(saved_policy: Callable[..., Path]) -> Path:
    """Another policy for the same environment."""
    from qfleet.export.exporting import export_run

    return Path(export_run(saved_policy("CartPole-v1", seed=1)).path)


@pytest.fixture
def make_client(model: Path) -> Iterator[Callable[..., TestClient]]:
    """make_client(token=..., max_batch=...): the application in this process, started."""
    opened: list[TestClient] = []

    def make(**changes: Any) -> TestClient:
        settings = Settings(**{"model": str(model), "poll_seconds": 0.01, **changes})
        client = TestClient(ServingApp(settings), raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    """The application without a token."""
    return make_client()


class Server:
    """`qfleet serve` in a process of its own."""

    def __init__(self, *args: object) -> None:
        # The copy of the package that is tested, wherever this was started.
        import qfleet

        environment = {**os.environ, "PYTHONPATH": str(Path(qfleet.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-u", "-c", ENTRY, "serve", "--port", "0", *map(str, args)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = re.search(r"(https?)://([\d.]+):(\d+)", line)
        assert match is not None, f"{line}{self.process.stderr.read() if self.process.stderr else ''}"
        self.url, self.host, self.port = match[0], match[2], int(match[3])

    def stop(self) -> tuple[int, str]:
        """SIGTERM: the exit code, and what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """start_server(model, "--workers", 2): a running server."""
    started: list[Server] = []

    def start(*args: object) -> Server:
        started.append(Server(*args))
        return started[-1]

    yield start
    for server in started:
        server.stop()
