"""Compares the live tables of a projection with a fresh fold of the log, row by row, while everything goes on.

The fold is made beside them as a rebuild makes it, and thrown away. Each look at the live tables is in a snapshot of
its own: an append and what it does to its tables are seen together, or neither is; so are lines and their checkpoint.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from eventstore.database import Connection, call, connect, transaction
from eventstore.log import FOREVER
from projections.rebuild import rebuild_alone
from projections.tables import Projection

PAGE_IDS = 20_000
MOST_DIFFERENCES = 20
"""More of them in one table are counted and not kept: they have one cause."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what the log says: ``live`` and ``folded`` are its differing columns, as text.

    All of its columns where only one side has the row; the other is None then.
    """

    table: str
    key: str
    live: Mapping[str, str | None] | None
    folded: Mapping[str, str | None] | None


@dataclass
class Compared:
    """What a comparison of one projection found: its tables are right up to ``last_id`` where that is nothing."""

    projection: str
    last_id: int = 0
    differences: list[Difference] = field(default_factory=list)
    count: int = 0
    """Of all differences, those too that were not kept."""


async def compare(url: str, projection: Projection, progress: Progress = lambda _done, _of: None) -> Compared:
    """Compares one projection. ``progress`` is told ids done, and the last one. Raises RebuildRunning."""
    report = Compared(projection.name)
    async with await connect(url) as connection:
        await rebuild_alone(connection)
        try:
            await call(connection, "rebuild_begin", tables=list(projection.tables))
            while await _page(connection, projection, report, progress):
                pass
        finally:
            with anyio.CancelScope(shield=True):
                await call(connection, "rebuild_forget")
    return report


async def _page(connection: Connection, projection: Projection, report: Compared, progress: Progress) -> bool:
    """The next ids; whether there are more. Lines stay what they are, so they are compared page by page; what runs,
    builds and configs are changes from event to event, and is compared at the end."""
    after = report.last_id
    async with transaction(connection):
        await call(connection, "one_moment")
        goal = (await call(connection, "projected_id", projection=projection.name))[0]["id"]
        upto, last = min(goal, after + PAGE_IDS), goal <= after + PAGE_IDS
        await call(connection, "rebuild_page", projection=projection.name, after=after, upto=upto)
        if not projection.inline:
            bounds = (after or -FOREVER, FOREVER if last else upto)
            await _compare(connection, projection, report, *bounds)
        elif last:
            await _compare(connection, projection, report, None, None)
    report.last_id = upto
    progress(upto, goal)
    return not last


async def _compare(
    connection: Connection, projection: Projection, report: Compared, after: int | None, upto: int | None
) -> None:
    for table in projection.tables:
        rows = await call(connection, "compare_table", name=table, after=after, upto=upto, most=MOST_DIFFERENCES)
        report.count += rows[0]["differences"] if rows else 0
        for row in rows[: MOST_DIFFERENCES - len(report.differences)]:
            report.differences.append(_difference(table, row))


def _difference(table: str, row: Mapping[str, Any]) -> Difference:
    live, folded = row["live"], row["folded"]
    if live is None or folded is None:
        return Difference(table, row["key"], live, folded)
    columns = [name for name in folded if live.get(name) != folded[name]]
    return Difference(
        table, row["key"], {name: live.get(name) for name in columns}, {name: folded[name] for name in columns}
    )
