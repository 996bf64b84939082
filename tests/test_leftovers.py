"""What a worker that is gone has left on a machine: found by its mark, ended with all that descends from it."""

import os
import signal
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from service.work import leftovers
from service.work.leftovers import Killed
from service.work.process import Command, running
from tests.test_process import TREE, await_death, lives, read_lines

pytestmark = pytest.mark.anyio


@pytest.fixture
def mark(tmp_path: Path) -> dict[str, str]:
    """That no other process of this machine has."""
    return {"ADE_RUN_ID": f"run_{tmp_path.name}"}


async def kill(mark: dict[str, str]) -> Killed | None:
    return await anyio.to_thread.run_sync(leftovers.kill, mark)


async def test_what_has_the_mark_is_ended_and_nothing_else(mark: dict[str, str]) -> None:
    """Whoever has another one is not touched, nor one whose mark begins alike."""
    other = {"ADE_RUN_ID": mark["ADE_RUN_ID"] + "1"}
    sleep = (sys.executable, "-I", "-S", "-c", "print(flush=True); import time; time.sleep(99)")
    async with running(Command(sleep, Path("/"), mark)) as one, running(Command(sleep, Path("/"), other)) as another:
        await read_lines(one, 1)
        await read_lines(another, 1)
        assert {mark["ADE_RUN_ID"], other["ADE_RUN_ID"]} <= await anyio.to_thread.run_sync(leftovers.streams)
        assert await kill(mark) == Killed(survivors=0)
        await one.wait()
        assert another.pid
        assert lives(another.pid)
    assert await kill(mark) is None


async def test_a_tree_whose_supervisor_stands_still(mark: dict[str, str]) -> None:
    """Children that hide, ignore SIGTERM and have another environment: they go before their supervisor."""
    scrubbed = f"import os; os.execve({sys.executable!r}, [{sys.executable!r}, '-c', {TREE!r}], {{}})"
    async with running(Command((sys.executable, "-I", "-S", "-c", scrubbed), Path("/"), mark)) as process:
        pids = [int(line) for line in await read_lines(process, 4)]
        os.kill(process._supervisor.pid, signal.SIGSTOP)
        assert await kill(mark) == Killed(survivors=0)
        await_death(*pids, process._supervisor.pid)
