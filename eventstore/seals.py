"""The hash chain over the log: what is changed, removed or inserted behind the database's back is found out.

Each event has a hash, over its envelope and the hash of its payload; where the payload was erased that hash has taken
its place, and the event's own hash stays. The chain is a hash over the chain before and the event's hash. A seal says
how the chain stands at an id, and keeps 8 bytes of the hash of each event that it covers, so that a bad one is named.

Seals are made off the hot path: sealing reads what is committed, takes no lock of the log, and holds no snapshot from
one step to the next. ``docs/chain.md`` says which bytes are hashed, for those who verify without this program.
"""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate

import anyio
from anyio.abc import TaskStatus

from eventstore.database import Database

logger = logging.getLogger("ade.seals")

GENESIS = hashlib.sha256(b"ade log chain v1").digest()
"""The chain before the first event."""
SEAL_EVENTS = 1_024
SEAL_INTERVAL_S = 0.5
"""How long the sealer lets events gather: half of the second that they may stay unsealed, for a step takes time too."""
MARK_BYTES = 8


def event_hash(hashed: bytes) -> bytes:
    """The hash of an event, from the bytes that the statement ``hashed_events`` makes of it."""
    return hashlib.sha256(hashed).digest()


def link(chain: bytes, of_event: bytes) -> bytes:
    """The chain after one more event."""
    return hashlib.sha256(chain + of_event).digest()


def marks(hashes: Sequence[bytes]) -> bytes:
    """What a seal keeps of the hashes of its events."""
    return b"".join([of_event[:MARK_BYTES] for of_event in hashes])


@dataclass(frozen=True, slots=True)
class Place:
    """How the chain stands after the event ``id``."""

    id: int
    chain_hash: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """A row of ``seals``: it covers the ids ``after + 1..upto``."""

    upto: int
    after: int
    chain_hash: bytes
    marks: bytes

    @property
    def sound(self) -> bool:
        """Whether it can be what it says: it has a mark for each of its events."""
        return self.after < self.upto and len(self.marks) == MARK_BYTES * (self.upto - self.after)

    def mark(self, event_id: int) -> bytes:
        """The mark of one of its events."""
        start = MARK_BYTES * (event_id - self.after - 1)
        return self.marks[start : start + MARK_BYTES]


async def sealed(database: Database) -> Place:
    """How far the log is sealed."""
    row = await database.row("last_seal")
    return Place(row["upto"], row["chain_hash"]) if row else Place(0, GENESIS)


class Sealer:
    """Seals the log. Two at once do no harm: a seal names the one before it, and of two such one is refused."""

    def __init__(self, database: Database, turns: AbstractAsyncContextManager[None] | None = None) -> None:
        """``turns``: taken for each step, where others must not do theirs at the same time."""
        self._database = database
        self._turns = turns or nullcontext()
        self._missing: int | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Seals what there is, over and over, until cancelled. Raises Unavailable."""
        task_status.started()
        while True:
            await self.catch_up()
            await anyio.sleep(SEAL_INTERVAL_S)

    async def catch_up(self) -> Place:
        """Seals everything that there is; how far the log is sealed then."""
        more = True
        while more:
            async with self._turns:
                more = await self._step()
        return await sealed(self._database)

    async def _step(self) -> bool:
        """Adds one seal; whether there may be more to do."""
        last = await sealed(self._database)
        rows = await self._database.rows("hashed_events", after=last.id, upto=last.id + SEAL_EVENTS)
        whole = [row for event_id, row in enumerate(rows, last.id + 1) if row["id"] == event_id]
        upto = last.id + len(whole)
        if len(whole) < len(rows) and self._missing != upto + 1:
            self._missing = upto + 1
            logger.error("event %d is missing: nothing from there on is sealed; ask `ade log verify`", self._missing)
        if not whole:
            return False
        hashes = [event_hash(row["hashed"]) for row in whole]
        *_, chain_hash = accumulate(hashes, link, initial=last.chain_hash)
        await self._database.rows("seal", upto=upto, after=last.id, chain_hash=chain_hash, marks=marks(hashes))
        return len(whole) == SEAL_EVENTS
