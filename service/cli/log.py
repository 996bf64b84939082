"""``ade log``: the log itself, for operators."""

from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.progress import Progress

from projections.rebuild import rebuild as rebuild_projection
from projections.tables import ALL
from service.cli import chain, transfer
from service.cli.database import postgres
from service.logs import log_to_stderr
from service.settings import Settings

app = typer.Typer(no_args_is_help=True)
for command in (chain.head, chain.verify, chain.redact, transfer.export):
    app.command()(command)
app.command("import")(transfer.import_)


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
