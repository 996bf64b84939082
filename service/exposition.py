"""How the processes of one machine show their metrics together: each offers its own at a socket in one folder.

Each process has a name there, ``worker-1``, and holds a lock on it: whoever dies, by whatever signal, sets it free, and
the next process takes the name and counts from zero, which Prometheus expects of a process that was started again. What
a process counts is in its own memory: no file is shared that a killed one could leave half written, or that a full disk
could refuse. Every sample has the label ``process``, so that nobody's numbers are added to another's.
"""

import errno
import fcntl
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import anyio.abc
from anyio.abc import TaskStatus
from prometheus_client import Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily

from service.metrics import REGISTRY

logger = logging.getLogger("ade.metrics")

ANSWER_TIMEOUT_S = 2.0
"""A process that does not answer for so long is shown as down."""
PROCESSES_MAX = 100
"""Of one kind, on one machine."""


@contextmanager
def shared_folder(given: Path | None) -> Iterator[Path]:
    """The folder that the processes share: the one of the settings, or one for as long as the block lasts."""
    if given is not None:
        given.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="ade-metrics-", ignore_cleanup_errors=True) as made:
        yield Path(made)  # a short path: that of a socket has 107 bytes


def connection_name(kind: str) -> str:
    """What this process is called in PostgreSQL's list of connections, so that those of all machines can be counted."""
    return f"ade {kind} {os.getpid()} {socket.gethostname()}"[:63]


class Exposition:
    """The metrics of this process, offered to the others. ``kind`` is what it is: api, worker, projector."""

    def __init__(self, kind: str, folder: Path | None) -> None:
        self.name = kind
        self._kind, self._folder = kind, folder

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answers whoever asks, until cancelled."""
        with ExitStack() as held:
            try:
                listener = None if self._folder is None else await self._listen(held, self._folder)
            except OSError as error:  # its work is worth more than what is told of it
                listener = None
                logger.warning("the metrics of this process are not shown: %s", error)
            task_status.started()
            if listener is not None:
                async with listener:
                    await listener.serve(self._answer)

    async def _listen(self, held: ExitStack, folder: Path) -> anyio.abc.SocketListener:
        self.name = held.enter_context(_own_name(self._kind, folder))
        path = folder / f"{self.name}.sock"
        path.unlink(missing_ok=True)  # of the one who had the name before
        return await anyio.create_unix_listener(path, mode=0o600)

    async def _answer(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                await stream.send(self.own())
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # it does not want to know any more

    def own(self) -> bytes:
        """The metrics of this process, as text."""
        return text_of(REGISTRY.collect, process=self.name)

    async def all(self) -> list[bytes]:
        """The metrics of every process that shares the folder, this one's first."""
        found = [self.own()]
        up = GaugeMetricFamily("ade_process_up", "Whether a process of this machine answers.", labels=["process"])
        up.add_metric([self.name], 1)

        async def ask(path: Path) -> None:
            answer = await _ask(path)
            up.add_metric([path.stem], 1 if answer else 0)
            found.append(answer)

        async with anyio.create_task_group() as tasks:
            for path in sorted(self._folder.glob("*.sock")) if self._folder else ():
                if path.stem != self.name:
                    tasks.start_soon(ask, path)
        return [*found, text_of(lambda: [up])]


async def _ask(path: Path) -> bytes:
    """What a process says; nothing where it does not."""
    said = b""
    with anyio.move_on_after(ANSWER_TIMEOUT_S) as waiting:
        try:
            async with await anyio.connect_unix(path) as stream:
                async for piece in stream:
                    said += piece
        except OSError:
            return b""
    return b"" if waiting.cancelled_caught else said


@contextmanager
def _own_name(kind: str, folder: Path) -> Iterator[str]:
    """The first free name of this kind, held until the block ends or the process is gone."""
    for number in range(1, PROCESSES_MAX + 1):
        descriptor = os.open(folder / f"{kind}-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise
            continue
        try:
            yield f"{kind}-{number}"
        finally:
            os.close(descriptor)
        return
    raise OSError(errno.EMFILE, f"{PROCESSES_MAX} processes share {folder} already")


class _Labelled:
    """Metrics with one more label on each sample."""

    def __init__(self, collect: Callable[[], Iterable[Metric]], labels: dict[str, str]) -> None:
        self._collect, self._labels = collect, labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._collect():
            made = Metric(metric.name, metric.documentation, metric.type)
            made.samples = [sample._replace(labels={**self._labels, **sample.labels}) for sample in metric.samples]
            yield made


def text_of(collect: Callable[[], Iterable[Metric]], **labels: str) -> bytes:
    """Metrics in Prometheus's text format, with these labels on each sample."""
    return generate_latest(_Labelled(collect, labels))


def merged(texts: list[bytes]) -> bytes:
    """Several texts as one, in which each metric has its heading once."""
    samples: dict[bytes, list[bytes]] = {}
    for text in texts:
        for piece in re.split(rb"^(?=# HELP )", text, flags=re.MULTILINE)[1:]:
            help_, type_, body = (piece + b"\n").split(b"\n", 2)
            samples.setdefault(help_ + b"\n" + type_ + b"\n", []).append(body.rstrip(b"\n"))
    return b"".join(head + b"".join(body + b"\n" for body in bodies if body) for head, bodies in samples.items())
