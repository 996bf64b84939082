"""What a hub keeps of a source that is watched: its newest pages, for all who stand there."""

import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from eventstore import Feed, Page
from eventstore.selection import Selection

RING_BYTES = 2**20
"""Of one source, beyond the newest page."""
RING_BYTES_VIEWER = 2**14
"""What each viewer adds to that: the more there are, the more would ask the table when they fall behind."""
CHUNK_BYTES = 2**18
"""What a viewer is given at once, or one page: a client that does not take it holds its own copy."""

Source = Feed | Selection
S = TypeVar("S", bound=Source)
Framing = Callable[[Page], bytes]
"""How a page becomes bytes: ``Frame.page``, or what a server makes of that."""


class Watcher(Protocol):
    """Who stands in a ring."""

    def moved(self) -> None:
        """The ring has something new."""

    def wake(self) -> None:
        """Something else is to be looked at."""


class Ring(Generic[S]):
    """The newest pages of one source: all lines with ``floor < id <= upto``, and whether they are the last ones."""

    __slots__ = (
        "_bytes", "_framed", "_last_ids", "_pages",
        "ended", "floor", "moved_at", "new", "source", "turns", "upto", "viewers",
    )  # fmt: skip

    def __init__(self, source: S, upto: int) -> None:
        self.source = source
        self.floor = self.upto = upto
        self.ended = False
        self.new = True
        """Whether nobody has looked yet."""
        self.viewers: set[Watcher] = set()
        self.turns = 0
        """How often its viewers were told to look."""
        self.moved_at = 0.0
        self._pages: list[Page] = []
        self._last_ids: list[int] = []
        self._bytes = 0
        self._framed: dict[Framing, bytes] = {}
        """The newest page, which almost all viewers are given."""

    @property
    def last_id(self) -> int:
        """The id of its newest line."""
        return self._last_ids[-1]

    def extend(self, page: Page, upto: int) -> None:
        """Takes the next page of the source, which reaches up to an id, and gives it to the viewers."""
        self._pages.append(page)
        self._last_ids.append(page.last_id)
        self._framed.clear()
        self.upto, self.ended = upto, page.ended
        self._bytes += len(page.ndjson)
        most_bytes = RING_BYTES + RING_BYTES_VIEWER * len(self.viewers)
        while len(self._pages) > 1 and self._bytes > most_bytes:
            self._bytes -= len(self._pages.pop(0).ndjson)
            self.floor = self._last_ids.pop(0)
        self.turns += 1
        self.moved_at = time.monotonic()
        for viewer in self.viewers:
            viewer.moved()

    def wake(self) -> None:
        """Lets the viewers look around; perhaps there is nothing new."""
        self.turns += 1
        for viewer in self.viewers:
            viewer.wake()

    def forget(self) -> None:
        """Keeps no line: viewers read the table, where something was redacted."""
        self._pages.clear()
        self._last_ids.clear()
        self._bytes = 0
        self._framed.clear()
        self.floor = self.upto

    def leap(self, head: int) -> None:
        """Begins again at the head, and sends the viewers to the table for what lies before it."""
        self.upto = head
        self.forget()
        self.wake()

    def since(self, after: int) -> list[Page]:
        """All lines after an id that is not below the floor."""
        pages = self._pages[bisect_right(self._last_ids, after) :]
        return [page.since(after) for page in pages[:1]] + pages[1:]

    def chunk(self, after: int, framing: Framing) -> tuple[bytes, int | None]:
        """The next of them as bytes, and the id of the last one. Viewers who stand before the newest page share it."""
        place = bisect_right(self._last_ids, after)
        if place == len(self._pages):
            return b"", None
        if place == len(self._pages) - 1 and self._pages[place].first_id > after:
            made = self._framed.get(framing)
            if made is None:
                made = self._framed[framing] = framing(self._pages[place])
            return made, self.last_id
        pieces = [framing(self._pages[place].since(after))]
        left = CHUNK_BYTES - len(pieces[0])
        while (place := place + 1) < len(self._pages) and left > 0:
            pieces.append(framing(self._pages[place]))
            left -= len(pieces[-1])
        return b"".join(pieces), self._last_ids[place - 1]
