"""Comparing the log with its seals: which event is not what was sealed, and in what way.

Who can write seals can write new ones over a changed log. That is found against a head that somebody kept elsewhere:
see :mod:`eventstore.signed_head`.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import orjson

from eventstore.database import Database
from eventstore.log import FOREVER, Identity, Log
from eventstore.seals import GENESIS, SEAL_EVENTS, Place, Seal, event_hash, link, marks, sealed

PAGE_IDS = 4 * SEAL_EVENTS
"""What one read of a verification covers."""
MOST_FINDINGS = 20
"""More of them are counted and not kept: they have one cause."""

Progress = Callable[[int, int], None]
Rows = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and the first event that it concerns."""

    id: int
    what: str


@dataclass
class Verified:
    """What a verification of ``first_id..last_id`` found; the log is sound where that is nothing.

    ``sealed`` is how far the log was sealed when it began, ``unsealed`` how many events there were after that.
    """

    first_id: int
    last_id: int
    sealed: Place
    unsealed: int
    findings: list[Finding] = field(default_factory=list)
    count: int = 0
    """Of all findings, those too that were not kept."""

    def found(self, event_id: int, what: str) -> None:
        """One more thing that is wrong."""
        self.count += 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(event_id, what))


async def verify(
    database: Database,
    *,
    first: int = 1,
    last: int = FOREVER,
    kept: Place | None = None,
    progress: Progress = lambda _done, _of: None,
) -> Verified:
    """Compares ``first..last`` with the seals, while appends go on.

    It begins after a seal; of a part of the log, the chain at that seal is believed. Of the whole log it also looks at
    the segments, which lead a reader to the events of a stream. ``kept`` is how the chain stood
    when somebody looked, and needs the log from its beginning. ``progress`` is told the id reached, and the last one.
    """
    row = await database.row("seal_before", id=first)
    start = Place(row["upto"], row["chain_hash"]) if row else Place(0, GENESIS)
    end = await sealed(database)
    identity = await Log(database).identity()  # after the seals: what they cover must be there
    stop = min(last, identity.head)
    report = Verified(start.id + 1, max(stop, start.id), end, max(identity.head - end.id, 0))
    if start.id == 0 and identity.oldest < 1 <= identity.head:
        report.found(identity.oldest, "was inserted: the first event has the id 1")
    walk = _Walk(database, start, report, kept)
    await walk.learn_redactions()
    while walk.at < stop:
        await walk.page(stop, identity.head)
        progress(min(walk.at, stop), stop)
    if identity.head < min(last, end.id):
        report.found(identity.head + 1, f"is missing, and so is all that was sealed after it, up to {end.id}")
    elif kept is not None and kept.id > identity.head:
        report.found(identity.head + 1, f"is missing: the log had {kept.id} events when the head was kept")
    if (first, last) == (1, FOREVER) and report.count == 0:  # else it is the events that are not what they were
        await _judge_segments(database, identity, report)
    report.findings.sort(key=lambda finding: finding.id)
    return report


async def _judge_segments(database: Database, identity: Identity, report: Verified) -> None:
    """Whether the segments lead to every event, in its place: who reads a feed sees what they lead to, and no more."""
    stream, last_id, led = "", 0, 0
    while rows := await database.rows("misplaced", stream=stream, last_id=last_id, upto=identity.head):
        for row in rows:
            led += row["last_id"] - row["first_id"] + 1
            if row["wrong"]:
                report.found(
                    row["first_id"],
                    f"is not where {row['stream']} is read: its segment, or the one before, was changed",
                )
        stream, last_id = rows[-1]["stream"], rows[-1]["last_id"]
    short = report.count == 0 and led != identity.head - identity.oldest + (identity.head > 0)
    if short and (unled := await database.row("unled", upto=identity.head)):
        report.found(unled["id"], "is not read with its stream: its segment is gone")


class _Walk:
    """Goes over the log, seal by seal. ``at`` is the id that it has reached, ``chain`` how the chain stands there."""

    def __init__(self, database: Database, start: Place, report: Verified, kept: Place | None) -> None:
        self._database = database
        self._report = report
        self._kept = kept
        self._redacted_by: dict[int, int] = {}
        self.at, self.chain = start.id, start.chain_hash

    async def learn_redactions(self) -> None:
        """Which payloads were erased, according to the log."""
        for row in await self._database.rows("redactions"):
            self._redacted_by |= {i: int(row["id"]) for i in _redacted_ids(row["data"]) if i < row["id"]}

    async def page(self, stop: int, head: int) -> None:
        """The next seals that begin before ``stop``, and their events; where there are none, events alone."""
        sealed_id = self._report.sealed.id
        reach = min(self.at + PAGE_IDS, max(head, sealed_id))
        found = await self._database.rows("seals", after=self.at, upto=min(reach, sealed_id))
        seals = [Seal(**row) for row in found]
        reach = min(seals[-1].upto if seals else reach, head)
        erased = dict(self._redacted_by)  # before the rows: what is erased after they are read is no finding
        rows = {row["id"]: row for row in await self._database.rows("hashed_events", after=self.at, upto=reach)}
        for row in rows.values():
            if row["redacted"]:
                await self._judge_redaction(row["id"])
            elif row["id"] in erased:
                by = erased[row["id"]]
                self._report.found(row["id"], f"has a payload again, which event {by} had erased")
        for seal in seals:
            if max(self.at, seal.after) < stop:
                self._compare(rows, seal, head)
        if self.at < min(reach, stop):
            if self.at < sealed_id:
                self._report.found(self.at + 1, "is under no seal, though later events are")
            self._go(rows, min(reach, stop))

    def _compare(self, rows: Rows, seal: Seal, head: int) -> None:
        """The events that a seal covers, then the chain."""
        found, named, upto = self._report.found, f"the one up to {seal.upto}", min(seal.upto, head)
        if seal.sound and seal.after > self.at:
            found(self.at + 1, f"is under no seal: the one up to {seal.after} is missing")
            self._go(rows, seal.after)
        if not seal.sound or seal.after != self.at:
            found(self.at + 1, f"is under a seal that was changed, {named}")
            self._go(rows, upto)
        else:
            hashes = self._go(rows, upto)
            fits = hashes is not None and self.chain == seal.chain_hash
            if hashes is not None and seal.marks.startswith(marks(hashes)):
                if upto == seal.upto and not fits:
                    found(seal.after + 1, f"is under a seal whose hash is another, {named}")
            elif fits:
                found(seal.after + 1, f"is under a seal whose marks were changed, {named}")
            else:
                self._name_changed(rows, seal, upto)
        self.chain = seal.chain_hash  # so that what comes after it is judged by itself

    def _go(self, rows: Rows, upto: int) -> list[bytes] | None:
        """On to an id; the hashes of the events on the way, None where some are missing."""
        ids = range(self.at + 1, upto + 1)
        begun, self.at = self.at, upto
        hashes = [event_hash(rows[event_id]["hashed"]) for event_id in ids if event_id in rows]
        if len(hashes) < len(ids):
            for first, last in _runs([event_id for event_id in ids if event_id not in rows]):
                self._report.found(first, "is missing" if first == last else f"is missing, and so is all up to {last}")
            return None
        links = list(accumulate(hashes, link, initial=self.chain))
        if self._kept is not None and begun <= self._kept.id <= upto:
            if links[self._kept.id - begun] != self._kept.chain_hash:
                self._report.found(self._kept.id, "or one before it is another than when the head was kept")
            self._kept = None
        self.chain = links[-1]
        return hashes

    def _name_changed(self, rows: Rows, seal: Seal, upto: int) -> None:
        """Which events of a seal are not what was sealed, and where those stand now."""
        changed = [
            event_id
            for event_id in range(seal.after + 1, upto + 1)
            if event_id in rows and not event_hash(rows[event_id]["hashed"]).startswith(seal.mark(event_id))
        ]
        for place, event_id in enumerate(changed):
            # Looked for where it will be read: in a log that was renumbered every event has changed.
            moved = _moved_to(rows, changed, event_id, seal.mark(event_id)) if place < MOST_FINDINGS else None
            self._report.found(event_id, "is not what was sealed" + (f": that stands at {moved} now" if moved else ""))

    async def _judge_redaction(self, event_id: int) -> None:
        if event_id not in self._redacted_by:
            await self.learn_redactions()  # it may have been erased a moment ago
        if event_id not in self._redacted_by:
            self._report.found(event_id, "has lost its payload, and no `event.redacted` says so")


def _redacted_ids(data: bytes) -> list[int]:
    """The events that an ``event.redacted`` names; none where somebody damaged it."""
    try:
        said = orjson.loads(data)["event_ids"]
        return [event_id for event_id in said if isinstance(event_id, int)]
    except (ValueError, KeyError, TypeError):
        return []  # it is reported as changed itself


def _moved_to(rows: Rows, changed: Sequence[int], event_id: int, mark: bytes) -> int | None:
    """Where the event stands that was sealed under this id."""
    own = struct.pack(">q", event_id)
    for other in changed:
        if event_hash(own + rows[other]["hashed"][len(own) :]).startswith(mark):
            return other
    return None


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each unbroken row of ids."""
    first: int | None = None
    for place, event_id in enumerate(ids):
        first = event_id if first is None else first
        if place + 1 == len(ids) or ids[place + 1] != event_id + 1:
            yield first, event_id
            first = None
