"""The log against a model: whatever is asked of it, in whatever order, a few lines of plain Python say the same."""

from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar

import orjson
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from eventstore import NEW, Append, Appended, Feed, Leases, NewEvent, Part, encode
from eventstore.appender import _answer, _columns, _Waiting
from eventstore.database import Connection, call, connect
from eventstore.errors import Conflict, Fenced, KeyReused
from eventstore.selection import Selection, select
from tests.conftest import Server, Store, open_store

# The model


@dataclass
class Stream:
    """What is known of a stream that exists."""

    workspace: str
    last_seq: int = 0
    last_control_id: int = 0
    ended: bool = False


@dataclass
class Model:
    """The log, as its documentation tells it. An outcome is a class, and for what landed its ids."""

    head: int
    streams: dict[str, Stream] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    keys: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    events: list[tuple[int, str, int, NewEvent]] = field(default_factory=list)

    def take(self, stream: str) -> int | None:
        """The token of a lease that is always free to take, since it expires at once."""
        if stream in self.streams and self.streams[stream].ended:
            return None
        self.tokens[stream] = self.tokens.get(stream, 0) + 1
        self.positions[stream] = 0
        return self.tokens[stream]

    def append(self, append: Append) -> tuple[str, int, int]:
        """The outcome, and the ids of what landed now or before."""
        if append.key in self.keys:
            digest, first_id, last_id = self.keys[append.key]
            return ("duplicate", first_id, last_id) if digest == append.digest else ("key reused", 0, 0)
        for part in append.parts:
            if refusal := self._refusal(part):
                return (refusal, 0, 0)
        first_id = self.head + 1
        for part in append.parts:
            self._land(part)
        for part in append.parts:
            if not part.events:
                self.streams[part.stream].last_control_id = self.head
        if append.key is not None:
            self.keys[append.key] = (append.digest, first_id, self.head)
        return ("appended", first_id, self.head)

    def _refusal(self, part: Part) -> str | None:
        stream = self.streams.get(part.stream)
        if part.token is not None:
            if part.token != self.tokens.get(part.stream):
                return "fenced"
            if part.position is not None and part.position != self.positions[part.stream]:
                return "duplicate" if part.position < self.positions[part.stream] else "conflict"
        if stream is None:
            return None if part.workspace and part.events and part.expect in (None, NEW) else "conflict"
        if stream.ended or (part.expect is not None and (part.expect == NEW or part.expect != stream.last_control_id)):
            return "conflict"
        return None

    def _land(self, part: Part) -> None:
        stream = self.streams.setdefault(part.stream, Stream(part.workspace or ""))
        for event in part.events:
            self.head += 1
            stream.last_seq += 1
            stream.ended = event.ends
            if not event.bulk:
                stream.last_control_id = self.head
            self.events.append((self.head, part.stream, stream.last_seq, event))
        if part.position is not None and part.token is not None:
            self.positions[part.stream] += len(part.events)


def told(outcome: Appended | Exception) -> tuple[str, int, int]:
    """An outcome in the model's words."""
    match outcome:
        case Appended(first_id, last_id, duplicate):
            return ("duplicate" if duplicate else "appended", first_id, last_id)
        case Conflict():
            return ("conflict", 0, 0)
        case Fenced():
            return ("fenced", 0, 0)
        case KeyReused():
            return ("key reused", 0, 0)
    raise outcome


# What the machine may ask for


EVENTS = {
    "control": NewEvent("job.noted", b'{"n":1}'),
    "line": NewEvent("job.line", encode({"m": 'a "b"\n\u2028'}), bulk=True),
    "end": NewEvent("job.ended", b"{}", ends=True),
}


@dataclass(frozen=True)
class PartWish:
    """A part, in words that the model turns into numbers when its turn has come."""

    stream: int
    events: tuple[str, ...]
    """None is a claim."""
    expects: bool
    leased: bool
    counts: bool
    mistake: str


@dataclass(frozen=True)
class Wish:
    parts: tuple[PartWish, ...]
    key: str


def mostly(right: str, *wrong: str) -> st.SearchStrategy[str]:
    return st.sampled_from([*[right] * 8 * len(wrong), *wrong])


STREAMS = st.integers(0, 5)
PARTS = st.builds(
    PartWish,
    stream=STREAMS,
    events=st.one_of(
        st.lists(st.sampled_from(["control", "line"]), min_size=1, max_size=4),
        st.lists(st.just("line"), max_size=4),
        st.sampled_from([["control"]] * 7 + [["control", "end"]]),
    ).map(tuple),
    expects=st.booleans(),
    leased=st.sampled_from([True, True, False]),
    counts=st.sampled_from([True, True, False]),
    mistake=mostly("", "stale", "ahead", "new", "no workspace", "old token", "no such token", "repeated", "gap"),
)
WISHES = st.builds(
    Wish,
    parts=st.lists(PARTS, min_size=1, max_size=3, unique_by=lambda part: part.stream)
    .filter(lambda parts: any(part.events for part in parts))
    .map(tuple),
    key=st.sampled_from(["", "", "fresh", "fresh", "used", "reused"]),
)


class LogMachine(RuleBasedStateMachine):
    """One database for all machines; each has streams and keys of its own, and the model begins at the head."""

    store: ClassVar[Store]
    writer: ClassVar[Connection]
    portal: ClassVar[BlockingPortal]
    machines: ClassVar[Iterator[int]] = count()
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(page=st.integers(1, 5))
    def begin(self, page: int) -> None:
        self.name = f"job_{next(self.machines)}"
        self.begun = self.wait(self.store.log.head())
        self.model = Model(self.begun)
        self.reached = self.begun
        self.page = page
        self.followed = 0

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.reads_the_same(0, 1000)
        for stream in self.model.streams:
            self.stands_where_it_should(stream)

    def wait(self, asked: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await asked

        return self.portal.call(wait)

    def meant(self, wish: Wish) -> Append:
        """The append that a wish stands for, as the model is now."""
        parts = tuple(map(self.part, wish.parts))
        used = list(self.model.keys)
        if wish.key == "fresh":
            return Append(parts, f"{self.name}:{len(used)}", "digest")
        if wish.key and used:
            return Append(parts, used[-1], "digest" if wish.key == "used" else "another")
        return Append(parts)

    def part(self, wish: PartWish) -> Part:
        stream = f"{self.name}-{wish.stream}"
        known = self.model.streams.get(stream)
        newest = known.last_control_id if known else NEW
        token = self.model.tokens.get(stream) if wish.leased else None
        position = self.model.positions[stream] if wish.counts and token else None
        expect = newest if wish.expects and (newest or not known) else None
        match wish.mistake:
            case "stale" | "ahead":
                expect = newest + (1 if wish.mistake == "ahead" else -1)
            case "new":
                expect = NEW
            case "old token" | "no such token":
                token = self.model.tokens.get(stream, 0) + (1 if wish.mistake == "no such token" else -1)
            case "repeated" | "gap" if position is not None:
                position += 1 if wish.mistake == "gap" else -1
        workspace = None if wish.mistake == "no workspace" else "ws"
        return Part(stream, [EVENTS[event] for event in wish.events], workspace, expect, token, position)

    def expected(self, append: Append) -> tuple[str, int, int]:
        outcome = self.model.append(append)
        self.seen[outcome[0]] += 1
        if outcome[0] == "appended":
            self.seen["several streams"] += len(append.parts) > 1
            self.seen["claimed"] += any(not part.events for part in append.parts)
            self.seen["ended"] += any(part.events[-1].ends for part in append.parts if part.events)
            self.seen["under a lease"] += any(part.position for part in append.parts if part.token)
        return outcome

    @rule(wish=WISHES)
    def append(self, wish: Wish) -> None:
        """By the appender, as everybody does it."""
        self.take_what_is_wanted([wish])
        append = self.meant(wish)
        try:
            outcome = told(self.wait(self.store.appender.append(append)))
        except (Conflict, Fenced, KeyReused) as refused:
            outcome = told(refused)
        assert outcome == self.expected(append)

    @rule(wishes=st.lists(WISHES, min_size=2, max_size=6))
    def append_in_one_batch(self, wishes: list[Wish]) -> None:
        """Each of a batch is judged by what those before it have left."""
        self.take_what_is_wanted(wishes)
        appends, expected = [], []
        for wish in wishes:
            appends.append(self.meant(wish))
            expected.append(self.expected(appends[-1]))
        rows = self.wait(call(self.writer, "append", *_columns([_Waiting(append, patience_s=0) for append in appends])))
        assert [
            told(_answer(append, row["outcome"], row)) for append, row in zip(appends, rows, strict=True)
        ] == expected

    def take_what_is_wanted(self, wishes: list[Wish]) -> None:
        """So that most of those who want to write under a lease can."""
        for stream in sorted({part.stream for wish in wishes for part in wish.parts if part.leased}):
            if f"{self.name}-{stream}" not in self.model.tokens:
                self.take(stream)

    @rule(stream=STREAMS)
    def take(self, stream: int) -> None:
        """Every lease here expires at once, so that it can always be taken."""
        name = f"{self.name}-{stream}"
        lease = self.wait(Leases(self.store.database, "machine", 0).take(name))
        assert (lease and lease.token) == self.model.take(name)
        self.seen["taken"] += lease is not None

    @rule(skip=st.integers(0, 30), limit=st.integers(1, 10))
    def reads_the_same(self, skip: int, limit: int) -> None:
        """The lines after a cursor are the model's events, with their places."""
        lines = self.wait(self.store.log.read(self.begun + skip, limit=limit))
        expected = self.model.events[skip : skip + limit]
        assert [(line.id, line.stream, line.type) for line in lines] == [
            (place, stream, event.type) for place, stream, _, event in expected
        ]
        for line, (place, _, seq, event) in zip(lines, expected, strict=True):
            told = orjson.loads(line.line)
            assert (told["id"], told["seq"]) == (place, seq)
            assert line.line.endswith(event.data[1:])

    @rule(stream=STREAMS, beside=STREAMS, after=st.integers(0, 30))
    def tells_the_same_of_a_stream(self, stream: int, beside: int, after: int) -> None:
        """Its control events, and its feed with another stream beside it."""
        name, other = f"{self.name}-{stream}", f"{self.name}-{beside}"
        own = [(place, seq, event) for place, of, seq, event in self.model.events if of == name]
        folded = self.wait(self.store.log.control_events(name))
        assert [(event.id, event.seq, event.type) for event in folded] == [
            (place, seq, event.type) for place, seq, event in own if not event.bulk
        ]
        if own:
            first, last = own[0][0], own[-1][0] if self.model.streams[name].ended else None
            feed = Feed(name, other if other != name else None, first, last)
            lines = self.wait(self.store.log.read_feed(feed, self.begun + after))
            assert [line.id for line in lines] == [
                place
                for place, of, _, _ in self.model.events
                if of in feed.streams and first <= place <= (last or place) and place > self.begun + after
            ]
            self.stands_where_it_should(name)

    def stands_where_it_should(self, name: str) -> None:
        row = self.wait(self.store.log.stream(name))
        own = [(place, event) for place, of, _, event in self.model.events if of == name]
        known = self.model.streams[name]
        assert (row.first_id, row.last_id, row.last_seq) == (own[0][0], own[-1][0], known.last_seq)
        assert (row.last_control_id, row.ended_id) == (known.last_control_id, row.last_id if known.ended else None)

    @rule()
    def follows(self) -> None:
        """The next page of the whole log, from where the machine began."""
        found = self.wait(select(self.store.database, [(Selection(), self.reached)], limit=self.page))
        ((lines, self.reached),) = found.pages
        expected = self.model.events[self.followed : self.followed + self.page]
        assert [line.id for line in lines] == [place for place, *_ in expected]
        self.followed += len(lines)
        self.seen["followed"] += len(lines)


AT_LEAST = {
    "appended": 60,
    "conflict": 20,
    "fenced": 5,
    "duplicate": 20,
    "key reused": 10,
    "several streams": 20,
    "claimed": 3,
    "ended": 2,
    "under a lease": 2,
    "taken": 30,
    "followed": 30,
}
"""What the whole run must have seen, so that nothing above holds for want of trying."""


@pytest.fixture
def machine(server: Server) -> Iterator[type[LogMachine]]:
    """The machine on an open log."""
    opened = asynccontextmanager(open_store)(server.empty())
    with start_blocking_portal() as LogMachine.portal, LogMachine.portal.wrap_async_context_manager(opened) as store:
        LogMachine.store = store
        LogMachine.writer = LogMachine.portal.call(connect, store.database.url)
        yield LogMachine
        LogMachine.portal.call(LogMachine.writer.close)


def test_the_log_does_what_its_model_says(machine: type[LogMachine]) -> None:
    """Appends, conflicts, keys, fences, positions, claims, ends, reads and tails, in every order."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=50,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
    few = {name: machine.seen[name] for name, least in AT_LEAST.items() if machine.seen[name] < least}
    assert not few, f"too few to prove anything: {few}"
