"""The one tail of a process, shared by all its viewers.

For each feed that somebody watches the hub keeps a short *ring*: its newest lines, and how far they reach without a
gap. Whenever a hint arrives, and at least every second, it reads what is new of all watched feeds in one statement, and
wakes the viewers of those that moved. A viewer is a cursor: within the ring it takes lines from there, behind it it
reads the table until it is back. So there is no live mode that could differ from the history, a slow viewer holds
nothing but its cursor, and a quiet run's viewers sleep while another run floods.
"""

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from eventstore import Feed, Line, Log
from eventstore.clock import jitter
from eventstore.errors import Unavailable
from eventstore.log import PAGE
from eventstore.tail import Hints
from projections.events import TERMINAL

COALESCE_S = 0.002
"""The least time between two looks; an idle feed's line is passed on at once."""
COALESCE_VIEWER_S = 20e-6
"""What each woken viewer adds to that: about what it costs to send it something."""
SYSTEM = Feed("system_log", None, first_id=1, ended_id=None)
RING_LINES = 4_000
RING_BYTES = 2**20
"""Of one feed, beyond the lines of the newest look."""


class Frame(Protocol):
    """How lines become bytes."""

    def lines(self, page: Sequence[Line]) -> bytes: ...


class Ring:
    """The newest lines of one feed: all those with ``floor < id <= upto``."""

    def __init__(self, feed: Feed, upto: int) -> None:
        self.feed = feed
        self.floor = self.upto = upto
        self.viewers = 0
        self.moved = anyio.Event()
        self._lines: list[Line] = []
        self._ids: list[int] = []
        self._bytes = 0
        self._chunks: dict[tuple[int, Frame], tuple[bytes, int, bool]] = {}

    def extend(self, lines: Sequence[Line], upto: int) -> None:
        """Takes the next lines of the feed, which reach up to an id, and wakes the viewers."""
        self._lines += lines
        self._ids += [line.id for line in lines]
        self._bytes += sum(len(line.line) for line in lines)
        self.upto = upto
        self._chunks.clear()
        if len(self._lines) > RING_LINES or self._bytes > RING_BYTES:
            self._forget(len(self._lines) - len(lines))
        event, self.moved = self.moved, anyio.Event()
        event.set()

    def _forget(self, count: int) -> None:
        if count > 0:
            self.floor = self._ids[count - 1]
            del self._lines[:count], self._ids[:count]
            self._bytes = sum(len(line.line) for line in self._lines)

    def forget(self) -> None:
        """Keeps no line: viewers read the table, where something was redacted."""
        self._lines.clear()
        self._ids.clear()
        self._chunks.clear()
        self._bytes, self.floor = 0, self.upto

    def since(self, after: int, limit: int) -> list[Line]:
        """Lines after an id that is not below the floor."""
        start = bisect_right(self._ids, after)
        return self._lines[start : start + limit]

    def chunk(self, after: int, frame: Frame) -> tuple[bytes, int, bool]:
        """:meth:`since` as bytes, the id that they reach, whether the feed ends there: made once for all viewers."""
        key = (after, frame)
        made = self._chunks.get(key)
        if made is None:
            page, ended = up_to_the_end(self.feed, self.since(after, RING_LINES * 4))
            made = (frame.lines(page) if page else b"", page[-1].id if page else after, ended)
            self._chunks[key] = made
        return made


def up_to_the_end(feed: Feed, page: list[Line]) -> tuple[list[Line], bool]:
    """The page up to the feed's own terminal event, and whether it has it: a build beside it may well go on."""
    for place, line in enumerate(page, 1):
        if line.type in TERMINAL and line.stream == feed.stream:
            return page[:place], True
    return page, False


class Viewer:
    """One reader of one feed. ``after`` is the last line that it was given, and all that it must remember."""

    def __init__(self, hub: "Hub", ring: Ring, feed: Feed, after: int) -> None:
        self.after = after
        self.ended = feed.ended_id is not None and after >= feed.ended_id
        """Whether the terminal event lies behind the cursor."""
        self._hub = hub
        self._ring = ring
        self._feed = feed
        self._has = after  # everything of the feed up to here was given; runs ahead of `after` where others write
        self._in_ring = False  # the first read is of the table: the ring may not have looked yet

    async def page(self, timeout_s: float, limit: int) -> list[Line]:
        """The next lines; none when the feed stays quiet for so long, drains or has ended."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            moved = self._ring.moved
            page = await self._read(limit)
            if page:
                return page
            if not await self._wait(moved, deadline):
                break
        return []

    async def chunk(self, timeout_s: float, frame: Frame) -> bytes:
        """:meth:`page`, framed. Viewers that are at the same place are given the same bytes."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            moved = self._ring.moved
            if self._behind:
                page = await self._read(PAGE)
                chunk = frame.lines(page) if page else b""
            else:
                chunk, self._has, self.ended = self._ring.chunk(self._has, frame)
                self.after = self._has if chunk else self.after
            if chunk:
                return chunk
            if not await self._wait(moved, deadline):
                break
        return b""

    @property
    def _behind(self) -> bool:
        return not self._in_ring or self._has < self._ring.floor

    async def _read(self, limit: int) -> list[Line]:
        upto = self._ring.upto
        if self._behind:
            try:
                found = await self._hub.log.read_feed(self._feed, self._has, limit=limit)
            except Unavailable:  # the viewer keeps its cursor and the client its connection
                await anyio.sleep(jitter(0.2, 0.6))
                return []
            self._in_ring = complete = not found.more
            page = found[:]
        else:
            page = self._ring.since(self._has, limit)
            complete = len(page) < limit
        page, self.ended = up_to_the_end(self._feed, page)
        if page:
            self.after = self._has = page[-1].id
        if complete:
            self._has = max(self._has, upto)  # read after the ring had come this far: there is nothing in between
        return page

    async def _wait(self, moved: anyio.Event, deadline: float) -> bool:
        """Whether there may be something new; False when the time is over, or the server stops."""
        left_s = deadline - time.monotonic()
        if self._hub.draining or left_s <= 0:
            return False
        if self._behind:
            return True
        with anyio.move_on_after(left_s):
            await moved.wait()
        return True


class Hub:
    """Start :meth:`run` in a task group; watch with ``with hub.view(feed, after) as viewer``."""

    def __init__(self, log: Log, hints: Hints) -> None:
        self.log = log
        self.draining = False
        self.heartbeat = time.monotonic()
        """When the log was last asked how far it has come."""
        self._hints = hints
        self._head = 0
        self._rings: dict[tuple[str, ...], Ring] = {}

    @contextmanager
    def view(self, feed: Feed, after: int) -> Iterator[Viewer]:
        """A viewer for as long as the block lasts."""
        ring = self._rings.get(feed.streams)
        if ring is None:
            # From the newest id that was seen: what came after it is read from the table, or by the next look.
            ring = self._rings[feed.streams] = Ring(feed, self._head)
            self._hints.pulse()
        ring.viewers += 1
        try:
            yield Viewer(self, ring, feed, after)
        finally:
            ring.viewers -= 1
            if ring.viewers == 0:
                del self._rings[feed.streams]

    def drain(self) -> None:
        """Every viewer's next read is its last: streams end between two events."""
        self.draining = True
        for ring in self._rings.values():
            ring.extend((), ring.upto)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Tails what is watched until cancelled."""
        self._head = await self.log.head()
        task_status.started()
        while True:
            wait = self._hints.next()
            try:
                woken = await self._look()
            except Unavailable:
                await anyio.sleep(jitter(0.1, 0.5))
                continue
            self.heartbeat = time.monotonic()
            await anyio.sleep(COALESCE_S + woken * COALESCE_VIEWER_S)
            await wait()

    async def _look(self) -> int:
        """Reads what is new of everything watched; how many viewers that woke."""
        rings = list(self._rings.values())
        if not rings:
            return 0
        found = await self.log.read_feeds([(SYSTEM, self._head), *((ring.feed, ring.upto) for ring in rings)])
        self._head = found.head
        if any(line.type == "event.redacted" for line in found.pages[0]):
            for ring in rings:
                ring.forget()
        woken = 0
        for ring, page in zip(rings, found.pages[1:], strict=True):
            if page:
                # With more behind the page, the ring reaches as far as its lines do.
                ring.extend(page, page.last_id if page.more else found.head)
                woken += ring.viewers
            else:
                ring.upto = found.head
        if any(page.more for page in found.pages):
            self._hints.pulse()  # there is more
        return woken
