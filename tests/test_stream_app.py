"""The ASGI app of a stream, over a real log: keep-alives, hang-ups, clients that stop reading, and the drain."""

import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import orjson
import pytest
import uvicorn

from eventstore import Feed, Log
from eventstore.errors import Unavailable
from service.api import streams
from service.api.streams import NDJSON_FRAME, SSE_FRAME, Form, Stream
from service.commands import run_completed
from service.hub import Frame, Hub
from service.keys import ANYBODY
from tests.conftest import Store, running_hub
from tests.histories import line, run_created, run_started, tell

pytestmark = pytest.mark.anyio

RUN = "run_1"
FEED = Feed(RUN, "build_1", 1, None)
FORMS = pytest.mark.parametrize(("form", "frame"), [(Form.NDJSON, NDJSON_FRAME), (Form.SSE, SSE_FRAME)])
PATIENCE_S = 60


class Connection:
    """A connection as an ASGI server hands it to an app, and what its client does."""

    def __init__(self) -> None:
        self.body = b""
        self.ended = False
        self.hung_up = anyio.Event()
        self.reads = anyio.Event()
        self.reads.set()
        self._arrived = anyio.Event()

    async def receive(self) -> Any:
        if not self.hung_up.is_set():  # what has happened already is said at once, as servers do
            await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.body += message.get("body", b"")
        self.ended = not message.get("more_body", True)
        self._arrived.set()

    async def until(self, wanted: bytes, count: int = 1) -> None:
        """Until these bytes have come so often."""
        while self.body.count(wanted) < count:
            self._arrived = anyio.Event()
            await self._arrived.wait()


@pytest.fixture
async def hub(store: Store) -> AsyncIterator[Hub]:
    """A hub over a log in which a run has started."""
    await tell(store, RUN, run_created(), run_started())
    async with running_hub(store) as hub:
        yield hub


def stream(hub: Hub, form: Form, frame: Frame, **options: Any) -> Stream:
    return Stream(hub, FEED, 0, form, frame, "log_1", ANYBODY, **options)


@FORMS
async def test_a_silent_feed_is_kept_alive(
    store: Store, hub: Hub, form: Form, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty line, or a comment, again and again; then the next event, and after the terminal one the end."""
    monkeypatch.setattr(streams, "LOOK_S", 0.01)
    monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.02)
    connection = Connection()
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream(hub, form, frame).serve, connection.receive, connection.send)
            await connection.until(b"\n\n" if form is Form.NDJSON else b": alive\n\n", 3)
            await tell(store, RUN, line(RUN, "at last"), run_completed("succeeded", "completed").event())
    assert connection.ended
    assert connection.body.index(b"at last") < connection.body.index(b"run.completed")
    lines = [piece.removeprefix(b"data: ") for piece in connection.body.split(b"\n") if b'{"id"' in piece]
    assert [orjson.loads(found)["seq"] for found in lines] == [1, 2, 3, 4]


@FORMS
async def test_a_client_that_hangs_up_leaves_nothing_behind(
    hub: Hub, form: Form, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app returns at its next look, the hub watches nothing for it, and what was to be told of it is told, once."""
    monkeypatch.setattr(streams, "LOOK_S", 0.01)
    connection, told = Connection(), 0

    async def on_hang_up() -> None:
        nonlocal told
        told += 1

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            app = stream(hub, form, frame, on_hang_up=on_hang_up)
            tasks.start_soon(app.serve, connection.receive, connection.send)
            await connection.until(b"run.started")
            assert len(hub._feeds.rings) == 1
            connection.hung_up.set()
    assert (hub._feeds.rings, told, connection.ended) == ({}, 1, False)


async def test_a_client_that_stops_reading_is_let_go(store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel, when it has taken nothing for the send timeout: then its connection is gone, as by a hang-up."""
    monkeypatch.setattr(streams, "LOOK_S", 0.01)
    gone = anyio.Event()

    async def on_hang_up() -> None:
        gone.set()

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await stream(hub, Form.NDJSON, NDJSON_FRAME, on_hang_up=on_hang_up).serve(receive, send)

    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client, anyio.fail_after(PATIENCE_S):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)  # as `ade serve` does it
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listening])
            await tell(store, RUN, *[line(RUN, "z" * 2**16)] * 64)
            client.connect(listening.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            await gone.wait()
            server.should_exit = True
    assert hub._feeds.rings == {}


@FORMS
async def test_a_drain_ends_a_stream_between_two_events(store: Store, hub: Hub, form: Form, frame: Frame) -> None:
    """The response ends whole, an EventSource is told when to come back, and nobody was canceled by a hang-up."""
    connection = Connection()

    async def on_hang_up() -> None:
        pytest.fail("a server that stops is no client that hangs up")

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            app = stream(hub, form, frame, on_hang_up=on_hang_up)
            tasks.start_soon(app.serve, connection.receive, connection.send)
            await connection.until(b"run.started")
            hub.drain()
    assert connection.ended
    assert connection.body.endswith(b"\n")
    if form is Form.SSE:
        retry = re.search(rb"\n\nretry: (\d+)\n\n\Z", connection.body)
        assert retry is not None
        assert 1000 <= int(retry[1]) <= 5000
    late = Connection()
    with anyio.fail_after(PATIENCE_S):
        await stream(hub, form, frame).serve(late.receive, late.send)
    assert late.ended
    assert b"run.started" in late.body, "who comes while the server stops gets what there is"


class Away(Log):
    """A log whose database cannot be reached at the first reads."""

    times = 2

    async def read_feed(self, *given: Any, **options: Any) -> Any:
        if self.times:
            self.times -= 1
            raise Unavailable(reason="it starts again")
        return await super().read_feed(*given, **options)


async def test_a_database_that_is_away_ends_no_answer(store: Store, hub: Hub) -> None:
    """Also one that does not follow: it ends at the head, not where the database went."""
    hub.log = Away(store.database)
    connection = Connection()
    with anyio.fail_after(PATIENCE_S):
        await stream(hub, Form.NDJSON, NDJSON_FRAME, follow=False).serve(connection.receive, connection.send)
    assert connection.ended
    assert connection.body.count(b"run.started") == 1


@FORMS
async def test_a_head_has_the_headers_and_no_body(hub: Hub, form: Form, frame: Frame) -> None:
    """It ends, where the stream itself would go on."""
    connection = Connection()
    with anyio.fail_after(PATIENCE_S):
        await stream(hub, form, frame)({"method": "HEAD"}, connection.receive, connection.send)
    assert (connection.ended, connection.body) == (True, b"")


@FORMS
async def test_nothing_follows_the_terminal_event(store: Store, hub: Hub, form: Form, frame: Frame) -> None:
    """Though its build goes on: the feed ends at run.completed, also when it was opened before that."""
    await tell(store, RUN, run_completed("canceled", "canceled").event())
    await tell(store, "build_1", line("build_1", "later"))
    connection = Connection()
    with anyio.fail_after(PATIENCE_S):
        await stream(hub, form, frame).serve(connection.receive, connection.send)
    assert connection.ended
    assert b"run.completed" in connection.body
    assert b"later" not in connection.body
