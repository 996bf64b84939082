"""What runs and builds have in common: events, logs, log file, for the feed of either."""

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from eventstore import Feed
from service.api import logfile
from service.api.deployment import Deployment
from service.api.request import FOREVER, deployment, integer
from service.api.streams import Form, Stream, cursor, frame_of, wanted_form
from service.errors import Malformed, UnknownThing

PAGE_LINES = 1_000
WAIT_S = 30
LOG_ENTRIES = 1_000


async def _feed(found: Deployment, stream: str) -> tuple[Feed, dict[str, Any]]:
    kind = stream.split("_", 1)[0]
    row = await found.database.row(f"feed_of_{kind}", stream=stream) if kind in {"run", "build"} else None
    if row is None:
        raise UnknownThing(f"There is no {kind} {stream}.")
    return Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"]), row


def _id(request: Request, kind: str) -> str:
    found: str = request.path_params["id"]
    if not found.startswith(f"{kind}_"):
        raise UnknownThing(f"There is no {kind} {found}.")
    return found


async def _events(request: Request, kind: str) -> Any:
    found = deployment(request)
    feed, _ = await _feed(found, _id(request, kind))
    form = wanted_form(request)
    after = await cursor(request, found.log, found.log_id, form)
    if form is Form.PAGE:
        return await _page(request, found, feed, after)
    follow = form is Form.SSE or request.query_params.get("stream") in {"true", "1"}
    if form is Form.SSE and feed.ended_id is not None and after >= feed.ended_id:
        return Response(status_code=204)  # this, and only this, stops a browser's EventSource from coming back
    return Stream(found.hub, feed, after, form, frame_of(request, form), found.log_id, follow=follow)


async def _page(request: Request, found: Deployment, feed: Feed, after: int) -> Response:
    limit = integer(request, "limit", 100, 1, PAGE_LINES)
    wait_s = integer(request, "wait", 0, 0, WAIT_S)
    with found.hub.view(feed, after) as viewer:
        page = await viewer.page(wait_s, limit)
    lines = b",".join([line.line for line in page])
    body = b'{"object":"list","data":[%b],"next_after_id":%d}' % (lines, page[-1].id if page else after)
    return Response(body, media_type=Form.PAGE.value, headers={"ADE-Log-Id": found.log_id, "Cache-Control": "no-store"})


async def _logs(request: Request, kind: str) -> Response:
    found = deployment(request)
    feed, _ = await _feed(found, _id(request, kind))
    after = await cursor(request, found.log, found.log_id, Form.PAGE)
    limit = integer(request, "limit", LOG_ENTRIES, 1, LOG_ENTRIES)
    tail = integer(request, "tail", 0, 0, LOG_ENTRIES)
    if tail:
        if "after_id" in request.query_params:
            raise Malformed("`tail` counts from the end and `after_id` from a cursor: give one.", parameter="tail")
        rows = await found.database.rows("last_log_entries", stream=feed.stream, limit=tail)
        entries, more = rows[::-1], False
    else:
        rows = await found.database.rows("log_entries", stream=feed.stream, after=after, limit=limit + 1)
        entries, more = rows[:limit], len(rows) > limit
    document = {
        "object": f"ade.{kind}.logs",
        f"{kind}_id": feed.stream,
        "entries": entries,
        "next_after_id": entries[-1]["id"] if more else None,
    }
    return Response(orjson.dumps(document), media_type="application/json", headers={"ADE-Log-Id": found.log_id})


async def _logfile(request: Request, kind: str) -> Any:
    found = deployment(request)
    feed, row = await _feed(found, _id(request, kind))
    upto = min(row["last_id"], FOREVER if feed.ended_id is None else feed.ended_id)
    path = found.files.logfile(row["workspace"], feed.stream)
    return await logfile.answer(request, found.log, feed, upto, path)


async def run_events(request: Request) -> Any:
    """A run's feed: a page, NDJSON or SSE."""
    return await _events(request, "run")


async def build_events(request: Request) -> Any:
    """A build's feed: a page, NDJSON or SSE."""
    return await _events(request, "build")


async def run_logs(request: Request) -> Response:
    """The lines of a run that carry a message."""
    return await _logs(request, "run")


async def build_logs(request: Request) -> Response:
    """The lines of a build that carry a message."""
    return await _logs(request, "build")


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
