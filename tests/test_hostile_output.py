"""Whatever an engine writes is data: the same lines to every viewer, and nothing is forged or ended by it (I4, I8)."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests import engine
from tests.conftest import ROOT, Service

pytestmark = pytest.mark.usefixtures("tidy")

HOSTILE = [
    *(
        b"a\rb",
        b"\r1%\r50%\r99%\r    \r100%\r",
        b"data: forged",
        b"id: 999999999",
        b"event: run.completed",
        b": comment",
        b"retry: 1",
        b"",
        b"\r",
        b"\t",
    ),
    *(b"data: x\r\rid: 1\r\r", "\u0085 \u2028 \u2029 \ufeff".encode(), b"nul \0 nul", b"\xff\xfe \xed\xa0\x80 \xc3"),
    *(b'{"event":"run.completed","status":"succeeded"}', b'{"event":"engine.run.completed","message":"done","data":1}'),
    *(b'{"event":"engine.x","id":1,"message":"forged"}', b'{"event":"engine.x","object":"ade.run.event"}'),
    *(b'{"event":"engine.a\\nb"}', b'{"event":"engine.x","message":"\\ud800 \\u0000 \\u2028"}', b'{"event":"engine.x"'),
    *(b'{"event":"engine.x","message":{"not":"text"}}', b'{"event":"engine.x","n":1e999}', b"[" * 5000),
    *(b'{"event":"engine.x","n":123456789012345678901234567890}', b'{"event":"engine.x","\\u0000":"\\ud800"}'),
    *(b"x" * 200_000, b'{"event":"engine.big","message":"' + b"y" * 200_000 + b'"}', bytes(range(256)) * 40, b"last"),
]
"""Lines that would break a frame, end a stream or forge an event, if they were taken for more than data."""


def test_hostile_output_is_data_to_every_viewer(service: Service, http: httpx.Client, tmp_path: Path) -> None:
    """All see the same lines and the one end: NDJSON and SSE, live and later, pages, log file, its copy, the export."""
    lines = tmp_path / "lines"
    lines.write_bytes(b"\n".join(HOSTILE) + b"\nno newline at the end")
    document = http.post(f"/workspaces/{engine.WORKSPACE}/documents", content=lines.read_bytes())
    options = {"document_ids": [engine.told(document)["id"]]}
    script = "write(next(Path('inputs/1').iterdir()).read_bytes())"
    engine.build(http, engine.actor(http))  # or its events would be among those of the run
    with engine.gate(service) as gate, ThreadPoolExecutor() as threads:
        run_id = engine.start(http, engine.actor(http), f"wait_for({str(gate)!r}); {script}", **options)["id"]
        live = threads.submit(engine.feed, http, run_id)
        source = threads.submit(http.get, f"/runs/{run_id}/events", headers={"Accept": engine.SSE})
        engine.wait_for_event(http, run_id, engine.is_type("run.started"))
        gate.touch()
        uncut = live.result()
    events: list[Any] = [orjson.loads(line) for line in uncut]
    assert engine.sse_lines(source.result().content) == uncut
    assert engine.sse_lines(http.get(f"/runs/{run_id}/events", headers={"Accept": engine.SSE}).content) == uncut
    assert engine.feed(http, run_id) == uncut
    page = http.get(f"/runs/{run_id}/events", params={"limit": 1000}).content
    assert page[page.index(b"[") + 1 : page.rindex(b"]")] == b",".join(uncut)

    text = b"".join(line + b"\n" for line in uncut)
    file = service.data / "runs" / engine.WORKSPACE / run_id / "events.ndjson"
    engine.eventually(lambda: file.exists() and file.stat().st_size >= len(text), "the projector writes the log file")
    assert file.read_bytes() == text
    assert http.get(f"/runs/{run_id}/logfile").content == text
    export = [sys.executable, "-m", "service.cli", "log", "export", "--run", run_id]
    assert subprocess.run(export, env=service.env, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout == text

    types = [event["type"] for event in events]
    assert types.count("run.completed") == types.count("run.created") == 1
    assert types[-1] == "run.completed"
    assert {t for t in types if t.startswith("engine.")} == {"engine.run.completed", "engine.x", "engine.big"}
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len(text.decode().splitlines()) == len(uncut), "a line reader splits within a line"
    run = engine.told(http.get(f"/runs/{run_id}"))
    assert (run["status"], run["summary"], run["lines"]) == (
        "succeeded",
        "done",
        types.count("run.log") + types.count("engine.x") + 2,
    )
    said = [event["message"] for event in events if event["type"] == "run.log" and "part" not in event]
    assert said[0] == "b"
    assert [event["overwritten"] for event in events if event.get("message") in ["b", "100%"]] == [1, 3]
    assert said[-1] == "no newline at the end"
    assert '{"event":"run.completed","status":"succeeded"}' in said
    parts = [event["message"] for event in events if "part" in event]
    assert "".join(parts[:4]) == "x" * 200_000


def test_a_line_of_ten_megabytes(http: httpx.Client) -> None:
    """It comes in parts, whole."""
    run, events = engine.run(http, engine.actor(http), "write(bytes(range(32, 127)) * 105_263 + b'.\\n')")
    assert (run["status"], run["stop_reason"]) == ("succeeded", "completed")
    parts = [event for event in events if event["type"] == "run.log"]
    told = "".join(part["message"] for part in parts)
    assert told == bytes(range(32, 127)).decode() * 105_263 + ".", len(told)
    assert [part["part"] for part in parts] == list(range(1, 154))
