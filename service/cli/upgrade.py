"""``ade db upgrade``: the next major version of the bundled PostgreSQL; the old one is kept until it is verified."""

from typing import Annotated

import anyio
import typer

from eventstore import Database
from eventstore.embedded import EmbeddedServerError
from eventstore.upgrade import NEWEST, clusters, remove_old
from eventstore.upgrade import upgrade as upgrade_cluster
from eventstore.verification import Verified, verify
from service.cli.database import postgres
from service.cli.options import FAILED, USAGE
from service.cli.output import BAD, GOOD
from service.logs import log_to_stderr
from service.settings import Settings


def upgrade(
    remove: Annotated[
        bool, typer.Option("--remove-old", help="Remove what an upgrade has kept, once the log is verified.")
    ] = False,
) -> None:
    """Bring the bundled PostgreSQL's data to its newest major version, and compare the log with its seals there."""
    log_to_stderr(quiet=True)
    settings = Settings()
    if settings.database_url is not None:
        typer.echo("ADE_DATABASE_URL names a server of your own: upgrade it as its documentation says.", err=True)
        raise typer.Exit(USAGE)
    folder = settings.data / "postgres"
    try:
        before = clusters(folder) if folder.exists() else None
        if before is None:
            typer.echo(f"There is no database in {folder} yet; a new one is made by PostgreSQL {NEWEST}.")
            return
        upgrade_cluster(folder)
    except EmbeddedServerError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE) from error
    with postgres(settings) as database:
        found = anyio.run(_verified, database.url)
    for finding in found.findings:
        typer.echo(f"{BAD} event {finding.id} {finding.what}")
    if found.count:
        typer.echo(f"To go back, remove {folder / str(NEWEST)}: the cluster of PostgreSQL {before.new} is as it was.")
        raise typer.Exit(FAILED)
    how = "was before" if before.new == NEWEST else f"was brought from PostgreSQL {before.new}"
    typer.echo(f"{GOOD} PostgreSQL {NEWEST}: {how}; the log is as it was sealed, up to event {found.sealed.id}.")
    if remove:
        typer.echo("\n".join(f"Removed: {path}" for path in remove_old(folder)) or "Nothing was left to remove.")
    elif (kept := clusters(folder)) and kept.old:
        typer.echo("The old cluster is kept. When all is well: `ade db upgrade --remove-old`.")


async def _verified(url: str) -> Verified:
    async with Database(url) as database:
        return await verify(database)
