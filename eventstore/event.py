"""What goes into the log, and what comes out of it.

An event is a type, a payload and a place. The payload is a JSON object that is written down once, as text, and never
parsed again by the store; the line of an event is spliced together by the database (``sql/functions/event_line.sql``),
so that a stream, a file and an export are the same bytes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, overload

import orjson

from eventstore.errors import InvalidEvent

TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+\Z")
STREAM = re.compile(r"[a-z]+_[A-Za-z0-9-]{1,64}\Z")
WORKSPACE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
ENVELOPE = frozenset({"id", "object", "type", "seq", "created", "created_at"})
"""Names that a payload may not use; ``<kind>_id`` of its own stream is the seventh."""

NEW = 0
"""The expectation that a stream does not exist yet."""

_CREATED_AT = b'"created_at":"'

# Line separators of Unicode that common line readers split on, though JSON allows them bare in a string.
_SEPARATORS = {b"\xc2\x85": b"\\u0085", b"\xe2\x80\xa8": b"\\u2028", b"\xe2\x80\xa9": b"\\u2029"}
_SUSPECT = re.compile(rb"\xc2\x85|\xe2\x80[\xa8\xa9]|\\u0000")


def encode(payload: Mapping[str, Any]) -> bytes:
    """The payload as JSON that stays on one line for every line reader and holds no NUL (PostgreSQL refuses it)."""
    text = orjson.dumps(payload)
    # Almost every line is let through by the quick questions; the search alone takes 2 µs.
    if text.isascii() and (b"\\" not in text or b"\\u0000" not in text):
        return text
    if _SUSPECT.search(text) is None:
        return text
    if b"\\u0000" in text:
        text = orjson.dumps(_without_nul(payload))
    for character, escaped in _SEPARATORS.items():
        text = text.replace(character, escaped)
    return text


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, Mapping):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value


@dataclass(slots=True)  # frozen, it would take three times as long to make, and every line of output is one
class NewEvent:
    """An event that is not in the log yet.

    ``data`` is the payload as JSON, UTF-8, made by :func:`encode`. A *bulk* event (a line of output, telemetry) changes
    no state; all others are *control*. ``ends`` marks the terminal event of its stream.
    """

    type: str
    data: bytes
    bulk: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What one append adds to one stream.

    ``expect`` is the id of the stream's newest control event as the caller knows it (``NEW``: no such stream yet,
    ``None``: no matter). A part without events is a *claim*: it adds nothing, but counts as a move of the stream, so
    that of two decisions that rest on the same state only one lands.

    ``token`` is the lease under which the caller writes, ``position`` the number of bulk events that it has appended
    under this token before: the same position again is recognised as a repetition.
    """

    stream: str
    events: Sequence[NewEvent]
    workspace: str | None = None
    expect: int | None = None
    token: int | None = None
    position: int | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the log would refuse this part a second time: only control events move what is expected."""
        moves = self.expect is not None and any(not event.bulk for event in self.events)
        return moves or (self.position is not None and self.token is not None)

    def kinds(self) -> list["Kind"]:
        """Its events by type, in their order. Raises :class:`InvalidEvent` for what the log must never hold."""
        if not STREAM.match(self.stream):
            raise InvalidEvent(stream=self.stream, reason="not the name of a stream")
        if self.position is not None and self.token is None:
            raise InvalidEvent(stream=self.stream, reason="a position counts under a lease's token")
        kinds: list[Kind] = []
        type_: str | None = None
        first, bulk, ended = 0, False, False
        for place, event in enumerate(self.events):
            if ended:
                raise InvalidEvent(stream=self.stream, reason="nothing follows a terminal event")
            ended = event.ends
            if event.type != type_ or event.bulk is not bulk:
                if type_ is not None:
                    kinds.append(Kind(first, place - first, type_, bulk))
                type_, bulk, first = event.type, event.bulk, place
                if not TYPE.match(type_):
                    raise InvalidEvent(type=type_, stream=self.stream)
            if event.data[:1] != b"{":
                raise InvalidEvent(type=type_, stream=self.stream, reason="a payload is a JSON object")
        if type_ is not None:
            kinds.append(Kind(first, len(self.events) - first, type_, bulk))
        return kinds


@dataclass(frozen=True, slots=True)
class Kind:
    """Events of one type in a row: ``place`` of the same part come before them, and they are ``events``."""

    place: int
    events: int
    type: str
    bulk: bool


@dataclass(frozen=True, slots=True)
class Append:
    """Parts that land together or not at all. ``key`` makes it idempotent; ``digest`` says what the key stands for."""

    parts: tuple[Part, ...]
    key: str | None = None
    digest: str = ""

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice cannot write it twice, so that a lost answer may be asked for again.

        One part that refuses its repetition is enough: the parts land together or not at all.
        """
        return self.key is not None or any(part.repeatable for part in self.parts)


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an append landed: the ids ``first_id..last_id``, in the order of its parts.

    ``duplicate`` says that it had landed before: its ids are those of the first time, 0 where only a position said so.
    """

    first_id: int
    last_id: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A control event as it is folded: its place, its type and its payload."""

    id: int
    stream: str
    seq: int
    workspace: str
    type: str
    recorded_at: float
    """Seconds since the epoch, by the database's clock."""
    data: Mapping[str, Any]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Event":
        """The event of a row, whose payload is JSON."""
        return cls(**{**row, "data": orjson.loads(row["data"])})


@dataclass(frozen=True, slots=True)
class Line:
    """An event as it is served: ``line`` is the ready-made NDJSON line, UTF-8, without its line end."""

    id: int
    stream: str
    type: str
    line: bytes

    @classmethod
    def read(cls, line: bytes) -> "Line":
        """What stands at the fixed places of a line: ``{"id":1,"object":"…","type":"…","run_id":"…",``."""
        pieces = line.split(b'"', 14)
        return cls(int(pieces[2][1:-1]), pieces[13].decode(), pieces[9].decode(), line)


class Page(Sequence[Line]):
    """Lines that were read together. ``ndjson`` is all of them, each with its line end: bytes that nobody took apart.

    It makes a :class:`Line` of each where somebody asks for one. ``last_id`` is the id of the last one, or the cursor
    where there is none. ``more`` says that others lie behind it, ``ended`` that the feed ends with it. ``output_of`` is
    the stream that all its lines are of, where none of them changes a state: nobody has to look at each.
    """

    __slots__ = ("_count", "_lines", "ended", "last_id", "more", "ndjson", "output_of")

    def __init__(
        self,
        lines: int,
        last_id: int,
        *,
        more: bool = False,
        ended: bool = False,
        output_of: str | None = None,
        ndjson: bytes | None = None,
    ) -> None:
        self.ndjson = ndjson or b""
        self.output_of = output_of
        self.last_id = last_id
        self.more = more
        self.ended = ended
        self._count = lines
        self._lines: list[Line] | None = None

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return self.ndjson == other.ndjson if isinstance(other, Page) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of every sequence that is compared by what it holds

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "Page":
        """These lines, of which there is one at the least."""
        return cls(len(lines), lines[-1].id, ndjson=b"".join([line.line + b"\n" for line in lines]))

    @property
    def first_id(self) -> int:
        """The id of the first line, of a page that has one."""
        return int(self.ndjson[6 : self.ndjson.index(b",")])

    @property
    def recorded_at(self) -> float:
        """When the first line was appended, of a page that has one: seconds since the epoch, the database's clock."""
        place = self.ndjson.index(_CREATED_AT) + len(_CREATED_AT)
        return datetime.fromisoformat(self.ndjson[place : self.ndjson.index(b'"', place)].decode()).timestamp()

    def since(self, after: int) -> "Page":
        """The lines after an id."""
        if not self or self.first_id > after:
            return self
        lines = [line.line + b"\n" for line in self if line.id > after]
        return Page(len(lines), self.last_id, more=self.more, ended=self.ended, ndjson=b"".join(lines))

    @overload
    def __getitem__(self, place: int) -> Line: ...
    @overload
    def __getitem__(self, place: slice) -> list[Line]: ...
    def __getitem__(self, place: int | slice) -> Line | list[Line]:
        if self._lines is None:
            self._lines = list(self.each())
        return self._lines[place]

    def each(self) -> Iterator[Line]:
        """Each line, made for the moment: iterating over the page itself keeps them, which is some times its bytes."""
        return map(Line.read, self.ndjson.split(b"\n")[:-1])
