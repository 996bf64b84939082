"""The processes that ``ade serve`` keeps on this machine.

Each may be killed, and is started anew. Each can be replaced without a gap: its successor accepts work before it is
told to stop itself, and where the successor does not come up, nothing has changed.

A process says that it has come up as services of systemd do: it sends ``READY=1`` to the socket that ``NOTIFY_SOCKET``
names. So `ade serve`, which tells systemd in the same way, needs no second mechanism for those below it.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from eventstore.clock import jitter
from service.work.process import Child, Exit, spawn

logger = logging.getLogger("ade")

STOP_TIMEOUT_S = 10
"""What a process may take to stop after it was told to, beyond ``ADE_DRAIN_SECONDS``."""
START_TIMEOUT_S = 60.0
"""What the successor of a process may take to come up: a second, but more on a machine that has much to do."""
HEALTHY_S = 10.0
"""A process that ran for this long is started again at once, another one after a pause that grows."""
PAUSE_S = (0.2, 5.0)
"""The first and the longest of these pauses."""

_SOCKET = "NOTIFY_SOCKET"


def tell_ready(env: Mapping[str, str]) -> None:
    """Tells whoever started this process, where he wants to know, that it has come up."""
    address = env.get(_SOCKET)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


@dataclass(frozen=True, slots=True)
class Role:
    """What one of the processes runs, and the descriptors that it inherits."""

    name: str
    argv: Sequence[str]
    keep: tuple[int, ...] = ()


class _Started:
    """One process in a role."""

    def __init__(self, role: Role, env: Mapping[str, str]) -> None:
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind("")  # the kernel finds a name, which is in no folder
        name = "@" + self._told.getsockname()[1:].decode()
        self.child: Child = spawn(role.argv, {**env, _SOCKET: name}, keep=role.keep)
        self.since = time.monotonic()
        self.up = False
        self.settled = anyio.Event()
        """It has come up, or has ended."""

    async def watch(self) -> Exit:
        """Until it ends."""
        with self._told:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hear)
                ended = await self.child.wait()
                tasks.cancel_scope.cancel()
        self.up = False
        self.settled.set()
        return ended

    async def _hear(self) -> None:
        await anyio.wait_readable(self._told)
        self.up = True
        self.settled.set()


class Keeper:
    """Keeps a process running in a role."""

    def __init__(self, role: Role, env: Mapping[str, str], tasks: TaskGroup) -> None:
        self.role = role
        self.alive: set[Child] = set()
        self._env, self._tasks = env, tasks
        self._pause_s = PAUSE_S[0]
        self._current = self._start()

    async def is_up(self) -> bool:
        """Whether the process has come up; waits until that is known."""
        await self._current.settled.wait()
        return self._current.up

    async def replace(self, stop_s: float) -> bool:
        """Another process in its place, which has come up before this one is told to stop. False: it did not."""
        started = self._start()
        with anyio.move_on_after(START_TIMEOUT_S):
            await started.settled.wait()
        if not started.up:
            await stop([started.child], 0)
            return False
        before = self.alive - {started.child}  # two, where the process has ended meanwhile and was started again
        self._current = started
        await stop(before, stop_s)
        return True

    def _start(self) -> _Started:
        started = _Started(self.role, self._env)
        self.alive.add(started.child)
        self._tasks.start_soon(self._watch, started)
        return started

    async def _watch(self, started: _Started) -> None:
        ended = await started.watch()
        self.alive.discard(started.child)
        if started is not self._current:
            return
        logger.error("%s ended (%s); starting it again", self.role.name, ended.signal or ended.code)
        healthy = time.monotonic() - started.since > HEALTHY_S
        self._pause_s = PAUSE_S[0] if healthy else min(self._pause_s * 2, PAUSE_S[1])
        await anyio.sleep(jitter(self._pause_s / 2, self._pause_s))
        if started is self._current:  # and nobody has replaced it meanwhile
            self._current = self._start()


async def stop(children: Iterable[Child], stop_s: float) -> None:
    """None of them lives: they are told to stop, and killed where they have not after so many seconds."""
    stopping = list(children)
    for child in stopping:
        child.terminate()
    with anyio.move_on_after(stop_s) as waiting:
        for child in stopping:
            await child.wait()
    if waiting.cancelled_caught:
        for child in stopping:
            child.kill()
            await child.wait()


class Supervisor:
    """Keeps a process in each role until SIGTERM or SIGINT; SIGHUP replaces them, one after the other.

    On a terminal SIGHUP says that it was closed, and ends as the others do.
    """

    def __init__(self, roles: Sequence[Role], env: Mapping[str, str], drain_s: float) -> None:
        self._roles, self._env = roles, env
        self._stop_s = drain_s + STOP_TIMEOUT_S
        self._asked = anyio.Event()  # to replace them

    async def run(self, beside: TaskGroup, sockets: Sequence[socket.socket]) -> None:
        """Until told to stop; then `beside` is cancelled, and the sockets refuse who comes."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            keepers = [Keeper(role, self._env, beside) for role in self._roles]
            beside.start_soon(self._tell_when_up, keepers)
            beside.start_soon(self._replace_when_asked, keepers)
            async for received in signals:
                if received != signal.SIGHUP or os.isatty(0):
                    break
                self._asked.set()
            logger.info("stopping")
            beside.cancel_scope.cancel()
            for listening in sockets:
                listening.close()
            with anyio.CancelScope(shield=True):  # to the end: a second signal is patience
                await stop({child for keeper in keepers for child in keeper.alive}, self._stop_s)

    async def _tell_when_up(self, keepers: Sequence[Keeper]) -> None:
        for keeper in keepers:
            while not await keeper.is_up():  # noqa: ASYNC110 - it has ended, and is started again
                await anyio.sleep(PAUSE_S[0])
        logger.info("every process is up")
        tell_ready(self._env)

    async def _replace_when_asked(self, keepers: Sequence[Keeper]) -> None:
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()  # whoever asks from here on has new files in mind
            await self._replace(keepers)

    async def _replace(self, keepers: Sequence[Keeper]) -> None:
        for keeper in keepers:
            if not await keeper.replace(self._stop_s):
                logger.error(
                    "the new %s did not come up: it goes on as it was, and so do those after it", keeper.role.name
                )
                return
            logger.info("%s was replaced", keeper.role.name)
        logger.info("every process was replaced")
