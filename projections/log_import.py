"""Copies an exported log into an empty one: the same ids, seqs, times and payloads, and so the same chain.

All of it lands in one transaction, or nothing does. The lines are read page by page, so memory does not grow with them;
who appends meanwhile waits for the end, and a source that stops for a minute is given up.
"""

import gzip
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO, cast

from eventstore.database import BigInts, Bools, Connection, Text, Texts, call, connect, transaction
from eventstore.errors import CallerMistake, StoreBug
from projections.exported_line import ExportedLine, NotAnEvent, read_line

PAGE_LINES = 4_000
PAGE_BYTES = 8 * 2**20
LINE_BYTES = 128 * 2**20
"""More than one append takes: a longer line is none of an export."""

PATIENCE_S = 60.0
"""How long the source may be silent: appends wait all the while. A little later the server itself ends the import."""

Progress = Callable[[int], None]


class LogNotEmpty(CallerMistake):
    """There are events in this log already: import into a database of its own."""


class NotAWholeLog(CallerMistake):
    """These are not all lines of a log from its beginning, in order."""


class SourceIsSilent(CallerMistake):
    """What was to be imported did not come for a minute; nothing was written."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The log as it is called now, and the id of its newest event."""

    log_id: str
    head: int


def lines_of(source: BufferedReader) -> Iterator[bytes]:
    """The lines of an export, gzip or not. Raises NotAnEvent where it cannot be read to its end."""
    number = 0
    try:
        zipped = source.peek(2)[:2] == b"\x1f\x8b"
        opened: BinaryIO = cast("BinaryIO", gzip.GzipFile(fileobj=source)) if zipped else source
        while line := opened.readline(LINE_BYTES):
            number += 1
            yield line
    except (OSError, EOFError, zlib.error) as error:  # here: further out, it would be the database that is away
        raise NotAnEvent(line=number + 1, reason=f"it cannot be read: {error}") from error


async def import_log(
    url: str, lines: Iterable[bytes], origin: str, progress: Progress = lambda _head: None
) -> Imported:
    """Lets an empty log be a copy. ``lines`` have their line ends; ``progress`` is told the ids that were reached.

    Raises LogNotEmpty, NotAnEvent, NotAWholeLog, SourceIsSilent; then nothing was written.
    """
    async with await connect(url) as connection, transaction(connection):
        await call(connection, "import_patience")
        head, asked = 0, time.monotonic()
        for page in _pages(_events(lines)):
            if time.monotonic() - asked > PATIENCE_S:
                raise SourceIsSilent
            await _import(connection, origin, page)
            head, asked = page[-1].id, time.monotonic()
            progress(head)
        if head == 0:
            raise NotAWholeLog(reason="there is no event")
        names = (await call(connection, "log_names"))[0]
        return Imported(names["log_id"], head)


def _events(lines: Iterable[bytes]) -> Iterator[ExportedLine]:
    """The events of the lines, if their ids are dense; empty lines are keep-alives of a stream."""
    due = 1
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            raise NotAnEvent(
                line=number, reason="its end is missing: the file was cut off, or is longer than any event"
            )
        if line == b"\n":
            continue
        event = read_line(line[:-1], number)
        if event.id != due:
            raise NotAWholeLog(line=number, id=event.id, expected=due)
        due += 1
        yield event


def _pages(events: Iterator[ExportedLine]) -> Iterator[list[ExportedLine]]:
    page: list[ExportedLine] = []
    size = 0
    for event in events:
        page.append(event)
        size += len(event.data)
        if len(page) >= PAGE_LINES or size >= PAGE_BYTES:
            yield page
            page, size = [], 0
    if page:
        yield page


async def _import(connection: Connection, origin: str, page: list[ExportedLine]) -> None:
    rows = await call(
        connection,
        "import",
        origin,
        page[0].id,
        Texts([event.stream for event in page]),
        BigInts([event.seq for event in page]),
        Texts([event.workspace for event in page]),
        Texts([event.type for event in page]),
        Bools([event.bulk for event in page]),
        Bools([event.ends for event in page]),
        Texts([event.created_at for event in page]),
        Text(b"\n".join([event.data for event in page])),
    )
    outcome, at_id, reason = rows[0]["outcome"], rows[0]["at_id"], rows[0]["reason"]
    match outcome:
        case "imported":
            return
        case "occupied":
            raise LogNotEmpty(head=at_id)
        case "contradiction":
            raise NotAWholeLog(after=at_id - 1, upto=page[-1].id, reason=reason)
        case "seq" | "ended" | "workspace":
            event = page[at_id - page[0].id]
            raise NotAWholeLog(id=at_id, stream=event.stream, seq=event.seq, reason=_REASONS[outcome].format(reason))
        case _:
            raise StoreBug(outcome=outcome)


_REASONS = {
    "seq": "the stream's numbers are not dense: {}",
    "ended": "the stream ended before",
    "workspace": "the stream begins with an event that names no workspace",
}
