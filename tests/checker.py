"""Reads a whole history and says what is wrong with it: no finding, it holds.

It shares nothing with the code that it judges but the names of the columns and the folds in memory: what is in the log
is read by plain SQL, what a feed is stands here once more, and what writers and readers know they have told themselves.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, Self

import orjson
import psycopg
from psycopg.rows import dict_row

from eventstore import Database, Event, Log
from eventstore.seals import Sealer
from eventstore.verification import verify
from projections import build as builds
from projections import run as runs
from projections.events import TERMINAL

MOST = 12
"""Findings that are shown: one cause has many."""

# What is judged


@dataclass(frozen=True)
class Told:
    """A row of the log, and the line that is served for it."""

    id: int
    stream: str
    seq: int
    type: str
    bulk: bool
    data: str
    line: bytes = b""
    workspace: str = ""
    recorded_at: float = 0.0


@dataclass
class Attempt:
    """One append as its caller knows it. No payload occurs twice in a stream, so that each can be found again."""

    parts: Sequence[tuple[str, Sequence[str]]]
    """Streams, and the payloads that were to be added to each."""
    outcome: str = "unknown"
    """``landed`` and ``refused`` is what the caller was told; ``unknown``: it may be there or not, but whole."""
    first_id: int = 0
    """Where it landed; 0 where only a position said that it had."""

    @property
    def wanted(self) -> list[tuple[str, str]]:
        return [(stream, data) for stream, added in self.parts for data in added]


@dataclass
class Reading:
    """What one reader was given: of a stream's feed, or of the whole log (""), after a cursor."""

    name: str
    stream: str
    after: int
    lines: list[bytes] = field(default_factory=list)
    complete: bool = False
    """It was told that this is all, or has waited for the last line: then nothing may be missing at the end either."""


@dataclass
class History:
    """A whole log."""

    events: list[Told]
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The rows of the table ``streams``."""

    @classmethod
    async def read(cls, database: Database) -> Self:
        """The log as it is now; nobody writes any more."""
        with psycopg.connect(database.url, row_factory=dict_row) as connection:
            events = connection.execute(
                "SELECT id, stream, seq, type, bulk, data, workspace, extract(epoch FROM recorded_at)::float8 AS"
                " recorded_at FROM events ORDER BY id"
            ).fetchall()
            streams = connection.execute("SELECT * FROM streams_with_last").fetchall()
        log = Log(database)
        lines: list[bytes] = []
        while page := await log.read(events[len(lines) - 1]["id"] if lines else 0):
            lines += [line.line for line in page]
        told = [Told(**{**row, "line": line}) for row, line in zip(events, lines, strict=True)]
        return cls(told, {row["stream"]: row for row in streams})

    @cached_property
    def by_stream(self) -> dict[str, list[Told]]:
        found = defaultdict(list)
        for event in self.events:
            found[event.stream].append(event)
        return dict(found)

    def feed(self, stream: str) -> list[Told]:
        """The events of a feed: of a run those of its build too, from its first event to its last."""
        if not stream:
            return self.events
        own = self.by_stream.get(stream, [])
        if not own:
            return []
        beside = orjson.loads(own[0].data).get("build_id") if stream.startswith("run_") else None
        first, ended = own[0].id, [event.id for event in own if event.type in TERMINAL]
        shown = own + (self.by_stream.get(beside, []) if beside else [])
        return sorted(
            (event for event in shown if first <= event.id <= (ended[0] if ended else event.id)), key=lambda one: one.id
        )

    def lines(self, stream: str, after: int = 0) -> list[bytes]:
        """The lines of a feed after a cursor."""
        return [event.line for event in self.feed(stream) if event.id > after]


# The judges


def numbering(history: History) -> Iterator[str]:
    """Ids and seqs are dense, and the line says the same."""
    for place, event in enumerate(history.events, 1):
        if event.id != place:
            yield f"event {event.id} stands in place {place}"
    for stream, own in history.by_stream.items():
        for seq, event in enumerate(own, 1):
            if event.seq != seq:
                yield f"event {event.id} is number {event.seq} of {stream}, in place {seq}"
    for event in history.events:
        line = orjson.loads(event.line)
        if tuple(map(line.get, ("id", "seq", "type"))) != (event.id, event.seq, event.type):
            yield f"event {event.id} is served as {event.line[:100]!r}"


def endings(history: History) -> Iterator[str]:
    """A stream ends once, nothing follows its end, and `streams` says where it stands."""
    for stream, own in history.by_stream.items():
        ended = [event.id for event in own if event.type in TERMINAL and stream.startswith(("run_", "build_"))]
        if len(ended) > 1:
            yield f"{stream} ends {len(ended)} times: {ended}"
        if ended and own[-1].id != ended[0]:
            yield f"event {own[-1].id} follows the end of {stream}, {ended[0]}"
        row = history.streams.get(stream, {})
        control = [event.id for event in own if not event.bulk]
        stands = (own[0].id, own[-1].id, len(own), ended[0] if ended else None)
        says = tuple(row.get(name) for name in ("first_id", "last_id", "last_seq", "ended_id"))
        if says != stands or row["last_control_id"] < max(control, default=0):
            yield f"`streams` says {row} of {stream}, whose events say {stands}"
    for stream in history.streams.keys() - history.by_stream.keys():
        yield f"`streams` has {stream}, of which there is no event"


def appends(history: History, attempts: Iterable[Attempt], *, others: Iterable[str] = ()) -> Iterator[str]:
    """What was acknowledged is there once, in place and order; what was not, at most once and whole; nothing else.

    ``others`` are streams to which somebody else wrote too.
    """
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in history.events:
        places[event.stream, event.data].append(event.id)
    for attempt in attempts:
        found = [places.pop(one, []) for one in attempt.wanted]
        told = f"an append that {attempt.outcome} ({attempt.wanted[0][0]}, {attempt.wanted[0][1][:80]})"
        ids = [some[0] for some in found if some]
        if any(len(some) > 1 for some in found):
            yield f"{told} is there more than once: {found}"
        elif 0 < len(ids) < len(found):
            yield f"{told} is there in part: {found}"
        elif attempt.outcome == "landed" and not ids:
            yield f"{told} is not there"
        elif attempt.outcome == "refused" and ids:
            yield f"{told} is there, at {ids}"
        elif ids and ids != list(range(attempt.first_id or ids[0], (attempt.first_id or ids[0]) + len(ids))):
            yield f"{told} at {attempt.first_id} is there at {ids}"
    strangers = [ids for (stream, _), ids in places.items() if stream not in set(others)]
    for ids in strangers:
        yield f"nobody wrote event {ids[0]}"


def readings(history: History, told: Iterable[Reading]) -> Iterator[str]:
    """Each reader was given the log from its cursor on: a prefix of it, the whole rest where it is complete."""
    for reading in told:
        expected = history.lines(reading.stream, reading.after)
        who = f"{reading.name} of {reading.stream or 'the log'} after {reading.after}"
        for place, line, right in zip(count(), reading.lines, expected, strict=False):
            if line != right:
                yield f"{who} was given {line[:80]!r} in place {place}, where {right[:80]!r} stands"
                break
        else:
            if len(reading.lines) > len(expected):
                yield f"{who} was given {reading.lines[len(expected)][:80]!r}, after the end"
            elif reading.complete and len(reading.lines) < len(expected):
                yield f"{who} was given {len(reading.lines)} of {len(expected)} lines"


def files(history: History, path_of: Callable[[str, str], Path]) -> Iterator[str]:
    """Every log file holds the bytes of its feed."""
    for stream, own in history.by_stream.items():
        if not stream.startswith(("run_", "build_")):
            continue
        path = path_of(own[0].workspace, stream)
        content = path.read_bytes() if path.exists() else b""
        lines, torn = content.split(b"\n")[:-1], content.rpartition(b"\n")[2]
        yield from readings(history, [Reading("the file", stream, 0, lines, complete=True)])
        if torn:
            yield f"the file of {stream} ends with {torn[:80]!r}"


def tables(history: History, url: str) -> Iterator[str]:
    """Every row of `runs`, `builds` and the tables of lines is what a fold of the events says."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        for kind, fold in (("run", runs.fold), ("build", builds.fold)):
            rows = {row["id"]: row for row in connection.execute(f"SELECT * FROM {kind}s".encode())}
            streams = [stream for stream in history.by_stream if stream.startswith(f"{kind}_")]
            for stream in rows.keys() ^ set(streams):
                yield f"{kind}s and the log differ about whether there is {stream}"
            for stream in rows.keys() & set(streams):
                control = [_event(event) for event in history.feed(stream) if not event.bulk]
                state = fold(stream, control)
                folded = {column: getattr(state, column) for column in rows[stream]}
                if written(rows[stream]) != written(folded):
                    yield f"{kind}s says {rows[stream]}, the fold {folded}"
            found = connection.execute(f"SELECT id, {kind}_id, message FROM {kind}_logs ORDER BY id".encode())
            said = [tuple(row.values()) for row in found]
            lines = ((e, orjson.loads(e.data)) for e in history.events if e.bulk and e.stream.startswith(f"{kind}_"))
            folded_lines = [(e.id, e.stream, d["message"]) for e, d in lines if isinstance(d.get("message"), str)]
            if said != folded_lines:
                yield f"{kind}_logs has {len(said)} rows that are not the {len(folded_lines)} lines of the log"


def _event(told: Told) -> Event:
    data = orjson.loads(told.data)
    return Event(told.id, told.stream, told.seq, told.workspace, told.type, told.recorded_at, data)


def written(members: dict[str, Any]) -> dict[str, bytes]:
    """Values as text, so that 1, 1.0 and true are three; times as the folds have them."""
    plain = {name: value.timestamp() if isinstance(value, datetime) else value for name, value in members.items()}
    return {name: orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for name, value in plain.items()}


async def chain(database: Database) -> list[str]:
    """What a verification of the whole log finds, after it has been sealed to its end."""
    head = await Sealer(database).catch_up()
    report = await verify(database)
    findings = [f"event {finding.id} {finding.what}" for finding in report.findings]
    return findings if report.sealed == head and not report.unsealed else [*findings, "the log is not sealed"]


def first(*findings: Iterable[str]) -> list[str]:
    """The first things that are wrong, of each judge; empty where all holds."""
    return [finding for judge in findings for finding in islice(judge, MOST)]
