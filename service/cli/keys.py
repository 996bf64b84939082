"""``ade keys``: who may ask the API, for operators."""

from typing import Annotated, Any

import anyio
import pydantic
import typer

from eventstore import Database
from projections.events import RoleName
from service import key_records
from service.cli import output
from service.cli.database import account, postgres
from service.cli.options import USAGE, AsJson
from service.cli.output import Screen
from service.key_records import NewKey
from service.logs import log_to_stderr
from service.settings import Settings

app = typer.Typer(no_args_is_help=True)

DAY_S = 24 * 3600
WRONG = {
    "name": "--name has 1 to 100 characters, and no control character among them.",
    "workspaces": "--workspace is '*', or has lower-case letters, digits and `-`: at most 63; give 1 to 100 of them.",
    "expires_in_s": "--expires is at least a second and at most ten years.",
}
"""What is wrong with a key, by the field that does not fit."""


@app.command()
def create(
    role: Annotated[
        RoleName,
        typer.Option(help="viewer reads, operator also starts and stops, admin also governs."),
    ],
    workspace: Annotated[list[str], typer.Option("--workspace", "-w", help="Good for it; repeat it; * is all.")],
    name: Annotated[str | None, typer.Option(help="What people call it; your account when not given.")] = None,
    expires: Annotated[float | None, typer.Option(min=0, metavar="DAYS", help="Dead after so many days.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once."""
    try:
        wanted = NewKey(
            name=name or account(),
            role=role,
            workspaces=list(dict.fromkeys(workspace)),
            expires_in_s=None if expires is None else int(expires * DAY_S),
        )
    except pydantic.ValidationError as error:
        found = error.errors()[0]
        raise typer.BadParameter(WRONG.get(str(found["loc"][0]), found["msg"])) from error
    log_to_stderr(quiet=True)

    async def make(url: str) -> dict[str, Any]:
        async with Database(url) as database:
            key = await key_records.make(database, wanted, account())
            return {**(await key_records.listed(database, key.id))[0], "key": key.text}

    with postgres(Settings()) as database:
        made = anyio.run(make, database.url)
    if as_json:
        output.json({**_as_answered(made), "key": made["key"]})
        return
    typer.echo(made["key"])
    typer.echo(f"{made['id']}; it is shown this once. Give it as ADE_API_KEY, or in the header X-API-Key.", err=True)


def _as_answered(row: dict[str, Any]) -> dict[str, Any]:
    """The key as ``GET /keys`` shows it."""
    from service.api.keys import KeySnapshot

    return KeySnapshot.of(row)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List keys, newest first."""
    log_to_stderr(quiet=True)

    async def read(url: str) -> list[dict[str, Any]]:
        async with Database(url) as database:
            return await key_records.listed(database)

    with postgres(Settings()) as database:
        keys = anyio.run(read, database.url)
    if as_json:
        for key in keys:
            output.json(_as_answered(key))
        return
    heads = ("KEY", "NAME", "ROLE", "WORKSPACES", "CREATED", "USED", "STATE")
    rows = [
        (
            key["id"],
            key["name"],
            key["role"],
            ",".join(key["workspaces"]),
            output.ago(key["created_at"]),
            output.ago(key["last_used_at"]),
            key["state"],
        )
        for key in keys
    ]
    Screen().columns(heads, rows)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id.")],
    reason: Annotated[str | None, typer.Option(help="Why, for the log.")] = None,
    as_json: AsJson = False,
) -> None:
    """End a key, its sessions, what was signed with it and the streams that it opened, within a second."""
    log_to_stderr(quiet=True)

    async def end(url: str) -> bool:
        async with Database(url) as database:
            return await key_records.revoke(database, key, account(), reason)

    with postgres(Settings()) as database:
        done = anyio.run(end, database.url)
    if as_json:
        output.json({"key_id": key, "revoked": done})
    else:
        typer.echo(f"{key} is revoked." if done else f"There is no key {key} that lives.", err=not done)
    if not done:
        raise typer.Exit(USAGE)
