"""``ade log export`` and ``import``: the log as a file, and back."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from rich.console import Console
from rich.progress import Progress

from eventstore import Database, Log
from eventstore.log import FOREVER
from eventstore.migrations import migrate
from eventstore.seals import Place, Sealer
from eventstore.selection import Selection, select
from projections.events import ACTED
from projections.feeds import feed_of
from projections.log_import import Imported, import_log, lines_of
from projections.sqlite_file import write_sqlite
from service.cli.database import postgres
from service.cli.options import USAGE, AsJson
from service.logs import log_to_stderr
from service.settings import Settings

UNKNOWN = "unknown"


def export(
    run: Annotated[str | None, typer.Option(help="Only the feed of this run.")] = None,
    audit: Annotated[bool, typer.Option("--audit", help="Only the events that say who did what.")] = False,
    after: Annotated[int, typer.Option("--from", min=1, help="The first id.")] = 1,
    upto: Annotated[int, typer.Option("--to", min=1, help="The last id.")] = FOREVER,
    zipped: Annotated[bool, typer.Option("--gzip", help="Compressed.")] = False,
    sqlite: Annotated[Path | None, typer.Option(help="Into this SQLite file, with the tables of runs, too.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the SQLite file if it is there.")] = False,
) -> None:
    """Write events to stdout as NDJSON, the same bytes as the streams; or the whole log to an SQLite file."""
    log_to_stderr(quiet=True)
    if sqlite is not None:
        if (run, audit, after, upto, zipped) != (None, False, 1, FOREVER, False):
            raise typer.BadParameter("an SQLite file holds the whole log: give --sqlite and --force alone")
        _export_sqlite(sqlite, force=force)
        return
    if run is not None and audit:
        raise typer.BadParameter("an audit is of the whole deployment: give --run or --audit")
    if after > upto:
        raise typer.BadParameter("nothing lies between --from and --to: --from is the larger one")
    with postgres(Settings()) as database, _output(zipped=zipped) as write:
        if audit:
            anyio.run(export_audit, database.url, after - 1, upto, write)
            return
        found = anyio.run(_export, database.url, run, after - 1, upto, write)
    if not found:
        typer.echo(f"There is no run {run}.", err=True)
        raise typer.Exit(USAGE)


@contextmanager
def _output(*, zipped: bool) -> Iterator[Callable[[bytes], object]]:
    out = sys.stdout.buffer
    if not zipped:
        yield out.write
        return
    with gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:  # the same log gives the same bytes, whenever
        yield packed.write


def _export_sqlite(path: Path, *, force: bool) -> None:
    with postgres(Settings()) as database, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("export", total=None)
        head = write_sqlite(
            database.url,
            path,
            replace=force,
            progress=lambda done, of: bar.update(task, completed=done, total=of),
        )
    typer.echo(f"{path}: the log up to event {head}", err=True)


async def _export(url: str, run: str | None, after: int, upto: int, write: Callable[[bytes], object]) -> bool:
    async with Database(url) as database:
        log = Log(database)
        upto = min(upto, await log.head())  # before the feed: one that ends meanwhile is not read beyond its end
        feed = None
        if run is not None:
            found = await feed_of(database, run) if run.startswith("run_") else None
            if found is None:
                return False
            feed = found.feed
        while True:
            page = await (log.read_feed(feed, after, upto=upto) if feed else log.read(after, upto=upto))
            if not page:
                return True
            write(page.ndjson)
            after = page.last_id


async def export_audit(url: str, after: int, upto: int, write: Callable[[bytes], object]) -> None:
    """Writes what somebody did, as lines, with the ids ``after < id <= upto``."""
    async with Database(url) as database:
        upto = min(upto, await Log(database).head())
        while after < upto:
            found = await select(database, [(Selection(ACTED, control=True), after)])
            page, after = found.pages[0]
            write(b"".join([line.line + b"\n" for line in page.each() if line.id <= upto]))


def import_(
    file: Annotated[Path, typer.Argument(help="What `ade log export` wrote, gzip or not; - is stdin.")] = Path("-"),
    origin: Annotated[str, typer.Option(help="The log_id of the log that it was exported from.")] = UNKNOWN,
    as_json: AsJson = False,
) -> None:
    """Fill an empty log with the events of another one: the same ids, times and chain, under a name of its own."""
    log_to_stderr(quiet=True)
    with _source(file) as source, postgres(Settings()) as database, Progress(console=Console(stderr=True)) as bar:
        anyio.run(migrate, database.url)  # an empty log may be a database that was never used
        total = file.stat().st_size if file.is_file() else None
        task = bar.add_task("import", total=total)

        async def copy() -> tuple[Imported, Place]:
            reached = source.raw.tell if total else lambda: 0
            made = await import_log(
                database.url, lines_of(source), origin, lambda _head: bar.update(task, completed=reached())
            )
            async with Database(database.url) as opened:
                return made, await Sealer(opened).catch_up()

        made, place = anyio.run(copy)
    if as_json:
        document = {"log_id": made.log_id, "origin": origin, "head": made.head, "chain_hash": place.chain_hash.hex()}
        typer.echo(json.dumps(document))
        return
    typer.echo(
        f"{made.log_id}, a copy of {origin}: {made.head} events, the chain after them is {place.chain_hash.hex()}"
    )
    typer.echo("A service that runs on this database must be started anew: it knows the log by its old name.")


@contextmanager
def _source(file: Path) -> Iterator[Any]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from error
    with opened:
        yield opened
