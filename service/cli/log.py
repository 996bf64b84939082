"""``ade log``: the log itself, for operators."""

import gzip
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.progress import Progress

from eventstore import Database, Feed, Log
from eventstore.log import FOREVER
from projections.rebuild import rebuild as rebuild_projection
from projections.tables import ALL
from service.cli import chain
from service.cli.serve import log_to_stderr, postgres
from service.settings import Settings

app = typer.Typer(help="The log: whether it is whole, its export, rebuild of what is derived.", no_args_is_help=True)
for command in (chain.head, chain.verify, chain.redact):
    app.command()(command)


@app.command()
def export(
    run: Annotated[str | None, typer.Option(help="Only the feed of this run.")] = None,
    after: Annotated[int, typer.Option("--from", min=1, help="The first id.")] = 1,
    upto: Annotated[int, typer.Option("--to", min=1, help="The last id.")] = FOREVER,
    zipped: Annotated[bool, typer.Option("--gzip", help="Compressed.")] = False,
) -> None:
    """Write events to stdout as NDJSON: the same bytes as the streams."""
    log_to_stderr(quiet=True)
    out = sys.stdout.buffer
    with postgres(Settings()) as database, gzip.open(out, "wb") if zipped else nullcontext(out) as sink:
        found = anyio.run(_export, database.url, run, after - 1, upto, sink.write)
    if not found:
        typer.echo(f"There is no run {run}.", err=True)
        raise typer.Exit(2)


async def _export(url: str, run: str | None, after: int, upto: int, write: Callable[[bytes], object]) -> bool:
    async with Database(url) as database:
        log = Log(database)
        upto = min(upto, await log.head())  # before the feed: one that ends meanwhile is not read beyond its end
        feed = None
        if run is not None:
            row = await database.row("feed_of_run", stream=run)
            if row is None:
                return False
            feed = Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"])
        while True:
            page = await (log.read_feed(feed, after, upto=upto) if feed else log.read(after, upto=upto))
            if not page:
                return True
            write(b"".join([line.line + b"\n" for line in page]))
            after = page[-1].id


@app.command()
def rebuild(
    projections: Annotated[list[str] | None, typer.Argument(help="Which ones; all where none is named.")] = None,
) -> None:
    """Throw derived tables away and make them anew from the log, beside the live ones."""
    log_to_stderr(quiet=True)
    known = {projection.name: projection for projection in ALL}
    for name in projections or []:
        if name not in known:
            typer.echo(f"There is no projection {name}; these are: {', '.join(known)}.", err=True)
            raise typer.Exit(2)
    with postgres(Settings()) as database, Progress(console=Console(stderr=True)) as bar:
        for name in projections or known:
            task = bar.add_task(name, total=None)
            reached = anyio.run(
                rebuild_projection,
                database.url,
                known[name],
                lambda done, total, t=task: bar.update(t, completed=done, total=total),
            )
            bar.update(task, completed=reached, total=reached)
