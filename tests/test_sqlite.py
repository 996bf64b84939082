"""The log in an SQLite file: the same tables with the same rows, and the questions that people ask by hand."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from eventstore import NewEvent
from eventstore.statements import statements
from projections import sqlite_file
from projections.sqlite_file import write_sqlite
from projections.whole_file import FileIsThere, NotWritable
from tests.conftest import ROOT, Store, open_store
from tests.histories import line, rows, run_created, run_started, table, tell, tell_golden

pytestmark = pytest.mark.anyio

TABLES = ("events", "runs", "run_logs", "builds", "build_logs")

BY_HAND = (
    "SELECT id, status, exit_code, started_at, finished_at FROM runs WHERE config_id = '…' ORDER BY created_at DESC LIMIT 20;",  # noqa: E501
    "SELECT id, created_at, stream, message FROM run_logs WHERE run_id = '…' ORDER BY id ASC;",
    "SELECT id, type, recorded_at, data FROM events WHERE stream = 'run_…' ORDER BY id;",
)
"""As operators write them."""


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log takes many pages."""
    monkeypatch.setattr(sqlite_file, "PAGE_ROWS", 7)
    monkeypatch.setattr(sqlite_file, "CATCH_UP_IDS", 11)


async def told(store: Store) -> None:
    """Two golden logs, and JSON that no encoder would write so."""
    await tell_golden(store)
    await tell_golden(store, 2)
    await tell(store, "run_1", run_created(), run_started(), line("run_1", "pingüino 🐧"))
    odd = b'{"status":"succeeded","exit_code":0,"result":{ "n":1e20, "u":"\\u00fc" },"lines":1,"bytes":2}'
    await tell(store, "run_1", NewEvent("run.completed", odd, ends=True))


async def write(url: str, path: Path, **options: Any) -> int:
    return await anyio.to_thread.run_sync(lambda: write_sqlite(url, path, **{"replace": False} | options))


def asked(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as file:
        file.row_factory = sqlite3.Row
        return file.execute(query).fetchall()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def columns(url: str, name: str) -> list[str]:
    query = """SELECT column_name FROM information_schema.columns
               WHERE table_schema = 'public' AND table_name = %s ORDER BY ordinal_position"""
    return [row["column_name"] for row in rows(url, query, name)]


def stored(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return int(value) if isinstance(value, bool) else value


async def test_the_tables_are_the_same(every_store: Store, every_url: str, tmp_path: Path) -> None:
    """Names, columns, their order, and every value: JSON as its text, times as the text of `created_at`; lines too that
    no projector had caught up."""
    await told(every_store)
    path = tmp_path / "log.sqlite"
    head = await write(every_url, path)
    assert head == await every_store.log.head()
    found = asked(path, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1")
    assert [row[0] for row in found] == sorted(TABLES)
    for name in TABLES:
        kept = columns(every_url, name)
        json_ = {"runs": ("options", "inputs", "result"), "builds": ("packages",)}.get(name, ())
        select = ", ".join(f"{column}::text" if column in json_ else column for column in kept)
        live = [tuple(map(stored, row.values())) for row in rows(every_url, f"SELECT {select} FROM {name} ORDER BY 1")]
        copied = asked(path, f"SELECT * FROM {name} ORDER BY 1")
        assert len(copied) > 2
        assert copied[0].keys() == kept
        assert [tuple(row) for row in copied] == live
    assert asked(path, "SELECT result FROM runs WHERE id = 'run_1'")[0][0] == '{ "n":1e20, "u":"\\u00fc" }'
    assert asked(path, "PRAGMA integrity_check")[0][0] == "ok"


async def test_what_is_asked_by_hand_is_asked_here_too(store: Store, url: str, tmp_path: Path) -> None:
    """The three questions of the manual as they stand, with the same answers, led by an index each."""
    await told(store)
    path = tmp_path / "log.sqlite"
    await write(url, path)
    run = rows(url, "SELECT id, config_id FROM runs WHERE id IN (SELECT run_id FROM run_logs) LIMIT 1")[0]
    for query in BY_HAND:
        mine = query.replace("'run_…'", f"'{run['id']}'").replace(
            "'…'", f"'{run['config_id'] if 'FROM runs' in query else run['id']}'"
        )
        live = [tuple(map(stored, row.values())) for row in rows(url, mine)]
        assert live
        assert [tuple(row) for row in asked(path, mine)] == live
        plan = " ".join(row["detail"] for row in asked(path, f"EXPLAIN QUERY PLAN {mine}"))
        assert "USING INDEX" in plan
        assert "SCAN" not in plan
        assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("guarded", [True, False], ids=["", "naive"])
async def test_the_file_is_of_one_moment(
    store: Store, url: str, tmp_path: Path, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends between two pages is not seen to end: no run tells of an event that the file does not have."""
    await told(store)
    for number in range(20):
        await tell(store, f"run_x{number:02}", run_created())
    if not guarded:
        in_any = statements()["read_committed"].replace("SESSION CHARACTERISTICS AS ", "")
        monkeypatch.setitem(statements(), "one_moment", in_any)
    pages, calls = sqlite_file._pages, 0

    async def slow(*arguments: Any) -> Any:
        nonlocal calls
        async for page in pages(*arguments):
            yield page
            calls += 1
            if calls == 1:
                async for other in open_store(url):  # of the event loop that writes the file
                    await tell(other, "run_x19", run_started())

    monkeypatch.setattr(sqlite_file, "_pages", slow)
    path = tmp_path / "log.sqlite"
    head = await anyio.to_thread.run_sync(lambda: write_sqlite(url, path, replace=False))
    [run] = asked(path, "SELECT status FROM runs WHERE id = 'run_x19'")
    started = asked(path, "SELECT 1 FROM events WHERE stream = 'run_x19' AND type = 'run.started'")
    assert asked(path, "SELECT max(id) FROM events")[0][0] == head
    assert (run["status"] == "running", bool(started)) == (not guarded, False)


async def test_it_is_whole_or_absent(store: Store, url: str, tmp_path: Path) -> None:
    """One that is there is replaced on request only, and not by one that was broken off; nothing else is left."""
    await told(store)
    path = tmp_path / "log.sqlite"

    def broken_off(done: int, _of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await write(url, path, progress=broken_off)
    assert names(tmp_path) == []
    await write(url, path)
    before = await anyio.Path(path).read_bytes()
    with pytest.raises(FileIsThere):
        await write(url, path)
    with pytest.raises(KeyboardInterrupt):
        await write(url, path, replace=True, progress=broken_off)
    assert await anyio.Path(path).read_bytes() == before
    await tell(store, "run_2", run_created())
    await write(url, path, replace=True)
    assert len(asked(path, "SELECT 1 FROM runs WHERE id = 'run_2'")) == 1
    assert names(tmp_path) == ["log.sqlite"]
    with pytest.raises(NotWritable):
        await write(url, tmp_path / "no" / "folder")


async def test_the_command(store: Store, url: str, tmp_path: Path) -> None:
    """Exit code 0 and the file; 2 where it is there, and with what does not belong to it."""
    await told(store)
    path = tmp_path / "log.sqlite"

    def export(*options: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "service.cli", "log", "export", "--sqlite", str(path), *options]
        env = {"ADE_DATABASE_URL": url}
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=60, check=False)

    done = [await anyio.to_thread.run_sync(export, *options) for options in ((), (), ("--force",), ("--from", "2"))]
    assert [answer.returncode for answer in done] == [0, 2, 0, 2]
    assert b"--force" in done[1].stderr
    assert done[0].stdout == b""
    assert len(asked(path, "SELECT 1 FROM events")) == len(table(url, "events"))
