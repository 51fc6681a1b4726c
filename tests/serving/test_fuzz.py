"""Whatever is sent, the answer is a refusal that names the field: no 500, no hang, no traceback."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qfleet.serving.app import ServingApp
from qfleet.serving.settings import Settings

SEEDS = [
    b'{"obs": [0.1, -0.2, 0.03, 0.4]}',
    b'{"obs": [[0.1, -0.2, 0.03, 0.4], [1, 2, 3, 4]], "q_values": true}',
    b'{"obs": [1, 2, 3, 4], "action_mask": [true, false]}',
    bytes(range(64)),
]
PIECES = [
    b"NaN", b"-Infinity", b"1e999", b"true", b"null", b'"', b"[", b"]", b"{", b"}", b",", b":", b"\x00", b"\xff\xfe",
    b"-", b"9" * 400, b"[" * 500, b'{"obs":', b"\\u0000", b"0x1", b"1e-400", b'"obs"', b"\xed\xa0\x80", b"[[", b"]]",
]  # fmt: skip
ALLOWED = {200, 400, 405, 408, 413, 415}


def mutate(draw: random.Random) -> bytes:
    """A body near to a good one: bytes changed, cut, doubled, pieces put in."""
    body = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(body) + 1)
        kind = draw.randrange(5)
        if kind == 0 and body:
            body[at % len(body)] = draw.randrange(256)
        elif kind == 1:
            del body[at : at + draw.randrange(8)]
        elif kind == 2:
            body[at:at] = draw.choice(PIECES)
        elif kind == 3:
            end = min(len(body), at + draw.randrange(32))
            body[at:at] = body[at:end] * draw.randint(1, 3)
        else:
            body[at:at] = draw.randbytes(draw.randrange(6))
    return bytes(body)


async def ask(app: ServingApp, body: bytes, content_type: bytes, query: bytes = b"") -> tuple[int, bytes]:
    """One request, straight to the application."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", content_type)]
    scope = {"type": "http", "method": "POST", "path": "/v1/act", "headers": headers, "query_string": query}
    await asyncio.wait_for(app(scope, receive, send), 10)
    return sent[0]["status"], sent[1]["body"]


async def fuzz(model: Path, count: int, seed: int) -> dict[int, int]:
    """Answers by status of `count` mutated bodies; every one of them is checked."""
    app = ServingApp(Settings(model=str(model)))
    found: dict[int, int] = {}
    async with app._lifespan(app._rest):
        draw = random.Random(seed)
        for _ in range(count):
            body = mutate(draw)
            kind = draw.choice(
                [b"application/json", b"application/json", b"application/octet-stream", draw.randbytes(9)]
            )
            status, answer = await ask(app, body, kind, draw.choice([b"", b"", b"q_values=true", draw.randbytes(4)]))
            assert status in ALLOWED, (status, body)
            content = json.loads(answer)
            if status == 200:
                assert "action" in content
            else:
                assert content["error"]["field"] and content["error"]["message"], body
                assert not re.search(rb"Traceback|\.py|line \d+, in", answer), body
            found[status] = found.get(status, 0) + 1
        # And it still acts.
        assert (await ask(app, SEEDS[0], b"application/json"))[0] == 200
    return found


def test_mutated_bodies(cartpole_onnx: Path) -> None:
    found = asyncio.run(fuzz(cartpole_onnx, 800, 0))
    assert found[400] > 100, "mutations do harm"
    assert found[200] > 10, "and are near to good ones"


@pytest.mark.slow
def test_100_000_mutated_bodies(cartpole_onnx: Path) -> None:
    found = asyncio.run(fuzz(cartpole_onnx, 100_000, 1))
    assert sum(found.values()) == 100_000


def schemathesis(url: str, max_examples: int) -> Iterator[str]:
    """What `schemathesis run` found wrong with the OpenAPI document."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", checks]
    command += ["--max-examples", str(max_examples), "--generation-deterministic", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode:
        yield done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_the_openapi_document_holds(start_server: Callable[..., Any], model: Path) -> None:
    pytest.importorskip("schemathesis")
    server = start_server(model)
    assert list(schemathesis(server.url, 300)) == []
    assert server.stop() == (0, "")
