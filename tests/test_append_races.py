"""Races for the log, held open in a named order: what the lock is for.

Each race is run on a naive variant first (``tests/naive/``), where it goes wrong, and then on the real one.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import psycopg
import pytest

from eventstore import Append, Leases, NewEvent, Page, Part
from eventstore.appender import _columns, _Waiting
from eventstore.database import Connection, call, connect
from tests.conftest import Server, Store, open_store

pytestmark = pytest.mark.anyio

opened = asynccontextmanager(open_store)
NAIVE = Path(__file__).parent / "naive"
LINE = NewEvent("job.line", b"{}", bulk=True)
CANCEL = NewEvent("job.cancel_requested", b"{}")
PATIENCE_S = 60

Act = Callable[[Connection], Awaitable[object]]
"""What one of two sessions does."""


def append_to(stream: str, token: int | None = None, position: int | None = None) -> Act:
    """One line, written as the appender writes it."""
    append = Append((Part(stream, [LINE], "ws", token=token, position=position),))
    return lambda session: call(session, "append", *_columns([_Waiting(append, patience_s=0)]))


def naive_append_to(stream: str) -> Act:
    """One line, by the naive variant that the test has installed."""
    return lambda session: session.execute("SELECT naive_append(%s)", [stream])


@pytest.fixture
def own_url(server: Server) -> Iterator[str]:
    """A database that the test may change."""
    url = server.copy()
    yield url
    server.drop(url)


def install(url: str, variant: str) -> None:
    """Puts a naive variant beside the real functions."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((NAIVE / f"{variant}.sql").read_bytes())


async def ids_after(session: Connection, after: int) -> list[int]:
    """What a reader sees after its cursor."""
    [page] = await call(session, "read_log", after=after, upto=2**62, limit=1000, most_bytes=2**20)
    return [line.id for line in Page(**page)]


async def waits(observer: Connection, waiting: Connection, holding: Connection, done: anyio.Event) -> bool:
    """Whether one session waits for another, or is done without."""
    question = "SELECT %s = ANY (pg_blocking_pids(%s)) AS waits"
    while not done.is_set():
        cursor = await observer.execute(question, [holding.info.backend_pid, waiting.info.backend_pid])
        if (row := await cursor.fetchone()) and row["waits"]:
            return True
    return False


async def overtake(
    url: str, first_act: Act, second_act: Act, begin: str = "BEGIN"
) -> tuple[bool, list[int], list[int]]:
    """Two sessions: the first acts, the second acts, the first commits.

    Answers whether the second waited for the first, what it sees once it has acted (a reader's first page), and what a
    reader that goes on from there sees when all is committed.
    """
    async with await connect(url) as first, await connect(url) as second, await connect(url) as reader:
        await first.execute("BEGIN")
        await first_act(first)
        page: list[int] = []
        done = anyio.Event()

        async def follow() -> None:
            await second.execute(begin.encode())
            await second_act(second)
            await second.execute("COMMIT")
            page.extend(await ids_after(second, 0))
            done.set()

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                waited = await waits(reader, second, first, done)
                await first.execute("COMMIT")
        return waited, page, await ids_after(reader, page[-1] if page else 0)


# I1: a reader never sees k+1 before k


async def test_ids_from_a_sequence_lose_an_event_for_ever(own_url: str) -> None:
    """The naive variant: 2 is committed while 1 is in flight; the reader goes on from 2, and never sees 1."""
    install(own_url, "append_by_sequence")
    waited, page, rest = await overtake(own_url, naive_append_to("job_1"), naive_append_to("job_2"))
    assert (waited, page, rest) == (False, [2], [])


async def test_append_events_loses_nothing(every_url: str) -> None:
    """The second append waits for the first, so that whoever sees 2 has seen 1."""
    waited, page, rest = await overtake(every_url, append_to("job_1"), append_to("job_2"))
    assert (waited, page, rest) == (True, [1, 2], [])


async def test_a_lock_and_a_read_in_one_statement_give_an_id_twice(own_url: str) -> None:
    """The naive variant: the second waits, but its snapshot is older than its lock."""
    install(own_url, "append_in_one_statement")
    with pytest.RaisesGroup(psycopg.errors.UniqueViolation):
        await overtake(own_url, naive_append_to("job_1"), naive_append_to("job_2"))


async def test_a_stale_snapshot_is_an_error_and_never_a_wrong_id(every_url: str) -> None:
    """Under REPEATABLE READ the function would number as the naive one does: the primary key stands behind it."""
    with pytest.RaisesGroup(psycopg.errors.UniqueViolation):
        await overtake(every_url, append_to("job_1"), append_to("job_2"), "BEGIN ISOLATION LEVEL REPEATABLE READ")


async def test_the_default_isolation_of_a_database_is_of_no_matter(own_url: str) -> None:
    """Our connections say themselves what they need."""
    with psycopg.connect(own_url, autocommit=True) as connection:
        connection.execute(
            psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'").format(
                psycopg.sql.Identifier(connection.info.dbname)
            )
        )
    waited, page, rest = await overtake(own_url, append_to("job_1"), append_to("job_2"))
    assert (waited, page, rest) == (True, [1, 2], [])


# I6: whoever holds a new token has seen all that was written under the old one


def take(session: Connection) -> Awaitable[object]:
    return call(session, "take_lease", stream="job_1", holder="new", seconds=60.0)


def naive_take(session: Connection) -> Awaitable[object]:
    return session.execute("SELECT naive_take_lease('job_1')")


async def expired_lease(url: str) -> int:
    """The token of an expired lease of job_1, whose first event is 1."""
    async with opened(url) as store:
        await store.appender.append(Append((Part("job_1", [LINE], "ws"),)))
        lease = await Leases(store.database, "old", 0).take("job_1")
    assert lease is not None
    return lease.token


async def test_a_lease_taken_at_once_is_written_behind(own_url: str) -> None:
    """The naive variant: the new holder reads all there is, and then the old one's append appears."""
    token = await expired_lease(own_url)
    install(own_url, "take_lease_at_once")
    waited, page, rest = await overtake(own_url, append_to("job_1", token), naive_take)
    assert (waited, page, rest) == (False, [1], [2])


async def test_a_taken_lease_has_nothing_behind_it(url: str) -> None:
    """The take waits for the append that was judged under the old token; the new holder reads it."""
    token = await expired_lease(url)
    waited, page, rest = await overtake(url, append_to("job_1", token), take)
    assert (waited, page, rest) == (True, [1, 2], [])


async def test_an_append_slips_past_a_lease_that_is_being_taken_at_once(own_url: str) -> None:
    """The naive variant: while the take is not committed, the old token is still good."""
    token = await expired_lease(own_url)
    install(own_url, "take_lease_at_once")
    waited, page, _ = await overtake(own_url, naive_take, append_to("job_1", token))
    assert (waited, page) == (False, [1, 2])


async def test_an_append_that_waits_for_a_take_is_fenced_by_it(url: str) -> None:
    """It is judged when it has the lock, not when it is sent."""
    token = await expired_lease(url)
    waited, page, rest = await overtake(url, take, append_to("job_1", token))
    assert (waited, page, rest) == (True, [1], [])


async def test_of_two_who_take_an_expired_lease_one_gets_it(url: str) -> None:
    """The second waits for the first, and then finds the lease alive."""
    token = await expired_lease(url)
    waited, _, _ = await overtake(url, take, take)
    async with await connect(url) as session:
        cursor = await session.execute("SELECT token FROM leases WHERE stream = 'job_1'")
        row = await cursor.fetchone()
    assert (waited, row) == (True, {"token": token + 1})


async def test_an_append_waits_for_no_renewal(url: str) -> None:
    """It holds the lock of the log, and a renewal holds many leases: if each waited for the other, all would stand."""
    token = await expired_lease(url)

    def renew(session: Connection) -> Awaitable[object]:
        return call(session, "renew_leases", streams=["job_1"], tokens=[token], seconds=60.0)

    waited, page, _ = await overtake(url, renew, append_to("job_1", token, position=0))
    assert (waited, page) == (False, [1, 2])


# I10: a flood of lines moves no expectation

MOST_TRIES = 100


async def tries_in_a_flood(store: Store, decide: Callable[[Callable[[], Awaitable[None]]], Awaitable[bool]]) -> int:
    """How often a decision is taken and tried until it lands, or is given up, while lines are written.

    A decision takes its time: it awaits what it is given, which is that the next lines have landed.
    """
    moved = anyio.Event()

    async def write() -> None:
        nonlocal moved
        while True:
            await store.appender.append(Append((Part("job_1", [LINE] * 20, "ws"),)))
            event, moved = moved, anyio.Event()
            event.set()

    async def lines() -> None:
        for _ in range(2):  # the first may have been on their way
            await moved.wait()

    await store.appender.append(Append((Part("job_1", [CANCEL], "ws"),)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        tries = 1
        while tries < MOST_TRIES and not await decide(lines):
            tries += 1
        tasks.cancel_scope.cancel()
    return tries


async def test_a_cancel_that_expects_the_length_of_its_stream_never_lands_in_a_flood(own_url: str) -> None:
    """The naive variant: whoever reads the stream, decides and then appends, finds that a line was faster."""
    install(own_url, "append_expecting_seq")
    async with opened(own_url) as store, await connect(own_url) as session:

        async def decide(lines: Callable[[], Awaitable[None]]) -> bool:
            stream = await store.log.stream("job_1")
            assert stream is not None
            await lines()
            cursor = await session.execute("SELECT naive_append_expecting('job_1', %s) AS lands", [stream.last_seq])
            row = await cursor.fetchone()
            return row is not None and bool(row["lands"])

        assert await tries_in_a_flood(store, decide) == MOST_TRIES


async def test_a_cancel_that_expects_the_newest_control_event_lands_at_once(url: str) -> None:
    """Lines are not what it rests on: one try, in the same flood."""
    async with opened(url) as store:

        async def decide(lines: Callable[[], Awaitable[None]]) -> bool:
            newest = (await store.log.control_events("job_1"))[-1].id
            await lines()
            await store.appender.append(Append((Part("job_1", [CANCEL], expect=newest),)))
            return True

        assert await tries_in_a_flood(store, decide) == 1


# The lock never waits for a client

APPENDER = """
import sys, anyio
from eventstore import Append, Appender, Database, NewEvent, Part

async def main(url):
    async with Database(url) as database, anyio.create_task_group() as tasks:
        appender = Appender(database)
        await tasks.start(appender.run)
        await appender.append(Append((Part("job_1", [NewEvent("job.line", b"{}", bulk=True)], "ws"),)))

anyio.run(main, sys.argv[1])
"""

PIPELINED = """
import sys, psycopg

with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.pgconn.enter_pipeline_mode()
    connection.pgconn.send_query_params(
        b"SELECT append_events_v2('{1}', '{job_1}', '{ws}', '{NULL}', '{NULL}', '{NULL}', '{1}', '{2}', '{0}', '{f}',"
        b" '{NULL}', '{NULL}', '{1}', '{0}', '{1}', '{job.line}', '{t}', '{}')", None)
    connection.pgconn.send_flush_request()
    connection.pgconn.flush()
    sys.stdin.read()  # and only then what else is in the pipeline, and the end of the transaction
"""


@contextmanager
def client(script: str, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that appends; killed in the end."""
    process = subprocess.Popen([sys.executable, "-c", script, url], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Stops a process; it stands still when this returns."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


async def number(session: Connection, question: bytes, *parameters: object) -> int:
    """The answer to a question, asked until there is one."""
    while True:
        cursor = await session.execute(question, parameters)
        if row := await cursor.fetchone():
            return int(row["answer"])


WHO_WAITS = b"""
SELECT pid AS answer FROM pg_locks JOIN pg_database d ON d.oid = database AND d.datname = current_database()
WHERE locktype = 'advisory' AND NOT granted"""

HOLDS_WHILE_IT_WAITS_FOR_ITS_CLIENT = b"""
SELECT 1 AS answer FROM pg_stat_activity WHERE pid = %s
AND CASE WHEN wait_event = 'ClientRead' THEN pid = ANY (pg_blocking_pids(%s)) END"""


async def freezes_others(url: str, script: str) -> bool:
    """Whether a client that is stopped in the middle of its append keeps others from appending."""
    async with await connect(url) as observer, await connect(url) as other:
        await observer.execute("SELECT pg_advisory_lock(4702111234474983745)")
        with client(script, url) as process, anyio.fail_after(PATIENCE_S):
            backend = await number(observer, WHO_WAITS)
            stop(process)
            await observer.execute("SELECT pg_advisory_unlock(4702111234474983745)")
            frozen = False
            async with anyio.create_task_group() as tasks:

                async def see() -> None:
                    nonlocal frozen
                    await number(observer, HOLDS_WHILE_IT_WAITS_FOR_ITS_CLIENT, backend, other.info.backend_pid)
                    frozen = True
                    process.kill()

                tasks.start_soon(see)
                await append_to("job_2")(other)
                tasks.cancel_scope.cancel()
        return frozen


async def test_a_stopped_client_with_a_pipeline_freezes_the_log(url: str) -> None:
    """The naive variant: what ends the transaction is still with the client, so its lock stays until it is killed."""
    assert await freezes_others(url, PIPELINED)


async def test_a_stopped_client_freezes_nobody(every_url: str) -> None:
    """Nothing is pipelined behind the append: it commits without its client, and the others go on."""
    assert not await freezes_others(every_url, APPENDER)
    async with await connect(every_url) as session:
        assert await ids_after(session, 0) == [1, 2]
