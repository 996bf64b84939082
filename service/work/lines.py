"""What an engine writes, from bytes to facts: lines of a log and telemetry. Pure: no I/O, no clock.

What holds, whatever the bytes are and however they are cut into chunks:

- the facts depend on the bytes alone, never on where a chunk ended;
- nothing is lost: a line is one `Line`, or several with `part` 1, 2, 3 … whose messages joined are the line decoded
  whole; only above `line_max_bytes` a line is cut, and its last part says how many bytes are missing;
- every string is Unicode that PostgreSQL and JSON can hold (no NUL, no lone surrogate), and JSON can be made of all;
- memory is bounded by `part_bytes` + `telemetry_max_bytes` + one chunk, however long a line is.
"""

import codecs
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

import orjson

StreamName = Literal["stdout", "stderr"]

PART_BYTES: Final = 64 * 1024
LINE_MAX_BYTES: Final = 16 * 2**20
TELEMETRY_MAX_BYTES: Final = 2**20

ENVELOPE: Final = frozenset(
    {
        "id", "object", "type", "run_id", "build_id", "config_id", "workspace_id", "system_id",
        "seq", "created", "created_at", "stream",
    }
)  # fmt: skip
"""The names of an event's envelope. An engine that could set one of them could forge an event."""

_EVENT = re.compile(r"engine(\.[a-z0-9_]{1,64}){1,8}")
_UNSAFE = re.compile("[\0\ud800-\udfff]")
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_REPLACEMENT = "\ufffd"
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log, without its line end; or `part` 1, 2, 3 … of a long one. `truncated`: bytes that are missing."""

    stream: StreamName
    message: str
    part: int | None = None
    truncated: int | None = None


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A line that is an engine's event: the `type` it names, its other members, `timestamp` as `engine_timestamp`."""

    stream: StreamName
    type: str
    members: dict[str, Any]


Fact = Line | Telemetry


class LineSplitter:
    """Splits one stream of one process. Feed it every chunk in order, then close it."""

    def __init__(
        self,
        stream: StreamName,
        *,
        part_bytes: int = PART_BYTES,
        line_max_bytes: int = LINE_MAX_BYTES,
        telemetry_max_bytes: int = TELEMETRY_MAX_BYTES,
    ) -> None:
        self._stream: StreamName = stream
        self._part_bytes = part_bytes
        self._line_max_bytes = line_max_bytes
        self._telemetry_max_bytes = telemetry_max_bytes
        self._decoder = _Utf8Decoder("replace")  # keeps the beginning of a character that two parts share
        self._begin()

    def _begin(self) -> None:
        self._held = bytearray()  # of the line in progress, what is not yet handed out
        self._parts = 0  # of the line in progress, handed out
        self._dropped = 0  # of the line in progress, bytes beyond the maximum
        self._dropped_return = False  # the last byte dropped was "\r", which may be of the line end
        self._decoder.reset()

    def feed(self, chunk: bytes) -> list[Fact]:
        """The facts that are certain with this chunk."""
        facts: list[Fact] = []
        first = chunk.find(b"\n")
        if first < 0:
            self._hold(chunk, facts)
            return facts
        self._hold(chunk[:first], facts)
        self._end(facts)
        last = chunk.rfind(b"\n")
        if last > first:
            self._split(chunk[first + 1 : last], facts)
        self._hold(chunk[last + 1 :], facts)
        return facts

    def close(self) -> list[Fact]:
        """What was left without a newline."""
        facts: list[Fact] = []
        if self._held:
            self._end(facts)
        return facts

    def _split(self, block: bytes, facts: list[Fact]) -> None:
        """Whole lines, the last one without its newline. Many are decoded at once: 0.5 µs a line instead of 2."""
        stream, part_bytes = self._stream, self._part_bytes
        short = len(block) <= part_bytes or max(map(len, block.split(b"\n"))) <= part_bytes
        if short and not block.startswith(b"{") and b"\n{" not in block:
            text = block.replace(b"\r\n", b"\n").removesuffix(b"\r").decode(errors="replace")
            facts += [Line(stream, message) for message in text.replace("\0", _REPLACEMENT).split("\n")]
            return
        for raw in block.split(b"\n"):
            self._hold(raw, facts)
            self._end(facts)

    def _hold(self, piece: bytes, facts: list[Fact]) -> None:
        self._held += piece
        # The two bytes more are for a line end of which only the "\r" is here.
        if not (self._may_be_telemetry() and len(self._held) < self._telemetry_max_bytes + 2):
            self._cut(facts, ahead=2)

    def _may_be_telemetry(self) -> bool:
        return self._held.startswith(b"{") and not self._parts and not self._dropped

    def _cut(self, facts: list[Fact], *, ahead: int) -> None:
        """Hand out the parts that have `ahead` bytes behind them, and drop what is over the line's maximum.

        Parts are cut at multiples of `part_bytes`, so that the cuts do not depend on the chunks. A character that such
        a cut would split goes into the next part whole: the decoder keeps its first bytes.
        """
        held, size = self._held, self._part_bytes
        room = self._line_max_bytes - self._parts * size
        while len(held) >= size + ahead and room > size:
            self._parts += 1
            room -= size
            facts.append(Line(self._stream, self._decode(held[:size]), self._parts))
            del held[:size]
        if room <= size and len(held) > room:
            self._dropped += len(held) - room
            self._dropped_return = held.endswith(b"\r")
            del held[room:]

    def _end(self, facts: list[Fact]) -> None:
        held = self._held
        if self._dropped:
            self._dropped -= self._dropped_return
        elif held.endswith(b"\r"):
            del held[-1]
        if self._may_be_telemetry() and len(held) <= self._telemetry_max_bytes:
            telemetry = _telemetry(self._stream, bytes(held))
            if telemetry is not None:
                facts.append(telemetry)
                self._begin()
                return
        self._cut(facts, ahead=1)
        message = self._decode(held, final=not self._dropped)
        if self._dropped:  # and with it the beginning of a character whose end is not here
            self._dropped += len(self._decoder.getstate()[0])
        part = self._parts + 1 if self._parts else None
        facts.append(Line(self._stream, message, part, self._dropped or None))
        self._begin()

    def _decode(self, data: bytearray, *, final: bool = False) -> str:
        return self._decoder.decode(data, final).replace("\0", _REPLACEMENT)


def clean(value: Any) -> Any:
    """A JSON value with NUL and lone surrogates as U+FFFD, in keys too. RecursionError when nested above some 900."""
    if isinstance(value, str):
        return _UNSAFE.sub(_REPLACEMENT, value)
    if isinstance(value, dict):
        return {clean(name): clean(member) for name, member in value.items()}
    if isinstance(value, list):
        return [clean(member) for member in value]
    return value


def _telemetry(stream: StreamName, raw: bytes) -> Telemetry | None:
    """The engine's event that this line is, or None for any other line: it then stays a log line, as it was written."""
    if b'"event"' not in raw and b"\\" not in raw:
        return None
    try:
        value = _load(raw)
        if not isinstance(value, dict):
            return None
        event = value.pop("event", None)
        if not isinstance(event, str) or not _EVENT.fullmatch(event) or not ENVELOPE.isdisjoint(value):
            return None
        if "timestamp" in value and "engine_timestamp" in value:
            return None
        members = {"engine_timestamp" if name == "timestamp" else name: member for name, member in value.items()}
        orjson.dumps(members)  # refuses what it reads but cannot write: nesting above 254, integers above 64 bits
    except (ValueError, TypeError, RecursionError):  # orjson raises the first when it reads, the second when it writes
        return None
    return Telemetry(stream, event, members)


def _load(raw: bytes) -> Any:
    """A line as a clean JSON value, numbers as written. ValueError when it is none, or has a number without a value."""
    if not _LONG_NUMBER.search(raw):  # orjson silently makes an integer above 64 bits a float
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass  # invalid UTF-8, NUL and lone surrogates are refused there, and repaired here
        else:
            return clean(value) if b"\\u0000" in raw else value
    text = clean(raw.decode(errors="replace"))
    return clean(json.loads(text, parse_constant=_refuse, parse_float=_finite))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is beyond a float")
    return number
