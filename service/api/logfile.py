"""``/logfile``: the file up to its last whole line, and the log from there; the file may be stale or absent.

A feed only grows, so every earlier part of it stays what it was: an ETag holds for the prefix that it named, and a
download that broke off is continued while the run still writes. Only a redaction changes what was there: the id of the
log's last one is part of the ETag.
"""

import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from eventstore import Feed, Log
from projections.ndjson_file import End, end_of
from service.api import ranges

MEDIA_TYPE = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class _Content:
    """The bytes of a feed up to an event: ``file`` from disk, the rest from the log."""

    log: Log
    feed: Feed
    upto: int
    path: Path
    file: End
    size: int

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes ``start..stop``."""
        at = 0
        async for piece in self._pieces(start):
            if at == 0:
                at = min(self.file.size, start)
            low, high = max(start - at, 0), min(stop - at, len(piece))
            if low < high:
                yield piece[low:high]
            at += len(piece)
            if at >= stop:
                return

    async def _pieces(self, start: int) -> AsyncIterator[bytes]:
        async for piece in ranges.read(self.path, start, self.file.size):
            yield piece
        after = self.file.last_id
        while page := await self.log.read_feed(self.feed, after, upto=self.upto):
            yield page.ndjson
            after = page.last_id


async def answer(request: Request, log: Log, feed: Feed, upto: int, path: Path) -> Response:
    """The log file of a feed as it stands at ``upto``; with ranges, or gzip where there is no range."""
    file = await anyio.to_thread.run_sync(end_of, path)
    if file.last_id > upto:  # the file is ahead of what this request has read: serve what the file holds
        upto = file.last_id
    row = await log.database.row(
        "feed_bytes", streams=list(feed.streams), after=max(file.last_id, feed.first_id - 1), upto=upto
    )
    version = f"{feed.stream}-{(row or {}).get('redacted', 0)}"
    content = _Content(log, feed, upto, path, file, file.size + (row["bytes"] if row else 0))
    headers = {
        "ETag": (etag := f'"{version}-{upto}"'),
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{feed.stream}.ndjson"',
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    if ranges.unchanged(request, etag):
        return Response(status_code=304, headers={"ETag": etag})
    part = ranges.span(request, content.size, lambda etag: _names_prefix(etag, version, upto))
    head = request.method == "HEAD"
    if part is not None:
        start, stop = part
        headers |= ranges.content_range(start, stop, content.size)
        body = _nothing() if head else content.read(start, stop)
        return StreamingResponse(body, 206, headers, MEDIA_TYPE)
    if _takes_gzip(request.headers.get("accept-encoding", "")):
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        headers["ETag"] = f"W/{etag}"
        return StreamingResponse(_nothing() if head else _gzip(content), 200, headers, MEDIA_TYPE)
    headers |= {"Content-Length": str(content.size), "Vary": "Accept-Encoding"}
    body = _nothing() if head else content.read(0, content.size)
    return StreamingResponse(body, 200, headers, MEDIA_TYPE)


def _takes_gzip(accepted: str) -> bool:
    """Whether ``Accept-Encoding`` names gzip, and not to refuse it."""
    for entry in accepted.lower().split(","):
        name, _, quality = entry.partition(";")
        if name.strip() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", quality) is None
    return False


def _names_prefix(etag: str, version: str, upto: int) -> bool:
    named = re.fullmatch(rf'"{re.escape(version)}-(\d{{1,19}})"', etag)
    return named is not None and int(named.group(1)) <= upto


async def _gzip(content: _Content) -> AsyncIterator[bytes]:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    async for piece in content.read(0, content.size):
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
