"""The keys that are in use in this process: a request with one of them asks no database.

The table is the truth. All that is known is read anew whenever something was appended (a revocation is), and every
second; whoever holds a key that is dead by then learns of it. So a revocation is felt on every node within a second, no
message can be missed, and a key that was read just before it died is not believed for longer than others.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskStatus

from eventstore import Database
from eventstore.errors import Unavailable
from eventstore.tail import Hints
from service.keys import EVERYWHERE, Caller, Key, SignedPath, Streams
from service.roles import Role
from service.token_bucket import TokenBucket

LOOK_S = 0.1
"""The least time between two looks; appends may come thousands of times a second."""
NOTED_S = 60.0
"""How often the last use of a key is written down."""
LOOKUPS = 4
"""Keys that are looked up at the same time: who floods us with invented ones takes this share of the connections."""


@dataclass(slots=True, eq=False)
class _Known:
    caller: Caller
    sha256: bytes
    dies_at: float
    bucket: TokenBucket
    used: bool = True


class KnownKeys:
    """Start :meth:`run` in a task group. ``on_end`` is called when a caller is over.

    ``per_second`` and ``burst`` limit the requests of each key, ``streams`` its open streams, its sessions and signed
    addresses included.
    """

    def __init__(
        self,
        database: Database,
        hints: Hints,
        on_end: Callable[[], None],
        *,
        per_second: float,
        burst: int,
        streams: float = math.inf,
    ) -> None:
        self._database, self._hints, self._on_end = database, hints, on_end
        self._per_second, self._burst = per_second, burst
        self._buckets: dict[str, TokenBucket] = {}
        self._most_streams = streams
        self._streams: dict[str, Streams] = {}
        self._known: dict[str, _Known] = {}
        self._noted: dict[str, float] = {}
        self._lookups = anyio.CapacityLimiter(LOOKUPS)

    async def bearer(self, key: Key) -> tuple[Caller, float] | None:
        """Who comes with this key, and for how many seconds he is to wait; None where the key is good for nothing."""
        known = await self._find(key.id)
        return self._use(known) if known is not None and key.proves(known.sha256) else None

    async def reader(self, signed: SignedPath) -> tuple[Caller, float] | None:
        """Who comes with a signed address; that its time is not over is for the caller to see."""
        known = await self._find(signed.key_id)
        return self._use(known) if known is not None and signed.proves(known.sha256) else None

    async def sign(self, unsigned: SignedPath) -> SignedPath | None:
        """The right to read a path; None where its key died just now."""
        known = await self._find(unsigned.key_id)
        return None if known is None else unsigned.sign(known.sha256)

    def _use(self, known: _Known) -> tuple[Caller, float]:
        known.used = True
        return known.caller, known.bucket.take()

    async def _find(self, key_id: str) -> _Known | None:
        known = self._known.get(key_id)
        if known is None:
            async with self._lookups:
                row = await self._database.row("live_keys", ids=[key_id])
            if row is None:
                return None
            known = self._known.setdefault(key_id, self._met(row))  # of two who looked at once, the first
        return known if time.monotonic() < known.dies_at else None

    def _met(self, row: dict[str, Any]) -> _Known:
        workspaces = None if EVERYWHERE in row["workspaces"] else frozenset(row["workspaces"])
        streams = self._streams.setdefault(row["key_id"], Streams(self._most_streams))
        caller = Caller(row["key_id"], Role(row["role"]), workspaces, streams)
        dies_at = math.inf if row["left_s"] is None else time.monotonic() + row["left_s"]
        bucket = self._buckets.setdefault(row["key_id"], TokenBucket(self._per_second, self._burst))
        return _Known(caller, bytes(row["sha256"]), dies_at, bucket)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keeps what is known as true as the table is, until cancelled."""
        task_status.started()
        while True:
            wait = self._hints.next()
            try:
                await self._look()
                await self._note()
            except Unavailable:  # who is known stays so: without the database there is nothing to be seen
                await anyio.sleep(LOOK_S)
            await anyio.sleep(LOOK_S)
            await wait()

    async def _look(self) -> None:
        ids = list(self._known)
        if not ids:
            return
        live = {row["id"] for row in await self._database.rows("live_keys", ids=ids)}
        dead = [self._known.pop(key_id) for key_id in ids if key_id not in live]
        for known in dead:
            known.caller.over = True
        if dead:
            self._on_end()

    async def _note(self) -> None:
        """Writes down which keys were used, here and so rarely: a request is not to wait for it, nor to be a write."""
        now = time.monotonic()
        used = [known for known in self._known.values() if known.used]
        due = {known.caller.name for known in used} - {name for name, at in self._noted.items() if now - at < NOTED_S}
        if due:
            await self._database.rows("used_keys", ids=sorted(due))
            self._noted |= dict.fromkeys(due, now)
            for known in used:
                known.used = known.caller.name not in due
