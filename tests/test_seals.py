"""The chain: what is done to the log behind the database's back is found, and the first event of it named."""

import hashlib
import logging
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import anyio
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore import Append, NewEvent, Part, encode
from eventstore import seals as sealing
from eventstore import verification as verifying
from eventstore.database import call, connect, transaction
from eventstore.seals import GENESIS, SEAL_EVENTS, Place, Sealer, sealed
from eventstore.verification import Verified, verify
from tests.conftest import ROOT, Server, Store, open_store
from tests.histories import rows, tell_golden, until_blocked

pytestmark = pytest.mark.anyio

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
COLUMNS = ("id", "stream", "seq", "workspace", "type", "bulk", "recorded_at", "data")
Row = dict[str, Any]


async def append(store: Store, *counts: int) -> None:
    """Appends of so many events each, to streams of several workspaces, some of them control events."""
    for place, count in enumerate(counts):
        events = [
            NewEvent("job.line" if n % 3 else "job.moved", encode({"n": n, "word": "pingüino"}), bulk=bool(n % 3))
            for n in range(count)
        ]
        await store.appender.append(Append((Part(f"job_{place % 3}", events, f"ws{place % 2}"),)))


def tamper(url: str, *statements: str, **values: Any) -> None:
    """As a superuser does it who knows how: behind the back of every trigger."""
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        for statement in statements:
            connection.execute(statement.encode(), values)


def chain_of(events: Sequence[Row]) -> tuple[list[bytes], bytes]:
    """The hashes of events and the chain after them, as docs/chain.md says it."""
    chain, hashes = hashlib.sha256(b"ade log chain v1").digest(), []
    for event in events:
        texts = [event[name].encode() for name in ("stream", "workspace", "type")]
        moment = (event["recorded_at"] - EPOCH) // timedelta(microseconds=1)
        head = struct.pack(">qqq?iii", event["id"], event["seq"], moment, event["bulk"], *map(len, texts))
        payload = hashlib.sha256(event["data"].encode()).digest()
        hashes.append(hashlib.sha256(head + b"".join(texts) + payload).digest())
        chain = hashlib.sha256(chain + hashes[-1]).digest()
    return hashes, chain


# Sealing


async def test_a_seal_is_what_the_page_says(every_store: Store, every_url: str) -> None:
    """Its hash and its marks, computed from the columns by other code, on every PostgreSQL."""
    await tell_golden(every_store)
    place = await Sealer(every_store.database).catch_up()
    events = rows(every_url, "SELECT * FROM events ORDER BY id")
    hashes, chain = chain_of(events)
    assert len(events) > 50
    assert place == Place(len(events), chain)
    [seal] = rows(every_url, "SELECT after, marks FROM seals")
    assert seal == {"after": 0, "marks": b"".join(one[:8] for one in hashes)}


async def test_seals_are_dense_and_bounded(store: Store, url: str) -> None:
    """Each begins where the last one ended and covers at most so many events; nothing new is no seal."""
    sealer = Sealer(store.database)
    assert await sealer.catch_up() == Place(0, GENESIS)
    await append(store, SEAL_EVENTS, SEAL_EVENTS, 5)
    await sealer.catch_up()
    await sealer.catch_up()
    await append(store, 1)
    assert (await sealer.catch_up()).id == 2 * SEAL_EVENTS + 6
    ends = [0, SEAL_EVENTS, 2 * SEAL_EVENTS, 2 * SEAL_EVENTS + 5, 2 * SEAL_EVENTS + 6]
    found = rows(url, "SELECT after, upto FROM seals ORDER BY upto")
    assert found == [{"after": a, "upto": b} for a, b in pairwise(ends)]
    report = await verify(store.database)
    assert (report.count, report.last_id, report.sealed.id, report.unsealed) == (0, ends[-1], ends[-1], 0)


@pytest.mark.parametrize("guarded", [True, False], ids=["", "naive"])
async def test_two_who_seal_at_once_leave_one_chain(server: Server, guarded: bool) -> None:
    """The second finds the first one's seal and goes on from there. Without the constraint the chain would fork."""
    url = server.copy()
    async for store in open_store(url):
        if not guarded:
            rows(url, "ALTER TABLE seals DROP CONSTRAINT seals_after_key")
        await append(store, 3)
        hashes, chain = chain_of(rows(url, "SELECT * FROM events ORDER BY id"))
        marks = b"".join(one[:8] for one in hashes)
        async with await connect(url) as first, anyio.create_task_group() as tasks, transaction(first):
            await call(first, "seal", upto=3, after=0, chain_hash=chain, marks=marks)
            await append(store, 2)
            tasks.start_soon(Sealer(store.database).catch_up)
            if guarded:
                await until_blocked(url, "%INSERT INTO seals%")
            else:
                await until(lambda: len(rows(url, "SELECT 1 FROM seals")) == 1)
        await Sealer(store.database).catch_up()
        report = await verify(store.database)
        assert (report.sealed.id, bool(report.count)) == (5, not guarded)
    server.drop(url)


async def test_sealing_takes_no_lock_and_appending_waits_for_no_seal(store: Store, url: str) -> None:
    """It seals while somebody holds the log; and while it is in the middle of a seal, appends land."""
    await append(store, 5)
    with psycopg.connect(url) as holder, anyio.fail_after(60):
        holder.execute("SELECT pg_advisory_xact_lock(4702111234474983745)")
        assert (await Sealer(store.database).catch_up()).id == 5
    async with await connect(url) as sealer, transaction(sealer):
        await call(sealer, "seal", upto=6, after=5, chain_hash=GENESIS, marks=bytes(8))
        with anyio.fail_after(60):
            await append(store, 1)
    holding = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert rows(url, f"{holding} AND (backend_xmin IS NOT NULL OR state <> 'idle')") == []


async def test_sealing_stops_at_a_gap_and_says_so_once(
    store: Store, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is sealed over an event that is missing; whoever verifies is told."""
    await append(store, 9)
    tamper(url, "DELETE FROM events WHERE id = 5")
    sealer = Sealer(store.database)
    with caplog.at_level(logging.ERROR):
        assert [(await sealer.catch_up()).id for _ in range(3)] == [4, 4, 4]
    assert [record.message for record in caplog.records] == [
        "event 5 is missing: nothing from there on is sealed; ask `ade log verify`"
    ]
    report = await verify(store.database)
    assert [(found.id, found.what) for found in report.findings] == [(5, "is missing")]


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not true():  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.005)  # a process has no other way to say so than by what it did


SEALER = """
import sys, anyio
from eventstore import Database, seals

seals.SEAL_EVENTS, seals.SEAL_INTERVAL_S = 16, 0

async def work(url):
    async with Database(url) as database:
        await seals.Sealer(database).run()

anyio.run(work, *sys.argv[1:])
"""


@contextmanager
def sealer_process(url: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", SEALER, url], cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_sealer_that_is_killed_loses_nothing(store: Store, url: str) -> None:
    """In a loop, in mid-flight, while appends go on; the next one goes on where it was."""

    def count() -> int:
        return int(rows(url, "SELECT count(*) AS n FROM seals")[0]["n"])

    done = anyio.Event()

    async def go_on() -> None:
        while not done.is_set():
            await append(store, 40)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        for _ in range(4):
            before = count()
            with sealer_process(url) as process:
                await until(lambda before=before: count() > before + 3)  # type: ignore[misc]
                process.send_signal(signal.SIGKILL)
        done.set()
    head, behind = await store.log.head(), await sealed(store.database)
    assert 0 < behind.id < head
    assert (await Sealer(store.database).catch_up()).id == head
    report = await verify(store.database)
    assert (report.count, report.sealed.id) == (0, head)


# Damage

EVENTS = 40
SEALED_BY = 8


@pytest.fixture
def small_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log has many seals, and a verification many pages."""
    monkeypatch.setattr(sealing, "SEAL_EVENTS", SEALED_BY)
    monkeypatch.setattr(verifying, "PAGE_IDS", 2 * SEALED_BY)


@dataclass(frozen=True)
class Whole:
    """A sealed log that can be put back as it was."""

    store: Store
    url: str

    async def verify(self, **options: Any) -> Verified:
        return await verify(self.store.database, **options)

    def restore(self) -> None:
        names = "DELETE FROM {0}; INSERT INTO {0} SELECT * FROM kept_{0};"
        tamper(self.url, *(names.format(table) for table in ("events", "segments", "streams", "seals")))

    def texts(self) -> list[Row]:
        return rows(self.url, "SELECT e::text AS row FROM events e UNION ALL SELECT s::text FROM seals s")


@pytest.fixture
async def whole(store: Store, url: str, small_seals: None) -> AsyncIterator[Whole]:
    await append(store, 7, 1, 12, 3, 17)
    assert (await Sealer(store.database).catch_up()).id == EVENTS
    for table in ("events", "segments", "streams", "seals"):
        rows(url, f"CREATE TABLE kept_{table} AS TABLE {table}")
    yield Whole(store, url)
    for table in ("events", "segments", "streams", "seals"):
        rows(url, f"DROP TABLE kept_{table}")


Damage = tuple[int, Sequence[str], Mapping[str, Any]]
"""The first event that it concerns, the statements, and their values."""

SHIFT = "UPDATE events SET id = -id WHERE id {0} %(at)s; UPDATE events SET id = -id {1} 1 WHERE id < 0"
IDS = st.integers(1, EVENTS)
NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=12)
TIMES = st.datetimes(timezones=st.just(UTC)) | st.sampled_from(["infinity", "-infinity", "0044-03-15 BC"])


def changed(column: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Damage]:
    statement = f"UPDATE events SET {column} = %(to)s WHERE id = %(at)s"
    return st.builds(lambda at, to: (at, [statement], {"at": at, "to": to}), IDS, values)


def at_one(*statements: str) -> st.SearchStrategy[Damage]:
    return IDS.map(lambda at: (at, statements, {"at": at}))


def at_two(*statements: str) -> st.SearchStrategy[Damage]:
    pairs = st.lists(IDS, min_size=2, max_size=2, unique=True)
    return pairs.map(lambda two: (min(two), statements, {"a": two[0], "b": two[1]}))


def at_seal(*statements: str, shift: int = 0) -> st.SearchStrategy[Damage]:
    """Of a seal; ``shift`` counts the seals to the one by which it is seen."""
    ends = st.integers(1, EVENTS // SEALED_BY - max(shift, 0)).map(lambda place: place * SEALED_BY)
    return ends.map(lambda end: (end - SEALED_BY + 1 + shift * SEALED_BY, statements, {"at": end}))


OTHERS = "stream = o.stream, seq = o.seq, workspace = o.workspace, type = o.type, bulk = o.bulk"
FLIP = "set_byte({0}, {1}, get_byte({0}, {1}) # 1)"
DAMAGES: dict[str, st.SearchStrategy[Damage]] = {
    "another payload": changed("data", NAMES),
    "a flipped letter": at_one("UPDATE events SET data = overlay(data placing 'X' from 4) WHERE id = %(at)s"),
    "a space": at_one("UPDATE events SET data = data || ' ' WHERE id = %(at)s"),
    "another stream": changed("stream", NAMES),
    "another workspace": changed("workspace", NAMES),
    "another type": changed("type", NAMES),
    "another seq": changed("seq", st.integers(-(2**62), 2**62)),
    "another weight": at_one("UPDATE events SET bulk = NOT bulk WHERE id = %(at)s"),
    "another time": changed("recorded_at", TIMES),
    "a microsecond": at_one("UPDATE events SET recorded_at = recorded_at + interval '1 microsecond' WHERE id = %(at)s"),
    "letters that move to the next column": at_one(
        "UPDATE events SET stream = left(stream, -1), workspace = right(stream, 1) || workspace WHERE id = %(at)s"
    ),
    "removed": at_one("DELETE FROM events WHERE id = %(at)s"),
    "removed, and closed up": at_one("DELETE FROM events WHERE id = %(at)s", SHIFT.format(">", "-")),
    "inserted": at_one(
        SHIFT.format(">=", "+"),
        "INSERT INTO events SELECT %(at)s, 'job_0', 99, 'ws0', 'job.forged', true, now(), '{}'",
    ),
    "inserted before the first": st.integers(-(2**40), 0).map(
        lambda at: (at, ["INSERT INTO events VALUES (%(at)s, 'job_0', 99, 'ws0', 'job.forged', true, now(), '{}')"],
                    {"at": at})
    ),
    "ids swapped": at_two(
        "UPDATE events SET id = -id WHERE id IN (%(a)s, %(b)s); UPDATE events SET id = %(a)s + %(b)s + id WHERE id < 0"
    ),
    "all but ids swapped": at_two(
        f"""UPDATE events e SET {OTHERS}, recorded_at = o.recorded_at, data = o.data || ' ' FROM kept_events o
            WHERE (e.id, o.id) IN ((%(a)s, %(b)s), (%(b)s, %(a)s))"""
    ),
    "erased, and not told": at_one(
        """UPDATE events SET data = '{"redacted":"' || encode(sha256(data::bytea), 'hex') || '"}' WHERE id = %(at)s"""
    ),
    "cut off": at_one("DELETE FROM events WHERE id >= %(at)s"),
    "a seal's hash": at_seal(f"UPDATE seals SET chain_hash = {FLIP.format('chain_hash', 5)} WHERE upto = %(at)s"),
    "a seal's mark": at_seal(f"UPDATE seals SET marks = {FLIP.format('marks', 17)} WHERE upto = %(at)s"),
    "a seal removed": st.integers(1, EVENTS // SEALED_BY - 1).map(
        lambda n: (n * SEALED_BY - SEALED_BY + 1, ["DELETE FROM seals WHERE upto = %(at)s"], {"at": n * SEALED_BY})
    ),
    "a seal's mark and its event": at_seal(
        f"UPDATE seals SET marks = {FLIP.format('marks', 1)} WHERE upto = %(at)s",
        "UPDATE events SET data = '{}' WHERE id = %(at)s - 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_damage_is_found_and_named(whole: Whole, damage: str, data: st.DataObject) -> None:
    """Whichever event it concerns; and a log that nobody touched is sound, before and after."""
    first, statements, values = data.draw(DAMAGES[damage])
    whole.restore()
    before, report = whole.texts(), await whole.verify()
    assert (report.count, report.last_id, report.sealed.id) == (0, EVENTS, EVENTS)
    tamper(whole.url, *statements, **values)
    report = await whole.verify()
    if whole.texts() == before:
        assert report.count == 0, "what was drawn was there already"
    else:
        assert report.findings, "the damage was not found"
        assert report.findings[0].id == first


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["DELETE FROM events WHERE id IN (5, 6, 20)"], ["5 is missing, and so is all up to 6", "20 is missing"]),
        (
            ["UPDATE events SET id = -id WHERE id IN (3, 4)", "UPDATE events SET id = id + 7 WHERE id < 0"],
            ["3 is not what was sealed: that stands at 4 now", "4 is not what was sealed: that stands at 3 now"],
        ),
        (
            ["DELETE FROM events WHERE id > 20"],
            ["21 is missing, and so is all that was sealed after it, up to 40"],
        ),
        (["DELETE FROM seals WHERE upto = 16"], ["9 is under no seal: the one up to 16 is missing"]),
        (["DELETE FROM seals WHERE upto < 40"], ["1 is under no seal, though later events are"]),
        (
            ["UPDATE seals SET after = 7, upto = 15 WHERE upto = 16"],
            ["9 is under a seal that was changed, the one up to 15"],
        ),
        (
            ["UPDATE seals SET chain_hash = sha256(chain_hash) WHERE upto = 16"],
            ["9 is under a seal whose hash is another, the one up to 16"],
        ),
        (
            ["UPDATE seals SET marks = sha256(marks) || sha256(marks) WHERE upto = 16"],
            ["9 is under a seal whose marks were changed, the one up to 16"],
        ),
        (
            ["DELETE FROM segments WHERE last_id = 8"],
            ["24 is not where job_1 is read: its segment, or the one before, was changed"],
        ),
        (["DELETE FROM segments WHERE last_id = 40"], ["24 is not read with its stream: its segment is gone"]),
        (
            ["DELETE FROM segments WHERE last_id = 40", "UPDATE segments SET stream = 'job_9' WHERE last_id = 7"],
            ["1 is not where job_9 is read: its segment, or the one before, was changed"],
        ),
        (
            ["UPDATE segments SET first_id = first_id + 1 WHERE last_id = 20"],
            ["10 is not where job_2 is read: its segment, or the one before, was changed"],
        ),
        (
            ["UPDATE segments SET last_seq = last_seq + 1 WHERE last_id = 20"],
            ["9 is not where job_2 is read: its segment, or the one before, was changed"],
        ),
    ],
)  # fmt: skip
async def test_what_is_said_of_some_damages(whole: Whole, statements: list[str], expected: list[str]) -> None:
    """In words that an operator can act on, the first of them first."""
    tamper(whole.url, *statements)
    report = await whole.verify()
    assert [f"{found.id} {found.what}" for found in report.findings][: len(expected)] == expected


async def test_findings_are_counted_beyond_those_that_are_kept(whole: Whole) -> None:
    tamper(whole.url, "UPDATE events SET seq = seq + 1")
    report = await whole.verify()
    assert (len(report.findings), report.count) == (verifying.MOST_FINDINGS, EVENTS)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(IDS, IDS, IDS)
async def test_a_part_is_judged_by_its_own_seals(whole: Whole, at: int, first: int, last: int) -> None:
    """From the seal over the first id to the one over the last; what lies outside is not looked at."""
    first, last = min(first, last), max(first, last)
    whole.restore()
    tamper(whole.url, "UPDATE events SET data = '[]' WHERE id = %(at)s", at=at)
    report = await whole.verify(first=first, last=last)
    begin = (first - 1) // SEALED_BY * SEALED_BY + 1
    end = -(-last // SEALED_BY) * SEALED_BY
    assert (report.first_id, report.last_id) == (begin, last)
    assert [found.id for found in report.findings] == ([at] if begin <= at <= end else [])


# Heads that were kept


async def place_at(whole: Whole, event_id: int) -> Place:
    """How the chain stood after an event, in the middle of a seal, too."""
    events = rows(whole.url, "SELECT * FROM events WHERE id <= %s ORDER BY id", event_id)
    return Place(event_id, chain_of(events)[1])


REWRITE = ("UPDATE events SET data = '{}' WHERE id = %(at)s", "DELETE FROM seals")
CUT = (
    "DELETE FROM events WHERE id >= %(at)s",
    """UPDATE segments SET last_seq = last_seq - (last_id - %(at)s + 1), last_id = %(at)s - 1
       WHERE first_id < %(at)s AND last_id >= %(at)s""",
    "DELETE FROM segments WHERE last_id >= %(at)s",
    "DELETE FROM streams WHERE first_id >= %(at)s",
    "DELETE FROM seals",
)


@pytest.mark.parametrize("attack", [REWRITE, CUT], ids=["rewritten", "cut off"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=IDS, kept=st.integers(0, EVENTS), reseal=st.booleans())
async def test_a_new_chain_is_found_by_a_head_that_was_kept(
    whole: Whole, attack: Sequence[str], at: int, kept: int, reseal: bool
) -> None:
    """A log that was changed and sealed anew is sound by itself; it does not have the prefix that somebody kept."""
    whole.restore()
    place = await place_at(whole, kept)
    assert (await whole.verify(kept=place)).count == 0
    tamper(whole.url, *attack, at=at)
    if reseal:
        await Sealer(whole.store.database).catch_up()
    assert (await whole.verify()).count == 0, "nothing but a head that was kept can find this"
    report = await whole.verify(kept=place)
    assert bool(report.findings) == (at <= kept)
    if report.findings:
        assert report.findings[0].id == (kept if attack is REWRITE else at)
    await append(whole.store, 3)
    assert bool((await whole.verify(kept=place)).count) == (at <= kept), "a log that grew hides it"


# While the log goes on


async def test_verifying_goes_on_beside_appends_seals_and_redactions(store: Store, small_seals: None) -> None:
    """A log that is written to is sound at every moment, and none of them waits for another."""
    done, seen, sealer = anyio.Event(), [], Sealer(store.database)
    await append(store, 50)

    async def go_on(step: Callable[[], Any]) -> None:
        while not done.is_set():
            await step()

    async def redact() -> None:
        head = await store.log.head()
        found = await store.database.rows("redactable_events", stream="job_0", ids=list(range(head - 90, head)))
        ids = [row["id"] for row in found if row["bulk"]][:3]
        says = encode({"stream": "job_0", "event_ids": ids, "requested_by": "test", "reason": "test"}).decode()
        await store.database.rows("redact", stream="job_0", ids=ids, says=says)

    async with anyio.create_task_group() as tasks:
        for step in (lambda: append(store, 13), sealer.catch_up, redact):
            tasks.start_soon(go_on, step)
        for _ in range(12):
            report = await verify(store.database)
            assert report.findings == []
            seen.append(report)
        done.set()
    assert seen[-1].sealed.id > seen[0].sealed.id
    assert seen[-1].last_id > seen[0].last_id
    assert len(await store.database.rows("redactions")) > 3
