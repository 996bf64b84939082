"""Feeds over HTTP: the same lines in every form, whole again wherever they were cut, whatever an engine writes."""

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from itertools import product

import httpx
import orjson
import pytest

from service.client import Consumer
from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")

TALKATIVE = """
import json, sys, time
for number in range(12):
    print("line", number, "Adélie" * (number % 3))
    print(json.dumps({"event": "engine.step", "message": f"step {number}", "data": {"n": number}}), file=sys.stderr)
    time.sleep(0.002)
"""


@dataclass(frozen=True)
class Story:
    """A run that has ended, with its build: the lines of its feed, uncut, and their ids."""

    run_id: str
    lines: list[bytes]
    ids: list[int]

    @property
    def path(self) -> str:
        return f"/runs/{self.run_id}/events"

    def after(self, cursor: int) -> list[bytes]:
        return [line for line, id_ in zip(self.lines, self.ids, strict=True) if id_ > cursor]


@pytest.fixture(scope="module")
def story(http: httpx.Client) -> Story:
    run_id = engine.start(http, engine.register(http, engine.package("talkative", TALKATIVE))["id"])["id"]
    lines = engine.feed(http, run_id)
    assert len(lines) > 45
    assert {orjson.loads(line)["object"] for line in lines} == {"ade.run.event", "ade.build.event"}
    return Story(run_id, lines, [orjson.loads(line)["id"] for line in lines])


@contextmanager
def raw_connection(service: Service) -> Iterator[HTTPConnection]:
    """A connection that takes in no more than it is asked for."""
    address = httpx.URL(service.url)
    connection = HTTPConnection(address.host, address.port, timeout=engine.PATIENCE_S)
    connection.sock = socket.socket()
    connection.sock.settimeout(engine.PATIENCE_S)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sock.connect((address.host, address.port))
    try:
        yield connection
    finally:
        connection.close()


def raw_stream(connection: HTTPConnection, path: str) -> HTTPResponse:
    connection.request("GET", f"/api/v1{path}", headers={"Accept": engine.NDJSON})
    return connection.getresponse()


# Cut and resumed: invariant I3


def test_ndjson_resumes_at_every_cursor(http: httpx.Client, story: Story) -> None:
    """One real request after each event, and after ids between them: the rest of the lines, not one more or less."""
    for cursor in range(story.ids[0] - 1, story.ids[-1] + 1):
        assert engine.feed(http, story.run_id, cursor) == story.after(cursor)


def test_sse_resumes_at_every_cursor(http: httpx.Client, story: Story) -> None:
    """By Last-Event-ID, as a browser does; after the end it is told to stop, with 204."""
    for cursor in range(story.ids[0] - 1, story.ids[-1]):
        answer = http.get(story.path, headers={"Accept": engine.SSE, "Last-Event-ID": str(cursor)})
        assert engine.sse_lines(answer.content) == story.after(cursor)
    for query in ("", "&stream=true"):
        ended = http.get(f"{story.path}?after_id={story.ids[-1]}{query}", headers={"Accept": engine.SSE})
        assert (ended.status_code, ended.content) == (204, b"")


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_pages_resume_at_every_cursor(http: httpx.Client, story: Story, limit: int) -> None:
    """Pages of any size, each from the cursor of the one before, are the stream; the last one is empty."""
    cursor, found = 0, []
    while True:
        answer = http.get(story.path, params={"after_id": cursor, "limit": limit})
        page = engine.told(answer)
        assert page["object"] == "list"
        assert len(page["data"]) <= limit
        if not page["data"]:
            break
        start = answer.content.index(b"[") + 1
        found.append(answer.content[start : answer.content.rindex(b"]")])
        cursor = page["next_after_id"]
    assert b",".join(found) == b",".join(story.lines)
    assert cursor == page["next_after_id"] == story.ids[-1]


def test_a_follower_makes_one_history_of_any_cut(story: Story) -> None:
    """The NDJSON stream cut after every byte: the client throws the torn line away and asks for what follows."""
    text = b"".join(line + b"\n" for line in story.lines)
    for cut in range(len(text)):
        consumer = Consumer(story.run_id)
        found = [event.line for event in consumer.take(text[:cut])]
        cursor = consumer.request()["params"]["after_id"]  # of a new connection, which begins here
        assert cursor == (story.ids[len(found) - 1] if found else 0)
        resumed = b"".join(line + b"\n" for line in story.after(cursor)[:2])  # the whole rest: in the tests above
        found += [event.line for event in consumer.take(resumed)]
        assert found == story.lines[: len(found)]
        assert consumer.ended == (len(found) == len(story.lines))


def test_an_event_source_makes_one_history_of_any_cut(http: httpx.Client, story: Story) -> None:
    """The SSE stream cut after every byte: the id to resume from is that of the last event that was dispatched."""
    text = http.get(story.path, headers={"Accept": engine.SSE}).content
    *frames, rest = text.split(b"\n\n")
    assert rest == b""
    before: list[bytes] = []
    for frame in (piece + b"\n\n" for piece in frames):
        for cut in range(len(frame)):
            events, last = engine.sse(frame[:cut])
            assert (events, last) == ([], "")
        before += engine.sse_lines(frame)
    assert before == story.lines


def test_connections_that_break_add_up_to_the_uncut_stream(service: Service, story: Story) -> None:
    """Each is hung up on after some bytes, mostly within a line."""
    consumer, found = Consumer(story.run_id), list[bytes]()
    while not consumer.ended:
        with raw_connection(service) as connection:
            after = consumer.request()["params"]["after_id"]
            answer = raw_stream(connection, f"{story.path}?stream=true&after_id={after}")
            found += [event.line for event in consumer.take(answer.read(900))]
    assert found == story.lines


# The forms


def test_sse_names_its_events_and_gives_the_id_last(http: httpx.Client, story: Story) -> None:
    """retry, the cursor and a comment first; then event, data, id, in this order; names=off leaves the name out."""
    text = http.get(story.path, headers={"Accept": engine.SSE}).text
    opening, *frames = text.removesuffix("\n\n").split("\n\n")
    assert re.fullmatch(r"retry: \d+\nid: 0\n: .*", opening)
    for frame, line, id_ in zip(frames, story.lines, story.ids, strict=True):
        assert frame == f"event: {orjson.loads(line)['type']}\ndata: {line.decode()}\nid: {id_}"
    unnamed = http.get(story.path, params={"names": "off"}, headers={"Accept": engine.SSE}).content
    assert {kind for kind, _, _ in engine.sse(unnamed)[0]} == {"message"}
    assert engine.sse_lines(unnamed) == story.lines


def test_last_event_id_wins_over_after_id(http: httpx.Client, story: Story) -> None:
    """A browser reconnects with the URL that it began with; the header says how far it came. Only SSE has it."""
    params = {"after_id": story.ids[3]}
    headers = {"Accept": engine.SSE, "Last-Event-ID": str(story.ids[20])}
    assert engine.sse_lines(http.get(story.path, params=params, headers=headers).content) == story.lines[21:]
    headers["Accept"] = engine.NDJSON
    assert http.get(story.path, params=params, headers=headers).content.splitlines() == story.lines[4:]


@pytest.mark.parametrize(
    ("accept", "query", "form"),
    [
        ("*/*", "", "application/json"),
        ("application/json", "", "application/json"),
        ("application/json", "stream=false", "application/json"),
        ("application/json", "stream=true", engine.SSE),
        ("*/*", "stream=1", engine.SSE),
        (engine.SSE, "", engine.SSE),
        (engine.NDJSON, "", engine.NDJSON),
        ("application/jsonl", "stream=true", "application/jsonl"),
        (f"text/html, {engine.NDJSON};q=0.9", "stream=true", engine.NDJSON),
    ],
)
def test_accept_chooses_the_form_then_stream(
    http: httpx.Client, story: Story, accept: str, query: str, form: str
) -> None:
    """With the headers of a stream: no store, no transform, no buffering, the log's id, no compression."""
    headers = {"Accept": accept, "Accept-Encoding": "gzip"}
    answer = http.get(f"{story.path}?{query}", headers=headers)
    assert answer.headers["content-type"].split(";")[0] == form
    assert answer.headers["ade-log-id"] == engine.told(http.get("/events/head"))["log_id"]
    assert "no-store" in answer.headers["cache-control"]
    assert "content-encoding" not in answer.headers
    if form != "application/json":
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"


def test_ndjson_that_does_not_follow_ends_at_the_head(service: Service, http: httpx.Client) -> None:
    """While the run goes on; with stream=true it stays open until the terminal event."""
    with engine.gate(service) as gate:
        run_id = engine.start(http, engine.actor(http), f"print('up'); wait_for({str(gate)!r}); print('down')")["id"]
        engine.wait_for_event(http, run_id, engine.says("up"))
        short = http.get(f"/runs/{run_id}/events", headers={"Accept": engine.NDJSON}).content.splitlines()
        assert orjson.loads(short[-1])["message"] == "up"
        with engine.following(http, run_id) as response:
            gate.touch()
            assert list(engine.whole_lines(response))[: len(short)] == short
    assert len(engine.feed(http, run_id)) == len(short) + 2


def test_a_page_can_wait_until_something_is_there(service: Service, http: httpx.Client) -> None:
    """`wait` holds an empty page back: until the next event, or until its time is over; a full one comes at once."""
    with engine.gate(service) as gate, ThreadPoolExecutor() as threads:
        run_id = engine.start(http, engine.actor(http), f"print('up'); wait_for({str(gate)!r}); print('down')")["id"]
        cursor = engine.wait_for_event(http, run_id, engine.says("up"))["id"]
        asked = time.monotonic()
        page = engine.told(http.get(f"/runs/{run_id}/events", params={"after_id": cursor, "wait": 1}))
        assert (page["data"], page["next_after_id"]) == ([], cursor)
        assert time.monotonic() - asked >= 1
        waiting = threads.submit(http.get, f"/runs/{run_id}/events", params={"after_id": cursor, "wait": 30})
        gate.touch()
        assert engine.told(waiting.result())["data"][0]["message"] == "down"
        assert time.monotonic() - asked < 20
    engine.feed(http, run_id)
    asked = time.monotonic()
    assert engine.told(http.get(f"/runs/{run_id}/events", params={"wait": 30}))["data"]
    ended = engine.told(http.get(f"/runs/{run_id}"))["last_event_id"]
    assert engine.told(http.get(f"/runs/{run_id}/events", params={"wait": 30, "after_id": ended}))["data"] == []
    assert time.monotonic() - asked < 20, "an ended feed has nothing to wait for"


# Live


def test_viewers_that_come_while_it_flows_see_all_of_the_rest(service: Service, http: httpx.Client) -> None:
    """At any moment, from any cursor, by any form: each gets every line after its cursor, in order, once."""
    with engine.gate(service) as gate, ThreadPoolExecutor(30) as threads:
        script = f"while not Path({str(gate)!r}).exists(): print('tick'); time.sleep(.0005)"
        run_id = engine.start(http, engine.actor(http), script)["id"]
        engine.wait_for_event(http, run_id, engine.says("tick"))
        viewers: list[tuple[int, Future[list[bytes]]]] = []
        for part, form in [*product((0, 0.5, 1), ("ndjson", "sse", "pages"))] * 3:
            cursor = int(part * engine.told(http.get(f"/runs/{run_id}"))["last_event_id"])
            viewers.append((cursor, threads.submit(watch, http, run_id, cursor, form)))
        gate.touch()
        uncut = engine.feed(http, run_id)
        ids = [orjson.loads(line)["id"] for line in uncut]
        for cursor, seen in viewers:
            assert seen.result(engine.PATIENCE_S) == [
                line for line, id_ in zip(uncut, ids, strict=True) if id_ > cursor
            ]


def watch(http: httpx.Client, run_id: str, cursor: int, form: str) -> list[bytes]:
    """The lines of a run after a cursor, to its end, as a viewer of this form sees them."""
    if form == "ndjson":
        return engine.feed(http, run_id, cursor)
    if form == "sse":
        headers = {"Accept": engine.SSE, "Last-Event-ID": str(cursor)}
        return engine.sse_lines(http.get(f"/runs/{run_id}/events", headers=headers).content)
    found: list[bytes] = []
    while not found or b'"type":"run.completed"' not in found[-1]:
        params = {"after_id": cursor, "limit": 50, "wait": 10}
        page = http.get(f"/runs/{run_id}/events", params=params)
        found += [orjson.dumps(event) for event in engine.told(page)["data"]]
        cursor = engine.told(page)["next_after_id"]
    return found


def test_a_viewer_that_does_not_read_disturbs_nobody_and_loses_nothing(service: Service, http: httpx.Client) -> None:
    """While its socket is full the run ends and others see all of it; when it reads again it gets the same lines."""
    with engine.gate(service) as gate, raw_connection(service) as connection:
        script = f"wait_for({str(gate)!r})\nfor n in range(20000): print(n, 'z' * 400)"
        run_id = engine.start(http, engine.actor(http), script)["id"]
        answer = raw_stream(connection, f"/runs/{run_id}/events?stream=true")
        gate.touch()
        uncut = engine.feed(http, run_id)
        assert len(uncut) > 20000
        assert [line for line in answer.read().split(b"\n") if line] == uncut
