"""Tables against the log: whatever is done to a row is found and named, and what goes on meanwhile is not."""

import json
import subprocess
import sys
from typing import Any

import anyio
import pytest

from eventstore.database import call, connect
from eventstore.errors import RebuildRunning
from eventstore.statements import statements
from projections import comparison, redaction
from projections.comparison import MOST_DIFFERENCES, Compared, Difference, compare
from projections.events import EventRedacted
from projections.rebuild import rebuild
from projections.redaction import redact
from projections.tables import ALL, CAUGHT_UP, Projection
from tests.conftest import ROOT, Store
from tests.histories import line, rows, run_created, run_started, table, tell, tell_golden

pytestmark = pytest.mark.anyio

OF_TABLE = {name: projection for projection in ALL for name in projection.tables}
RUNS, RUN_LOGS = OF_TABLE["runs"], OF_TABLE["run_logs"]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log takes many pages; and there is no projector to wait for."""
    monkeypatch.setattr(comparison, "PAGE_IDS", 10)
    monkeypatch.setattr(redaction, "PAGE_S", 0)


async def told(store: Store) -> None:
    """Two golden logs, with everything caught up."""
    await tell_golden(store)
    await tell_golden(store, 2)
    await tell(store, "run_1", run_created(), run_started(), *[line("run_1", f"line {n}") for n in range(30)])
    await catch_up(store)


async def catch_up(store: Store) -> None:
    for projection in CAUGHT_UP:
        await store.database.row("catch_up", projection=projection.name, most=100_000)


def nothing_is_left(url: str) -> bool:
    return rows(url, "SELECT 1 FROM pg_namespace WHERE nspname IN ('next', 'past')") == []


@pytest.mark.parametrize("projection", ALL, ids=lambda one: one.name)
async def test_what_nobody_touched_is_sound(every_store: Store, every_url: str, projection: Projection) -> None:
    """Up to the last event, on every PostgreSQL; nothing is changed and nothing is left behind."""
    await told(every_store)
    before = {name: table(every_url, name) for name in projection.tables}
    seen: list[tuple[int, int]] = []
    found = await compare(every_url, projection, lambda done, of: seen.append((done, of)))
    head = await every_store.log.head()
    assert found == Compared(projection.name, head)
    assert len(seen) > 10
    assert seen[-1] == (head, head)
    assert {name: table(every_url, name) for name in projection.tables} == before
    assert nothing_is_left(every_url)


def primary_key(url: str, name: str) -> list[str]:
    query = """SELECT a.attname FROM pg_index i
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
               WHERE i.indrelid = %s::regclass AND i.indisprimary ORDER BY a.attnum"""
    return [row["attname"] for row in rows(url, query, name)]


def key_of(row: dict[str, Any], keys: list[str]) -> str:
    return " ".join(str(row[name]) for name in keys)


@pytest.mark.parametrize("name", OF_TABLE)
async def test_every_change_of_every_table_is_named(store: Store, url: str, name: str) -> None:
    """Each column of a row changed, by itself; a row deleted; a row made up, before and after all others: that row is
    named with these columns, and no other one. A rebuild makes it right."""
    await told(store)
    keys, before = primary_key(url, name), table(url, name)
    row = before[len(before) // 2]
    key = key_of(row, keys)
    at = " AND ".join(f"{column} = '{row[column]}'" for column in keys)
    for column in row.keys() - set(keys):
        rows(url, f"UPDATE {name} SET {column} = {other(url, name, column)} WHERE {at}")
        found = await compare(url, OF_TABLE[name])
        assert found.count == 1, column
        [difference] = found.differences
        assert (difference.table, difference.key) == (name, key)
        assert difference.live is not None
        assert difference.folded is not None
        assert difference.live.keys() == difference.folded.keys() == {column}
        assert difference.live[column] != difference.folded[column]
        await rebuild(url, OF_TABLE[name])
        assert table(url, name) == before

    rows(url, f"DELETE FROM {name} WHERE {at}")
    [difference] = (await compare(url, OF_TABLE[name])).differences
    assert (difference.table, difference.key, difference.live) == (name, key, None)
    assert difference.folded is not None
    assert difference.folded.keys() == row.keys()
    await rebuild(url, OF_TABLE[name])

    for made_up in ("-7", "1000000"):
        columns = ", ".join(made_up if column == keys[0] else unique(url, name, column) for column in row)
        rows(url, f"INSERT INTO {name} SELECT {columns} FROM {name} WHERE {at}")
        [difference] = (await compare(url, OF_TABLE[name])).differences
        assert (difference.table, difference.key.split()[0], difference.folded) == (name, made_up, None)
        await rebuild(url, OF_TABLE[name])
    assert table(url, name) == before
    assert nothing_is_left(url)


def type_of(url: str, name: str, column: str) -> str:
    query = """SELECT data_type FROM information_schema.columns
               WHERE table_schema = 'public' AND table_name = %s AND column_name = %s"""
    return str(rows(url, query, name, column)[0]["data_type"])


def other(url: str, name: str, column: str) -> str:
    """An expression of another value than a column has, NULL too."""
    match type_of(url, name, column):
        case "text":
            return f"coalesce({column}, '') || '!'"
        case "json":
            return f"""('{{"was": ' || coalesce({column}::text, 'null') || '}}')::json"""
        case "boolean":
            return f"NOT {column}"
        case "timestamp with time zone":
            return f"coalesce({column}, now()) + interval '1 microsecond'"
        case _:
            return f"coalesce({column}, 0) + 1"


def unique(url: str, name: str, column: str) -> str:
    """The column, or what stands in no other row where none may be the same."""
    return "name || '!'" if (name, column) == ("configs", "name") else column


async def test_the_text_of_json_counts(store: Store, url: str) -> None:
    """A blank more is another text than the log's."""
    await told(store)
    rows(url, "UPDATE runs SET options = (options::text || ' ')::json WHERE id = 'run_1'")
    found = await compare(url, RUNS)
    assert found.differences == [Difference("runs", "run_1", {"options": "{} "}, {"options": "{}"})]


async def test_of_many_differences_the_first_are_told_and_all_are_counted(store: Store, url: str) -> None:
    await told(store)
    rows(url, "UPDATE run_logs SET message = 'x'")
    rows(url, "DELETE FROM runs")
    rows(url, "DELETE FROM artifacts")
    lines, runs = await compare(url, RUN_LOGS), await compare(url, RUNS)
    assert (lines.count, len(lines.differences)) == (len(table(url, "run_logs")), MOST_DIFFERENCES)
    assert [int(difference.key) for difference in lines.differences] == sorted(
        row["id"] for row in table(url, "run_logs")
    )[:MOST_DIFFERENCES]
    assert {difference.table for difference in runs.differences} == {"runs", "artifacts"}
    assert runs.count == len(runs.differences) > 5


async def test_lines_are_compared_up_to_their_checkpoint(store: Store, url: str) -> None:
    """What is not caught up yet is not missing; what stands beyond the checkpoint was not written by a projection."""
    await told(store)
    reached = await store.log.head()
    await tell(store, "run_1", line("run_1", "not yet"))
    assert await compare(url, RUN_LOGS) == Compared("run_logs", reached)
    rows(url, "UPDATE checkpoints SET id = 55 WHERE projection = 'run_logs'")
    beyond = [row["id"] for row in table(url, "run_logs") if row["id"] > 55]
    found = await compare(url, RUN_LOGS)
    assert (found.last_id, found.count) == (55, len(beyond))
    assert [difference.key for difference in found.differences] == [str(one) for one in beyond[:MOST_DIFFERENCES]]


async def test_what_was_redacted_is_no_difference(store: Store, url: str) -> None:
    await told(store)
    [row] = [row for row in table(url, "run_logs") if row["message"] == "line 7"]
    asked = EventRedacted(stream="run_1", event_ids=[row["id"]], requested_by="test", reason="test")
    await redact(store.database, lambda _workspace, stream: ROOT / "nowhere" / stream, asked)
    await catch_up(store)
    for projection in ALL:
        assert (await compare(url, projection)).count == 0


@pytest.mark.parametrize("guarded", [True, False], ids=["", "naive"])
@pytest.mark.parametrize("projection", [RUNS, RUN_LOGS], ids=lambda one: one.name)
async def test_what_happens_between_the_fold_and_the_look_is_not_seen(
    store: Store, url: str, projection: Projection, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append, and what is caught up of it, at the worst moment. Without a snapshot it would look like a change."""
    await told(store)
    look = comparison._compare
    if not guarded:
        monkeypatch.setitem(
            statements(),
            "one_moment",
            statements()["read_committed"].replace("SET SESSION CHARACTERISTICS AS TRANSACTION", "SET TRANSACTION"),
        )

    async def late(*arguments: Any) -> None:
        await tell(store, "run_1", line("run_1", "late"), run_started(2))
        await catch_up(store)
        await look(*arguments)

    monkeypatch.setattr(comparison, "_compare", late)
    found = await compare(url, projection)
    assert bool(found.count) == (not guarded)


async def test_it_goes_on_beside_appends_and_those_who_catch_up(store: Store, url: str) -> None:
    """Sound at every moment, and the log grows meanwhile."""
    await told(store)
    reached: list[int] = []

    async def go_on() -> None:
        for copy in range(3, 100):
            await tell_golden(store, copy)

    async def follow() -> None:
        while True:
            await catch_up(store)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        tasks.start_soon(follow)
        for _ in range(2):
            for projection in ALL:
                found = await compare(url, projection)
                assert found.differences == []
                reached.append(found.last_id)
        tasks.cancel_scope.cancel()
    assert reached[-1] > reached[0]


async def test_it_waits_for_no_rebuild_and_cleans_up_after_itself(store: Store, url: str) -> None:
    """Beside a rebuild, which needs the same schema, it is refused; one that is broken off leaves nothing."""
    await told(store)

    def broken_off(done: int, _of: int) -> None:
        if done > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await compare(url, RUNS, broken_off)
    assert nothing_is_left(url)
    async with await connect(url) as other:
        await call(other, "rebuild_lock")  # as a rebuild does
        with pytest.raises(RebuildRunning):
            await compare(url, RUNS)
    await rebuild(url, RUNS)


def verify_tables(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "log", "verify", "--tables", *options]
    return subprocess.run(
        command, env={"ADE_DATABASE_URL": url}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


async def test_the_command(store: Store, url: str) -> None:
    """Exit code 0 and a line for each projection; 1 and what differs; 2 with what does not belong to it."""
    await told(store)
    done = await anyio.to_thread.run_sync(verify_tables, url)
    assert (done.returncode, done.stdout.count("✓")) == (0, len(ALL)), done.stderr
    rows(url, "UPDATE runs SET status = E'succeeded\\x1b[2J', exit_code = 0 WHERE id = 'run_1'")
    rows(url, "DELETE FROM artifacts")
    done = await anyio.to_thread.run_sync(verify_tables, url)
    assert done.returncode == 1
    said = r"✗ runs run_1: status is 'succeeded\\x1b[2J', the log says 'running'; exit_code is '0', the log says NULL"
    assert said in done.stdout
    assert done.stdout.count(": the row is missing") == 2
    done = await anyio.to_thread.run_sync(verify_tables, url, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["sound"]) == (1, False)
    assert [one["count"] for one in found["projections"]] == [0, 0, 3, 0, 0]
    assert {
        "table": "runs",
        "key": "run_1",
        "live": {"status": "succeeded\x1b[2J", "exit_code": "0"},
        "folded": {"status": "running", "exit_code": None},
    } in found["projections"][2]["differences"]
    assert (await anyio.to_thread.run_sync(verify_tables, url, "--from", "5")).returncode == 2
