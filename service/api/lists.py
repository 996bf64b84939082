"""Lists, newest first: a page at a time, with an opaque mark that stays right while things are added."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.api.request import FOREVER, deployment, integer, moment, text
from service.errors import Malformed

PAGE = 100
PAGE_MAX = 200


async def answer(
    request: Request, statement: str, shape: Callable[[Mapping[str, Any]], dict[str, Any]], **filters: Any
) -> Response:
    """One page of a statement that takes ``before`` and ``limit``."""
    limit = integer(request, "limit", PAGE, 1, PAGE_MAX)
    rows = await deployment(request).database.rows(statement, **filters, before=_mark(request), limit=limit + 1)
    page, more = rows[:limit], len(rows) > limit
    mark = base64.urlsafe_b64encode(str(page[-1]["created_id"]).encode()).decode().rstrip("=") if more else None
    headers = {}
    if mark is not None:
        url = request.url.include_query_params(page=mark)
        headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    document = {"object": "list", "data": [shape(row) for row in page], "next_page": mark}
    return Response(orjson.dumps(document), headers=headers, media_type="application/json")


def filters(request: Request, statuses: Sequence[str]) -> dict[str, Any]:
    """What runs and builds are both filtered by."""
    status = request.query_params.get("status")
    if status is not None and status not in statuses:
        raise Malformed(f"`status` is one of {', '.join(statuses)}.", parameter="status")
    return {
        "config_id": text(request, "config_id"),
        "status": status,
        "created_after": moment(request, "created_after"),
        "created_before": moment(request, "created_before"),
        "q": text(request, "q"),
    }


def _mark(request: Request) -> int:
    page = request.query_params.get("page")
    if page is None:
        return FOREVER
    try:
        number = int(base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)).decode("ascii"))
    except (binascii.Error, ValueError):
        raise Malformed("`page` must be a mark from an earlier answer.", parameter="page") from None
    if not 0 <= number <= FOREVER:
        raise Malformed("`page` must be a mark from an earlier answer.", parameter="page")
    return number
