"""The log beside PostgreSQL itself: appends beside raw COPY into the same table, reads beside a plain SELECT."""

import statistics
import time
from datetime import UTC, datetime

import anyio
import psycopg

from benchmarks.table import Table
from eventstore import Append, Appender, Database, Feed, Log, NewEvent, Part, encode
from eventstore.clock import ulid

LINE = "mapped 12 columns of invoice 2026-11-20 to the ledger, nothing left over"
WRITERS = 16


def _lines(count: int) -> list[NewEvent]:
    return [
        NewEvent("run.log", encode({"stream": "stdout", "message": f"{LINE} {number}"}), bulk=True)
        for number in range(count)
    ]


def raw_copy(url: str, events: int) -> float:
    """Events per second of binary COPY, 1,000 rows a transaction, into a table with the same columns and indexes."""
    lines, at = [event.data.decode() for event in _lines(1_000)], 0
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE copied (LIKE events INCLUDING ALL)")
        started = time.perf_counter()
        while at < events:
            with connection.cursor().copy("COPY copied FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(["int8", "text", "int8", "text", "text", "bool", "timestamptz", "text"])
                for line in lines:
                    at += 1
                    copy.write_row((at, "run_copied", at, "default", "run.log", True, moment, line))
        took = time.perf_counter() - started
        connection.execute("DROP TABLE copied")
    return at / took


def plain_select(url: str) -> float:
    """Rows per second of reading the payloads alone, a page at a time."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor(binary=True)
        started, at, rows = time.perf_counter(), 0, 0
        while page := cursor.execute(
            "SELECT id, data FROM events WHERE id > %s ORDER BY id LIMIT 1000", (at,), prepare=True
        ).fetchall():
            at, rows = page[-1][0], rows + len(page)
        return rows / (time.perf_counter() - started)


async def measure(url: str, table: Table, events: int) -> None:
    """Appends, then reads, about ``events`` events each."""
    copied = table.add("raw COPY, 1,000 rows a transaction", raw_copy(url, events), "events/s")
    async with Database(url) as database, anyio.create_task_group() as tasks:
        appender = Appender(database)
        await tasks.start(appender.run)
        for size in (1_000, 100):
            rate = await _one_writer(appender, size, events if size == 1_000 else events // 4)
            table.add(f"append, one writer, batches of {size:,}", rate, "events/s", limit="raw COPY", of=copied)
        for size in (20, 1):
            rate, p99_ms = await _many_writers(appender, size, max(20, events // 40 // WRITERS))
            table.add(
                f"append, {WRITERS} writers, {size} events each", rate * size, "events/s", limit=f"p99 {p99_ms:.1f} ms"
            )
        await _single(appender, table)
        await _read(url, Log(database), table)
        tasks.cancel_scope.cancel()


async def _one_writer(appender: Appender, size: int, events: int) -> float:
    stream, lines = f"bench_{ulid()}", _lines(size)
    started = time.perf_counter()
    for _ in range(events // size):
        await appender.append(Append((Part(stream, lines, workspace="default"),)))
    return events / (time.perf_counter() - started)


async def _many_writers(appender: Appender, size: int, appends: int) -> tuple[float, float]:
    lines, took_s = _lines(size), []

    async def write() -> None:
        stream = f"bench_{ulid()}"
        for _ in range(appends):
            before = time.perf_counter()
            await appender.append(Append((Part(stream, lines, workspace="default"),)))
            took_s.append(time.perf_counter() - before)

    started = time.perf_counter()
    async with anyio.create_task_group() as writers:
        for _ in range(WRITERS):
            writers.start_soon(write)
    return WRITERS * appends / (time.perf_counter() - started), statistics.quantiles(took_s, n=100)[98] * 1000


async def _single(appender: Appender, table: Table) -> None:
    stream, lines, took_s = f"bench_{ulid()}", _lines(1), []
    for _ in range(300):
        before = time.perf_counter()
        await appender.append(Append((Part(stream, lines, workspace="default"),)))
        took_s.append(time.perf_counter() - before)
    p99_ms = statistics.quantiles(took_s, n=100)[98] * 1000
    table.add("single append, idle, p50", statistics.median(took_s) * 1000, "ms", limit=f"p99 {p99_ms:.1f} ms")


async def _read(url: str, log: Log, table: Table) -> None:
    selected = table.add("plain SELECT of ids and payloads", plain_select(url), "rows/s")
    started, after, count = time.perf_counter(), 0, 0
    while page := await log.read(after):
        after, count = page[-1].id, count + len(page)
    rate = count / (time.perf_counter() - started)
    table.add("replay of the whole log, as lines", rate, "events/s", limit="plain SELECT", of=selected)
    stream = (await log.read(1, limit=1))[0].stream
    started, after, count = time.perf_counter(), 0, 0
    feed = Feed(stream, None, 1, None)
    while page := await log.read_feed(feed, after):
        after, count = page[-1].id, count + len(page)
    rate = count / (time.perf_counter() - started)
    table.add("replay of one feed, as lines", rate, "events/s", limit="plain SELECT", of=selected)
