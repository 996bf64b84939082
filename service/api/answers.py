"""The shapes of answers that several resources give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.api import ranges
from service.errors import UnknownThing


def json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document."""
    return Response(orjson.dumps(document), status, headers, "application/json")


def download(request: Request, path: Path, row: Mapping[str, Any]) -> Response:
    """A file whose content never changes: ranges, and its hash as ETag. Never shown by a browser in our origin."""
    if not path.is_file():
        raise UnknownThing(f"The bytes of {row['id']} are not on this machine.")
    etag, size = f'"{row["sha256"]}"', int(row["size"])
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Length": str(size),
        "Content-Disposition": _attachment(row["name"].rsplit("/", 1)[-1]),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    }
    if ranges.unchanged(request, etag):
        return Response(status_code=304, headers={"ETag": etag})
    part = ranges.span(request, size, lambda given: given == etag)
    start, stop = part or (0, size)
    if part is not None:
        headers |= ranges.content_range(start, stop, size)
    body = ranges.read(path, start, 0 if request.method == "HEAD" else stop)
    return StreamingResponse(body, 200 if part is None else 206, headers, row["media_type"])


def _attachment(name: str) -> str:
    """A file name that every browser understands (RFC 6266)."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
