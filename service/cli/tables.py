"""``ade log verify --tables``: whether the tables are what the log says."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import anyio
import typer
from rich.console import Console
from rich.progress import Progress

from projections.comparison import Compared, Difference, compare
from projections.tables import ALL
from service.cli.database import postgres
from service.cli.options import FAILED
from service.cli.output import BAD, GOOD, clean
from service.settings import Settings

SHOWN = 80
"""Characters of a value that are shown; --json has them all."""


def verify_tables(*, as_json: bool) -> None:
    """Compares every table with a fresh fold, says what differs, and ends with the exit code that says so."""
    found: list[Compared] = []
    with postgres(Settings()) as database, Progress(console=Console(stderr=True)) as bar:
        for projection in ALL:
            task = bar.add_task(projection.name, total=None)
            found.append(
                anyio.run(
                    compare,
                    database.url,
                    projection,
                    lambda done, of, t=task: bar.update(t, completed=done, total=of),
                )
            )
    sound = not any(compared.count for compared in found)
    if as_json:
        typer.echo(json.dumps({"sound": sound, "projections": [asdict(compared) for compared in found]}))
    else:
        _show(found)
    raise typer.Exit(0 if sound else FAILED)


def _show(found: Sequence[Compared]) -> None:
    for compared in found:
        for difference in compared.differences:
            typer.echo(f"{BAD} {difference.table} {clean(difference.key)}: {_told(difference)}")
        if compared.count > len(compared.differences):
            typer.echo(f"{BAD} {compared.projection}: and {compared.count - len(compared.differences)} more")
        if compared.count == 0:
            typer.echo(f"{GOOD} {compared.projection} is what the events up to {compared.last_id} say")


def _told(difference: Difference) -> str:
    match difference:
        case Difference(live=None):
            return "the row is missing"
        case Difference(folded=None):
            return "no event says that there is such a row"
        case Difference(live=live, folded=folded):
            return "; ".join(
                f"{name} is {_value(live, name)}, the log says {_value(folded, name)}" for name in live or ()
            )


def _value(row: Mapping[str, str | None] | None, name: str) -> str:
    value = (row or {}).get(name)
    if value is None:
        return "NULL"
    shown = clean(value)
    return repr(shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…")
