"""``events.ndjson``: the bytes of the feed, whatever happened to the file, to its writer, and in which order."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest

from eventstore import Append, Feed, Leases, NewEvent, Part
from eventstore.errors import Unavailable
from eventstore.tail import LOG, Hints
from projections import events, log_files, ndjson_file
from projections import projector as projecting
from projections.log_files import LogFiles
from projections.ndjson_file import End, FeedFile, end_of
from projections.projector import ELECTION, Projector
from service import commands
from tests.conftest import ROOT, Store
from tests.histories import WORKSPACE, build_created, build_started, feed_bytes, line, rows, run_created, run_started

pytestmark = pytest.mark.anyio

RUN_ENDS = commands.run_completed("canceled", "canceled").event()
BUILD_ENDS = commands.build_completed("active", "completed").event()
WAITS = events.RunWaiting(for_="build", build_id="build_1").event()
R1, R2, B1 = "run_1", "run_2", "build_1"

Story = list[dict[str, list[NewEvent]]]
"""Appends, one after the other: what each adds to which streams."""

STORIES: dict[str, Story] = {
    "a run alone": [
        {R1: [run_created()]}, {R1: [run_started()]}, {R1: [line(R1, "a")]}, {R1: [RUN_ENDS]},
    ],
    "a run with a new build": [
        {R1: [run_created(B1), WAITS], B1: [build_created()]}, {B1: [build_started()]}, {B1: [line(B1, "a")]},
        {B1: [BUILD_ENDS]}, {R1: [run_started()]}, {R1: [line(R1, "b")]}, {R1: [RUN_ENDS]},
    ],
    "a run while its build is made": [
        {B1: [build_created()]}, {B1: [line(B1, "before")]}, {R1: [run_created(B1), WAITS]}, {B1: [line(B1, "a")]},
        {B1: [BUILD_ENDS]}, {R1: [run_started()]}, {R1: [RUN_ENDS]},
    ],
    "a run after its build": [
        {B1: [build_created()]}, {B1: [line(B1, "before")]}, {B1: [BUILD_ENDS]}, {R1: [run_created(B1)]},
        {R1: [run_started()]}, {R1: [line(R1, "a")]}, {R1: [RUN_ENDS]},
    ],
    "two runs of one build": [
        {R1: [run_created(B1), WAITS], B1: [build_created()]}, {B1: [line(B1, "a")]}, {R2: [run_created(B1), WAITS]},
        {B1: [line(B1, "b")]}, {B1: [BUILD_ENDS]}, {R2: [run_started()]}, {R1: [run_started()]}, {R2: [RUN_ENDS]},
        {R1: [line(R1, "c")]}, {R1: [RUN_ENDS]},
    ],
    "a run that ends before its build": [
        {R1: [run_created(B1), WAITS], B1: [build_created()]}, {B1: [line(B1, "a")]}, {R1: [RUN_ENDS]},
        {B1: [line(B1, "after")]}, {B1: [BUILD_ENDS]},
    ],
    "a build that goes on": [
        {R1: [run_created(B1), WAITS], B1: [build_created()]}, {B1: [line(B1, "a")]}, {R1: [WAITS]},
        {B1: [line(B1, "b")]},
    ],
}  # fmt: skip
every_story = pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)


async def append(store: Store, step: dict[str, list[NewEvent]], mark: str = "") -> set[str]:
    """One append, under names that bear a mark; the streams that it added to."""

    def marked(event: NewEvent) -> NewEvent:
        return replace(event, data=event.data.replace(b'"build_1"', f'"build_1{mark}"'.encode()))

    parts = [Part(stream + mark, [*map(marked, told)], workspace=WORKSPACE) for stream, told in step.items()]
    await store.appender.append(Append(tuple(parts)))
    return {part.stream for part in parts}


class Desk:
    """A folder of log files and the projection that writes them, which can be stopped and started anew."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.files = self.start()

    def start(self) -> LogFiles:
        return LogFiles(self.store.database, self.store.log, self.path)

    def path(self, _workspace: str, stream: str) -> Path:
        return self.folder / stream / "events.ndjson"

    async def write(self) -> None:
        while await self.files.step():
            pass

    def restart(self) -> None:
        self.files.close()
        self.files = self.start()

    async def whole(self, *streams: str) -> bool:
        """Whether the file of each stream holds the bytes of its feed."""
        found = {stream: self.path("", stream).read_bytes() for stream in streams}
        return found == {stream: await feed_bytes(self.store, stream) for stream in streams}


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(store, tmp_path)
    yield made
    made.files.close()


@every_story
@pytest.mark.parametrize("open_files", [1, 200])
async def test_a_file_is_its_feed(desk: Desk, story: Story, open_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every append, with all files open and with one at a time."""
    monkeypatch.setattr(log_files, "OPEN_FILES", open_files)
    told: set[str] = set()
    for step in story:
        told |= await append(desk.store, step)
        await desk.write()
        assert await desk.whole(*told)


@every_story
@pytest.mark.parametrize("when", ["idle", "behind", "far behind"])
async def test_a_projector_that_starts_anew_goes_on(desk: Desk, story: Story, when: str) -> None:
    """It was stopped after any append, and began again with nothing to do, with one append to do, or with two."""
    for stopped_at in range(len(story)):
        told: set[str] = set()
        for place, step in enumerate(story):
            told |= await append(desk.store, step, f"x{stopped_at}")
            if place == stopped_at:
                if when == "idle":
                    await desk.write()
                if when == "far behind":
                    continue
                desk.restart()
            elif place == stopped_at + 1 and when == "far behind":
                desk.restart()
            await desk.write()
        await desk.write()
        assert await desk.whole(*told)


async def test_what_was_written_before_the_checkpoint_moved_is_not_written_twice(desk: Desk, url: str) -> None:
    """Killed between the files and the checkpoint: the same lines come again, from any earlier id."""
    told: set[str] = set()
    for step in STORIES["two runs of one build"]:
        told |= await append(desk.store, step)
    await desk.write()
    for checkpoint in range(await desk.store.log.head()):
        rows(url, "UPDATE checkpoints SET id = %s WHERE projection = 'log_files'", checkpoint)
        desk.restart()
        await desk.write()
        assert await desk.whole(*told)


async def test_a_stalled_projector_doubles_no_line(desk: Desk, url: str) -> None:
    """It slept past its lease, wakes up beside its successor, and does one more step with what it knew."""
    await append(desk.store, {R1: [run_created()]})
    await desk.write()
    successor = desk.start()
    await append(desk.store, {R1: [run_started(), line(R1, "a")]})
    assert await successor.step()
    await append(desk.store, {R1: [line(R1, "b")]})
    await desk.write()
    assert await desk.whole(R1)
    while await successor.step():
        pass
    successor.close()
    assert await desk.whole(R1)
    await desk.store.database.rows("checkpoint", projection="log_files", id=1)  # as late as can be
    checkpoint = rows(url, "SELECT id FROM checkpoints WHERE projection = 'log_files'")
    assert checkpoint == [{"id": await desk.store.log.head()}]


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "running"])
async def test_a_file_that_was_cut_or_removed_is_whole_again(desk: Desk, stop: bool) -> None:
    """With the next line of its feed, wherever it was cut: torn lines are cut off and written again."""
    await append(desk.store, {R1: [run_created(B1), WAITS], B1: [build_created()]})
    await desk.write()
    whole = await feed_bytes(desk.store, R1)
    for size in (*range(0, len(whole), 17), len(whole) - 1, None):
        if stop:
            desk.restart()
        if size is None:
            desk.path("", R1).unlink()
        else:
            os.truncate(desk.path("", R1), size)
        await append(desk.store, {B1: [line(B1, f"after {size}")]})
        await desk.write()
        assert await desk.whole(R1, B1)


async def test_a_file_is_resumed_from_every_byte(desk: Desk) -> None:
    """Whatever of it is there, the rest is added: no line is torn, doubled or missing."""
    for step in ({R1: [run_created(B1)], B1: [build_created()]}, {B1: [line(B1, "é")]}):
        await append(desk.store, step)
    whole, path = await feed_bytes(desk.store, R1), desk.folder / "cut"
    feed, head = Feed(R1, B1, 1, None), await desk.store.log.head()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        file = FeedFile(path, feed)
        await file.catch_up(desk.store.log, head)
        file.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("block", [1, 7, 64 * 1024])
def test_the_end_of_every_prefix_is_its_last_whole_line(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found from the back, over as many blocks as it takes."""
    monkeypatch.setattr(ndjson_file, "_BLOCK", block)
    lines = [b'{"id":%d,"message":"%s"}\n' % (7 * number, b"x" * (number * 5)) for number in range(1, 6)]
    content, path = b"".join(lines), tmp_path / "file"
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        kept = content[: content.rfind(b"\n", 0, size) + 1]
        assert end_of(path) == End(len(kept), 7 * kept.count(b"\n"))
    assert end_of(tmp_path / "none") == End(0, 0)


PROJECTOR = """
import sys, anyio
from pathlib import Path
from eventstore import Database, Leases, Log
from eventstore.tail import LOG, Hints
from projections.projector import Projector

async def work(url, folder, name):
    async with Database(url) as database, anyio.create_task_group() as tasks:
        hints = Hints(database, LOG)
        await tasks.start(hints.run)
        where = lambda _, stream: Path(folder, stream, "events.ndjson")
        await Projector(database, Log(database), hints, Leases(database, name, 1), where).run()

anyio.run(work, *sys.argv[1:])
"""


@contextmanager
def projector(url: str, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A projector as a process of its own, which can be killed; its lease lasts one second."""
    command = [sys.executable, "-c", PROJECTOR, f"{url}&application_name={name}", str(folder), name]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while True:
            if true():
                return
            await anyio.sleep(0.02)  # a process has no other way to say so than by what it did


async def test_one_projector_works_and_another_takes_over(desk: Desk, url: str) -> None:
    """Killed or stalled, it is replaced when its lease has run out; two never work at once, and no line is lost."""

    def is_held_by(name: str) -> bool:
        held = (
            "SELECT 1 FROM leases WHERE stream = 'projector_lease' AND holder = %s AND expires_at > clock_timestamp()"
        )
        return bool(rows(url, held, name))

    def has_asked(name: str) -> bool:
        asked = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND query LIKE '%%take_lease%%'"
        return bool(rows(url, asked, name))

    def is_caught_up() -> bool:
        behind = "SELECT 1 FROM checkpoints WHERE id < (SELECT max(id) FROM events)"
        return len(rows(url, "SELECT * FROM checkpoints")) == 3 and not rows(url, behind)

    async def tell_more(text: str) -> None:
        await append(desk.store, {R1: [line(R1, text)], B1: [line(B1, text)]})
        await until(is_caught_up)
        assert await desk.whole(R1, B1)

    await append(desk.store, {R1: [run_created(B1), WAITS], B1: [build_created()]})
    with projector(url, desk.folder, "first") as first, projector(url, desk.folder, "second") as second:
        await until(lambda: is_held_by("first") or is_held_by("second"))
        one, other = ("first", "second") if is_held_by("first") else ("second", "first")
        working, waiting = (first, second) if one == "first" else (second, first)
        await until(lambda: has_asked(other))
        await tell_more("one works")

        working.send_signal(signal.SIGSTOP)
        await until(lambda: is_held_by(other))
        await tell_more("the other took over")
        working.send_signal(signal.SIGCONT)
        await until(lambda: has_asked(one))
        await tell_more("the first is back and does not interfere")
        assert is_held_by(other)

        waiting.kill()
        await until(lambda: is_held_by(one))
        await tell_more("the first works again")
    assert [row["message"] for row in rows(url, "SELECT message FROM run_logs ORDER BY id")] == [
        "one works",
        "the other took over",
        "the first is back and does not interfere",
        "the first works again",
    ]


async def test_a_projector_that_is_stopped_hands_over_at_once(desk: Desk, url: str) -> None:
    """Its lease is free when it has gone, though it had an hour to run."""
    database = desk.store.database
    hints, leases = Hints(database, LOG), Leases(database, "first", 3600)
    async with anyio.create_task_group() as tasks:
        await tasks.start(Projector(database, desk.store.log, hints, leases, desk.path).run)
        await until(lambda: bool(rows(url, "SELECT 1 FROM leases WHERE holder = 'first'")))
        assert await Leases(database, "second", 1).take(ELECTION) is None
        tasks.cancel_scope.cancel()
    assert await Leases(database, "second", 1).take(ELECTION) is not None


async def test_a_projector_outlives_an_outage_in_every_step(desk: Desk) -> None:
    """All steps see it at once, and they go on later. Seen to end the process with Python 3.11.2, where what is raised
    in an `except*` becomes a group."""
    database, tries = desk.store.database, [0, 0]
    done = anyio.Event()

    async def step(number: int) -> bool:
        tries[number] += 1
        if tries[number] <= 2:
            raise Unavailable(reason="the server is stopped")
        if min(tries) > 2:
            done.set()
        return False

    also = [partial(step, number) for number in range(2)]
    hints = Hints(database, LOG)
    async with anyio.create_task_group() as tasks:
        leases = Leases(database, "first", 60)
        await tasks.start(Projector(database, desk.store.log, hints, leases, desk.path, also).run)
        with anyio.fail_after(60):
            await done.wait()
        tasks.cancel_scope.cancel()


async def test_a_file_that_cannot_be_written_stops_no_table_and_no_seal(
    desk: Desk, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder lies where a run's file should be. It is said again and again; when it is gone, the files go on."""
    monkeypatch.setattr(projecting, "DISK_PAUSE_S", 0.1)
    database, in_the_way = desk.store.database, desk.path(WORKSPACE, R1)
    in_the_way.mkdir(parents=True)
    await append(desk.store, {R1: [run_created()]})
    await append(desk.store, {R1: [line(R1, "a")]})
    hints = Hints(database, LOG)
    async with anyio.create_task_group() as tasks:
        await tasks.start(hints.run)
        projector = Projector(database, desk.store.log, hints, Leases(database, "first", 60), desk.path)
        await tasks.start(projector.run)
        await until(lambda: bool(rows(url, "SELECT 1 FROM run_logs") and rows(url, "SELECT 1 FROM seals")))
        in_the_way.rmdir()
        await until(in_the_way.is_file)
        await until(lambda: in_the_way.read_bytes().count(b"\n") == 2)
        tasks.cancel_scope.cancel()
