"""The lines of a run or a build that carry a message, for people."""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.api.feeds import feed_of
from service.api.request import deployment, integer
from service.api.streams import Form, cursor
from service.errors import Malformed

LOG_ENTRIES = 1_000


async def run_logs(request: Request) -> Response:
    """The lines of a run that carry a message."""
    return await _logs(request, "run")


async def build_logs(request: Request) -> Response:
    """The lines of a build that carry a message."""
    return await _logs(request, "build")


async def _logs(request: Request, kind: str) -> Response:
    found = deployment(request)
    feed, _ = await feed_of(found, kind, request.path_params["id"])
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
