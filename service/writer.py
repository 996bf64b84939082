"""How a worker writes: under its lease, its lines in order, and through a database that may be away for a while."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio
import orjson

from eventstore import Append, Appender, Lease, NewEvent, Part, encode
from eventstore.appender import BATCH_EVENTS
from eventstore.clock import jitter, now, rfc3339
from eventstore.errors import Unavailable
from service.handler import Handler, State
from service.work.lines import Line, Telemetry

PATIENCE_S = 7 * 24 * 3600.0
"""A database that is away stops no work: the engine waits at its pipe, and the fence is the token, not the time."""

LATE_S = 1.0
"""A line that waits for longer says when it was read: `created_at` is when it was appended."""

Answer = TypeVar("Answer")
Decision = Callable[[State], Sequence[NewEvent]]


class Writer:
    """Writes one run or build for as long as its lease is the newest. Raises Fenced when it is not."""

    def __init__(self, appender: Appender, handler: Handler, lease: Lease, prefix: str) -> None:
        self._appender = appender
        self._handler = handler
        self._lease = lease
        self._prefix = prefix
        self._position = 0
        self._one_at_a_time = anyio.Lock()

    async def lines(self, found: Sequence[Line | Telemetry], *, read_at: float | None = None, **members: Any) -> None:
        """Output, as bulk events. ``members`` are added to each line; ``read_at``: when, if not now (seconds since the
        epoch)."""
        read_at = now() if read_at is None else read_at
        async with self._one_at_a_time:
            for start in range(0, len(found), BATCH_EVENTS):
                await self._append_lines(found[start : start + BATCH_EVENTS], read_at, members)

    async def _append_lines(self, batch: Sequence[Line | Telemetry], read_at: float, members: dict[str, Any]) -> None:
        if now() - read_at < LATE_S:
            try:
                await self._append(self._events(batch, members), LATE_S)
                return
            except Unavailable:  # perhaps they landed all the same: then their position is known when it comes again
                pass
        await self._append(self._events(batch, {"emitted_at": rfc3339(read_at), **members}), PATIENCE_S)

    async def say(self, message: str, **members: Any) -> None:
        """A line of the service's own."""
        line = {"stream": "system", "message": message, **members}
        event = NewEvent(f"{self._prefix}.log", encode(line), bulk=True)
        async with self._one_at_a_time:
            await self._append((event,), PATIENCE_S)

    async def decide(
        self, load: Callable[[str], Awaitable[State]], decision: Decision[State], known: State | None = None
    ) -> int | None:
        """Control events: what the decision says about the newest state. See :meth:`Handler.decide`."""
        return await patiently(
            lambda: self._handler.decide(
                self._lease.stream, load, decision, known=known, token=self._lease.token, patience_s=PATIENCE_S
            )
        )

    async def _append(self, events: Sequence[NewEvent], patience_s: float) -> None:
        part = Part(self._lease.stream, events, token=self._lease.token, position=self._position)
        await self._appender.append(Append((part,)), patience_s=patience_s)
        self._position += len(events)

    def _events(self, found: Sequence[Line | Telemetry], members: dict[str, Any]) -> list[NewEvent]:
        """One each. Most lines are a stream and a message in ASCII: for these no object is built to be encoded."""
        type_, told = f"{self._prefix}.log", []
        heads = {stream: encode({"stream": stream, "message": ""})[:-3] for stream in ("stdout", "stderr")}
        tail = b"," + encode(members)[1:] if members else b"}"
        for item in found:
            if isinstance(item, Telemetry):
                told.append(NewEvent(item.type, encode({**item.members, "stream": item.stream}), bulk=True))
                continue
            stream, message, part, truncated, overwritten = item
            if part is truncated is overwritten is None and (text := orjson.dumps(message)).isascii():
                data = heads[stream] + text + tail
            else:
                line = {name: value for name, value in item._asdict().items() if value is not None}
                data = encode({**line, **members})
            told.append(NewEvent(type_, data, bulk=True))
        return told


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a call that may be repeated, when the database is back."""
    while True:
        try:
            return await call()
        except Unavailable:
            await anyio.sleep(jitter(0.2, 1.0))
