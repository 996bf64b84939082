"""The database as one file and back: the same log under another name, and nothing where it cannot be."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import psycopg
import pytest

from eventstore.database import call, connect, script, transaction
from eventstore.errors import CallerMistake, DependedOn
from eventstore.migrations import migrate, status
from eventstore.seals import Sealer
from eventstore.statements import texts
from eventstore.verification import verify
from projections.comparison import compare
from projections.tables import ALL, CAUGHT_UP
from projections.whole_file import FileIsThere, NotWritable
from service.cli import backup as backing
from service.cli.backup import InUse, LogNotEmpty, NotABackup, ProgramFailed
from service.settings import Settings
from tests.conftest import ROOT, Server, Store, open_store, reachable_folder, running_service
from tests.histories import golden, line, rows, run_created, run_started, table, tell
from tests.test_migrations import catalogue

pytestmark = pytest.mark.anyio

TABLES = [name for projection in ALL for name in projection.tables]
KEPT = ("events", "streams", "segments", "seals", "leases", "checkpoints", "append_keys", "schema_migrations")


async def back_up(url: str, file: Path) -> Path:
    await anyio.Path(file).touch()
    await backing._backup(url, file, Settings())
    return file


async def restore(url: str, file: Path) -> tuple[str, str]:
    return await backing._restore(url, file, Settings())


@pytest.fixture
def bare(server: Server) -> Iterator[str]:
    """A database without anything in it."""
    url = server.create()
    yield url
    server.drop(url)


async def told(url: str) -> None:
    """A log with everything that follows from it."""
    async for store in open_store(url):
        await tell_golden(store)
        await tell(store, "run_1", run_created(), run_started(), line("run_1", "pingüino 🐧"))
        for projection in CAUGHT_UP:
            await store.database.row("catch_up", projection=projection.name, most=100_000)
        await Sealer(store.database).catch_up()


async def tell_golden(store: Store, copy: int = 1) -> None:
    """The golden log, but for the redaction that it makes up."""
    for example in golden():
        if example.type != "event.redacted":
            data = example.event.data.replace(b"_01K", b"_%02dK" % copy).replace(b'"penguins"', b'"penguins%d"' % copy)
            await tell(store, example.stream.replace("_01K", f"_{copy:02}K"), replace(example.event, data=data))


def shape(url: str) -> dict[str, str]:
    """The whole schema; PostgreSQL itself sets the brackets of a condition otherwise when it reads it a second time."""
    return {name: re.sub("[()]", "", how) for name, how in catalogue(url, functions=True).items()}


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def contents(url: str) -> dict[str, object]:
    return {name: table(url, name) for name in (*KEPT, *TABLES)}


def log_id(url: str) -> str:
    return str(rows(url, "SELECT log_id FROM log")[0]["log_id"])


@pytest.mark.parametrize("migrated", [False, True], ids=["bare", "migrated"])
async def test_a_restored_log_is_the_log_under_another_name(
    every_server: Server, tmp_path: Path, migrated: bool
) -> None:
    """Every table, trigger, grant and function, on every PostgreSQL; it is sound, and it goes on."""
    source, target = every_server.copy(), every_server.copy() if migrated else every_server.create()
    await told(source)
    file = await back_up(source, tmp_path / "log.backup")
    origin, unused = log_id(source), log_id(target) if migrated else ""
    named = await restore(target, file)
    assert named == (log_id(target), origin)
    assert named[0] not in {origin, unused}
    assert contents(target) == contents(source)
    assert shape(target) == shape(source)
    async for store in open_store(target):
        assert (await verify(store.database)).findings == []
        head = await store.log.head()
        assert (await tell(store, "run_1", line("run_1", "and on"))).first_id == head + 1
    for projection in ALL:
        assert (await compare(target, projection)).count == 0
    with psycopg.connect(target) as connection, pytest.raises(psycopg.errors.IntegrityConstraintViolation):
        connection.execute("DELETE FROM events")
    every_server.drop(source)
    every_server.drop(target)


async def test_a_backup_is_of_one_moment(url: str, bare: str, tmp_path: Path) -> None:
    """While events are appended, sealed and caught up: what comes back is dense, sound, and a prefix of the log."""
    await told(url)
    done = anyio.Event()
    async for store in open_store(url):

        async def go_on() -> None:
            copy = 2
            while not done.is_set():
                await tell_golden(store, copy)  # noqa: B023 - there is one
                copy += 1

        async def follow() -> None:
            while not done.is_set():
                await Sealer(store.database).catch_up()  # noqa: B023 - there is one
                for projection in CAUGHT_UP:
                    await store.database.row("catch_up", projection=projection.name, most=50)  # noqa: B023

        before = await store.log.head()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            tasks.start_soon(follow)
            file = await back_up(url, tmp_path / "log.backup")
            done.set()
        after = await store.log.head()
    await restore(bare, file)
    whole = table(url, "events")
    copied = table(bare, "events")
    assert before < len(copied) < after
    assert copied == whole[: len(copied)]
    async for copy in open_store(bare):
        report = await verify(copy.database)
        assert (report.findings, report.last_id) == ([], len(copied))
    for projection in ALL:
        assert (await compare(bare, projection)).count == 0


async def test_a_log_that_is_not_empty_stays_as_it_is(url: str, fresh_url: str, tmp_path: Path) -> None:
    """One event is enough; so is a log that was restored a moment ago."""
    await told(url)
    file = await back_up(url, tmp_path / "log.backup")
    async for store in open_store(fresh_url):
        await tell(store, "run_1", run_created())
    before = contents(fresh_url), log_id(fresh_url)
    with pytest.raises(LogNotEmpty, match="head=1"):
        await restore(fresh_url, file)
    assert (contents(fresh_url), log_id(fresh_url)) == before
    with pytest.raises(LogNotEmpty):
        await restore(url, file)


async def test_a_service_that_runs_is_in_the_way(url: str, fresh_url: str, tmp_path: Path) -> None:
    """Whoever is connected knows the log by its old name."""
    await told(url)
    file = await back_up(url, tmp_path / "log.backup")
    with psycopg.connect(fresh_url), pytest.raises(InUse, match="connections=1"):
        await restore(fresh_url, file)


async def test_what_is_no_backup_is_refused(url: str, fresh_url: str, bare: str, tmp_path: Path) -> None:
    """A text, a file that is not there, a backup of something else, and half of a right one: the log stays empty, and
    takes the right one afterwards."""
    await told(url)
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("hello")
    rows(bare, "CREATE TABLE log (name text)")
    await back_up_anything(bare, other)
    cut = await back_up(url, tmp_path / "cut")
    right = Path(shutil.copy(cut, tmp_path / "right"))
    os.truncate(cut, cut.stat().st_size - 200)
    before = log_id(fresh_url)
    for file, error in ((text, ProgramFailed), (tmp_path / "nowhere", ProgramFailed), (other, NotABackup)):
        with pytest.raises(error):
            await restore(fresh_url, file)
        assert log_id(fresh_url) == before
    with pytest.raises(ProgramFailed):
        await restore(fresh_url, cut)
    assert rows(fresh_url, "SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
    await restore(fresh_url, right)
    assert contents(fresh_url) == contents(url)


async def back_up_anything(url: str, file: Path) -> None:
    program = backing._program("pg_dump", 18)
    await backing._run(
        "backup", [program, "--format=custom", f"--file={file}", f"--dbname={url}"], Settings().child_env
    )


async def test_a_restore_that_is_killed_is_finished_by_the_next(
    url: str, fresh_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the events and the name: until then the log has none, so that nobody takes it for the old one."""
    await told(url)
    file = await back_up(url, tmp_path / "log.backup")

    async def killed(_url: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(backing, "migrate", killed)
        with pytest.raises(KeyboardInterrupt):
            await restore(fresh_url, file)
    assert table(fresh_url, "log") == []
    assert table(fresh_url, "events") == table(url, "events")
    named = await restore(fresh_url, file)
    assert named == (log_id(fresh_url), log_id(url))
    with pytest.raises(LogNotEmpty):
        await restore(fresh_url, file)


async def test_an_older_backup_is_brought_forward(server: Server, bare: str, fresh_url: str, tmp_path: Path) -> None:
    """Of a release with fewer migrations, into a database that had them all."""
    async with await connect(bare) as connection, transaction(connection):
        await call(connection, "migrations_table")
        for name, text in texts("migrations")[:3]:
            await script(connection, text)
            await call(connection, "migration_applied", name=name, digest="d")
    data = '{"stream":"stdout","message":"old"}'
    rows(bare, "INSERT INTO events VALUES (1, 'run_1', 1, 'ws', 'run.log', true, now(), %s)", data)
    rows(bare, "INSERT INTO streams VALUES ('run_1', 'ws', 1, 1, 1, 0, NULL, 34, 0)")
    await restore(fresh_url, await back_up(bare, tmp_path / "log.backup"))
    found = await status(fresh_url)
    assert (found.pending, found.ahead) == ((), ())
    async for store in open_store(fresh_url):
        [old] = await store.log.read(0)
        assert b'"message":"old"' in old.line
        assert (await tell(store, "run_1", line("run_1", "new"))).first_id == 2


async def test_room_is_made_of_all_that_is_ours_and_nothing_else(fresh_url: str) -> None:
    """No table, view or function of ours is left to be in the way; those of others are."""
    rows(fresh_url, "CREATE TABLE notes (note text)")
    rows(fresh_url, "CREATE FUNCTION note() RETURNS text LANGUAGE sql RETURN 'a note'")
    async with await connect(fresh_url) as connection:
        await backing._make_room(connection)
    assert {name for name in catalogue(fresh_url, functions=True) if name.startswith(("relation", "function"))} == {
        "relation notes",
        "function note()",
    }
    await migrate(fresh_url)
    rows(fresh_url, "CREATE VIEW failures AS SELECT id FROM runs WHERE status = 'failed'")
    before = catalogue(fresh_url, functions=True)
    async with await connect(fresh_url) as connection:
        with pytest.raises(DependedOn):
            await backing._make_room(connection)
    assert catalogue(fresh_url, functions=True) == before


def ade(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "db", *map(str, arguments)]
    env = {"ADE_DATABASE_URL": url, "PATH": os.environ["PATH"]}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


async def test_the_commands(server: Server, url: str, tmp_path: Path) -> None:
    """What they say, their exit codes, and the file: private, whole or absent, never replaced by accident. A client
    with a cursor of the old log is told."""
    await told(url)
    file, target = tmp_path / "log.backup", server.copy()
    done = await anyio.to_thread.run_sync(ade, url, "backup", file)
    assert done.returncode == 0, done.stderr
    assert "log files" in done.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["log.backup"]
    done = await anyio.to_thread.run_sync(ade, url, "backup", file)
    assert (done.returncode, "--force" in done.stderr) == (2, True)
    done = await anyio.to_thread.run_sync(ade, url, "backup", file, "--force")
    assert done.returncode == 0, done.stderr
    done = await anyio.to_thread.run_sync(ade, url, "restore", file)
    assert (done.returncode, "events in this database already" in done.stderr) == (2, True)
    done = await anyio.to_thread.run_sync(ade, target, "restore", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{log_id(target)}, a copy of {log_id(url)}.")
    with reachable_folder() as data, running_service(target, data) as service, service.http as http:
        old = http.get("/runs/run_1/events", params={"after_id": 1, "log_id": log_id(url)})
        assert (old.status_code, json.loads(old.content)["log_id"]) == (409, log_id(target))
        assert http.get("/runs/run_1/events", params={"log_id": log_id(target)}).status_code == 200
    server.drop(target)


async def test_a_backup_that_fails_leaves_the_old_file(url: str, tmp_path: Path) -> None:
    """Where the database is not there, or the folder."""
    file = tmp_path / "log.backup"
    file.write_text("the old one")
    nowhere = url.replace("/test_", "/nowhere_")
    done = await anyio.to_thread.run_sync(ade, nowhere, "backup", file, "--force")
    assert (done.returncode, "nowhere_" in done.stderr) == (3, True)
    assert file.read_text() == "the old one"
    assert names(tmp_path) == ["log.backup"]
    done = await anyio.to_thread.run_sync(ade, url, "backup", tmp_path / "no" / "folder")
    assert (done.returncode, "cannot be written" in done.stderr) == (2, True)
    assert issubclass(NotWritable, CallerMistake)
    assert issubclass(FileIsThere, CallerMistake)
