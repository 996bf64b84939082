"""The lines of a run or a build that carry a message, for people."""

from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from projections.events import OutputName
from service.api import answers
from service.api.feeds import feed_of
from service.api.query import Cursor, Whole
from service.api.request import deployment
from service.api.shape import Shape
from service.api.streams import Form, cursor
from service.errors import Malformed

LOG_ENTRIES = 1_000


class LogsQuery(Cursor):
    """Which lines: after a cursor, or the last ones."""

    limit: Whole = Field(LOG_ENTRIES, ge=1, le=LOG_ENTRIES, description="How many at most.")
    tail: Whole = Field(0, ge=0, le=LOG_ENTRIES, description="The last so many. Not together with `after_id`.")


class LogEntry(Shape):
    """A line; the parts of a long one are entries of their own."""

    id: int = Field(description="That of the event.")
    created: int = Field(description="Unix seconds.")
    stream: OutputName | None
    level: str | None = Field(description="The one that the engine gave.")
    message: str


class _Logs(Shape):
    object: str
    entries: list[LogEntry]
    next_after_id: int | None = Field(
        description="The cursor for the next page. `null`: nothing more now; come back with the last entry's `id`."
    )


class RunLogs(_Logs):
    """Lines of a run."""

    object: Literal["ade.run.logs"] = "ade.run.logs"
    run_id: str


class BuildLogs(_Logs):
    """Lines of a build."""

    object: Literal["ade.build.logs"] = "ade.build.logs"
    build_id: str


async def run_logs(request: Request, query: LogsQuery) -> Response:
    """Read the output of a run, for people.

    Its `run.log` events and those `engine.*` events that have a `message`, without the events of its build.
    """
    return await _logs(request, query, "run", RunLogs)


async def build_logs(request: Request, query: LogsQuery) -> Response:
    """Read the output of a build, for people."""
    return await _logs(request, query, "build", BuildLogs)


async def _logs(request: Request, query: LogsQuery, kind: str, shape: type[Shape]) -> Response:
    found = deployment(request)
    feed, _ = await feed_of(found, kind, request.path_params["id"])
    after = await cursor(request, query, found.log, found.log_id, Form.PAGE)
    if query.tail:
        if "after_id" in query.model_fields_set:
            raise Malformed("`tail` counts from the end and `after_id` from a cursor: give one.", parameter="tail")
        rows = await found.database.rows("last_log_entries", stream=feed.stream, limit=query.tail)
        entries, more = rows[::-1], False
    else:
        rows = await found.database.rows("log_entries", stream=feed.stream, after=after, limit=query.limit + 1)
        entries, more = rows[: query.limit], len(rows) > query.limit
    document: dict[str, Any] = {
        f"{kind}_id": feed.stream,
        "entries": entries,
        "next_after_id": entries[-1]["id"] if more else None,
    }
    return answers.json(shape.of(document), headers={"ADE-Log-Id": found.log_id})
