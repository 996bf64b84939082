"""Writing: one writer, many writers, many processes, one event at a time."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import anyio
import psycopg

from benchmarks import peers
from benchmarks.bench import Bench, check
from benchmarks.table import Target, at_least, at_most, number, p50_p99, percentile
from benchmarks.writing import Beside, appending, dense, fill, lines, write
from eventstore.clock import ulid

TURNS = 5
COPY, COPY_100 = 0, -100
"""The sizes of batches that stand for COPY among the rates: of 1,000 rows a transaction, and of 100."""
WRITERS = 16
PROCESSES = 4
UNCHANGED = 1.5
"""What still counts as unchanged: two p50 of the same thing differ by this much on a machine that others use."""


def one_writer(bench: Bench) -> None:
    """Batches of 1,000 and of 100, beside the peers."""
    library, jetstream, commits = bench.eventsourcing, bench.jetstream, bench.commits
    rates = _beside_copy(bench)
    copied = rates[COPY]
    for size, rows in ((COPY, "1,000"), (COPY_100, "100")):
        what = f"raw COPY, {rows} rows a transaction, index on (stream, id)"
        bench.table.add(what, f"{number(statistics.median(rates[size]))} events/s")
    for size, least in ((1_000, 1.0), (100, 0.6)):
        rate = statistics.median(rates[size])
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates[size], copied, strict=True))
        targets, beside = [at_least(ratio, least, "× COPY")], f"{ratio:.2f} × raw COPY"
        if size == 100:
            alike = statistics.median(ours / theirs for ours, theirs in zip(rates[size], rates[COPY_100], strict=True))
            beside += f" of 1,000, {alike:.2f} × that of 100"
        if library:
            targets.append(at_least(rate / library[size], 3, "× eventsourcing"))
            beside += f", {rate / library[size]:.1f} × eventsourcing"
        if jetstream:
            targets.append(at_least(rate / jetstream.synced, 3, "× JetStream after fsync"))
            beside += f", {rate / jetstream.synced:.1f} × JetStream after fsync"
            beside += f" ({rate / jetstream.buffered_bare:.1f} × before it)"
        beside += f", {rate / commits:.0f} × a commit per line"
        what = f"append, one writer, batches of {size:,}"
        bench.table.add(what, f"{number(rate)} events/s", *targets, beside=beside)


def _beside_copy(bench: Bench) -> dict[int, list[float]]:
    """Events per second of each turn of COPY and of appends in batches of both sizes.

    They take turns, so that whatever else the machine does for a while is felt by all.
    """
    count, rates = bench.of(1_000_000, 90_000) // TURNS, defaultdict[int, list[float]](list)
    with (
        bench.database(migrated=False) as raw,
        bench.database() as by_1_000,
        bench.database() as by_100,
        psycopg.connect(raw, autocommit=True) as connection,
    ):
        connection.execute(peers.TABLE)
        for turn in range(TURNS):
            rates[COPY].append(peers.copy(connection, 1 + 2 * turn * count, count))
            rates[COPY_100].append(peers.copy(connection, 1 + (2 * turn + 1) * count, count, 100))
            for size, url in ((1_000, by_1_000), (100, by_100)):
                rates[size].append(anyio.run(fill, url, f"bench_{ulid()}", count, size))
        for url in (by_1_000, by_100):
            check(dense(url), "ids are not dense")
    return rates


def writers(bench: Bench) -> None:
    """Sixteen at once through one appender."""
    for size, appends, least in ((20, bench.of(2_000, 100), 150_000), (1, bench.of(5_000, 300), 15_000)):
        with bench.database() as url:
            span_s, took_s = anyio.run(_write_at_once, url, WRITERS, size, appends)
            rate = WRITERS * appends * size / (span_s[1] - span_s[0])
            check(dense(url), "ids are not dense")
        what = f"append, {WRITERS} writers through one appender, {size} event{'s' * (size > 1)} each"
        unit = "events/s" if size > 1 else "appends/s"
        targets = at_least(rate, least, unit), at_most(percentile(took_s, 99) * 1000, 5, "ms p99")
        bench.table.add(what, f"{number(rate)} {unit}", *targets, beside=f"{p50_p99(took_s)}; ids dense")


def processes(bench: Bench) -> None:
    """Four processes, each with an appender of its own and four writers."""
    appends, size = bench.of(2_000, 100), 20
    with bench.database() as url, ExitStack() as running:
        parts = [
            running.enter_context(Beside(anyio.run, _write_at_once, url, WRITERS // PROCESSES, size, appends))
            for _ in range(PROCESSES)
        ]
        spans = [part.result()[0] for part in parts]
        written = PROCESSES * (WRITERS // PROCESSES) * size * appends
        rate = written / (max(end for _, end in spans) - min(start for start, _ in spans))
        check(dense(url), "ids are not dense")
    what = f"append, {PROCESSES} processes with {WRITERS // PROCESSES} writers each, {size} events each"
    bench.table.add(what, f"{number(rate)} events/s", at_least(rate, 80_000, "events/s"), beside="ids dense")


def single(bench: Bench) -> None:
    """One event at a time; then again beside a transaction that keeps a snapshot open."""
    count, seconds = bench.of(2_000, 300), bench.of(60.0, 1.0)
    with bench.database() as url:
        idle = anyio.run(_one_at_a_time, url, count, 0.0)
    with bench.database() as url, _snapshot(url):
        held = anyio.run(_one_at_a_time, url, count, seconds)
    targets = [at_most(percentile(idle, 50) * 1000, 1, "ms p50"), at_most(percentile(idle, 99) * 1000, 5, "ms p99")]
    bench.table.add("single append, idle", p50_p99(idle), *targets)
    ratio = percentile(held, 50) / percentile(idle, 50)
    what = f"single append, the last {count} of {seconds:.0f} s of them beside an open snapshot"
    target = Target(
        f"unchanged (p50 ≤ {UNCHANGED} × idle, p99 ≤ 5 ms)", ratio <= UNCHANGED and percentile(held, 99) <= 5e-3
    )
    bench.table.add(what, p50_p99(held), target, beside=f"p50 {ratio:.2f} × idle")


async def _write_at_once(url: str, writers: int, size: int, appends: int) -> tuple[tuple[float, float], list[float]]:
    """When it began and ended, on the clock of all processes, and how long each append took; in seconds."""
    took_s: list[float] = []
    async with appending(url) as appender:
        await write(appender, f"bench_{ulid()}", lines(1))  # connected

        async def append() -> None:
            stream, batch = f"bench_{ulid()}", lines(size)
            for _ in range(appends):
                before = time.perf_counter()
                await write(appender, stream, batch)
                took_s.append(time.perf_counter() - before)

        started = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for _ in range(writers):
                tasks.start_soon(append)
        return (started, time.monotonic()), took_s


async def _one_at_a_time(url: str, count: int, seconds: float) -> list[float]:
    """How long each of the last ``count`` appends took, in seconds, of at least so many and for at least so long."""
    stream, event = f"bench_{ulid()}", lines(1)
    took_s: list[float] = []
    async with appending(url) as appender:
        until = time.monotonic() + seconds
        while len(took_s) < count or time.monotonic() < until:
            before = time.perf_counter()
            await write(appender, stream, event)
            took_s.append(time.perf_counter() - before)
    return took_s[-count:]


@contextmanager
def _snapshot(url: str) -> Iterator[None]:
    """A REPEATABLE READ transaction that has read something, and stays."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM streams")
        yield
        connection.rollback()
