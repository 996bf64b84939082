"""Makes a projection's tables anew, beside the live ones, and swaps them in: no reader sees a half-built table, and
appends go on but for the moment of the swap."""

from collections.abc import Callable

import anyio

from eventstore.clock import jitter
from eventstore.database import call, connect, script, transaction
from eventstore.errors import LockTimeout, RebuildRunning
from eventstore.statements import texts
from projections.tables import Projection

PAGE_IDS = 20_000
CLOSE_IDS = 1_000
"""What is left for the swap, while nothing is appended."""

Progress = Callable[[int, int], None]


async def rebuild(url: str, projection: Projection, progress: Progress = lambda _done, _head: None) -> int:
    """Rebuilds one projection; the id that it has reached. ``progress`` is told ids done and the head.

    Raises RebuildRunning, or DependedOn where somebody's own view stands on a table.
    """
    views = dict(texts("projections"))["views"]
    tables = list(projection.tables)
    async with await connect(url) as connection:
        if not (await call(connection, "rebuild_lock"))[0]["granted"]:
            raise RebuildRunning
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
