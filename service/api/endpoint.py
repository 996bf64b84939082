"""One thing that can be asked of the API: how it is reached, who may, what it takes and what it answers.

The app routes by these (:mod:`service.api.routes`), and the description of the API is written from them
(:mod:`service.api.openapi`): nothing is said of an endpoint in a second place.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, get_type_hints

from pydantic import create_model
from starlette.requests import Request
from starlette.types import ASGIApp

from service import errors
from service.api.gate import names_a_thing
from service.api.query import OfLog, Query, parse
from service.api.request import Body, deployment, json_body
from service.api.shape import Shape
from service.api.snapshots import List
from service.api.streams import Form
from service.errors import Refusal
from service.roles import Role

JSON = "application/json"


@dataclass(frozen=True)
class Header:
    """A header that endpoints take or give."""

    name: str
    description: str
    type: str = "string"


@dataclass(frozen=True)
class Lines:
    """A stream of what has one of these shapes, or schemas by their names."""

    items: tuple[str | type[Shape], ...] = ("Event",)

    @property
    def names(self) -> list[str]:
        """How they are called among the schemas."""
        return [item if isinstance(item, str) else item.__name__ for item in self.items]


class Bytes:
    """Content that has no shape of ours."""


@dataclass(frozen=True)
class Answer:
    """What comes back where nothing is refused."""

    status: int
    description: str
    content: Mapping[str, type[Shape] | type[Bytes] | Lines] = field(default_factory=dict)
    headers: tuple[Header, ...] = ()


IDEMPOTENCY_KEY = Header(
    "Idempotency-Key", "Makes it safe to send the request again: for 24 hours the key stands for what it made first."
)
TRACEPARENT = Header("traceparent", "W3C Trace Context: the span that the trace of what is made lies below.")
LAST_EVENT_ID = Header("Last-Event-ID", "With SSE: the cursor, in place of `after_id`. Browsers send it by themselves.")
RANGE = Header("Range", "`bytes=…`, one range; several, or another unit, give the whole.")
IF_RANGE = Header("If-Range", "An `ETag`: the range is given only where it still names these bytes.")
IF_NONE_MATCH = Header("If-None-Match", "An `ETag`: where it still names these bytes, the answer is 304.")
LOCATION = Header("Location", "The path of what the answer shows.")
LINK = Header("Link", 'The whole address of the next page, as `rel="next"`; left out on the last one.')
LOG_ID = Header("ADE-Log-Id", "The log that the ids are of: send it back as `log_id` with your cursor.")
ETAG = Header("ETag", "Names these bytes.")
CONTENT_RANGE = Header("Content-Range", "Which bytes these are, of how many.")
SET_COOKIE = Header("Set-Cookie", "The session; no script can read it.")
RETRY_AFTER = Header("Retry-After", "When to come back, in seconds.", "integer")

RANGES = (RANGE, IF_RANGE, IF_NONE_MATCH)
OVER = Answer(204, "SSE from the terminal event on: there is nothing more, ever. It stops a browser's `EventSource`.")
_FEED = Lines(("Event", "ConsoleLine"))
STREAM: Mapping[str, Lines] = {Form.NDJSON.value: _FEED, Form.SSE.value: _FEED}


def shows(
    shape: type[Shape], description: str = "As asked.", status: int = 200, gives: tuple[Header, ...] = ()
) -> Answer:
    """A JSON document."""
    return Answer(status, description, {JSON: shape}, gives)


def made(shape: type[Shape], description: str = "It is new.", status: int = 201) -> Answer:
    """What was created, or found in its place."""
    return Answer(status, description, {JSON: shape}, (LOCATION,))


@cache
def _list_of(item: type[Shape]) -> type[Shape]:
    """By a name that generated clients can use."""
    return create_model(f"{item.__name__}List", __base__=List[item], __doc__=List.__doc__)  # type: ignore[valid-type]


def lists(item: type[Shape]) -> Answer:
    """A page of a list."""
    return Answer(200, "A page of the list.", {JSON: _list_of(item)}, (LINK,))


def events(page: type[Shape], *, bookmarks: bool = False) -> Answer:
    """Events in every form."""
    lines = dict.fromkeys(
        (Form.NDJSON.value, Form.JSONL.value, Form.SSE.value),
        Lines(("Event", "ConsoleLine", *(["Bookmark"] if bookmarks else []))),
    )
    return Answer(200, "A page, or a stream, by `Accept` and `stream`.", {JSON: page, **lines}, (LOG_ID,))


def finds(page: type[Shape], *lines: str | type[Shape]) -> Answer:
    """What a search finds."""
    streams = dict.fromkeys((Form.NDJSON.value, Form.JSONL.value), Lines(lines))
    return Answer(200, "A page, or a stream, by `Accept`.", {JSON: page, **streams}, (LOG_ID,))


def logfile() -> tuple[Answer, ...]:
    """A log file, whole or in part."""
    return (
        Answer(200, "All of it, as an attachment.", {Form.NDJSON.value: Lines()}, (ETAG,)),
        Answer(206, "The range.", {Form.NDJSON.value: Bytes}, (ETAG, CONTENT_RANGE)),
        Answer(304, "You have it.", {}, (ETAG,)),
    )


def file() -> tuple[Answer, ...]:
    """A file that never changes, with its own media type, whole or in part."""
    return (
        Answer(200, "All of it, as an attachment.", {"*/*": Bytes}, (ETAG,)),
        Answer(206, "The range.", {"*/*": Bytes}, (ETAG, CONTENT_RANGE)),
        Answer(304, "You have it.", {}, (ETAG,)),
    )


@dataclass(frozen=True)
class Endpoint:
    """A method on a path. ``handler`` is called with the request and, where its signature names them, with ``query``
    and ``body``, parsed; its docstring says what it does."""

    name: str
    method: str
    path: str
    handler: Callable[..., Awaitable[ASGIApp]]
    role: Role
    tag: str
    answers: tuple[Answer, ...]
    refusals: tuple[type[Refusal], ...] = ()
    """Those that do not follow from what it takes."""
    takes: tuple[Header, ...] = ()
    uploads: tuple[str, ...] = ()
    """The media types of a raw body."""
    everywhere: bool = False
    """Whether it concerns all workspaces, so that a key for some of them will not do."""

    @cached_property
    def query(self) -> type[Query]:
        """The model of its parameters."""
        found: type[Query] = get_type_hints(self.handler).get("query", Query)
        return found

    @cached_property
    def body(self) -> type[Body] | None:
        """The model of its JSON body."""
        return get_type_hints(self.handler).get("body")

    @property
    def every_refusal(self) -> tuple[type[Refusal], ...]:
        """All that it can answer with, by status."""
        found: set[type[Refusal]] = {errors.Malformed, errors.ForeignOrigin, errors.HeadTooLarge, errors.InternalError}
        found |= set(self.refusals)
        if "{" in self.path or any(names_a_thing(name) for name in self.query.model_fields):
            found.add(errors.UnknownThing)
        if self.role is not Role.PUBLIC:  # those ask nothing of the database
            found |= {errors.TooBusy, errors.UnknownCaller, errors.RoleTooLow, errors.TooManyRequests}
        if self.body is not None:
            found |= {errors.TooLarge, errors.TooSlow, errors.WrongMediaType, errors.Invalid}
        if self.uploads:
            found |= {errors.TooLarge, errors.TooSlow}
        if IDEMPOTENCY_KEY in self.takes:
            found.add(errors.KeyReuse)
        if RANGE in self.takes:
            found.add(errors.RangeNotSatisfiable)
        if issubclass(self.query, OfLog):
            found |= {errors.CursorAhead, errors.OtherLog, errors.CursorGone}
        return tuple(sorted(found, key=lambda kind: (kind.status, kind.slug)))

    async def answer(self, request: Request) -> ASGIApp:
        """Every request passes here, and the gate before anything else of it is read.

        A middleware finds the endpoint of a route as ``route.endpoint.__self__``.
        """
        given: dict[str, Any] = {}
        if self.role is not Role.PUBLIC:
            await deployment(request).gate.admit(request, self.role, everywhere=self.everywhere)
        query = parse(request, self.query)
        if self.query is not Query:
            given["query"] = query
        if self.body is not None:
            given["body"] = await json_body(request, self.body)
        return await self.handler(request, **given)
