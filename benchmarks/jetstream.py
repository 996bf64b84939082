"""NATS JetStream with file storage, from PyPI: a server of its own on loopback, for as long as it is measured.

By default it answers before anything is on the disk (it syncs every two minutes); with ``sync_interval: always`` an ack
means what a commit means. Both are measured, with its own client for Python, and with the bare protocol, where the
limit is the server and not that client.
"""

import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from benchmarks.writing import line

IN_FLIGHT = 4_000
START_S = 20.0


@dataclass(frozen=True)
class Rates:
    """Messages per second, each acknowledged: ``synced`` when it was on the disk, ``buffered`` before that."""

    synced_client: float
    synced_bare: float
    buffered_client: float
    buffered_bare: float

    @property
    def synced(self) -> float:
        """The best of those that promise what an append promises."""
        return max(self.synced_client, self.synced_bare)

    def by_name(self) -> dict[str, float]:
        """The rates, in words."""
        return {
            "acks after fsync (`sync_interval: always`), nats-py": self.synced_client,
            "acks after fsync, bare protocol": self.synced_bare,
            "acks before fsync (its default), nats-py": self.buffered_client,
            "acks before fsync, bare protocol": self.buffered_bare,
        }


def measure(scale: float) -> Rates:
    """Publishes with up to 4,000 messages in flight; ImportError or FileNotFoundError where it is not installed."""
    with _server("always") as port:
        synced = (anyio.run(_by_client, port, int(20_000 * scale)), _bare(port, int(20_000 * scale)))
    with _server('"2m"') as port:
        buffered = (anyio.run(_by_client, port, int(50_000 * scale)), _bare(port, int(500_000 * scale)))
    return Rates(*synced, *buffered)


@contextmanager
def _server(sync: str) -> Iterator[int]:
    """A server on a port of its own; its port."""
    program = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    if program is None:
        raise FileNotFoundError(f"no nats-server beside {sys.executable}")
    with TemporaryDirectory(prefix="ade-nats-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        settings = Path(folder) / "nats.conf"
        settings.write_text(
            f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{folder}/js", sync_interval: {sync} }}\n'
        )
        with subprocess.Popen([program, "-c", settings, "-l", f"{folder}/log"]) as server:
            try:
                _wait_for(port)
                yield port
            finally:
                server.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


async def _by_client(port: int, count: int) -> float:
    import nats
    from nats.js.api import StorageType, StreamConfig

    client = await nats.connect(f"nats://127.0.0.1:{port}")
    stream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    await stream.add_stream(StreamConfig(name="bench", subjects=["bench.>"], storage=StorageType.FILE))
    data = line(0)
    started = time.perf_counter()
    acks = [await stream.publish_async("bench.run", data, wait_stall=60) for _ in range(count)]
    await stream.publish_async_completed()
    took_s = time.perf_counter() - started
    info = await stream.stream_info("bench")
    if info.state.messages != count or any(ack.exception() for ack in acks):
        raise RuntimeError(f"JetStream kept {info.state.messages} of {count} messages")
    await client.close()
    return count / took_s


def _bare(port: int, count: int) -> float:
    """Publishes into the stream that the client made, and counts the acks."""
    data, block = line(0), 500
    publish = b"PUB bench.run _INBOX.bench %d\r\n%b\r\n" % (len(data), data) * block
    count -= count % block
    with socket.create_connection(("127.0.0.1", port), timeout=60) as server:
        server.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB _INBOX.bench 1\r\n')
        started, sent, acks, rest = time.perf_counter(), 0, 0, b""
        while acks < count:
            while sent < count and sent - acks <= IN_FLIGHT - block:
                server.sendall(publish)
                sent += block
            *whole, rest = (rest + server.recv(1 << 20)).split(b"\r\n")
            acks += sum(b'"seq":' in answer for answer in whole)
            if b"PING" in whole:
                server.sendall(b"PONG\r\n")
        return count / (time.perf_counter() - started)
