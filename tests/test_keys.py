"""Keys: made, recognised, noticed as dead by every process, and told of in the log."""

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

import anyio
import orjson
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from eventstore.log import FOREVER
from eventstore.tail import LOG, Hints
from service import key_records
from service.api.keys import KeySnapshot
from service.cli import app as command_line
from service.cli.transfer import export_audit
from service.key_records import NewKey
from service.keys import Caller, Key, SignedPath
from service.known_keys import KnownKeys
from service.roles import Role
from service.token_bucket import TokenBucket
from tests.conftest import Store
from tests.histories import golden, tell_golden, until_blocked

pytestmark = pytest.mark.anyio

NIGHTLY = NewKey(name="nightly", role="operator", workspaces=["antarctica"])


# What a key is


def test_a_key_is_what_it_says() -> None:
    """Its text is read again as the same key, which proves what is kept of it, and no other one does."""
    key, other = Key.new(), Key.new()
    again = Key.parse(key.text)
    assert again == key
    assert again.proves(key.sha256)
    assert not replace(again, secret=other.secret).proves(key.sha256)
    assert key.secret not in repr(key.sha256)


@given(
    st.one_of(
        st.text(), st.from_regex(r"ade_[0-9A-Z]{25,27}_[0-9a-f]{4}\n?", fullmatch=True), st.just(Key.new().text + "\n")
    )
)
def test_what_is_no_key_is_none(text: str) -> None:
    """Whatever is sent, it is a key as they are written, or nothing; nothing is forgiven."""
    key = Key.parse(text)
    assert key is None or key.text == text


def test_a_signature_is_good_for_one_path_one_key_and_one_time() -> None:
    """Seen to fail with a signature of the path alone."""
    key, other = Key.new(), Key.new()
    signed = SignedPath("/api/v1/runs/run_1/events", key.id, 1_763_612_345).sign(key.sha256)
    assert signed.proves(key.sha256)
    assert not signed.proves(other.sha256)
    for forged in (
        replace(signed, path="/api/v1/runs/run_2/events"),
        replace(signed, until=signed.until + 1),
        replace(signed, key_id=other.id),
        replace(signed, signature=""),
        replace(signed, signature="é"),
    ):
        assert not forged.proves(key.sha256)


def test_a_bucket_gives_what_came_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst at once, then as many as the rate says; and how long to wait is neither too long nor too short."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bucket = TokenBucket(per_second=10, most=3)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    now += 0.1001
    assert bucket.take() == 0
    assert bucket.take() > 0
    now += 3600
    assert [bucket.take() > 0 for _ in range(4)] == [False, False, False, True]


def test_roles_hold_what_those_before_them_hold() -> None:
    operator = Caller("k", Role.OPERATOR, frozenset({"a"}))
    assert [operator.holds(role) for role in Role] == [True, True, True, False]
    assert (operator.sees("a"), operator.sees("b"), Caller("k", Role.VIEWER, None).sees("b")) == (True, False, True)


# On record


class Ends:
    """Waits for a process to learn that a key is dead, once for each time."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def tell(self) -> None:
        self._event.set()

    async def __call__(self) -> None:
        with anyio.fail_after(60):
            await self._event.wait()
        self._event = anyio.Event()


@asynccontextmanager
async def node(store: Store, burst: int = 1000) -> AsyncIterator[tuple[KnownKeys, Ends]]:
    """What a process knows of keys."""
    ends, hints = Ends(), Hints(store.database, LOG)
    known = KnownKeys(store.database, hints, ends.tell, per_second=1, burst=burst)
    async with anyio.create_task_group() as tasks:
        for loop in (hints, known):
            await tasks.start(loop.run)
        yield known, ends
        tasks.cancel_scope.cancel()


async def test_a_key_is_known_until_it_is_revoked(store: Store) -> None:
    """On two nodes at once; then it is dead on both, and who holds it learns of it."""
    key = await key_records.make(store.database, NIGHTLY, "tester")
    async with node(store) as (first, first_ended), node(store) as (second, second_ended):
        found = await first.bearer(key)
        again = await second.bearer(key)
        assert found is not None
        assert again is not None
        caller = found[0]
        assert (caller.name, caller.role, caller.workspaces) == (key.id, Role.OPERATOR, frozenset({"antarctica"}))
        assert await first.bearer(replace(key, secret=Key.new().secret)) is None
        assert await first.bearer(Key.new()) is None
        assert await first.bearer(key) == (caller, 0)
        assert await key_records.revoke(store.database, key.id, "tester", None)
        assert not await key_records.revoke(store.database, key.id, "tester", None)
        await first_ended()
        await second_ended()
        assert caller.over
        assert again[0].over
        assert await first.bearer(key) is None


async def test_a_key_that_was_read_as_it_died_is_not_believed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is read, the key is revoked and everything known is looked at, then what was read arrives. Seen to fail
    where only news of revocations is followed: that was over before the key was known."""
    key = await key_records.make(store.database, NIGHTLY, "tester")
    async with node(store) as (known, ended):
        row = store.database.row

        async def slow(statement: str, **parameters: object) -> object:
            found = await row(statement, **parameters)
            if statement == "live_keys":
                await key_records.revoke(store.database, key.id, "tester", None)
                await known._look()  # nothing is known yet
            return found

        monkeypatch.setattr(store.database, "row", slow)
        assert await known.bearer(key) is not None
        monkeypatch.undo()
        await ended()
        assert await known.bearer(key) is None


async def test_a_key_dies_by_itself(store: Store) -> None:
    """At its time, whether or not anybody looks."""
    key = await key_records.make(store.database, NIGHTLY.model_copy(update={"expires_in_s": 1}), "tester")
    async with node(store) as (known, ended):
        found = await known.bearer(key)
        assert found is not None
        await ended()
        assert found[0].over
        assert await known.bearer(key) is None


async def test_a_session_ends_with_its_key(store: Store) -> None:
    """It is the same caller by name, cannot open another one, and of more than a hundred the oldest go."""
    key = await key_records.make(store.database, NIGHTLY, "tester")
    opened = await key_records.open_session(store.database, key)
    assert opened is not None
    session, expires = opened
    assert expires > time.time() + key_records.SESSION_S - 60
    assert await key_records.open_session(store.database, session) is None
    async with node(store) as (known, ended):
        found = await known.bearer(session)
        assert found is not None
        assert found[0].name == key.id
        later = [await key_records.open_session(store.database, key) for _ in range(key_records.SESSIONS_MAX)]
        await ended()
        assert found[0].over
        newest = later[-1]
        assert newest is not None
        assert await known.bearer(newest[0]) is not None
        await key_records.close_session(store.database, key)  # is no session
        await key_records.revoke(store.database, key.id, "tester", None)
        await ended()
        assert await known.bearer(newest[0]) is None
    assert await key_records.open_session(store.database, key) is None
    assert [row["id"] for row in await key_records.listed(store.database)] == [key.id]


async def test_a_session_is_not_opened_with_a_key_that_dies_meanwhile(store: Store, url: str) -> None:
    """The revocation has looked for sessions and is not committed yet. Seen to fail without `FOR SHARE`: nobody
    waits, and the session outlives its key."""
    key, opened = await key_records.make(store.database, NIGHTLY, "tester"), []

    async def open_session() -> None:
        opened.append(await key_records.open_session(store.database, key))

    with psycopg.connect(url) as revoking:
        revoking.execute("SELECT revoke_key_v1(%s, '{}')", [key.id])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_session)
            await until_blocked(url, "%INSERT INTO api_keys%")
            revoking.commit()
    assert opened == [None]


async def test_requests_are_counted_per_key(store: Store) -> None:
    """A key, its session and what it signed share one bucket; another key has its own."""
    key, other = [await key_records.make(store.database, NIGHTLY, "tester") for _ in range(2)]
    opened = await key_records.open_session(store.database, key)
    assert opened is not None
    async with node(store, burst=3) as (known, _):
        signed = await known.sign(SignedPath("/x", key.id, 0))
        assert signed is not None
        waits = [
            await known.bearer(key),
            await known.bearer(opened[0]),
            await known.reader(signed),
            await known.bearer(key),
            await known.bearer(other),
        ]
    assert [found is not None and found[1] > 0 for found in waits] == [False, False, False, True, False]


async def test_the_last_use_is_written_down(store: Store) -> None:
    """Soon, by the process's own loop; a request writes nothing, and is known without asking the database."""
    key = await key_records.make(store.database, NIGHTLY, "tester")
    async with node(store) as (known, _):
        assert await known.bearer(key) is not None
        with anyio.fail_after(60):
            while (await key_records.listed(store.database))[0]["last_used_at"] is None:  # noqa: ASYNC110 - a row, no task
                await anyio.sleep(0.02)
        before = (await key_records.listed(store.database))[0]["last_used_at"]
        assert await known.bearer(key) is not None
        await known._note()
        assert (await key_records.listed(store.database))[0]["last_used_at"] == before


async def test_the_log_says_who_and_never_what(store: Store, url: str) -> None:
    """Each key and its end are events with an actor; neither the secret nor its hash is in any of them."""
    key = await key_records.make(store.database, NIGHTLY.model_copy(update={"expires_in_s": 60}), "tester")
    await key_records.revoke(store.database, key.id, "somebody", "lost")
    page = await store.log.read(0)
    created, revoked = (orjson.loads(line.line) for line in page)
    assert (created["type"], created["requested_by"], created["workspaces"]) == (
        "key.created",
        "tester",
        ["antarctica"],
    )
    assert (revoked["type"], revoked["requested_by"], revoked["reason"]) == ("key.revoked", "somebody", "lost")
    assert created["key_id"] == revoked["key_id"] == key.id
    assert key.secret.encode() not in page.ndjson
    assert key.sha256.hex().encode() not in page.ndjson
    with psycopg.connect(url) as connection:
        stored = connection.execute("SELECT to_jsonb(k)::text FROM api_keys k").fetchone()
    assert stored is not None
    assert key.secret not in stored[0]


# On the command line


def ade(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(command_line, arguments, env={"ADE_DATABASE_URL": url})


def test_the_commands(url: str) -> None:
    """A key is printed once, listed without its secret, revoked once; an audit tells all of it and nothing else."""
    text = ade(
        url, "keys", "create", "--role", "viewer", "-w", "b", "-w", "a", "-w", "b", "--expires", "1"
    ).stdout.strip()
    key = Key.parse(text)
    assert key is not None
    made = json.loads(ade(url, "keys", "create", "--role", "admin", "-w", "*", "--name", "mine", "--json").stdout)
    assert Key.parse(made["key"]) is not None
    listed = ade(url, "keys", "list", "--json").stdout
    mine, first = map(json.loads, listed.splitlines())
    assert {**mine, "key": made["key"]} == made
    assert (first["id"], first["role"], first["workspaces"], first["state"]) == (key.id, "viewer", ["b", "a"], "live")
    assert first.keys() == KeySnapshot.model_fields.keys()
    lives = datetime.fromisoformat(first["expires_at"]) - datetime.fromisoformat(first["created_at"])
    assert lives.total_seconds() == pytest.approx(24 * 3600, abs=5)
    assert key.secret not in listed
    assert [ade(url, "keys", "revoke", key.id, "--reason", "lost").exit_code for _ in range(2)] == [0, 2]
    assert re.search(rf"{key.id} .* revoked\n", ade(url, "keys", "list").stdout)
    audit = [json.loads(line) for line in ade(url, "log", "export", "--audit").stdout.splitlines()]
    assert [(event["type"], event["key_id"]) for event in audit] == [
        ("key.created", key.id),
        ("key.created", made["id"]),
        ("key.revoked", key.id),
    ]
    assert len({event["requested_by"] for event in audit}) == 1


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("--role", ["--role", "owner", "-w", "a"]),
        ("--workspace", ["--role", "viewer"]),
        ("--workspace", ["--role", "viewer", "-w", "A"]),
        ("--expires", ["--role", "viewer", "-w", "a", "--expires", "0"]),
        ("--name", ["--role", "viewer", "-w", "a", "--name", "\x01"]),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(url: str, option: str, wrong: list[str]) -> None:
    """By one line that names the option, before anything is written."""
    done = ade(url, "keys", "create", *wrong)
    assert done.exit_code == 2
    assert option in done.output
    assert "Traceback" not in done.output


async def test_an_audit_is_what_somebody_did(store: Store) -> None:
    """Every event that has an actor, in order and as it is in the log; no other one. Seen to fail with all control
    events."""
    await tell_golden(store)
    expected = [one.line for one in golden() if "requested_by" in one.data or one.type == "document.stored"]
    found: list[bytes] = []
    await export_audit(store.database.url, 0, FOREVER, found.append)
    ids = [orjson.loads(line)["id"] for line in b"".join(found).splitlines()]
    assert ids == [orjson.loads(line)["id"] for line in expected]
    assert len(ids) < len(golden()) / 2
