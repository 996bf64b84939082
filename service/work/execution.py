"""Executions: one command from its start to the end of its last process, within its limits, its output line by line.

Tells facts through an awaited callback and knows no log. Awaiting the callback is the back-pressure: while its lines
are not taken, the command waits at its pipe. Engines and the commands of builds are executed alike.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import anyio
import orjson
from anyio.streams.memory import MemoryObjectReceiveStream

from service.work.lines import Line, LineSplitter, Telemetry
from service.work.masking import NOTHING, Mask
from service.work.process import Command, Exit, Process, Signaled, running

Why = Literal["exited", "timeout", "canceled"]


@dataclass(frozen=True, slots=True)
class Task:
    """What to run and how far it may go.

    ``timeout_s`` counts from the start. ``log_max_bytes`` bounds what is kept, together with ``log_bytes`` that were
    written before. What ``mask`` hides is in no fact.
    """

    command: Command
    timeout_s: float
    grace_s: float
    line_max_bytes: int
    log_max_bytes: int
    log_bytes: int = 0
    mask: Mask = NOTHING


@dataclass(frozen=True, slots=True)
class Gap:
    """Output that was not kept."""

    lines: int
    bytes: int
    reason: str


Fact = Sequence[Line | Telemetry] | Signaled | Gap
_Read = tuple[Sequence[Line | Telemetry], int]  # and the bytes that they were
Emit = Callable[[Fact], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a task ended and what it wrote; ``last_words``: its last line on stderr, ``closing``: its own last report.

    ``why`` is ``timeout`` or ``canceled`` only where that ended it: what ends before the signal has ended by itself.
    """

    why: Why
    exit: Exit
    lines: int
    bytes: int
    duration_ms: int
    last_words: str | None
    closing: Telemetry | None


class Execution:
    """One command, from its start to the end of its last process. ``canceled``: somebody asked for it to stop."""

    def __init__(self, task: Task, emit: Emit, canceled: anyio.Event) -> None:
        self._task = task
        self._emit = emit
        self._canceled = canceled
        self._why: Why = "exited"
        self._splitters = {
            name: LineSplitter(name, line_max_bytes=task.line_max_bytes, mask=task.mask)
            for name in ("stdout", "stderr")
        }
        self._lines = self._bytes = 0
        self._lost_lines = self._lost_bytes = 0
        self._last_words: str | None = None
        self._closing: Telemetry | None = None

    async def run(self) -> Ended:
        """Runs it to its end; whatever way this is left, no process of it is."""
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
        """SIGTERM when it is asked to stop or its time is up, and SIGKILL after the grace."""
        with anyio.move_on_after(self._task.timeout_s):
            await self._canceled.wait()
        why: Why = "canceled" if self._canceled.is_set() else "timeout"
        with anyio.CancelScope(shield=True):  # the reader ends when the engine does, and would cut this short
            signaled = await process.stop(self._task.grace_s)
            if signaled is not None:
                self._why = why
                await self._emit(signaled)

    async def _read(self, process: Process) -> None:
        """Reads to the end. What was read is kept while the next is read, and one more waits in between."""
        to_keep, keeping = anyio.create_memory_object_stream[_Read](1)
        with keeping:  # to the end: who keeps may fail while somebody waits to hand over more
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_all, keeping)
                with to_keep:
                    while chunks := await process.read():
                        found = [item for stream, chunk in chunks for item in self._splitters[stream].feed(chunk)]
                        await to_keep.send((found, sum(len(chunk) for _, chunk in chunks)))
                    await to_keep.send(
                        ([item for splitter in self._splitters.values() for item in splitter.close()], 0)
                    )

    async def _keep_all(self, keeping: MemoryObjectReceiveStream[_Read]) -> None:
        async for found, size in keeping:
            self._bytes += size
            if found:
                await self._keep(found)

    async def _keep(self, found: Sequence[Line | Telemetry]) -> None:
        self._lines += len(found)
        for item in found:
            if isinstance(item, Telemetry):
                if item.type == "engine.run.completed":
                    self._closing = item
            elif item.stream == "stderr" and item.message.strip():
                self._last_words = item.message
        if self._task.log_bytes + self._bytes > self._task.log_max_bytes:
            self._lost_lines += len(found)
            self._lost_bytes += sum(_size(item) for item in found)
            return
        await self._emit(found)


def _size(item: Line | Telemetry) -> int:
    return len(item.message.encode()) if isinstance(item, Line) else len(orjson.dumps(item.members))
