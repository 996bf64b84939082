"""Many viewers over HTTP in one process, as cheap as Python can be: epoll, one buffer, bytes counted in C.

Every viewer counts its lines, by the brace that each line of output has once. Some of them (all, where there are few
lines) keep what they get, and it is looked at afterwards: each line exactly once and in order, by ``seq``, and how late
each was against the moment that it carries.
"""

import re
import resource
import select
import socket
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from multiprocessing.connection import Connection

from benchmarks.writing import FORK

KEPT_LINES = 300_000
"""Lines that are kept to be looked at, over all viewers."""
LEAST_KEPT = 4
WAVE = 200
"""Connections that are opened before their first lines are waited for."""
QUIET_S = 10.0
"""Viewers that have got nothing for so long will get nothing more."""
NDJSON, SSE = "application/x-ndjson", "text/event-stream"
_LINE = re.compile(rb'"seq":(\d+),[^\n]*?"message":"(\d{19})"[^\n]*\n')


@dataclass
class Seen:
    """What the viewers got. ``wrong`` says what was lost or came twice, ``late_s`` is of the kept lines, in seconds."""

    took_s: float = 0.0
    late_s: list[float] = field(default_factory=list)
    wrong: str = ""


@dataclass(slots=True)
class _Viewer:
    """A connection; ``kept`` are the pieces that it received, with their times."""

    socket: socket.socket
    lines: int = 0
    kept: list[tuple[float, bytes]] | None = None


class Viewers:
    """Readers in a process of their own."""

    def __init__(self, answers: Connection) -> None:
        self._answers = answers

    def seen(self) -> Seen:
        """Waits until every viewer has got every line, or nothing comes any more."""
        found: Seen = self._answers.recv()
        return found


@contextmanager
def watching(port: int, runs: Sequence[str], viewers: int, expected: int, accept: str = NDJSON) -> Iterator[Viewers]:
    """So many connected viewers, shared out over the runs, that each expect so many lines after ``run.created``."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_watch, args=(theirs, port, runs, viewers, expected, accept), daemon=True)
    process.start()
    theirs.close()  # so that the end of that process is the end of what it says
    try:
        ours.recv()  # all are connected
        yield Viewers(ours)
    finally:
        process.terminate()
        process.join()


def _watch(answers: Connection, port: int, runs: Sequence[str], viewers: int, expected: int, accept: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    reader = _Reader(accept, expected)
    keep_every = max(1, viewers // max(LEAST_KEPT, KEPT_LINES // expected))
    for first in range(0, viewers, WAVE):
        for number in range(first, min(first + WAVE, viewers)):
            reader.connect(port, runs[number % len(runs)], keep=number % keep_every == 0)
        reader.read_until_each_has(1)  # the stream's opening, and `run.created`
    answers.send(None)
    answers.send(reader.read())


class _Reader:
    """Reads all its viewers in turn, whichever has something."""

    def __init__(self, accept: str, expected: int) -> None:
        self._accept, self._expected = accept, expected
        self._epoll = select.epoll()
        self._viewers: dict[int, _Viewer] = {}
        self._buffer = bytearray(1 << 20)

    def connect(self, port: int, run: str, *, keep: bool) -> None:
        """One more viewer of a run."""
        viewer = _Viewer(socket.create_connection(("127.0.0.1", port)), kept=[] if keep else None)
        request = (
            f"GET /api/v1/runs/{run}/events?stream=true HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {self._accept}"
        )
        viewer.socket.sendall(f"{request}\r\n\r\n".encode())
        viewer.socket.setblocking(False)
        self._epoll.register(viewer.socket.fileno(), select.EPOLLIN)
        self._viewers[viewer.socket.fileno()] = viewer

    def read(self) -> Seen:
        """Until each viewer has had all its lines from here on, and nothing more comes."""
        for viewer in self._viewers.values():
            viewer.lines = 0
        seen = self.read_until_each_has(self._expected)
        got = {viewer.lines for viewer in self._viewers.values()}
        if got != {self._expected}:
            seen.wrong = seen.wrong or f"viewers got {sorted(got)} lines, not {self._expected}"
        self._look_at_kept(seen)
        return seen

    def read_until_each_has(self, least: int) -> Seen:
        """At least so many lines; then what else has come."""
        left = sum(viewer.lines < least for viewer in self._viewers.values())
        buffer, started, ended = self._buffer, 0.0, 0.0
        while found := self._epoll.poll(QUIET_S if left else 0.05):
            ended = time.monotonic()
            started = started or ended
            for descriptor, _ in found:
                viewer = self._viewers[descriptor]
                size = viewer.socket.recv_into(buffer)
                if size == 0:
                    return Seen(wrong="a viewer was cut off")
                before = viewer.lines
                viewer.lines += buffer.count(b"{", 0, size)
                left -= before < least <= viewer.lines
                if viewer.kept is not None:
                    viewer.kept.append((time.monotonic(), bytes(buffer[:size])))
        return Seen(took_s=ended - started)

    def _look_at_kept(self, seen: Seen) -> None:
        for viewer in self._viewers.values():
            if viewer.kept is None:
                continue
            times = [at for at, _ in viewer.kept]
            ends = list(accumulate(len(piece) for _, piece in viewer.kept))
            whole = b"".join(piece for _, piece in viewer.kept)
            found = list(_LINE.finditer(whole))
            seqs = [int(match[1]) for match in found]
            if seqs != list(range(2, 2 + self._expected)):  # the first is `run.created`
                seen.wrong = (
                    seen.wrong or f"a viewer got {len(seqs)} lines, but not each of {self._expected} once and in order"
                )
            seen.late_s += [times[bisect_left(ends, match.end())] - int(match[2]) / 1e9 for match in found]
