"""The head of a request, bounded in size and in time, which uvicorn leaves to others: a client that sends headers
without end, or a byte a minute, would take memory and a connection for as long as it likes. Bodies are bounded by those
who read them.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX_BYTES = 64 * 1024
"""Twice what is answered with a problem document (``service.api.headers``): beyond this the connection is closed."""
HEAD_S = 20.0
"""From the connection, or the first byte of a further request on it, to the end of the headers."""


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, which gives up on heads that never end."""

    _head_bytes = 0
    _late: asyncio.TimerHandle | None = None
    """Runs while a head is awaited."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._have_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._late is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                self._give_up()

    def _await_head(self) -> None:
        self._have_head()
        self._head_bytes, self._late = 0, self.loop.call_later(HEAD_S, self._give_up)

    def _have_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self.logger.warning("The head of a request from %s was too long or too late.", self.client)
        if not self.transport.is_closing():
            self.send_400_response("The head of this request is too long, or came too late.")
