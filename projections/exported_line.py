"""A line of an export, read back: an event with its place, and its payload byte for byte as it was.

A line is sliced, not encoded anew. Whatever would not come out again as the same line is refused.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson
import pydantic

from eventstore.errors import CallerMistake
from eventstore.event import ENVELOPE, TYPE, WORKSPACE
from projections.events import read, registry

KINDS = frozenset({"run", "build", "config", "workspace", "system"})

_LINE = re.compile(
    rb'\{"id":(?P<id>[1-9]\d{0,18}),"object":"ade\.(?P<kind>[a-z]+)\.event","type":"(?P<type>[a-z0-9_.]+)",'
    rb'"(?P=kind)_id":"(?P<stream>(?P=kind)_[A-Za-z0-9-]{1,64})","seq":(?P<seq>[1-9]\d{0,18}),'
    rb'"created":(?P<created>0|-?[1-9]\d*),"created_at":"(?P<created_at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"'
    rb"(?:,(?P<members>.+))?\}",
    re.DOTALL,
)
_REDACTED = re.compile(rb'\{"redacted":"[0-9a-f]{64}"\}')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


class NotAnEvent(CallerMistake):
    """This is no line of an exported log."""


@dataclass(frozen=True, slots=True)
class ExportedLine:
    """An event of another log. ``created_at`` is as it stands on the line; ``data`` is the payload, UTF-8.

    ``workspace`` is what the event itself says; None where it says nothing, as all but the first of a stream may.
    """

    id: int
    stream: str
    seq: int
    workspace: str | None
    type: str
    bulk: bool
    ends: bool
    created_at: str
    data: bytes


def read_line(line: bytes, number: int) -> ExportedLine:
    """The event on a line without its line end. Raises NotAnEvent, with the ``line``'s number and the ``reason``."""
    try:
        return _read(line)
    except _Refused as refused:
        raise NotAnEvent(line=number, reason=str(refused)) from None


class _Refused(Exception):
    """The message is the reason."""


def _read(line: bytes) -> ExportedLine:
    found = _LINE.fullmatch(line)
    if found is None:
        raise _Refused("it does not begin with the envelope of an event, or does not end with its brace")
    kind, type_ = found["kind"].decode(), found["type"].decode()
    if kind not in KINDS:
        raise _Refused(f"there is no object ade.{kind}.event")
    created_at = found["created_at"].decode()
    if found["created"] != _second(created_at):
        raise _Refused("created and created_at are two different seconds")
    stream, data = found["stream"].decode(), b"{%b}" % (found["members"] or b"")
    payload = _payload(data, f"{kind}_id")
    bulk, ends = _told(type_, kind, data, payload)
    said = payload.get("workspace_id")
    # An engine may call something of its own so; and what is no workspace would be a path.
    own = said if isinstance(said, str) and WORKSPACE.match(said) else None
    return ExportedLine(
        id=int(found["id"]),
        stream=stream,
        seq=int(found["seq"]),
        workspace={"workspace": stream.partition("_")[2], "system": ""}.get(kind, own),
        type=type_,
        bulk=bulk,
        ends=ends,
        created_at=created_at,
        data=data,
    )


@lru_cache(1024)
def _second(created_at: str) -> bytes:
    """What ``created`` is for a ``created_at``; the events of one append share both."""
    try:
        return b"%d" % ((datetime.fromisoformat(created_at) - _EPOCH) // _SECOND)
    except ValueError:
        raise _Refused("created_at is no time") from None


def _payload(data: bytes, stream_member: str) -> dict[str, Any]:
    try:
        payload: dict[str, Any] = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _Refused(f"its payload is no JSON: {error}") from None
    if taken := sorted((ENVELOPE | {stream_member}) & payload.keys()):
        raise _Refused(f"its payload has a member that is the envelope's: {', '.join(taken)}")
    if b"\\u0000" in data and b"\0" in _unescaped(payload):
        raise _Refused("its payload holds a NUL, which PostgreSQL does not take")
    return payload


def _unescaped(payload: dict[str, Any]) -> bytes:
    """All names and texts of a payload, as they are meant."""
    found: list[str] = []
    left: list[Any] = [payload]
    while left:
        match left.pop():
            case str(text):
                found.append(text)
            case dict(members):
                left += [*members, *members.values()]
            case list(items):
                left += items
    return "".join(found).encode()


def _told(type_: str, kind: str, data: bytes, payload: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the event is bulk, and whether it ends its stream: the vocabulary says so."""
    family = type_.partition(".")[0]
    if family in KINDS and family != kind:
        raise _Refused(f"{type_} does not happen to a {kind}")
    if family == "engine" and TYPE.match(type_):
        if isinstance(payload.get("message"), str) and not isinstance(payload.get("stream"), str):
            raise _Refused("it has a message, and does not say on which stream")
        return True, False
    model = registry.get(type_)
    if model is None:
        raise _Refused(f"this release does not know {type_}: import it with the release that wrote it")
    if not (model.bulk and _REDACTED.fullmatch(data)):
        try:
            read(type_, payload)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise _Refused(f"it is no {type_}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return model.bulk, model.ends
