"""Clients that we did not write, behind a proxy that cuts their connections: what they collect is the uncut stream.

They resume by their own means: httpx-sse and curl as their users do it, the npm package `eventsource` all by itself.
"""

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import httpx_sse
import orjson
import pytest

from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")

NODE = Path(sys.prefix) / "bin" / "node"
EVENT_SOURCE = Path(sys.prefix) / "node" / "node_modules" / "eventsource" / "dist" / "index.js"
SCRIPT = """
import json, sys, time
for number in range(60):
    print("line", number, "Adélie \\u2028" * (number % 4))
    print(json.dumps({"event": "engine.step", "message": f"step {number}"}), file=sys.stderr)
    time.sleep(0.004)  # an engine that takes its time, so that it is followed while it writes
"""
CUT_BYTES = 3_000
"""No answer gets further; most are cut earlier, at any byte."""
IDLE_S = 0.3
"""A connection on which nothing comes is cut, too, within this time."""
FIRST_BYTES = 700
"""Of the very first connection: before `retry` has come, a browser waits three seconds."""


@dataclass
class Proxy:
    """Between a client and the service; each connection is cut at a byte that chance picks, or after a silence."""

    service: str
    chance: Random
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    requests: list[str] = field(default_factory=list)
    cuts: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/api/v1"

    def run(self) -> None:
        with ThreadPoolExecutor(8) as threads, suppress(OSError):  # the listener is closed when all is over
            while True:
                client, _ = self.listener.accept()
                most = self.chance.randrange(1, CUT_BYTES) if self.requests else FIRST_BYTES
                silence = self.chance.uniform(IDLE_S / 10, IDLE_S)
                threads.submit(self.relay, client, most, silence, rude=self.chance.random() < 0.5)

    def relay(self, client: socket.socket, most: int, silence: float, *, rude: bool) -> None:
        address = httpx.URL(self.service)
        with client, socket.create_connection((address.host, address.port or 80)) as server:
            client.settimeout(engine.PATIENCE_S)
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                if not (piece := client.recv(65536)):
                    return
                request += piece
            self.requests.append(request.decode())
            server.sendall(request)
            server.settimeout(silence if len(self.requests) > 1 else engine.PATIENCE_S)
            self.forward(server, client, most)
            if rude:  # a reset, not an end
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def forward(self, server: socket.socket, client: socket.socket, most: int) -> None:
        with suppress(TimeoutError, ConnectionError):  # a silence, or a client that has what it wanted
            while most > 0:
                if not (piece := server.recv(most)):
                    return
                most -= len(piece)
                # The same length, so the bytes are counted right; a test does not wait a second after each cut.
                client.sendall(piece.replace(b"retry: 1000\n", b"retry: 0005\n"))
        self.cuts += 1


@contextmanager
def cutting(service: Service, seed: int) -> Iterator[Proxy]:
    proxy = Proxy(service.url, Random(seed))
    thread = threading.Thread(target=proxy.run)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close alone would not
        proxy.listener.close()
        thread.join(engine.PATIENCE_S)


@dataclass
class Collected:
    """What a client was given: the lines of events, and the ids of bookmarks."""

    lines: list[bytes] = field(default_factory=list)
    bookmarks: list[int] = field(default_factory=list)


Client = Callable[[str, dict[str, str], bytes], Collected]
"""Reads an address, with a query, until an event that holds these bytes has come."""


def read_by_httpx_sse(url: str, query: dict[str, str], last: bytes) -> Collected:
    """As the readme of httpx-sse shows it: reconnect with the id of whatever it handed out last, if there is one."""
    found, last_id, deadline = Collected(), "", time.monotonic() + engine.PATIENCE_S
    with httpx.Client(timeout=engine.PATIENCE_S) as client:
        while time.monotonic() < deadline:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            with (
                suppress(httpx.TransportError),
                httpx_sse.connect_sse(client, "GET", url, params=query, headers=headers) as source,
            ):
                for event in source.iter_sse():
                    last_id = event.id
                    if event.event == "bookmark":
                        found.bookmarks.append(orjson.loads(event.data)["head"])
                    elif event.data:  # a `retry` comes without
                        found.lines.append(event.data.encode())
                    if last in event.data.encode():
                        return found
    raise AssertionError("the last event did not come")


def read_by_curl(url: str, query: dict[str, str], last: bytes) -> Collected:
    """A shell script's way: whole lines of NDJSON, then once more with the id of the last one."""
    found, cursor, deadline = Collected(), query.get("after_id", "0"), time.monotonic() + engine.PATIENCE_S
    while time.monotonic() < deadline:
        address = str(httpx.URL(url, params={**query, "after_id": cursor, "stream": "true"}))
        told = subprocess.run(
            ["curl", "-sN", "-H", f"Accept: {engine.NDJSON}", address], capture_output=True, check=False
        ).stdout
        *lines, _torn = told.split(b"\n")
        for line in filter(None, lines):
            event = orjson.loads(line)
            if event["object"] == "ade.bookmark":
                found.bookmarks.append(event["id"])
            else:
                found.lines.append(line)
            cursor = str(event["id"])
            if last in line:
                return found
    raise AssertionError("the last event did not come")


def read_by_eventsource(url: str, query: dict[str, str], last: bytes, *, names: str = "message") -> Collected:
    """The npm package, which reconnects by itself; without `last` it goes on until it is told that there is no more."""
    found = Collected()
    address = str(httpx.URL(url, params={"names": "off", **query, "stream": "true"}))
    done = subprocess.run(
        [NODE, Path(__file__).parent / "event_source.mjs", EVENT_SOURCE, address, f"{names},bookmark", last.decode()],
        capture_output=True,
        check=True,
        timeout=engine.PATIENCE_S,
    )
    for event in map(orjson.loads, done.stdout.splitlines()):
        if event["type"] == "bookmark":
            found.bookmarks.append(orjson.loads(event["data"])["head"])
        else:
            found.lines.append(event["data"].encode())
            assert event["type"] in names.split(",")
            assert event["id"] == str(orjson.loads(event["data"])["id"])
    assert last or done.stderr == b"closed: 204\n"
    return found


needs_node = pytest.mark.skipif(
    not (NODE.exists() and EVENT_SOURCE.exists()),
    reason="LOUD: the npm package `eventsource` is not here; `make test` installs it",
)
CLIENTS = [
    pytest.param(read_by_httpx_sse, id="httpx-sse"),
    pytest.param(read_by_curl, id="curl"),
    pytest.param(read_by_eventsource, id="eventsource", marks=needs_node),
]


@pytest.mark.parametrize("read", CLIENTS)
def test_a_run_that_is_watched_over_cut_connections(service: Service, http: httpx.Client, read: Client) -> None:
    """From before its first line to its last event, while it writes."""
    run_id = engine.start(http, engine.register(http, engine.package("foreign", SCRIPT))["id"])["id"]
    with cutting(service, 1) as proxy:
        found = read(f"{proxy.url}/runs/{run_id}/events", {}, b'"type":"run.completed"')
    assert found.lines == engine.feed(http, run_id)
    assert found.bookmarks == []
    assert len(found.lines) > 120
    assert proxy.cuts >= 10


@needs_node
def test_an_event_source_stops_when_the_run_has_ended(service: Service, http: httpx.Client) -> None:
    """By itself: it comes back after the end, as it always does, and is told by 204 to stay away."""
    run_id = engine.start(http, engine.register(http, engine.package("foreign", SCRIPT))["id"])["id"]
    with cutting(service, 3) as proxy:
        found = read_by_eventsource(f"{proxy.url}/runs/{run_id}/events", {}, b"")
    assert found.lines == engine.feed(http, run_id)
    ids = {str(orjson.loads(line)["id"]) for line in found.lines}
    assert {last_event_id(request) for request in proxy.requests[1:]} - {""} <= ids


def last_event_id(request: str) -> str:
    """What the client said that it has."""
    for line in request.splitlines():
        if line.lower().startswith("last-event-id: "):
            return line.partition(": ")[2]
    return ""


@pytest.mark.parametrize("read", CLIENTS)
@pytest.mark.parametrize("types", ["run.*,engine.*", "run.created,run.started,run.completed"])
def test_the_filtered_log_that_is_watched_over_cut_connections(
    service: Service, http: httpx.Client, read: Client, types: str
) -> None:
    """Of a workspace, while two runs write: what passes, once; and the cursor moves by bookmarks past what does not."""
    workspace = f"foreign-{len(types)}-{read.__name__.removeprefix('read_by_').replace('_', '-')}"
    config = engine.register(http, engine.package("foreign", SCRIPT), workspace=workspace)["id"]
    head = engine.told(http.get("/events/head"))["head"]
    query = {"types": types, "workspace_id": workspace, "after_id": str(head)}
    with cutting(service, len(workspace)) as proxy, ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read, f"{proxy.url}/events", query, b'"summary":"Dry run"')
        for _ in range(2):
            engine.feed(http, engine.start(http, config)["id"])
        engine.run(http, engine.actor(http), "print('elsewhere')")  # does not pass: a bookmark leads over it
        engine.start(http, config, dry_run=True)
        found = reading.result(engine.PATIENCE_S)
    uncut = http.get("/events", params=query, headers={"Accept": engine.NDJSON}).content.splitlines()
    assert found.lines == [line for line in uncut if b'"ade.bookmark"' not in line]
    assert len(found.lines) > (240 if "engine" in types else 6)
    assert proxy.cuts >= 8
    assert found.bookmarks == sorted(set(found.bookmarks))
    assert found.bookmarks
    assert {*found.bookmarks} & {int(cursor_of(request)) for request in proxy.requests}, "no bookmark was used"


def cursor_of(request: str) -> str:
    """Where a request begins: its Last-Event-ID, else its after_id."""
    address = httpx.URL(request.split(" ", 2)[1])
    return last_event_id(request) or address.params["after_id"]
