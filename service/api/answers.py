"""The shapes of answers that several resources give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from starlette.responses import FileResponse, Response

from service.errors import UnknownThing


def json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document."""
    return Response(orjson.dumps(document), status, headers, "application/json")


def download(path: Path, row: Mapping[str, Any]) -> Response:
    """A file whose content never changes: ranges, and its hash as ETag. Never shown by a browser in our origin."""
    if not path.is_file():
        raise UnknownThing(f"The bytes of {row['id']} are not on this machine.")
    headers = {
        "ETag": f'"{row["sha256"]}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    }
    return FileResponse(path, media_type=row["media_type"], filename=row["name"].rsplit("/", 1)[-1], headers=headers)
