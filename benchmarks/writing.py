"""Appending for the sake of it: lines of 70 bytes, as fast as can be or at an even pace."""

import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, Self

import anyio
import psycopg

from eventstore import NEW, Append, Appended, Appender, Database, NewEvent, Part, encode
from eventstore.appender import HINT_INTERVAL_S
from eventstore.clock import ulid
from projections import events

WORKSPACE = "bench"
MESSAGE = "2026-11-20 mapped 12 columns of invoice %09d to the ledger, no rest"
"""69 bytes and a line end: an ordinary line of a log."""
TICK_S = 0.001
FORK = multiprocessing.get_context("fork")


def line(number: int) -> bytes:
    """The payload of one line."""
    return encode({"stream": "stdout", "message": MESSAGE % number})


def lines(count: int) -> list[NewEvent]:
    """Events, made before the clock starts."""
    return [NewEvent("run.log", line(number), bulk=True) for number in range(count)]


@asynccontextmanager
async def appending(url: str) -> AsyncIterator[Appender]:
    """The public way to write: one appender."""
    async with Database(url) as database, anyio.create_task_group() as tasks:
        appender = Appender(database)
        await tasks.start(appender.run)
        yield appender
        await anyio.sleep(5 * HINT_INTERVAL_S)  # its last hint goes out: without it a reader waits for its next poll
        tasks.cancel_scope.cancel()


async def write(appender: Appender, stream: str, events: Sequence[NewEvent]) -> Appended:
    """One append to one stream."""
    return await appender.append(Append((Part(stream, events, workspace=WORKSPACE),)))


async def create_runs(url: str, count: int) -> list[str]:
    """Runs that the API serves, in no worker's hands."""
    created = events.RunCreated(
        workspace_id=WORKSPACE,
        config_id="config_bench",
        config_version=1,
        config_digest="",
        build_id=None,
        options={},
        inputs=[],
        requested_by="bench",
    ).event()
    runs = [f"run_{ulid()}" for _ in range(count)]
    async with appending(url) as appender:
        await appender.append(Append(tuple(Part(run, (created,), workspace=WORKSPACE, expect=NEW) for run in runs)))
    return runs


async def fill(url: str, stream: str, count: int, size: int = 1_000) -> float:
    """So many lines, as fast as one writer can; events per second."""
    batch = lines(size)
    async with appending(url) as appender:
        started = time.perf_counter()
        for _ in range(count // size):
            await write(appender, stream, batch)
        return count / (time.perf_counter() - started)


async def pace(url: str, runs: Sequence[str], per_second: float, count: int) -> float:
    """So many lines over all runs in turn, evenly, each with the moment at which it was due; events per second.

    No append waits for the one before it, so one that is slow makes the lines after it late and not fewer. Lines that
    are due within a tick are one append, or the cores would be taken by who makes the load.
    """
    async with appending(url) as appender:
        started, written = time.monotonic(), 0
        async with anyio.create_task_group() as appends:
            while written < count:
                due = min(count, 1 + int((time.monotonic() - started) * per_second))
                if due > written:
                    moments = {number: started + number / per_second for number in range(written, due)}
                    appends.start_soon(appender.append, _stamped(runs, moments))
                    written = due
                await anyio.sleep(max(TICK_S, started + written / per_second - time.monotonic()))
        return count / (time.monotonic() - started)


def _stamped(runs: Sequence[str], moments: Mapping[int, float]) -> Append:
    """The lines of these numbers, each with its moment in ns, on the clock that all processes share."""
    parts: dict[str, list[NewEvent]] = {}
    for number, moment in moments.items():
        data = encode({"stream": "stdout", "message": f"{round(moment * 1e9):019d}"})
        parts.setdefault(runs[number % len(runs)], []).append(NewEvent("run.log", data, bulk=True))
    return Append(tuple(Part(run, events) for run, events in parts.items()))


def flood(url: str, run: str, per_second: float, seconds: float) -> int:
    """Lines of 70 bytes at up to this rate; how many were written."""

    async def write_all() -> int:
        batch = lines(4_000)
        async with appending(url) as appender:
            started, written = time.monotonic(), 0
            while (passed := time.monotonic() - started) < seconds:
                due = min(int(passed * per_second) - written, len(batch))
                if due > 0:
                    await write(appender, run, batch[:due])
                    written += due
                else:
                    await anyio.sleep(0.002)
            return written

    return anyio.run(write_all)


class Beside:
    """A function in a process of its own meanwhile. Leaving the block ends it; :meth:`result` waits for it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._ours, self._theirs = FORK.Pipe()
        self._process = FORK.Process(target=_answer, args=(self._theirs, function, arguments), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # so that the end of that process is the end of what it says
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def ready(self, seconds: float) -> bool:
        """Whether it has returned, or does within so many seconds."""
        return self._ours.poll(seconds)

    def result(self) -> Any:
        """What the function returned; raises what it raised."""
        found = self._ours.recv()
        if isinstance(found, Exception):
            raise found
        return found


def _answer(to: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        to.send(function(*arguments))
    except Exception as error:  # noqa: BLE001 - raised again by the one who asked
        to.send(error)


def asked(url: str, query: str) -> Any:
    """The first value of a query."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def dense(url: str) -> bool:
    """Whether the log has every id from 1 to its head."""
    return bool(asked(url, "SELECT count(*) = coalesce(max(id), 0) AND coalesce(min(id), 1) = 1 FROM events"))
