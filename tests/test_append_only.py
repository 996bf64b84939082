"""I2: an event is never changed. The database itself refuses it, to everybody who does not take it apart first."""

import secrets
from collections.abc import Iterator
from contextlib import asynccontextmanager

import anyio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from eventstore import Append, Appended, NewEvent, Part
from eventstore.migrations import migrate
from tests.conftest import Server, Store, open_store

pytestmark = pytest.mark.anyio

OF_DATA = {
    "an update": "UPDATE events SET data = '{}'",
    "an update of one": "UPDATE events SET data = '{}' WHERE id = 1",
    "an untold redaction": (
        """UPDATE events SET data = format('{"redacted":"%s"}', encode(sha256(data::bytea), 'hex')) WHERE bulk"""
    ),
    "an upsert": "INSERT INTO events SELECT * FROM events ON CONFLICT (id) DO UPDATE SET data = '{}'",
    "a merge that updates": "MERGE INTO events USING streams ON first_id = id WHEN MATCHED THEN UPDATE SET data = ''",
}
"""What the trigger alone refuses: the owner keeps the right to erase a payload (`event.redacted`)."""

OTHERS = {
    "an update of a time": "UPDATE events SET recorded_at = clock_timestamp() WHERE id = 1",
    "an update of an id": "UPDATE events SET id = id + 100, data = data",
    "a delete": "DELETE FROM events",
    "a delete of one": "DELETE FROM events WHERE id = 1",
    "a delete behind a query": "WITH gone AS (DELETE FROM events RETURNING id) SELECT count(*) FROM gone",
    "a truncate": "TRUNCATE events",
    "a truncate with others": "TRUNCATE streams, events, leases CASCADE",
    "a merge that deletes": "MERGE INTO events USING streams ON first_id = id WHEN MATCHED THEN DELETE",
}
"""What the grants refuse too."""

CHANGES = OF_DATA | OTHERS


def attempt(url: str, *statements: str) -> None:
    """Runs statements, each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


async def append_two(store: Store) -> Appended:
    events = [NewEvent("job.noted", b'{"n":1}'), NewEvent("job.line", b'{"n":2}', bulk=True)]
    return await store.appender.append(Append((Part("job_1", events, "ws"),)))


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_refused_by_a_trigger(every_store: Store, change: str) -> None:
    """Even to a superuser, whom no grant holds back; and the log stays as it was."""
    await append_two(every_store)
    before = await every_store.log.read(0)
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only") as refused:
        attempt(every_store.database.url, CHANGES[change])
    assert refused.value.diag.message_hint == "What happened is corrected by another event."
    assert await every_store.log.read(0) == before


opened = asynccontextmanager(open_store)


async def append_two_to(url: str) -> None:
    async with opened(url) as store:
        await append_two(store)


def as_role(url: str, role: str) -> str:
    return make_conninfo(url, user=role)


@pytest.fixture(scope="module")
def owner(every_server: Server) -> Iterator[str]:
    """A database that belongs to an ordinary role, which has migrated it and appended to it; its URL for that role."""
    name = f"owner_{secrets.token_hex(6)}"
    url = every_server.create()
    database = str(conninfo_to_dict(url)["dbname"])
    with psycopg.connect(url, autocommit=True) as superuser:
        superuser.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(name)))
        superuser.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(f"{name}_other")))
        superuser.execute(SQL("ALTER DATABASE {} OWNER TO {}").format(Identifier(database), Identifier(name)))
    anyio.run(migrate, as_role(url, name))
    anyio.run(append_two_to, as_role(url, name))
    yield as_role(url, name)
    every_server.drop(url)
    with psycopg.connect(every_server.empty(), autocommit=True) as superuser:
        superuser.execute(SQL("DROP ROLE {}, {}").format(Identifier(name), Identifier(f"{name}_other")))


async def test_an_ordinary_owner_can_append_and_read(owner: str) -> None:
    """The program needs to own its database, and no more."""
    async with opened(owner) as store:
        head = await store.log.head()
        assert await append_two(store) == Appended(head + 1, head + 2)
        assert len(await store.log.read(head)) == 2


@pytest.mark.parametrize("change", OTHERS)
def test_a_change_is_refused_by_a_missing_grant(owner: str, change: str) -> None:
    """The table's owner has taken the right from itself, so the trigger is not even asked."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="events"):
        attempt(owner, CHANGES[change])


@pytest.mark.parametrize("change", CHANGES)
def test_an_owner_that_grants_itself_every_right_meets_the_trigger(owner: str, change: str) -> None:
    """One of the two guards is not enough to get past."""
    with psycopg.connect(owner) as connection:
        connection.execute("GRANT UPDATE, DELETE, TRUNCATE ON events TO CURRENT_USER")
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
            connection.execute(CHANGES[change].encode())
        connection.rollback()


@pytest.mark.parametrize("statement", [*CHANGES.values(), "INSERT INTO events SELECT * FROM events", "TABLE events"])
def test_another_role_may_do_nothing_at_all(owner: str, statement: str) -> None:
    """Nothing of the log is open to whoever may connect."""
    other = as_role(owner, f"{conninfo_to_dict(owner)['user']}_other")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        attempt(other, statement)
