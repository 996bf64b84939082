"""What a connection may keep waiting for, bounded in size and in time, which uvicorn leaves to others: a client that
sends headers without end, or a byte a minute, would take memory and a connection for as long as it likes, and so would
one that sends requests and takes no answers. Bodies are bounded by those who read them (``service.api.request``), and
here where nobody does.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from eventstore.clock import ulid
from service.api.problems import problem
from service.api.streams import WRITE
from service.errors import Malformed

HEAD_MAX_BYTES = 64 * 1024
"""Twice what is answered with a problem document (``service.api.headers``): beyond this the connection is closed."""
HEAD_S = 20.0
"""From the connection, or the first byte of a further request on it, to the end of the headers."""
UNREAD_S = 20.0
"""From an answer to the end of the body that it did not wait for."""
LINGER_S = 2.0
"""From an answer to the end of a connection on which the client still sends. Closed at once, it would be reset, and a
reset takes the answer away from a client that has not read it yet."""
WAITING_REQUESTS = 100
"""On one connection, behind the one that is being answered. uvicorn would keep as many as come."""


class _Transport:
    """One that lingers when it is closed in the middle of a request: it says the end to the client, and throws away
    what still comes."""

    __slots__ = ("_loop", "_transport", "in_request", "lingers", "write")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.in_request = self.lingers = False
        self.write: Callable[[bytes], None] = transport.write  # bound here: every event of every stream goes through it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self.in_request:
            self._transport.close()
            return
        self.lingers = True
        self.write = _discard
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_S, self._transport.close)


def _discard(_data: bytes) -> None:
    """What is still answered when the connection is given up: nobody takes it."""


class BoundedHead(HttpToolsProtocol):
    """uvicorn's protocol, which gives up on requests that never end."""

    transport: Any  # a _Transport
    _head_bytes = 0
    _reads_head = False
    _late: asyncio.TimerHandle | None = None
    """Runs while a head is awaited, or the rest of a body that nobody reads."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Transport(transport, self.loop))  # type: ignore[arg-type]
        self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._have_it()
        if not _plain(self.headers, self.parser.get_http_version()):
            raise ValueError  # the parser stops here, and it is answered with 400
        self.scope["extensions"] = {WRITE: self._write}  # type: ignore[dict-item]
        super().on_headers_complete()
        if len(self.pipeline) > WAITING_REQUESTS:
            self._give_up("Too many requests were sent before the first was answered.")

    def on_message_complete(self) -> None:
        self._have_it()
        self.transport.in_request = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._await(UNREAD_S, "The body of a request has not ended long after its answer.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._have_it()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.lingers:
            return
        super().data_received(data)
        if self._reads_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                self._give_up("The head of a request is too long.")

    def send_400_response(self, msg: str) -> None:
        """A problem document, as of all that is refused; and that is the end of the connection. It is said by the end
        alone where something else is being said, or was said to a request that goes on."""
        cycle = self.cycle
        if cycle is None or not cycle.response_started or (cycle.response_complete and not cycle.more_body):
            answer = problem(Malformed(msg))
            headers = [*answer.raw_headers, (b"connection", b"close"), (b"x-request-id", ulid().encode())]
            lines = [b"HTTP/1.1 400 Bad Request", *(b"%b: %b" % header for header in headers), b"", answer.body]
            self.transport.write(b"\r\n".join(lines))
        self.transport.in_request = True  # where the parser stopped, nobody knows where it ends
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: an ``Upgrade`` is an offer, which HTTP lets us pass over."""

    def _write(self, chunk: bytes) -> bool:
        """``streams.WRITE``."""
        if self.flow.write_paused or self.transport.is_closing():
            return False
        self.transport.write(chunk)
        return True

    def _await_head(self) -> None:
        self._await(HEAD_S, "The head of a request came too late.")
        self._head_bytes, self._reads_head = 0, True
        self.transport.in_request = True

    def _await(self, seconds: float, why: str) -> None:
        self._have_it()
        self._late = self.loop.call_later(seconds, self._give_up, why)

    def _have_it(self) -> None:
        self._reads_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self, why: str) -> None:
        if self.transport.is_closing():
            return
        self.logger.warning("The connection of %s is closed: %s", self.client, why)
        self.send_400_response(why)


def _plain(headers: list[tuple[bytes, bytes]], version: str) -> bool:
    """Whether a proxy before us cannot have understood where a request ends, and whom it is for, in another way."""
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    return (len(hosts) == 1 or (not hosts and version == "1.0")) and codings in ([], [b"chunked"])
