"""Hub and projector against the log: whoever watches, reads slowly, is cut or stopped, in whatever order, has it whole.

What is in the log is known from the appends. A viewer is right when it is given the next lines of its feed, and makes
progress when it is given all of them in the end; files and tables are right when they are what a fold of the log says.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import orjson
import psycopg
import pytest
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from eventstore import Append, Database, Feed, Log, NewEvent, Part
from eventstore import selection as selections
from eventstore.seals import Sealer
from eventstore.selection import Selection
from eventstore.tail import LOG, Hints
from projections import events, redaction
from projections import rebuild as rebuilding
from projections.log_files import LogFiles
from projections.rebuild import rebuild
from projections.redaction import redact
from projections.tables import ALL, CAUGHT_UP
from service import hub as hubs
from service import ring as rings
from service.api.streams import NDJSON_FRAME
from service.commands import build_completed, run_completed
from service.hub import Hub, Viewer, Watch
from tests import checker
from tests.checker import History, Told
from tests.conftest import Server, Store, open_store
from tests.histories import WORKSPACE, build_created, line, run_created

PATIENCE_S = 60
LOOK_LINES = 4
"""Lines of a feed that one look of the hub brings; ring and pages are small too, so that all of them overflow."""


class SmallLooks(Log):
    """A log of which the hub sees little at a time."""

    table_reads = 0

    async def read_feeds(self, cursors: Any, *, limit: int = LOOK_LINES) -> Any:
        return await super().read_feeds(cursors, limit=limit)

    async def read_feed(self, *arguments: Any, **named: Any) -> Any:
        self.table_reads += 1
        return await super().read_feed(*arguments, **named)


class Stoppable(Database):
    """A database whose user comes to a stop: before its n-th statement, or after it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.left = 0
        self.after = False
        self.stopped = anyio.Event()

    async def rows(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        self.left -= 1
        here = self.left == 0
        if here and not self.after:
            await self._stop()
        rows = await super().rows(statement, **parameters)
        if here and self.after:
            await self._stop()
        return rows

    async def _stop(self) -> None:
        self.stopped.set()
        await anyio.sleep_forever()


@dataclass(eq=False)
class Watching:
    """A viewer, and what it was given."""

    stream: str
    """The run or build, or the name of a selection."""
    after: int
    viewer: Viewer
    closing: AbstractContextManager[Viewer]
    lines: list[bytes] = field(default_factory=list)
    offers: int | None = None
    """How often it was to be written to while it slept; None where it can only be woken."""
    reading: anyio.CancelScope = field(default_factory=anyio.CancelScope)


CREATIONS = ("run.created", "build.created")
SELECTIONS: dict[str, tuple[Selection, Callable[[Told], bool]]] = {
    "everything": (Selection(), lambda _: True),
    "creations": (Selection(CREATIONS, control=True), lambda event: event.type in CREATIONS),
    "lines of a build": (
        Selection(("build.*",), stream="build_0"),
        lambda event: event.stream == "build_0" and event.type.startswith("build."),
    ),
    "what nobody says": (Selection(("engine.*",)), lambda _: False),
}
"""Some of the whole log: the filter, and what passes it."""
PLACES = st.integers(0, 7)


class HubMachine(RuleBasedStateMachine):
    """One emptied log for each machine; the hub and the projector are started anew in it."""

    server: ClassVar[Server]
    folder: ClassVar[Path]
    store: ClassVar[Store]
    stoppable: ClassVar[Stoppable]
    hints: ClassVar[Hints]
    tasks: ClassVar[TaskGroup]
    portal: ClassVar[BlockingPortal]
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Told] = []
        self.builds: dict[str, str | None] = {}
        """Of each run."""
        self.watching: list[Watching] = []
        self.erased: dict[int, bytes] = {}
        """Lines as they were, by id."""
        self.begun = False

    def wait(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        async def wait() -> Any:
            with anyio.fail_after(PATIENCE_S):
                return await ask()

        return self.portal.call(wait)

    # What happens to the deployment

    @initialize(build=st.booleans(), outages=st.sampled_from([0, 0, 0, 1]), rebuilds=st.sampled_from([0, 1]))
    def begin(self, build: bool, outages: int, rebuilds: int) -> None:
        self.outages, self.rebuilds = outages, rebuilds  # each takes a while
        self.server.empty()
        for path in self.folder.rglob("*.ndjson"):
            path.unlink()
        self.log = SmallLooks(self.store.database)
        self.files = self.new_files()
        self.wait(self.start_hub)
        self.begun = True
        self.create(build)

    async def start_hub(self) -> None:
        self.hub, self.running = Hub(self.log, self.hints), anyio.CancelScope()

        async def run(*, task_status: Any) -> None:
            with self.running:
                await self.hub.run(task_status=task_status)

        await self.tasks.start(run)

    def new_files(self) -> LogFiles:
        return LogFiles(self.stoppable, Log(self.stoppable), self.path_of)

    def path_of(self, _workspace: str, stream: str) -> Path:
        return self.folder / f"{stream}.ndjson"

    @precondition(lambda self: self.begun and len(self.builds) < 3)
    @rule(build=st.booleans())
    def create(self, build: bool) -> None:
        """A run, alone or with a build: its own, or that of another run."""
        run = f"run_{len(self.builds)}"
        others = [one for one in self.open if one.startswith("build_")]
        own = f"build_{len(self.builds)}"
        beside = (others[0] if others and len(self.builds) == 2 else own) if build else None
        self.builds[run] = beside
        parts = [Part(run, [run_created(beside)], WORKSPACE)]
        if beside == own:
            parts.append(Part(own, [build_created()], WORKSPACE))
        self.append(*parts)

    @property
    def open(self) -> list[str]:
        """Streams that have not ended."""
        ended = {event.stream for event in self.told if event.type.endswith(".completed")}
        return sorted({event.stream for event in self.told if event.stream != "system_log"} - ended)

    def append(self, *parts: Part) -> None:
        landed = self.wait(lambda: self.store.appender.append(Append(parts, key=f"{len(self.told)}")))
        lines = self.wait(lambda: self.store.log.read(landed.first_id - 1, upto=landed.last_id))
        payloads = [event for part in parts for event in part.events]
        for said, event in zip(lines, payloads, strict=True):
            seq = orjson.loads(said.line)["seq"]
            self.told.append(Told(said.id, said.stream, seq, said.type, event.bulk, event.data.decode(), said.line))

    @precondition(lambda self: self.begun and self.open)
    @rule(place=PLACES, lines=st.integers(1, 12), long=st.booleans())
    def publish(self, place: int, lines: int, long: bool) -> None:
        stream = self.open[place % len(self.open)]
        text = "x" * 200 if long else ""
        self.append(Part(stream, [line(stream, f"{len(self.told)}.{n} {text}") for n in range(lines)]))

    @precondition(lambda self: self.begun and len(self.open) > 1)
    @rule(place=PLACES)
    def end(self, place: int) -> None:
        stream = self.open[place % len(self.open)]
        last: NewEvent = build_completed("active", "completed").event()
        if stream.startswith("run_"):
            last = run_completed("succeeded", "completed").event()
        self.append(Part(stream, [last]))
        self.seen["ended"] += 1

    @precondition(lambda self: self.erasable)
    @rule(place=PLACES)
    def erase(self, place: int) -> None:
        """A line of output; the hub has looked past it when this returns."""
        event = self.erasable[-1 - place % len(self.erasable)]
        asked = events.EventRedacted(stream=event.stream, event_ids=[event.id], requested_by="me", reason="leaked")
        self.wait(lambda: redact(self.store.database, self.path_of, asked))
        self.erased[event.id] = event.line
        known = {told.id: told for told in self.told}
        for said in self.wait(lambda: self.store.log.read(0, limit=10_000)):
            old, members = known.get(said.id), orjson.loads(said.line)
            data = old.data if old else orjson.dumps({"by": "me"}).decode()
            known[said.id] = Told(
                said.id, said.stream, members["seq"], said.type, bool(old and old.bulk), data, said.line
            )
        self.told = [known[id_] for id_ in sorted(known)]
        assert self.told[event.id - 1].line != event.line
        if self.watching:
            self.wait(self.hub_has_looked)
        self.seen["erased"] += 1

    @property
    def erasable(self) -> list[Told]:
        return [event for event in self.told if event.bulk and event.id not in self.erased]

    async def hub_has_looked(self) -> None:
        """What it reads from here on is not from before: of two looks, the second begins after the first one's end."""
        loops: list[Watch[Any]] = [self.hub._feeds, self.hub._selections]
        for watch in loops * 2:
            before = watch.heartbeat
            while watch.heartbeat == before:
                self.hints.pulse()
                await anyio.sleep(0.001)  # a hub that has found nothing tells nobody

    # Viewers

    @property
    def history(self) -> History:
        return History(self.told)

    @property
    def feeds(self) -> list[str]:
        return sorted({event.stream for event in self.told if event.stream != "system_log"})

    def expected(self, stream: str, after: int) -> list[Told]:
        """What a viewer is to be given after a cursor."""
        if stream in SELECTIONS:
            passes = SELECTIONS[stream][1]
            return [event for event in self.told if event.id > after and passes(event)]
        return [event for event in self.history.feed(stream) if event.id > after]

    @precondition(lambda self: self.begun and len(self.watching) < 6)
    @rule(
        place=PLACES,
        after=st.sampled_from(["beginning", "middle", "head", "almost"]),
        limit=st.sampled_from([None, 0, 100]),
        written=st.booleans(),
    )
    def watch(self, place: int, after: str, limit: int | None, written: bool) -> None:
        """A new viewer; its first read gives what was there before it came, without waiting."""
        head = self.told[-1].id
        cursor = {"beginning": 0, "middle": head // 2, "head": head, "almost": head - 1}[after]
        sources = [*self.feeds, *SELECTIONS]
        one: Watching = self.wait(lambda: self.opened(sources[place % len(sources)], cursor))
        if written:
            self.let_write(one)
        self.watching.append(one)
        if limit is not None and one.stream not in SELECTIONS:
            self.wait(lambda: self.take(one, limit, 0))
            self.is_right(one)
            assert one.lines or not self.expected(one.stream, cursor)

    async def opened(self, stream: str, after: int) -> Watching:
        if stream in SELECTIONS:
            closing = self.hub.view(SELECTIONS[stream][0], after)
            return Watching(stream, after, closing.__enter__(), closing)
        row = await self.store.database.row(f"feed_of_{stream.partition('_')[0]}", stream=stream)
        assert row is not None
        closing = self.hub.view(Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"]), after)
        return Watching(stream, after, closing.__enter__(), closing)

    def let_write(self, one: Watching) -> None:
        one.offers = 0
        one.viewer.writes(partial(self.write, one), NDJSON_FRAME.page)

    def write(self, one: Watching, chunk: bytes) -> bool:
        """What the hub writes while a viewer sleeps; every third time its client has not taken what came before."""
        assert one.offers is not None
        one.offers += 1
        takes = one.offers % 3 != 0
        self.seen["written" if takes else "not taken"] += 1
        if takes:
            one.lines += chunk.split(b"\n")[:-1]
            one.reading.cancel()  # it may sleep on, which is nothing to wait for here
        return takes

    def chosen(self, place: int) -> Watching:
        return self.watching[place % len(self.watching)]

    @precondition(lambda self: self.watching)
    @rule(place=PLACES, limit=st.sampled_from([0, 1, 3, 100]))
    def read(self, place: int, limit: int) -> None:
        """What is at hand; a slow viewer is one that is seldom chosen."""
        self.wait(lambda: self.take(self.chosen(place), limit, 0))
        self.is_right(self.chosen(place))

    async def take(self, one: Watching, limit: int, timeout_s: float) -> None:
        """The next page of so many lines, or the next chunk (0)."""
        before, lines = self.log.table_reads, len(one.lines)
        with anyio.CancelScope() as one.reading:
            if limit:
                one.lines += [told.line for told in await one.viewer.page(timeout_s, limit)]
            else:
                *found, last = (await one.viewer.chunk(timeout_s, NDJSON_FRAME)).split(b"\n")
                assert last == b""
                bookmark = NDJSON_FRAME.bookmark(one.viewer.after).rstrip()
                self.seen["bookmarks"] += bookmark in found
                one.lines += [told for told in found if told != bookmark]
        if one.reading.cancel_called:
            return
        if len(one.lines) > lines:
            form, source = "pages" if limit else "chunks", "ring" if self.log.table_reads == before else "table"
            self.seen[f"{form} from the {source}"] += 1

    def is_right(self, one: Watching) -> None:
        """It was given the next lines of its feed, those that were erased as they were or as they are."""
        expected = self.expected(one.stream, one.after)
        assert len(one.lines) == sum(event.id <= one.viewer.after for event in expected)
        for given, event in zip(one.lines, expected, strict=False):
            assert given == event.line or given == self.erased.get(event.id)
        assert not one.viewer.ended or len(one.lines) == len(expected)

    @precondition(lambda self: self.watching)
    @rule(place=PLACES, limit=st.sampled_from([0, 1, 3, 100]))
    def read_on(self, place: int, limit: int) -> None:
        """All that there is comes, without an end to wait for; what was erased comes no more."""
        one = self.chosen(place)
        new = len(one.lines)
        self.wait(lambda: self.take_all(one, limit))
        self.is_right(one)
        assert not set(one.lines[new:]) & set(self.erased.values())

    async def take_all(self, one: Watching, limit: int) -> None:
        expected = len(self.expected(one.stream, one.after))
        while len(one.lines) < expected:
            await self.take(one, limit, PATIENCE_S)
        await self.take(one, limit, 0)  # nothing; and from here on it reads the ring
        self.seen["read to the end"] += one.viewer.ended

    @precondition(lambda self: self.watching)
    @rule(place=PLACES, limit=st.sampled_from([0, 1, 100]), lines=st.integers(1, 4))
    def follow(self, place: int, limit: int, lines: int) -> None:
        """It has everything, and then there is more; others who watch the same feed are given it too."""
        one = self.chosen(place)
        for other in [other for other in self.watching if other.stream == one.stream]:
            self.wait(lambda who=other: self.take_all(who, limit))  # type: ignore[misc]
        if one.stream in self.open:
            self.append(Part(one.stream, [line(one.stream, f"{len(self.told)}.{n}") for n in range(lines)]))
            for at, other in enumerate(self.watching):
                if other.stream == one.stream:
                    self.read_on(at, limit)

    @precondition(lambda self: self.watching)
    @rule(place=PLACES, lines=st.integers(1, 6))
    def sleep(self, place: int, lines: int) -> None:
        """It waits for what comes, and that is written to it, or it is woken."""
        one, done = self.chosen(place), anyio.Event()
        self.wait(lambda: self.take_all(one, 0))

        async def take() -> None:
            await self.take(one, 0, PATIENCE_S)
            done.set()

        async def asleep() -> None:
            self.tasks.start_soon(take)
            while one.viewer._sleep is None:
                await anyio.lowlevel.checkpoint()

        if one.stream in self.open:
            self.wait(asleep)
            self.append(Part(one.stream, [line(one.stream, f"{len(self.told)}.{n}") for n in range(lines)]))
            self.wait(done.wait)
            self.is_right(one)

    @precondition(lambda self: self.watching)
    @rule(place=PLACES, limit=st.sampled_from([0, 100]))
    def erase_what_is_not_read(self, place: int, limit: int) -> None:
        """A line that lies in the ring, before somebody who has everything else comes to it."""
        one = self.chosen(place)
        self.wait(lambda: self.take_all(one, limit))
        if one.stream in self.open:
            self.append(Part(one.stream, [line(one.stream, f"{len(self.told)}.{n}") for n in range(2)]))
            self.wait(self.hub_has_looked)
            self.erase(0)
            self.read_on(place, limit)
            self.seen["erased before it was read"] += 1

    @precondition(lambda self: self.watching and len(self.watching) < 6)
    @rule(place=PLACES, taken=st.integers(1, 3))
    def stand_within_a_page(self, place: int, taken: int) -> None:
        """Of two who have everything, one takes some of the lines that come, then the other all of them as a chunk."""
        one = self.chosen(place)
        self.wait(lambda: self.take_all(one, 0))
        if one.stream in self.open:
            other: Watching = self.wait(lambda: self.opened(one.stream, one.viewer.after))
            self.watching.append(other)
            self.wait(lambda: self.take_all(other, 1))
            self.append(Part(one.stream, [line(one.stream, f"{len(self.told)}.{n}") for n in range(4)]))
            self.wait(self.hub_has_looked)
            self.wait(lambda: self.take(other, taken, 0))
            for place_ in (self.watching.index(one), self.watching.index(other)):
                self.read_on(place_, 0)
            self.seen["stood within a page"] += 1

    @precondition(lambda self: self.watching)
    @rule(place=PLACES, limit=st.sampled_from([0, 3]), turns=st.integers(0, 12))
    def stop_reading(self, place: int, limit: int, turns: int) -> None:
        """A read that is cancelled after so many turns of the loop; the viewer goes on where it was."""
        one = self.chosen(place)

        async def stop() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.take, one, limit, PATIENCE_S)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()

        self.wait(stop)
        self.is_right(one)
        self.seen["reads cancelled"] += 1

    @precondition(lambda self: self.watching)
    @rule(place=PLACES, comes_back=st.booleans())
    def close(self, place: int, comes_back: bool) -> None:
        """It may come back with its cursor."""
        one = self.watching.pop(place % len(self.watching))
        one.closing.__exit__(None, None, None)
        if comes_back:
            self.watching.append(self.resumed(one))

    def resumed(self, one: Watching) -> Watching:
        again: Watching = self.wait(lambda: self.opened(one.stream, one.viewer.after))
        again.after, again.lines = one.after, one.lines
        if one.offers is not None:
            self.let_write(again)
        return again

    @precondition(lambda self: self.begun)
    @rule(drain=st.booleans(), lines=st.integers(0, 9), turns=st.integers(0, 30))
    def restart_hub(self, drain: bool, lines: int, turns: int) -> None:
        """Stopped in the middle of a look or drained; its viewers come back to another one."""
        if lines and self.open:
            self.publish(0, lines, long=False)

        async def stop() -> None:
            if drain:
                for one in self.watching[::2]:
                    await self.take_all(one, 0)
            async with anyio.create_task_group() as tasks:
                if drain:
                    for one in self.watching:
                        tasks.start_soon(self.take, one, 0, PATIENCE_S * 2)  # ends at once, with lines or without
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                if drain:
                    self.hub.drain()
            self.running.cancel()
            await self.start_hub()

        self.wait(stop)
        left, self.watching = self.watching, []
        for one in left:
            self.is_right(one)
            one.closing.__exit__(None, None, None)
            self.watching.append(self.resumed(one))
        self.seen["drained" if drain else "stopped"] += bool(left)

    @precondition(lambda self: self.begun and self.outages)
    @rule()
    def drop_every_connection(self) -> None:
        with psycopg.connect(self.store.database.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        self.seen["outages"] += 1
        self.outages -= 1

    # The projector

    @precondition(lambda self: self.begun)
    @rule(
        what=st.sampled_from(["files", "files", "run_logs", "build_logs", "seals"]),
        stop=st.integers(0, 6),
        after=st.booleans(),
    )
    def project(self, what: str, stop: int, after: bool) -> None:
        """One step, or what of it is done when it is killed before or after any statement (0: it is not)."""
        done = False

        async def step() -> None:
            nonlocal done
            match what:
                case "files":
                    await self.files.step()
                case "seals":
                    await Sealer(self.stoppable).catch_up()
                case _:
                    await self.stoppable.rows("catch_up", projection=what, most=5)
            done = True
            self.stoppable.stopped.set()

        async def until_stopped() -> None:
            self.stoppable.left, self.stoppable.after, self.stoppable.stopped = stop, after, anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step)
                await self.stoppable.stopped.wait()
                tasks.cancel_scope.cancel()
            self.stoppable.left = 0

        self.wait(until_stopped)
        if not done:
            self.files.close()
            self.files = self.new_files()
            self.seen["projector killed"] += 1

    @precondition(lambda self: self.begun and self.rebuilds)
    @rule(projection=st.sampled_from(ALL))
    def rebuild(self, projection: Any) -> None:
        self.wait(lambda: rebuild(self.store.database.url, projection))
        self.seen["rebuilt"] += 1
        self.rebuilds -= 1

    # The end

    def teardown(self) -> None:
        if self.begun:
            try:
                self.everybody_has_everything()
            finally:
                for one in self.watching:
                    one.closing.__exit__(None, None, None)
                self.files.close()
                self.portal.call(self.running.cancel)

    def everybody_has_everything(self) -> None:
        """Now that nothing moves: viewers old and new, files, tables, chain."""
        for stream in (*self.feeds, *SELECTIONS):
            self.watching.append(self.wait(lambda of=stream: self.opened(of, 0)))  # type: ignore[misc]
        self.seen["machines"] += 1
        if self.seen["machines"] % 6 == 0:
            self.drop_every_connection()
        for place in range(len(self.watching)):
            self.read_on(place, place % 2)
        for place, one in enumerate(self.watching.copy()):
            match place % 3:
                case 0:
                    self.follow(place, place % 2, 2)
                case 1:
                    self.let_write(one)
                    for lines in (1, 2, 3):
                        self.sleep(place, lines)
                case 2:
                    self.stand_within_a_page(place, 1)
        self.wait(self.finish_projecting)
        if self.rebuilds:
            self.rebuild(ALL[len(self.told) % len(ALL)])
        url = self.store.database.url
        history = self.wait(lambda: History.read(self.store.database))
        assert [event.line for event in history.events] == [told.line for told in self.told]
        findings = checker.first(
            checker.numbering(history),
            checker.endings(history),
            checker.files(history, self.path_of),
            checker.tables(history, url),
            self.wait(lambda: checker.chain(self.store.database)),
        )
        assert findings == []

    async def finish_projecting(self) -> None:
        while await self.files.step():
            pass
        for projection in CAUGHT_UP:
            await self.store.database.rows("catch_up", projection=projection.name, most=10_000)


AT_LEAST = {
    "pages from the ring": 20,
    "pages from the table": 20,
    "chunks from the ring": 20,
    "chunks from the table": 20,
    "written": 10,
    "not taken": 5,
    "bookmarks": 10,
    "read to the end": 10,
    "reads cancelled": 3,
    "ended": 10,
    "erased": 10,
    "erased before it was read": 1,
    "stood within a page": 1,
    "drained": 1,
    "stopped": 1,
    "outages": 1,
    "projector killed": 10,
    "rebuilt": 5,
}
"""What the whole run must have seen, so that nothing above holds for want of trying."""


@asynccontextmanager
async def backstage(url: str) -> Any:
    """What all machines use: the log, hints, and the projector's database."""
    async with (
        asynccontextmanager(open_store)(url) as store,
        Stoppable(url) as stoppable,
        anyio.create_task_group() as tasks,
    ):
        hints = Hints(store.database, LOG, poll_s=0.1)
        await tasks.start(hints.run)
        yield store, stoppable, hints, tasks
        tasks.cancel_scope.cancel()


@pytest.fixture
def machine(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HubMachine]]:
    monkeypatch.setattr(rings, "RING_BYTES", 2_000)
    monkeypatch.setattr(rings, "RING_BYTES_VIEWER", 100)
    monkeypatch.setattr(rings, "CHUNK_BYTES", 500)
    monkeypatch.setattr(hubs, "PAGE", 3)
    monkeypatch.setattr(selections, "EXAMINED_ROWS", 10)
    monkeypatch.setattr(redaction, "PAGE_S", 0)  # no projector is in the middle of a page
    monkeypatch.setattr(rebuilding, "PAGE_IDS", 10)
    monkeypatch.setattr(rebuilding, "CLOSE_IDS", 9)
    HubMachine.server, HubMachine.folder = server, tmp_path
    with (
        start_blocking_portal() as HubMachine.portal,
        HubMachine.portal.wrap_async_context_manager(backstage(server.empty())) as opened,
    ):
        HubMachine.store, HubMachine.stoppable, HubMachine.hints, HubMachine.tasks = opened
        yield HubMachine


def test_everybody_has_the_whole_log_in_the_end(machine: type[HubMachine]) -> None:
    """Viewers and projector, stopped and started in every order; nothing is lost, twice, or after its end."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,  # so that what it must have seen does not depend on the day
            phases=[Phase.generate],  # not shrunk: each try is a hundred appends
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    few = {name: machine.seen[name] for name, least in AT_LEAST.items() if machine.seen[name] < least}
    assert not few, f"too few to prove anything: {few}"
