"""The heads of requests and answers: what every answer says, to whom of other origins, and how long a head may be."""

import re

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventstore.clock import ulid
from service.api.problems import problem
from service.errors import HeadTooLarge

HEAD_MAX_BYTES = 32 * 1024
"""Of the address and all headers of a request together."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")

SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),  # a signed address must not travel on
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"private, no-cache"),  # no cache between us, and none that is believed without asking us
)
"""On every answer that says nothing else of it."""

_EXPOSED = b"ADE-Log-Id, Content-Disposition, Content-Range, ETag, Link, Location, Retry-After, X-Request-ID"
_ALLOWED = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, If-None-Match, If-Range,"
    " Last-Event-ID, Range, X-API-Key, X-Request-ID",
    "Access-Control-Max-Age": "600",
}

Raw = list[tuple[bytes, bytes]]


class Heads:
    """Adds ``X-Request-ID`` to every answer, the headers above, and what CORS needs for ``origins`` that are let in.

    A stream is answered when this has returned (``service.api.streams.App``), and a bug outside of it: they take the
    headers from the scope's state.
    """

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope)
        request_id = given.get("x-request-id", "")
        if not REQUEST_ID.match(request_id):
            request_id = ulid()
        added = [(b"x-request-id", request_id.encode()), *SECURITY, *self._cors(given)]
        state = scope.setdefault("state", {})
        state["request_id"], state["headers"] = request_id, added

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = with_added(message["headers"], added)
            await send(message)

        return await self._answer(scope, given)(scope, receive, send_with_headers)

    def _answer(self, scope: Scope, given: Headers) -> ASGIApp:
        size = len(scope["path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in given.raw)
        if size > HEAD_MAX_BYTES:
            return problem(
                HeadTooLarge(f"Address and headers may have {HEAD_MAX_BYTES} bytes.", most_bytes=HEAD_MAX_BYTES)
            )
        asks_first = scope["method"] == "OPTIONS" and "access-control-request-method" in given
        if asks_first and given.get("origin") in self._origins:
            return Response(status_code=204, headers=_ALLOWED)
        return self._app

    def _cors(self, given: Headers) -> Raw:
        if not self._origins:
            return []
        origin = given.get("origin", "")
        if origin not in self._origins:
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-expose-headers", _EXPOSED),
        ]


def with_added(headers: Raw, added: Raw) -> Raw:
    """The headers of an answer, and those of ``added`` of which it says nothing itself."""
    own = {name for name, _ in headers}
    return [*headers, *(header for header in added if header[0] not in own)]
