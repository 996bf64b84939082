"""What everyone writes first to show a log live: viewers that are not cursors.

A channel passes on each line as it comes, to whoever listens just then. What was before is read from the table, and the
two are put together; or the channel keeps a queue for each viewer, and lets go of what does not fit.
"""

from collections import deque
from collections.abc import Sequence

from eventstore import Feed, Line, Log


class Channel:
    """Lines as they come, for those who listen."""

    def __init__(self) -> None:
        self.listeners: list[deque[Line]] = []

    def listen(self, most: int | None = None) -> deque[Line]:
        """A queue of the lines that come from now on; of at most so many, the newest."""
        queue: deque[Line] = deque(maxlen=most)
        self.listeners.append(queue)
        return queue

    def publish(self, lines: Sequence[Line]) -> None:
        for queue in self.listeners:
            queue.extend(lines)


class HistoryThenLive:
    """Reads what was, then listens: what comes in between is lost."""

    def __init__(self, log: Log, feed: Feed, channel: Channel) -> None:
        self._log, self._feed, self._channel = log, feed, channel
        self.lines: list[Line] = []
        self._queue: deque[Line] = deque()

    async def begin(self) -> None:
        self.lines += await self._log.read_feed(self._feed, 0)

    async def go_on(self) -> None:
        self._queue = self._channel.listen()

    def read(self) -> list[Line]:
        while self._queue:
            self.lines.append(self._queue.popleft())
        return self.lines


class LiveThenHistory(HistoryThenLive):
    """Listens, then reads what was: what comes in between is there twice."""

    async def begin(self) -> None:
        self._queue = self._channel.listen()

    async def go_on(self) -> None:
        self.lines += await self._log.read_feed(self._feed, 0)
