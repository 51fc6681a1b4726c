"""A served policy in use: PolicyClient(url, token).act(obs), and the same for asyncio. Floor 6.

Imports neither torch nor onnxruntime. Answers that say "later" (429, 503) are asked again, after a pause that doubles;
everything else is told at once, for asking again would not change it.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import numpy as np

from qfleet.errors import MissingExtraError, QfleetError, UsageError
from qfleet.ops.declared import as_declared
from qfleet.types import Array, BoolArray, EnvSpec, FloatArray, IntArray

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("qfleet.client needs httpx: pip install 'qfleet[client]'") from error

RETRY_STATUSES = (429, 503)
MAX_PAUSE_SECONDS = 5.0


class ServedPolicyError(QfleetError):
    """The server could not be asked, or refused.

    Args:
        message: one line.
        status: of its answer, None where there was none.
        field: what it found wrong, "" where it did not say.
    """

    def __init__(self, message: str, status: int | None = None, field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.field = field


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said of one observation, or of a batch.

    Attributes:
        action: an int, or int64 [B].
        q_values: float32 [A] or [B, A]; None where they were not asked for.
        version: which model acted.
    """

    action: int | IntArray
    q_values: FloatArray | None
    version: str


@dataclass(frozen=True, slots=True)
class _Call:
    """A request: where to, and for /v1/act the observations it is about."""

    path: str
    content: bytes | None = None
    content_type: str = ""
    is_batch: bool = False


class _Asker:
    """What both clients share: building requests, reading answers, pauses."""

    def __init__(self, url: str, token: str | None, retries: int, first_pause: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url}: a served policy's URL starts with http:// or https://")
        self.url = url.rstrip("/")
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._retries = retries
        self._first_pause = first_pause
        self._description: dict[str, Any] | None = None
        # Clients that were refused together must not come back together; no run depends on this draw.
        self._random = random.Random()

    def _spec_of(self, description: Mapping[str, Any]) -> EnvSpec:
        values = dict(description["spec"])
        return EnvSpec(**{**values, "obs_shape": tuple(values["obs_shape"])})

    def _build(self, obs: Array, mask: BoolArray | None, wants_values: bool, spec: EnvSpec) -> _Call:
        array = as_declared(obs, spec.obs_dtype)
        is_batch = array.ndim == len(spec.obs_shape) + 1
        if array.shape[is_batch:] != spec.obs_shape:
            raise UsageError(f"observation of shape {array.shape}; this policy takes {spec.obs_shape} or a batch of it")
        if mask is None:
            content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            query = "?q_values=true" if wants_values else ""
            return _Call(f"/v1/act{query}", content, "application/octet-stream", is_batch)
        body = {"obs": array.tolist(), "q_values": wants_values, "action_mask": np.asarray(mask, bool).tolist()}
        return _Call("/v1/act", json.dumps(body).encode(), "application/json", is_batch)

    def _read(self, body: Mapping[str, Any], is_batch: bool) -> Answer:
        action, values = body["action"], body.get("q_values")
        if not is_batch:
            return Answer(int(action), None if values is None else np.asarray(values, np.float32), str(body["version"]))
        # Raw bytes of a batch of one look like a single observation to the server.
        actions = np.atleast_1d(np.asarray(action, np.int64))
        q_values = None if values is None else np.atleast_2d(np.asarray(values, np.float32))
        return Answer(actions, q_values, str(body["version"]))

    def _headers_of(self, call: _Call) -> dict[str, str]:
        return {**self._headers, "content-type": call.content_type} if call.content is not None else self._headers

    def _pause(self, response: httpx.Response, attempt: int) -> float | None:
        """Seconds until the next attempt, None where the answer is final."""
        if response.status_code not in RETRY_STATUSES or attempt >= self._retries:
            return None
        pause = min(self._first_pause * 2.0**attempt, MAX_PAUSE_SECONDS)
        return pause * self._random.uniform(0.5, 1.0)

    def _body_of(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code == 200 and isinstance(body, dict):
            return body
        found = body.get("error") if isinstance(body, dict) else None
        found = found if isinstance(found, dict) else {}
        field, message = str(found.get("field", "")), str(found.get("message", "no served policy answers here"))
        raise ServedPolicyError(
            f"{self.url}: {response.status_code}{f' {field}' if field else ''}: {message}", response.status_code, field
        )

    def _unreachable(self, error: Exception) -> ServedPolicyError:
        reason = str(error).lower() or type(error).__name__
        is_nobody = isinstance(error, httpx.ConnectError) and "certificate" not in reason
        return ServedPolicyError(f"{self.url}: {reason}{'; is a policy served there?' if is_nobody else ''}")


class PolicyClient(_Asker):
    """A served policy, asked one request at a time; close it, or use it in a `with` block.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        token: what the server asks for, None for nothing.
        timeout: seconds for each attempt.
        retries: how often an answer 429 or 503 is asked again.
        first_pause: seconds before the first of them, at most; each further pause is twice as long, up to 5 s.
        verify: False to trust any certificate, or a context with the certificates to trust.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 10.0,
        retries: int = 5,
        first_pause: float = 0.1,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, token, retries, first_pause)
        self._http = httpx.Client(timeout=timeout, verify=verify, transport=transport)

    def describe(self) -> dict[str, Any]:
        """What is served: env_id, env, spec, algo, facts, agreement, observation, action, outputs, version.

        Raises:
            ServedPolicyError: no answer, or a refusal.
        """
        return self._ask(_Call("/v1/policy"))

    @property
    def spec(self) -> EnvSpec:
        """The environment's facts; asked for once."""
        if self._description is None:
            self._description = self.describe()
        return self._spec_of(self._description)

    def act(self, obs: Array, action_mask: BoolArray | None = None) -> int | IntArray:
        """The greedy action of one observation (an int) or of a batch (int64 [B]); illegal actions are left out.

        Raises:
            UsageError: the shape fits neither, or the numbers are not of the declared dtype.
            ServedPolicyError: no answer, or a refusal.
        """
        return self.answer(obs, action_mask).action

    def q_values(self, obs: Array) -> FloatArray:
        """Action values of one observation [*O] -> [A], or of a batch [B, *O] -> [B, A].

        Raises:
            As `act`.
        """
        return cast(FloatArray, self.answer(obs, wants_values=True).q_values)

    def answer(self, obs: Array, action_mask: BoolArray | None = None, *, wants_values: bool = False) -> Answer:
        """Action, values where wanted, and which model acted.

        Raises:
            As `act`.
        """
        call = self._build(obs, action_mask, wants_values, self.spec)
        return self._read(self._ask(call), call.is_batch)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: _Call) -> dict[str, Any]:
        attempt = 0
        while True:
            try:
                response = self._http.request(
                    "GET" if call.content is None else "POST",
                    self.url + call.path,
                    content=call.content,
                    headers=self._headers_of(call),
                )
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            pause = self._pause(response, attempt)
            if pause is None:
                return self._body_of(response)
            time.sleep(pause)
            attempt += 1


class AsyncPolicyClient(_Asker):
    """A served policy for asyncio: many requests may be under way; the server makes batches of them.

    Args:
        url, token, timeout, retries, first_pause, verify: as of PolicyClient.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 10.0,
        retries: int = 5,
        first_pause: float = 0.1,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, token, retries, first_pause)
        self._http = httpx.AsyncClient(timeout=timeout, verify=verify, transport=transport)

    async def describe(self) -> dict[str, Any]:
        """As PolicyClient.describe."""
        return await self._ask(_Call("/v1/policy"))

    async def act(self, obs: Array, action_mask: BoolArray | None = None) -> int | IntArray:
        """As PolicyClient.act."""
        return (await self.answer(obs, action_mask)).action

    async def q_values(self, obs: Array) -> FloatArray:
        """As PolicyClient.q_values."""
        return cast(FloatArray, (await self.answer(obs, wants_values=True)).q_values)

    async def answer(self, obs: Array, action_mask: BoolArray | None = None, *, wants_values: bool = False) -> Answer:
        """As PolicyClient.answer."""
        if self._description is None:
            self._description = await self.describe()
        call = self._build(obs, action_mask, wants_values, self._spec_of(self._description))
        return self._read(await self._ask(call), call.is_batch)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncPolicyClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: _Call) -> dict[str, Any]:
        attempt = 0
        while True:
            try:
                response = await self._http.request(
                    "GET" if call.content is None else "POST",
                    self.url + call.path,
                    content=call.content,
                    headers=self._headers_of(call),
                )
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            pause = self._pause(response, attempt)
            if pause is None:
                return self._body_of(response)
            await asyncio.sleep(pause)
            attempt += 1
