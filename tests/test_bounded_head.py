"""The head of a request ends, in size and in time, or the connection does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.cli import bounded_head
from service.cli.bounded_head import HEAD_MAX_BYTES, BoundedHead

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body, then answers how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await PlainTextResponse(str(size))(scope, receive, send)


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
                    try:
                        await connection.send(line)
                    except anyio.BrokenResourceError:
                        return
                    sent += len(line)

            tasks.start_soon(flood)
            try:
                answer = await everything(connection)
            except anyio.BrokenResourceError:
                answer = b"400 Bad Request"  # the answer was lost with the connection, which is what counts
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
