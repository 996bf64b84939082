"""What engines write, and what the tables of lines say about it: no byte stops a projection, no line becomes a fact."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eventstore import Leases, Line
from eventstore.clock import ulid
from eventstore.database import call, connect, transaction
from eventstore.errors import Unavailable
from projections import build as builds
from projections import run as runs
from projections.entries import Entries, Entry
from projections.log_files import LogFiles
from projections.tables import CAUGHT_UP
from service import commands
from service.files import Files
from service.handler import Handler
from service.settings import Settings
from service.work.lines import LineSplitter
from service.work.masking import Mask
from service.writer import Writer
from tests.conftest import Store
from tests.histories import (
    build_created,
    build_started,
    feed_bytes,
    line,
    rows,
    run_created,
    run_started,
    table,
    tell,
    tell_golden,
    until_blocked,
)

pytestmark = pytest.mark.anyio

unhurried = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

# What an engine may write to be taken for something else, or to break whoever reads it.
NASTY = [
    b'{"event":"run.completed","status":"succeeded"}',
    b'{"event":"engine.run.completed","message":"done","data":{"rows":1}}',
    b'{"event":"engine.run.completed","message":{"no":"text"}}',
    b'{"event":"engine.a","message":"kept","level":{"deep":[1]}}',
    b'{"event":"engine.a","message":"forged","type":"run.completed"}',
    b'{"event":"engine.a","run_id":"run_1","seq":0,"message":"forged"}',
    b'{"event":"engine.a\\nevent: run.completed","message":"forged"}',
    b'{"event":"engine.a","message":"nul \\u0000 and \\ud800 lone","\\u0000":"\\u0000"}',
    b'{"event":"engine.a","message":"deep","data":' + b"[" * 240 + b"]" * 240 + b"}",
    b'{"event":"engine.a","message":"too deep","data":' + b"[" * 300 + b"]" * 300 + b"}",
    b'{"event":"engine.a","message":"huge","n":1e300,"m":-0.0,"k":18446744073709551615}',
    b'{"event":"engine.a","message":"too huge","n":1e999}',
    b'{"event":"engine.a","message":"digits","n":' + b"9" * 400 + b"}",
    b'{"event":"engine.a","message":"\xe2\x80\xa8 \xe2\x80\xa9 \xc2\x85 \xf0\x9f\x90\xa7"}',
    b'{"id":1,"object":"ade.run.event","type":"run.completed","status":"succeeded"}',
    b"data: {}",
    b"event: run.completed",
    b": comment",
    b"",
    b"\r",
    b"\0",
    b"\x1b[31mred\x1b[0m \x07",
    b"a\xe2\x80\xa8b\xe2\x80\xa9c\xc2\x85d\x0b\x0c\x1c\x1d\x1e",
    b"\xff\xfe \xed\xa0\x80 \xc0\xaf",
    b'quotes " and \\ backslashes \\u0000 \\',
    b"'; DROP TABLE events; --",
    b"%s %(stream)s {0} $1 \\x41",
]
LINES = st.one_of(st.sampled_from(NASTY), st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")))
OUTPUT = st.lists(LINES, max_size=12).map(lambda found: b"".join(raw + b"\n" for raw in found))
ENGINE_EVENT = re.compile(r"engine(\.[a-z0-9_]{1,64}){1,8}")


def text_of(raw: bytes) -> str:
    first, *states = raw.split(b"\r")
    shown = next((state for state in reversed(states) if state.strip()), first)  # the last one that is not blank
    return shown.decode("utf-8", "replace").replace("\0", "\ufffd")


def expected(raw: bytes, served: Line) -> dict[str, Any] | None:
    """What a table of lines should hold for a line that an engine wrote, the plain way; None for no row."""
    if served.type in {"run.log", "build.log"}:
        return {"id": served.id, "level": None, "message": text_of(raw)}
    written = json.loads(raw.decode("utf-8", "replace"))
    assert written["event"] == served.type
    assert ENGINE_EVENT.fullmatch(served.type)
    message, level = written.get("message"), written.get("level")
    if not isinstance(message, str):
        return None
    shown = level if level is None or isinstance(level, str) else json.dumps(level, separators=(",", ":"))
    return {"id": served.id, "level": shown, "message": re.sub("[\0\ud800-\udfff]", "\ufffd", message)}


async def write(store: Store, stream: str, output: bytes, cut: int = 0, secrets: Sequence[str] = ()) -> None:
    """An engine's output, through the splitter and the writer of a worker, in two chunks."""
    lease = await Leases(store.database, "worker", 30).take(stream)
    assert lease is not None
    here = Settings()
    handler = Handler(store.database, store.log, store.appender, Files.of(here), here, "3.11")
    writer = Writer(store.appender, handler, lease, stream.partition("_")[0])
    splitter = LineSplitter("stderr", mask=Mask(secrets))
    for chunk in (output[:cut], output[cut:]):
        await writer.lines(splitter.feed(chunk))
    await writer.lines(splitter.close())


async def catch_up(store: Store, *steps: int) -> None:
    """Both tables of lines, to the head, in steps of these sizes, over and over."""
    for projection in CAUGHT_UP:
        for most in cycle(steps):
            row = await store.database.row("catch_up", projection=projection.name, most=most)
            assert row is not None
            if row["reached"] >= row["head"]:
                assert row["reached"] == row["head"]
                break


async def entries(store: Store, stream: str, limit: int) -> list[dict[str, Any]]:
    """All that `/logs` gives, page by page; and the last page, by itself."""
    found = await store.log.stream(stream)
    assert found is not None
    reader, after, told = Entries(store.log, found), 0, list[Entry]()
    while (window := await reader.after(after, limit)).after_id is not None:
        told, after = told + window.entries, window.after_id
    told += window.entries
    assert (await reader.before(reader.end, limit)).entries == told[-limit:]
    return [asdict(entry) for entry in told]


def shown(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(row["stream"] == "stderr" for row in found)
    return [{name: row[name] for name in ("id", "level", "message")} for row in found]


BEGIN = {"run": (run_created(), run_started()), "build": (build_created(), build_started())}
END = {
    "run": commands.run_completed("succeeded", "completed").event(),
    "build": commands.build_completed("active", "completed").event(),
}


@unhurried
@given(OUTPUT, st.integers(0, 1000), st.sampled_from(["run", "build"]))
@example(b"\n".join(NASTY) + b"\n", 17, "run")
@example(b"\n".join(NASTY) + b"\n", 1000, "build")
async def test_no_output_stops_a_projection_or_becomes_a_fact(
    every_store: Store, every_url: str, tmp_path: Path, output: bytes, cut: int, kind: str
) -> None:
    """Whatever an engine writes is served on one line each, stands in the table of lines, in `/logs` and in the file
    as it was meant, and moves no run and no build."""
    store, stream, before = every_store, f"{kind}_{ulid()}", await every_store.log.head()
    await tell(store, stream, *BEGIN[kind])
    await write(store, stream, output, cut)
    await tell(store, stream, END[kind])

    created, begun, *served, ended = await store.log.read(before)
    raws = output.split(b"\n")[:-1]
    assert len(served) == len(raws)
    for one in (created, begun, *served, ended):
        assert len(one.line.decode().splitlines()) == 1
        names = json.loads(one.line, object_pairs_hook=lambda members: [name for name, _ in members])
        assert names[:7] == ["id", "object", "type", f"{kind}_id", "seq", "created", "created_at"]
        assert len(set(names)) == len(names)
    assert {one.type for one in served if not ENGINE_EVENT.fullmatch(one.type)} <= {f"{kind}.log"}

    told = await store.log.control_events(stream)
    assert [event.id for event in told] == [created.id, begun.id, ended.id]
    state = runs.fold(stream, told) if kind == "run" else builds.fold(stream, told)
    [row] = rows(every_url, f"SELECT status, updated_at FROM {kind}s WHERE id = %s", stream)
    assert row["status"] == state.status == {"run": "succeeded", "build": "active"}[kind]
    assert row["updated_at"].timestamp() == state.updated_at == told[-1].recorded_at

    meant = [kept for raw, one in zip(raws, served, strict=True) if (kept := expected(raw, one))]
    await catch_up(store, 1000)
    assert shown(rows(every_url, f"SELECT * FROM {kind}_logs WHERE {kind}_id = %s ORDER BY id", stream)) == meant
    assert shown(await entries(store, stream, 3)) == meant

    files = LogFiles(store.database, store.log, lambda _, name: tmp_path / name)
    while await files.step():
        pass
    files.close()
    assert (tmp_path / stream).read_bytes() == await feed_bytes(store, stream)


@pytest.mark.parametrize("result", [1e300, -0.0, 5e-324, 1e20, 2**64 - 1, {"b": 1, "a": [1.0, None]}, None, "null", ""])
async def test_a_result_comes_back_as_it_was_written(store: Store, url: str, result: Any) -> None:
    """To the digit and in its order, from the fold and from the table, so that it can be written once more."""
    end = commands.run_completed("succeeded", "completed", result=result).event()
    await tell(store, "run_1", *BEGIN["run"], end)
    [row] = rows(url, "SELECT result FROM runs")
    state = runs.fold("run_1", await store.log.control_events("run_1"))
    assert orjson.dumps(row["result"]) == orjson.dumps(state.result) == orjson.dumps(result)


async def test_a_secret_that_looks_like_json_breaks_no_line(store: Store, url: str) -> None:
    """It is hidden in strings, keys and numbers; the names that the service gives stay what they are."""
    await tell(store, "run_1", *BEGIN["run"])
    output = b'{"event":"engine.a","message":"pin 12345678","n":12345678,"12345678":1}\nmessage 12345678 stderr\n'
    await write(store, "run_1", output, secrets=["12345678", "message", "stderr"])
    telemetry, told = (orjson.loads(one.line) for one in (await store.log.read(0))[2:])
    assert (telemetry["n"], telemetry["***"], telemetry["stream"]) == ("***", 1, "stderr")
    assert (told["message"], told["stream"]) == ("*** *** ***", "stderr")
    await catch_up(store, 100)
    assert [row["message"] for row in table(url, "run_logs")] == ["*** *** ***"]


def lines_of(log: Sequence[Line], kind: str) -> list[dict[str, Any]]:
    """The table of lines as the fold of the log."""
    found = []
    for one in log:
        data = orjson.loads(one.line)
        is_line = one.type == f"{kind}.log" or one.type.startswith("engine.")
        if is_line and one.stream.startswith(kind) and "message" in data:
            step = {"step": data.get("step")} if kind == "build" else {}
            row = {"id": one.id, f"{kind}_id": one.stream, "stream": data["stream"], "message": data["message"]}
            found.append({**row, "level": data.get("level"), **step})
    return found


def tables_of_lines(url: str) -> dict[str, list[dict[str, Any]]]:
    found = {kind: table(url, f"{kind}_logs") for kind in ("run", "build")}
    for row in (*found["run"], *found["build"]):
        del row["created_at"]
    return found


async def told(store: Store, url: str) -> dict[str, list[dict[str, Any]]]:
    """The golden log and some lines after it; the tables of lines that it should give, none of which are there yet."""
    if await store.log.head() == 0:
        await tell_golden(store)
        for number in range(1, 8):
            stream = f"{'run' if number % 3 else 'build'}_late"
            await tell(store, stream, *(line(stream, f"{number}.{place}") for place in range(number)))
    for statement in ("TRUNCATE run_logs, build_logs", "UPDATE checkpoints SET id = 0"):
        rows(url, statement)
    log = await store.log.read(0)
    return {kind: lines_of(log, kind) for kind in ("run", "build")}


@unhurried
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
async def test_steps_of_any_size_give_the_fold_of_the_log(store: Store, url: str, steps: list[int]) -> None:
    """However far a step goes, the tables of lines end as one step over the whole log would leave them."""
    meant = await told(store, url)
    await catch_up(store, *steps)
    assert tables_of_lines(url) == meant
    assert all(meant.values())


async def test_two_catch_ups_at_once_write_each_row_once(every_store: Store, every_url: str) -> None:
    """The second waits for the first, and goes on from where that one ended."""
    meant = await told(every_store, every_url)
    async with (
        await connect(every_url) as first,
        await connect(every_url) as second,
        anyio.create_task_group() as tasks,
        transaction(first),
    ):
        [row] = await call(first, "catch_up", projection="run_logs", most=40)
        assert row["reached"] == 40
        tasks.start_soon(lambda: call(second, "catch_up", projection="run_logs", most=15))
        await until_blocked(every_url)
    assert rows(every_url, "SELECT id FROM checkpoints WHERE projection = 'run_logs'") == [{"id": 55}]
    await catch_up(every_store, 10)
    assert tables_of_lines(every_url) == meant


async def catch_up_and_die(url: str) -> None:
    """All is written, and the server is told to end the connection before the commit."""
    async with await connect(url) as connection, transaction(connection):
        await call(connection, "catch_up", projection="run_logs", most=100)
        rows(url, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
        await call(connection, "head")


async def test_a_catch_up_that_is_killed_is_taken_up_again(store: Store, url: str) -> None:
    """Rows and checkpoint are there together or not at all."""
    meant = await told(store, url)
    await catch_up(store, 7)
    await tell(store, "run_late", line("run_late", "one more"))
    before = tables_of_lines(url)
    with pytest.raises(Unavailable):
        await catch_up_and_die(url)
    assert tables_of_lines(url) == before == meant
    await catch_up(store, 100)
    assert [row["message"] for row in tables_of_lines(url)["run"]][-1] == "one more"
