"""Any place of a stream at once: its events by id, by number and by time, backwards too; and those that hold a text.

A place is found by bisection over the segments, so it costs the same in a stream of ten events and in one of ten
million. A search examines a bounded number of events at a time and says how far it came, as a selection does.
"""

import re
from dataclasses import dataclass

from eventstore.database import Database
from eventstore.event import Page, encode
from eventstore.log import PAGE, PAGE_BYTES

EXAMINED_EVENTS = 20_000
EXAMINED_BYTES = 2**22
"""What one step of a search looks at, at the most: some 10 ms, and so long lives its snapshot."""
ESCAPED_MAX = 16
"""Patterns for characters that are written in another way; for a text with more of them one lets all such through."""


@dataclass(frozen=True, slots=True)
class Place:
    """An event of a stream by its ``id`` and its ``seq``; behind the last one, those that come next at the soonest."""

    id: int
    seq: int


async def place_of_id(database: Database, stream: str, at: int) -> Place:
    """The first event of a stream with this id or a later one."""
    return Place(**(await database.rows("place_of_id", stream=stream, at=at))[0])


async def place_of_seq(database: Database, stream: str, at: int) -> Place:
    """The event of a stream with this number; the first one for what lies before it."""
    return Place(**(await database.rows("place_of_seq", stream=stream, at=at))[0])


async def place_of_time(database: Database, stream: str, at: float) -> Place:
    """The first event of a stream that was recorded at this time (Unix seconds) or later."""
    return Place(**(await database.rows("place_of_time", stream=stream, at=at))[0])


@dataclass(frozen=True, slots=True)
class Needle:
    """A text to look for in payloads, as patterns of ``LIKE``. A payload that they refuse does not hold it.

    ``plain`` is the text as :func:`~eventstore.event.encode` writes it. A log that was imported may write a character
    in another way: that takes a backslash, and then one of ``escaped`` passes. ``folded`` looks in a payload whose
    ASCII letters are lower case, so that letters match in both cases.
    """

    plain: str
    escaped: list[str]
    folded: bool

    @classmethod
    def of(cls, text: str, *, ignore_case: bool = False) -> "Needle":
        """The needle for a text; in any case, as ``re.IGNORECASE`` understands it, where that is ignored."""
        written = _quoted(encode({"": text}).decode()[5:-2])
        escaped = ["%\\\\/%"] if "/" in text else []
        if ignore_case:
            # What is not ASCII has cases that only Unicode knows, and so have these three: K, ſ, İ and ı are theirs.
            letters = ["_" if not letter.isascii() or letter in "KISkis" else letter.lower() for letter in written]
            return cls(f"%{''.join(letters)}%", [*escaped, "%\\\\u%"], folded=True)
        units = text.encode("utf-16-be")
        # Hexadecimal letters may be large or small: any character stands for them.
        codes = {re.sub("[a-f]", "_", units[at : at + 2].hex()) for at in range(0, len(units), 2)}
        if len(codes) > ESCAPED_MAX:
            codes = {""}
        return cls(f"%{written}%", [*escaped, *(f"%\\\\u{code}%" for code in sorted(codes))], folded=False)


def _quoted(text: str) -> str:
    """A text as a pattern that only it matches."""
    return text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")


async def search(database: Database, stream: str, needle: Needle, after: int, upto: int, *, limit: int = PAGE) -> Page:
    """Of the next events of a stream, after a cursor and up to an id, the lines that may hold the text.

    The ``last_id`` of the page is the cursor to go on from: of what lies before it, nothing else can hold the text.
    """
    [row] = await database.rows(
        "search_stream",
        stream=stream,
        plain=needle.plain,
        escaped=needle.escaped,
        folded=needle.folded,
        after=after,
        upto=upto,
        examined=EXAMINED_EVENTS,
        examined_bytes=EXAMINED_BYTES,
        limit=limit,
        most_bytes=PAGE_BYTES,
    )
    return Page(**row)
