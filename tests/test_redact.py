"""Erasing text: it is gone everywhere, an event says so, the chain still verifies; and nothing else can be changed."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from eventstore import Append, Database, Log, NewEvent, Page, Part, encode
from eventstore.database import call, connect, transaction
from eventstore.errors import RebuildRunning
from eventstore.log import FOREVER, PAGE
from eventstore.migrations import migrate
from eventstore.seals import Sealer
from eventstore.statements import texts
from eventstore.verification import verify
from projections import events, redaction
from projections.log_files import LogFiles
from projections.rebuild import rebuild
from projections.redaction import NotInStream, NotRedactable, Redacted, TooManyEvents
from projections.tables import ALL, CAUGHT_UP
from service import commands
from tests.conftest import Server, Service, Store, open_store
from tests.histories import (
    WORKSPACE,
    build_created,
    build_started,
    feed_bytes,
    line,
    rows,
    run_created,
    run_started,
    table,
    tell,
    until_blocked,
)

pytestmark = pytest.mark.anyio

SECRET = "correct horse battery staple"
RUN, BUILD = "run_1", "build_1"
TELEMETRY = NewEvent(
    "engine.run.started", encode({"message": "hello", "data": {"key": SECRET}, "stream": "stderr"}), bulk=True
)
BUILD_LINE, RUN_LINE, RUN_TELEMETRY = 4, 8, 9
"""Where the secret is."""


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no projector to wait for, but where a test has one."""
    monkeypatch.setattr(redaction, "PAGE_S", 0)


async def tell_secret(store: Store) -> None:
    """A build and its run, with a secret in the output of both."""
    created = Part(RUN, [run_created(BUILD)], WORKSPACE), Part(BUILD, [build_created()], WORKSPACE)
    await store.appender.append(Append(created))
    await tell(store, BUILD, build_started(), line(BUILD, SECRET), line(BUILD, "built"))
    await tell(store, BUILD, commands.build_completed("active", "completed").event())
    await tell(store, RUN, run_started(), line(RUN, f"the key is {SECRET}"), TELEMETRY, line(RUN, "done"))


def asked(stream: str, *ids: int) -> events.EventRedacted:
    return events.EventRedacted(stream=stream, event_ids=list(ids), requested_by="test", reason="a password leaked")


async def catch_up(database: Database) -> None:
    for projection in CAUGHT_UP:
        await database.row("catch_up", projection=projection.name, most=1000)


class Desk:
    """The log files of a deployment, and who writes them."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.files = self.writer(store.log)

    def writer(self, log: Log) -> LogFiles:
        return LogFiles(self.store.database, log, self.path)

    def path(self, _workspace: str, stream: str) -> Path:
        return self.folder / stream / "events.ndjson"

    async def write(self) -> None:
        while await self.files.step():
            pass

    async def redact(self, stream: str, *ids: int) -> Redacted:
        return await redaction.redact(self.store.database, self.path, asked(stream, *ids))

    async def is_whole(self) -> bool:
        """Whether the files are the bytes of their feeds, and nothing lies beside them."""
        wanted = {self.path("", stream): await feed_bytes(self.store, stream) for stream in (RUN, BUILD)}
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()} == wanted


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(store, tmp_path)
    yield made
    made.files.close()


def everything(url: str) -> str:
    """All that is in any table."""
    tables = "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    return "\n".join(str(table(url, row["name"])) for row in rows(url, tables))


@pytest.mark.parametrize("sealed_before", [True, False], ids=["sealed", "not sealed yet"])
async def test_the_text_is_gone_everywhere_and_the_chain_verifies(desk: Desk, url: str, sealed_before: bool) -> None:
    """Log, tables and files; an event says which, by whom and why; and a rebuild changes nothing."""
    store = desk.store
    await tell_secret(store)
    await catch_up(store.database)
    await desk.write()
    if sealed_before:
        await Sealer(store.database).catch_up()
    assert SECRET in everything(url)

    done = await desk.redact(RUN, RUN_LINE, RUN_TELEMETRY)
    assert done == Redacted(11, (desk.path("", RUN),))
    done = await desk.redact(BUILD, BUILD_LINE)
    assert done == Redacted(12, (desk.path("", BUILD), desk.path("", RUN)))

    assert SECRET not in everything(url)
    assert await desk.is_whole()
    assert SECRET.encode() not in b"".join(desk.path("", stream).read_bytes() for stream in (RUN, BUILD))
    told = json.loads((await store.log.read(10))[0].line)
    assert told["type"] == "event.redacted"
    assert {name: told[name] for name in ("stream", "event_ids", "requested_by", "reason")} == asked(
        RUN, RUN_LINE, RUN_TELEMETRY
    ).model_dump()
    served = json.loads((await store.log.read(RUN_LINE - 1))[0].line)
    assert (served["type"], len(served["redacted"])) == ("run.log", 64)
    assert [row["message"] for row in table(url, "run_logs")] == ["done"]
    assert [row["message"] for row in table(url, "build_logs")] == ["built"]

    await Sealer(store.database).catch_up()
    report = await verify(store.database)
    assert (report.findings, report.sealed.id) == ([], 12)
    await catch_up(store.database)
    before = everything(url)
    for projection in ALL:
        await rebuild(url, projection)
    assert everything(url) == before
    await tell(store, RUN, line(RUN, "and on"))
    await desk.write()
    assert await desk.is_whole()


async def test_what_cannot_be_erased_is_refused(desk: Desk, url: str) -> None:
    """Control events, events of another stream, events that are not there, too many; nothing of the rest is done."""
    await tell_secret(desk.store)
    before = everything(url)
    for stream, ids, refusal in (
        (RUN, [RUN_LINE, 7], NotRedactable),
        (RUN, [1], NotRedactable),
        (RUN, [RUN_LINE, BUILD_LINE], NotInStream),
        (RUN, [RUN_LINE, 99], NotInStream),
        ("run_2", [RUN_LINE], NotInStream),
        (RUN, list(range(redaction.MOST_EVENTS + 1)), TooManyEvents),
    ):
        with pytest.raises(refusal):
            await desk.redact(stream, *ids)
    assert everything(url) == before


async def test_an_end_that_repeats_the_text_is_named(desk: Desk) -> None:
    """What an engine said last stands in `run.completed`, too; nobody is told that it is gone."""
    await tell_secret(desk.store)
    why = f"The engine exited with code 1: the key is {SECRET}"
    await tell(desk.store, RUN, commands.run_completed("failed", "failed", error_message=why).event())
    ended = await desk.store.log.head()
    assert (await desk.redact(RUN, RUN_TELEMETRY)).repeated_by is None
    assert (await desk.redact(RUN, RUN_LINE)).repeated_by == ended


async def test_asked_again_it_finishes_what_was_broken_off(desk: Desk, url: str) -> None:
    """A second time nothing is written to the log; a file that was not reached yet is."""
    store = desk.store
    await tell_secret(store)
    await desk.write()
    says = asked(RUN, RUN_LINE).event().data.decode()
    [told] = await store.database.rows("redact", stream=RUN, ids=[RUN_LINE], says=says)
    assert told["outcome"] == "redacted"
    shutil.copy(desk.path("", RUN), desk.path("", RUN).with_name("events.ndjson.redacted"))
    assert await desk.redact(RUN, RUN_LINE) == Redacted(None, (desk.path("", RUN),))
    assert await desk.is_whole()
    assert (await desk.redact(RUN, RUN_LINE, RUN_TELEMETRY)).by == 12
    assert await store.log.head() == 12
    assert (await verify(store.database)).count == 0
    hashes = rows(url, "SELECT data FROM events WHERE data LIKE '{\"redacted\"%'")
    assert len(hashes) == 2


async def test_a_file_that_is_not_here_is_not_made(desk: Desk) -> None:
    """On a machine without the log files, or where somebody put them away."""
    await tell_secret(desk.store)
    assert await desk.redact(RUN, RUN_LINE) == Redacted(11, ())
    assert list(desk.folder.iterdir()) == []


async def test_a_new_file_belongs_to_whom_the_old_one_did(desk: Desk) -> None:
    """An operator who redacts as root leaves the service its files."""
    await tell_secret(desk.store)
    await desk.write()
    if os.geteuid() == 0:
        os.chown(desk.path("", RUN), 12345, 12346)
    before = desk.path("", RUN).stat()
    await desk.redact(RUN, RUN_LINE)
    after = desk.path("", RUN).stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino


# What the database itself refuses


ERASE = """UPDATE events SET data = '{"redacted":"' || encode(sha256(data::bytea), 'hex') || '"}'"""


@pytest.mark.parametrize(
    "update",
    [
        f"{ERASE} WHERE id = {RUN_TELEMETRY}",
        f"{ERASE} WHERE id = 1",
        f"{ERASE} WHERE id = 11",
        f"{ERASE} WHERE id = {BUILD_LINE}",
        f"{ERASE} WHERE id IN ({RUN_LINE}, 10)",
        f"{ERASE}, seq = 99 WHERE id = {RUN_LINE}",
        f"{ERASE}, recorded_at = now() WHERE id = {RUN_LINE}",
        f"{ERASE}, bulk = false WHERE id = {RUN_LINE}",
        f"{ERASE}, bulk = true WHERE id = 1",
        f"{ERASE}, type = 'run.lag' WHERE id = {RUN_LINE}",
        f"UPDATE events SET data = '{{}}' WHERE id = {RUN_LINE}",
        f"""UPDATE events SET data = '{{"redacted":"{"0" * 64}"}}' WHERE id = {RUN_LINE}""",
        f"{ERASE} WHERE id = {RUN_LINE}; {ERASE} WHERE id = {RUN_LINE}",
    ],
)
async def test_an_update_that_is_no_redaction_is_refused(store: Store, url: str, update: str) -> None:
    """Even where an `event.redacted` stands in the log: it must name the event, and the hash be that of the payload."""
    await tell_secret(store)
    told = asked(RUN, 1, RUN_LINE, 11).event()  # it names a control event, and itself
    await store.appender.append(Append((Part("system_log", [told], ""),)))
    before = everything(url)
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
        rows(url, update)
    assert everything(url) == before


async def test_a_redaction_that_is_told_passes(store: Store, url: str) -> None:
    """What the test above refuses is refused for its reason."""
    await tell_secret(store)
    await store.appender.append(Append((Part("system_log", [asked(RUN, RUN_LINE).event()], ""),)))
    rows(url, f"{ERASE} WHERE id = {RUN_LINE}")
    assert (await verify(store.database)).count == 0


async def test_nothing_is_erased_in_advance(store: Store, url: str) -> None:
    """An `event.redacted` is about what stands before it, for the database and for whoever verifies."""
    await tell_secret(store)
    await store.appender.append(Append((Part("system_log", [asked(RUN, 12).event()], ""),)))
    await tell(store, RUN, line(RUN, SECRET))
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
        rows(url, f"{ERASE} WHERE id = 12")
    with psycopg.connect(url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(f"{ERASE} WHERE id = 12".encode())
    report = await verify(store.database)
    assert [(found.id, found.what) for found in report.findings] == [
        (12, "has lost its payload, and no `event.redacted` says so")
    ]


async def test_what_is_erased_stays_erased(store: Store, url: str) -> None:
    """The old text cannot come back, and the hash of a hash would prove nothing."""
    await tell_secret(store)
    before = rows(url, "SELECT data FROM events WHERE id = %s", RUN_LINE)[0]["data"]
    await redaction.redact(store.database, lambda *_: Path("nowhere"), asked(RUN, RUN_LINE))
    for update in (ERASE, "UPDATE events SET data = %s"):
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
            rows(url, f"{update} WHERE id = {RUN_LINE}", *([before] if "%s" in update else []))
    with psycopg.connect(url) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE events SET data = %s WHERE id = %s", [before, RUN_LINE])
    report = await verify(store.database)
    assert [(found.id, found.what) for found in report.findings] == [
        (RUN_LINE, "has a payload again, which event 11 had erased")
    ]


@pytest.fixture
def ordinary(server: Server) -> Iterator[tuple[str, str]]:
    """A database that belongs to an ordinary role, and another role; the URLs of both."""
    name, url = f"owner_{secrets.token_hex(6)}", server.create()
    database = str(conninfo_to_dict(url)["dbname"])
    with psycopg.connect(url, autocommit=True) as superuser:
        for role in (name, f"{name}_other"):
            superuser.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(role)))
        superuser.execute(SQL("ALTER DATABASE {} OWNER TO {}").format(Identifier(database), Identifier(name)))
    anyio.run(migrate, make_conninfo(url, user=name))
    yield make_conninfo(url, user=name), make_conninfo(url, user=f"{name}_other")
    server.drop(url)
    with psycopg.connect(server.empty(), autocommit=True) as superuser:
        for role in (name, f"{name}_other"):
            superuser.execute(SQL("DROP ROLE {}").format(Identifier(role)))


async def test_a_role_that_may_execute_it_needs_no_right_on_the_log(ordinary: tuple[str, str]) -> None:
    """The owner may, though it has taken UPDATE from itself; another role only where it was granted."""
    owner, other = ordinary
    async for store in open_store(owner):
        await tell_secret(store)
        await redaction.redact(store.database, lambda *_: Path("nowhere"), asked(RUN, RUN_LINE))
    call_it = "SELECT outcome FROM redact_events_v1(%s, %s, %s)"
    values = (RUN, [RUN_TELEMETRY], asked(RUN, RUN_TELEMETRY).event().data.decode())
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(other, call_it, *values)
    rows(owner, f"GRANT EXECUTE ON FUNCTION redact_events_v1 TO {conninfo_to_dict(other)['user']}")
    assert rows(other, call_it, *values) == [{"outcome": "redacted"}]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        rows(other, "TABLE events")


# Races


async def redact_while_copying(store: Store, url: str) -> None:
    """Redacts while the projector is in the middle of a step: it waits for that, or, being naive, is done before."""
    done = anyio.Event()

    async def redact() -> None:
        await redaction.redact(store.database, lambda *_: Path("nowhere"), asked(RUN, RUN_LINE))
        done.set()

    async def until_blocked_or_done(waiting: anyio.CancelScope) -> None:
        await until_blocked(url, "%redact_events_v1%")
        waiting.cancel()

    async with await connect(url) as copier, anyio.create_task_group() as tasks, transaction(copier):
        await call(copier, "catch_up", projection="run_logs", most=1000)
        tasks.start_soon(redact)
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(until_blocked_or_done, waiting.cancel_scope)
            await done.wait()
            waiting.cancel_scope.cancel()


@pytest.mark.parametrize("guarded", [True, False], ids=["", "naive"])
async def test_a_line_that_is_copied_at_that_moment_goes_too(server: Server, guarded: bool) -> None:
    """The redaction waits for the projector's step. Without the lock it would pass by, and the text come after it."""
    url = server.copy()
    async for store in open_store(url):
        await tell_secret(store)
        if not guarded:
            text = dict(texts("functions"))["redact"]
            naive = text.replace("FOR UPDATE", "")
            assert naive != text
            rows(url, naive)

        await redact_while_copying(store, url)
        messages = [row["message"] for row in table(url, "run_logs")]
        assert messages == (["hello", "done"] if guarded else [f"the key is {SECRET}", "hello", "done"])
    server.drop(url)


async def test_a_rebuild_that_is_copying_makes_it_refuse(desk: Desk, url: str) -> None:
    """The tables that are being made would bring the text back."""
    await tell_secret(desk.store)
    before = everything(url)
    async with await connect(url) as rebuilding:
        await call(rebuilding, "rebuild_lock")
        with pytest.raises(RebuildRunning):
            await desk.redact(RUN, RUN_LINE)
    assert everything(url) == before


class Late(Log):
    """A log whose reader is held up between reading a page and doing something with it."""

    def __init__(self, database: Database, meanwhile: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(database)
        self._meanwhile = meanwhile

    async def read(self, after: int, *, upto: int = FOREVER, limit: int = PAGE) -> Page:
        page = await super().read(after, upto=upto, limit=limit)
        await self._meanwhile()
        return page


async def test_a_projector_that_read_the_text_before_does_not_write_it_after(desk: Desk) -> None:
    """It has a page in its hands while the file is written anew, with what its file ends with and what is beyond."""
    await tell_secret(desk.store)
    await desk.write()
    await tell(desk.store, RUN, line(RUN, SECRET), line(RUN, "the end"))
    late = desk.writer(Late(desk.store.database, lambda: desk.redact(RUN, 11)))
    assert await late.step()
    late.close()
    assert SECRET not in desk.path("", RUN).read_text().split("done")[1]
    await tell(desk.store, RUN, line(RUN, "and on"))
    await desk.write()
    assert await desk.is_whole()


async def test_a_first_page_that_was_read_before_is_waited_for(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no file yet; the projector is about to make it, with the text. When it has, it is written anew."""
    monkeypatch.setattr(redaction, "PAGE_S", 30)
    await tell_secret(desk.store)
    told = anyio.Event()

    async def until_told() -> None:
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(look)
            await told.wait()

    async def look() -> None:
        while not await desk.store.database.rows("redactions"):  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)  # the redaction is in the log, and waits for us
        told.set()

    async with anyio.create_task_group() as tasks:
        late = desk.writer(Late(desk.store.database, until_told))
        tasks.start_soon(desk.redact, RUN, RUN_LINE)
        assert await late.step()
        late.close()
    assert f"the key is {SECRET}" not in desk.path("", RUN).read_text()


async def test_two_redactions_at_once_leave_neither_text(desk: Desk) -> None:
    """Each writes the file anew; the last one has seen both."""
    await tell_secret(desk.store)
    await desk.write()
    ids = [(await tell(desk.store, RUN, line(RUN, f"{SECRET} {n}"))).first_id for n in range(6)]
    await desk.write()
    async with anyio.create_task_group() as tasks:
        for event_id in ids:
            tasks.start_soon(desk.redact, RUN, event_id)
    assert await desk.is_whole()
    assert (await verify(desk.store.database)).count == 0


# A deployment


async def in_service(service: Service, run: str) -> AsyncIterator[Store]:
    """A run that has ended, told to the log of the service, with a secret in it."""
    async for store in open_store(service.database_url):
        ended = commands.run_completed("succeeded", "completed").event()
        await tell(store, run, run_created(), run_started(), line(run, SECRET), line(run, "done"), ended)
        yield store


async def test_a_running_service_serves_the_redacted_line(service: Service) -> None:
    """`ade log redact` beside it: every way to the run gives the same lines, without the text; and all is sealed."""
    run = f"run_{secrets.token_hex(8)}"
    async for store in in_service(service, run):
        stream = await store.log.stream(run)
        assert stream is not None
        lines = await store.log.read(stream.first_id - 1)  # other tests have filled the log before
        secret_id = next(one.id for one in lines if one.stream == run and SECRET.encode() in one.line)
        env = {**os.environ, "ADE_DATABASE_URL": service.database_url, "ADE_DATA_DIR": str(service.data)}
        command = [sys.executable, "-m", "service.cli", "log"]
        redact = [*command, "redact", run, str(secret_id), "--reason", "a password", "--by", "me", "--json"]
        done = await anyio.run_process(redact, env=env, stderr=subprocess.PIPE)
        [path] = json.loads(done.stdout)["files"]
        whole = await feed_bytes(store, run)
        assert SECRET.encode() not in whole
        assert await anyio.Path(path).read_bytes() == whole
        with service.http as http:
            ndjson = {"Accept": "application/x-ndjson"}
            assert http.get(f"/runs/{run}/logfile", headers={"Accept-Encoding": "identity"}).content == whole
            assert http.get(f"/runs/{run}/events", headers=ndjson).content == whole
            messages = [entry["message"] for entry in http.get(f"/runs/{run}/logs").json()["entries"]]
            assert messages == ["done"]
        async with httpx.AsyncClient(base_url=service.url) as client:
            with anyio.fail_after(60):
                while (await client.get("/ready")).json()["unsealed"]["events"]:  # noqa: ASYNC110
                    await anyio.sleep(0.05)  # the projector process seals within a second
        assert (await verify(store.database)).count == 0
        await anyio.run_process([*command, "verify"], env=env)
