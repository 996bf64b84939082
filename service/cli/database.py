"""The database that an operator's command works on; the bundled server is started for it where no other is given."""

import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from eventstore.embedded import EmbeddedServer, EmbeddedServerError
from eventstore.errors import CallerMistake, EventStoreError
from service.cli.options import UNREACHABLE, USAGE
from service.settings import Settings

logger = logging.getLogger("ade")


@dataclass(frozen=True, slots=True)
class Postgres:
    """The database of a deployment; of the bundled server also its folder and its psql."""

    url: str
    folder: Path | None = None
    psql: Path | None = None


@contextmanager
def postgres(settings: Settings) -> Iterator[Postgres]:
    """The database; the bundled server is kept running for as long as the block lasts.

    What is wrong with the database in the block becomes a line on stderr and an exit code.
    """
    try:
        if settings.database_url is not None:
            yield Postgres(settings.database_url)
            return
        settings.data.mkdir(parents=True, exist_ok=True)
        folder = settings.data / "postgres"
        with EmbeddedServer.open(folder) as server:
            if server.notice:
                logger.warning(server.notice)
            yield Postgres(server.url, folder, server.psql)
    except (EmbeddedServerError, EventStoreError) as error:
        logger.error("%s", error)  # noqa: TRY400 - the sentence says what to do; a traceback would hide it
        raise typer.Exit(USAGE if isinstance(error, CallerMistake) else UNREACHABLE) from error


def account() -> str:
    """Whose doing it is: the account that types the command."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # in a container an account may have no name
