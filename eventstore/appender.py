"""Group commit: what waits goes out as one batch, and one batch is in flight.

Two lanes: control appends overtake bulk ones, so that a flood of lines delays no cancel. Within a lane order is kept;
whoever needs order between the lanes awaits the first append. A lost connection is waited out, and what may be sent
twice (see ``Append.repeatable``) is sent again; only what may not is given back as :class:`Unavailable`.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio.abc import TaskStatus

from eventstore.clock import jitter
from eventstore.database import BigInts, Bools, Connection, Database, Ints, Text, Texts, call, connect
from eventstore.errors import Conflict, Fenced, InvalidEvent, KeyReused, StoreBug, TooLarge, Unavailable
from eventstore.event import Append, Appended, NewEvent

logger = logging.getLogger("ade.appender")

BATCH_EVENTS = 4_000
BATCH_BYTES = 8 * 2**20
APPEND_EVENTS = 10_000
APPEND_BYTES = 64 * 2**20
"""The largest single append; a batch is closed by what would make it larger than ``BATCH_…``, never split."""

WAITING_BYTES = 64 * 2**20
"""Bulk appends wait for room beyond this much, and so hold back the engine that writes them."""

PATIENCE_S = 10.0
"""How long an append waits for a database that is away, unless its caller says otherwise."""

HINT_TIMEOUT_S = 1.0
HINT_INTERVAL_S = 0.004
"""Hints go out at once when idle and no closer than this under load: NOTIFY takes a lock of the whole server."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What a batch has added to the log: ``seconds`` from its sending to its commit, ``bytes`` of payload."""

    seconds: float
    events: int
    bytes: int
    control: Sequence[tuple[str, NewEvent]]
    """Its control events, each with its stream."""


class _Waiting:
    """An append on its way. What is sent is made here, while the batch before it is with the server."""

    __slots__ = (
        "answer",
        "append",
        "bulk",
        "bytes",
        "deadline",
        "done",
        "error",
        "events",
        "kinds",
        "payloads",
        "size",
    )

    def __init__(self, append: Append, patience_s: float) -> None:
        streams = [part.stream for part in append.parts]
        if len(set(streams)) != len(streams) or not any(part.events for part in append.parts):
            raise InvalidEvent(streams=streams, reason="an append needs events, and each stream once")
        self.append = append
        self.kinds = [part.kinds() for part in append.parts]
        payloads = [[event.data for event in part.events] for part in append.parts]
        self.bytes = [sum(map(len, of_part)) for of_part in payloads]
        self.payloads = b"\n".join([b"\n".join(of_part) for of_part in payloads if of_part])
        self.events = sum(map(len, payloads))
        self.size = sum(self.bytes)
        self.bulk = all(kind.bulk for of_part in self.kinds for kind in of_part)
        if self.size > APPEND_BYTES or self.events > APPEND_EVENTS:
            raise TooLarge(bytes=self.size, events=self.events, most_bytes=APPEND_BYTES, most_events=APPEND_EVENTS)
        self.deadline = time.monotonic() + patience_s
        self.done = anyio.Event()
        self.answer: Appended | None = None
        self.error: Exception | None = None

    def finish(self, answer: Appended | Exception) -> None:
        if isinstance(answer, Appended):
            self.answer = answer
        else:
            self.error = answer
        self.done.set()


class Appender:
    """The writer of one process. Start :meth:`run` in a task group, then :meth:`append` from anywhere in it.

    ``observe`` is told of each batch that has landed; it must neither wait nor fail.
    """

    def __init__(self, database: Database, observe: Callable[[Landed], None] = lambda _: None) -> None:
        self._database = database
        self._observe = observe
        self._control: deque[_Waiting] = deque()
        self._bulk: deque[_Waiting] = deque()
        self._bulk_bytes = 0
        self._work = anyio.Event()
        self._room = anyio.Event()
        self._connection: Connection | None = None
        self._hint = anyio.Event()
        self._moved = False
        self._away = False

    async def append(self, append: Append, *, patience_s: float = PATIENCE_S) -> Appended:
        """Lands the append, or raises Conflict, Fenced, KeyReused, InvalidEvent, TooLarge or Unavailable."""
        waiting = _Waiting(append, patience_s)
        if waiting.bulk:
            while self._bulk_bytes > WAITING_BYTES:
                await self._room.wait()
            self._bulk_bytes += waiting.size
            self._bulk.append(waiting)
        else:
            self._control.append(waiting)
        self._work.set()
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error
        if waiting.answer is None:
            raise StoreBug(reason="an append was finished without an answer")
        return waiting.answer

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Sends batches until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send_hints)
            task_status.started()
            try:
                while True:
                    await self._work.wait()
                    batch = self._next_batch()
                    if batch:
                        await self._deliver(batch)
                    else:
                        self._work = anyio.Event()
            finally:
                await self._disconnect()
                if self._hint.is_set():  # who appends and stops at once has readers too
                    await self._send_hint()

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        events = size = 0
        for lane in (self._control, self._bulk):
            while lane:
                events += lane[0].events
                size += lane[0].size
                if batch and (events > BATCH_EVENTS or size > BATCH_BYTES):
                    return batch
                batch.append(lane.popleft())
                if lane is self._bulk:
                    self._bulk_bytes -= batch[-1].size
                    if self._bulk_bytes <= WAITING_BYTES:
                        self._room.set()
                        self._room = anyio.Event()
        return batch

    async def _deliver(self, batch: Sequence[_Waiting]) -> None:
        delay_s = 0.02
        while batch:
            try:
                await self._send(batch)
                self._tell(None)
                return
            except Unavailable as away:
                self._tell(away)
                await self._disconnect()
                batch = _who_can_wait(batch, away)
                await anyio.sleep(jitter(delay_s / 2, delay_s))
                delay_s = min(delay_s * 2, 1.0)
            except Exception as error:  # noqa: BLE001 - handed to the caller whose append it is
                await self._disconnect()
                if len(batch) == 1:
                    batch[0].finish(error)
                    return
                for waiting in batch:  # one of them is broken; the others are not to suffer
                    await self._deliver([waiting])
                return

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        if self._connection is None:
            self._connection = await connect(self._database.url)
        sent = time.monotonic()
        rows = await call(self._connection, "append", *_columns(batch))
        took_s = time.monotonic() - sent
        for waiting, row in zip(batch, rows, strict=True):
            waiting.finish(_answer(waiting.append, row["outcome"], row))
            if row["outcome"] == "appended":
                self._moved = self._moved or not waiting.bulk
                self._hint.set()
        new = [waiting for waiting, row in zip(batch, rows, strict=True) if row["outcome"] == "appended"]
        if new:
            self._observe(_landed(new, took_s))

    def _tell(self, away: Unavailable | None) -> None:
        """Says once that nothing can be written, and why, and once that it can be again: engines stand still meanwhile,
        and a full disk of the database shows nowhere else."""
        if (away is not None) == self._away:
            return
        self._away = away is not None
        if away is not None:
            reason = str(away.facts.get("reason")).partition("\n")[0]
            logger.warning("the database takes no events; what writes waits", extra={"reason": reason})
        else:
            logger.warning("the database takes events again")

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await connection.close()

    async def _send_hints(self) -> None:
        while True:
            await self._hint.wait()
            await self._send_hint()
            await anyio.sleep(HINT_INTERVAL_S)

    async def _send_hint(self) -> None:
        self._hint = anyio.Event()
        moved, self._moved = self._moved, False
        with anyio.move_on_after(HINT_TIMEOUT_S, shield=True), suppress(Unavailable):  # may be lost: readers poll
            await self._database.rows("hint", moved=moved)


def _landed(new: Sequence[_Waiting], seconds: float) -> Landed:
    parts = [part for waiting in new if not waiting.bulk for part in waiting.append.parts]
    control = [(part.stream, event) for part in parts for event in part.events if not event.bulk]
    return Landed(seconds, sum(waiting.events for waiting in new), sum(waiting.size for waiting in new), control)


def _who_can_wait(batch: Sequence[_Waiting], away: Unavailable) -> list[_Waiting]:
    patient = []
    for waiting in batch:
        if not waiting.append.repeatable:
            waiting.finish(Unavailable(reason=away.facts.get("reason"), landed="unknown"))
        elif time.monotonic() > waiting.deadline:
            waiting.finish(away)
        else:
            patient.append(waiting)
    return patient


def _answer(append: Append, outcome: str, row: dict[str, object]) -> Appended | Exception:
    match outcome:
        case "appended" | "duplicate":
            first_id, last_id = row["first_id"], row["last_id"]
            return Appended(int(str(first_id or 0)), int(str(last_id or 0)), duplicate=outcome == "duplicate")
        case "conflict":
            return Conflict(stream=row["stream"], last_control_id=row["last_control_id"])
        case "fenced":
            return Fenced(stream=row["stream"])
        case "key_reused":
            return KeyReused(key=append.key)
        case _:
            return StoreBug(outcome=outcome)


def _columns(batch: Sequence[_Waiting]) -> tuple[object, ...]:
    """The parameters of ``append_events_v2``, column by column."""
    parts = [(number, part) for number, waiting in enumerate(batch, 1) for part in waiting.append.parts]
    of_parts = [of_part for waiting in batch for of_part in waiting.kinds]
    kinds = [(number, kind) for number, of_part in enumerate(of_parts, 1) for kind in of_part]
    return (
        Ints(number for number, _ in parts),
        Texts(part.stream for _, part in parts),
        Texts(part.workspace for _, part in parts),
        BigInts(part.expect for _, part in parts),
        BigInts(part.token for _, part in parts),
        BigInts(part.position for _, part in parts),
        Ints(len(part.events) for _, part in parts),
        BigInts(size for waiting in batch for size in waiting.bytes),
        Ints(max((kind.place + kind.events for kind in of_part if not kind.bulk), default=0) for of_part in of_parts),
        Bools(bool(part.events) and part.events[-1].ends for _, part in parts),
        Texts(waiting.append.key for waiting in batch),
        Texts(waiting.append.digest for waiting in batch),
        Ints(number for number, _ in kinds),
        Ints(kind.place for _, kind in kinds),
        Ints(kind.events for _, kind in kinds),
        Texts(kind.type for _, kind in kinds),
        Bools(kind.bulk for _, kind in kinds),
        Text(b"\n".join([waiting.payloads for waiting in batch])),
    )
