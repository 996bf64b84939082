"""The search in the lines of a run or a build: a page of matches, or all of them as they are found."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from eventstore import encode
from projections.entries import Entries, Found
from service.api import answers
from service.api.deployment import Deployment
from service.api.logs import LOG_ENTRIES, LogEntry, entries_of
from service.api.query import Cursor, Flag, Text, Whole
from service.api.request import caller, deployment
from service.api.shape import Shape
from service.api.streams import NDJSON_FRAME, Form, Streamed, cursor, headers, hung_up, wanted_form
from service.hub import Hub
from service.keys import Caller

EXAMINED_EVENTS = 200_000
"""What one page looks at, at the most: it takes about as long as a person waits for without a thought."""


class SearchQuery(Cursor):
    """What to look for."""

    q: Text = Field(
        "", description="A text, as it stands in the message; no pattern. An empty one is in every message."
    )
    ignore_case: Flag = Field(False, description="Whether `a` also finds `A`.")
    limit: Whole = Field(100, ge=1, le=LOG_ENTRIES, description="Of a page: how many matches at most.")


class LogMatch(LogEntry):
    """A line that was looked for."""

    object: Literal["ade.log.match"] = "ade.log.match"
    at: int = Field(description="How many characters (Unicode code points) of the message stand before it.")


class SearchSummary(Shape):
    """The last line of a search that came to its end."""

    object: Literal["ade.log.search"] = "ade.log.search"
    matches: int = Field(description="How many entries were found, after `after_id`.")
    examined: int = Field(description="How many events of the run or build were looked at.")
    upto_id: int = Field(description="The event up to which these are all: the newest one when the search began.")


class _Search(Shape):
    object: str
    entries: list[LogMatch] = Field(description="In order; a page of 200,000 events without one is empty.")
    examined: int = Field(description="How many events of the run or build were looked at.")
    next_after_id: int | None = Field(description="The cursor to go on from. `null`: that was all up to now.")


class RunSearch(_Search):
    """A page of matches in a run."""

    object: Literal["ade.run.search"] = "ade.run.search"
    run_id: str


class BuildSearch(_Search):
    """A page of matches in a build."""

    object: Literal["ade.build.search"] = "ade.build.search"
    build_id: str


async def run_search(request: Request, query: SearchQuery) -> ASGIApp:
    """Search the output of a run.

    The lines of `GET /runs/{id}/logs` whose message holds a text, as a person reads it: quotes, backslashes and other
    scripts included. A page looks at a bounded number of lines. `Accept: application/x-ndjson` gives each match when
    it is found, bookmarks on the way, and at the end how many there are; that end is where the log stood at the
    beginning. Hanging up stops the search; any bookmark or match is a cursor to go on from.
    """
    return await _search(request, query, "run", RunSearch)


async def build_search(request: Request, query: SearchQuery) -> ASGIApp:
    """Search the output of a build."""
    return await _search(request, query, "build", BuildSearch)


async def _search(request: Request, query: SearchQuery, kind: str, shape: type[Shape]) -> ASGIApp:
    found = deployment(request)
    after = await cursor(request, query, found.log, found.log_id, Form.PAGE)
    entries = await entries_of(found, kind, request.path_params["id"])
    form = wanted_form(request, Streamed())
    if form in {Form.NDJSON, Form.JSONL}:
        return SearchStream(found.hub, found.log_id, entries, query, after, caller(request), form)
    return await _page(found, entries, query, after, kind, shape)


def _steps(entries: Entries, query: SearchQuery, after: int) -> AsyncIterator[Found]:
    return entries.search(query.q, after, entries.stream.last_id, ignore_case=query.ignore_case)


async def _page(
    found: Deployment, entries: Entries, query: SearchQuery, after: int, kind: str, shape: type[Shape]
) -> Response:
    matches: list[Any] = []
    begin, reached = await entries.seq_after(after), after
    async for step in _steps(entries, query, after):
        matches += step.matches
        reached = step.upto
        if len(matches) >= query.limit:
            reached = reached if len(matches) == query.limit else matches[query.limit - 1].entry.id
            break
        if await entries.seq_after(reached) - begin >= EXAMINED_EVENTS:
            break
    document = {
        f"{kind}_id": entries.stream.stream,
        "entries": [LogMatch.of(match.members()) for match in matches[: query.limit]],
        "examined": await entries.seq_after(reached) - begin,
        "next_after_id": reached if reached < entries.stream.last_id else None,
    }
    return answers.json(shape.of(document), headers={"ADE-Log-Id": found.log_id})


@dataclass(frozen=True)
class SearchStream:
    """The response that follows a search: a line for each match, and whatever else says how far it came."""

    hub: Hub
    log_id: str
    entries: Entries
    query: SearchQuery
    after: int
    caller: Caller
    form: Form = Form.NDJSON

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers(self.log_id, self.form.value)})
        matches, upto = 0, self.after
        async for step in _steps(self.entries, self.query, self.after):
            matches, upto = matches + len(step.matches), step.upto
            lines = [encode(LogMatch.of(match.members())) + b"\n" for match in step.matches]
            body = b"".join(lines) + NDJSON_FRAME.bookmark(upto)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            # Only between two steps is there a moment to look, and a step is short.
            dismissed = self.caller.over or self.hub.draining
            if scope["method"] == "HEAD" or dismissed or await hung_up(receive):
                await send({"type": "http.response.body", "more_body": False})
                return
        examined = await self.entries.seq_after(upto) - await self.entries.seq_after(self.after)
        summary = SearchSummary.of({"matches": matches, "examined": examined, "upto_id": upto})
        await send({"type": "http.response.body", "body": orjson.dumps(summary) + b"\n", "more_body": False})
