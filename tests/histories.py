"""Runs and builds that tests make up, told to a real log; and what a table or a feed says about them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import psycopg
from psycopg.rows import dict_row

from eventstore import Append, Appended, Feed, Line, NewEvent, Part, encode
from projections import events
from tests.conftest import Store

GOLDEN = Path(__file__).parent / "golden" / "events.ndjson"
ENVELOPE_SIZE = 7
"""Members of a line before its payload."""

WORKSPACE = "antarctica"


@dataclass(frozen=True)
class Example:
    """A line of the golden file: the event as it is served, and as it is stored."""

    line: bytes
    stream: str
    type: str
    envelope: tuple[str, ...]
    """The names of the line's members that are not the payload's."""
    data: dict[str, Any]

    @property
    def event(self) -> NewEvent:
        known = events.registry.get(self.type)
        bulk, ends = (True, False) if known is None else (known.bulk, known.ends)
        return NewEvent(self.type, encode(self.data), bulk=bulk, ends=ends)


def golden() -> list[Example]:
    """Every example, in the order of its id."""
    found = []
    for line in GOLDEN.read_bytes().splitlines():
        members = list(json.loads(line).items())
        envelope, payload = members[:ENVELOPE_SIZE], members[ENVELOPE_SIZE:]
        names = tuple(name for name, _ in envelope)
        found.append(Example(line, str(envelope[3][1]), str(envelope[2][1]), names, dict(payload)))
    return found


async def tell_golden(store: Store, copy: int = 1) -> None:
    """The golden log, appended; a second copy has other ids."""
    for example in golden():
        event, stream = example.event, example.stream.replace("_01K", f"_{copy:02}K")
        data = event.data.replace(b"_01K", b"_%02dK" % copy).replace(b'"penguins"', b'"penguins%d"' % copy)
        await tell(store, stream, event if copy == 1 else replace(event, data=data))


async def tell(store: Store, stream: str, *said: NewEvent, token: int | None = None) -> Appended:
    """Appends events to one stream."""
    return await store.appender.append(Append((Part(stream, said, workspace=WORKSPACE, token=token),)))


def run_created(build: str | None = None, max_attempts: int | None = None) -> NewEvent:
    return events.RunCreated(
        workspace_id=WORKSPACE,
        config_id="config_1",
        config_version=1,
        config_digest="d1",
        build_id=build,
        options={},
        inputs=[],
        requested_by="test",
        max_attempts=max_attempts,
    ).event()


def run_started(attempt: int = 1) -> NewEvent:
    return events.RunStarted(attempt=attempt, worker_id="w", build_id=None, command=["engine"]).event()


def build_created(fingerprint: str = "f1", max_attempts: int | None = None) -> NewEvent:
    return events.BuildCreated(
        workspace_id=WORKSPACE,
        config_id="config_1",
        config_version=1,
        reason="missing",
        fingerprint=fingerprint,
        engine=None,
        requested_by="test",
        max_attempts=max_attempts,
    ).event()


def build_started(attempt: int = 1) -> NewEvent:
    return events.BuildStarted(attempt=attempt, worker_id="w", python="3.11.9").event()


def line(stream: str, message: str) -> NewEvent:
    """A line of output for this run or build."""
    model = events.BuildLog if stream.startswith("build_") else events.RunLog
    return model(stream="stdout", message=message).event()


def rows(url: str, query: str, *values: object) -> list[dict[str, Any]]:
    """What a person with SQL sees now."""
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        found = connection.execute(query.encode(), values or None)
        return found.fetchall() if found.description else []


def table(url: str, name: str) -> list[dict[str, Any]]:
    """A whole table, in the order of its first column."""
    return rows(url, f"SELECT * FROM {name} AS t ORDER BY 1, t::text")


async def feed_bytes(store: Store, stream: str) -> bytes:
    """The lines of a run's or a build's feed, as a stream would serve them from its beginning."""
    row = await store.database.row(f"feed_of_{stream.split('_', maxsplit=1)[0]}", stream=stream)
    assert row is not None
    feed = Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"])
    lines: list[Line] = []
    while page := await store.log.read_feed(feed, lines[-1].id if lines else 0):
        lines += page
    return b"".join([one.line + b"\n" for one in lines])


async def until_blocked(url: str, statement: str = "%") -> dict[str, Any]:
    """Waits until somebody waits for a lock in this database, in such a statement; who, and since when."""
    query = """SELECT pid, query, query_start FROM pg_stat_activity
               WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s"""
    with anyio.fail_after(60):
        while True:
            if found := rows(url, query, statement):
                return found[0]
            await anyio.sleep(0.01)  # a server has no other way to say so than being asked
