"""The log and its tables in one SQLite file, to look around in where there is no PostgreSQL.

The file shows one moment: runs and builds as they are at an id, events and lines up to it.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio

from eventstore.clock import rfc3339
from eventstore.database import Connection, call, connect, transaction
from eventstore.statements import texts
from projections.tables import CAUGHT_UP
from projections.whole_file import NotWritable, whole_file

PAGE_ROWS = 5_000
CATCH_UP_IDS = 20_000

Progress = Callable[[int, int], None]


def write_sqlite(url: str, path: Path, *, replace: bool, progress: Progress = lambda _done, _of: None) -> int:
    """Writes the file; the id up to which it holds the log. ``progress`` is told ids done, and that one.

    Raises FileIsThere and NotWritable.
    """
    with whole_file(path, replace=replace) as making:
        try:
            with closing(sqlite3.connect(making, isolation_level=None)) as file:
                return anyio.run(_fill, url, file, progress)
        except sqlite3.Error as error:
            raise NotWritable(path=str(path), reason=str(error)) from error


async def _fill(url: str, file: sqlite3.Connection, progress: Progress) -> int:
    async with await connect(url) as connection:
        return await _copy(connection, file, progress)


async def _copy(connection: Connection, file: sqlite3.Connection, progress: Progress) -> int:
    # Until the rename the file is nobody's: no journal, and one fsync at the end.
    file.execute("PRAGMA journal_mode = OFF")
    file.execute("PRAGMA synchronous = OFF")
    fill: dict[str, str] = {}
    for table in await call(connection, "copied_tables"):
        file.execute(table["make"])
        fill[table["name"]] = table["fill"]
    file.execute("BEGIN")
    async with transaction(connection):
        await call(connection, "one_moment")
        head = int((await call(connection, "head"))[0]["head"])
        for name, statement in (("runs", "copied_runs"), ("builds", "copied_builds")):
            async for rows in _pages(connection, statement, "created_id", head):
                file.executemany(fill[name], rows)
    for projection in CAUGHT_UP:
        while (await call(connection, "catch_up", projection=projection.name, most=CATCH_UP_IDS))[0]["reached"] < head:
            pass
    lines = (("events", "copied_events"), ("run_logs", "copied_run_logs"), ("build_logs", "copied_build_logs"))
    for name, statement in lines:
        async for rows in _pages(connection, statement, "id", head):
            file.executemany(fill[name], rows)
            if name == "events":
                progress(rows[-1][0], head)
    file.execute("COMMIT")
    for _, text in texts("sqlite"):
        file.executescript(text)
    return head


async def _pages(connection: Connection, statement: str, key: str, upto: int) -> AsyncIterator[Sequence[list[Any]]]:
    after = 0
    while page := await call(connection, statement, after=after, upto=upto, limit=PAGE_ROWS):
        after = page[-1][key]
        yield [[_stored(column, value) for column, value in row.items()] for row in page]


def _stored(column: str, value: Any) -> Any:
    """The value as SQLite can hold it: times as text that sorts, in the shape of ``created_at``."""
    if value is None or not column.endswith("_at"):
        return value
    return rfc3339(value)
