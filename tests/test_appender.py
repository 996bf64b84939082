"""The appender: group commit, its two lanes, its limits, and what one caller's trouble means for the others."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import anyio
import psycopg
import pytest

from eventstore import NEW, Append, Appended, Appender, Database, NewEvent, Part, appender, encode
from eventstore.errors import Conflict, TooLarge, Unavailable
from tests.conftest import Store, open_store

pytestmark = pytest.mark.anyio

NOTED = NewEvent("job.noted", b"{}")
LINE = NewEvent("job.line", encode({"message": "…"}), bulk=True)

TRANSACTIONS = "SELECT count(DISTINCT xmin::text) FROM events"
WAITING = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

TERMINATED = """SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


def to(stream: str, *events: NewEvent, expect: int | None = None, key: str | None = None) -> Append:
    return Append((Part(stream, events, "ws", expect),), key)


def ask(store: Store, question: LiteralString) -> int:
    """The number that answers a question about the database."""
    with psycopg.connect(store.database.url) as connection:
        row = connection.execute(question).fetchone()
    assert row is not None
    return int(row[0])


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what must happen, and fails if it does not."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - a database sends no event for what it waits for
            await anyio.sleep(0.002)


@contextmanager
def nothing_lands(store: Store) -> Iterator[None]:
    """Holds the lock of the log, so that the batch in flight stays in flight."""
    with psycopg.connect(store.database.url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(4702111234474983745)")
        yield


async def in_flight(store: Store) -> None:
    """Waits until a batch waits for the lock of the log."""
    await until(lambda: ask(store, WAITING) == 1)


class Landing:
    """Appends that run beside the test; what became of each, by its name, in the order in which they were told."""

    def __init__(self, store: Store, tasks: anyio.abc.TaskGroup) -> None:
        self.outcomes: dict[str, Appended | Exception] = {}
        self._store = store
        self._tasks = tasks

    def start(self, name: str, append: Append, patience_s: float = appender.PATIENCE_S) -> None:
        self._tasks.start_soon(self._land, name, append, patience_s)

    async def _land(self, name: str, append: Append, patience_s: float) -> None:
        try:
            self.outcomes[name] = await self._store.appender.append(append, patience_s=patience_s)
        except (Conflict, TooLarge, Unavailable, psycopg.Error) as error:
            self.outcomes[name] = error


# Group commit


async def test_what_waits_goes_out_as_one_batch(store: Store) -> None:
    """Whatever arrives while a batch is in flight is in the next one: 201 appends, two transactions, order kept."""
    async with anyio.create_task_group() as tasks:
        landing = Landing(store, tasks)
        with nothing_lands(store):
            landing.start("first", to("job_0", LINE))
            await in_flight(store)
            for n in range(1, 201):
                landing.start(str(n), to(f"job_{n}", LINE))
            await until(lambda: len(store.appender._bulk) == 200)
    assert ask(store, TRANSACTIONS) == 2
    assert [line.stream for line in await store.log.read(0)] == [f"job_{n}" for n in range(201)]


async def test_control_overtakes_bulk(store: Store) -> None:
    """A cancel does not queue behind the lines that came before it; only what is in flight already is ahead."""
    async with anyio.create_task_group() as tasks:
        landing = Landing(store, tasks)
        with nothing_lands(store):
            landing.start("in flight", to("job_1", LINE))
            await in_flight(store)
            for n in range(3):
                landing.start(f"lines {n}", to("job_1", *[LINE] * appender.BATCH_EVENTS))
            await until(lambda: len(store.appender._bulk) == 3)
            landing.start("cancel", to("job_2", NOTED))
            landing.start("another", to("job_3", NOTED))
            await until(lambda: len(store.appender._control) == 2)
    assert landing.outcomes["cancel"] == Appended(2, 2)
    assert landing.outcomes["another"] == Appended(3, 3)
    assert landing.outcomes["lines 0"] == Appended(4, 3 + appender.BATCH_EVENTS)


@pytest.mark.parametrize(
    "append",
    [
        pytest.param(to("job_1", *[LINE] * (appender.BATCH_EVENTS // 2 + 1)), id="events"),
        pytest.param(
            to("job_1", NewEvent("job.line", b"{%d}" % 0 * (appender.BATCH_BYTES // 6 + 1), bulk=True)), id="bytes"
        ),
    ],
)
async def test_a_batch_is_closed_by_what_would_make_it_too_large(store: Store, append: Append) -> None:
    """So that no batch holds the lock of the log for long: of two that do not fit together each goes alone."""
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(store.appender.append, append)
    assert ask(store, TRANSACTIONS) == 3


# Limits


async def test_the_largest_append_lands(store: Store) -> None:
    """The limits themselves are within the limits, and one append is never split."""
    events = [LINE] * (appender.APPEND_EVENTS - 1)
    rest = appender.APPEND_BYTES - len(LINE.data) * len(events)
    largest = NewEvent("job.line", encode({"m": ""})[:-2] + b"x" * (rest - len(encode({"m": ""}))) + b'"}', bulk=True)
    append = to("job_1", *events, largest)
    assert appender._Waiting(append, patience_s=0).size == appender.APPEND_BYTES
    assert await store.appender.append(append) == Appended(1, appender.APPEND_EVENTS)
    assert ask(store, TRANSACTIONS) == 1


@pytest.mark.parametrize(
    "append",
    [
        pytest.param(to("job_1", *[LINE] * (appender.APPEND_EVENTS + 1)), id="events"),
        pytest.param(to("job_1", NewEvent("job.line", b"{" * (appender.APPEND_BYTES + 1), bulk=True)), id="bytes"),
    ],
)
async def test_an_append_beyond_the_limits_is_refused(store: Store, append: Append) -> None:
    """One event or one byte more than the largest append."""
    with pytest.raises(TooLarge):
        await store.appender.append(append)
    assert await store.log.head() == 0


async def test_bulk_waits_at_the_door_when_too_much_waits_inside(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued stays near the limit while the database is slow; control passes; nothing is lost or reordered."""
    monkeypatch.setattr(appender, "WAITING_BYTES", 10 * len(LINE.data))
    async with anyio.create_task_group() as tasks:
        landing = Landing(store, tasks)
        with nothing_lands(store):
            landing.start("in flight", to("job_1", LINE))
            await in_flight(store)
            for n in range(50):
                landing.start(f"line {n}", to("job_1", LINE))
            landing.start("cancel", to("job_2", NOTED))
            await until(lambda: len(store.appender._control) == 1)
            assert len(store.appender._bulk) == 11, "the limit, and the one that met it"
    assert landing.outcomes["cancel"] == Appended(2, 2)
    ids = [
        outcome.first_id
        for name, outcome in landing.outcomes.items()
        if isinstance(outcome, Appended) and name != "cancel"
    ]
    assert sorted(ids) == [1, *range(3, 53)]


# Trouble


async def test_an_append_that_postgresql_refuses_fails_alone(store: Store) -> None:
    """Its neighbours in the batch land, in their order, and the log goes on."""
    async with anyio.create_task_group() as tasks:
        landing = Landing(store, tasks)
        landing.start("before", to("job_1", NOTED))
        landing.start("poison", to("job_2", NewEvent("job.noted", b'{"m":"\0"}')))
        landing.start("after", to("job_1", NOTED))
    assert isinstance(landing.outcomes["poison"], psycopg.DataError)
    assert (landing.outcomes["before"], landing.outcomes["after"]) == (Appended(1, 1), Appended(2, 2))
    assert await store.appender.append(to("job_1", NOTED)) == Appended(3, 3)


async def test_an_append_beyond_a_limit_of_postgresql_fails_alone(store: Store) -> None:
    """It is not taken for a database that is away, so nobody waits for it, and it is not tried again."""
    key = " ".join(str(n * n) for n in range(5000))  # more than an index holds, however well it is compressed
    async with anyio.create_task_group() as tasks:
        landing = Landing(store, tasks)
        landing.start("poison", to("job_1", NOTED, key=key), patience_s=0.2)
        landing.start("neighbour", to("job_2", NOTED))
    assert isinstance(landing.outcomes["poison"], psycopg.errors.ProgramLimitExceeded)
    assert landing.outcomes["neighbour"] == Appended(1, 1)


async def test_a_caller_that_gives_up_holds_back_nobody(store: Store) -> None:
    """What it had handed in lands with the others or not at all; theirs do."""
    async with anyio.create_task_group() as tasks:
        landing = Landing(store, tasks)
        with nothing_lands(store):
            landing.start("in flight", to("job_1", LINE))
            await in_flight(store)
            with anyio.move_on_after(0.01) as gave_up:
                await store.appender.append(to("job_2", LINE))
            landing.start("after", to("job_3", LINE))
            await until(lambda: len(store.appender._bulk) == 2)
    assert gave_up.cancelled_caught
    assert isinstance(landing.outcomes["after"], Appended)
    assert {line.stream for line in await store.log.read(0)} >= {"job_1", "job_3"}


@pytest.mark.parametrize(
    ("append", "patience_s", "landed"),
    [
        pytest.param(to("job_1", NOTED, key="k"), 0.2, None, id="repeatable: when its patience ends"),
        pytest.param(to("job_1", NOTED, expect=NEW), 0.2, None, id="expecting: when its patience ends"),
        pytest.param(to("job_1", NOTED), 60, "unknown", id="not repeatable: at once"),
    ],
)
async def test_a_database_that_is_away_is_told(
    tmp_path: Path, append: Append, patience_s: float, landed: str | None
) -> None:
    """What may be sent twice is tried again for as long as its caller has patience; what may not is given back."""
    away = Appender(Database(f"postgresql://ade@/ade?host={tmp_path}"))
    begun = time.monotonic()
    async with anyio.create_task_group() as tasks:
        await tasks.start(away.run)
        with pytest.raises(Unavailable) as told:
            await away.append(append, patience_s=patience_s)
        tasks.cancel_scope.cancel()
    assert told.value.facts.get("landed") == landed
    if landed is None:
        assert time.monotonic() - begun >= patience_s


async def test_an_outage_and_its_end_are_said_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """With the reason: a disk of the database that is full shows nowhere else, and engines stand still."""
    async with anyio.create_task_group() as tasks:
        landing = Landing(store, tasks)
        with nothing_lands(store):
            for name in ("first", "second"):
                landing.start(name, to(f"job_{name}", NOTED, key=name))
                await in_flight(store)
                ask(store, TERMINATED)
    assert [outcome for outcome in landing.outcomes.values() if not isinstance(outcome, Appended)] == []
    said = [(record.getMessage(), record.__dict__.get("reason", "")) for record in caplog.records]
    assert [message for message, _ in said] == [
        "the database takes no events; what writes waits",
        "the database takes events again",
    ]
    assert "terminat" in said[0][1]


async def test_the_last_append_is_hinted_though_its_appender_stops(url: str) -> None:
    """A program that appends and ends keeps no reader waiting until its next poll."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as listening:
        await listening.execute("LISTEN ade_log")
        async for store in open_store(url):
            for _ in range(2):  # the second comes while hints keep their distance from the first one's
                await store.appender.append(to("job_1", LINE))
        heard = [notify async for notify in listening.notifies(timeout=60, stop_after=2)]
    assert len(heard) == 2
