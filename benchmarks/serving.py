"""The program's own processes, started as an operator starts them, and what they cost."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

READY_S = 60.0
STOP_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process, by its id."""

    pid: int

    @property
    def rss(self) -> int:
        """Bytes of memory that it holds."""
        return self._status("VmRSS")

    @property
    def peak_rss(self) -> int:
        """The most that it held since :meth:`forget_peak`, or ever."""
        return self._status("VmHWM")

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def forget_peak(self) -> None:
        """:attr:`peak_rss` counts from here."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def child(self, name: str) -> "Process":
        """The process that ``ade serve`` keeps under this name."""
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return Process(int(pid))
        raise LookupError(f"ade serve keeps no {name}")

    def _status(self, name: str) -> int:
        for text in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if text.startswith(f"{name}:"):
                return int(text.split()[1]) * 1024
        raise LookupError(name)


@dataclass(frozen=True)
class Service(Process):
    """A process that listens: ``api``, or all of ``serve``."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1"


@contextmanager
def running(command: str, url: str, data: Path, **settings: str) -> Iterator[Service]:
    """``ade <command>`` on a database and a data folder, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    env = {**os.environ, "ADE_DATABASE_URL": url, "ADE_DATA_DIR": str(data), "ADE_PORT": str(port), **settings}
    log = data / f"{command}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "service.cli", command, "--quiet"], env=env, stderr=stderr)
    try:
        if command != "projector":  # an API alone, whose log nobody seals, is never ready: it says that it is healthy
            _wait_until(process, port, "/ready" if command == "serve" else "/health", log)
        yield Service(process.pid, port)
    finally:
        process.terminate()
        process.wait(STOP_S)


def _wait_until(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.05)
    raise TimeoutError(f"the service did not answer 200 at {path}: {log.read_text()[-1000:]}")
