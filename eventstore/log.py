"""Reading the log: lines after a cursor, control events for folds, where a stream begins and ends.

Writing is :class:`eventstore.appender.Appender`. A reader needs no more than ``id > after ORDER BY id``, because ids
are dense and become visible in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eventstore.database import BigInts, Database, Texts
from eventstore.errors import StoreBug
from eventstore.event import Event, Page

PAGE = 1_000
PAGE_BYTES = 2**20
"""What one read returns at the most: so many lines, and about so many bytes of payload. No snapshot lives longer."""

FOREVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Which log this is (``log_id``), its newest id (0: empty) and its oldest."""

    log_id: str
    head: int
    oldest: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Where a stream stands. A decision about it expects ``last_control_id``; ``ended_id`` is its terminal event."""

    stream: str
    workspace: str
    first_id: int
    last_id: int
    last_seq: int
    last_control_id: int
    ended_id: int | None


@dataclass(frozen=True, slots=True)
class Feed:
    """What a viewer sees: one stream, and those events of a second one that lie between the first one's ends."""

    stream: str
    beside: str | None
    first_id: int
    ended_id: int | None

    @property
    def streams(self) -> tuple[str, ...]:
        return (self.stream,) if self.beside is None else (self.stream, self.beside)

    @property
    def upto(self) -> int:
        """The last id that can belong to this feed."""
        return FOREVER if self.ended_id is None else self.ended_id


@dataclass(frozen=True, slots=True)
class Found:
    """What :meth:`Log.read_feeds` found: a page of each feed; one without ``more`` is all up to ``head``."""

    head: int
    pages: list[Page]


class Log:
    """The reading side of the log."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def identity(self) -> Identity:
        row = await self.database.row("identity")
        if row is None:
            raise LookupError("this database holds no log: run `ade db migrate`")
        return Identity(row["log_id"], row["head"], row["oldest"])

    async def head(self) -> int:
        row = await self.database.row("head")
        return int(row["head"]) if row else 0

    async def stream(self, name: str) -> Stream | None:
        row = await self.database.row("stream", stream=name)
        return None if row is None else Stream(**row)

    async def control_events(self, *streams: str, upto: int = FOREVER) -> list[Event]:
        """The control events of some streams, in order of their ids."""
        rows = await self.database.rows("control_events", streams=list(streams), upto=upto)
        return [Event.of(row) for row in rows]

    async def read(self, after: int, *, upto: int = FOREVER, limit: int = PAGE) -> Page:
        """The lines of the whole log after a cursor; empty at the head."""
        rows = await self.database.rows("read_log", after=after, upto=upto, limit=limit, most_bytes=PAGE_BYTES)
        return Page(**rows[0])

    async def read_feed(self, feed: Feed, after: int, *, upto: int = FOREVER, limit: int = PAGE) -> Page:
        """The lines of a feed after a cursor, up to its end; empty where there is nothing more now."""
        rows = await self.database.rows(
            "read_feed",
            stream=feed.stream,
            beside=feed.beside,
            after=max(after, feed.first_id - 1),
            upto=min(upto, feed.upto),
            limit=limit,
            most_bytes=PAGE_BYTES,
        )
        page = Page(**rows[0])
        if page.more and not page and upto == FOREVER:  # else the rest may lie beyond
            raise StoreBug(reason="no segment leads to the next events of a stream", stream=feed.stream, after=after)
        return page

    async def read_feeds(self, cursors: Sequence[tuple[Feed, int]], *, limit: int = PAGE) -> Found:
        """The next page of many feeds, each after its own cursor, and the head, as of one moment."""
        afters = [max(after, feed.first_id - 1) for feed, after in cursors]
        head, *rows = await self.database.rows(
            "read_feeds",
            streams=Texts(feed.stream for feed, _ in cursors),
            besides=Texts(feed.beside for feed, _ in cursors),
            afters=BigInts(afters),
            limit=limit,
            most_bytes=PAGE_BYTES,
        )
        pages = [Page(0, after) for after in afters]
        for row in rows:
            number = row.pop("number")
            pages[number - 1] = Page(**row)
        return Found(head["last_id"], pages)
