"""Events and log file of a run or a build, which have them in common; and the events of the whole log."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from eventstore import Feed, Line
from eventstore.event import WORKSPACE
from eventstore.log import FOREVER
from eventstore.selection import Selection
from projections import feeds
from projections.events import registry
from projections.feeds import FeedFound
from service.api import logfile
from service.api.console_lines import as_console
from service.api.deployment import Deployment
from service.api.query import Cursor, Flag, Text, Whole, wrong
from service.api.request import caller, deployment, own
from service.api.shape import Shape
from service.api.streams import Form, Stream, Streamed, check_room, cursor, frame_of, wanted_form
from service.errors import Malformed, TooManyRequests, UnknownThing
from service.ring import Source

EVENT, CONSOLE_LINE = "#/components/schemas/Event", "#/components/schemas/ConsoleLine"
PAGE_LINES = 1_000
WAIT_S = 30
TYPES_CHARACTERS = 2_000
ENGINE_TYPE = re.compile(r"engine(\.[a-z0-9_]{1,64}){0,7}(\.[a-z0-9_]{1,64}|\.\*)\Z")
"""What an engine may call its events (service/work/lines.py), or a family of these."""


class EventsQuery(Cursor, Streamed):
    """From where on, and in which form."""

    stream: Flag = Field(
        False, description="Follow: SSE, or NDJSON where `Accept` names it; `Accept: text/event-stream` alone follows."
    )
    limit: Whole = Field(100, ge=1, le=PAGE_LINES, description="Of a page: how many events at most.")
    wait: Whole = Field(
        0, ge=0, le=WAIT_S, description="Of a page: seconds for which an empty one is held back, until there is more."
    )


def _workspace(name: str) -> str:
    if not WORKSPACE.match(name):
        raise wrong(f"is no name that a workspace can have: {name!r}")
    return name


def _types(wanted: str) -> str:
    """The wanted types, each once and in order, so that the same wish is the same selection. A family that the service
    writes stands for its members; what engines may write has no end."""
    types: set[str] = set()
    for name in wanted.split(","):
        members = {wire for wire in registry if name.endswith(".*") and wire.startswith(name[:-1])}
        if not members and name not in registry and not ENGINE_TYPE.match(name):
            raise wrong(
                f"has a type that no event can have: {name!r}. Give types as the reference of events lists them, or"
                " families such as run.* and engine.*, with commas between them"
            )
        types |= members or {name}
    return ",".join(sorted(types))


class LogEventsQuery(EventsQuery):
    """Which events of the whole log. What is given together must all hold."""

    types: Annotated[str, Field(max_length=TYPES_CHARACTERS), AfterValidator(_types)] | None = Field(
        None,
        description="Those of these types, with commas between them: `run.started,run.completed`, or whole families:"
        " `run.*,engine.*`.",
    )
    workspace_id: Annotated[str, AfterValidator(_workspace)] | None = Field(
        None, description="Those of this workspace: its configs, documents, builds and runs."
    )
    run_id: Text | None = Field(None, description="Those of this run, without those of its build.")
    build_id: Text | None = Field(None, description="Those of this build. Not together with `run_id`.")


class EventPage(Shape):
    """A page of events."""

    object: Literal["list"] = "list"
    data: list[Annotated[dict[str, Any], WithJsonSchema({"anyOf": [{"$ref": EVENT}, {"$ref": CONSOLE_LINE}]})]] = Field(
        description="The events, or `console.line`s; empty where there is nothing more now."
    )
    next_after_id: int = Field(
        description="The cursor for the next page. With a filter: the event up to which the log was examined, so read"
        " on while it grows."
    )


async def feed_of(found: Deployment, kind: str, name: str) -> FeedFound:
    """The feed of a run or a build. Raises UnknownThing."""
    shown = await feeds.feed_of(found.database, name) if name.startswith(f"{kind}_") else None
    if shown is None:
        raise UnknownThing(f"There is no {kind} {name}.")
    return shown


async def _events(request: Request, query: EventsQuery, kind: str) -> Any:
    found = deployment(request)
    shown = await feed_of(found, kind, request.path_params["id"])
    return await _answer(request, query, found, shown.feed)


async def _answer(request: Request, query: EventsQuery, found: Deployment, source: Source) -> Any:
    """The events of a source in the form that is asked for."""
    form = wanted_form(request, query)
    after = await cursor(request, query, found.log, found.log_id, form)
    if form is Form.PAGE:
        return await _page(request, query, found, source, after)
    follow = form is Form.SSE or query.stream
    ended_id = source.ended_id if isinstance(source, Feed) else None
    if form is Form.SSE and ended_id is not None and after >= ended_id:
        return Response(status_code=204)  # this, and only this, stops a browser's EventSource from coming back
    frame, by = frame_of(query, form), caller(request)
    try:
        check_room(by)
    except TooManyRequests:
        if form is not Form.SSE:
            raise
        return Response(frame.drained(), headers={"ADE-Log-Id": found.log_id}, media_type=form.value)
    return Stream(found.hub, source, after, form, frame, found.log_id, by, follow=follow)


async def _page(request: Request, query: EventsQuery, found: Deployment, source: Source, after: int) -> Response:
    page: Sequence[Line]
    if query.wait:
        with found.hub.view(source, after, caller(request)) as viewer:
            page = await viewer.page(query.wait, query.limit)
        reached = viewer.after
    else:  # who polls is no viewer: nothing is kept up for the moment, and nobody else is woken
        page, reached, _ = await found.hub.read(source, after, query.limit)
        reached = max(reached, page.last_id)
    shown = page if query.logs == "events" else map(as_console, page)
    lines = b",".join([line.line for line in shown])
    body = b'{"object":"list","data":[%b],"next_after_id":%d}' % (lines, reached)
    return Response(body, media_type=Form.PAGE.value, headers={"ADE-Log-Id": found.log_id, "Cache-Control": "no-store"})


async def log_events(request: Request, query: LogEventsQuery) -> Any:
    """Read or follow the whole log.

    All of it, or what passes a filter: a page, NDJSON or SSE. The whole log has no end, and neither has its stream. A
    run or a build that is not there is 404; a workspace that is not there is an empty log: it may come.
    """
    found = deployment(request)
    return await _answer(request, query, found, await _selection(request, query, found))


async def _selection(request: Request, query: LogEventsQuery, found: Deployment) -> Selection:
    asked = {"run": query.run_id, "build": query.build_id}
    streams = {kind: stream for kind, stream in asked.items() if stream is not None}
    if len(streams) > 1:
        raise Malformed("No event is of a run and of a build: give `run_id` or `build_id`.", parameter="build_id")
    for kind, stream in streams.items():
        await feed_of(found, kind, stream)
    types = None if query.types is None else tuple(query.types.split(","))
    control = types is not None and all(name in registry and not registry[name].bulk for name in types)
    workspaces = own(request) if query.workspace_id is None else [query.workspace_id]
    return Selection(types, control, None if workspaces is None else tuple(workspaces), *streams.values())


async def _logfile(request: Request, kind: str) -> Any:
    found = deployment(request)
    feed, workspace, last_id = await feed_of(found, kind, request.path_params["id"])
    upto = min(last_id, FOREVER if feed.ended_id is None else feed.ended_id)
    path = found.files.logfile(workspace, feed.stream)
    return await logfile.answer(request, found.log, feed, upto, path)


async def run_events(request: Request, query: EventsQuery) -> Any:
    """Read or follow what happens to a run.

    Its own events and those of its build in the time of the run, by `id`: a page, NDJSON or SSE, by `Accept` and
    `stream`. The stream ends after the run's terminal event.
    """
    return await _events(request, query, "run")


async def build_events(request: Request, query: EventsQuery) -> Any:
    """Read or follow what happens to a build.

    A page, NDJSON or SSE, by `Accept` and `stream`. The stream ends after the build's terminal event.
    """
    return await _events(request, query, "build")


async def run_logfile(request: Request) -> Any:
    """Download the log file of a run.

    `events.ndjson`: the NDJSON stream of the run up to now, also while it goes on. The file only grows, so `If-Range`
    with any earlier `ETag` continues a download that broke off. Without a range, `Accept-Encoding: gzip` is obeyed.
    """
    return await _logfile(request, "run")


async def build_logfile(request: Request) -> Any:
    """Download the log file of a build."""
    return await _logfile(request, "build")


async def stream_of(
    found: Deployment, request: Request, query: Streamed, stream: str, *, on_hang_up: Any = None
) -> Stream:
    """The feed of something that was just created, from its first event: NDJSON, unless SSE is named in ``Accept``."""
    feed = (await feed_of(found, stream.partition("_")[0], stream)).feed
    form = Form.SSE if Form.SSE.value in request.headers.get("accept", "").lower() else Form.NDJSON
    frame, by = frame_of(query, form), caller(request)
    return Stream(found.hub, feed, feed.first_id - 1, form, frame, found.log_id, by, on_hang_up=on_hang_up)
