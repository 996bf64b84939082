"""Whose trace a run or a build belongs to, as W3C Trace Context says it: ``00-<trace>-<span>-<flags>``.

The ids follow from what is in the log, so nobody has to remember them: whoever derives them again, after a crash or on
another machine, gets the same ones. A request that names its own span is the parent; any other begins a trace.
"""

import hashlib
import re
from typing import NamedTuple

_WRITTEN = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
SAMPLED = "01"


class SpanContext(NamedTuple):
    """A span, as others refer to it; ids in hexadecimal digits. Its ``str`` is a ``traceparent``."""

    trace_id: str
    span_id: str
    flags: str = SAMPLED

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    @property
    def sampled(self) -> bool:
        """Whether the one who began the trace keeps it."""
        return int(self.flags, 16) & 1 == 1

    def child(self, name: str) -> "SpanContext":
        """The span below this one that ``name`` stands for, unique in the log: always the same one."""
        return SpanContext(self.trace_id, _digits(name, 16), self.flags)


def parse(text: str | None) -> SpanContext | None:
    """What a ``traceparent`` says; None for what is none, which the standard has us pass over."""
    found = _WRITTEN.match(text or "")
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if (version == "00" and more) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    return SpanContext(trace_id, span_id, f"{int(flags, 16) & 1:02x}")


def span_of(stream: str, traceparent: str | None) -> SpanContext:
    """The span of a run or a build as a whole. ``traceparent`` is the one of its `…created`."""
    parent = parse(traceparent) or SpanContext(_digits(f"trace of {stream}", 32), "")
    return parent.child(stream)


def span_of_attempt(stream: str, traceparent: str | None, attempt: int) -> SpanContext:
    """The span of one attempt, which an engine is told as ``TRACEPARENT``."""
    return span_of(stream, traceparent).child(f"{stream}/{attempt}")


def _digits(name: str, count: int) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:count]
