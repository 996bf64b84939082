"""Rows of the projections that tests make up, in tables of their own making, without a log beneath them."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from eventstore import Database
from service.api.builds import BUILDS
from service.api.lists import Found, Listing, Mark
from service.api.runs import RUNS
from service.api.uploads import CONFIGS, DOCUMENTS
from tests.histories import rows

Row = dict[str, Any]
OWN = "own"
"""In place of a workspace: who asks may see the workspace `one` alone, and names none."""
EPOCH = 1_763_600_000
MOMENTS = st.integers(0, 3)  # few, so that many are equal
WORDS = st.sampled_from(["Mapped 3 columns", "mapped NOTHING", "100% ü_", None])
BASE: Row = {"config_version": 1, "requested_by": "test", "attempt": 0, "updated_at": 0}
KINDS: dict[str, tuple[Listing, Row]] = {
    "runs": (RUNS, {**BASE, "config_digest": "d", "options": {}, "inputs": []}),
    "builds": (BUILDS, {**BASE, "reason": "missing", "fingerprint": "f"}),
    "configs": (CONFIGS, {"version": 1, "digest": "d", "updated_at": 0}),
    "documents": (DOCUMENTS, {"size": 1, "sha256": "s", "media_type": "text/plain"}),
}
WORK = ("runs", "builds")


CONFIG_NAMES = {"config_1": "Penguins", "config_2": "whales"}


@st.composite
def made_up(draw: st.DrawFn, kind: str) -> Row:
    """A row, without the id that its creation gives it."""
    row: Row = {"workspace_id": draw(st.sampled_from(["one", "two"])), "created_at": draw(MOMENTS)}
    if kind not in WORK:
        return row | {"name": draw(st.sampled_from(["a", "B", "b", "ü%", "z_"]))}
    well = "succeeded" if kind == "runs" else "active"
    status, reason = draw(
        st.sampled_from(
            [
                ("queued", None),
                ("failed", "timeout"),
                ("failed", "failed"),
                ("canceled", "canceled"),
                (well, "completed"),
            ]
        )
    )
    row |= {"status": status, "stop_reason": reason, "config_id": draw(st.sampled_from(["config_1", "config_2"]))}
    row |= {"summary": draw(WORDS), "error_message": draw(WORDS)}
    row["duration_ms"] = None if status == "queued" else draw(st.none() | MOMENTS)
    if status != "queued":
        row["finished_at"] = 10 + draw(MOMENTS)
    if kind == "runs":
        row["waiting_for"] = "worker" if status == "queued" else None
        row["options"] = draw(st.sampled_from([{}, {"metadata": {"key": 'va"lue', "T": "7ü"}}, {"dry_run": True}]))
    return row


@dataclass
class Shelf:
    """One table, and what was put into it."""

    url: str
    kind: str
    listing: Listing
    call: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
    database: Database
    table: list[Row] = field(default_factory=list)

    def clear(self) -> None:
        """Nothing stands there any more."""
        self.table.clear()
        rows(self.url, f"DELETE FROM {self.kind}")

    def add(self, *new: Row) -> None:
        """With their creation and their id, in this order."""
        before, prefix = len(self.table), {"documents": "doc"}.get(self.kind, self.kind[:-1])
        for number, row in enumerate(new, before + 1):
            name = {"name": f"{row['name']}{number}"} if self.kind == "configs" else {}  # two cannot have the same
            self.table.append({**row, **name, "created_id": number, "id": f"{prefix}_{number:03}X"})
        if new:
            self._insert(self.kind, self.table[before:])

    def name_configs(self) -> None:
        """The configs that runs and builds are of have names."""
        named = [{"id": i, "name": n, "created_id": k} for k, (i, n) in enumerate(CONFIG_NAMES.items())]
        self._insert("configs", [{"workspace_id": "one", "created_at": 0, **one} for one in named])

    def _insert(self, kind: str, new: list[Row]) -> None:
        times = [{**KINDS[kind][1], **row} for row in new]
        for row in times:
            row |= {name: moment(at) for name, at in row.items() if name.endswith("_at") and at is not None}
        rows(
            self.url,
            f"INSERT INTO {kind} SELECT * FROM json_populate_recordset(NULL::{kind}, %s::json) ON CONFLICT DO NOTHING",
            json.dumps(times),
        )

    def page(self, query: dict[str, str], mark: Mark | None, workspace: str | None, *, count: bool = True) -> Found:
        given = {**query, "count": str(count).lower()} | ({} if mark is None else {"page": str(mark)})
        path = {"workspace_id": workspace} if workspace not in {None, OWN} else {}
        workspaces = ["one"] if workspace == OWN else None
        parsed = self.listing.query.model_validate(given)
        found: Found = self.call(lambda: self.listing.find(self.database, parsed, workspaces=workspaces, **path))
        return found


def moment(at: float) -> str:
    return datetime.fromtimestamp(EPOCH + at, UTC).isoformat()


Shelves = Callable[[str], Shelf]
"""Makes the shelf of a kind."""


@contextmanager
def shelves(url: str) -> Iterator[Shelves]:
    """On one database. Its loop runs only while it is asked, and so does not disturb the making up of rows: the pool
    throws dice of its own."""
    with asyncio.Runner() as runner:

        def call(function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
            return runner.run(function())

        database = call(Database(url, connections=1).__aenter__)

        def shelf(kind: str) -> Shelf:
            made = Shelf(url, kind, KINDS[kind][0], call, database)
            if kind in WORK:
                made.name_configs()
            return made

        yield shelf
        call(database.__aexit__)
