"""Events and log file of a run or a build, which have them in common; and the events of the whole log."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from eventstore import Feed
from eventstore.event import WORKSPACE
from eventstore.selection import Selection
from projections.events import registry
from service.api import logfile
from service.api.deployment import Deployment
from service.api.request import FOREVER, deployment, flag, integer, text
from service.api.streams import Form, Stream, cursor, frame_of, wanted_form
from service.errors import Malformed, UnknownThing
from service.hub import Source

PAGE_LINES = 1_000
WAIT_S = 30
TYPES_CHARACTERS = 2_000
ENGINE_TYPE = re.compile(r"engine(\.[a-z0-9_]{1,64}){0,7}(\.[a-z0-9_]{1,64}|\.\*)\Z")
"""What an engine may call its events (service/work/lines.py), or a family of these."""


async def _feed(found: Deployment, stream: str) -> tuple[Feed, dict[str, Any]]:
    kind = stream.split("_", 1)[0]
    row = await found.database.row(f"feed_of_{kind}", stream=stream) if kind in {"run", "build"} else None
    if row is None:
        raise UnknownThing(f"There is no {kind} {stream}.")
    return Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"]), row


async def feed_of(found: Deployment, kind: str, name: str) -> tuple[Feed, dict[str, Any]]:
    """The feed of a run or a build, and its row. Raises UnknownThing."""
    if not name.startswith(f"{kind}_"):
        raise UnknownThing(f"There is no {kind} {name}.")
    return await _feed(found, name)


async def _events(request: Request, kind: str) -> Any:
    found = deployment(request)
    feed, _ = await feed_of(found, kind, request.path_params["id"])
    return await _answer(request, found, feed)


async def _answer(request: Request, found: Deployment, source: Source) -> Any:
    """The events of a source in the form that is asked for."""
    form = wanted_form(request)
    after = await cursor(request, found.log, found.log_id, form)
    if form is Form.PAGE:
        return await _page(request, found, source, after)
    follow = form is Form.SSE or flag(request, "stream")
    ended_id = source.ended_id if isinstance(source, Feed) else None
    if form is Form.SSE and ended_id is not None and after >= ended_id:
        return Response(status_code=204)  # this, and only this, stops a browser's EventSource from coming back
    return Stream(found.hub, source, after, form, frame_of(request, form), found.log_id, follow=follow)


async def _page(request: Request, found: Deployment, source: Source, after: int) -> Response:
    limit = integer(request, "limit", 100, 1, PAGE_LINES)
    wait_s = integer(request, "wait", 0, 0, WAIT_S)
    with found.hub.view(source, after) as viewer:
        page = await viewer.page(wait_s, limit)
    lines = b",".join([line.line for line in page])
    body = b'{"object":"list","data":[%b],"next_after_id":%d}' % (lines, viewer.after)
    return Response(body, media_type=Form.PAGE.value, headers={"ADE-Log-Id": found.log_id, "Cache-Control": "no-store"})


async def log_events(request: Request) -> Any:
    """The whole log, or what of it passes a filter: a page, NDJSON or SSE."""
    found = deployment(request)
    return await _answer(request, found, await _selection(request, found))


async def _selection(request: Request, found: Deployment) -> Selection:
    workspace = request.query_params.get("workspace_id")
    if workspace is not None and not WORKSPACE.match(workspace):
        raise Malformed(f"`workspace_id`: there can be no workspace {workspace!r}.", parameter="workspace_id")
    streams = {kind: id_ for kind in ("run", "build") if (id_ := text(request, f"{kind}_id")) is not None}
    if len(streams) > 1:
        raise Malformed("No event is of a run and of a build: give `run_id` or `build_id`.", parameter="build_id")
    for kind, stream in streams.items():
        await feed_of(found, kind, stream)
    types = _types(request)
    control = types is not None and all(name in registry and not registry[name].bulk for name in types)
    return Selection(types, control, workspace, *streams.values())


def _types(request: Request) -> tuple[str, ...] | None:
    """The wanted types, each once and in order, so that the same wish is the same selection. A family that the service
    writes stands for its members; what engines may write has no end."""
    wanted = text(request, "types", most=TYPES_CHARACTERS)
    if wanted is None:
        return None
    types: set[str] = set()
    for name in wanted.split(","):
        members = {wire for wire in registry if name.endswith(".*") and wire.startswith(name[:-1])}
        if not members and name not in registry and not ENGINE_TYPE.match(name):
            raise Malformed(
                f"`types`: no event can have the type {name!r}. Give types as the reference of events lists them, or"
                " families such as run.* and engine.*, with commas between them.",
                parameter="types",
            )
        types |= members or {name}
    return tuple(sorted(types))


async def _logfile(request: Request, kind: str) -> Any:
    found = deployment(request)
    feed, row = await feed_of(found, kind, request.path_params["id"])
    upto = min(row["last_id"], FOREVER if feed.ended_id is None else feed.ended_id)
    path = found.files.logfile(row["workspace"], feed.stream)
    return await logfile.answer(request, found.log, feed, upto, path)


async def run_events(request: Request) -> Any:
    """A run's feed: a page, NDJSON or SSE."""
    return await _events(request, "run")


async def build_events(request: Request) -> Any:
    """A build's feed: a page, NDJSON or SSE."""
    return await _events(request, "build")


async def run_logfile(request: Request) -> Any:
    """``events.ndjson`` of a run."""
    return await _logfile(request, "run")


async def build_logfile(request: Request) -> Any:
    """``events.ndjson`` of a build."""
    return await _logfile(request, "build")


async def stream_of(found: Deployment, request: Request, stream: str, *, on_hang_up: Any = None) -> Stream:
    """The feed of something that was just created, from its first event: NDJSON, unless SSE is named in ``Accept``."""
    feed, _ = await _feed(found, stream)
    form = Form.SSE if Form.SSE.value in request.headers.get("accept", "").lower() else Form.NDJSON
    return Stream(
        found.hub, feed, feed.first_id - 1, form, frame_of(request, form), found.log_id, on_hang_up=on_hang_up
    )
