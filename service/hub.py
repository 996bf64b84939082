"""The one tail of a process, shared by all its viewers.

A viewer watches a *source*: the feed of a run or a build, or a selection from the whole log. For each source that
somebody watches the hub keeps a short *ring*: its newest lines, and how far they reach without a gap. Whenever a hint
arrives, and at least every second, it reads what is new of all watched sources in one statement (one for feeds and one
for selections, so that no feed waits while rows are examined for a filter), and wakes the viewers of those that moved.
A viewer is a cursor: within the ring it takes lines from there, behind it it reads the table until it is back. So there
is no live mode that could differ from the history, a slow viewer holds nothing but its cursor, and a quiet run's
viewers sleep while another run floods.
"""

import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import anyio
from anyio.abc import TaskStatus

from eventstore import Feed, Line, Log, Page
from eventstore.clock import jitter
from eventstore.errors import Unavailable
from eventstore.log import PAGE
from eventstore.selection import News, Selection, select
from eventstore.tail import POLL_S, Hints
from service import metrics
from service.keys import ANYBODY, Caller

COALESCE_S = 0.002
"""The least time between two looks; an idle feed's line is passed on at once."""
BEAT_S = 5.0
"""All viewers look around as often as this; what they wait for longer needs no timer of its own."""
COALESCE_VIEWER_S = 20e-6
"""What each woken viewer adds to that: about what it costs to send it something."""
RING_LINES = 4_000
RING_BYTES = 2**20
"""Of one source, beyond the lines of the newest look."""
CHUNKS = 4
"""Framed copies of what a ring has, for viewers at so many places; others make their own."""
SYSTEM = Feed("system_log", None, first_id=1, ended_id=None)
REDACTIONS = Selection(("event.redacted",), control=True)

Source = Feed | Selection
S = TypeVar("S", bound=Source)


class Frame(Protocol):
    """How lines become the bytes of a stream."""

    keep_alive: bytes

    def opening(self, after: int) -> bytes: ...
    def page(self, page: Page) -> bytes: ...
    def bookmark(self, head: int) -> bytes: ...
    def drained(self) -> bytes: ...


class Ring(Generic[S]):
    """The newest pages of one source: all lines with ``floor < id <= upto``, and whether they are the last ones."""

    __slots__ = (
        "_bytes", "_chunks", "_last_ids", "_lines", "_pages",
        "ended", "floor", "moved", "new", "source", "upto", "viewers",
    )  # fmt: skip

    def __init__(self, source: S, upto: int) -> None:
        self.source = source
        self.floor = self.upto = upto
        self.ended = False
        self.new = True
        """Whether nobody has looked yet."""
        self.viewers = 0
        self.moved = anyio.Event()
        self._pages: list[Page] = []
        self._last_ids: list[int] = []
        self._lines = self._bytes = 0
        self._chunks: dict[tuple[int, Frame], bytes] = {}

    @property
    def last_id(self) -> int:
        """The id of its newest line."""
        return self._last_ids[-1]

    def extend(self, page: Page, upto: int) -> None:
        """Takes the next page of the source, which reaches up to an id, and wakes the viewers."""
        self._pages.append(page)
        self._last_ids.append(page.last_id)
        self._chunks.clear()
        self.upto, self.ended = upto, page.ended
        self._lines, self._bytes = self._lines + len(page), self._bytes + len(page.ndjson)
        while len(self._pages) > 1 and (self._lines > RING_LINES or self._bytes > RING_BYTES):
            gone = self._pages.pop(0)
            self.floor = self._last_ids.pop(0)
            self._lines, self._bytes = self._lines - len(gone), self._bytes - len(gone.ndjson)
        self.wake()

    def wake(self) -> None:
        """Lets the viewers look around; perhaps there is nothing new."""
        event, self.moved = self.moved, anyio.Event()
        event.set()

    def forget(self) -> None:
        """Keeps no line: viewers read the table, where something was redacted."""
        self._pages.clear()
        self._last_ids.clear()
        self._lines = self._bytes = 0
        self._chunks.clear()
        self.floor = self.upto

    def leap(self, head: int) -> None:
        """Begins again at the head, and sends the viewers to the table for what lies before it."""
        self.upto = head
        self.forget()
        self.wake()

    def since(self, after: int) -> list[Page]:
        """All lines after an id that is not below the floor."""
        pages = self._pages[bisect_right(self._last_ids, after) :]
        return [page.since(after) for page in pages[:1]] + pages[1:]

    def chunk(self, after: int, frame: Frame) -> bytes:
        """:meth:`since` as bytes. They are kept for the next viewers, who mostly stand where a page ends."""
        place = bisect_right(self._last_ids, after)
        if place == len(self._pages):
            return b""
        if self._pages[place].first_id <= after:  # in the middle of a page
            return b"".join([frame.page(page) for page in self.since(after)])
        made = self._chunks.get((place, frame))
        if made is None:
            if len(self._chunks) == CHUNKS:
                del self._chunks[next(iter(self._chunks))]
            made = self._chunks[place, frame] = b"".join([frame.page(page) for page in self._pages[place:]])
        return made


class Viewer:
    """One reader of one source. ``after`` is the cursor that it has given, and all that its client must remember."""

    __slots__ = ("_caller", "_has", "_hub", "_in_ring", "_live", "_ring", "_source", "_watch", "after", "ended")
    _ring: Ring[Any]

    def __init__(self, hub: "Hub", watch: "Watch[Any]", source: Source, after: int, caller: Caller) -> None:
        self.after = after
        self.ended = isinstance(source, Feed) and source.ended_id is not None and after >= source.ended_id
        """Whether the terminal event lies behind the cursor."""
        self._hub = hub
        self._caller = caller
        self._watch = watch
        self._source = source
        self._has = after  # everything of the source up to here was given; runs ahead of `after` where others write
        self._in_ring = False  # the first read is of the table: the ring may not have looked yet
        self._live = False  # whether it was not behind when it last had to wait

    def __enter__(self) -> Self:
        self._ring = self._watch.join(self._source, self._hub.hints)
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.leave(self._ring)

    @property
    def behind(self) -> bool:
        """Whether it still reads the table, where more may be though nothing happens."""
        return not self._in_ring or self._has < self._ring.floor

    @property
    def dismissed(self) -> bool:
        """Whether it is to go, though its source goes on: its caller's key is dead, or the server stops."""
        return self._caller.over or self._hub.draining

    async def page(self, timeout_s: float, limit: int) -> Sequence[Line]:
        """The next lines; none when the source stays quiet for so long or has ended, or it is dismissed."""
        deadline = time.monotonic() + timeout_s
        page: Sequence[Line] = ()
        while not (page or self.ended):
            moved = self._ring.moved
            if self.behind:
                page = await self._read(limit)
            else:
                lines = [line for found in self._ring.since(self._has) for line in found.each()]
                page = lines[:limit]
                whole = len(lines) == len(page)
                self._take(page[-1].id if page else None, self._ring.upto if whole else page[-1].id, whole=whole)
            if not page and (self.ended or not await self._wait(moved, deadline)):
                break
        self._mark()
        return page

    async def chunk(self, timeout_s: float, frame: Frame) -> bytes:
        """:meth:`page`, framed; a bookmark where only that moved. Viewers at one place are given the same bytes."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            moved = self._ring.moved
            if self.behind:
                chunk = frame.page(await self._read(PAGE))
            else:
                chunk = self._ring.chunk(self._has, frame)
                self._take(self._ring.last_id if chunk else None, self._ring.upto, whole=True)
            if chunk:
                return chunk
            was_live, self._live = self._live, not self.behind
            if self._live > was_live and self._mark():
                return frame.bookmark(self.after)  # it has caught up; how far is told again when the time is over
            if self.ended or not await self._wait(moved, deadline):
                break
        return frame.bookmark(self.after) if self._mark() else b""

    def _take(self, last_id: int | None, reached: int, *, whole: bool) -> None:
        """Remembers what it was given of the ring: up to its last line, or to all that the ring has."""
        self.after = self.after if last_id is None else last_id
        self._has = max(self._has, reached)  # the table may have given more than the ring has seen
        self.ended = whole and self._ring.ended

    def _mark(self) -> bool:
        """Moves the cursor to where a filter has come without a line; whether that is news."""
        moved = isinstance(self._source, Selection) and self._has > self.after
        if moved:
            self.after = self._has
        return moved

    async def _read(self, limit: int) -> Page:
        """The next page of the table; an empty one too when the database is away for a moment."""
        upto = self._ring.upto
        try:
            page, reached, complete = await self._hub.read(self._source, self._has, limit)
        except Unavailable:  # the viewer keeps its cursor and the client its connection
            await anyio.sleep(jitter(0.2, 0.6))
            return Page(0, self._has)
        self._in_ring, self.ended = complete, page.ended
        if page:
            self.after = page.last_id
        # What is complete was read after the ring had come up to there: there is nothing in between.
        self._has = max(self.after, reached, upto if complete else 0)
        return page

    async def _wait(self, moved: anyio.Event, deadline: float) -> bool:
        """Whether there may be something new; False when the time is over, or the viewer is dismissed."""
        left_s = deadline - time.monotonic()
        if self.dismissed or left_s <= 0:
            return False
        if self.behind:
            return True
        if left_s > BEAT_S:
            await moved.wait()  # no later than the next beat; a timeout of its own would cost four times the wake-up
        else:
            with anyio.move_on_after(left_s):
                await moved.wait()
        return True


def _key(source: Source) -> Hashable:
    return source.streams if isinstance(source, Feed) else source


class Watch(Generic[S]):
    """The rings of all watched sources of one kind, and the loop that reads what is new of them in one statement."""

    def __init__(self, name: str, read: Callable[[Sequence[tuple[S, int]]], Awaitable[News]], redactions: S) -> None:
        self.rings: dict[Hashable, Ring[S]] = {}
        self.head = 0
        """From here on redactions are looked for."""
        self.heartbeat = time.monotonic()
        self._asked = 0.0
        self._name = name
        self._read = read
        self._redactions = redactions

    def join(self, source: S, hints: Hints) -> Ring[S]:
        """The ring of a source, which is kept up until all who joined have left."""
        ring = self.rings.get(_key(source))
        if ring is None:
            # From the newest id that was seen: what came after it is read from the table, or by the next look.
            ring = self.rings[_key(source)] = Ring(source, self.head)
            hints.pulse()
        ring.viewers += 1
        return ring

    def leave(self, ring: Ring[S]) -> None:
        ring.viewers -= 1
        if ring.viewers == 0:
            del self.rings[_key(ring.source)]

    def wake(self) -> None:
        """Wakes every viewer, though there is nothing new."""
        for ring in self.rings.values():
            ring.wake()

    async def run(self, hints: Hints) -> None:
        """Tails what is watched until cancelled."""
        while True:
            wait = hints.next()
            try:
                woken = await self._look(hints)
            except Unavailable:
                await anyio.sleep(jitter(0.1, 0.5))
                continue
            self.heartbeat = time.monotonic()
            await anyio.sleep(COALESCE_S + woken * COALESCE_VIEWER_S)
            await wait()

    async def _look(self, hints: Hints) -> int:
        """Reads what is new of everything watched; how many viewers that woke."""
        rings = list(self.rings.values())
        since = time.monotonic()
        if not rings and since - self._asked < POLL_S:
            return 0  # nobody wants to know: then it is asked now and then, for the heartbeat
        self._asked = since
        found = await self._read([(self._redactions, self.head), *((ring.source, ring.upto) for ring in rings)])
        (system, self.head), *pages = found.pages
        if any(line.type == "event.redacted" for line in system):
            for ring in rings:
                ring.forget()
        woken, moved = 0, None
        for ring, (page, upto) in zip(rings, pages, strict=True):
            if upto < found.head and ring.new:
                ring.leap(found.head)  # nobody looked for long: what its viewers want is not worth catching up with
            elif page:
                ring.extend(page, upto)
                moved = page
                woken += ring.viewers
            else:
                ring.upto = upto
            ring.new = False
        if any(upto < found.head for _, upto in found.pages):
            hints.pulse()  # there is more
        metrics.looked(self._name, since, moved)
        return woken


class Hub:
    """Start :meth:`run` in a task group; watch with ``with hub.view(source, after) as viewer``."""

    def __init__(self, log: Log, hints: Hints) -> None:
        self.log = log
        self.draining = False
        self.hints = hints
        self._feeds = Watch[Feed]("feeds", self._read_feeds, SYSTEM)
        self._selections = Watch[Selection]("selections", partial(select, log.database), REDACTIONS)

    @property
    def heartbeat(self) -> float:
        """When the log was last asked what is new of feeds, watched or not."""
        return self._feeds.heartbeat

    def view(self, source: Source, after: int, caller: Caller = ANYBODY) -> Viewer:
        """A viewer, which watches for as long as it is a block's. When the caller is over, :meth:`wake` tells it."""
        watch: Watch[Any] = self._feeds if isinstance(source, Feed) else self._selections
        return Viewer(self, watch, source, after, caller)

    def watches(self, stream: str) -> bool:
        """Whether somebody follows the feed of this run or build here."""
        return any(ring.source.stream == stream for ring in self._feeds.rings.values())

    async def read(self, source: Source, after: int, limit: int) -> tuple[Page, int, bool]:
        """Lines from the table, the id that they reach at least, and whether that is the end of what is there."""
        if isinstance(source, Selection):
            found = await select(self.log.database, [(source, after)], limit=limit)
            page, reached = found.pages[0]
            return page, reached, reached >= found.head
        page = await self.log.read_feed(source, after, limit=limit)
        return page, after, not page.more

    async def _read_feeds(self, cursors: Sequence[tuple[Feed, int]]) -> News:
        found = await self.log.read_feeds(cursors)
        # A page with more behind it reaches as far as its lines do.
        return News(found.head, [(page, page.last_id if page.more else found.head) for page in found.pages])

    def drain(self) -> None:
        """Every viewer's next read is its last: streams end between two events."""
        self.draining = True
        self.wake()

    def wake(self) -> None:
        """Every viewer looks around, though there is nothing new."""
        self._feeds.wake()
        self._selections.wake()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Tails what is watched until cancelled."""
        self._feeds.head = self._selections.head = await self.log.head()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._feeds.run, self.hints)
            tasks.start_soon(self._selections.run, self.hints)
            task_status.started()
            while True:
                await anyio.sleep(BEAT_S)
                self.wake()
