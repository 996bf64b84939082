"""Two projectors at once: one that lost its lease while it waited for the database, and the one that took over."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from eventstore import Log
from projections.log_files import LogFiles
from tests.checker import History, files, first
from tests.conftest import Store
from tests.histories import line, run_created, tell

pytestmark = pytest.mark.anyio

RUN = "run_1"


class Paused(Log):
    """A log whose reader of feeds waits, as in an outage, until it is told to go on."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.database)
        self.waits, self.go_on = anyio.Event(), anyio.Event()

    async def read_feed(self, *arguments: Any, **named: Any) -> Any:
        page = await super().read_feed(*arguments, **named)
        self.waits.set()
        await self.go_on.wait()
        return page


async def test_two_projectors_that_open_a_file_at_once_double_no_line(store: Store, tmp_path: Path) -> None:
    """Both find it as it was; one writes while the other still reads what may be missing; then that one goes on."""
    await tell(store, RUN, run_created(), *[line(RUN, f"{n}") for n in range(3)])

    def path_of(_workspace: str, stream: str) -> Path:
        return tmp_path / f"{stream}.ndjson"

    paused = Paused(store)
    one, other = LogFiles(store.database, paused, path_of), LogFiles(store.database, store.log, path_of)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.step)
        await paused.waits.wait()
        assert await other.step()
        paused.go_on.set()
    one.close()
    other.close()
    assert first(files(await History.read(store.database), path_of)) == []
