"""Brings a database to this program's schema: migrations once each, in order, under a lock; then the functions.

A database that is ahead of this program is left as it is: release N-1 runs on the schema of release N.
"""

import hashlib
from dataclasses import dataclass

from eventstore.database import call, connect, script, transaction
from eventstore.statements import texts


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """``applied`` and ``pending``: names of migrations. ``ahead``: those that only a newer program knows."""

    applied: tuple[str, ...]
    pending: tuple[str, ...]
    ahead: tuple[str, ...]
    functions_current: bool


async def status(url: str) -> SchemaStatus:
    """What is applied and what is not; changes nothing."""
    async with await connect(url) as connection:
        if not (await call(connection, "has_migrations"))[0]["known"]:
            return compare({})
        return compare({row["name"]: row["digest"] for row in await call(connection, "migrations")})


async def migrate(url: str) -> SchemaStatus:
    """Applies what is pending; safe to call from many processes at once. Returns what it found before."""
    async with await connect(url) as connection, transaction(connection):
        await call(connection, "migrations_lock")
        await call(connection, "migrations_table")
        found = compare({row["name"]: row["digest"] for row in await call(connection, "migrations")})
        if found.ahead:
            return found
        for name, text in texts("migrations"):
            if name in found.pending:
                await script(connection, text)
                await call(connection, "migration_applied", name=name, digest=_digest(text))
        if not found.functions_current:
            for _, text in _functions():
                await script(connection, text)
            await call(connection, "migration_applied", name="functions", digest=_functions_digest())
        return found


def compare(done: dict[str, str]) -> SchemaStatus:
    """What this program knows beside what a database says was done (the rows of ``migrations``)."""
    known = [name for name, _ in texts("migrations")]
    applied = {name for name in done if name != "functions"}
    return SchemaStatus(
        applied=tuple(name for name in known if name in applied),
        pending=tuple(name for name in known if name not in applied),
        ahead=tuple(sorted(applied - set(known))),
        functions_current=done.get("functions") == _functions_digest(),
    )


def _functions() -> list[tuple[str, str]]:
    return texts("functions") + texts("projections")


def _functions_digest() -> str:
    return _digest("".join(text for _, text in _functions()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
