"""Real engines under real supervisors: all that they say is read, how they end is known, and nothing of them stays."""

import os
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import anyio
import pytest

from service.work import process as process_module
from service.work.process import (
    PIPE_BYTES,
    Account,
    Child,
    Command,
    Exit,
    Limits,
    Process,
    Signaled,
    reaches,
    running,
    spawn,
    unprivileged_account,
)
from service.work.supervisor import descendants

pytestmark = pytest.mark.anyio

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
UNLIMITED = Limits()
TREE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def hide():
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setsid()
        os.write(1, b"%d\\n" % os.getpid())
        os.execv("/bin/sleep", ["sleep", "1000"])
for _ in range(3):
    hide()
os.write(1, b"%d\\n" % os.getpid())
time.sleep(1000)
"""
"""An engine that ignores SIGTERM, with three processes that hide by double fork and setsid. It writes all four ids."""


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops that the service may run on."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(autouse=True)
async def within_time(anyio_backend: object) -> AsyncIterator[None]:
    """A test that hangs is a test that fails."""
    with anyio.fail_after(60):
        yield


def command(
    *argv: str, env: Mapping[str, str] = ENVIRONMENT, cwd: Path = Path("/"), limits: Limits = UNLIMITED
) -> Command:
    return Command(argv, cwd, env, limits)


def python(code: str, *arguments: str) -> Command:
    return command(sys.executable, "-I", "-S", "-c", code, *arguments)


def shell(code: str) -> Command:
    return command("/bin/sh", "-c", code)


async def read_all(process: Process) -> dict[str, bytes]:
    """What is left of both streams."""
    output = {"stdout": b"", "stderr": b""}
    while chunks := await process.read():
        for stream, chunk in chunks:
            output[stream] += chunk
    return output


async def read_lines(process: Process, count: int) -> list[bytes]:
    """The first lines of stdout."""
    output = b""
    while output.count(b"\n") < count:
        chunks = await process.read()
        assert chunks, f"ended after {output!r}"
        output += b"".join(chunk for stream, chunk in chunks if stream == "stdout")
    return output.splitlines()


async def result(of: Command) -> tuple[dict[str, bytes], Exit]:
    async with running(of) as process:
        return await read_all(process), await process.wait()


def state(pid: int | None) -> bytes:
    """As the kernel has it: R runs, S waits, Z is dead and not reaped, X is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return b"X"


def lives(pid: int) -> bool:
    return state(pid) not in (b"Z", b"X")


def await_death(*pids: int) -> None:
    """Return when all of them are dead; they need not be ours."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([pidfd], [], [], 5)[0], f"{pid} lives on"
        os.close(pidfd)


class TestEnd:
    @pytest.mark.parametrize("code", [0, 1, 255])
    async def test_exit_code(self, code: int) -> None:
        assert await result(shell(f"exit {code}")) == ({"stdout": b"", "stderr": b""}, Exit(code, None))

    @pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
    async def test_signal(self, name: str) -> None:
        _, ended = await result(shell(f"kill -{name[3:]} $$"))
        assert ended == Exit(None, name)

    async def test_every_engine_gets_its_own_exit_code(self) -> None:
        """Many end at the same moment, and no code gets lost or mixed up; nor does one start spoil the next."""
        ended: dict[int, Exit] = {}

        async def run(code: int) -> None:
            _, ended[code] = await result(shell(f"(sleep 0 & sleep 0 &) ; exit {code}"))

        for codes in (range(12), range(12, 24)):
            async with anyio.create_task_group() as tasks:
                for code in codes:
                    tasks.start_soon(run, code)
        assert {code: end.code for code, end in ended.items()} == {code: code for code in range(24)}

    async def test_orphans_are_reaped_while_the_engine_runs(self) -> None:
        """Processes whose parents have ended do not pile up as zombies, and do not hide the engine's exit code."""
        code = """
import os
for _ in range(30):
    if os.fork() == 0:
        if os.fork() == 0: os.setsid()
        os._exit(3)
    os.wait()
def children():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try: yield open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError): pass
while list(children()).count(str(os.getppid())) > 1: pass
os._exit(7)
"""
        _, ended = await result(python(code))
        assert ended == Exit(7, None)

    async def test_what_the_engine_leaves_behind_is_killed(self) -> None:
        """It ends with its main process, at once; what it left is counted."""
        async with running(shell("sleep 1000 & setsid sleep 1000 & echo $!; exit 4")) as process:
            [line] = await read_lines(process, 1)
            assert await read_all(process) == {"stdout": b"", "stderr": b""}
            assert await process.wait() == Exit(4, None, killed=2)
            assert not lives(int(line))

    async def test_a_process_with_a_misleading_name(self, tmp_path: Path) -> None:
        """The kernel puts names into its process list as they are."""
        (name := tmp_path / ") Z 0 (").symlink_to("/bin/sleep")
        _, ended = await result(shell(f"'{name}' 1000 > /dev/null 2>&1 & while ! grep -q Z /proc/$!/comm; do :; done"))
        assert ended == Exit(0, None, killed=1)

    async def test_a_process_without_its_first_thread_is_killed_too(self) -> None:
        """Its main thread has ended, so it looks like a zombie; its others run on."""
        code = """
import ctypes, os, threading, time
if os.fork() == 0:
    def other():
        while open(f"/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z": pass
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(1000)
    threading.Thread(target=other).start()
    ctypes.CDLL(None).pthread_exit(None)
time.sleep(1000)
"""
        async with running(python(code)) as process:
            await read_lines(process, 1)
            assert await process.signal("SIGCONT") == Signaled("SIGCONT", 2)
            assert await process.stop(5) == Signaled("SIGTERM", 0)


class TestNoStart:
    async def test_no_such_program(self) -> None:
        for program in ("/no/such", "no-such"):
            _, ended = await result(command(program))
            assert ended == Exit(
                None, None, error=f"Cannot run {program}: there is no such program, or no interpreter for it"
            )

    async def test_no_permission_to_run(self, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\n")
        _, ended = await result(command(str(program)))
        assert ended.error == f"Cannot run {program}: Permission denied"

    async def test_no_program(self, tmp_path: Path) -> None:
        program = tmp_path / "program"
        program.write_text("hello")
        program.chmod(0o755)
        _, ended = await result(command(str(program)))
        assert ended.error == f"Cannot run {program}: Exec format error"

    async def test_no_working_folder(self) -> None:
        _, ended = await result(command("true", cwd=Path("/no/such")))
        assert ended.error == "Cannot enter the working folder /no/such: No such file or directory"

    async def test_what_did_not_start_is_a_process_without_life(self) -> None:
        """Whoever uses it needs no second path."""
        async with running(command("/no/such")) as process:
            assert process.pid is None
            assert await process.read() == []
            assert await process.signal("SIGTERM") is None
            assert await process.stop(0) is None

    async def test_a_limit_beyond_all_limits(self) -> None:
        """Whatever goes wrong on the way to the engine is told."""
        _, ended = await result(command("true", limits=Limits(file_bytes=2**70)))
        assert ended.error == "Cannot start the engine (limits): Invalid argument"

    async def test_a_nul_is_refused(self) -> None:
        with pytest.raises(ValueError, match="NUL"):
            await result(command("true", "a\0b"))


class TestOutput:
    async def test_both_streams_to_the_last_byte(self) -> None:
        """Also without a newline at the end."""
        output, _ = await result(shell("printf 'a\\nb'; printf '\\377\\000c' >&2"))
        assert output == {"stdout": b"a\nb", "stderr": b"\xff\0c"}

    async def test_a_line_is_handed_on_at_once(self, tmp_path: Path) -> None:
        """Each arrives while the engine waits for an answer to it, so it came alone, and in order over both streams."""
        os.mkfifo(answers := tmp_path / "answers")
        code = f"for i in 1 2 3; do echo $i; read a; echo $a >&2; read a; done < {answers}"
        async with running(shell(code)) as process:
            with answers.open("w") as answer:
                for i in (b"1", b"2", b"3"):
                    assert await process.read() == [("stdout", i + b"\n")]
                    print(f"answer {i!r}", file=answer, flush=True)
                    assert await process.read() == [("stderr", f"answer {i!r}\n".encode())]
                    print(file=answer, flush=True)
            assert await process.read() == []

    async def test_a_line_takes_no_time(self) -> None:
        """Written to read: far under the 20 ms that a viewer may notice."""
        code = "import os, time\nfor _ in range(40): os.write(1, b'%d\\n' % time.monotonic_ns()); time.sleep(0.005)"
        delays = []
        async with running(python(code)) as process:
            while chunks := await process.read():
                delays += [time.monotonic_ns() - int(line) for _, chunk in chunks for line in chunk.splitlines()]
        assert len(delays) == 40
        assert statistics.quantiles(delays)[0] < 20_000_000  # of four, for a machine that does more

    async def test_the_stream_that_came_first_is_read_first(self, tmp_path: Path) -> None:
        """Also when both were there before anybody read, and whichever was read last."""
        os.mkfifo(answer := tmp_path / "answer")
        for first, second in (("stdout", "stderr"), ("stderr", "stdout")):
            code = f"echo 0 > /dev/{second}; read a < {answer}; echo 1 > /dev/{first}; echo 2 > /dev/{second}"
            async with running(shell(code)) as process:
                assert await process.read() == [(second, b"0\n")]
                answer.write_text("go\n")
                await process.wait()
                assert await process.read() == [(first, b"1\n"), (second, b"2\n")]
                assert await process.read() == []

    async def test_a_slow_reader_pauses_the_engine(self, tmp_path: Path) -> None:
        """The engine is ahead by a full pipe and no further, and no read is larger: memory is bounded."""
        code = """
import os, sys
counter, wrote = os.open(sys.argv[1], os.O_WRONLY), 0
while True:
    wrote += os.write(1, b"x" * 4096)
    os.pwrite(counter, b"%20d" % wrote, 0)
"""
        (counter := tmp_path / "counter").write_bytes(b"%20d" % 0)
        read = 0
        async with running(python(code, str(counter))) as process:
            for _ in range(5):
                while state(process.pid) != b"S" or int(counter.read_bytes()) < read + PIPE_BYTES:
                    await anyio.lowlevel.checkpoint()
                assert int(counter.read_bytes()) == read + PIPE_BYTES
                [(_, chunk)] = await process.read()
                assert len(chunk) <= PIPE_BYTES
                read += len(chunk)

    async def test_a_flood_is_whole(self) -> None:
        """20 MB over both streams, and what was in the pipes when the engine ended."""
        code = "import os\nfor i in range(20000): os.write(1 + i % 2, b'%07d ' % i * 125)"
        output, ended = await result(python(code))
        assert ended == Exit(0, None)
        numbers = [int(number) for number in (output["stdout"] + output["stderr"]).split()]
        assert numbers == [i for i in (*range(0, 20000, 2), *range(1, 20000, 2)) for _ in range(125)]

    async def test_an_engine_may_enlarge_its_pipe(self) -> None:
        """What was left in it at the end is whole all the same."""
        code = "import fcntl, os; fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 2**20); os.write(1, b'x' * 2**20)"
        async with running(python(code)) as process:
            await process.wait()
            await_death(process._supervisor.pid)
            assert await read_all(process) == {"stdout": b"x" * 2**20, "stderr": b""}
            assert await process.wait() == Exit(0, None)

    async def test_an_engine_may_close_its_output_and_live_on(self, tmp_path: Path) -> None:
        os.mkfifo(answer := tmp_path / "answer")
        async with running(shell(f"exec >&- 2>&-; read a < {answer}; exit 5")) as process:
            assert await process.read() == []
            assert process.pid is not None
            assert lives(process.pid)
            answer.write_text("go\n")
            assert await process.wait() == Exit(5, None)

    async def test_a_pipe_that_a_stranger_holds_open(self) -> None:
        """The streams end with the engine, whatever the stranger does; all that the engine wrote is there."""
        async with running(shell("echo started; sleep 1000; echo more")) as process:
            await read_lines(process, 1)
            stranger = os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY)
            await process.stop(5)
            os.write(stranger, b"late")
            assert await read_all(process) == {"stdout": b"late", "stderr": b""}
            assert (await process.wait()).cut == ("stdout",)
            os.close(stranger)

    async def test_an_engine_that_takes_from_its_own_pipe(self) -> None:
        """It may steal its own lines, and nothing else happens."""
        code = """
import os
thief = os.open("/dev/stdout", os.O_RDONLY | os.O_NONBLOCK)
for _ in range(2000):
    os.write(1, b"x")
    try: os.read(thief, 1)
    except BlockingIOError: pass
"""
        output, ended = await result(python(code))
        assert ended == Exit(0, None)
        assert len(output["stdout"]) < 2000


class TestStop:
    async def test_an_engine_that_obeys(self) -> None:
        """SIGTERM is enough, and its exit code is its own."""
        async with running(shell("trap 'sleep 0.1; exit 3' TERM; echo; while :; do sleep 0.01; done")) as process:
            await read_lines(process, 1)
            assert await process.stop(10) == Signaled("SIGTERM", 0)
            assert (await process.wait()).code == 3
            assert await process.stop(10) is None

    async def test_an_engine_that_hides_and_ignores(self) -> None:
        """After the grace everything that descends from it is dead: no setsid, no double fork helps."""
        async with running(python(TREE)) as process:
            pids = [int(line) for line in await read_lines(process, 4)]
            assert process.pid in pids
            assert await process.signal("SIGTERM") == Signaled("SIGTERM", 4)
            assert await process.stop(0.05) == Signaled("SIGKILL", 0)
            assert not any(map(lives, pids))
            assert await process.wait() == Exit(None, "SIGKILL", killed=3)

    async def test_an_engine_that_runs_away_by_forking(self) -> None:
        """A process that is always newer than the list of processes is killed with its group."""
        code = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.write(1, b"\\n")
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if os.fork(): os._exit(0)
time.sleep(10)
"""
        async with running(python(code)) as process:
            await read_lines(process, 1)
            assert await process.stop(0) == Signaled("SIGKILL", 0)
            assert (await process.wait()).survivors == 0

    async def test_a_signal_reaches_the_group(self) -> None:
        """Not only the main process."""
        inner = "trap 'echo got; exit' USR1; echo; while :; do sleep 0.01; done"
        async with running(shell(f'trap : USR1; sh -c "{inner}"')) as process:
            await read_lines(process, 1)
            assert await process.signal("SIGUSR1") is not None
            assert (await read_all(process))["stdout"] == b"got\n"

    async def test_an_answer_is_for_whoever_asked(self) -> None:
        """Also when an earlier one no longer waits for it."""
        async with running(shell("echo; exec sleep 1000")) as process:
            await read_lines(process, 1)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await process.signal("SIGWINCH")
            assert await process.signal("SIGCONT") == Signaled("SIGCONT", 1)

    async def test_a_signal_that_comes_too_late(self) -> None:
        """The supervisor finds the order beside the news that the engine has ended. No one gets the signal."""
        async with running(shell("echo; exec sleep 1000")) as process:
            await read_lines(process, 1)
            assert process.pid is not None
            os.kill(process._supervisor.pid, signal.SIGSTOP)
            os.kill(process.pid, signal.SIGKILL)
            await_death(process.pid)
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    assert await process.signal("SIGTERM") is None

                tasks.start_soon(ask)
                await anyio.lowlevel.checkpoint()
                os.kill(process._supervisor.pid, signal.SIGCONT)
            assert await process.wait() == Exit(None, "SIGKILL")

    async def test_an_unread_engine_can_be_stopped(self) -> None:
        """A flood that nobody reads delays nothing."""
        async with running(shell("yes")) as process:
            asked = time.monotonic()
            assert await process.stop(10) == Signaled("SIGTERM", 0)
            assert time.monotonic() - asked < 5
            assert len((await read_all(process))["stdout"]) <= PIPE_BYTES

    async def test_leaving_the_block_leaves_nothing(self) -> None:
        async with running(python(TREE)) as process:
            pids = [int(line) for line in await read_lines(process, 4)]
        assert not any(map(lives, pids))
        assert await process.wait() == Exit(None, "SIGKILL", killed=3)

    async def test_cancelling_leaves_nothing(self) -> None:
        """The block ends by cancellation in the middle of a read, or before the engine has started."""
        pids = []
        with anyio.CancelScope() as scope:
            async with running(python(TREE)) as process:
                pids = [int(line) for line in await read_lines(process, 4)]
                scope.cancel()
                await process.read()
        assert scope.cancelled_caught
        assert not any(map(lives, pids))
        before = descendants()
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with running(python(TREE)):
                pytest.fail("a cancelled task has started an engine")
        assert descendants() == before


class TestKill:
    """kill -9, of everyone who could clean up."""

    def test_of_the_worker(self) -> None:
        """The supervisor finds its control closed, and kills the tree."""
        code = """
import sys, anyio
from pathlib import Path
from service.work.process import Command, running
async def main():
    async with running(Command(tuple(sys.argv[1:]), Path("/"), {})) as process:
        while chunks := await process.read():
            for _, chunk in chunks: print(chunk.decode(), end="", flush=True)
anyio.run(main)
"""
        with subprocess.Popen([sys.executable, "-c", code, *python(TREE).argv], stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            pids = [int(worker.stdout.readline()) for _ in range(4)]
            assert all(map(lives, pids))
            worker.kill()
        await_death(*pids)

    async def test_of_the_supervisor(self) -> None:
        """The main process dies with it, and whoever waits is told."""
        async with running(shell("echo; exec sleep 1000")) as process:
            await read_lines(process, 1)
            assert process.pid is not None
            os.kill(process._supervisor.pid, signal.SIGKILL)
            await_death(process._supervisor.pid)
            assert await process.signal("SIGTERM") is None
            ended = await process.wait()
            assert ended == Exit(None, None, error="The engine's supervisor was killed, and the engine with it")
            await_death(process.pid)
            assert await process.stop(0) is None

    async def test_of_the_supervisor_whose_engine_had_hidden(self, tmp_path: Path) -> None:
        """What hides below it would live on under init; it is found by the mark in its environment."""
        of = command(*python(TREE).argv, env={**ENVIRONMENT, "ADE_RUN_ID": f"run_{tmp_path.name}"})
        async with running(of) as process:
            pids = [int(line) for line in await read_lines(process, 4)]
            os.kill(process._supervisor.pid, signal.SIGKILL)
            assert (await process.wait()).error
            assert sum(map(lives, pids)) >= 3
        await_death(*pids)

    @pytest.mark.parametrize("how", ["stop", "close"])
    async def test_of_an_engine_whose_supervisor_stands_still(
        self, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A supervisor under SIGSTOP obeys no order: it is not waited for, and all below it is killed; it too."""
        monkeypatch.setattr(process_module, "SUPERVISOR_SECONDS", 0.3)
        scrubbed = f"import os; os.execve({sys.executable!r}, [{sys.executable!r}, '-c', {TREE!r}], {{}})"
        of = command(*python(scrubbed).argv, env={**ENVIRONMENT, "ADE_RUN_ID": f"run_{tmp_path.name}"})
        async with running(of) as process:
            pids = [int(line) for line in await read_lines(process, 4)]
            os.kill(process._supervisor.pid, signal.SIGSTOP)
            if how == "stop":
                assert await process.stop(0) == Signaled("SIGKILL", survivors=0)
                await_death(*pids)
        await_death(*pids, process._supervisor.pid)

    async def test_a_supervisor_outlives_polite_signals(self) -> None:
        """Neither Ctrl-C nor a service manager that signals every process of the service orphans an engine."""
        async with running(shell("echo; sleep 1000")) as process:
            await read_lines(process, 1)
            assert os.getsid(process._supervisor.pid) not in (os.getsid(0), process.pid)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(process._supervisor.pid, number)
            assert await process.stop(5) == Signaled("SIGTERM", 0)


class TestSurroundings:
    async def test_the_environment_is_what_was_given(self) -> None:
        given = {"A": "1=2", "EMPTY": "", "LINES": "a\nb", "Ü": "ü\udcff"}
        output, _ = await result(command("/bin/cat", "/proc/self/environ", env=given))
        assert output["stdout"] == b"A=1=2\0EMPTY=\0LINES=a\nb\0" + "Ü=ü".encode() + b"\xff\0"

    async def test_our_environment_is_nowhere_to_be_seen(self) -> None:
        """An engine of the same user may look into its parent, which has none of the service's secrets."""
        output, _ = await result(shell("cat /proc/$PPID/environ"))
        assert output == {"stdout": b"", "stderr": b""}

    async def test_arguments_arrive_as_they_are(self) -> None:
        arguments = ("", "a b", "$HOME", "a\nb", "ü", "'", '"')
        output, _ = await result(command("/usr/bin/printf", "%s|", *arguments))
        assert output["stdout"].decode() == "".join(f"{argument}|" for argument in arguments)

    async def test_nothing_of_ours_is_open_in_the_engine(self) -> None:
        """Its three descriptors alone, with nothing to read on stdin."""
        output, _ = await result(
            python("import os; print(os.listdir('/proc/self/fd'), os.readlink('/proc/self/fd/0'))")
        )
        assert output["stdout"] == b"['0', '1', '2', '3'] /dev/null\n"  # 3 lists the folder

    async def test_the_state_of_the_process(self, tmp_path: Path) -> None:
        """Its own session, no signal blocked or ignored, private files, no way to more rights, no core files."""
        code = "ulimit -c; ps -o sid=,pgid= $$; pwd; cat /proc/self/status"
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        cores = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (cores[1], cores[1]))
        try:
            output, _ = await result(command("/bin/sh", "-c", code, cwd=tmp_path))
        finally:
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, cores)
        core, ids, folder, *status = output["stdout"].decode().splitlines()
        session, group = ids.split()
        assert (core, folder, session) == ("0", str(tmp_path), group)
        state = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        assert state["Umask"] == "0077"
        assert state["NoNewPrivs"] == "1"
        ours = sum(1 << number - 1 for number in signal.valid_signals())  # 32 and 33 are the C library's own
        assert int(state["SigIgn"], 16) & ours == int(state["SigBlk"], 16) & ours == 0

    async def test_cpu_seconds(self) -> None:
        _, ended = await result(command("/bin/sh", "-c", "while :; do :; done", limits=Limits(cpu_seconds=1)))
        assert ended == Exit(None, "SIGXCPU")

    async def test_file_bytes(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        _, ended = await result(command("/usr/bin/head", "-c", "9999", "/dev/zero", limits=Limits(file_bytes=1000)))
        assert ended == Exit(0, None), "a pipe is no file"
        code = f"exec head -c 9999 /dev/zero > {file}"
        _, ended = await result(command("/bin/sh", "-c", code, limits=Limits(file_bytes=1000)))
        assert ended == Exit(None, "SIGXFSZ")
        assert file.stat().st_size == 1000

    async def test_processes(self) -> None:
        """More of them at a time than there may be: all are killed, and it is told why."""
        code = "for i in 1 2 3 4 5 6; do sleep 100 & done; wait"
        of = command("/bin/sh", "-c", code, limits=Limits(processes=6))
        _, ended = await result(of)
        assert ended == Exit(None, "SIGKILL", killed=6, exceeded="processes")
        _, ended = await result(command("/bin/sh", "-c", "sleep .6 & wait", limits=Limits(processes=2)))
        assert ended == Exit(0, None)

    async def test_disk_bytes(self, tmp_path: Path) -> None:
        """Of all files below the working folder together, however deep; what a link leads to does not count."""
        (tmp_path / "large").write_bytes(bytes(2**21))
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "link").symlink_to(tmp_path / "large")
        fill = "mkdir -p a/b; for i in 1 2 3 4 5 6 7 8; do head -c 200000 /dev/zero > a/b/$i; done; sleep {}"
        for seconds, most, exceeded in (("100", 2**20, "disk"), (".6", 2**21, None)):
            limits = Limits(disk_bytes=most)
            of = command("/bin/sh", "-c", fill.format(seconds), cwd=tmp_path / "work", limits=limits)
            _, ended = await result(of)
            assert ended.exceeded == exceeded
            assert ended.signal == ("SIGKILL" if exceeded else None)

    async def test_memory_bytes(self) -> None:
        of = command(*python("bytearray(2**30)").argv, limits=Limits(memory_bytes=2**28))
        output, ended = await result(of)
        assert ended.code == 1
        assert output["stderr"].endswith(b"MemoryError\n")

    async def test_memory_for_not_even_the_start(self) -> None:
        """Too little to become the engine is an error or a kill, never a hang."""
        _, ended = await result(command("true", limits=Limits(memory_bytes=4096)))
        assert ended.code != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED HERE: only root can give an engine another account")
class TestAccount:
    @pytest.fixture
    def account(self) -> Account:
        account = unprivileged_account(None)
        assert account is not None
        return account

    async def test_the_engine_is_nobody(self, account: Account) -> None:
        """User, group, no other groups; and it may open its own output by name."""
        code = "id -u; id -g; id -G; echo x > /dev/stdout; echo y > /dev/stderr"
        groups = os.getgroups()
        os.setgroups([*groups, 4242])
        try:
            output, ended = await result(Command(("/bin/sh", "-c", code), Path("/"), ENVIRONMENT, account=account))
        finally:
            os.setgroups(groups)
        assert output == {"stdout": f"{account.uid}\n{account.gid}\n{account.gid}\nx\n".encode(), "stderr": b"y\n"}
        assert ended == Exit(0, None)

    async def test_it_is_stopped_all_the_same(self, account: Account) -> None:
        code = "trap '' TERM; setsid sleep 1000 & echo $!; sleep 1000"
        of = Command(("/bin/sh", "-c", code), Path("/"), ENVIRONMENT, account=account)
        async with running(of) as process:
            [pid] = map(int, await read_lines(process, 1))
            assert await process.stop(0.05) == Signaled("SIGKILL", 0)
            assert not lives(pid)

    async def test_it_dies_with_its_supervisor(self, account: Account) -> None:
        """The change of user comes before the order to die, which it would make void."""
        of = Command(("/bin/sh", "-c", "echo; exec sleep 1000"), Path("/"), ENVIRONMENT, account=account)
        async with running(of) as process:
            await read_lines(process, 1)
            assert process.pid is not None
            os.kill(process._supervisor.pid, signal.SIGKILL)
            await_death(process.pid)

    async def test_a_folder_that_it_cannot_enter(self, account: Account, tmp_path: Path) -> None:
        (closed := tmp_path / "closed").mkdir(mode=0o700)
        _, ended = await result(Command(("true",), closed, ENVIRONMENT, account=account))
        assert ended.error == f"Cannot enter the working folder {closed}: Permission denied"

    async def test_another_than_postgresql_s(self, account: Account) -> None:
        other = unprivileged_account(account.name)
        assert other is not None
        assert 0 != other.uid != account.uid


class TestReaches:
    STRANGER = Account("stranger", 54321, 54321)

    @pytest.fixture
    def folder(self) -> Iterator[Path]:
        """A folder that everybody reaches."""
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            Path(folder).chmod(0o755)
            yield Path(folder)

    def test_what_everybody_reaches(self, folder: Path) -> None:
        for path in (Path("/"), Path("/bin/sh"), folder):
            assert reaches(self.STRANGER, path)
        assert not reaches(self.STRANGER, folder / "missing")

    def test_a_file_without_the_right_to_run_is_read_only(self, folder: Path) -> None:
        file = folder / "file"
        for mode, expected in ((0o644, True), (0o640, False), (0o755, True), (0o754, False), (0o711, False)):
            file.touch()
            file.chmod(mode)
            assert reaches(self.STRANGER, file) is expected

    def test_owner_and_group_have_bits_of_their_own(self, folder: Path) -> None:
        """The owner's bits count for the owner, even where others have more."""
        folder.chmod(0o057)
        status = folder.stat()
        owner, member = Account("o", status.st_uid, 54321), Account("g", 54321, status.st_gid)
        assert [reaches(account, folder) for account in (owner, member, self.STRANGER)] == [False, True, True]
        folder.chmod(0o755)

    def test_a_closed_folder_on_the_way(self, folder: Path) -> None:
        """Above it, behind a link, and on the way from one link to the next."""
        (closed := folder / "closed").mkdir()
        (closed / "open").mkdir()
        (folder / "into").symlink_to(closed / "open")
        (closed / "out").symlink_to(folder)
        (folder / "through").symlink_to("closed/out")
        (folder / "around").symlink_to("./closed/../../" + folder.name)
        paths = [closed / "open", folder / "into", folder / "through", folder / "around"]
        assert all(reaches(self.STRANGER, path) for path in paths)
        closed.chmod(0o700)
        assert not any(reaches(self.STRANGER, path) for path in paths)

    def test_a_circle_of_links(self, folder: Path) -> None:
        (folder / "a").symlink_to("b")
        (folder / "b").symlink_to("a")
        assert not reaches(self.STRANGER, folder / "a")


class TestSpawn:
    async def test_exit_and_environment(self) -> None:
        child = spawn(["/bin/sh", "-c", "exit $CODE"], {"CODE": "6"})
        assert await child.wait() == await child.wait() == Exit(6, None)

    async def test_terminate_and_kill(self) -> None:
        for end, name in ((Child.terminate, "SIGTERM"), (Child.kill, "SIGKILL")):
            child = spawn(["/bin/sleep", "1000"], {})
            end(child)
            assert await child.wait() == Exit(None, name)

    def test_it_dies_with_its_parent(self) -> None:
        """kill -9 of the parent leaves no child."""
        code = """
import time
from service.work.process import spawn
print(spawn(["/bin/sleep", "1000"], {}).pid, flush=True)
time.sleep(1000)
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert lives(pid)
            parent.kill()
        await_death(pid)
