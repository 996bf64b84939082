"""Following the log: everything once and in order, whatever becomes of hints and connections."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import psycopg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from eventstore import Append, NewEvent, Page, Part
from eventstore.tail import LOG, WORK, Hints, follow
from tests.conftest import Store

pytestmark = pytest.mark.anyio

NOTED = NewEvent("job.noted", b"{}")
LINE = NewEvent("job.line", b"{}", bulk=True)
NEVER_S = 3600.0
"""A poll that no test lives to see: what arrives was hinted."""
PATIENCE_S = 10.0


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


async def page_of(pages: AsyncIterator[Page]) -> list[int]:
    """The ids of a tail's next page, which must come."""
    with anyio.fail_after(PATIENCE_S):
        return [line.id for line in await anext(pages)]


async def ids_of(pages: AsyncIterator[Page], upto: int) -> list[int]:
    """The ids that a tail brings, up to one that must come."""
    ids: list[int] = []
    while not ids or ids[-1] < upto:
        ids += await page_of(pages)
    return ids


async def test_a_tail_catches_up_page_by_page_and_then_follows(every_store: Store) -> None:
    """Full pages come at once, the last one says by its size that the head is reached; then what is new comes."""
    await append(every_store, *[LINE] * 25)
    async with hints_of(every_store) as hints:
        pages = follow(every_store.log, hints, 3, limit=10)
        caught_up = [await page_of(pages) for _ in range(3)]
        assert caught_up == [list(range(4, 14)), list(range(14, 24)), [24, 25]]
        await append(every_store, LINE)
        assert await ids_of(pages, 26) == [26]


async def test_an_empty_page_says_that_the_tail_has_caught_up(store: Store) -> None:
    """At the head, and where the last page was full to the brim."""
    async with hints_of(store) as hints:
        assert await page_of(follow(store.log, hints, 0)) == []
        await append(store, *[LINE] * 10)
        pages = follow(store.log, hints, 0, limit=10)
        assert [len(await page_of(pages)) for _ in range(2)] == [10, 0]


async def test_a_tail_waits_for_no_poll(store: Store) -> None:
    """A hint brings what was appended while the tail waited."""
    async with hints_of(store) as hints:
        pages = follow(store.log, hints, 0)
        assert await page_of(pages) == []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, store, NOTED)
            assert await ids_of(pages, 1) == [1]


async def test_a_hint_between_the_read_and_the_wait_is_not_lost(store: Store) -> None:
    """It is asked for before the read: what came in between does not wait for the next one."""
    async with hints_of(store) as hints:
        pages = follow(store.log, hints, 0)
        assert await page_of(pages) == []
        hinted = hints.next()
        await append(store, NOTED)
        with anyio.fail_after(PATIENCE_S):
            await hinted()
        assert await ids_of(pages, 1) == [1]


async def test_a_lost_hint_costs_no_more_than_a_poll(store: Store) -> None:
    """On a channel that nobody ever notifies, everything comes all the same."""
    async with anyio.create_task_group() as tasks:
        silent = Hints(store.database, "silence", poll_s=0.05)
        tasks.start_soon(silent.run)
        pages = follow(store.log, silent, 0)
        for n in range(1, 4):
            await append(store, LINE)
            assert await ids_of(pages, n) == [n]
        begun = time.monotonic()
        assert await page_of(pages) == []
        assert time.monotonic() - begun >= 0.05, "it did not wait for the poll"
        tasks.cancel_scope.cancel()


async def test_an_early_or_doubled_hint_changes_nothing(store: Store) -> None:
    """It costs a read that finds nothing; every event comes once."""
    await append(store, *[LINE] * 5)
    async with hints_of(store) as hints:
        pages = follow(store.log, hints, 0, limit=2)
        ids: list[int] = []
        for _ in range(20):
            hints.pulse()
            hints.pulse()
            ids += await page_of(pages)
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
    async with hints_of(every_store) as hints:
        pages = follow(every_store.log, hints, 0)
        assert await ids_of(pages, 3) == [1, 2, 3]
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
            assert await ids_of(pages, n) == [n]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.one_of(st.integers(1, 12), st.none()), max_size=20),
    limit=st.integers(1, 7),
    back=st.integers(0, 9),
)
async def test_pages_of_any_size_bring_everything_once(
    store: Store, steps: list[int | None], limit: int, back: int
) -> None:
    """However appends and pages alternate, a tail brings what a read brings, in full pages but the last."""
    head = await store.log.head()
    after = max(0, head - back)
    hints = Hints(store.database, LOG, poll_s=0)
    pages = follow(store.log, hints, after, limit=limit)
    ids: list[int] = []
    for step in [*steps, *[None] * (sum(step or 0 for step in steps) + back)]:
        if step is None:
            page = await page_of(pages)
            assert len(page) == min(limit, head - after - len(ids))
            event("a full page" if len(page) == limit else "a page that ends at the head")
            ids += page
        else:
            await append(store, *[LINE] * step)
            head += step
    assert ids == list(range(after + 1, head + 1))
