"""Head and body of a request end, in size and in time, or the connection does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from uvicorn.server import ServerState

from service.api import request
from service.api.problems import HANDLERS
from service.api.request import pieces
from service.cli import bounded_head
from service.cli.bounded_head import HEAD_MAX_BYTES, BoundedHead

pytestmark = pytest.mark.anyio

PATIENCE_S = 60
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def size(asked: Request) -> PlainTextResponse:
    """Reads the whole body, then answers how long it was."""
    return PlainTextResponse(str(sum([len(piece) async for piece in pieces(asked, 10**9, "body")])))


async def unread(_asked: Request) -> PlainTextResponse:
    """Answers without a look at the body."""
    return PlainTextResponse("unread")


async def endless(_asked: Request) -> StreamingResponse:
    """Says a word, and then nothing for ever."""

    async def body() -> AsyncIterator[bytes]:
        yield b"a word"
        await anyio.sleep_forever()

    return StreamingResponse(body())


app = Starlette(
    routes=[
        Route("/", size, methods=["GET", "POST"]),
        Route("/unread", unread, methods=["POST"]),
        Route("/endless", endless),
    ],
    exception_handlers=dict(HANDLERS),
)


@asynccontextmanager
async def connected() -> AsyncIterator[anyio.abc.SocketStream]:
    config = uvicorn.Config(app, log_config=None, http=BoundedHead)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedHead(config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        with anyio.fail_after(PATIENCE_S):
            async with await anyio.connect_tcp(*server.sockets[0].getsockname()) as connection:
                yield connection


async def everything(connection: anyio.abc.SocketStream) -> bytes:
    return b"".join([piece async for piece in connection])


@pytest.mark.parametrize("start", [b"", GET, GET + b"\r\n" + GET])
async def test_a_head_that_does_not_end_is_given_up(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing at all, half a head, and half of the next one on the same connection. Seen to fail with uvicorn's own."""
    monkeypatch.setattr(bounded_head, "HEAD_S", 0.1)
    async with connected() as connection:
        await connection.send(start or b"\r\n")
        assert b"400 Bad Request" in await everything(connection)


@pytest.mark.parametrize("line", [b"X-A: " + b"a" * 1000 + b"\r\n", b"a" * 1000], ids=["lines", "one line"])
async def test_a_head_is_given_up_at_its_size(line: bytes) -> None:
    """Many headers, and one without an end; what comes after it is not taken. Seen to fail with uvicorn's own."""
    async with connected() as connection:
        sent = 0
        await connection.send(GET + b"X-B: ")
        async with anyio.create_task_group() as tasks:

            async def flood() -> None:
                nonlocal sent
                while True:
                    await connection.send(line)
                    sent += len(line)

            tasks.start_soon(flood)
            answer = await everything(connection)
            tasks.cancel_scope.cancel()
        assert b"400 Bad Request" in answer
        assert sent >= HEAD_MAX_BYTES - 2000


async def test_a_body_has_its_own_time_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow one, larger than any head, in the same packets as its head: it is answered."""
    monkeypatch.setattr(bounded_head, "HEAD_S", 0.1)
    body = b"b" * (HEAD_MAX_BYTES * 2)
    async with connected() as connection:
        await connection.send(GET + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (len(body) + 1) + body)
        await anyio.sleep(0.3)  # longer than a head may take
        await connection.send(b"b")
        assert (await everything(connection)).endswith(b"%d" % (len(body) + 1))


POST = b"POST %b HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n"


@pytest.mark.parametrize("size", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize(
    ("burst", "drip"),
    [(0, b""), (0, b"1\r\na\r\n"), (0xFFFF, b"")],
    ids=["silent", "dripping", "silent after much"],
)
async def test_a_body_that_comes_too_slowly_is_408(
    size: bytes, burst: int, drip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a body, and a few bytes now and then: a problem document, and the end of the connection. Seen to wait
    for as long as the client likes without a limit, and for as long as it drips with a limit for each piece."""
    monkeypatch.setattr(request, "BODY_S", 0.2)
    async with connected() as connection, anyio.create_task_group() as tasks:
        await connection.send(POST % (b"/", size))
        if burst:
            await connection.send(b"%x\r\n%b\r\n" % (burst, b"a" * burst))

        async def send() -> None:
            while True:
                await anyio.sleep(0.05)  # a client that is slow
                await connection.send(drip)

        if drip:
            tasks.start_soon(send)
        answer = await everything(connection)
        tasks.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/too-slow" in answer


async def test_a_large_body_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes longer than any body may, at a rate that is quick enough."""
    monkeypatch.setattr(request, "BODY_S", 0.2)
    async with connected() as connection:
        await connection.send(POST % (b"/", b"Connection: close\r\nContent-Length: 4096"))
        for _ in range(4):
            await connection.send(b"a" * 1024)
            await anyio.sleep(0.1)  # a client that is slow
        assert (await everything(connection)).endswith(b"\r\n\r\n4096")


async def test_a_body_that_nobody_reads_ends_or_the_connection_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was answered, and goes on without end. Seen to go on with uvicorn's own."""
    monkeypatch.setattr(bounded_head, "UNREAD_S", 0.2)
    async with connected() as connection:
        await connection.send(POST % (b"/unread", b"Transfer-Encoding: chunked"))

        async def drip() -> None:
            while True:
                await connection.send(b"1\r\na\r\n")
                await anyio.sleep(0.01)  # a client that is slow

        with pytest.raises(anyio.BrokenResourceError):
            await drip()


async def test_a_body_that_nobody_reads_and_that_ends_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection serves the next request, also later."""
    monkeypatch.setattr(bounded_head, "UNREAD_S", 0.2)
    async with connected() as connection:
        await connection.send(POST % (b"/unread", b"Content-Length: 2"))
        answer = await connection.receive()
        await connection.send(b"{}")
        await anyio.sleep(0.3)  # longer than a body may be unread
        await connection.send(POST % (b"/", b"Connection: close\r\nContent-Length: 0"))
        assert answer.endswith(b"unread")
        assert (await everything(connection)).endswith(b"\r\n\r\n0")


async def test_an_answer_reaches_a_client_that_goes_on_sending() -> None:
    """Though it is the last one of its connection. Seen to be lost in a reset when it was closed at once."""
    async with connected() as connection:
        await connection.send(POST % (b"/unread", b"Connection: close\r\nTransfer-Encoding: chunked"))
        for _ in range(20):
            await connection.send(b"1\r\na\r\n")
            await anyio.sleep(0.01)  # a client that is slow
        assert (await everything(connection)).endswith(b"unread")


@pytest.mark.parametrize("more", [b"\0\0\0", GET], ids=["no request", "half a head"])
async def test_no_answer_begins_in_the_middle_of_another(more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent behind a request whose answer goes on ends the connection, and says nothing in it. Seen to put a
    400 among the chunks of a stream."""
    monkeypatch.setattr(bounded_head, "HEAD_S", 0.1)
    async with connected() as connection:
        await connection.send(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"a word" not in answer:
            answer += await connection.receive()
        await connection.send(more)
        assert await everything(connection) == b""
