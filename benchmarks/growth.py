"""Whether a log that is ten times as long costs more: to append to, to tail, to page through."""

import time
from collections.abc import Awaitable, Callable

import anyio

from benchmarks.bench import Bench, Broken, check
from benchmarks.table import Target, ms, number, percentile
from benchmarks.writing import WORKSPACE, appending, dense, lines, write
from eventstore import Append, Appender, Database, Feed, Log, Part
from eventstore.clock import ulid

STREAMS = 10
"""Streams that share the log, in turn: no page of a feed is in one piece."""
LATE_LINES = 2_000
ALLOWED = 1.2


def growth(bench: Bench) -> None:
    """The same things at a size and at ten times that size."""
    small = bench.of(1_000_000, 10_000)
    with bench.database() as url:
        before, after, load = anyio.run(_measure_both, url, small, bench.of(200, 40))
        check(dense(url), "ids are not dense")
    for what, cost in before.items():
        ratio = after[what] / cost
        target = Target(f"within 20 % of that at {small:,}", ratio <= ALLOWED)
        beside = f"{ratio:.2f} × the {ms(cost)} at {small:,}"
        bench.table.add(f"{what}, p50 at {10 * small:,} events", ms(after[what]), target, beside=beside)
    bench.table.add("(those events came through the appender at)", f"{number(load)} events/s")


async def _measure_both(url: str, small: int, times: int) -> tuple[dict[str, float], dict[str, float], float]:
    async with appending(url) as appender, Database(url) as database:
        streams = [f"bench_{ulid()}" for _ in range(STREAMS)]
        await _load(appender, streams, small)
        before = await _costs(appender, Log(database), streams[0], times)
        started = time.perf_counter()
        await _load(appender, streams, 9 * small)
        load = 9 * small / (time.perf_counter() - started)
        return before, await _costs(appender, Log(database), streams[0], times), load


async def _load(appender: Appender, streams: list[str], count: int) -> None:
    """The fastest honest way: the appender's own, 2,000 lines an append, two appends under way."""
    batch = lines(2_000 // STREAMS)
    append = Append(tuple(Part(stream, batch, workspace=WORKSPACE) for stream in streams))

    async def half() -> None:
        for _ in range(count // 2_000 // 2):
            await appender.append(append)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(half)
        tasks.start_soon(half)


async def _costs(appender: Appender, log: Log, huge: str, times: int) -> dict[str, float]:
    """Seconds, p50, of each thing that is not to depend on the size."""
    late, batch, one = f"bench_{ulid()}", lines(1_000), lines(1)
    for _ in range(LATE_LINES // 10):
        await write(appender, late, batch[:10])
        await write(appender, huge, one)
    oldest, end_of_oldest = await _feed(log, huge)
    newest, head = await _feed(log, late)
    return {
        "tail of the last 100 events": await _p50(lambda: log.read(head - 100), times),
        "append of one event": await _p50(lambda: write(appender, late, one), times),
        "append of 1,000 events": await _p50(lambda: write(appender, late, batch), times // 4),
        "first page of the oldest feed": await _p50(lambda: log.read_feed(oldest, 0, limit=100), times),
        "last page of the oldest feed": await _p50(
            lambda: log.read_feed(oldest, end_of_oldest - 1_500, limit=100), times
        ),
        "first page of a late feed": await _p50(lambda: log.read_feed(newest, 0, limit=100), times),
    }


async def _feed(log: Log, stream: str) -> tuple[Feed, int]:
    """The feed of a stream, and its last id."""
    found = await log.stream(stream)
    if found is None:
        raise Broken(f"{stream} is not there")
    return Feed(stream, None, found.first_id, found.ended_id), found.last_id


async def _p50(call: Callable[[], Awaitable[object]], times: int) -> float:
    took_s = []
    for _ in range(times):
        before = time.perf_counter()
        await call()
        took_s.append(time.perf_counter() - before)
    return percentile(took_s, 50)
