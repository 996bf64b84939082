"""The supervisor of one engine: a small process between the worker and everything that the engine starts.

    python -I -S supervisor.py CONTROL STDOUT STDERR     three inherited descriptors; stdin holds the command

It needs Linux and the standard library, not the program's venv. It is the subreaper of its engine: whatever the engine
starts descends from this process for ever, also after `setsid` or a double fork. So "this process has no child left" is
the proof that nothing of the engine lives. Where it is told a control group to make, the kernel limits and kills the
engine as a whole; elsewhere each process is limited, and they are counted and killed one by one.

- The command: fields that end with NUL, so that all that an exec takes can be said: working folder; CPU seconds, bytes
  of memory, bytes of a file, processes, bytes in the working folder, uid, gid, the control group (each may be empty:
  none); number of arguments; arguments; NAME=value …
- Facts, a line each: `started PID`, or `failed STEP ERRNO`; `signaled SIGNAL SURVIVORS`; `exceeded LIMIT`; `exited
  STATUS KILLED SURVIVORS`. STATUS is the exit code or minus the signal; KILLED is what the engine's main process left
  behind.
- Orders, a line each: `signal SIGNAL`, to the engine's process group; `kill`, everything.
- At the end of file of CONTROL the worker is gone: everything is killed. So it is when the engine's main process ends,
  and when it is beyond a limit that is looked at from here.

Every run waits for this to start, so it imports what is cheap: json, ctypes and signal took 7 ms of 13.
"""

import _signal as signal  # type: ignore[import-not-found]  # what signal.py wraps in enums
import errno
import os
import resource
import select
import sys
import time
from _ctypes import call_function, dlopen, dlsym  # what ctypes wraps

KILL_SECONDS = 5
"""How long a kill insists. What outlives it hangs in the kernel (a dead network disk), and is counted as a survivor."""
LOOK_SECONDS = 0.25
LOOK_SHARE = 50
"""How often processes are counted and files are measured, and the most that it takes: a part of the time."""
BLOCK_BYTES = 512
"""What `st_blocks` counts in, whatever the file system's own blocks are."""
CPU_GRACE_SECONDS = 1
"""From SIGXCPU, which names the reason, to the kernel's SIGKILL."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38


def main() -> None:
    control, stdout, stderr = map(int, sys.argv[1:])
    for descriptor in (control, stdout, stderr):
        os.set_inheritable(descriptor, False)
    # A service manager may signal every process of a service; this one ends after its engine or its worker only.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    command = os.read(0, os.fstat(0).st_size)
    folder, cpu, memory, _, processes, disk, _, _, group, *_ = command.split(b"\0")
    limits = folder, cpu, memory, processes, disk
    tree = Group(group, *limits) if group else Tree(*limits)
    try:
        engine = start(command, tree, stdout, stderr)
    except StartError as error:
        tree.close()
        say(control, f"failed {error.step} {error.number}")
        return
    say(control, f"started {engine}")
    Supervisor(control, engine, tree).run()


class StartError(Exception):
    """The engine could not be started: the step that failed, and its error number."""

    def __init__(self, step: str, number: int) -> None:
        self.step, self.number = step, number


def start(command: bytes, tree: "Tree", stdout: int, stderr: int) -> int:
    """Start the engine and return its process id. From then on the two pipes are the engine's alone."""
    try:
        tree.open()
    except OSError as error:
        raise StartError("control group", error.errno or 0) from error
    supervisor = os.getpid()
    reader, writer = os.pipe()
    try:
        engine = os.fork()
    except OSError as error:
        raise StartError("process", error.errno or 0) from error
    if engine == 0:
        become(command, tree, stdout, stderr, report=writer, supervisor=supervisor)
    for descriptor in (writer, stdout, stderr):
        os.close(descriptor)
    failure = os.read(reader, 64).decode()  # empty when the exec has closed the other end
    os.close(reader)
    if failure:
        os.waitpid(engine, 0)
        step, number = failure.split()
        raise StartError(step, int(number))
    return engine


def become(command: bytes, tree: "Tree", stdout: int, stderr: int, *, report: int, supervisor: int) -> None:
    """Turn into the engine, or report which step failed. Never returns."""
    folder, _, _, file, _, _, uid, gid, _, count, *rest = command.split(b"\0")[:-1]
    arguments, variables = rest[: int(count)], rest[int(count) :]
    step, number = "process", errno.EINVAL  # what an error without a number amounts to: a value too large
    try:
        os.setsid()
        os.umask(0o077)
        for name in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(name, signal.SIG_DFL)  # what is ignored would stay ignored in the engine
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for place, descriptor in enumerate((os.open("/dev/null", os.O_RDONLY), stdout, stderr)):
            os.dup2(descriptor, place)
        step = "limits"
        limit(resource.RLIMIT_CORE, b"0")
        limit(resource.RLIMIT_FSIZE, file)
        tree.enter()  # as who the service is: an engine's account may not
        step = "account"
        if uid:
            os.setgroups([])
            os.setgid(int(gid))
            os.setuid(int(uid))
        prctl(PR_SET_NO_NEW_PRIVS, 1)  # or a setuid program could become one that cannot be killed
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the kernel forgets it at a change of user
        if os.getppid() != supervisor:
            os._exit(127)
        step = "folder"
        os.chdir(folder)
        step = "program"
        environment = dict(variable.split(b"=", 1) for variable in variables)
        os.execvpe(arguments[0], arguments, environment)  # noqa: S606 - running it is what this is for
    except OSError as error:
        number = error.errno or number
    finally:
        os.write(report, f"{step} {number}".encode())
        os._exit(127)


def limit(kind: int, value: bytes, *, grace: int = 0) -> None:
    """Lower a limit; one that is lower already stays."""
    if value:
        _, most = resource.getrlimit(kind)
        soft, hard = int(value), int(value) + grace
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


class Tree:
    """All that descends from here, and how far it may go. Each process is limited; how many they are is counted."""

    def __init__(self, folder: bytes, cpu: bytes, memory: bytes, processes: bytes, disk: bytes) -> None:
        self.folder, self.cpu, self.memory, self.processes, self.disk = folder, cpu, memory, processes, disk
        self.next_look = time.monotonic()

    def open(self) -> None:
        """Be ready for the engine."""

    def enter(self) -> None:
        """Called by the engine before its exec: from here on it is limited."""
        limit(resource.RLIMIT_CPU, self.cpu, grace=CPU_GRACE_SECONDS)
        limit(resource.RLIMIT_AS, self.memory)

    def wait(self) -> float | None:
        """Milliseconds until the next look; None: there is nothing to look at."""
        if not (self.cpu or self.processes or self.disk):
            return None
        return max(0.0, self.next_look - time.monotonic()) * 1000

    def look(self) -> str | None:
        """The limit that is passed, if it is time to look."""
        if self.wait() != 0:
            return None
        began = time.monotonic()
        found = self.exceeded()
        if not found and self.disk and folder_bytes(self.folder) > int(self.disk):
            found = "disk"
        ended = time.monotonic()
        self.next_look = ended + max(LOOK_SECONDS, (ended - began) * LOOK_SHARE)
        return found

    def exceeded(self) -> str | None:
        return "processes" if self.processes and len(descendants()) > int(self.processes) else None

    def kill(self, living: dict[int, int]) -> None:
        # By group, since that also reaches the child that a process is forking at this moment. No group holds a
        # process from outside: a group never spans two sessions, and the engine began its own.
        for group in set(living.values()):
            try:
                os.killpg(group, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue  # ended by itself; or it is not ours to kill, and counts as a survivor

    def close(self) -> str | None:
        """Nothing of it lives. The limit that it passed and nobody saw."""


class Group(Tree):
    """All that descends from here, in a control group of this name: limited as a whole, killed at one stroke.

    An engine that is the service's own user can leave it, and then remove it.
    """

    def __init__(self, name: bytes, *limits: bytes) -> None:
        super().__init__(*limits)
        self.path = name + b".%d" % os.getpid()  # never that of an attempt before, in which something may hang

    def open(self) -> None:
        os.mkdir(self.path)  # noqa: PTH102 - pathlib costs 3 ms
        if self.processes:
            self.write(b"pids.max", self.processes)
        if self.memory:
            self.write(b"memory.max", self.memory)
            self.write(b"memory.oom.group", b"1")
            if os.path.exists(self.path + b"/memory.swap.max"):  # noqa: PTH110 - as above
                self.write(b"memory.swap.max", b"0")

    def enter(self) -> None:
        self.write(b"cgroup.procs", b"0")

    def exceeded(self) -> str | None:
        try:
            if self.cpu and self.read(b"cpu.stat")[b"usage_usec"] >= int(self.cpu) * 1_000_000:
                return "cpu"
            if self.processes and self.read(b"pids.events")[b"max"]:
                return "processes"
            memory = self.read(b"memory.events")
        except FileNotFoundError:
            return None  # it was never made, or removed
        return "memory" if memory[b"oom"] and memory[b"oom_kill"] else None  # no `oom`: the limit was one above it

    def kill(self, living: dict[int, int]) -> None:
        if os.path.exists(self.path):  # noqa: PTH110 - as above
            self.write(b"cgroup.kill", b"1")
        super().kill(living)  # what has left it

    def close(self) -> str | None:
        passed = self.exceeded()
        remove_group(self.path)
        return passed

    def write(self, name: bytes, value: bytes) -> None:
        with open(self.path + b"/" + name, "wb", 0) as file:  # noqa: PTH123 - as above
            file.write(value)

    def read(self, name: bytes) -> dict[bytes, int]:
        with open(self.path + b"/" + name, "rb") as file:  # noqa: PTH123 - as above
            return {key: int(value) for key, value in map(bytes.split, file)}


class Supervisor:
    """What happens after the start, until nothing of the engine is left."""

    def __init__(self, control: int, engine: int, tree: Tree) -> None:
        self.control = control
        self.engine = engine
        self.tree = tree
        self.status: int | None = None  # of the engine's main process, once it has ended
        self.killed: set[int] = set()
        self.order = b""  # the beginning of one
        self.wake, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # for the byte that comes with it
        self.reap()  # what ended before there was a handler

    def run(self) -> None:
        events = select.poll()
        events.register(self.wake, select.POLLIN)
        events.register(self.control, select.POLLIN)
        worker_lives, passed = True, None
        while worker_lives and self.status is None:
            if passed := self.tree.look():
                break
            for descriptor, _ in events.poll(self.tree.wait()):
                if descriptor == self.wake:
                    self.rest(0)
                    self.reap()
                else:
                    worker_lives = self.obey()
        survivors = self.kill()
        unseen = self.tree.close()
        if passed := passed or unseen:
            say(self.control, f"exceeded {passed}")
        status = -signal.SIGKILL if self.status is None else self.status  # None: it hangs, and will die of that
        say(self.control, f"exited {status} {len(self.killed)} {survivors}")

    def obey(self) -> bool:
        """Follow the orders that have come. False when the worker is gone."""
        try:
            orders = os.read(self.control, 4096)
        except ConnectionResetError:  # gone before it took every fact
            return False
        *lines, self.order = (self.order + orders).split(b"\n")
        self.reap()  # an engine that has ended takes no signal
        for line in lines:
            match line.split():
                case [b"kill"]:
                    say(self.control, f"signaled {signal.SIGKILL} {self.kill()}")
                case [b"signal", number] if self.status is None:  # else its group may be another's by now
                    os.killpg(self.engine, int(number))
                    say(self.control, f"signaled {int(number)} {len(descendants())}")
        return bool(orders)

    def reap(self) -> bool:
        """Take the status of every child that has ended, each by its own id. False when no child is left at all."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # looks, takes nothing
            except ChildProcessError:
                return False
            if ended is None:
                return True
            _, status = os.waitpid(ended.si_pid, 0)
            if ended.si_pid == self.engine:
                self.status = os.waitstatus_to_exitcode(status)

    def kill(self) -> int:
        """Kill all that descends from here, until nothing does. How many survive it for `KILL_SECONDS`."""
        deadline = time.monotonic() + KILL_SECONDS
        while self.reap():
            living = descendants()
            if time.monotonic() > deadline:
                return len(living)
            self.killed |= living.keys() - {self.engine}
            self.tree.kill(living)
            self.rest(10)
        return 0

    def rest(self, milliseconds: int) -> None:
        """Wait until a child ends, but no longer than that."""
        wakes = select.poll()
        wakes.register(self.wake, select.POLLIN)
        if wakes.poll(milliseconds):
            os.read(self.wake, 4096)


def folder_bytes(folder: bytes) -> int:
    """What the files below a folder take on disk, as far as they can be seen; links are not followed."""
    total, folders = 0, [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue  # gone since the listing, or closed to us
    return total


def descendants(*of: int) -> dict[int, int]:
    """The living processes below this one, or below these, each with its process group."""
    below: dict[int, list[tuple[int, int, bool]]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs 3 ms
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - as above
                    fields = file.read().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended since the listing
            state, parent, group, threads = fields[0], int(fields[1]), int(fields[2]), int(fields[17])
            # A process whose first thread has ended looks like a zombie while its other threads run on.
            lives = state not in (b"Z", b"X") or threads > 1
            below.setdefault(parent, []).append((int(name), group, lives))
    living = {}
    parents = list(of) or [os.getpid()]
    while parents:
        for process, group, lives in below.get(parents.pop(), ()):
            parents.append(process)
            if lives:
                living[process] = group
    return living


def remove_group(path: bytes) -> None:
    """Remove a control group, with those that an engine made in it. One in which something hangs stays."""
    for folder, _, _ in os.walk(path, topdown=False):
        try:
            os.rmdir(folder)  # noqa: PTH106 - as above
        except OSError:
            return


def say(control: int, fact: str) -> None:
    try:  # noqa: SIM105 - contextlib costs 2 ms
        os.write(control, f"{fact}\n".encode())
    except BrokenPipeError:
        pass  # the worker is gone; the next read of the control finds that


def prctl(option: int, value: int) -> None:
    this_program = dlopen(None, 0)  # type: ignore[arg-type]  # the stub knows files only
    if call_function(dlsym(this_program, "prctl"), (option, value, 0, 0, 0)) != 0:
        raise OSError(errno.EPERM, f"prctl {option}")


if __name__ == "__main__":
    main()
