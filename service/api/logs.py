"""The lines of a run or a build that carry a message, for people, from any place of its log."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from eventstore.errors import StoreBug
from eventstore.log import FOREVER
from eventstore.random_access import place_of_id, place_of_seq, place_of_time
from projections.entries import Entries, Window
from projections.events import OutputName
from service.api import answers
from service.api.deployment import Deployment
from service.api.feeds import feed_of
from service.api.query import Cursor, Moment, Whole, whole
from service.api.request import deployment
from service.api.shape import Shape
from service.api.streams import Form, cursor
from service.errors import Malformed

LOG_ENTRIES = 1_000
PLACES = ("after_id", "before_id", "tail", "around", "around_seq", "around_time")
"""The ways to say where; one at a time."""

_Id = Annotated[int, Field(ge=1, le=FOREVER), BeforeValidator(whole)]


class LogsQuery(Cursor):
    """Which lines. Of `after_id`, `before_id`, `tail` and `around…` one may be given."""

    limit: Whole = Field(LOG_ENTRIES, ge=1, le=LOG_ENTRIES, description="How many at most.")
    before_id: _Id | None = Field(None, description="The last ones before this event.")
    tail: Annotated[int, Field(ge=1, le=LOG_ENTRIES), BeforeValidator(whole)] | None = Field(
        None, description="The last so many."
    )
    around: _Id | None = Field(
        None, description="Half of them before this event, half from it on. Behind the end stands for the end."
    )
    around_seq: _Id | None = Field(
        None,
        description="The same around the event of this number: for a scroll bar, `last_seq` times where it stands.",
    )
    around_time: Moment | None = Field(
        None, description="The same around the first event at this time or later: Unix seconds or RFC 3339."
    )


class LogEntry(Shape):
    """A line; the parts of a long one are entries of their own."""

    id: int = Field(description="That of the event.")
    seq: int = Field(description="Its number among all events of the run or build.")
    created: int = Field(description="Unix seconds.")
    stream: OutputName | None
    level: str | None = Field(description="The one that the engine gave.")
    message: str


class _Logs(Shape):
    object: str
    entries: list[LogEntry] = Field(description="In order. Those in 1 MiB of log at the most, so they may be fewer.")
    next_after_id: int | None = Field(
        description="The cursor for the next page. `null`: nothing more now; come back with the last entry's `id`."
    )
    previous_before_id: int | None = Field(
        description="The `before_id` of the page before this one. `null`: there is none."
    )
    around_index: int | None = Field(
        description="With `around…`: the place in `entries` of the first one that is not before it."
    )
    first_id: int = Field(description="The first event of the run or build.")
    last_id: int = Field(description="Its newest event.")
    last_seq: int = Field(
        description="How many events it has: `seq` of an entry, of this, is where a scroll bar stands."
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

    Its `run.log` events and those `engine.*` events that have a `message`, without the events of its build: after an
    event, before one, the last ones, or around any place, however long the log is.
    """
    return await _logs(request, query, "run", RunLogs)


async def build_logs(request: Request, query: LogsQuery) -> Response:
    """Read the output of a build, for people."""
    return await _logs(request, query, "build", BuildLogs)


async def _logs(request: Request, query: LogsQuery, kind: str, shape: type[Shape]) -> Response:
    found = deployment(request)
    await cursor(request, query, found.log, found.log_id, Form.PAGE)
    entries = await entries_of(found, kind, request.path_params["id"])
    window = await _window(found, entries, query)
    document = {
        f"{kind}_id": entries.stream.stream,
        "entries": window.entries,
        "next_after_id": window.after_id,
        "previous_before_id": window.before_id,
        "around_index": window.index,
        "first_id": entries.stream.first_id,
        "last_id": entries.stream.last_id,
        "last_seq": entries.stream.last_seq,
    }
    return answers.json(shape.of(document), headers={"ADE-Log-Id": found.log_id})


async def entries_of(found: Deployment, kind: str, name: str) -> Entries:
    """The entries of a run or a build. Raises UnknownThing."""
    await feed_of(found, kind, name)
    stream = await found.log.stream(name)
    if stream is None:
        raise StoreBug(reason="a feed without a stream", stream=name)
    return Entries(found.log, stream)


async def _window(found: Deployment, entries: Entries, query: LogsQuery) -> Window:
    given = [name for name in PLACES if name in query.model_fields_set]
    if len(given) > 1:
        both = f"`{given[0]}` and `{given[1]}` are two places: give one."
        raise Malformed(both, parameter=given[1])
    database, stream = found.database, entries.stream.stream
    if query.tail is not None:
        return await entries.before(entries.end, query.tail)
    if query.before_id is not None:
        return await entries.before(await place_of_id(database, stream, query.before_id), query.limit)
    if query.around is not None:
        return await entries.around(await place_of_id(database, stream, query.around), query.limit)
    if query.around_seq is not None:
        return await entries.around(await place_of_seq(database, stream, query.around_seq), query.limit)
    if query.around_time is not None:
        return await entries.around(await place_of_time(database, stream, query.around_time), query.limit)
    return await entries.after(query.after_id, query.limit)
