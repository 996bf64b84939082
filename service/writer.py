"""How a worker writes: under its lease, its lines in order, and through a database that may be away for a while."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import anyio

from eventstore import Append, Appender, Lease, NewEvent, Part, encode
from eventstore.appender import BATCH_EVENTS
from eventstore.clock import jitter
from eventstore.errors import Unavailable
from service.handler import Handler, State
from service.work.lines import Line, Telemetry

PATIENCE_S = 7 * 24 * 3600.0
"""A database that is away stops no work: the engine waits at its pipe, and the fence is the token, not the time."""

MASK = "***"

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
        self._secrets: tuple[str, ...] = ()

    def mask(self, secrets: Iterable[str]) -> None:
        """From here on these values are hidden in all lines; :meth:`hide` does it for what is not a line."""
        self._secrets = tuple(secrets)

    def hide(self, value: Any) -> Any:
        """The value without the secrets: in its strings and keys, so that it stays the JSON that it was."""
        if not self._secrets:
            return value
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, MASK)
            return value
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.hide(item) for item in value]
        return value

    async def lines(self, found: Sequence[Line | Telemetry], **members: Any) -> None:
        """Output, as bulk events; ``members`` are added to each line."""
        events = [self._event(item, members) for item in found]
        async with self._one_at_a_time:
            for start in range(0, len(events), BATCH_EVENTS):
                batch = events[start : start + BATCH_EVENTS]
                part = Part(self._lease.stream, batch, token=self._lease.token, position=self._position)
                await self._appender.append(Append((part,)), patience_s=PATIENCE_S)
                self._position += len(batch)

    async def say(self, message: str, **members: Any) -> None:
        """A line of the service's own."""
        line = {"stream": "system", "message": message, **members}
        event = NewEvent(f"{self._prefix}.log", encode(line), bulk=True)
        async with self._one_at_a_time:
            part = Part(self._lease.stream, (event,), token=self._lease.token, position=self._position)
            await self._appender.append(Append((part,)), patience_s=PATIENCE_S)
            self._position += 1

    async def decide(self, load: Callable[[str], Awaitable[State]], decision: Decision[State]) -> None:
        """Control events: what the decision says about the newest state."""
        await patiently(
            lambda: self._handler.decide(
                self._lease.stream, load, decision, token=self._lease.token, patience_s=PATIENCE_S
            )
        )

    def _event(self, item: Line | Telemetry, members: dict[str, Any]) -> NewEvent:
        if isinstance(item, Telemetry):
            type_, data = item.type, encode({**self.hide(item.members), "stream": item.stream})
        else:
            line: dict[str, Any] = {"stream": item.stream, "message": self.hide(item.message)}
            if item.part is not None:
                line["part"] = item.part
            if item.truncated is not None:
                line["truncated"] = item.truncated
            type_, data = f"{self._prefix}.log", encode({**line, **members})
        return NewEvent(type_, data, bulk=True)


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of a call that may be repeated, when the database is back."""
    while True:
        try:
            return await call()
        except Unavailable:
            await anyio.sleep(jitter(0.2, 1.0))
