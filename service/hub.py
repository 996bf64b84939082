"""The one tail of a process, shared by all its viewers.

A viewer watches a *source*: the feed of a run or a build, or a selection from the whole log. For each source that
somebody watches the hub keeps a short *ring*: its newest lines, and how far they reach without a gap. Whenever a hint
arrives, and at least every second, it reads what is new of all watched sources in one statement (one for feeds and one
for selections, so that no feed waits while rows are examined for a filter), and wakes the viewers of those that moved.
A viewer is a cursor: within the ring it takes lines from there, behind it it reads the table until it is back. So there
is no live mode that could differ from the history, a slow viewer holds nothing but its cursor, and a quiet run's
viewers sleep while another run floods. A viewer that sleeps at the end of its ring is written to without being woken,
where its connection can (:data:`Write`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, Self

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
from service.ring import Framing, Ring, S, Source

COALESCE_S, COALESCE_MOST_S = 0.002, 0.05
"""The least time between two looks, and the longest; an idle feed's line is passed on at once."""
COALESCE_VIEWER_S, COALESCE_BYTE_S = 2e-6, 0.2e-9
"""What each viewer that was given something adds to that, and each byte for each of them: who is given much is given
more at a time, which costs us and them less."""
BEAT_S = 5.0
"""All viewers look around as often as this; what they wait for longer needs no timer of its own."""
SYSTEM = Feed("system_log", None, first_id=1, ended_id=None)
REDACTIONS = Selection(("event.redacted",), control=True)

Write = Callable[[bytes], bool]
"""Hands bytes to a client at once. False, and nothing done, while it has not taken what came before, or is gone."""


class Frame(Protocol):
    """How lines become the bytes of a stream."""

    keep_alive: bytes

    def opening(self, after: int) -> bytes: ...
    def page(self, page: Page) -> bytes: ...
    def bookmark(self, head: int) -> bytes: ...
    def drained(self) -> bytes: ...


class Viewer:
    """One reader of one source. ``after`` is the cursor that it has given, and all that its client must remember."""

    __slots__ = (
        "_caller", "_framing", "_has", "_hub", "_in_ring", "_live", "_ring", "_sleep", "_source", "_watch", "_write",
        "after", "ended", "written_at",
    )  # fmt: skip
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
        self._sleep: asyncio.Future[None] | None = None  # an event would be 1 kB, and there are thousands
        self._write: Write | None = None
        self.written_at = 0.0
        """When its client was last given something while it slept."""

    def __enter__(self) -> Self:
        self._ring = self._watch.join(self._source, self._hub.hints)
        self._ring.viewers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.leave(self._ring, self)

    def writes(self, write: Write, framing: Framing) -> None:
        """From now on, what is new while it sleeps is written to its client."""
        self._write, self._framing = write, framing

    def moved(self) -> None:
        """The ring has something new: it is written, or the viewer is woken to take it."""
        if self._sleep is not None and not self._sleep.done() and not self._may_sleep_on():
            self._sleep.set_result(None)

    def wake(self) -> None:
        """It looks around, if it sleeps."""
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    def _may_sleep_on(self) -> bool:
        """Writes what is new to its client, where that takes it; whether there is nothing else to do."""
        if self._write is None or self.behind or self.dismissed:
            return False
        chunk, last_id = self._ring.chunk(self._has, self._framing)
        if not self._write(chunk):
            return False
        self.written_at = self._ring.moved_at
        return self._take(last_id) and not self.ended

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
            turns = self._ring.turns
            if self.behind:
                page = await self._read(limit)
            else:
                lines = [line for found in self._ring.since(self._has) for line in found.each()]
                page = lines[:limit]
                self._take(page[-1].id if page else None)
            if not page and (self.ended or not await self._wait(turns, deadline)):
                break
        self._mark()
        return page

    async def chunk(self, timeout_s: float, frame: Frame) -> bytes:
        """:meth:`page`, framed; a bookmark where only that moved. Viewers at one place are given the same bytes."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            turns = self._ring.turns
            if self.behind:
                chunk = frame.page(await self._read(PAGE))
            else:
                chunk, last_id = self._ring.chunk(self._has, frame.page)
                self._take(last_id)
            if chunk:
                return chunk
            was_live, self._live = self._live, not self.behind
            if self._live > was_live and self._mark():
                return frame.bookmark(self.after)  # it has caught up; how far is told again when the time is over
            if self.ended or not await self._wait(turns, deadline):
                break
        return frame.bookmark(self.after) if self._mark() else b""

    def _take(self, last_id: int | None) -> bool:
        """Remembers what it was given of the ring: up to this line, or nothing; whether there is no more."""
        whole = last_id is None or last_id == self._ring.last_id
        if last_id is not None:
            self.after = last_id
        # The table may have given more than the ring has seen.
        self._has = max(self._has, self._ring.upto if whole else self.after)
        self.ended = whole and self._ring.ended
        return whole

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

    async def _wait(self, turns: int, deadline: float) -> bool:
        """Whether there may be something new; False when the time is over, or the viewer is dismissed."""
        left_s = deadline - time.monotonic()
        if self.dismissed or left_s <= 0:
            return False
        if self.behind or self._ring.turns != turns:
            return True
        self._sleep = asyncio.get_running_loop().create_future()
        try:
            if left_s > BEAT_S:
                await self._sleep  # no later than the next beat; a timeout of its own would cost four times the wake-up
            else:
                with anyio.move_on_after(left_s):
                    await self._sleep
        finally:
            self._sleep = None
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
        return ring

    def leave(self, ring: Ring[S], viewer: Viewer) -> None:
        ring.viewers.remove(viewer)
        if not ring.viewers:
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
                pause_s = await self._look(hints)
            except Unavailable:
                await anyio.sleep(jitter(0.1, 0.5))
                continue
            self.heartbeat = time.monotonic()
            await anyio.sleep(min(COALESCE_S + pause_s, COALESCE_MOST_S))
            await wait()

    async def _look(self, hints: Hints) -> float:
        """Reads what is new of everything watched; how much longer more may gather before the next look, in seconds."""
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
        pause_s, moved = 0.0, None
        for ring, (page, upto) in zip(rings, pages, strict=True):
            if upto < found.head and ring.new:
                ring.leap(found.head)  # nobody looked for long: what its viewers want is not worth catching up with
            elif page:
                ring.extend(page, upto)
                moved = page
                pause_s += len(ring.viewers) * (COALESCE_VIEWER_S + COALESCE_BYTE_S * len(page.ndjson))
            else:
                ring.upto = upto
            ring.new = False
        if any(upto < found.head for _, upto in found.pages):
            hints.pulse()  # there is more
        metrics.looked(self._name, since, moved)
        return pause_s


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
