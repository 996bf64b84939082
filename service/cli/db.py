"""``ade db``: the database of a deployment, for operators."""

import json
import os
import shutil
import signal
from typing import Annotated

import anyio
import typer

from eventstore.migrations import migrate as apply_migrations
from eventstore.migrations import status as schema_status
from service.cli import backup, upgrade
from service.cli.database import postgres
from service.logs import log_to_stderr
from service.settings import Settings

app = typer.Typer(no_args_is_help=True)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(upgrade.upgrade)


@app.command()
def migrate() -> None:
    """Bring the schema up to date."""
    log_to_stderr(quiet=True)
    with postgres(Settings()) as database:
        found = anyio.run(apply_migrations, database.url)
    if found.ahead:
        typer.echo(f"The schema is newer than this program ({', '.join(found.ahead)}): left as it is.")
    else:
        typer.echo(f"Applied: {', '.join(found.pending) or 'nothing, it was up to date'}.")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False) -> None:
    """Say which migrations are applied; exit code 1 where some are pending."""
    log_to_stderr(quiet=True)
    with postgres(Settings()) as database:
        found = anyio.run(schema_status, database.url)
    if as_json:
        typer.echo(json.dumps({"applied": found.applied, "pending": found.pending, "ahead": found.ahead}))
    else:
        typer.echo(f"applied: {', '.join(found.applied) or '-'}\npending: {', '.join(found.pending) or '-'}")
    raise typer.Exit(1 if found.pending else 0)


@app.command()
def shell(
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to psql, after `--`.")] = None,
) -> None:
    """Open psql on the database of this deployment, the bundled one too."""
    log_to_stderr(quiet=True)
    with postgres(Settings()) as database:
        psql = str(database.psql or shutil.which("psql") or "psql")
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is psql's
        try:
            code = os.spawnv(os.P_WAIT, psql, [psql, database.url, *(arguments or ())])  # noqa: S606 - a terminal's own
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    raise typer.Exit(code)
