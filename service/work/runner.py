"""Runs: an engine in a scratch folder of its own, its output line by line, and what it leaves.

Tells facts through an awaited callback and knows no log. Awaiting the callback is the back-pressure: while its lines
are not taken, the engine waits at its pipe.
"""

import errno
import hashlib
import mimetypes
import os
import shutil
import stat
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import anyio
import orjson

from service.work.lines import Line, LineSplitter, Telemetry, clean
from service.work.process import Account, Command, Exit, Process, Signaled, running

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
RESULT: Final = "result.json"
RESULT_MAX_BYTES: Final = 1 * 2**20
ARTIFACTS_MAX: Final = 1_000

Why = Literal["exited", "timeout", "canceled"]


@dataclass(frozen=True, slots=True)
class Scratch:
    """The working folder of a run: ``inputs/<n>/<name>``, ``output/``, ``home/``. Gone when the run has ended."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def make(self, inputs: Sequence[tuple[str, Path]], account: Account | None) -> tuple[Path, ...]:
        """Makes it anew with copies of the inputs (name, source); the paths of those. Blocks: call it in a thread."""
        self.remove()
        placed = []
        for folder in (self.folder, self.output, self.home):
            folder.mkdir(parents=True, mode=0o700)
        for number, (name, source) in enumerate(inputs, 1):
            place = self.folder / "inputs" / str(number) / name
            place.parent.mkdir(parents=True)
            shutil.copyfile(source, place)
            placed.append(place)
        if account is not None:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, account.uid, account.gid, follow_symlinks=False)
        return tuple(placed)

    def remove(self) -> None:
        """Nothing of it is left. Blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def environment(*, venv: Path, scratch: Scratch, run_id: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """All that an engine gets to know of the machine."""
    return {
        "PATH": f"{venv / 'bin'}:{SYSTEM_PATH}",
        "HOME": str(scratch.home),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        "ADE_RUN_ID": run_id,
        **secrets,
    }


@dataclass(frozen=True, slots=True)
class Task:
    """What to run and how far it may go. ``timeout_s`` counts from the start; ``log_max_bytes`` bounds what is kept."""

    command: Command
    timeout_s: float
    grace_s: float
    line_max_bytes: int
    log_max_bytes: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Output that was not kept."""

    lines: int
    bytes: int
    reason: str


Fact = Sequence[Line | Telemetry] | Signaled | Gap
Emit = Callable[[Fact], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task ended and what it wrote; ``last_words``: its last line on stderr, ``closing``: its own last report."""

    why: Why
    exit: Exit
    lines: int
    bytes: int
    duration_ms: int
    last_words: str | None
    closing: Telemetry | None


class Execution:
    """One engine, from its start to the end of its last process."""

    def __init__(self, task: Task, emit: Emit) -> None:
        self._task = task
        self._emit = emit
        self._why: Why = "exited"
        self._stop = anyio.Event()
        self._splitters = {
            name: LineSplitter(name, line_max_bytes=task.line_max_bytes) for name in ("stdout", "stderr")
        }
        self._lines = self._bytes = 0
        self._lost_lines = self._lost_bytes = 0
        self._last_words: str | None = None
        self._closing: Telemetry | None = None

    def cancel(self) -> None:
        """Stops the engine: SIGTERM, and SIGKILL after the grace."""
        if not self._stop.is_set():
            self._why = "canceled"
            self._stop.set()

    async def run(self) -> Ended:
        """Runs the engine to its end; whatever way this is left, no process of it is."""
        task, started = self._task, time.monotonic()
        async with running(task.command) as process, anyio.create_task_group() as tasks:
            tasks.start_soon(self._stopper, process)
            await self._read(process)
            exit_ = await process.wait()
            tasks.cancel_scope.cancel()
        if self._lost_lines:
            reason = f"more than {task.log_max_bytes} bytes of output"
            await self._emit(Gap(self._lost_lines, self._lost_bytes, reason))
        return Ended(
            why=self._why,
            exit=exit_,
            lines=self._lines,
            bytes=self._bytes,
            duration_ms=int((time.monotonic() - started) * 1000),
            last_words=self._last_words,
            closing=self._closing,
        )

    async def _stopper(self, process: Process) -> None:
        with anyio.move_on_after(self._task.timeout_s):
            await self._stop.wait()
        if not self._stop.is_set():
            self._why = "timeout"
            self._stop.set()
        with anyio.CancelScope(shield=True):  # the reader ends when the engine does, and would cut this short
            signaled = await process.stop(self._task.grace_s)
            if signaled is not None:
                await self._emit(signaled)

    async def _read(self, process: Process) -> None:
        while chunks := await process.read():
            found: list[Line | Telemetry] = []
            for stream, chunk in chunks:
                self._bytes += len(chunk)
                found += self._splitters[stream].feed(chunk)
            await self._keep(found)
        rest = [item for splitter in self._splitters.values() for item in splitter.close()]
        await self._keep(rest)

    async def _keep(self, found: Sequence[Line | Telemetry]) -> None:
        if not found:
            return
        self._lines += len(found)
        for item in found:
            if isinstance(item, Telemetry):
                if item.type == "engine.run.completed":
                    self._closing = item
            elif item.stream == "stderr" and item.message.strip():
                self._last_words = item.message
        if self._bytes > self._task.log_max_bytes:
            self._lost_lines += len(found)
            self._lost_bytes += sum(_size(item) for item in found)
            return
        await self._emit(found)


def _size(item: Line | Telemetry) -> int:
    return len(item.message.encode()) if isinstance(item, Line) else len(orjson.dumps(item.members))


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file of an output folder, copied to where it is kept. ``name`` is relative to the folder, with ``/``."""

    name: str
    size: int
    sha256: str
    media_type: str


def collect(output: Path, place: Callable[[], tuple[str, Path]]) -> list[tuple[str, Leftover]]:
    """Copies the regular files that an engine left; links are never followed. Blocks: call it in a thread.

    ``place`` gives a new artifact's id and where to keep it.
    """
    kept: list[tuple[str, Leftover]] = []
    for folder, folders, names, descriptor in os.fwalk(output, follow_symlinks=False):
        folders.sort()
        for name in sorted(names):
            opened = _open_regular(name, descriptor)
            if opened is None:
                continue
            with os.fdopen(opened, "rb") as source:
                if len(kept) == ARTIFACTS_MAX:
                    return kept
                artifact_id, copy = place()
                size, sha256 = _copy(source, copy)
            path = os.fsencode(Path(folder, name).relative_to(output))
            relative = str(clean(path.decode("utf-8", "replace")))
            media_type = mimetypes.guess_type(relative)[0] or "application/octet-stream"
            kept.append((artifact_id, Leftover(relative, size, sha256, media_type)))
    return kept


def result_of(output: Path, ended: Ended) -> Any:
    """What the engine handed back: ``result.json`` of its output folder, else the data of its closing telemetry."""
    try:
        text = _read_result(output)
        if 0 < len(text) <= RESULT_MAX_BYTES:
            result = clean(orjson.loads(text))
            orjson.dumps({"result": result})  # nested deeper than can be written again: no result
            return result
    except (OSError, TypeError, RecursionError, orjson.JSONDecodeError):
        pass  # no result of that form; the telemetry may have one
    return ended.closing.members.get("data") if ended.closing is not None else None


def _read_result(output: Path) -> bytes:
    """The beginning of ``result.json``, reached without a link on the way that the engine could have made."""
    folder = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        opened = _open_regular(RESULT, folder)
    finally:
        os.close(folder)
    if opened is None:
        return b""
    with os.fdopen(opened, "rb") as source:
        return source.read(RESULT_MAX_BYTES + 1)


def _open_regular(name: str, folder: int) -> int | None:
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EACCES, errno.ENOENT}:
            return None  # a link, a socket, or what we may not read
        raise
    if stat.S_ISREG(os.fstat(opened).st_mode):
        return opened
    os.close(opened)
    return None


def _copy(source: Any, copy: Path) -> tuple[int, str]:
    copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hashed, size = hashlib.sha256(), 0
    with copy.open("xb") as kept:
        while piece := source.read(1024 * 1024):
            hashed.update(piece)
            size += len(piece)
            kept.write(piece)
    return size, hashed.hexdigest()
