"""Lists: filtered, sorted, a page at a time, with an opaque mark that stays right while things are added.

A mark is a place in the sort, not a number of entries: the value by which the last entry of a page is sorted, and the
id of its creation, which no two things share. What comes to be elsewhere moves nothing.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from eventstore import Database
from eventstore.log import FOREVER
from projections.events import StopReason
from service.api import answers
from service.api.query import Flag, Moment, Query, Several, Text, Whole, wrong
from service.api.request import deployment, own
from service.api.shape import Shape
from service.api.snapshots import List
from service.errors import Malformed, UnknownThing

PAGE = 100
PAGE_MAX = 200
KEY_MAX = 1e12
"""Seconds since the epoch and durations in ms are below it; the database takes numbers up to it as either."""


class Mark(NamedTuple):
    """The place of an entry: what it is sorted by, its creation, and in which list that is."""

    key: float | str
    created_id: int
    of: str

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(orjson.dumps(tuple(self))).decode().rstrip("=")


def _mark(text: str) -> Mark:
    try:
        match orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))):
            case [str(key), int(created_id), str(of)] if 0 <= created_id <= FOREVER:
                return Mark(key, created_id, of)
            case [float() | int() as key, int(created_id), str(of)] if 0 <= created_id <= FOREVER:
                return Mark(float(key), created_id, of)
    except ValueError:  # of either decoder
        pass
    raise wrong("must be a mark from an earlier answer")


class Page(Query):
    """A page of a list."""

    limit: Whole = Field(PAGE, ge=1, le=PAGE_MAX, description="How many at most.")
    page: Annotated[Mark, PlainValidator(_mark), WithJsonSchema({"type": "string"})] | None = Field(
        None,
        description="The `next_page` of an earlier answer, with the same filters and the same `sort`; it stays right"
        " while things are added.",
    )
    count: Flag = Field(False, description="Gives `total`: it looks at all that match.")


class Named(Page):
    """How configs and documents are found."""

    q: Text | None = Field(
        None, description="Those with this text in the name, or whose id begins with it, in upper or lower case."
    )
    sort: Literal["-created", "created", "name", "-name"] = Field(
        "-created", description="By what; `-` is downwards. `-created`: newest first."
    )


class Work(Page):
    """What runs and builds are both filtered by. What is given together must all hold."""

    config_id: Text | None = Field(None, description="Those of this config.")
    stop_reason: Several[StopReason] | None = Field(None, description="Those that ended for one of these reasons.")
    created_after: Moment | None = Field(None, description="Those from this moment on: Unix seconds or RFC 3339.")
    created_before: Moment | None = Field(None, description="Those before this moment.")
    q: Text | None = Field(
        None,
        description="Those with this text in the summary, the error message, the config's name or a value of a run's"
        " metadata, or whose id begins with it, in upper or lower case.",
    )
    sort: Literal["-created", "created", "-finished", "finished", "-duration", "duration"] = Field(
        "-created",
        description="By what; `-` is downwards. `-created`: newest first. By `finished` or `duration`, only those that"
        " have one.",
    )


_KEYS = {"created": "created_at", "finished": "finished_at", "duration": "duration_ms", "name": "name"}
"""What holds the value by which a list is sorted."""


class Found(NamedTuple):
    """A page: its rows, the mark after its last one where there are more, and how many match in all, if asked."""

    rows: list[dict[str, Any]]
    next_mark: Mark | None
    total: int | None


@dataclass(frozen=True)
class Listing:
    """What can be listed: by which statement, and by which one of them is shown; with which parameters and shape."""

    statement: str
    single: str
    query: type[Page]
    shape: type[Shape]

    async def one(self, database: Database, name: str) -> dict[str, Any]:
        """The row of this id. Raises UnknownThing."""
        row = await database.row(self.single, id=name)
        if row is None:
            raise UnknownThing(f"There is no {self.single} {name}.")
        return row

    async def find(self, database: Database, query: Page, *, workspaces: list[str] | None = None, **path: str) -> Found:
        """A page of what is in some ``workspaces``, or in any; what the ``path`` of the request says goes before its
        query. Raises Malformed for the mark of another list."""
        asked = query.model_dump(exclude={"page", "limit", "count"})
        filters = {"workspace_id": None, **asked, **path}
        of = hashlib.blake2s(orjson.dumps([self.statement, sorted(filters.items())]), digest_size=8).hexdigest()
        after = query.page
        if after is not None and not (after.of == of and _is_key(after.key, asked["sort"])):
            raise Malformed("`page` must be a mark of this list, with the same filters and sort.", parameter="page")
        rows = await database.planned(
            self.statement,
            **filters,
            workspaces=workspaces,
            key=None if after is None else str(after.key),
            place=None if after is None else after.created_id,
            limit=query.limit + 1,
            count=query.count,
        )
        total = rows[0]["total"]
        rows = [row for row in rows if row["id"] is not None]
        page, more = rows[: query.limit], len(rows) > query.limit
        column = _KEYS[asked["sort"].removeprefix("-")]
        return Found(page, Mark(page[-1][column], page[-1]["created_id"], of) if more else None, total)

    async def answer(self, request: Request, query: Page, **path: str) -> Response:
        """A page of what the caller may see, and where the next one is."""
        found = await self.find(deployment(request).database, query, workspaces=own(request), **path)
        mark, headers = None if found.next_mark is None else str(found.next_mark), {}
        if mark is not None:
            url = request.url.include_query_params(page=mark)
            headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        data = [self.shape.of(row) for row in found.rows]
        return answers.json(List.of({"data": data, "next_page": mark, "total": found.total}), headers=headers)


def _is_key(key: float | str, sort: str) -> bool:
    if isinstance(key, str):
        return sort.endswith("name") and "\x00" not in key
    return not sort.endswith("name") and abs(key) < KEY_MAX
