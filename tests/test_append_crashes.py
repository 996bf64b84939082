"""Appends while connections, backends and the server itself are killed: all that was acknowledged is there, once."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import orjson
import pytest
from anyio.abc import SocketStream
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from eventstore import NEW, Append, Appended, Database, Leases, NewEvent, Part, encode
from eventstore.errors import Conflict, Unavailable
from tests import checker, faults
from tests.checker import History
from tests.conftest import Store, open_store, reachable_folder
from tests.faults import PATIENCE_S, OwnServer

pytestmark = pytest.mark.anyio

opened = asynccontextmanager(open_store)
SOCKET = ".s.PGSQL.5432"


def noted(n: int) -> NewEvent:
    return NewEvent("job.noted", encode({"n": n}))


def line(n: int) -> NewEvent:
    return NewEvent("job.line", encode({"n": n}), bulk=True)


# An answer that is lost


class Proxy:
    """Stands between the appender and PostgreSQL, and can lose the answer to an append that was committed."""

    def __init__(self, server: Path) -> None:
        self.loses_answer = False
        self._server = server

    async def serve(self, client: SocketStream) -> None:
        async with client, await anyio.connect_unix(self._server) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass_on, client, server)
            async for answer in server:
                if self.loses_answer and b"appended" in answer:  # PostgreSQL sends it after the commit
                    self.loses_answer = False
                    break
                await client.send(answer)
            tasks.cancel_scope.cancel()

    async def _pass_on(self, client: SocketStream, server: SocketStream) -> None:
        async for request in client:
            await server.send(request)
        await server.send_eof()


@asynccontextmanager
async def store_behind_a_proxy(url: str) -> AsyncIterator[tuple[Store, Proxy]]:
    """A log in which job_1 has one event, and its lease has been taken once."""
    with reachable_folder() as folder:
        proxy = Proxy(Path(str(conninfo_to_dict(url)["host"])) / SOCKET)
        async with await anyio.create_unix_listener(folder / SOCKET) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, proxy.serve)
            async with opened(make_conninfo(url, host=str(folder))) as store:
                await store.appender.append(Append((Part("job_1", [noted(0)], "ws"),)))
                await Leases(store.database, "me", 60).take("job_1")
                yield store, proxy
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("append", "expected"),
    [
        pytest.param(
            Append((Part("job_2", [noted(1)], "ws", NEW),), key="k"), Appended(2, 2, duplicate=True), id="key"
        ),
        pytest.param(Append((Part("job_1", [line(1)], token=1, position=0),)), "duplicate", id="position"),
        pytest.param(Append((Part("job_1", [noted(1)], expect=1),)), "conflict", id="expectation"),
        pytest.param(Append((Part("job_2", [noted(1)], "ws", NEW),)), "conflict", id="new stream"),
        pytest.param(Append((Part("job_1", [line(1)], token=1),)), "unknown", id="token alone"),
        pytest.param(Append((Part("job_1", [line(1)], expect=1),)), "unknown", id="expectation of a line"),
        pytest.param(Append((Part("job_1", [noted(1)]),)), "unknown", id="nothing"),
    ],
)
async def test_a_lost_answer_writes_nothing_twice(url: str, append: Append, expected: Appended | str) -> None:
    """What may be sent twice is sent again and recognised; of what may not, the caller is told that it may be there."""
    outcome: Appended | str
    async with store_behind_a_proxy(url) as (store, proxy):
        proxy.loses_answer = True
        try:
            outcome = await store.appender.append(append)
        except Conflict:
            outcome = "conflict"
        except Unavailable as told:
            outcome = told.facts["landed"]
        assert not proxy.loses_answer, "the answer was not lost"
        assert len(await store.log.read(1)) == 1
    if expected == "duplicate":
        assert isinstance(outcome, Appended)
        assert outcome.duplicate
    else:
        assert outcome == expected


class SentAgainInAnyCase(Append):
    """The naive variant of an append."""

    repeatable = True


async def test_what_is_sent_again_in_any_case_is_written_twice(url: str) -> None:
    """The naive variant: without key, expectation or position nobody can know it again."""
    async with store_behind_a_proxy(url) as (store, proxy):
        proxy.loses_answer = True
        await store.appender.append(SentAgainInAnyCase((Part("job_1", [line(1)]),)))
        assert len(await store.log.read(1)) == 2


# A server that is killed


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    with reachable_folder() as folder, faults.own_server(folder) as server:
        yield server


class Writers:
    """Callers that append one number after the other, each in the way that its kind of caller has."""

    def __init__(self, store: Store) -> None:
        self.acknowledged: dict[str, list[int]] = {}
        """By stream, in the order of the answers."""
        self.stopping = False
        self._store = store
        self._append = partial(store.appender.append, patience_s=PATIENCE_S)

    @property
    def count(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def run(self, write: Callable[[str, int], Awaitable[None]], stream: str) -> None:
        self.acknowledged[stream] = []
        n = 0
        while not self.stopping:
            await write(stream, n)
            self.acknowledged[stream].append(n)
            n += 1

    async def by_key(self, stream: str, n: int) -> None:
        """As a command does it."""
        landed = await self._append(Append((Part(stream, [noted(n)], "ws"),), key=f"{stream}:{n}"))
        assert landed.first_id == landed.last_id > 0

    async def by_position(self, stream: str, n: int) -> None:
        """As a worker writes the lines of a run."""
        await self._append(Append((Part(stream, [line(n)], "ws", token=1, position=n),)))

    async def by_expectation(self, stream: str, n: int) -> None:
        """As a decision without a key does it: a conflict may be with itself."""
        while True:
            try:
                events = await self._store.log.control_events(stream)
                if n > 0 and events[-1].data["n"] == n:
                    return
                await self._append(Append((Part(stream, [noted(n)], "ws", events[-1].id if events else NEW),)))
                return
            except (Conflict, Unavailable):
                await anyio.sleep(0.01)  # the pool, which has no patience, is not back yet


async def grow(writers: Writers, by: int = 25) -> None:
    """Waits until so many more appends are acknowledged."""
    wanted = writers.count + by
    with anyio.fail_after(PATIENCE_S):
        while writers.count < wanted:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.002)


FAULTS = {
    "a terminated backend": (OwnServer.terminate_appender, 8),
    "a killed backend": (OwnServer.kill_appender, 2),
    "a restart": (OwnServer.restart, 2),
    "a crash": (OwnServer.crash, 2),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_was_acknowledged_is_there_once(own_server: OwnServer, fault: str) -> None:
    """Every kind of caller goes on by itself; the whole history is dense, and has each acknowledged append once."""
    strike, times = FAULTS[fault]
    async with opened(own_server.url) as store:
        writers, before = Writers(store), await store.log.head()
        name = fault.replace(" ", "-")
        for n in range(3):
            lease = await Leases(store.database, "me", 3600).take(f"job_{name}-position{n}")
            assert lease is not None
        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(writers.run, writers.by_key, f"job_{name}-key{n}")
                tasks.start_soon(writers.run, writers.by_position, f"job_{name}-position{n}")
                tasks.start_soon(writers.run, writers.by_expectation, f"job_{name}-expectation{n}")
            for _ in range(times):
                await grow(writers)
                await anyio.to_thread.run_sync(strike, own_server)
            await grow(writers)
            writers.stopping = True
        history = await History.read(store.database)
    numbers = {
        stream: [orjson.loads(event.data)["n"] for event in own]
        for stream, own in history.by_stream.items()
        if own[0].id > before
    }
    assert numbers == writers.acknowledged
    assert checker.first(checker.numbering(history), checker.endings(history)) == []


async def test_who_asks_through_an_outage_is_answered_soon_after_it(own_server: OwnServer) -> None:
    """However long it was: the pool's pauses between two tries to connect do not grow with it.

    Seen to fail, 6 s late, with the pool's own ``reconnect_timeout``.
    """
    answered = anyio.Event()

    async def ask(database: Database) -> None:
        while not answered.is_set():
            try:
                await database.rows("head")
            except Unavailable:
                continue
            answered.set()

    async with Database(own_server.url) as database, anyio.create_task_group() as tasks:
        assert await database.rows("head")
        own_server.stop(signal.SIGKILL)
        tasks.start_soon(ask, database)
        await anyio.sleep(8)  # the outage itself
        own_server.start()
        with anyio.fail_after(4):
            await answered.wait()
