"""The part of a body that a request asks for (RFC 9110, one range of bytes), and the part of a file."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
from starlette.requests import Request

from service.errors import RangeNotSatisfiable

CHUNK_BYTES = 256 * 1024

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})\Z")


def span(request: Request, size: int, holds: Callable[[str], bool]) -> tuple[int, int] | None:
    """``start, stop`` of the range; None for the whole, which is also the right answer to what is not understood.

    ``holds`` says whether an ETag given as ``If-Range`` still names these bytes. Raises RangeNotSatisfiable.
    """
    found = _RANGE.match(request.headers.get("range", ""))
    if found is None or found.group(1) == found.group(2) == "":
        return None
    condition = request.headers.get("if-range")
    if condition is not None and not holds(condition.strip()):
        return None
    first, last = found.groups()
    if first and last and int(last) < int(first):
        return None
    if first == "":
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    if start >= stop:
        raise RangeNotSatisfiable(f"There are {size} bytes.", size=size)
    return start, stop


def unchanged(request: Request, etag: str) -> bool:
    """Whether ``If-None-Match`` names these bytes: the client has them."""
    given = request.headers.get("if-none-match", "").split(",")
    return bool({one.strip().removeprefix("W/") for one in given} & {etag, "*"})


def content_range(start: int, stop: int, size: int) -> dict[str, str]:
    """The headers of a partial answer."""
    return {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}


async def read(path: Path, start: int, stop: int) -> AsyncIterator[bytes]:
    """The bytes ``start..stop`` of a file, or as many of them as it has."""
    if start >= stop:
        return
    async with await anyio.open_file(path, "rb") as opened:
        await opened.seek(start)
        while start < stop and (piece := await opened.read(min(CHUNK_BYTES, stop - start))):
            start += len(piece)
            yield piece
