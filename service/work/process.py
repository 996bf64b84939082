"""Processes: engines under their supervisors, and the program's own. The only module of the service that makes any.

What `running` holds:

- leaving the block, however it is left, leaves no process of the engine behind; so does kill -9 of the worker;
- output is handed on as soon as it is there, both streams in order of arrival; nothing is read before it is asked for,
  so a slow reader pauses the engine at its pipe, and memory stays at `PIPE_BYTES` per stream;
- all that the engine wrote is read before the streams end, and they do end: what still holds a pipe open when every
  process of the engine is dead is none of them, and `Exit.cut` tells of it.
"""

import errno
import fcntl
import os
import pwd
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
from asyncio import Future, get_running_loop, shield
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import anyio

from service.work import cgroup, leftovers, supervisor
from service.work.lines import StreamName

PIPE_BYTES: Final = 256 * 1024
"""Of an engine's stdout and stderr each, and the most that one read takes. More than 64 KiB is a wish: Linux grants a
user 64 MiB for all pipes (`pipe-user-pages-soft`), so this leaves room for some hundred engines."""
SUPERVISOR_SECONDS: Final = supervisor.KILL_SECONDS + 5
"""How long a supervisor may take to end when it should. One that takes longer was stopped, and is killed."""
ACCOUNTS: Final = ("nobody", "daemon", "bin")
"""Accounts that own nothing, on every Linux; engines get the first."""

_STREAMS: Final[tuple[StreamName, StreamName]] = ("stdout", "stderr")
_NEXT: Final = select.EPOLLIN | select.EPOLLONESHOT
"""Ready once. Armed again after a read, a descriptor queues up behind the other: the kernel keeps the order."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an engine may go. Beyond most of them it is killed, and `Exit.exceeded` tells which it was.

    `processes`, and `disk_bytes` in the working folder, are of all its processes together; so are CPU time and memory
    in a control group. Elsewhere those are of each process, as `file_bytes` always is: SIGXCPU, no memory, SIGXFSZ.
    """

    cpu_seconds: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the machine, with no group but its own."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `env` is all that it gets; `argv[0]` without a slash is looked for in its `PATH`."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    limits: Limits = Limits()
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class Signaled:
    """A signal that was sent, and how many of the engine's processes lived right after it."""

    signal: str
    survivors: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: by exit `code` or `signal`; or by `error`, why it could not be started or watched.

    Of an engine also: `killed`, how many processes it had left behind; `survivors`, how many of them SIGKILL did not
    end in time; `cut`, the streams that a process from outside held open, so that they had no end of their own;
    `exceeded`, the limit (`cpu`, `memory`, `processes`, `disk`) for which it was killed, or refused something.
    """

    code: int | None
    signal: str | None
    killed: int = 0
    error: str | None = None
    survivors: int = 0
    cut: tuple[StreamName, ...] = ()
    exceeded: str | None = None


@asynccontextmanager
async def running(command: Command) -> AsyncIterator["Process"]:
    """Run an engine for as long as the block lasts. Also one that cannot be started is a Process: see `Exit.error`.

    Raises OSError when the machine has no room for another process, ValueError when the command holds a NUL.
    """
    with ExitStack() as resources:
        process = Process(command, resources)
        try:
            await process.started()
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await process.close()


class Process:
    """An engine, as `running` gives it. One task reads it; any number may signal, stop and wait."""

    pid: int | None = None
    """Of the main process, which leads a session of its own. None: it could not be started."""

    def __init__(self, command: Command, resources: ExitStack) -> None:
        """Start its supervisor. What this opens, `resources` closes."""
        self._command = command
        self._streams: dict[int, StreamName] = {}  # read ends that have not come to their end
        self._cut: list[StreamName] = []
        self._exceeded: str | None = None
        self._orphaned = False  # the supervisor was killed, and what the engine had started lives on
        self._fact = b""  # the beginning of one
        self._has_started = anyio.Event()
        self._asked: deque[Future[Signaled | None]] = deque()  # who waits for a fact "signaled", in order
        self._exit: Future[Exit] = get_running_loop().create_future()
        self._ready = resources.enter_context(select.epoll())
        with ExitStack() as handed_over:
            self._control, control = socket.socketpair()
            resources.enter_context(self._control).setblocking(False)
            handed_over.enter_context(control)
            stdout, stderr = (self._pipe(stream, resources, handed_over) for stream in _STREAMS)
            self._supervisor = _supervise(command, control.fileno(), stdout, stderr)
        self._gone = os.pidfd_open(self._supervisor.pid)
        resources.callback(os.close, self._gone)
        self._ready.register(self._gone, select.EPOLLIN)
        get_running_loop().add_reader(self._control, self._hear)

    def _pipe(self, stream: StreamName, resources: ExitStack, handed_over: ExitStack) -> int:
        """A pipe for that stream. Its write end."""
        reader, writer = os.pipe()
        resources.callback(os.close, reader)
        handed_over.callback(os.close, writer)
        os.set_blocking(reader, False)
        if self._command.account:  # or it could not open /dev/stdout and /dev/stderr
            os.fchown(writer, self._command.account.uid, self._command.account.gid)
        with suppress(PermissionError):  # the quota is used up; the pipe works as it is
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._streams[reader] = stream
        self._ready.register(reader, _NEXT)
        return writer

    async def read(self) -> Sequence[tuple[StreamName, bytes]]:
        """The next chunks, in order of arrival; none when both streams have ended."""
        while self._streams:
            await anyio.wait_readable(self._ready)
            chunks = self._take()
            if chunks:
                return chunks
        return []

    def _take(self) -> list[tuple[StreamName, bytes]]:
        """What is there now."""
        chunks = []
        ready = [descriptor for descriptor, _ in self._ready.poll(0)]
        for reader in ready:
            if reader == self._gone:
                continue
            chunk = _read(reader, PIPE_BYTES)
            if chunk == b"":
                self._end(reader)
                continue
            if chunk:
                chunks.append((self._streams[reader], chunk))
            self._ready.modify(reader, _NEXT)
        if self._gone in ready:  # and all of the engine with it: what it wrote is in the pipes now, nothing will follow
            for reader, stream in list(self._streams.items()):
                left = int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)
                if left and (chunk := _read(reader, left)):
                    chunks.append((stream, chunk))
                if _read(reader, 1) != b"":
                    self._cut.append(stream)
                self._end(reader)
        return chunks

    def _end(self, reader: int) -> None:
        self._ready.unregister(reader)
        del self._streams[reader]

    async def signal(self, name: str) -> Signaled | None:
        """Signal the process group. None: the engine had ended before."""
        return await self._order(f"signal {signal.Signals[name].value}")

    async def stop(self, grace_s: float) -> Signaled | None:
        """SIGTERM, and after the grace SIGKILL to all that descends from the engine.

        The last signal that was sent; None when the engine had ended before.
        """
        asked = await self.signal("SIGTERM")
        if asked is None:
            return None
        with anyio.move_on_after(grace_s):
            return replace(asked, survivors=(await self.wait()).survivors)
        return await self._order("kill") or replace(asked, survivors=(await self.wait()).survivors)

    async def wait(self) -> Exit:
        """How it ended, once nothing of it lives. Read to the end first: a full pipe may keep it from ending."""
        return replace(await shield(self._exit), cut=tuple(self._cut), exceeded=self._exceeded)

    async def started(self) -> None:
        await self._has_started.wait()

    async def close(self) -> None:
        """Kill what is left, and wait until it is dead."""
        self._control.shutdown(socket.SHUT_WR)
        with anyio.move_on_after(SUPERVISOR_SECONDS) as waiting:
            await self._supervisor.wait()
        if waiting.cancelled_caught or self._orphaned:
            await self._kill_without_supervisor()
        await self._supervisor.wait()
        await self.wait()
        # Not left to the end of file: a reader that outlives its descriptor is deaf for the next one of that number.
        get_running_loop().remove_reader(self._control)

    async def _order(self, order: str) -> Signaled | None:
        if self._exit.done():
            return None
        answer: Future[Signaled | None] = get_running_loop().create_future()
        self._asked.append(answer)
        with suppress(BrokenPipeError):  # the supervisor has ended; `_hear` answers when it finds that
            self._control.send(f"{order}\n".encode())
        with anyio.move_on_after(SUPERVISOR_SECONDS):
            return await shield(answer)
        return Signaled("SIGKILL", await self._kill_without_supervisor())

    async def _kill_without_supervisor(self) -> int:
        """The supervisor cannot do it: all that belongs to the engine is found by its environment. The survivors."""
        mark = leftovers.mark_of(self._command.env)
        killed = await anyio.to_thread.run_sync(leftovers.kill, mark) if mark else None
        self._supervisor.kill()
        return killed.survivors if killed else 0

    def _hear(self) -> None:
        """Take the facts that the supervisor tells, and its end."""
        try:
            facts = self._control.recv(4096)
        except ConnectionResetError:  # ended with an order that it had not read
            facts = b""
        *lines, self._fact = (self._fact + facts).split(b"\n")
        for line in lines:
            self._learn(line.decode().split())
        if not facts:
            get_running_loop().remove_reader(self._control)
            self._orphaned = not self._exit.done()
            self._conclude(Exit(None, None, error="The engine's supervisor was killed, and the engine with it"))

    def _learn(self, fact: Sequence[str]) -> None:
        match fact:
            case ["started", pid]:
                self.pid = int(pid)
                self._has_started.set()
            case ["failed", step, number]:
                self._conclude(Exit(None, None, error=_failure(self._command, step, int(number))))
            case ["exceeded", limit]:
                self._exceeded = limit
            case ["signaled", number, survivors]:
                self._answer(Signaled(_signal_name(int(number)), int(survivors)))
            case ["exited", status, killed, survivors]:
                self._conclude(Exit(*_ending(int(status)), killed=int(killed), survivors=int(survivors)))

    def _answer(self, signaled: Signaled | None) -> None:
        answer = self._asked.popleft()
        if not answer.done():  # whoever asked may have been cancelled
            answer.set_result(signaled)

    def _conclude(self, exit_: Exit) -> None:
        """It has ended. What is heard of that first is how."""
        if not self._exit.done():
            self._exit.set_result(exit_)
        self._has_started.set()
        while self._asked:
            self._answer(None)


class Child:
    """A process of the program's own."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self.pid = popen.pid
        self._popen = popen

    async def wait(self) -> Exit:
        while (status := self._popen.poll()) is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                await anyio.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return Exit(*_ending(status))

    def terminate(self) -> None:
        self._popen.terminate()

    def kill(self) -> None:
        self._popen.kill()


def spawn(argv: Sequence[str], env: Mapping[str, str], keep: Sequence[int] = ()) -> Child:
    """Start a process that shares our stdin, stdout and stderr, and is killed when the thread that called this ends.

    It inherits the descriptors ``keep`` under the same numbers, and no others. It has a process group of its own:
    Ctrl-C reaches us alone, and we stop our children in order.
    """
    parent = os.getpid()

    def die_with_parent() -> None:
        supervisor.prctl(supervisor.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)

    return Child(
        subprocess.Popen(argv, env=env, pass_fds=keep, process_group=0, preexec_fn=die_with_parent)  # noqa: PLW1509 - takes no lock
    )


def unprivileged_account(avoid: str | None) -> Account | None:
    """The account for engines when we are root: not `avoid`, PostgreSQL's. None: we are not, or there is none."""
    if os.geteuid() != 0:
        return None
    users = {user.pw_name: user for user in pwd.getpwall()}
    for name in ACCOUNTS:
        if name in users and name != avoid:
            return Account(name, users[name].pw_uid, users[name].pw_gid)
    return None


def reaches(account: Account, path: Path) -> bool:
    """Whether that account may read `path`, and enter or execute it where it is a folder or a program.

    Judged by the modes of all folders on the way, links followed; access control lists are not looked at.
    """
    try:
        status = path.stat()
        runs = stat.S_ISDIR(status.st_mode) or status.st_mode & 0o111
        return _may(account, status, 0o5 if runs else 0o4) and all(
            _may(account, folder.stat(), 0o1) for folder in _folders(path.absolute())
        )
    except OSError:  # not there, or a circle of links
        return False


def _may(account: Account, status: os.stat_result, bits: int) -> bool:
    owner, group = status.st_uid == account.uid, status.st_gid == account.gid
    return (status.st_mode >> (6 if owner else 3 if group else 0)) & bits == bits


def _folders(path: Path) -> Iterator[Path]:
    """The folders that the kernel looks into on its way to an absolute path."""
    for step in (path, *path.parents):
        yield step.parent
        if step.is_symlink():
            yield from _folders(step.parent / step.readlink())


def _supervise(command: Command, control: int, stdout: int, stderr: int) -> Child:
    """Start the supervisor with that command. It inherits the three descriptors, and nothing of our environment.

    It carries the mark of its engine, so that it is found with it.
    """
    account, limits = command.account, command.limits
    mark, home = leftovers.mark_of(command.env), cgroup.home_of()
    fields: list[object] = [
        command.cwd,
        limits.cpu_seconds,
        limits.memory_bytes,
        limits.file_bytes,
        limits.processes,
        limits.disk_bytes,
        account and account.uid,
        account and account.gid,
        home / next(iter(mark.values())) if home and mark else None,
        len(command.argv),
        *command.argv,
        *(f"{name}={value}" for name, value in command.env.items()),
    ]
    texts = [os.fsencode(str("" if value is None else value)) for value in fields]
    if any(b"\0" in text for text in texts):
        raise ValueError("A command cannot hold a NUL")
    descriptors = (control, stdout, stderr)
    with open(os.memfd_create("command"), "w+b") as stdin:  # noqa: PTH123 - it has no path
        stdin.write(b"".join(text + b"\0" for text in texts))
        stdin.seek(0)
        return Child(
            subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, *map(str, descriptors)],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=mark,
                start_new_session=True,  # the terminal's Ctrl-C is for the worker
            )
        )


def _failure(command: Command, step: str, number: int) -> str:
    """Why the engine could not be started, as a sentence."""
    why = os.strerror(number)
    match step:
        case "program" if number == errno.ENOENT:
            return f"Cannot run {command.argv[0]}: there is no such program, or no interpreter for it"
        case "program":
            return f"Cannot run {command.argv[0]}: {why}"
        case "folder":
            return f"Cannot enter the working folder {command.cwd}: {why}"
        case "account":
            return f"Cannot become the account {command.account and command.account.name}: {why}"
        case _:
            return f"Cannot start the engine ({step}): {why}"


def _ending(status: int) -> tuple[int | None, str | None]:
    """Exit code and signal, of a status that is minus the signal."""
    return (status, None) if status >= 0 else (None, _signal_name(-status))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


def _read(reader: int, most: int) -> bytes | None:
    """What is there; b"" at the end of file; None when nothing is there yet."""
    try:
        return os.read(reader, most)
    except BlockingIOError:
        return None
