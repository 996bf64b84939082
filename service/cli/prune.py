"""What ``ade builds prune`` does: unlike the other verbs about builds it opens the database."""

import anyio

from eventstore import Database
from service.cli.database import postgres
from service.files import Files
from service.logs import log_to_stderr
from service.pruning import Policy, Verdict, prune
from service.settings import Settings


def pruned(keep: int, older_than_days: float, *, dry_run: bool) -> list[Verdict]:
    """Removes the venvs of this machine that nobody needs: what became of each."""
    log_to_stderr(quiet=True)
    settings = Settings()
    with postgres(settings) as database:
        return anyio.run(_prune, database.url, Files.of(settings), Policy(keep, older_than_days), dry_run)


async def _prune(url: str, files: Files, policy: Policy, dry_run: bool) -> list[Verdict]:
    async with Database(url) as database:
        return await prune(database, files, policy, dry_run=dry_run)
