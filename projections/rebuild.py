"""Makes a projection's tables anew, beside the live ones, and swaps them in: no reader sees a half-built table, and
appends go on but for the moment of the swap."""

import time
from collections.abc import Callable

import anyio

from eventstore.clock import jitter
from eventstore.database import Connection, call, connect, script, transaction
from eventstore.errors import LockTimeout, RebuildRunning
from eventstore.statements import texts
from projections.tables import Projection

PAGE_IDS = 20_000
CLOSING_S = 1.0
"""A session that was just closed may hold its lock for a moment: the one before, where several are rebuilt in turn."""
CLOSE_IDS = 1_000
"""What is left for the swap, while nothing is appended."""

Progress = Callable[[int, int], None]


async def rebuild_alone(connection: Connection) -> None:
    """Nobody else rebuilds, compares or redacts until this session ends. Raises RebuildRunning."""
    deadline = time.monotonic() + CLOSING_S
    while not (await call(connection, "rebuild_lock"))[0]["granted"]:
        if time.monotonic() > deadline:
            raise RebuildRunning
        await anyio.sleep(jitter(0.02, 0.1))


async def rebuild(url: str, projection: Projection, progress: Progress = lambda _done, _head: None) -> int:
    """Rebuilds one projection; the id that it has reached. ``progress`` is told ids done and the head.

    Raises RebuildRunning, or DependedOn where somebody's own view stands on a table.
    """
    views = dict(texts("projections"))["views"]
    tables = list(projection.tables)
    async with await connect(url) as connection:
        await rebuild_alone(connection)
        await call(connection, "rebuild_begin", tables=tables)
        done = 0
        while True:
            head = (await call(connection, "head"))[0]["head"]
            if head - done <= CLOSE_IDS:
                try:
                    async with transaction(connection):
                        swapped = await call(
                            connection, "rebuild_swap", projection=projection.name, tables=tables, after=done
                        )
                        await script(connection, views)
                        await call(connection, "rebuild_end", tables=tables)
                    progress(head, head)
                    return int(swapped[0]["head"])
                except LockTimeout:  # somebody reads the live tables for long; let the appends through and try again
                    await anyio.sleep(jitter(0.5, 2.0))
                    continue
            upto = min(head, done + PAGE_IDS)
            await call(connection, "rebuild_page", projection=projection.name, after=done, upto=upto)
            done = upto
            progress(done, head)
