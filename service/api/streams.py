"""Feeds and selections over HTTP: NDJSON and SSE that follow, as a small ASGI app over the hub.

``send()`` does not raise when the client hangs up, so each stream looks for that now and then: a second task that waits
for it would be a third of a viewer's memory. A client that stops reading is bounded by the socket, which the kernel
closes after :data:`SEND_TIMEOUT_S`; it loses nothing, because it comes back with its cursor.
"""

import time
from collections.abc import Awaitable, Callable
from enum import Enum
from functools import partial
from typing import Literal

import anyio
from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from eventstore import Log, Page
from eventstore.clock import jitter
from service import metrics
from service.api.console_lines import as_console
from service.api.headers import with_added
from service.api.query import Cursor, Flag, OfLog, Query
from service.errors import CursorAhead, CursorGone, Malformed, OtherLog, TooManyRequests
from service.hub import Frame, Hub, Viewer, Write
from service.keys import Caller
from service.ring import Framing, Source

KEEP_ALIVE_S = 15.0
LOOK_S = KEEP_ALIVE_S / 2
"""A hang-up is noticed no later than this."""
SEND_TIMEOUT_S = 60.0
"""A client that takes nothing for this long is let go: the listening socket has it (``service/cli/http_server.py``)."""
RETRY_MS = (1000, 5000)
WRITE = "ade.write"
"""The extension of the scope by which the server lets a stream write chunks of its body, as ``hub.Write``. What goes
through ``send()`` wakes a task for each viewer and is put together for each: half of what a delivery costs."""


class Form(Enum):
    """The shapes in which events are served."""

    PAGE = "application/json"
    NDJSON = "application/x-ndjson"
    JSONL = "application/jsonl"
    SSE = "text/event-stream"


class Streamed(Query):
    """Whether the answer is a stream, and how SSE looks."""

    stream: Flag = Field(False, description="Answer with the stream: NDJSON, or SSE where `Accept` names it.")
    names: Literal["on", "off"] = Field(
        "on", description="`off` leaves `event:` out of SSE, so that `EventSource.onmessage` gets every event."
    )
    logs: Literal["events", "console"] = Field(
        "events",
        description="`console` gives each line that has a message as `console.line`, with `scope` (`run` or `build`).",
    )


class NDJSONFrame:
    """A line each; an empty line keeps the connection alive."""

    keep_alive = b"\n"

    def opening(self, after: int) -> bytes:
        return b""

    def page(self, page: Page) -> bytes:
        return page.ndjson

    def bookmark(self, head: int) -> bytes:
        return b'{"object":"ade.bookmark","id":%d}\n' % head

    def drained(self) -> bytes:
        return b""


class SSEFrame:
    """An event each, its ``id`` last: clients take an id on sight, so an event that is cut must not have shown it."""

    keep_alive = b": alive\n\n"

    def __init__(self, *, names: bool) -> None:
        self._names = names

    def opening(self, after: int) -> bytes:
        # With the client's own cursor: httpx-sse hands out a `retry` as an event, and without an id of this connection
        # its id is empty, so that a client cut before the first event would begin again.
        return b"retry: %d\nid: %d\n: ade\n\n" % (RETRY_MS[0], after)

    def page(self, page: Page) -> bytes:
        lines = page.each()
        if not self._names:
            return b"".join([b"data: %b\nid: %d\n\n" % (line.line, line.id) for line in lines])
        return b"".join(
            [b"event: %b\ndata: %b\nid: %d\n\n" % (line.type.encode(), line.line, line.id) for line in lines]
        )

    def bookmark(self, head: int) -> bytes:
        # Named even where events are not: who listens to unnamed events gets only these, and keeps this id too.
        return b'event: bookmark\ndata: {"head":%d}\nid: %d\n\n' % (head, head)

    def drained(self) -> bytes:
        # An EventSource gives up for good on anything but 200, so it is told when to come back instead.
        return b"retry: %d\n\n" % int(jitter(*RETRY_MS))


class ConsoleFrame:
    """Another frame, whose lines are in the dialect of the console."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.keep_alive = frame.keep_alive
        self.opening, self.bookmark, self.drained = frame.opening, frame.bookmark, frame.drained

    def page(self, page: Page) -> bytes:
        lines = b"".join([as_console(line).line + b"\n" for line in page.each()])
        return self._frame.page(Page(len(page), page.last_id, ndjson=lines))


def _chunked(frame: Frame, page: Page) -> bytes:
    """A page as a chunk of an HTTP/1.1 body without a length (RFC 9112, 7.1)."""
    body = frame.page(page)
    return b"%x\r\n%b\r\n" % (len(body), body)


# One of each, so that viewers at the same place of a feed share the bytes that it made.
NDJSON_FRAME = NDJSONFrame()
SSE_FRAME = SSEFrame(names=True)
SSE_FRAME_WITHOUT_NAMES = SSEFrame(names=False)
_IN_CONSOLE = {frame: ConsoleFrame(frame) for frame in (NDJSON_FRAME, SSE_FRAME, SSE_FRAME_WITHOUT_NAMES)}
_CHUNKED: dict[Frame, Framing] = {frame: partial(_chunked, frame) for frame in (*_IN_CONSOLE, *_IN_CONSOLE.values())}


def wanted_form(request: Request, query: Streamed) -> Form:
    """What the client asks for: by ``Accept``, then by ``stream``."""
    for entry in request.headers.get("accept", "").split(","):
        named = entry.split(";")[0].strip().lower()
        if named in {Form.SSE.value, Form.NDJSON.value, Form.JSONL.value}:
            return Form(named)
    return Form.SSE if query.stream else Form.PAGE


def frame_of(query: Streamed, form: Form) -> Frame:
    """The frame for a form, with the client's wishes about names and lines."""
    frame: NDJSONFrame | SSEFrame = NDJSON_FRAME
    if form is Form.SSE:
        frame = SSE_FRAME if query.names == "on" else SSE_FRAME_WITHOUT_NAMES
    return frame if query.logs == "events" else _IN_CONSOLE[frame]


async def cursor(request: Request, query: Cursor, log: Log, log_id: str, form: Form) -> int:
    """The id that the client has reached. Raises what :func:`check_kept` does."""
    after = query.after_id
    if form is Form.SSE and (text := request.headers.get("last-event-id")) is not None:
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise Malformed("`Last-Event-ID` must be the id of an event: decimal digits.", parameter="Last-Event-ID")
        after = int(text)
    await check_kept(after, query, log, log_id)
    return after


async def check_kept(event_id: int, query: OfLog, log: Log, log_id: str) -> None:
    """The log itself is asked, so a lagging node refuses nobody. Raises OtherLog, CursorAhead, CursorGone."""
    if query.log_id is not None and query.log_id != log_id:
        raise OtherLog("The cursor comes from another log; start again from 0.", log_id=log_id)
    if event_id > 0:
        identity = await log.identity()
        if event_id > identity.head:
            raise CursorAhead(
                f"The newest event is {identity.head}. Was the log restored? Check `log_id`.",
                head=identity.head,
                log_id=log_id,
            )
        if event_id < identity.oldest - 1:
            raise CursorGone(
                f"Events are kept from {identity.oldest} on.", oldest_id=identity.oldest, newest_id=identity.head
            )


def check_room(caller: Caller) -> None:
    """Raises TooManyRequests where as many streams are open as may be with the caller's key."""
    if caller.streams.left < 1:
        raise TooManyRequests("This key has too many streams open.", retry_after_s=RETRY_MS[1] // 1000)


def headers(log_id: str, media_type: str) -> list[tuple[bytes, bytes]]:
    """The headers of every stream."""
    return [
        (b"content-type", f"{media_type}; charset=utf-8".encode()),
        (b"cache-control", b"no-store, no-transform"),
        (b"x-accel-buffering", b"no"),
        (b"ade-log-id", log_id.encode()),
    ]


class App(Starlette):
    """Serves streams after their handlers: else each would keep the frames of all middleware, half of its memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)
        stream: Stream | None = scope.get("state", {}).pop("stream", None)
        if stream is not None:
            await stream.serve(receive, send)


class Stream:
    """The response for a source: from a cursor to its terminal event, or to the head where it does not follow."""

    __slots__ = ("_after", "_caller", "_follow", "_frame", "_headers", "_hub", "_on_hang_up", "_source", "_write")

    def __init__(
        self,
        hub: Hub,
        source: Source,
        after: int,
        form: Form,
        frame: Frame,
        log_id: str,
        caller: Caller,
        *,
        follow: bool = True,
        on_hang_up: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._hub, self._source, self._after, self._caller = hub, source, after, caller
        self._frame = frame
        self._headers = headers(log_id, form.value)
        self._follow = follow
        self._on_hang_up = on_hang_up
        self._write: Write | None = None

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Is served by the :class:`App`, when all that led here has returned."""
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await send({"type": "http.response.body", "more_body": False})
            return
        self._headers = with_added(self._headers, scope["state"].pop("headers"))
        self._write = scope.get("extensions", {}).get(WRITE)
        scope["state"]["stream"] = self

    async def serve(self, receive: Receive, send: Send) -> None:
        """The whole response."""
        headers, self._headers = self._headers, []  # a stream lives for long, and there are thousands
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        del headers
        metrics.STREAMS.inc()
        self._caller.streams.left -= 1
        try:
            with self._hub.view(self._source, self._after, self._caller) as viewer:
                gone = await self._serve(viewer, receive, send)
        finally:
            self._caller.streams.left += 1
            metrics.STREAMS.dec()
        if gone and self._on_hang_up is not None:
            await self._on_hang_up()

    async def _serve(self, viewer: Viewer, receive: Receive, send: Send) -> bool:
        """Sends what there is, up to the end, or until the client hangs up; whether it did."""
        body = self._frame.opening(self._after)
        body += await viewer.chunk(0, self._frame)
        caught_up = False
        body = body or self._frame.keep_alive  # the first bytes are sent at once
        looked = time.monotonic()
        if self._write is not None:
            viewer.writes(self._write, _CHUNKED[self._frame])
        while True:
            over = viewer.ended or caught_up or viewer.dismissed
            if over and self._follow and not viewer.ended:
                body += self._frame.drained()
            if body or over:
                await send({"type": "http.response.body", "body": body, "more_body": not over})
                sent = time.monotonic()
            if over:
                return False
            body = await viewer.chunk(LOOK_S if self._follow else 0, self._frame)
            caught_up = not (body or self._follow or viewer.behind)
            now = time.monotonic()
            if now - looked >= LOOK_S:
                looked = now
                if await hung_up(receive):
                    return True
            if not (body or caught_up) and now - max(sent, viewer.written_at) >= KEEP_ALIVE_S:
                body = self._frame.keep_alive


async def hung_up(receive: Receive) -> bool:
    """Whether the client is gone; does not wait for it to go."""
    with anyio.move_on_after(0):
        while (await receive())["type"] != "http.disconnect":
            pass
        return True
    return False
