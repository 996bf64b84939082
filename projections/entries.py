"""The entries of a run or a build: its lines that carry a message for people, read from any place in both directions.

Lines of output are entries, and telemetry of the engine that has a ``message``; so they are in the tables of lines. A
line whose text was erased is none.

Nobody knows how many entries there are without reading all lines, but each tells the ``seq`` of its event: of how many
events, the stream knows. So a scroll bar has its measure, and any place is found at once.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from eventstore import Feed, Line, Log, Stream
from eventstore.log import PAGE, PAGE_BYTES
from eventstore.random_access import Needle, Place, place_of_id, place_of_seq, search
from projections.events import registry

EXAMINED_EVENTS = 10_000
"""What one answer looks at, at the most, where entries are rare."""
AHEAD = 16
"""Events read beyond what is wanted: enough to see past an end that has no more entries."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line with a message. ``created`` is in Unix seconds, ``stream`` stdout, stderr or system."""

    id: int
    seq: int
    created: int
    stream: str | None
    level: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Window:
    """Entries in order, and the ids from which on there may be others: before ``before_id``, after ``after_id``.

    None says that there is nothing more now. ``index`` is the place in the list of the first entry that is not before
    what a window was opened around.
    """

    entries: list[Entry]
    before_id: int | None
    after_id: int | None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """An entry that holds what was looked for; ``at`` counts the characters of its message before that."""

    entry: Entry
    at: int

    def members(self) -> dict[str, Any]:
        """Both as one object."""
        return {**asdict(self.entry), "at": self.at}


@dataclass(frozen=True, slots=True)
class Found:
    """One step of a search: its matches, and the id up to which they are all."""

    matches: list[Match]
    upto: int


def members(line: Line) -> dict[str, Any] | None:
    """What stands on a line that is an entry; None for every other."""
    known = registry.get(line.type)
    if not (line.type.startswith("engine.") if known is None else known.bulk):
        return None
    told: dict[str, Any] = orjson.loads(line.line)
    return told if isinstance(told.get("message"), str) else None


def entry(line: Line) -> Entry | None:
    """The entry on a line; None for a line that is none."""
    told = members(line)
    if told is None:
        return None
    level = told.get("level")
    if not (level is None or isinstance(level, str)):
        level = orjson.dumps(level).decode()  # an engine's own idea of a level
    return Entry(told["id"], told["seq"], told["created"], told.get("stream"), level, told["message"])


class Entries:
    """The entries of one stream, as it stands now."""

    def __init__(self, log: Log, stream: Stream) -> None:
        self.stream = stream
        self._log = log
        self._feed = Feed(stream.stream, None, stream.first_id, stream.ended_id)

    @property
    def end(self) -> Place:
        """Behind the last event."""
        return Place(self.stream.last_id + 1, self.stream.last_seq + 1)

    async def seq_after(self, after: int) -> int:
        """The number of the first event after an id: how many are behind a cursor, and one."""
        return (await place_of_id(self._log.database, self.stream.stream, after + 1)).seq

    async def after(self, after: int, limit: int) -> Window:
        """The first entries after an id, ``limit`` and some :data:`PAGE_BYTES` of lines at the most."""
        entries, next_id = await self._forth(after, limit)
        return Window(entries, after + 1 if after >= self.stream.first_id else None, next_id)

    async def before(self, end: Place, limit: int) -> Window:
        """The last entries before a place."""
        entries, before_id = await self._back(end, limit)
        return Window(entries, before_id, end.id - 1 if end.seq < self.end.seq else None)

    async def around(self, place: Place, limit: int) -> Window:
        """The entries on both sides of a place, as many before as from there on."""
        earlier, before_id = await self._back(place, limit // 2)
        later, after_id = await self._forth(place.id - 1, limit - limit // 2)
        return Window(earlier + later, before_id, after_id, len(earlier))

    async def _forth(self, after: int, limit: int) -> tuple[list[Entry], int | None]:
        """Entries after an id, and after which id there may be more."""
        entries: list[Entry] = []
        examined = size = 0
        step = min(limit + AHEAD, PAGE)
        while True:
            page = await self._log.read_feed(self._feed, after, limit=step)
            for line in page.each():
                if (found := entry(line)) is not None:
                    if len(entries) == limit:
                        return entries, entries[-1].id
                    entries.append(found)
            if not page.more:
                return entries, None
            after, examined, size = page.last_id, examined + len(page), size + len(page.ndjson)
            if len(entries) == limit or examined >= EXAMINED_EVENTS or size >= PAGE_BYTES:
                return entries, after
            step = min(2 * step, PAGE)

    async def _back(self, end: Place, limit: int) -> tuple[list[Entry], int | None]:
        """Entries before a place, and before which id there may be more."""
        entries: list[Entry] = []
        first, examined, size = end, 0, 0
        step = min(limit + AHEAD, PAGE)
        while first.seq > 1 and len(entries) <= limit and examined < EXAMINED_EVENTS and size < PAGE_BYTES:
            begin = await place_of_seq(self._log.database, self.stream.stream, first.seq - step)
            page = await self._log.read_feed(self._feed, begin.id - 1, upto=first.id - 1, limit=step)
            if len(page) < first.seq - begin.seq:  # so long are its lines that the page ends before
                step = (first.seq - begin.seq) // 2
                continue
            entries = [found for line in page.each() if (found := entry(line)) is not None] + entries
            first, examined, size = begin, examined + len(page), size + len(page.ndjson)
            step = min(2 * step, PAGE)
        if len(entries) > limit:
            kept = entries[len(entries) - limit :]
            return kept, kept[0].id if kept else end.id
        return entries, None if first.seq == 1 else first.id

    async def search(
        self, text: str, after: int, upto: int, *, ignore_case: bool = False, limit: int = PAGE
    ) -> AsyncIterator[Found]:
        """Every entry after a cursor and up to an id that holds a text, in steps of bounded work."""
        needle = Needle.of(text, ignore_case=ignore_case)
        wanted = re.compile(re.escape(text), re.IGNORECASE if ignore_case else 0)
        upto = min(upto, self.stream.last_id)
        while after < upto:
            page = await search(self._log.database, self.stream.stream, needle, after, upto, limit=limit)
            matches = [
                Match(found, match.start())
                for line in page.each()
                if (found := entry(line)) is not None and (match := wanted.search(found.message)) is not None
            ]
            after = page.last_id
            yield Found(matches, after)
