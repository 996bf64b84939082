"""The HTTP server of an API process: uvicorn, on a socket of its own or one that it was handed, and how it stops."""

import resource
import socket
import time
from collections.abc import Callable
from types import FrameType

import anyio
import uvicorn
from starlette.applications import Starlette

from service.api.streams import SEND_TIMEOUT_S
from service.cli.bounded_head import BoundedHead

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than a proxy keeps an idle connection (nginx: 60 s): who closes second never closes under a request."""
DRAIN_IDLE_S = 2.0
"""A connection on which nobody has asked for this long is closed, when the server stops."""


def bind(host: str, port: int, count: int) -> list[socket.socket]:
    """So many sockets on one address, one for each API process; the kernel divides the connections evenly among them.

    Whoever keeps them open keeps the connections that wait in them, whatever becomes of the processes. Port 0 takes a
    free one. Raises OSError where the address is not free.
    """
    alone = _bound(host, port, shared=False)
    if count == 1:
        return [alone]
    with alone:  # it was free: two services of one user would share a port without a word
        port = alone.getsockname()[1]
    return [_bound(host, port, shared=True) for _ in range(count)]


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        # uvicorn closes a connection when its last bytes are taken. Of a client that takes nothing the kernel ends it.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_TIMEOUT_S * 1000))
        made.bind((host, port))
    except BaseException:
        made.close()
        raise
    return made


class Server(uvicorn.Server):
    """Serves an app until SIGTERM. Then it fails no request, and ends streams between two events."""

    def __init__(self, app: Starlette, drain_s: float, on_start: Callable[[], None]) -> None:
        """``drain_s``: what requests may take that have begun when it is told to stop."""
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHead,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(int(drain_s), 1),
            )
        )
        self._on_start = on_start

    def serve_on(self, listening: socket.socket) -> None:
        """Blocks."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor a viewer; the usual 1,024 are too few
        self.run(sockets=[listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app = self.config.app
        if isinstance(app, Starlette) and hasattr(app.state, "deployment"):
            app.state.deployment.hub.drain()  # uvicorn by itself would wait for streams without end
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts nothing more, and lets clients go with an answer.

        uvicorn closes idle connections at once, also that on which a request is just under way. So each client is told
        with its next answer to come back on another connection, where another process serves it.
        """
        for server in self.servers:
            server.close()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        deadline = time.monotonic() + DRAIN_IDLE_S
        while self.server_state.connections and time.monotonic() < deadline:  # noqa: ASYNC110 - uvicorn does not tell
            await anyio.sleep(0.02)
        await super().shutdown(sockets)
