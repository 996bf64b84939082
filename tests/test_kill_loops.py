"""Everything is killed, in a loop, while others write and read; then the whole history is judged.

The order of the faults follows from a seed. ``ADE_TEST_KILL_SECONDS`` makes the loop longer than the ten seconds of the
suite, ``ADE_TEST_KILL_SEED`` gives it another order.
"""

import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import chain, count
from pathlib import Path

import anyio
import anyio.to_thread
import orjson
import psycopg
import pytest

from eventstore import Feed
from eventstore.selection import Selection
from eventstore.tail import LOG, Hints
from service.api.streams import NDJSON_FRAME
from service.hub import Hub, Viewer
from tests import checker
from tests.checker import History, Reading
from tests.conftest import Store, open_store, reachable_folder
from tests.engine import eventually
from tests.faults import PATIENCE_S, SEED, OwnServer, own_server, python, strike
from tests.test_log_files import PROJECTOR
from tests.test_serve import paused
from tests.writing import attempts, landed, patiently

pytestmark = pytest.mark.anyio

WRITERS, PROJECTORS, READERS = 2, 2, 8
GROWTH = 20
"""Appends that must be acknowledged, and lines that must be read, after each fault."""

opened = asynccontextmanager(open_store)


class Deployment:
    """Processes that write and project, on a PostgreSQL of their own, and what can befall them."""

    def __init__(self, folder: Path, server: OwnServer, chance: random.Random) -> None:
        self.server = server
        self.writers: dict[str, subprocess.Popen[bytes]] = {}
        self.projectors: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = folder
        self._chance = chance
        self._names = map(str, count())
        for _ in range(WRITERS):
            self._start_writer()
        for _ in range(PROJECTORS):
            self._start_projector()

    def _start_writer(self) -> None:
        name = f"writer{next(self._names)}"
        arguments = self._url(name), str(self._folder / f"{name}.journal"), name
        self.writers[name] = python("-m", "tests.writing", *arguments)

    def _start_projector(self) -> None:
        name = f"projector{next(self._names)}"
        self.projectors[name] = python("-c", PROJECTOR, self._url(name), str(self._folder / "files"), name)

    def _url(self, name: str) -> str:
        return f"{self.server.url}&application_name={name}"

    @property
    def journals(self) -> list[Path]:
        return sorted(self._folder.glob("*.journal"))

    @property
    def acknowledged(self) -> int:
        return sum(map(landed, self.journals))

    def path_of(self, _workspace: str, stream: str) -> Path:
        return self._folder / "files" / stream / "events.ndjson"

    def faults(self) -> dict[str, Callable[[], object]]:
        return {
            **self.server.faults(self._chance),
            "a writer is killed": self.kill_a_writer,
            "a writer stands still": self.freeze_a_writer,
            "a projector is killed": self.kill_a_projector,
        }

    def kill_a_writer(self) -> None:
        name = self._in_mid_append()
        self.writers[name].kill()
        self.writers.pop(name).communicate()
        self._start_writer()

    def freeze_a_writer(self) -> None:
        """In the middle of an append: the others go on."""
        with paused(self.writers[self._in_mid_append()].pid):
            before = self.acknowledged
            eventually(lambda: self.acknowledged >= before + GROWTH, "others write on beside one that stands still")

    def kill_a_projector(self) -> None:
        name = self._chance.choice(sorted(self.projectors))
        self.projectors[name].kill()
        self.projectors.pop(name).communicate()
        self._start_projector()

    def _in_mid_append(self) -> str:
        """A writer that was seen in the middle of an append just now."""

        def look() -> str:
            name = self._chance.choice(sorted(self.writers))
            return name if self.server.is_appending(name) else ""

        return eventually(look, "a writer appends")

    def finish_writing(self) -> None:
        """Every writer leads its lives to their end."""
        for name, writer in self.writers.items():
            writer.communicate(timeout=PATIENCE_S)
            assert writer.returncode == 0, name

    def is_caught_up(self) -> bool:
        with psycopg.connect(self.server.url) as connection:
            behind = "SELECT count(*) FROM checkpoints WHERE id = (SELECT max(id) FROM events)"
            return connection.execute(behind).fetchone() == (3,)

    def close(self) -> None:
        for process in chain(self.writers.values(), self.projectors.values()):
            process.kill()
            process.communicate()


class Readers:
    """Viewers of a hub, pages of feeds, and a tail of the whole log, which keep what they were given."""

    def __init__(self, store: Store, hub: Hub, hints: Hints, chance: random.Random) -> None:
        self.readings: list[Reading] = []
        self.tail = Reading("a tail", "", 0)
        self.seen = 0
        """The newest id that the tail was given."""
        self._streams: list[str] = []
        self._store, self._hub, self._hints, self._chance = store, hub, hints, chance

    async def follow_all(self) -> None:
        with self._hub.view(Selection(), 0) as viewer:
            while not self._hub.draining:
                page = await viewer.page(1, 1_000)
                self.tail.lines += [line.line for line in page]
                self._streams += [line.stream for line in page if line.type.endswith(".created")]
                self.seen = page[-1].id if page else self.seen

    async def read_on(self) -> None:
        """One feed after the other, each from a cursor anywhere, cut and resumed."""
        while True:
            while not self._streams:
                await self._hints.next()()
            near = self._chance.choice([self._streams, self._streams[-8:]])
            await self.read(self._chance.choice(near), self._chance.choice([0, self._chance.randint(0, self.seen)]))

    async def read(self, stream: str, after: int, *, to_the_end: bool = False) -> None:
        """A part of a feed, in pieces; or all of it."""
        take = self._chance.choice([self._pages, self._chunks, self._table])
        reading = Reading(take.__name__, stream, after)
        self.readings.append(reading)
        feed = await patiently(lambda: self._feed(stream))
        for _ in count() if to_the_end else range(self._chance.randint(1, 5)):
            cursor = orjson.loads(reading.lines[-1])["id"] if reading.lines else after
            with self._hub.view(feed, cursor) as viewer:
                for _ in range(self._chance.randint(1, 5)):
                    reading.lines += await take(viewer, feed, cursor)
                    cursor = orjson.loads(reading.lines[-1])["id"] if reading.lines else after
                    if viewer.ended:
                        reading.complete = True
                        return

    async def _feed(self, stream: str) -> Feed:
        row = await self._store.database.row(f"feed_of_{stream.partition('_')[0]}", stream=stream)
        assert row is not None
        return Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"])

    async def _pages(self, viewer: Viewer, _feed: Feed, _cursor: int) -> list[bytes]:
        page = await viewer.page(self._chance.choice([0, 0.05, 1]), self._chance.choice([1, 7, 1000]))
        return [line.line for line in page]

    async def _chunks(self, viewer: Viewer, _feed: Feed, _cursor: int) -> list[bytes]:
        return (await viewer.chunk(self._chance.choice([0, 0.05, 1]), NDJSON_FRAME)).split(b"\n")[:-1]

    async def _table(self, viewer: Viewer, feed: Feed, cursor: int) -> list[bytes]:
        """A reader that knows nothing of hubs."""
        page = await patiently(lambda: self._store.log.read_feed(feed, cursor, limit=self._chance.choice([1, 7, 1000])))
        viewer.ended = bool(page) and page[-1].type.endswith(".completed") and page[-1].stream == feed.stream
        return [line.line for line in page]


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with ExitStack() as ending:
        folder = ending.enter_context(reachable_folder())
        server = ending.enter_context(own_server(folder / "postgres"))
        made = Deployment(folder, server, random.Random(SEED))
        ending.callback(made.close)
        yield made


async def test_whatever_is_killed_the_history_holds(deployment: Deployment) -> None:
    """Backends, PostgreSQL, writers and projectors, in any order; then log, readers, files, tables and chain agree."""
    chance = random.Random(SEED)
    async with opened(deployment.server.url) as store, anyio.create_task_group() as tasks:
        hints = Hints(store.database, LOG)
        hub = Hub(store.log, hints)
        readers = Readers(store, hub, hints, random.Random(SEED))
        for service in (hints, hub):
            await tasks.start(service.run)
        tasks.start_soon(readers.follow_all)
        async with anyio.create_task_group() as reading:
            for _ in range(READERS):
                reading.start_soon(readers.read_on)
            struck = await strike(deployment.faults(), chance, lambda: grow(deployment, readers))
            await anyio.to_thread.run_sync(deployment.finish_writing)
            await anyio.to_thread.run_sync(eventually, deployment.is_caught_up, "everything is caught up")
            reading.cancel_scope.cancel()
        history = await History.read(store.database)
        await read_everything(history, readers)
        chained = await checker.chain(store.database)
        tasks.cancel_scope.cancel()
    known = list(chain.from_iterable(map(attempts, deployment.journals)))
    findings = checker.first(
        checker.numbering(history),
        checker.endings(history),
        checker.appends(history, known),
        checker.readings(history, [readers.tail, *readers.readings]),
        checker.files(history, deployment.path_of),
        checker.tables(history, deployment.server.url),
        chained,
    )
    assert findings == [], f"seed {SEED}, after {dict(struck)}"
    seen = Counter(attempt.outcome for attempt in known)
    assert seen["landed"] > sum(struck.values()) * GROWTH
    assert seen["unknown"] > 0, "no answer was ever lost"
    assert sum(len(reading.lines) for reading in readers.readings) > 10 * GROWTH


async def grow(deployment: Deployment, readers: Readers) -> None:
    """Until more is written, and read."""
    written, read = deployment.acknowledged, readers.seen
    while deployment.acknowledged < written + GROWTH or readers.seen < read + GROWTH:  # noqa: ASYNC110 - nothing tells
        await anyio.sleep(0.01)


async def read_everything(history: History, readers: Readers) -> None:
    """Now that nothing moves, everybody must be able to read all there is."""
    with anyio.fail_after(PATIENCE_S):
        while readers.seen < history.events[-1].id:  # noqa: ASYNC110 - the tail tells by what it was given
            await anyio.sleep(0.01)
        readers.tail.complete = True
        for stream, own in history.by_stream.items():
            if own[-1].type.endswith(".completed"):
                await readers.read(stream, 0, to_the_end=True)
