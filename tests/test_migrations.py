"""Migrations: once each, whoever comes; and the picture of the schema is where the film ends."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString

import anyio
import psycopg
import pytest

from eventstore import Database, Feed, Log
from eventstore.migrations import migrate, status
from eventstore.statements import folder, statements, texts
from tests.conftest import Server

pytestmark = pytest.mark.anyio

PATIENCE_S = 60
NAMES = tuple(name for name, _ in texts("migrations"))

CATALOGUE: LiteralString = """
WITH relation AS (
    SELECT *, oid::regclass::text AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace
)
SELECT 'relation ' || name AS what, concat_ws(' | ', relkind, relpersistence, reloptions, relacl, relrowsecurity,
           obj_description(oid, 'pg_class')) AS how
FROM relation
UNION ALL
SELECT 'column ' || name || '.' || attname, concat_ws(' | ',
           row_number() OVER (PARTITION BY attrelid ORDER BY attnum), format_type(atttypid, atttypmod), attnotnull,
           pg_get_expr(adbin, adrelid), attidentity, attgenerated, attcollation::regcollation, attstorage,
           nullif(attstattarget, -1), attacl, col_description(attrelid, attnum))
FROM relation JOIN pg_attribute a ON attrelid = relation.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL
SELECT 'index ' || name, pg_get_indexdef(oid) FROM relation WHERE relkind = 'i'
UNION ALL
SELECT 'view ' || name, pg_get_viewdef(oid) FROM relation WHERE relkind IN ('v', 'm')
UNION ALL
SELECT 'constraint ' || name || '.' || conname, concat_ws(' | ', pg_get_constraintdef(c.oid), convalidated)
FROM relation JOIN pg_constraint c ON conrelid = relation.oid
UNION ALL
SELECT 'trigger ' || name || '.' || tgname, concat_ws(' | ', pg_get_triggerdef(t.oid), tgenabled)
FROM relation JOIN pg_trigger t ON tgrelid = relation.oid
UNION ALL
SELECT 'function ' || oid::regprocedure, concat_ws(' | ', pg_get_functiondef(oid), proacl)
FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind = 'f' AND (%s OR prorettype = 'trigger'::regtype)
"""


def catalogue(url: str, *, functions: bool = False) -> dict[str, str]:
    """All that the schema is made of; of the functions only those of triggers, unless all are asked for."""
    with psycopg.connect(url) as connection:
        return read_catalogue(connection, functions=functions)


def read_catalogue(connection: psycopg.Connection[tuple[str, str]], *, functions: bool = False) -> dict[str, str]:
    return dict(connection.execute(CATALOGUE, [functions]).fetchall())


def run(url: str, *texts_of_sql: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for text in texts_of_sql:
            connection.execute(text.encode())


def rows(url: str, question: LiteralString) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(question).fetchall()


WAITING: LiteralString = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
"""How many wait for a session."""
APPLIED: LiteralString = "SELECT name, digest, applied_at FROM schema_migrations ORDER BY name"
MADE: LiteralString = "SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY oid"


@pytest.fixture
def bare(server: Server) -> Iterator[str]:
    """A database with nothing in it."""
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture
def own(server: Server) -> Iterator[str]:
    """A database with the schema, which the test may change."""
    url = server.copy()
    yield url
    server.drop(url)


# The picture and the film


def picture() -> str:
    return (folder() / "schema.sql").read_text("utf-8")


def test_the_picture_is_where_the_film_ends(every_server: Server) -> None:
    """schema.sql on an empty database gives the catalogue that the migrations give."""
    drawn, filmed = every_server.create(), every_server.copy()
    try:
        run(drawn, picture())
        assert catalogue(drawn) == catalogue(filmed)
    finally:
        every_server.drop(drawn)
        every_server.drop(filmed)


async def test_a_log_from_before_segments_is_read_as_it_was(bare: str) -> None:
    """The migration finds out from the events where each stream lies."""
    run(bare, *(text for name, text in texts("migrations") if name < "0004"))
    run(
        bare,
        "INSERT INTO events SELECT n, 'job_' || n / 3 % 2, n, 'ws', 'job.line', true, now(), '{}'"
        " FROM generate_series(1, 12) AS n",
        "INSERT INTO streams SELECT stream, 'ws', min(id), max(id), 0, 0, NULL, 0, 3 FROM events GROUP BY stream",
        "INSERT INTO leases VALUES ('job_1', 7, 'me', now(), now(), now())",
        "CREATE FUNCTION append_events_v1(streams text[]) RETURNS void LANGUAGE sql AS ''",  # it knows no segments
    )
    run(bare, *(text for name, text in texts("migrations") if name >= "0004"), *dict(texts("functions")).values())
    assert rows(bare, "SELECT 1 FROM pg_proc WHERE proname = 'append_events_v1'") == []
    assert rows(bare, "SELECT * FROM segments ORDER BY first_id") == [
        ("job_0", 1, 2, 4, 2, None, None),
        ("job_1", 3, 5, 6, 5, None, None),
        ("job_0", 6, 8, 6, 8, None, None),
        ("job_1", 9, 11, 6, 11, 7, 3),
        ("job_0", 12, 12, 2, 12, None, None),
    ]
    async with Database(bare) as database:
        found = await Log(database).read_feed(Feed("job_0", None, 1, None), 1)
        assert [line.id for line in found] == [2, 6, 7, 8, 12]


@pytest.mark.parametrize(
    "difference",
    [
        "ALTER TABLE runs ADD COLUMN mood text",
        "ALTER TABLE runs DROP COLUMN summary CASCADE",
        "ALTER TABLE segments ALTER COLUMN bytes TYPE numeric",
        "ALTER TABLE segments ALTER COLUMN bytes SET DEFAULT 0",
        "ALTER TABLE segments ALTER COLUMN bytes DROP NOT NULL",
        "ALTER TABLE leases RESET (fillfactor)",
        "ALTER TABLE log DROP CONSTRAINT log_one_row_check",
        "ALTER TABLE events DISABLE TRIGGER USER",
        "DROP INDEX control_events",
        "DROP INDEX control_events; CREATE INDEX control_events ON events (id) WHERE bulk",
        "COMMENT ON TABLE events IS 'A table.'",
        "GRANT DELETE ON events TO CURRENT_USER",
        "GRANT UPDATE (id) ON events TO CURRENT_USER",
        "DROP VIEW runs_with_lease; CREATE VIEW runs_with_lease AS SELECT * FROM runs",
        "CREATE OR REPLACE FUNCTION refuse_change_v1() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "DROP TRIGGER events_are_never_changed ON events",
    ],
)
def test_the_comparison_sees(url: str, difference: str) -> None:
    """The test above can fail: each of these makes another catalogue."""
    with psycopg.connect(url) as connection:
        before = read_catalogue(connection)
        connection.execute(difference.encode())
        assert read_catalogue(connection) != before
        connection.rollback()


@pytest.mark.parametrize("applied", range(len(NAMES)))
async def test_the_film_ends_the_same_wherever_it_begins(bare: str, fresh_url: str, applied: int) -> None:
    """A database of any older release comes to the same schema."""
    run(bare, statements()["migrations_table"])
    for name, text in texts("migrations")[:applied]:
        run(bare, text, f"INSERT INTO schema_migrations VALUES ('{name}', '')")
    found = await migrate(bare)
    assert (found.applied, found.pending) == (NAMES[:applied], NAMES[applied:])
    assert catalogue(bare, functions=True) == catalogue(fresh_url, functions=True)


# Once


MIGRATE = "import sys, anyio; from eventstore.migrations import migrate; print(anyio.run(migrate, sys.argv[1]).pending)"


def test_of_many_processes_that_migrate_at_once_one_does(bare: str) -> None:
    """They are let go together on an empty database; all succeed, and every migration was applied once."""
    with psycopg.connect(bare) as gate, psycopg.connect(bare, autocommit=True) as observer:
        gate.execute("SELECT pg_advisory_xact_lock(4702111234474983746)")
        processes = [
            subprocess.Popen([sys.executable, "-c", MIGRATE, bare], stdout=subprocess.PIPE, text=True) for _ in range(4)
        ]
        while observer.execute(WAITING, [gate.info.backend_pid]).fetchone() != (4,):
            assert all(process.poll() is None for process in processes), "one did not wait"
    told = [process.communicate(timeout=PATIENCE_S)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(told) == sorted([str(NAMES), "()", "()", "()"])
    assert rows(bare, "SELECT count(*) FROM log") == [(1,)]
    assert [name for name, *_ in rows(bare, APPLIED)] == [*NAMES, "functions"]


async def test_migrating_again_changes_nothing(own: str) -> None:
    """Neither a table nor a function is touched, and nothing is written down twice."""
    before = catalogue(own, functions=True), rows(own, APPLIED), rows(own, MADE)
    found = await migrate(own)
    assert (found.applied, found.pending, found.ahead, found.functions_current) == (NAMES, (), (), True)
    assert (catalogue(own, functions=True), rows(own, APPLIED), rows(own, MADE)) == before
    assert await status(own) == found


def test_functions_may_be_made_any_number_of_times(own: str) -> None:
    """Their files run on what they have made themselves, and end at the same catalogue."""
    before = catalogue(own, functions=True)
    for kind in ("functions", "projections"):
        for _, text in texts(kind):
            run(own, text, text)
    assert catalogue(own, functions=True) == before


OTHER_FUNCTION = """
CREATE OR REPLACE FUNCTION event_times_v1(recorded_at timestamptz) RETURNS text LANGUAGE sql RETURN 'another'"""


async def test_other_functions_are_replaced(own: str) -> None:
    """A program with other functions than the database has brings its own; the tables stay."""
    run(own, "UPDATE schema_migrations SET digest = 'yesterday' WHERE name = 'functions'", OTHER_FUNCTION)
    found = await migrate(own)
    assert (found.pending, found.functions_current) == ((), False)
    assert (await status(own)).functions_current
    assert rows(own, "SELECT event_times_v1(now()) = 'another'") == [(False,)]


async def test_a_newer_schema_is_left_alone(own: str) -> None:
    """Release N-1 on the schema of release N: it says what is ahead, and brings back no function of its own."""
    run(own, "INSERT INTO schema_migrations VALUES ('9999_tomorrow', '')", OTHER_FUNCTION)
    run(own, "UPDATE schema_migrations SET digest = 'tomorrow' WHERE name = 'functions'")
    before = catalogue(own, functions=True), rows(own, APPLIED), rows(own, MADE)
    found = await migrate(own)
    assert (found.ahead, found.pending) == (("9999_tomorrow",), ())
    assert (catalogue(own, functions=True), rows(own, APPLIED), rows(own, MADE)) == before


# Whole or not at all


async def test_a_migration_that_fails_leaves_nothing(bare: str) -> None:
    """What came before it is undone too, and when the reason is gone the next try succeeds."""
    run(bare, "CREATE TABLE runs (mine int)")
    before = catalogue(bare, functions=True)
    with pytest.raises(psycopg.errors.DuplicateTable):
        await migrate(bare)
    assert catalogue(bare, functions=True) == before
    run(bare, "DROP TABLE runs")
    await migrate(bare)
    assert (await status(bare)).pending == ()


def test_status_may_be_asked_while_another_migrates(bare: str) -> None:
    """It tells what was there before, or waits and tells what is there then; it does not fail."""
    with (
        psycopg.connect(bare) as migrating,
        psycopg.connect(bare, autocommit=True) as observer,
        ThreadPoolExecutor(1) as thread,
    ):
        migrating.execute("SELECT pg_advisory_xact_lock(4702111234474983746)")
        migrating.execute(statements()["migrations_table"].encode())
        migrating.execute("INSERT INTO schema_migrations VALUES ('0001_log', '')")
        asked = thread.submit(anyio.run, status, bare)
        while not asked.done() and observer.execute(WAITING, [migrating.info.backend_pid]).fetchone() == (0,):
            pass
        migrating.commit()
        assert asked.result(PATIENCE_S).applied in ((), ("0001_log",))
