"""Rebuilding: the same tables from the same log, while everything goes on."""

import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import anyio
import psycopg
import pytest

from eventstore.database import call, connect
from eventstore.errors import DependedOn, RebuildRunning
from projections import rebuild as rebuilding
from projections.rebuild import rebuild
from projections.tables import ALL, CAUGHT_UP, Projection
from tests.conftest import Store
from tests.histories import line, rows, run_created, run_started, table, tell, tell_golden, until_blocked

pytestmark = pytest.mark.anyio

TABLES = [name for projection in ALL for name in projection.tables]
RUNS = next(projection for projection in ALL if projection.name == "runs")
every_projection = pytest.mark.parametrize("projection", ALL, ids=lambda one: one.name)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log takes many pages, and a last one at the swap."""
    monkeypatch.setattr(rebuilding, "PAGE_IDS", 10)
    monkeypatch.setattr(rebuilding, "CLOSE_IDS", 9)


async def told(store: Store) -> None:
    """The golden log, with everything caught up."""
    await tell_golden(store)
    await everything_caught_up(store)


async def everything_caught_up(store: Store) -> None:
    for projection in CAUGHT_UP:
        await store.database.row("catch_up", projection=projection.name, most=100_000)


def contents(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables of all projections."""
    return {name: table(url, name) for name in TABLES}


def shape(url: str) -> dict[str, list[dict[str, Any]]]:
    """Columns, indexes, constraints, privileges and comments of the tables, by name, and the views."""
    queries = {
        "columns": """SELECT table_name, ordinal_position, column_name, data_type, is_nullable, column_default
                      FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2""",
        "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
        "constraints": """SELECT conrelid::regclass::text AS of, conname, pg_get_constraintdef(oid) AS says
                          FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2""",
        "tables": """SELECT relname, relkind, relowner::regrole::text AS owner, reloptions,
                            coalesce(relacl, acldefault('r', relowner))::text AS relacl,
                            obj_description(oid, 'pg_class') AS comment
                     FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1""",
        "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1",
        "schemas": "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' ORDER BY 1",
    }
    return {what: rows(url, query) for what, query in queries.items()}


@every_projection
async def test_a_rebuild_changes_nothing(every_store: Store, every_url: str, projection: Projection) -> None:
    """Row by row, and in the shape of every table, index, constraint and view; what comes after it lands as before."""
    await told(every_store)
    before, shaped = contents(every_url), shape(every_url)
    assert all(before[name] for name in projection.tables)
    reached: list[int] = []
    head = await rebuild(every_url, projection, lambda done, _: reached.append(done))
    assert len(reached) > 5
    assert [*sorted(reached), head] == [*reached, reached[-1]]
    assert contents(every_url) == before
    assert shape(every_url) == shaped
    for view, lives in (("runs_with_lease", "runs"), ("builds_with_lease", "builds")):
        assert [row["id"] for row in table(every_url, view)] == [row["id"] for row in before[lives]]

    await tell(every_store, "run_new", run_created(), run_started(), line("run_new", "and on"))
    await everything_caught_up(every_store)
    after = contents(every_url)
    assert [row["status"] for row in after["runs"] if row["id"] == "run_new"] == ["running"]
    assert [row["message"] for row in after["run_logs"] if row["run_id"] == "run_new"] == ["and on"]
    assert {name for name in TABLES if after[name] != before[name]} == {"runs", "run_logs"}


@every_projection
async def test_a_damaged_table_is_right_again(store: Store, url: str, projection: Projection) -> None:
    """Rows that somebody deleted, changed or made up by hand."""
    await told(store)
    before = contents(url)
    for name in projection.tables:
        first = before[name][0]
        text = next(column for column, value in first.items() if isinstance(value, str | bool))
        wrong = "NOT " + text if isinstance(first[text], bool) else "'wrong'"
        rows(url, f"DELETE FROM {name} WHERE ctid NOT IN (SELECT min(ctid) FROM {name})")
        rows(url, f"UPDATE {name} SET {text} = {wrong}")
        assert table(url, name) != before[name]
    await rebuild(url, projection)
    assert contents(url) == before


async def test_a_table_that_was_emptied_is_full_again_though_its_checkpoint_is_lost(store: Store, url: str) -> None:
    """A rebuild sets the checkpoint to what it has reached: the next step neither leaves out nor doubles a line."""
    await told(store)
    before = contents(url)
    for statement in ("TRUNCATE run_logs", "UPDATE checkpoints SET id = 3 WHERE projection = 'run_logs'"):
        rows(url, statement)
    await rebuild(url, CAUGHT_UP[0])
    await store.database.row("catch_up", projection="run_logs", most=1000)
    assert contents(url) == before


@every_projection
async def test_what_is_appended_meanwhile_is_there(
    store: Store, url: str, projection: Projection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends go on during all pages and around every swap; none of them is lost, and none of their rows is doubled."""
    monkeypatch.setattr(rebuilding, "PAGE_IDS", 50)
    await told(store)
    heads: set[int] = set()

    async def go_on(copies: Iterable[int]) -> None:
        for copy in copies:
            await tell_golden(store, copy)

    async with anyio.create_task_group() as tasks:
        for writer in range(3):
            tasks.start_soon(go_on, range(2 + writer, 100, 3))
        for left_for_the_swap in (9, 9, 100_000, 100_000):
            monkeypatch.setattr(rebuilding, "CLOSE_IDS", left_for_the_swap)
            await rebuild(url, projection, lambda _, head: heads.add(head))
        tasks.cancel_scope.cancel()
    await tell_golden(store, 100)  # behind what was under way: that may land though nobody waits for it any more
    assert len(heads) > 4
    await everything_caught_up(store)
    after = contents(url)
    created = rows(
        url, "SELECT type, count(*) AS n FROM events WHERE type ~ '^(run|build).created' GROUP BY 1 ORDER BY 1"
    )
    assert [row["n"] for row in created] == [len(after["builds"]), len(after["runs"])]
    await rebuild(url, projection)  # in peace
    assert contents(url) == after


async def test_a_reader_never_sees_a_table_that_is_not_whole(store: Store, url: str) -> None:
    """Not between the pages, and not while the tables are swapped."""
    await told(store)
    before = contents(url)
    seen: list[int] = []

    def look(_done: int, _head: int) -> None:
        assert contents(url) == before

    async def keep_looking() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while True:
                found = await (await connection.execute("SELECT count(*) FROM runs JOIN artifacts ON true")).fetchone()
                assert found is not None
                seen.append(found[0])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_looking)
        for _ in range(5):
            await rebuild(url, RUNS)
        tasks.cancel_scope.cancel()
    assert len(seen) > 10
    assert set(seen) == {len(before["runs"]) * len(before["artifacts"])}
    await rebuild(url, RUNS, look)


async def test_a_reader_of_the_live_table_makes_a_rebuild_wait(store: Store, url: str) -> None:
    """It tries again until the reader is done; between the tries the appends go through."""
    await told(store)
    tries: set[datetime] = set()
    rebuilt = anyio.Event()

    async def go() -> None:
        await rebuild(url, RUNS)
        rebuilt.set()

    async with (
        await psycopg.AsyncConnection.connect(url) as reader,
        anyio.create_task_group() as tasks,
    ):
        await reader.execute("SELECT * FROM runs")
        tasks.start_soon(go)
        with anyio.fail_after(60):
            while len(tries) < 2:
                tries.add((await until_blocked(url, "%rebuild_swap%"))["query_start"])
            await tell(store, "run_new", run_created())
        assert not rebuilt.is_set()
        await reader.commit()
    assert "run_new" in {row["id"] for row in table(url, "runs")}


async def test_a_rebuild_that_died_is_begun_anew(store: Store, url: str) -> None:
    """What it left in the schema `next` is nobody's, and the live tables are as they were."""
    await told(store)
    before, shaped = contents(url), shape(url)

    def die(done: int, _head: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await rebuild(url, RUNS, die)
    assert contents(url) == before
    assert len(rows(url, "SELECT * FROM next.runs")) < len(before["runs"])
    await rebuild(url, next(projection for projection in ALL if projection.name == "builds"))
    assert (contents(url), shape(url)) == (before, shaped)


async def test_one_rebuild_at_a_time(store: Store, url: str) -> None:
    """The second is refused: it would take the tables away from under the first."""
    await told(store)
    before = contents(url)
    async with await connect(url) as first:
        [row] = await call(first, "rebuild_lock")
        assert row["granted"]
        with pytest.raises(RebuildRunning):
            await rebuild(url, RUNS)
    await rebuild(url, RUNS)
    assert contents(url) == before


async def test_a_page_without_its_tables_writes_nothing(store: Store, url: str) -> None:
    """Were the schema `next` taken away, the same functions would write to the live tables."""
    await told(store)
    before = contents(url)
    async with await connect(url) as connection:
        await call(connection, "rebuild_begin", tables=["builds"])
        with pytest.raises(psycopg.errors.RaiseException, match="lost its tables"):
            await call(connection, "rebuild_page", projection="runs", after=0, upto=20)
    assert contents(url) == before


async def test_a_view_that_somebody_made_is_not_lost(store: Store, url: str) -> None:
    """It stands on the live table, so the rebuild is refused, and all stays as it was."""
    await told(store)
    rows(url, "CREATE VIEW failures AS SELECT id, error_message FROM runs WHERE status = 'failed'")
    before = contents(url)
    with pytest.raises(DependedOn):
        await rebuild(url, RUNS)
    assert contents(url) == before
    assert table(url, "failures")
    rows(url, "DROP VIEW failures")
    await rebuild(url, RUNS)


@pytest.fixture
def analyst(url: str) -> Iterator[str]:
    """An account that may read."""
    name = f"analyst_{secrets.token_hex(4)}"
    rows(url, f"CREATE ROLE {name}")
    yield name
    rows(url, f"DROP OWNED BY {name}")
    rows(url, f"DROP ROLE {name}")


async def test_who_may_read_a_table_may_read_it_afterwards(store: Store, url: str, analyst: str) -> None:
    """Privileges stay what they were, on every table and view of a projection."""
    await told(store)
    rows(url, f"GRANT SELECT ON runs, artifacts, runs_with_lease TO {analyst}")
    shaped = shape(url)
    await rebuild(url, RUNS)
    assert shape(url) == shaped
