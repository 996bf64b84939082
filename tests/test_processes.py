"""What `ade serve` does with its processes: real ones, which do as little as can be."""

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from service.cli import processes
from service.cli.processes import Keeper, Role, stop
from tests.engine import PATIENCE_S

pytestmark = pytest.mark.anyio

CHILD = """
import os, signal, socket, sys
match open(sys.argv[1]).read():
    case "comes up":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(b"READY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
    case "ends":
        sys.exit(1)
signal.pause()
"""


def pids(keeper: Keeper) -> set[int]:
    return {child.pid for child in keeper.alive}


async def alone(keeper: Keeper) -> int:
    """The one process that lives, once there is one."""
    while len(pids(keeper)) != 1:  # noqa: ASYNC110 - nothing tells
        await anyio.sleep(0.01)
    return next(iter(pids(keeper)))


@pytest.mark.parametrize("fate", ["ends", "hangs"])
async def test_what_does_not_come_up_replaces_nothing(
    fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor that ends, or is never ready, is gone again, and its predecessor was never told to stop; one that
    comes up is alone; killed, it is started anew.

    Seen to fail where nobody waits for it to come up."""
    (told := tmp_path / "fate").write_text("comes up")
    role = Role("a child", [sys.executable, "-c", CHILD, str(told)])
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            keeper = Keeper(role, {}, tasks)
            try:
                assert await keeper.is_up()
                first = await alone(keeper)
                told.write_text(fate)
                with monkeypatch.context() as patch:
                    patch.setattr(processes, "START_TIMEOUT_S", 1.0)
                    assert not await keeper.replace(stop_s=1)
                assert await alone(keeper) == first
                told.write_text("comes up")
                assert await keeper.replace(stop_s=1)
                second = await alone(keeper)
                assert second != first
                os.kill(second, signal.SIGKILL)
                while not pids(keeper) - {second}:  # noqa: ASYNC110 - nothing tells
                    await anyio.sleep(0.01)
                assert await keeper.is_up()
                assert await alone(keeper) != second
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await stop(keeper.alive, 1)
