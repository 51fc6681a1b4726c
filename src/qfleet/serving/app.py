"""The ASGI application: /v1/act by hand, for it is called thousands of times a second, the rest by starlette.

headers -> token -> body (size, time) -> Contract (shape, type, range) -> Batcher -> answer
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from qfleet.errors import QfleetError
from qfleet.serving.batching import Batcher, Inferred
from qfleet.serving.counters import Counters
from qfleet.serving.openapi import document
from qfleet.serving.page import PAGE_HEADERS, page
from qfleet.serving.reload import Reloader
from qfleet.serving.requests import ActRequest, Contract, RequestError
from qfleet.serving.settings import Settings

_JSON_HEADER = (b"content-type", b"application/json")
_LATER = {"retry-after": "1"}
_NO_MODEL = RequestError(503, "server", "no policy yet; try again")
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Headers:
    """What /v1/act reads of a request's headers."""

    content_type: bytes
    content_length: int | None
    authorization: bytes


class ServingApp:
    """A policy over HTTP.

    Args:
        settings: how to serve it.
        worker: which of the processes this is.

    Attributes:
        is_draining: set when the server is about to stop: clients are told to leave, /readyz says no.
    """

    def __init__(self, settings: Settings, worker: int = 0) -> None:
        self.settings = settings
        self.is_draining = False
        self.counters = Counters(settings.counters, worker)
        self._token = None if settings.token is None else f"Bearer {settings.token}".encode()
        self._reloader = Reloader(settings, self.counters)
        self._batcher: Batcher | None = None
        self._contract: Contract | None = None
        routes = [
            Route("/", self._page),
            Route("/livez", self._livez),
            Route("/readyz", self._readyz),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/openapi.json", self._guarded(self._openapi)),
            Route("/v1/policy", self._guarded(self._policy)),
            Route("/v1/reload", self._reload, methods=["POST"]),
        ]
        handlers: Mapping[Any, Any] = {HTTPException: _tell_http_error, Exception: _tell_nothing}
        self._rest = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] == "/v1/act":
            await self._act(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._reloader.on_model = self._take_model
        await self._reloader.start()
        try:
            yield
        finally:
            await self._reloader.stop()
            if self._batcher is not None:
                self._batcher.close()

    def _take_model(self) -> None:
        """The reloader has a new model: from now on it acts."""
        model = self._reloader.model
        assert model is not None
        settings = self.settings
        if self._batcher is not None:
            self._batcher.model = model
            return
        self._contract = Contract(model.policy.spec, settings.max_batch)
        self._batcher = Batcher(
            model,
            self.counters,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000.0,
            max_queue=settings.max_queue,
            max_age=settings.timeout_seconds,
            num_threads=settings.num_threads,
        )

    # The hot path

    async def _act(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        headers = [_JSON_HEADER]
        try:
            status, content = 200, await self._answer(scope, receive)
        except RequestError as error:
            status, content = error.status, _error_body(error.field, error.message)
            if status in (429, 503):
                headers.append((b"retry-after", b"1"))
            elif status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            elif status == 405:
                headers.append((b"allow", b"POST"))
            elif status in (408, 413):
                headers.append((b"connection", b"close"))
        except _Disconnected:
            return
        if self.is_draining:
            headers.append((b"connection", b"close"))
        self.counters.answered(status, time.perf_counter() - start)
        headers.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        if scope["method"] != "POST":
            raise RequestError(405, "method", "POST")
        headers = _read_headers(scope)
        if self._token is not None and not hmac.compare_digest(headers.authorization, self._token):
            raise RequestError(401, "authorization", "a bearer token is needed")
        contract, batcher = self._contract, self._batcher
        if contract is None or batcher is None:
            raise _NO_MODEL
        is_json = headers.content_type.startswith(b"application/json")
        if not is_json and not headers.content_type.startswith(b"application/octet-stream"):
            raise RequestError(415, "content-type", "application/json or application/octet-stream")
        body = await self._read_body(receive, headers.content_length, contract.max_body)
        if is_json:
            request = contract.read_json(body)
        else:
            request = contract.read_bytes(body, _asks_for_values(scope["query_string"]))
        return _answer_body(request, await batcher.submit(request.obs))

    async def _read_body(self, receive: Receive, length: int | None, limit: int) -> bytes:
        if length is not None and length > limit:
            raise RequestError(413, "body", f"{length} bytes; at most {limit}")
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                message = await receive()
                body: bytes = message.get("body", b"")
                while message.get("more_body"):
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise RequestError(413, "body", f"more than {limit} bytes")
        except TimeoutError:
            raise RequestError(408, "body", "it took too long to arrive") from None
        if message["type"] == "http.disconnect":
            raise _Disconnected
        if len(body) > limit:
            raise RequestError(413, "body", f"more than {limit} bytes")
        return body

    # The rest

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for those who show the token."""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode("latin-1")
            if self._token is not None and not hmac.compare_digest(given, self._token):
                headers = {"www-authenticate": "Bearer"}
                return _error(401, "authorization", "a bearer token is needed", headers)
            return await endpoint(request)

        return guarded

    async def _page(self, request: Request) -> Response:
        return Response(page(has_token=self._token is not None), media_type="text/html", headers=PAGE_HEADERS)

    async def _livez(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _readyz(self, request: Request) -> Response:
        if self.is_draining:
            return _error(503, "server", "about to stop", _LATER)
        if self._reloader.model is None:
            return _error(503, "server", "no policy yet", _LATER)
        return JSONResponse({"status": "ready", "version": self._reloader.model.policy.version})

    async def _metrics(self, request: Request) -> Response:
        model = self._reloader.model
        content = self.counters.exposition("" if model is None else model.policy.version)
        return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, request: Request) -> Response:
        model = self._reloader.model
        if model is None or self._contract is None:
            return _error(503, "server", "no policy yet", _LATER)
        return JSONResponse(document(model.policy, self._contract, has_token=self._token is not None))

    async def _policy(self, request: Request) -> Response:
        model = self._reloader.model
        if model is None:
            return _error(503, "server", "no policy yet", _LATER)
        body = {key: value for key, value in model.policy.description.body.items() if key != "golden"}
        return JSONResponse({**body, "version": model.policy.version, "max_batch": self.settings.max_batch})

    async def _reload(self, request: Request) -> Response:
        if self._token is None:
            return _error(
                403, "authorization", "a server without --token-file reloads when its file changes, not when asked"
            )
        return await self._guarded(self._reload_now)(request)

    async def _reload_now(self, request: Request) -> Response:
        before = self._reloader.model
        try:
            await self._reloader.reload()
        except QfleetError as error:
            kept = "" if before is None else before.policy.version
            return JSONResponse({"error": {"field": "model", "message": str(error)}, "version": kept}, 409)
        model = self._reloader.model
        assert model is not None
        is_new = before is None or model.version != before.version
        return JSONResponse({"version": model.policy.version, "changed": is_new})


class _Disconnected(Exception):
    """Nobody waits for the answer."""


def _read_headers(scope: Scope) -> _Headers:
    content_type, authorization, length = b"", b"", None
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value.lower()
        elif name == b"authorization":
            authorization = value
        elif name == b"content-length" and value.isdigit():
            length = int(value)
    return _Headers(content_type, length, authorization)


def _asks_for_values(query: bytes) -> bool:
    if not query:
        return False
    if query in (b"q_values=true", b"q_values=1"):
        return True
    if query in (b"q_values=false", b"q_values=0"):
        return False
    raise RequestError(400, "query", "q_values=true, or nothing")


def _answer_body(request: ActRequest, found: Inferred) -> bytes:
    """{"action": ..., "version": ...}, written by hand: for one observation json.dumps would cost more than the net."""
    actions = found.actions
    if request.action_mask is not None:
        from qfleet.ops.exploration import greedy

        actions = greedy(found.q_values, request.action_mask)
    text = b"%d" % actions[0] if request.is_single else json.dumps(actions.tolist()).encode()
    if not request.wants_values:
        return b'{"action":%b,"version":"%b"}' % (text, found.version)
    values = found.q_values[0] if request.is_single else found.q_values
    return b'{"action":%b,"q_values":%b,"version":"%b"}' % (text, json.dumps(values.tolist()).encode(), found.version)


def _error_body(field: str, message: str) -> bytes:
    return json.dumps({"error": {"field": field, "message": message}}).encode()


def _error(status: int, field: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"field": field, "message": message}}, status, headers)


async def _tell_http_error(request: Request, error: HTTPException) -> Response:
    field = {404: "path", 405: "method"}.get(error.status_code, "request")
    return _error(error.status_code, field, str(error.detail).lower(), error.headers)


async def _tell_nothing(request: Request, error: Exception) -> Response:
    """A mistake of the server's own: it is logged, and nobody is shown how the server is built."""
    return _error(500, "server", "internal error")
