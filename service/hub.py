"""The one tail of a process, shared by all its viewers.

A viewer is a cursor into a feed. The hub knows which streams somebody watches, asks how far those have come whenever a
hint arrives (and at least every second), and wakes the viewers of the streams that moved; a viewer then reads after its
cursor. So there is no live mode: every byte served is a cursor read, a slow viewer holds nothing but its cursor, and a
quiet run's viewers sleep while another run floods.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio.abc import TaskStatus

from eventstore import Feed, Line, Log
from eventstore.clock import jitter
from eventstore.errors import Unavailable
from eventstore.log import PAGE
from eventstore.tail import Hints
from projections.events import TERMINAL

COALESCE_S = 0.004
"""Viewers are woken at once when idle and no oftener than this under load."""


class Viewer:
    """One reader of one feed. ``after`` is all it remembers."""

    def __init__(self, hub: "Hub", feed: Feed, after: int) -> None:
        self.feed = feed
        self.after = after
        self.ended = feed.ended_id is not None and after >= feed.ended_id
        """Whether the terminal event lies behind the cursor."""
        self._hub = hub
        self._moved = anyio.Event()

    def wake(self) -> None:
        self._moved.set()

    async def next(self, timeout_s: float, *, limit: int = PAGE) -> list[Line]:
        """The next lines, or none when the feed stays quiet for so long, drains or has ended."""
        deadline = time.monotonic() + timeout_s
        while not self.ended:
            self._moved = anyio.Event()  # before the read, so that no move falls between the read and the wait
            try:
                page = await self._hub.log.read_feed(self.feed, self.after, limit=limit)
            except Unavailable:  # the viewer keeps its cursor and the client its connection
                await anyio.sleep(jitter(0.2, 0.6))
                page = []
            if page:
                return self._take(page)
            if self._hub.draining.is_set() or time.monotonic() >= deadline:
                return []
            with anyio.move_on_after(deadline - time.monotonic()):
                await self._moved.wait()
        return []

    def _take(self, page: list[Line]) -> list[Line]:
        """The page up to the feed's own terminal event: a build beside it may well go on."""
        for place, line in enumerate(page, 1):
            if line.stream == self.feed.stream and line.type in TERMINAL:
                self.ended = True
                page = page[:place]
                break
        self.after = page[-1].id
        return page


class Hub:
    """Wakes viewers. Start :meth:`run` in a task group; watch with ``with hub.view(feed, after) as viewer``."""

    def __init__(self, log: Log, hints: Hints) -> None:
        self.log = log
        self.draining = anyio.Event()
        self.heartbeat = time.monotonic()
        """When the log was last asked how far it has come."""
        self._hints = hints
        self._watched: dict[str, set[Viewer]] = defaultdict(set)
        self._seen: dict[str, int] = {}

    @contextmanager
    def view(self, feed: Feed, after: int) -> Iterator[Viewer]:
        """A viewer for as long as the block lasts."""
        viewer = Viewer(self, feed, after)
        for stream in feed.streams:
            self._watched[stream].add(viewer)
        try:
            yield viewer
        finally:
            for stream in feed.streams:
                self._watched[stream].discard(viewer)
                if not self._watched[stream]:
                    del self._watched[stream]
                    self._seen.pop(stream, None)

    def drain(self) -> None:
        """Every viewer's next read is its last: streams end between two events."""
        self.draining.set()
        for viewers in self._watched.values():
            for viewer in viewers:
                viewer.wake()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Tails what is watched until cancelled."""
        task_status.started()
        while True:
            wait = self._hints.next()
            try:
                await self._look()
                self.heartbeat = time.monotonic()
            except Unavailable:
                await anyio.sleep(jitter(0.1, 0.5))
                continue
            await anyio.sleep(COALESCE_S)
            await wait()

    async def _look(self) -> None:
        if not self._watched:
            return
        for row in await self.log.database.rows("last_ids", streams=list(self._watched)):
            stream, last_id = row["stream"], row["last_id"]
            if last_id != self._seen.get(stream) and stream in self._watched:
                self._seen[stream] = last_id
                for viewer in self._watched[stream]:
                    viewer.wake()
