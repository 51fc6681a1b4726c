"""HTTP by httptools with a limit on the size of headers, which neither uvicorn nor the parser sets."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 << 10


class BoundedProtocol(HttpToolsProtocol):
    """Hangs up on a client that sends more than 64 KiB without finishing the headers of a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Bytes of headers, of a body, or of both."""
        request = self.cycle
        super().data_received(data)
        if self.cycle is not request or not (request is None or request.response_complete):
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Headers too large.")
