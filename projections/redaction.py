"""Erasing what was said: a secret that leaked into the output of a run, personal data in it.

The hash of a payload takes its place in the log, so that the chain still verifies; the row of the line goes; the log
files of this machine are written anew. ``event.redacted`` says who erased what, and why. Asked again, it finishes what
was broken off.
"""

import fcntl
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from eventstore import Database, Feed, Log
from eventstore.errors import CallerMistake, RebuildRunning
from projections.events import EventRedacted
from projections.feeds import feed_of
from projections.log_files import PathOf
from projections.ndjson_file import FeedFile

MOST_EVENTS = 1_000
"""Events that one redaction covers: appends wait for it."""
PAGE_S = 5.0
"""More than a projector needs for the page that it has in its hands."""


class NotInStream(CallerMistake):
    """These events are not in this stream; a build's lines, which its runs show too, are in the build's own."""


class NotRedactable(CallerMistake):
    """Only output and telemetry can be erased: what runs, builds and configs are now rests on all other events."""


class TooManyEvents(CallerMistake):
    """One redaction covers fewer events; ask several times."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """``by`` is the ``event.redacted``, None where all were redacted before; ``files`` are those written anew.

    ``repeated_by`` is the end of the run or build, where its ``error_message`` repeats what was erased: that stays.
    """

    by: int | None
    files: tuple[Path, ...]
    repeated_by: int | None = None


async def redact(database: Database, path_of: PathOf, asked: EventRedacted) -> Redacted:
    """Erases the payloads of events everywhere but in the log files of other machines.

    Raises NotInStream, NotRedactable, TooManyEvents, RebuildRunning.
    """
    ids = asked.event_ids
    if len(ids) > MOST_EVENTS:
        raise TooManyEvents(most=MOST_EVENTS)
    found = {row["id"]: row for row in await database.rows("redactable_events", stream=asked.stream, ids=ids)}
    if strangers := sorted(set(ids) - found.keys()):
        raise NotInStream(stream=asked.stream, event_ids=strangers)
    if control := {row["id"]: row["type"] for row in found.values() if not row["bulk"]}:
        raise NotRedactable(events=control)
    repeated = await database.row("repeated_by", stream=asked.stream, ids=ids)
    row = await database.row("redact", stream=asked.stream, ids=ids, says=asked.event().data.decode())
    if row is None or row["outcome"] == "rebuilding":
        raise RebuildRunning
    files = await _write_files_anew(database, path_of, asked.stream, ids)
    return Redacted(row["redacted_by"], tuple(files), repeated["id"] if repeated else None)


async def _write_files_anew(database: Database, path_of: PathOf, stream: str, ids: Sequence[int]) -> list[Path]:
    """The log files that show these events and are here, from the log as it is now."""
    await _let_pass(database, max(ids))
    log = Log(database)
    written = []
    for shown in await database.rows("feeds_with_events", stream=stream, first=min(ids), last=max(ids)):
        found = await feed_of(database, shown["stream"])
        if found is not None:
            path = path_of(found.workspace, shown["stream"])
            if await _write_anew(log, path, found.feed):
                written.append(path)
    return written


async def _let_pass(database: Database, event_id: int) -> None:
    """Waits for the projector, which may be about to write a page that it read before: a stopped one has none."""
    deadline = time.monotonic() + PAGE_S
    while time.monotonic() < deadline:
        row = await database.row("checkpoint_of", projection="log_files")
        if row is not None and row["id"] >= event_id:
            return
        await anyio.sleep(PAGE_S / 50)


async def _write_anew(log: Log, path: Path, feed: Feed) -> bool:
    """Puts a new file in the place of an old one; whether there was one.

    The projector sees that its own is gone, and goes on with this one: which reaches to the head, so that of what it
    read before the redaction nothing is fresh to it.
    """
    if (owner := _owner(path)) is None:
        return False
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        await anyio.to_thread.run_sync(fcntl.flock, folder, fcntl.LOCK_EX)  # of two redactions, the last one sees both
        fresh = path.with_name(f"{path.name}.redacted")
        fresh.unlink(missing_ok=True)  # of one that was broken off
        file = FeedFile(fresh, feed)
        await file.catch_up(log, await log.head())
        file.close()
        os.chown(fresh, *owner)  # the service's, where root redacts
        fresh.replace(path)
    finally:
        os.close(folder)
    return True


def _owner(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_uid, found.st_gid
