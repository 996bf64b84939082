"""The dialect of clients that know no ``run.log``: every line for people is a ``console.line``, with its ``scope``.

The event is the same, with its id and its place; only how it is called differs. The log knows nothing of it.
"""

from eventstore import Line, encode
from projections.entries import members

TYPE = "console.line"
_MOMENT = len('"created_at":"2025-11-20T04:19:05.123456Z"')


def as_console(line: Line) -> Line:
    """A line with a message in that dialect; every other as it is."""
    told = members(line)
    if told is None:
        return line
    scope = line.stream.partition("_")[0]
    if "scope" in told:  # an engine's own: the dialect has one
        return Line(line.id, line.stream, TYPE, encode({**told, "type": TYPE, "scope": scope}))
    end = line.line.index(b'"created_at":"') + _MOMENT  # what an engine wrote stands behind it
    envelope = line.line[:end].replace(b'"type":"%b"' % line.type.encode(), b'"type":"%b"' % TYPE.encode(), 1)
    return Line(line.id, line.stream, TYPE, b'%b,"scope":"%b"%b' % (envelope, scope.encode(), line.line[end:]))
