"""Hints: when to read on after a cursor.

A hint is a notification that somebody appended. Polling is the truth that a hint speeds up: a lost, early or doubled
hint changes nothing, so a dropped connection or a restarted server is waited out here and nobody else notices.
"""

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskStatus

from eventstore.clock import jitter
from eventstore.database import Database
from eventstore.errors import Unavailable

LOG = "ade_log"
"""Hints that anything was appended."""
WORK = "ade_work"
"""Hints that something other than lines was appended: there may be work."""

POLL_S = 1.0


class Hints:
    """The hints of one channel, for any number of waiting tasks. Start :meth:`run` in a task group."""

    def __init__(self, database: Database, channel: str, *, poll_s: float = POLL_S) -> None:
        self._database = database
        self._channel = channel
        self._poll_s = poll_s
        self._next = anyio.Event()

    def next(self) -> Callable[[], Awaitable[None]]:
        """What to await for the next hint. Ask for it *before* reading, so that no hint falls between the two."""
        event = self._next

        async def wait() -> None:
            with anyio.move_on_after(self._poll_s):
                await event.wait()

        return wait

    def pulse(self) -> None:
        """Wakes everyone who waits."""
        event, self._next = self._next, anyio.Event()
        event.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listens until cancelled; comes back after every failure."""
        task_status.started()
        while True:
            try:
                async for _ in self._database.listen(self._channel):
                    self.pulse()
            except Unavailable:
                await anyio.sleep(jitter(0.2, 1.0))
