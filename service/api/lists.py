"""Lists, newest first: a page at a time, with an opaque mark that stays right while things are added."""

import base64
import binascii
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from service.api import answers
from service.api.query import FOREVER, Moment, Query, Text, Whole, wrong
from service.api.request import deployment, own
from service.api.shape import Shape
from service.api.snapshots import List

PAGE = 100
PAGE_MAX = 200


def _mark(page: Any) -> str:
    try:
        number = _place(page)
    except (binascii.Error, ValueError):
        number = -1
    if not 0 <= number <= FOREVER:
        raise wrong("must be a mark from an earlier answer")
    return str(page)


def _place(page: str) -> int:
    return int(base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)).decode("ascii"))


class Page(Query):
    """A page of a list."""

    limit: Whole = Field(PAGE, ge=1, le=PAGE_MAX, description="How many at most.")
    page: Annotated[str, BeforeValidator(_mark)] | None = Field(
        None, description="The `next_page` of an earlier answer; it stays right while things are added."
    )


class Work(Page):
    """What runs and builds are both filtered by. What is given together must all hold."""

    config_id: Text | None = Field(None, description="Those of this config.")
    created_after: Moment | None = Field(None, description="Those from this moment on: Unix seconds or RFC 3339.")
    created_before: Moment | None = Field(None, description="Those before this moment.")
    q: Text | None = Field(
        None,
        description="Those with this text in the id, the summary, the error message or a run's metadata; upper and"
        " lower case are the same.",
    )


async def answer(request: Request, query: Page, statement: str, shape: type[Shape], **filters: Any) -> Response:
    """One page of a statement that takes ``before``, ``limit`` and ``workspaces``: only rows of the caller's own."""
    before = FOREVER if query.page is None else _place(query.page)
    filters |= {"workspaces": own(request), "before": before, "limit": query.limit + 1}
    rows = await deployment(request).database.rows(statement, **filters)
    page, more = rows[: query.limit], len(rows) > query.limit
    mark = base64.urlsafe_b64encode(str(page[-1]["created_id"]).encode()).decode().rstrip("=") if more else None
    headers = {}
    if mark is not None:
        url = request.url.include_query_params(page=mark)
        headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    return answers.json(List.of({"data": [shape.of(row) for row in page], "next_page": mark}), headers=headers)
