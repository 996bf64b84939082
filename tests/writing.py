"""A process that writes whole runs and builds into a log, and keeps a journal of what it was told.

``python -m tests.writing URL JOURNAL NAME``: several lives beside each other through one appender, until stdin ends;
then those that are led are led to their end. Whoever kills it reads the journal: each append stands there before it is
tried, and again when it was answered.
"""

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import orjson

from eventstore import NEW, Append, Appender, Database, Lease, Leases, Log, NewEvent, Part
from eventstore.errors import EventStoreError, Unavailable
from service.commands import build_completed, run_completed
from tests.checker import Attempt
from tests.histories import WORKSPACE, build_created, build_started, line, run_created, run_started

LIVES = 4
BATCHES = 6
"""Of lines, for each build and run."""
PATIENCE_S = 60.0
LEASE_S = 0.5
"""Nobody else wants one; but an answer that was lost may have been a lease, and then it must run out."""

Answer = TypeVar("Answer")


class Journal:
    """Its lines are with the kernel when a method returns: a kill -9 takes none of them."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._numbers = count()

    def trying(self, append: Append) -> int:
        number = next(self._numbers)
        parts = [(part.stream, [event.data.decode() for event in part.events]) for part in append.parts]
        self._file.write(orjson.dumps({"try": number, "parts": parts}) + b"\n")
        return number

    def answered(self, number: int, outcome: str, first_id: int = 0) -> None:
        self._file.write(orjson.dumps({"try": number, "outcome": outcome, "first_id": first_id}) + b"\n")


def attempts(journal: Path) -> Iterator[Attempt]:
    """What a process has tried, and was told."""
    found: dict[int, Attempt] = {}
    for entry in map(orjson.loads, journal.read_bytes().split(b"\n")[:-1]):
        if "parts" in entry:
            found[entry["try"]] = Attempt(entry["parts"])
        else:
            found[entry["try"]].outcome, found[entry["try"]].first_id = entry["outcome"], entry["first_id"]
    yield from found.values()


def landed(journal: Path) -> int:
    """How many appends were acknowledged."""
    return journal.read_bytes().count(b'"outcome":"landed"') if journal.exists() else 0


class Writing:
    """One process that writes."""

    def __init__(self, database: Database, appender: Appender, journal: Journal, name: str) -> None:
        self.stopping = False
        self._leases = Leases(database, name, LEASE_S)
        self._log = Log(database)
        self._appender = appender
        self._journal = journal
        self._name = name
        self._tries = count()

    async def append(self, *parts: Part, key: str | None = None) -> None:
        """As a caller does it; who cannot know what became of it goes on with something else."""
        append = Append(parts, key)
        number = self._journal.trying(append)
        try:
            told = await self._appender.append(append, patience_s=PATIENCE_S)
        except Unavailable:
            self._journal.answered(number, "unknown")
        except EventStoreError:
            # A conflict may be with itself, after an answer that was lost, where neither key nor position can tell.
            known = key is not None or any(part.position is not None for part in append.parts)
            self._journal.answered(number, "refused" if known else "unknown")
        else:
            self._journal.answered(number, "landed", told.first_id)

    async def lead(self, life: int) -> None:
        """Lives, one after the other: a build, and the run that waited for it."""
        for n in count():
            if self.stopping:
                return
            mark = f"{self._name}-{life}-{n}"
            run, build = f"run_{mark}", f"build_{mark}"
            created = Part(run, [run_created(build)], WORKSPACE, NEW), Part(build, [build_created()], WORKSPACE, NEW)
            await self.append(*created, key=mark)
            await self.work(build, build_started(), build_completed("active", "completed").event())
            await self.work(run, run_started(), run_completed("succeeded", "completed").event())

    async def work(self, stream: str, started: NewEvent, completed: NewEvent) -> None:
        """A worker's part: under a lease, lines by their position, control events by what they expect."""
        while (lease := await patiently(lambda: self._leases.take(stream))) is None:  # noqa: ASYNC110 - it runs out
            await anyio.sleep(LEASE_S / 10)
        await self.append(await self.next(stream, lease, started))
        position = 0
        for batch in range(BATCHES):
            told = [line(stream, f"{batch}.{n}") for n in range(1 + batch % 3 * 4)]
            await self.append(Part(stream, told, token=lease.token, position=position))
            position += len(told)
            await self.append(Part(stream, [line(stream, f"{batch} that may be lost")]))
        while True:
            part = await self.next(stream, lease, completed)
            await self.append(part)
            found = await patiently(lambda: self._log.stream(stream))
            if found is not None and found.ended_id is not None:
                return

    async def next(self, stream: str, lease: Lease, event: NewEvent) -> Part:
        """A decision about a stream as it stands now; each try is another payload, so that it can be told apart."""
        known = await patiently(lambda: self._log.stream(stream))
        assert known is not None
        marked = replace(event, data=event.data[:-1] + b',"tried":%d}' % next(self._tries))
        return Part(stream, [marked], expect=known.last_control_id, token=lease.token)


async def patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a database that may be away; the pool by itself has no patience."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except Unavailable:
                await anyio.sleep(0.02)


async def write(url: str, journal: str, name: str) -> None:
    async with Database(url) as database, anyio.create_task_group() as tasks:
        appender = Appender(database)
        await tasks.start(appender.run)
        writing = Writing(database, appender, Journal(Path(journal)), name)
        async with anyio.create_task_group() as lives:
            for life in range(LIVES):
                lives.start_soon(writing.lead, life)
            await anyio.to_thread.run_sync(os.read, 0, 1)
            writing.stopping = True
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of every connection that it loses
    _, its_url, its_journal, its_name = sys.argv
    anyio.run(write, its_url, its_journal, its_name)
