"""Sends the spans of what has ended to a receiver of OpenTelemetry's traces: one more follower of the log.

It runs in the elected projector, and its checkpoint moves after the receiver has said that it has the spans. So the
spans of every run and build arrive at least once, whoever is killed; and their ids follow from the log, so those that
arrive twice are the same ones. A receiver that is away delays nobody and loses nothing. The first time it begins at the
head of the log: history is not sent.
"""

import logging
from collections.abc import Sequence

import anyio
import orjson

from eventstore import Database, Event, Line, Log
from eventstore.clock import jitter
from eventstore.log import FOREVER
from eventstore.selection import Selection, select
from projections.spans import Span, spans
from projections.steps import STEPS_MAX, Steps
from service import metrics
from service.otlp import Busy, Receiver

logger = logging.getLogger("ade.traces")

CHECKPOINT = "traces"
ENDED = Selection(("run.completed", "build.completed"), control=True)
AT_ONCE = 20
"""Runs and builds between two checkpoints, at the most."""
SPANS_AT_ONCE = 500
"""In one request."""
TELEMETRY_EVENTS = 10_000
"""What one read of a run's events looks at, at the most."""
PAUSE_S = (1.0, 60.0)
"""Between two tries; from the first to the last it doubles."""


class SpanSender:
    """A step at a time: :meth:`step`, for the :class:`Projector`."""

    def __init__(self, database: Database, log: Log, receiver: Receiver) -> None:
        self._database, self._log, self._receiver = database, log, receiver
        self._after: int | None = None
        self._tries = 0

    async def step(self) -> bool:
        """Sends the spans of what has ended next; whether there may be more."""
        if self._after is None:
            self._after = await self._begin()
        found = await select(self._database, [(ENDED, self._after)], limit=AT_ONCE)
        page, reached = found.pages[0]
        made: list[Span] = []
        try:
            for line in page.each():
                made += await self._spans(line)
                while len(made) >= SPANS_AT_ONCE or (made and line.id == page.last_id):
                    await self._send(made[:SPANS_AT_ONCE])
                    del made[:SPANS_AT_ONCE]
        except Busy as busy:
            await self._pause(busy)
            return True
        if self._tries:
            logger.info("the receiver of traces takes spans again")
        self._tries = 0
        if reached > self._after:
            await self._database.rows("checkpoint", projection=CHECKPOINT, id=reached)
            self._after = reached
        return reached < found.head

    async def _begin(self) -> int:
        row = await self._database.row("checkpoint_of", projection=CHECKPOINT)
        if row is None:
            head = await self._log.head()
            await self._database.rows("checkpoint", projection=CHECKPOINT, id=head)
            return head
        return int(row["id"])

    async def _send(self, made: Sequence[Span]) -> None:
        refused = await self._receiver.send(made)
        if refused is None:
            metrics.SPANS.inc(len(made))
        else:
            metrics.SPANS_REFUSED.inc(len(made))
            logger.error("the receiver of traces has refused spans: %s", refused)

    async def _pause(self, busy: Busy) -> None:
        if self._tries == 0:
            logger.warning("spans wait for their receiver: %s", busy)
        first, most = PAUSE_S
        pause_s = min(first * 2**self._tries, most) if busy.wait_s is None else min(busy.wait_s, most)
        self._tries += 1
        await anyio.sleep(jitter(pause_s / 2, pause_s))

    async def _spans(self, ended: Line) -> list[Span]:
        statement = "run_and_build" if ended.stream.startswith("run_") else "control_events"
        named = {"run": ended.stream} if statement == "run_and_build" else {"streams": [ended.stream]}
        rows = await self._database.rows(statement, **named, upto=FOREVER)
        events = [Event.of(row) for row in rows]
        steps = Steps([event.id for event in events if event.type == "run.started"])
        if statement == "run_and_build":
            await self._read_steps(ended.stream, steps)
        config = await self._database.row("config_name", id=events[0].data["config_id"])
        return spans(ended.stream, events, steps, config["name"] if config else "")

    async def _read_steps(self, run: str, steps: Steps) -> None:
        after: int | None = 0
        while after is not None and len(steps.found) < STEPS_MAX:
            rows = await self._database.rows("telemetry", stream=run, after=after, most=TELEMETRY_EVENTS)
            for row in rows:
                if row["id"] is not None:
                    steps.add(row["id"], row["type"], row["recorded_at"], orjson.loads(row["data"]))
            after = rows[0]["reached"]
