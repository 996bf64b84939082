"""Hints, and the tail that they speed up: everything once and in order, whatever becomes of hints and connections."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import psycopg
import pytest

from eventstore import Append, NewEvent, Part
from eventstore.selection import Selection
from eventstore.tail import LOG, WORK, Hints
from service.hub import Hub, Viewer
from tests.conftest import Store

pytestmark = pytest.mark.anyio

NOTED = NewEvent("job.noted", b"{}")
LINE = NewEvent("job.line", b"{}", bulk=True)
NEVER_S = 3600.0
"""A poll that no test lives to see: what arrives was hinted."""
PATIENCE_S = 60


@asynccontextmanager
async def hints_of(store: Store, channel: str = LOG, poll_s: float = NEVER_S) -> AsyncIterator[Hints]:
    """Hints that are being listened for."""
    hints = Hints(store.database, channel, poll_s=poll_s)
    listening = hints.next()
    async with anyio.create_task_group() as tasks:
        await tasks.start(hints.run)
        with anyio.fail_after(PATIENCE_S):
            await listening()  # the first pulse comes when LISTEN has been said
        yield hints
        tasks.cancel_scope.cancel()


async def append(store: Store, *events: NewEvent) -> None:
    await store.appender.append(Append((Part("job_1", events, "ws"),)))


@asynccontextmanager
async def tail_of(store: Store, hints: Hints, after: int = 0) -> AsyncIterator[Viewer]:
    """A viewer of the whole log."""
    hub = Hub(store.log, hints)
    async with anyio.create_task_group() as tasks:
        await tasks.start(hub.run)
        with hub.view(Selection(), after) as viewer, anyio.fail_after(PATIENCE_S):
            yield viewer
        tasks.cancel_scope.cancel()


async def ids_of(tail: Viewer, upto: int, limit: int = 1_000) -> list[int]:
    """The ids that a tail brings, up to one that must come."""
    ids: list[int] = []
    while not ids or ids[-1] < upto:
        ids += [line.id for line in await tail.page(PATIENCE_S, limit)]
    return ids


async def test_a_tail_catches_up_page_by_page_and_then_follows(every_store: Store) -> None:
    """Full pages come at once, an empty one says that the head is reached; then what is new comes."""
    await append(every_store, *[LINE] * 25)
    async with hints_of(every_store) as hints, tail_of(every_store, hints, 3) as tail:
        caught_up = [[line.id for line in await tail.page(0, 10)] for _ in range(4)]
        assert caught_up == [list(range(4, 14)), list(range(14, 24)), [24, 25], []]
        await append(every_store, LINE)
        assert await ids_of(tail, 26) == [26]


async def test_a_tail_waits_for_no_poll(store: Store) -> None:
    """A hint brings what was appended while the tail waited."""
    async with hints_of(store) as hints, tail_of(store, hints) as tail, anyio.create_task_group() as tasks:
        assert len(await tail.page(0, 10)) == 0
        tasks.start_soon(append, store, NOTED)
        assert await ids_of(tail, 1) == [1]


async def test_a_hint_between_the_read_and_the_wait_is_not_lost(store: Store) -> None:
    """It was asked for before the read: what came in between does not wait for the next one."""
    async with hints_of(store) as hints:
        wait, seen = hints.next(), hints.next()
        await append(store, NOTED)
        with anyio.fail_after(PATIENCE_S):
            await seen()
            await wait()


async def test_a_lost_hint_costs_no_more_than_a_poll(store: Store) -> None:
    """On a channel that nobody ever notifies, everything comes all the same."""
    silent = Hints(store.database, "silence", poll_s=0.05)
    async with tail_of(store, silent) as tail:
        for n in range(1, 4):
            await append(store, LINE)
            assert await ids_of(tail, n) == [n]


async def test_an_early_or_doubled_hint_changes_nothing(store: Store) -> None:
    """It costs a look that finds nothing; every event comes once."""
    async with hints_of(store) as hints, tail_of(store, hints) as tail:
        ids: list[int] = []
        for n in range(1, 21):
            hints.pulse()
            hints.pulse()
            if n % 4 == 0:
                await append(store, LINE)
            ids += [line.id for line in await tail.page(0.01, 2)]
        ids += await ids_of(tail, 5) if ids[-1:] != [5] else []
        assert ids == [1, 2, 3, 4, 5]


async def test_work_is_hinted_by_control_events_alone(store: Store) -> None:
    """A flood of lines wakes no worker."""
    async with await psycopg.AsyncConnection.connect(store.database.url, autocommit=True) as listener:
        for channel in (LOG, WORK):
            await listener.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
        async with aclosing(listener.notifies(timeout=PATIENCE_S)) as heard:
            await append(store, LINE)
            assert (await anext(heard)).channel == LOG
            await append(store, NOTED)
            assert [(await anext(heard)).channel for _ in range(2)] == [LOG, WORK]


async def test_a_tail_outlives_its_connections(every_store: Store) -> None:
    """The listener's, the pool's and the appender's are all dropped: it listens again, and has missed nothing."""
    await append(every_store, *[LINE] * 3)
    async with hints_of(every_store) as hints, tail_of(every_store, hints) as tail:
        assert await ids_of(tail, 3) == [1, 2, 3]
        for n in range(4, 7):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):  # so that the pool holds several connections
                    tasks.start_soon(every_store.log.head)
            with psycopg.connect(every_store.database.url, autocommit=True) as connection:
                ended = connection.execute(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                ).fetchall()
            assert len(ended) >= 3
            await every_store.appender.append(Append((Part("job_1", [LINE], "ws"),), key=str(n)))
            assert await ids_of(tail, n) == [n]
