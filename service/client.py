"""The reference consumer of a feed.

:func:`follow` gives every event of a run or a build exactly once and in order, up to its end, whatever happens to the
connection. For those who write the same in another language, this is the whole algorithm:

1. Remember one number, ``after_id``: the id of the last event that you have dealt with; 0 at first.
2. ``GET /api/v1/runs/<id>/events?stream=true&after_id=<after_id>`` with ``Accept: application/x-ndjson`` (a build:
   ``builds``). Send the ``ADE-Log-Id`` of the first answer along as ``log_id`` from then on: a database that was put
   back from a backup is refused, where it would otherwise pass for the same history.
3. Cut what comes at every LF, and at nothing else. Bytes after the last LF are an event that was torn: throw them away
   when the connection ends. An empty line is a sign of life.
4. Each line is a JSON object. ``{"object":"ade.bookmark","id":n}`` only moves ``after_id``. Any other one is an event:
   its ``id`` is larger than ``after_id``, which it becomes; its ``seq`` is one more than that of the event before it
   from the same stream (``run_id`` or ``build_id``, as ``object`` says), and 1 for the first one of the run itself.
   Anything else is a history with a hole in it: stop, and say so.
5. ``run.completed`` (``build.completed`` for a build) of the stream that you follow is the end; nothing comes after it.
6. A connection that breaks, is silent for three keep-alives, ends early, or answers 429 or 5xx is a pause: wait
   (``Retry-After``, else longer each time, by a random part less) and go on at 2. Other answers are for people:
   401 no key, or a dead one, 404 unknown, 409 ``after_id`` is ahead of the log or of another log, 410 older than what
   is kept.
7. A connection that ends early may also mean that the end lay behind ``after_id`` when you began: then the snapshot
   (``GET /api/v1/runs/<id>``) has ``finished``, and a ``last_event_id`` that is not after yours.

Who stops and comes back later keeps ``after_id`` and the log's id.

To create and follow in one request, ``POST`` with ``{"stream": true}`` and an ``Idempotency-Key``: send the same again
until the first line is there, which names the stream; from then on it is the algorithm above.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, ClassVar, Self
from urllib.parse import quote

import anyio
import httpx
import orjson

from eventstore.clock import jitter, ulid

NDJSON = "application/x-ndjson"
LINE_MAX_BYTES = 64 * 2**20
"""Far more than the longest line of the service; a server that never ends a line must not fill our memory."""
TERMINAL = frozenset({"run.completed", "build.completed"})
CONNECT_S = 10.0
SILENCE_S = 45.0
"""Three keep-alives: a connection that is silent for so long is dead, whatever TCP says."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
PATIENCE_S = 120.0
"""How long nothing may come at all before a consumer gives up."""


class ClientError(Exception):
    """The service could not be used; the message is a sentence."""


class Unreachable(ClientError):
    """There is no answer from the service."""

    def __init__(self, url: str, reason: object) -> None:
        super().__init__(f"No connection to {url}: {reason or type(reason).__name__}")
        self.url = url


class HistoryBroken(ClientError):
    """What came is not the history: an event is missing, comes twice, or is none."""


class ProblemError(ClientError):
    """The service said no; ``problem`` is its problem document (RFC 9457)."""

    slug: ClassVar[str] = ""

    def __init__(self, problem: dict[str, Any], retry_after_s: float = 0) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or f"Status {problem['status']}")
        self.problem = problem
        self.status: int = problem["status"]
        self.retry_after_s = retry_after_s

    @property
    def temporary(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status == 429 or self.status >= 500


class NotFound(ProblemError):
    """There is no such thing."""

    slug = "not-found"


class CursorAhead(ProblemError):
    """The cursor is ahead of the log: was it restored from a backup?"""

    slug = "cursor-ahead"


class OtherLog(ProblemError):
    """The cursor belongs to another log."""

    slug = "other-log"


class CursorGone(ProblemError):
    """The cursor is older than what is kept."""

    slug = "cursor-gone"


def check(response: httpx.Response) -> None:
    """Raises ProblemError, of the kind that the answer names, for every answer that is not 2xx. The body is read."""
    if response.is_success:
        return
    retry_after = response.headers.get("retry-after", "")
    retry_after_s = min(float(retry_after), LONGEST_PAUSE_S) if retry_after.isdecimal() else 0.0
    try:
        problem = {**orjson.loads(response.content), "status": response.status_code}
    except (orjson.JSONDecodeError, TypeError):  # not one of ours: a proxy's page, say
        detail = f"The answer was {response.status_code} {response.reason_phrase}, without a problem document."
        problem = {"status": response.status_code, "title": "The answer was not understood", "detail": detail}
    slug = str(problem.get("type", "")).removeprefix("/problems/")
    kinds = {kind.slug: kind for kind in ProblemError.__subclasses__()}
    raise kinds.get(slug, ProblemError)(problem, retry_after_s)


def path_of(steps: Iterable[str]) -> str:
    """The address of something, below ``/api/v1``."""
    return "/".join(quote(step, safe="") for step in steps)


class Lines:
    """Cuts a stream of bytes into lines, wherever the bytes were cut on their way."""

    def __init__(self) -> None:
        self._torn: list[bytes] = []
        self._torn_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are whole now, without their LF. What follows the last LF waits for the rest of it."""
        first, *rest = chunk.split(b"\n")
        self._torn.append(first)
        self._torn_bytes += len(first)
        if self._torn_bytes > LINE_MAX_BYTES:
            raise HistoryBroken(f"A line has more than {LINE_MAX_BYTES} bytes.")
        if not rest:
            return []
        lines = [b"".join(self._torn), *rest[:-1]]
        self._torn, self._torn_bytes = [rest[-1]], len(rest[-1])
        return lines


class Event(dict[str, Any]):
    """An event (or a bookmark) by its members; with the ``line`` that they were read from, and its ``stream``."""

    __slots__ = ("id", "line", "seq", "stream", "type")

    def __init__(self, line: bytes) -> None:
        try:
            super().__init__(orjson.loads(line))
            self.line = line
            self.id = int(self["id"])
            if self["object"] == "ade.bookmark":
                self.stream, self.seq, self.type = "", 0, "bookmark"
                return
            _, kind, _ = self["object"].split(".")
            self.stream, self.seq, self.type = str(self[f"{kind}_id"]), int(self["seq"]), str(self["type"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise HistoryBroken(f"This line is no event: {line[:200]!r}") from error


class Consumer:
    """What a consumer remembers from one connection to the next, and what it proves. It does no I/O: it is told."""

    def __init__(
        self,
        stream: str,
        after_id: int = 0,
        *,
        log_id: str | None = None,
        on_pause: Callable[[ClientError, float], None] | None = None,
    ) -> None:
        self.stream = stream
        self.after_id = after_id
        self.log_id = log_id
        self.ended = False
        self._on_pause = on_pause
        self._creation: dict[str, Any] | None = None
        self._seqs = {stream: 0} if after_id == 0 else {}
        self._lines = Lines()
        self._pauses = 0
        self._silent_since: float | None = None

    @classmethod
    def creating(
        cls, path: str, options: dict[str, Any], *, on_pause: Callable[[ClientError, float], None] | None = None
    ) -> Self:
        """A consumer that creates what it follows, once, however often it has to ask."""
        consumer = cls("", on_pause=on_pause)
        body, key = orjson.dumps({"stream": True, "options": options}), ulid()
        headers = {"Accept": NDJSON, "Content-Type": "application/json", "Idempotency-Key": key}
        consumer._creation = {"method": "POST", "url": path, "content": body, "headers": headers}
        return consumer

    @property
    def steps(self) -> tuple[str, str]:
        """The path of what is followed: ``runs`` or ``builds``, and its id."""
        return f"{self.stream.partition('_')[0]}s", self.stream

    def request(self) -> dict[str, Any]:
        """The next request to make, as the arguments of ``httpx.Client.stream``."""
        self._lines = Lines()
        timeout = httpx.Timeout(CONNECT_S, read=SILENCE_S)
        if self._creation is not None:
            return {**self._creation, "timeout": timeout}
        params: dict[str, Any] = {"stream": "true", "after_id": self.after_id}
        if self.log_id is not None:
            params["log_id"] = self.log_id
        url, headers = f"{path_of(self.steps)}/events", {"Accept": NDJSON}
        return {"method": "GET", "url": url, "params": params, "headers": headers, "timeout": timeout}

    def answered(self, response: httpx.Response) -> None:
        """An answer has begun. Raises ProblemError for one that is no stream."""
        check(response)
        self.log_id = response.headers.get("ade-log-id", self.log_id)

    def take(self, chunk: bytes) -> Iterator[Event]:
        """The events that are whole now, each proven to be the next one."""
        self._silent_since = None
        for event in map(Event, filter(None, self._lines.feed(chunk))):
            if event.type == "bookmark":
                self.after_id = max(self.after_id, event.id)
                continue
            self._prove(event)
            self._pauses = 0
            yield event

    def _prove(self, event: Event) -> None:
        if not self.stream:
            self.stream, self._creation, self._seqs = event.stream, None, {event.stream: 0}
        if self.ended:
            raise HistoryBroken(f"Event {event.id} came after the end.")
        if event.id <= self.after_id:
            raise HistoryBroken(f"Event {event.id} came after event {self.after_id}.")
        before = self._seqs.get(event.stream, event.seq - 1)
        if event.seq != before + 1:
            raise HistoryBroken(f"Number {event.seq} of {event.stream} came after number {before}.")
        self._seqs[event.stream], self.after_id = event.seq, event.id
        self.ended = event.stream == self.stream and event.type in TERMINAL

    def compare(self, response: httpx.Response) -> None:
        """A snapshot, asked for because a stream ended early: perhaps the end lies behind the cursor."""
        check(response)
        snapshot = response.json()
        self.ended = snapshot["finished"] is not None and snapshot["last_event_id"] <= self.after_id

    def pause(self, failure: ClientError) -> float:
        """How many seconds to wait before the next request. Raises the failure when there is no point in waiting."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if (isinstance(failure, ProblemError) and not failure.temporary) or now - self._silent_since > PATIENCE_S:
            raise failure
        longest = min(FIRST_PAUSE_S * 2**self._pauses, LONGEST_PAUSE_S)
        self._pauses = min(self._pauses + 1, 16)
        wait_s = max(jitter(longest / 2, longest), getattr(failure, "retry_after_s", 0))
        if self._on_pause is not None:
            self._on_pause(failure, wait_s)
        return wait_s


def follow(http: httpx.Client, consumer: Consumer) -> Iterator[Event]:
    """Every event after the consumer's cursor, up to the end. ``http`` has ``…/api/v1/`` as its base URL.

    Raises HistoryBroken, and what :meth:`Consumer.pause` does not wait for.
    """
    while not consumer.ended:
        failure: ClientError = Unreachable(str(http.base_url), "the stream ended early")
        try:
            with http.stream(**consumer.request()) as response:
                if not response.is_success:
                    response.read()
                consumer.answered(response)
                for chunk in response.iter_bytes():
                    yield from consumer.take(chunk)
                    if consumer.ended:
                        return
            if consumer.stream:
                consumer.compare(http.get(path_of(consumer.steps)))
        except httpx.TransportError as error:
            failure = Unreachable(str(http.base_url), error)
        except ProblemError as problem:
            failure = problem
        if not consumer.ended:
            time.sleep(consumer.pause(failure))


async def follow_async(http: httpx.AsyncClient, consumer: Consumer) -> AsyncIterator[Event]:
    """:func:`follow`, for asyncio."""
    while not consumer.ended:
        failure: ClientError = Unreachable(str(http.base_url), "the stream ended early")
        try:
            async with http.stream(**consumer.request()) as response:
                if not response.is_success:
                    await response.aread()
                consumer.answered(response)
                async for chunk in response.aiter_bytes():
                    for event in consumer.take(chunk):
                        yield event
                    if consumer.ended:
                        return
            if consumer.stream:
                consumer.compare(await http.get(path_of(consumer.steps)))
        except httpx.TransportError as error:
            failure = Unreachable(str(http.base_url), error)
        except ProblemError as problem:
            failure = problem
        if not consumer.ended:
            await anyio.sleep(consumer.pause(failure))
