"""Selections: the events of the whole log that pass a filter, read after a cursor as everything is.

A filter may pass nothing for millions of events, so a read examines a bounded number of rows and says how far it came:
that id is the cursor to go on from, whether or not there was an event. Where a filter passes control events only, it
reads them by an index of their own, and the lines of a flood are not among the rows that it examines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eventstore.database import Database
from eventstore.event import Page
from eventstore.log import PAGE, PAGE_BYTES

EXAMINED_ROWS = 10_000
"""What one read of one selection looks at, at the most: some 10 ms, and so long lives its snapshot."""


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter over the log; what is None passes everything. Equal filters are one selection, whoever asks.

    ``types`` are exact types, or families: ``engine.*`` is every type that begins with ``engine.``. ``control`` says
    that no event of these types is bulk.
    """

    types: tuple[str, ...] | None = None
    control: bool = False
    workspaces: tuple[str, ...] | None = None
    stream: str | None = None

    @property
    def patterns(self) -> str | None:
        """The types as patterns of ``LIKE``, with commas between them."""
        if self.types is None:
            return None
        return ",".join(self.types).replace("_", r"\_").replace("*", "%")


@dataclass(frozen=True, slots=True)
class News:
    """The head, and of each of several sources its next page and the id up to which that is all there is."""

    head: int
    pages: list[tuple[Page, int]]


async def select(database: Database, cursors: Sequence[tuple[Selection, int]], *, limit: int = PAGE) -> News:
    """The next page of each selection, each after its own cursor, of ``limit`` lines at the most; all of one moment."""
    head, *rows = await database.rows(
        "read_selections",
        controls=[selection.control for selection, _ in cursors],
        types=[selection.patterns for selection, _ in cursors],
        workspaces=[
            None if selection.workspaces is None else ",".join(selection.workspaces) for selection, _ in cursors
        ],
        streams=[selection.stream for selection, _ in cursors],
        afters=[after for _, after in cursors],
        examined=EXAMINED_ROWS,
        limit=limit,
        most_bytes=PAGE_BYTES,
    )
    return News(
        head["upto"],
        [(Page(row["lines"], row["last_id"], more=row["more"], ndjson=row["ndjson"]), row["upto"]) for row in rows],
    )
