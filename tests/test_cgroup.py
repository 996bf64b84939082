"""Control groups: when they are in force, and what they hold that counting does not.

Where none are delegated, the tests that need them are skipped. `docs/qa.md` says how to run them anywhere.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from service.run_job import how_it_ended
from service.work import cgroup, leftovers
from service.work.execution import Ended
from service.work.leftovers import Killed
from service.work.process import Command, Exit, Limits, Signaled, running, unprivileged_account
from tests.conftest import ROOT
from tests.test_process import TREE, await_death, read_all, read_lines

pytestmark = pytest.mark.anyio

V1 = "32 31 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n"
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
BIND = "900 880 0:26 /docker/0ab /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
SPACE = "30 24 0:26 / /run/con\\040trol rw - cgroup2 none rw\n"
UNIT = "/system.slice/ade.service"


@pytest.mark.parametrize(
    ("mountinfo", "group", "place"),
    [
        pytest.param(V1, f"3:pids:{UNIT}\n1:name=systemd:{UNIT}\n", None, id="v1"),
        pytest.param(V1, f"3:pids:{UNIT}\n0::{UNIT}\n", None, id="v2 not mounted"),
        pytest.param(HYBRID, f"3:pids:/\n0::{UNIT}\n", f"/sys/fs/cgroup/unified{UNIT}", id="hybrid"),
        pytest.param(V2, f"0::{UNIT}\n", f"/sys/fs/cgroup{UNIT}", id="v2"),
        pytest.param(V2, "0::/\n", "/sys/fs/cgroup", id="the root, of the machine or of a container"),
        pytest.param(V2, "0::/../../other.scope\n", None, id="outside of the container's namespace"),
        pytest.param(BIND, "0::/docker/0ab/ade.own\n", "/sys/fs/cgroup/ade.own", id="container without a namespace"),
        pytest.param(BIND, "0::/docker/0abc\n", None, id="outside of what is mounted"),
        pytest.param(BIND + V2, f"0::{UNIT}\n", f"/sys/fs/cgroup{UNIT}", id="several mounts"),
        pytest.param(SPACE, f"0::{UNIT}\n", f"/run/con trol{UNIT}", id="a space in the path"),
    ],
)
def test_the_folder_of_a_group(mountinfo: str, group: str, place: str | None) -> None:
    """In every form that the kernel tells it in. Seen to fail without the roots of mounts and without unescaping."""
    assert cgroup.place(mountinfo, group) == (None if place is None else Path(place))


def test_what_is_not_delegated_is_left_alone() -> None:
    """And where it is delegated, the claim holds for this process, and can be repeated."""
    before = cgroup.group_of("self")
    try:
        home = cgroup.claim()
    except cgroup.NotDelegated:
        assert (cgroup.group_of("self"), cgroup.home_of()) == (before, None)
    else:
        assert cgroup.home_of() == home == cgroup.claim()
        assert home in cgroup.homes()


@pytest.mark.parametrize(("limit", "setting"), [("cpu", "ADE_WORKER_CPU_SECONDS"), ("memory", "ADE_WORKER_MEM_MB")])
def test_a_run_names_the_limit_of_its_group(limit: str, setting: str) -> None:
    """Whatever the signal was."""
    exit_ = Exit(None, "SIGKILL", exceeded=limit)
    completed = how_it_ended(Ended("exited", exit_, 0, 0, 0, None, None), None, "", None)
    assert completed.stop_reason == "resource_limit"
    assert setting in str(completed.error_message)


# From here on in real groups


@pytest.fixture
def home() -> Path:
    """This process is in the group of a service."""
    try:
        return cgroup.claim()
    except cgroup.NotDelegated as why:
        pytest.skip(f"NOT TESTED without control groups; docs/qa.md says how. {why}")


@pytest.fixture
def mark(home: Path, tmp_path: Path) -> dict[str, str]:
    """A run that no other test has."""
    return {"ADE_RUN_ID": f"run_{tmp_path.name}"}


def python(code: str, mark: dict[str, str], **limits: int) -> Command:
    return Command((sys.executable, "-I", "-S", "-c", f"import os, time\n{code}"), Path("/"), mark, Limits(**limits))


async def test_an_engine_is_in_a_group_of_its_own(home: Path, mark: dict[str, str]) -> None:
    """With its limits, without its supervisor; when it has ended, the group is gone."""
    shown = "print(open('/proc/self/cgroup').read().strip(), flush=True); input()"
    async with running(python(shown, mark, processes=7, memory_bytes=2**26, cpu_seconds=9)) as process:
        ((stream, group),) = cgroup.groups()
        assert stream == mark["ADE_RUN_ID"]
        assert (await read_lines(process, 1))[0].decode().endswith(f"/{group.name}")
        assert cgroup.members(group) == {process.pid}
        values = {name: (group / name).read_text().strip() for name in ("pids.max", "memory.max", "memory.oom.group")}
        assert values == {"pids.max": "7", "memory.max": str(2**26), "memory.oom.group": "1"}
        await process.stop(5)
    assert list(cgroup.groups()) == []
    assert (await process.wait()).exceeded is None


@pytest.mark.parametrize(
    ("limits", "code", "exceeded"),
    [
        pytest.param(
            {"cpu_seconds": 2},
            "while os.fork(): os.wait()\nwhile time.process_time() < 0.3: pass",
            "cpu",
            id="many short processes",
        ),
        pytest.param(
            {"memory_bytes": 2**26},
            "for n in range(4):\n  if not os.fork(): x = b'x' * 2**25; time.sleep(99)\nos.wait()",
            "memory",
            id="much memory in all",
        ),
        pytest.param(
            {"processes": 9},
            "import _thread\nwhile True: _thread.start_new_thread(time.sleep, (99,))",
            "processes",
            id="threads",
        ),
        pytest.param(
            {"processes": 9},
            "try:\n  while os.fork(): pass\n  time.sleep(99)\nexcept OSError: os._exit(0)",
            "processes",
            id="processes, of which it thinks that all is well",
        ),
        pytest.param({"processes": 9}, "for n in range(8): os.fork() or os._exit(0)", None, id="as many as it may"),
    ],
)
async def test_limits_are_of_all_processes(
    mark: dict[str, str], limits: dict[str, int], code: str, exceeded: str | None
) -> None:
    """Of which none is beyond it by itself. Seen to fail where each process is limited, or they are counted."""
    with anyio.fail_after(60):
        async with running(python(code, mark, **limits)) as process:
            await read_all(process)
            ended = await process.wait()
    assert (ended.exceeded, ended.survivors) == (exceeded, 0)
    assert list(cgroup.groups()) == []


async def test_what_is_in_a_group_is_killed_at_one_stroke(mark: dict[str, str]) -> None:
    """Nobody looks for it first: not even what descends from elsewhere is spared. Seen to fail with the walk alone."""
    left = await anyio.open_process(["/bin/sleep", "99"])
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(99)"
    async with running(python(deaf, mark)) as process:
        await read_lines(process, 1)
        ((_, group),) = cgroup.groups()
        (group / "cgroup.procs").write_text(str(left.pid))
        await process.stop(0)
        assert await left.wait() == -signal.SIGKILL
    cgroup.remove(group)  # its supervisor waits for its own only


HIDDEN_GROUP = """
(group,) = [line[3:].strip() for line in open("/proc/self/cgroup") if line.startswith("0::")]
inner = os.path.join(%r, os.path.basename(group), "inner")
os.mkdir(inner)
open(inner + "/cgroup.procs", "w").write("0")
"""
LEFT_GROUP = """
(group,) = [line[3:].strip() for line in open("/proc/self/cgroup") if line.startswith("0::")]
home = %r
open(home + "/ade.own/cgroup.procs", "w").write("0")
os.rmdir(os.path.join(home, os.path.basename(group)))
"""


@pytest.mark.parametrize("code", [HIDDEN_GROUP, LEFT_GROUP])
async def test_groups_that_an_engine_changes(home: Path, mark: dict[str, str], code: str) -> None:
    """As the service's own user it may make groups in its own, or leave it and remove it. All of it ends, the same."""
    async with running(python(code % str(home) + TREE, mark, cpu_seconds=9, processes=9)) as process:
        pids = [int(line) for line in await read_lines(process, 4)]
        assert await process.stop(0) == Signaled("SIGKILL", 0)
    await_death(*pids)
    assert list(cgroup.groups()) == []


async def test_another_account_cannot_leave_its_group(home: Path, mark: dict[str, str]) -> None:
    account = unprivileged_account(None)
    if account is None:
        pytest.skip("only root has another account for engines")
    argv = ("/bin/sh", "-c", f"echo 0 > {home}/{cgroup.OWN}/cgroup.procs || mkdir {home}/mine")
    async with running(Command(argv, Path("/"), {"PATH": "/bin", **mark}, account=account)) as process:
        assert (await read_all(process))["stderr"].lower().count(b"permission denied") == 2
        assert (await process.wait()).code == 1


SCRUBBED = f"""
import sys
if os.fork() == 0:
    os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", {TREE!r}], {{}})
time.sleep(99)
"""


async def test_what_outlives_its_supervisor_is_found_by_its_group(mark: dict[str, str]) -> None:
    """Processes without the mark, that descend from nothing any more. Seen to fail without groups."""
    async with running(python(SCRUBBED, mark)) as process:
        pids = [int(line) for line in await read_lines(process, 4)]
        os.kill(process._supervisor.pid, signal.SIGKILL)
    await_death(*pids)
    assert list(cgroup.groups()) == []


def test_the_group_of_a_dead_worker_is_found_by_its_name(home: Path, mark: dict[str, str]) -> None:
    """Ended and removed by who takes over; another run's is left alone."""
    stream = mark["ADE_RUN_ID"]
    group, other = home / f"{stream}.1", home / f"{stream}0.1"
    group.mkdir()
    other.mkdir()
    try:
        with subprocess.Popen(["/bin/sleep", "99"]) as left, subprocess.Popen(["/bin/sleep", "99"]) as kept:
            (group / "cgroup.procs").write_text(str(left.pid))
            (other / "cgroup.procs").write_text(str(kept.pid))
            assert {stream, f"{stream}0"} <= leftovers.streams()
            assert leftovers.kill(mark) == Killed(survivors=0)
            assert (left.wait(), kept.poll()) == (-signal.SIGKILL, None)
            kept.kill()
        assert [path for _, path in cgroup.groups()] == [other]
    finally:
        cgroup.remove(other)


CLAIMING = """
from service.work import cgroup
before = cgroup.group_of("self")
try:
    cgroup.claim()
except cgroup.NotDelegated as why:
    print(why, cgroup.group_of("self") == before, cgroup.home_of())
"""


def test_a_group_with_strangers_in_it_is_not_claimed(home: Path) -> None:
    """Nobody is moved, and the process is where it was."""
    shared = home / "shared"
    shared.mkdir()
    try:
        with subprocess.Popen(["/bin/sleep", "99"]) as stranger:
            (shared / "cgroup.procs").write_text(str(stranger.pid))
            enter = f"echo 0 > {shared}/cgroup.procs; exec {sys.executable} -c '{CLAIMING}'"
            said = subprocess.run(["/bin/sh", "-c", enter], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            assert cgroup.members(shared) == {stranger.pid}
            stranger.kill()
        assert said.startswith(f"{shared} is not for the service alone")
        assert said.endswith("True None\n")
    finally:
        cgroup.remove(shared)
