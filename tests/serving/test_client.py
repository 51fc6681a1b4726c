"""The client: the policy's actions, retries on 429 and 503 only, one line for everything else, no torch."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from qfleet import load_policy
from qfleet.client import AsyncPolicyClient, PolicyClient, ServedPolicyError
from qfleet.errors import UsageError

from .conftest import TOKEN

OBS = np.array([[0.1, -0.2, 0.03, 0.4], [-1.0, 2.0, 0.1, -3.0]], np.float32)


class Through(httpx.BaseTransport):
    """Requests go to an application in this process; the first answers of /v1/act are those given."""

    def __init__(self, app: TestClient, *answers: int) -> None:
        self.app = app
        self.answers = list(answers)
        self.num_asked = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/act":
            self.num_asked += 1
            if self.answers:
                return httpx.Response(self.answers.pop(0), json={"error": {"field": "server", "message": "later"}})
        answer = self.app.request(
            request.method, str(request.url.raw_path, "ascii"), content=request.read(), headers=request.headers
        )
        return httpx.Response(answer.status_code, content=answer.content)


class AsyncThrough(httpx.AsyncBaseTransport):
    """The same for asyncio."""

    def __init__(self, through: Through) -> None:
        self.through = through

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await asyncio.to_thread(self.through.handle_request, request)


def test_the_answers_are_the_policys(client: TestClient, cartpole_onnx: Path) -> None:
    policy = load_policy(cartpole_onnx)
    with PolicyClient("http://served", transport=Through(client)) as asked:
        assert asked.spec == policy.spec
        assert asked.act(OBS[0]) == policy.act(OBS[0])
        assert np.array_equal(asked.act(OBS), policy.act(OBS))
        assert np.asarray(asked.act(OBS[:1])).shape == (1,), "a batch of one stays a batch"
        np.testing.assert_allclose(asked.q_values(OBS[:1]), policy.q_values(OBS[:1]), rtol=1e-5)
        np.testing.assert_allclose(asked.q_values(OBS[0]), policy.q_values(OBS[0]), rtol=1e-5)
        others = np.arange(2)[None] != np.asarray(policy.act(OBS))[:, None]
        assert np.array_equal(asked.act(OBS, others), 1 - np.asarray(policy.act(OBS)))
        assert asked.describe()["env_id"] == "CartPole-v1"
        with pytest.raises(UsageError, match=r"takes \(4,\) or a batch of it"):
            asked.act(np.zeros(3))


def test_the_asynchronous_client_answers_alike(client: TestClient, cartpole_onnx: Path) -> None:
    async def ask() -> list[Any]:
        transport = AsyncThrough(Through(client, 503))
        async with AsyncPolicyClient("http://served", transport=transport, first_pause=0.0) as asked:
            await asked.describe()
            return [await asked.act(OBS[0]), await asked.q_values(OBS)]

    action, values = asyncio.run(ask())
    policy = load_policy(cartpole_onnx)
    assert action == policy.act(OBS[0])
    np.testing.assert_allclose(values, policy.q_values(OBS), rtol=1e-5)


@pytest.mark.parametrize(
    ("answers", "num_asked", "status"),
    [
        ((429, 503, 429), 4, None),
        ((503,) * 9, 4, 503),
        ((500,), 1, 500),
        ((400,), 1, 400),
        ((408,), 1, 408),
    ],
)
def test_only_429_and_503_are_asked_again(
    client: TestClient, answers: tuple[int, ...], num_asked: int, status: int | None
) -> None:
    transport = Through(client, *answers)
    with PolicyClient("http://served", transport=transport, retries=3, first_pause=0.0) as asked:
        if status is None:
            assert asked.act(OBS[0]) in (0, 1)
        else:
            with pytest.raises(ServedPolicyError, match=f"{status} server: later") as caught:
                asked.act(OBS[0])
            assert (caught.value.status, caught.value.field) == (status, "server")
    assert transport.num_asked == num_asked


def test_pauses_double_and_are_drawn_apart(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("qfleet.client.time.sleep", pauses.append)
    transport = Through(client, *[429] * 7)
    with PolicyClient("http://served", transport=transport, retries=7, first_pause=0.5) as asked:
        asked.act(OBS[0])
    longest = [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len({pause / most for pause, most in zip(pauses, longest, strict=True)}) > 1


def test_the_token_is_shown(make_client: Callable[..., TestClient]) -> None:
    app = make_client(token=TOKEN)
    with PolicyClient("http://served", TOKEN, transport=Through(app)) as asked:
        assert asked.act(OBS[0]) in (0, 1)
    without = PolicyClient("http://served", transport=Through(app))
    with without as asked, pytest.raises(ServedPolicyError, match="401 authorization: a bearer token is needed"):
        asked.act(OBS[0])


def test_nobody_there_is_one_line() -> None:
    with (
        PolicyClient("http://127.0.0.1:1") as asked,
        pytest.raises(ServedPolicyError, match=r"^http://127\.0\.0\.1:1: .*; is a policy served there\?$"),
    ):
        asked.act(OBS[0])
    with pytest.raises(UsageError, match="starts with http"):
        PolicyClient("127.0.0.1:8000")


def test_neither_client_nor_server_imports_torch() -> None:
    code = (
        "import sys, qfleet.client, qfleet.serving.server; "
        "sys.exit([name for name in ('torch', 'gymnasium', 'numba') if name in sys.modules] or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    unwanted = "('torch', 'onnxruntime', 'starlette')"
    only_client = f"import sys, qfleet.client; sys.exit([n for n in {unwanted} if n in sys.modules] or 0)"
    subprocess.run([sys.executable, "-c", only_client], check=True)
