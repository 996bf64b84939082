"""The log as a file and back: the same bytes, chain and tables; and what is not a whole log is refused."""

import gzip
import io
import json
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from eventstore import Append, NewEvent, Part, encode
from eventstore.database import connect, transaction
from eventstore.seals import Sealer
from eventstore.statements import statements
from eventstore.verification import verify
from projections import events, log_import, redaction
from projections.exported_line import NotAnEvent, read_line
from projections.log_import import Imported, LogNotEmpty, NotAWholeLog, SourceIsSilent, import_log, lines_of
from projections.redaction import redact
from projections.tables import ALL, CAUGHT_UP
from tests.conftest import ROOT, Server, Store, open_store
from tests.histories import GOLDEN, golden, line, rows, run_created, run_started, table, tell, until_blocked

pytestmark = pytest.mark.anyio

TABLES = [name for projection in ALL for name in projection.tables]
ODD = ["ordinary", 'a \\ and a "', "pingüino 🐧", "tab\tand\r", "\u2028\u0085", "\x00 nul", '","seq":1,"created_at":"']


async def tell_history(store: Store) -> None:
    """Every kind of event, streams that interleave, payloads that are hard to keep as they are, and a redaction."""
    for copy in (1, 2):
        for example in golden():
            if example.type == "event.redacted":
                continue  # a made-up one; there is a real one below
            stream = example.stream.replace("_01K", f"_{copy:02}K")
            data = example.event.data.replace(b"_01K", b"_%02dK" % copy).replace(b'"penguins"', b'"penguins%d"' % copy)
            event = NewEvent(example.type, data, bulk=example.event.bulk, ends=example.event.ends)
            workspace = "" if stream == "system_log" else "antarctica"
            await store.appender.append(Append((Part(stream, [event], workspace),)))
    await tell(store, "run_1", run_created(), run_started())
    for text in ODD:
        await tell(store, "run_1", line("run_1", text))
        await tell(
            store, "run_1", NewEvent("engine.odd.thing", encode({"message": text, "stream": "stderr"}), bulk=True)
        )
    # No number of Python's keeps these digits, no encoder these blanks: only the bytes do.
    await tell(store, "run_1", NewEvent("engine.odd", b'{ "n":1e20,"m":1.10, "u":"\\u00fc\\/","empty":{} }', bulk=True))
    await tell(store, "run_1", NewEvent("engine.empty", b"{}", bulk=True))
    odd = await store.log.stream("run_1")
    assert odd is not None
    asked = events.EventRedacted(stream="run_1", event_ids=[odd.first_id + 2], requested_by="test", reason="test")
    await redact(store.database, lambda _workspace, stream: Path("/nowhere") / stream, asked)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short log takes many pages; and there is no projector to wait for."""
    monkeypatch.setattr(log_import, "PAGE_LINES", 10)
    monkeypatch.setattr(redaction, "PAGE_S", 0)


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    """The shared database, which is nobody's copy afterwards."""
    emptied = server.empty()
    yield emptied
    rows(emptied, "UPDATE log SET origin = NULL")


async def exported(store: Store) -> bytes:
    found = await store.log.read(0, limit=100_000)
    return b"".join([one.line + b"\n" for one in found])


async def catch_up(store: Store) -> None:
    for projection in CAUGHT_UP:
        await store.database.row("catch_up", projection=projection.name, most=100_000)


def contents(url: str) -> dict[str, list[dict[str, Any]]]:
    """All that follows from the events, and they. What one append added is not in the events."""
    found = {name: table(url, name) for name in ("events", "checkpoints", *TABLES)}
    found["streams"] = rows(
        url,
        "SELECT * FROM streams_with_last ORDER BY 1",
    )
    return found


async def import_bytes(url: str, data: bytes, origin: str = "log_1") -> Imported:
    return await import_log(url, lines_of(io.BufferedReader(io.BytesIO(data))), origin)


def without_its_past(url: str) -> dict[str, Any]:
    """All rows of all tables."""
    names = [
        row["relname"]
        for row in rows(
            url, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
    ]
    return {name: table(url, name) for name in names}


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
async def test_an_import_is_the_log_again(every_server: Server, zipped: bool) -> None:
    """Events, streams, tables, checkpoints and chain, on every PostgreSQL; only its name is another one. What is
    appended afterwards follows on."""
    url, copy_url = every_server.empty(), every_server.copy()
    async for store in open_store(url):
        await tell_history(store)
        await catch_up(store)
        place = await Sealer(store.database).catch_up()
        data = await exported(store)
        origin = (await store.log.identity()).log_id
        named = rows(copy_url, "SELECT log_id FROM log")[0]["log_id"]
        made = await import_bytes(copy_url, gzip.compress(data) if zipped else data, origin)
        async for copy in open_store(copy_url):
            assert await exported(copy) == data
            assert contents(copy_url) == contents(url)
            assert await Sealer(copy.database).catch_up() == place
            assert (await verify(copy.database, kept=place)).findings == []
            [names] = rows(copy_url, "SELECT log_id, origin FROM log")
            assert names == {"log_id": made.log_id, "origin": origin}
            assert made.log_id not in {named, origin}
            assert made.head == place.id
            for each in (store, copy):
                await tell(each, "run_1", line("run_1", "and on"))
                await catch_up(each)
            now, then = contents(copy_url), contents(url)
            assert [now["run_logs"][-1]["message"], now["run_logs"][-1]["id"]] == ["and on", made.head + 1]
            assert now["streams"] == then["streams"]
    every_server.drop(copy_url)


async def test_the_streams_are_found_by_their_segments(store: Store, url: str, server: Server) -> None:
    """Each event of a copy lies in exactly one segment of its stream, and each segment holds nothing else."""
    await tell_history(store)
    copy_url = server.copy()
    await import_bytes(copy_url, await exported(store))
    for one in (url, copy_url):
        assert (
            rows(
                one,
                """SELECT e.id FROM events e LEFT JOIN segments s
                            ON s.stream = e.stream AND e.id BETWEEN s.first_id AND s.last_id
                            GROUP BY e.id HAVING count(s.stream) <> 1""",
            )
            == []
        )
        assert rows(one, "SELECT sum(last_id - first_id + 1) AS n FROM segments")[0]["n"] == await store.log.head()
    assert (
        rows(
            copy_url,
            """SELECT s.stream FROM segments s WHERE s.bytes <> (SELECT sum(octet_length(e.data)) FROM events e
                             WHERE e.stream = s.stream AND e.id BETWEEN s.first_id AND s.last_id)""",
        )
        == []
    )
    server.drop(copy_url)


def changed(data: bytes, number: int, line_: bytes | None) -> bytes:
    """The export with another line, or without it."""
    lines = data.splitlines(keepends=True)
    lines[number - 1 : number] = [] if line_ is None else [line_ + b"\n"]
    return b"".join(lines)


def swapped(data: bytes, number: int) -> bytes:
    """The export with an event and the next one under each other's ids."""
    lines = data.splitlines(keepends=True)
    first, second = lines[number - 1], lines[number]
    lines[number - 1] = second.replace(b'{"id":%d,' % (number + 1), b'{"id":%d,' % number)
    lines[number] = first.replace(b'{"id":%d,' % number, b'{"id":%d,' % (number + 1))
    return b"".join(lines)


def renumbered(data: bytes, keep: Iterable[bytes]) -> bytes:
    """Lines as if there had never been others between them."""
    return b"".join(re.sub(rb'^\{"id":\d+', b'{"id":%d' % place, one) + b"\n" for place, one in enumerate(keep, 1))


def broken() -> dict[str, tuple[bytes, str]]:
    """Exports that are none, and what is said of each. The tenth line is in the second page."""
    data = GOLDEN.read_bytes()
    lines = data.splitlines()
    at = next(place for place, one in enumerate(lines) if b'"run.log"' in one and b'"seq"' in one)
    log = lines[at]
    ended = next(place for place, one in enumerate(lines) if b'"run.completed"' in one)
    run = re.findall(rb'"run_id":"(run_\w+)"', lines[ended])[0]
    seq = int(re.findall(rb'"seq":(\d+)', lines[ended])[0])
    late = log.replace(re.findall(rb'"run_id":"(run_\w+)"', log)[0], run)
    late = re.sub(rb'"seq":\d+', b'"seq":%d' % (seq + 1), re.sub(rb'^\{"id":\d+', b'{"id":%d' % (ended + 2), late))
    telemetry = log.replace(b'"run.log"', b'"engine.x"')

    def with_line(old: bytes, new: bytes, of: bytes = log) -> bytes:
        assert old in of
        return changed(data, at + 1, of.replace(old, new))

    return {
        "cut within its last line": (data[:-30], "cut off"),
        "cut before its last line feed": (data[:-1], "cut off"),
        "no event": (changed(data, 20, b'{"hello":1}'), "envelope"),
        "not JSON": (with_line(log[-1:], b'"}', log), "JSON"),
        "text after it": (changed(data, at + 1, log + b" "), "envelope"),
        "a line of a carriage return": (changed(data, at + 1, log + b"\r"), "envelope"),
        "a bookmark": (changed(data, 20, b'{"object":"ade.bookmark","id":20}'), "envelope"),
        "an unknown object": (
            changed(data, at + 1, log.replace(b"ade.run.", b"ade.job.").replace(b'"run_id":"run_', b'"job_id":"job_')),
            "ade.job.event",
        ),
        "an unknown type": (with_line(b'"run.log"', b'"run.danced"'), "run.danced"),
        "an event of another kind": (with_line(b'"run.log"', b'"build.log"'), "does not happen to a run"),
        "no such payload": (with_line(b'"message"', b'"massage"'), "message"),
        "telemetry of no stream": (with_line(b'"stream":"system",', b"", telemetry), "which stream"),
        "another second": (with_line(b'"created":1', b'"created":2'), "different seconds"),
        "a day that never was": (
            re.sub(rb'"created_at":"\d{4}-\d\d-\d\d', b'"created_at":"2025-02-30', data),
            "no time",
        ),
        "a second id": (with_line(b'"stream":"system"', b'"id":5,"stream":"system"'), "the envelope's: id"),
        "a second run": (with_line(b'"stream":"system"', b'"run_id":"","stream":"system"'), "the envelope's: run_id"),
        "a NUL": (with_line(b'"message":"', b'"message":"\\u0000'), "NUL"),
        "half a character": (with_line(b'"message":"', b'"message":"\\ud800'), "JSON"),
        "no UTF-8": (with_line(b'"message":"', b'"message":"\xff'), "JSON"),
        "a number with a zero before it": (with_line(b'"seq":', b'"seq":0'), "envelope"),
        "a hash that is a path": (re.sub(rb'"sha256":"\w+"', b'"sha256":"/etc/passwd"', data, count=1), "sha256"),
        "a digest that leads elsewhere": (
            data.replace(b'"config_digest":"', b'"config_digest":"../', 1),
            "config_digest",
        ),
        "a workspace that leads elsewhere": (
            re.sub(rb'("run.created".*"workspace_id":)"antarctica"', rb'\1"../../elsewhere"', data, count=1),
            "workspace_id",
        ),
        "a line less": (changed(data, 20, None), "expected=20"),
        "a line twice": (changed(data, 20, data.splitlines()[19] + b"\n" + data.splitlines()[19]), "expected=21"),
        "a beginning less": (b"".join(data.splitlines(keepends=True)[5:]), "expected=1"),
        "one run only": (b"".join(one + b"\n" for one in lines if run in one), "expected=1"),
        "one run only, renumbered": (
            renumbered(data, (one for one in lines if b'"run_id":"' + run in one and b'"seq":1,' not in one)),
            "not dense: expected 1",
        ),
        "two of a stream swapped": (swapped(data, 2), "not dense: expected 1"),
        "an event after the end": (b"".join(one + b"\n" for one in [*lines[: ended + 1], late]), "ended before"),
        "a run that is made twice": (renumbered(data, [*lines, _again(lines)]), "duplicate key"),
        "a stream that begins with a line": (renumbered(data, [*lines, _alone(log)]), "names no workspace"),
        "nothing": (b"", "no event"),
        "blank lines": (b"\n\n", "no event"),
        "no gzip": (b"\x1f\x8b" + data, "cannot be read"),
        "half a gzip": (gzip.compress(data)[:-100], "cannot be read"),
        "a gzip with a bit more": (_flipped(gzip.compress(data)), "line"),
    }


def _again(lines: Sequence[bytes]) -> bytes:
    config = next(one for one in lines if b'"config.registered"' in one)
    return re.sub(rb'"seq":\d+', b'"seq":1', config.replace(b'"config_id":"config_', b'"config_id":"config_2'))


def _alone(log: bytes) -> bytes:
    return re.sub(rb'"run_id":"run_\w+","seq":\d+', b'"run_id":"run_alone","seq":1', log)


def _flipped(packed: bytes) -> bytes:
    middle = len(packed) // 2
    return packed[:middle] + bytes([packed[middle] ^ 16]) + packed[middle + 1 :]


BROKEN = broken()


@pytest.mark.parametrize("case", BROKEN)
async def test_what_is_not_a_whole_log_is_refused(url: str, case: str) -> None:
    """With the reason; and the database is as it was, down to its name, though earlier pages were right."""
    data, said = BROKEN[case]
    before = without_its_past(url)
    with pytest.raises((NotAnEvent, NotAWholeLog), match=re.escape(said)):
        await import_bytes(url, data)
    assert without_its_past(url) == before


async def test_the_golden_log_can_be_imported(url: str) -> None:
    """What every case above differs from; keep-alives and an end before the last event do no harm."""
    lines = GOLDEN.read_bytes().splitlines(keepends=True)
    assert (await import_bytes(url, b"\n" + b"\n".join(lines[:-3]))).head == len(lines) - 3
    assert len(rows(url, "SELECT 1 FROM events")) == len(lines) - 3


async def test_a_log_that_is_not_empty_stays_as_it_is(store: Store, url: str) -> None:
    """One event is enough, and so is an import that was finished."""
    await tell(store, "run_1", run_created())
    before = without_its_past(url)
    with pytest.raises(LogNotEmpty, match="head=1"):
        await import_bytes(url, GOLDEN.read_bytes())
    assert without_its_past(url) == before


async def test_an_import_that_is_done_takes_no_more(url: str) -> None:
    """Neither the same one again nor one that goes on where it ended, under the same name."""
    data = GOLDEN.read_bytes()
    head = (await import_bytes(url, data)).head
    with pytest.raises(LogNotEmpty):
        await import_bytes(url, data)
    async with await connect(url) as connection:
        last = read_line(data.splitlines()[-1], 1)
        moved = type(last)(**{name: getattr(last, name) for name in last.__slots__} | {"id": head + 1})
        with pytest.raises(LogNotEmpty):
            await log_import._import(connection, "log_1", [moved])
    assert len(rows(url, "SELECT 1 FROM events")) == head


async def test_who_appends_meanwhile_waits_and_lands_after_it(store: Store, url: str) -> None:
    """The lock is held from the first page to the commit: nothing can come between two pages."""
    data = GOLDEN.read_bytes()
    async with anyio.create_task_group() as tasks, await connect(url) as connection, transaction(connection):
        parsed = [read_line(one, 1) for one in data.splitlines()]
        await log_import._import(connection, "log_1", parsed[:10])
        tasks.start_soon(tell, store, "run_new", run_created())
        await until_blocked(url, "%append_events%")
        await log_import._import(connection, "log_1", parsed[10:])
    created = rows(url, "SELECT id FROM events WHERE stream = 'run_new'")
    assert created == [{"id": len(parsed) + 1}]


async def test_who_stops_in_the_middle_gives_the_log_back(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that says no more: the server ends the transaction, nothing is left of it, and appends go on."""
    hasty = "SET LOCAL idle_in_transaction_session_timeout = '100ms'"
    monkeypatch.setitem(statements(), "import_patience", hasty)
    monkeypatch.setattr(log_import, "PATIENCE_S", 0.1)
    before = without_its_past(url)

    def stalled() -> Iterable[bytes]:
        lines = GOLDEN.read_bytes().splitlines(keepends=True)
        yield from lines[:15]
        while rows(url, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"):
            time.sleep(0.01)  # the server has no other way to say that it has ended the transaction
        yield from lines[15:]

    with pytest.raises(SourceIsSilent):
        await import_log(url, stalled(), "log_1")
    assert without_its_past(url) == before
    assert (await tell(store, "run_1", run_created())).first_id == 1


async def test_nobody_may_import_by_default(url: str) -> None:
    """Who may write to every table may not yet be another log."""
    rows(url, "DROP ROLE IF EXISTS importer_test")
    rows(url, "CREATE ROLE importer_test")
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO importer_test")
            connection.execute("SET ROLE importer_test")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT import_events_v1('', 1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '')")
    finally:
        rows(url, "DROP OWNED BY importer_test")
        rows(url, "DROP ROLE importer_test")


async def test_memory_does_not_grow_with_the_log(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held while many pages go by is some pages."""
    monkeypatch.setattr(log_import, "PAGE_LINES", 500)

    def endless(count: int) -> Iterable[bytes]:
        lines = GOLDEN.read_bytes().splitlines(keepends=True)
        run = next(one for one in lines if b'"run.created"' in one)
        log = next(one for one in lines if b'"run.log"' in one)
        run = re.sub(rb'"seq":\d+', b'"seq":1', re.sub(rb'"run_id":"\w+"', b'"run_id":"run_1"', run))
        log = re.sub(rb'"run_id":"\w+"', b'"run_id":"run_1"', log)
        yield re.sub(rb'^\{"id":\d+', b'{"id":1', run)
        for number in range(2, count + 1):
            numbered = re.sub(rb'^\{"id":\d+', b'{"id":%d' % number, log)
            yield re.sub(rb'"seq":\d+', b'"seq":%d' % number, numbered)

    def and_no_more(lines: Iterable[bytes]) -> Iterable[bytes]:
        yield from lines
        yield b"no event\n"

    peaks = []
    for count in (2_000, 12_000):
        tracemalloc.start()
        with pytest.raises(NotAnEvent, match=f"line={count + 1}"):  # so that the next one begins in an empty log
            await import_log(url, and_no_more(endless(count)), "log_1")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5


def ade(url: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "service.cli", "log", *arguments]
    env = {"ADE_DATABASE_URL": url}
    return subprocess.run(command, input=stdin, env=env, cwd=ROOT, capture_output=True, timeout=60, check=False)


async def test_the_commands(store: Store, url: str, server: Server, tmp_path: Path) -> None:
    """Out, in and out again, by a file and by a pipe, gzip or not: the same bytes. A kept head of the log proves the
    copy, which says whose it is; what is refused is one line on stderr and exit code 2."""
    await tell_history(store)
    by_file, by_pipe, head = server.copy(), server.create(), tmp_path / "head.json"
    plain, zipped, kept = (ade(url, *given) for given in (["export"], ["export", "--gzip"], ["head", "--json"]))
    assert gzip.decompress(zipped.stdout) == plain.stdout == await exported(store)
    (tmp_path / "log.gz").write_bytes(zipped.stdout)
    origin = json.loads(kept.stdout)["log_id"]

    done = ade(by_file, "import", str(tmp_path / "log.gz"), "--origin", origin, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    place = await Sealer(store.database).catch_up()
    names = rows(by_file, "SELECT log_id, origin FROM log")[0]
    assert made == {**names, "head": place.id, "chain_hash": place.chain_hash.hex()}
    done = ade(by_pipe, "import", stdin=plain.stdout)
    assert done.returncode == 0, done.stderr
    for copy_url, given in ((by_file, ("export", "--gzip")), (by_pipe, ("export", "--gzip"))):
        assert ade(copy_url, *given).stdout == zipped.stdout
    assert f", a copy of {origin} at {place.id}," in ade(by_file, "head").stdout.decode()

    head.write_bytes(ade(url, "head", "--json").stdout)
    found = json.loads(ade(by_file, "verify", "--head", str(head), "--json").stdout)
    assert (found["findings"], found["last_id"]) == ([], place.id)
    assert not any("another log" in complaint for complaint in found["head"])
    for again, said in ((plain.stdout, b"events in this log already"), (b"hello", b"no line of an exported log")):
        done = ade(by_file if again != b"hello" else url, "import", stdin=again)
        assert done.returncode == 2
        assert said in done.stderr
        assert b"Traceback" not in done.stderr
    assert ade(url, "import", str(tmp_path / "nowhere")).returncode == 2
    for one in (by_file, by_pipe):
        server.drop(one)
