"""``ade log head``, ``verify`` and ``redact``: how the log stands, whether it is what was written, and erasing text."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TextIO

import anyio
import pydantic
import typer
from rich.console import Console
from rich.progress import Progress

from eventstore import Database, Log
from eventstore.clock import now, rfc3339
from eventstore.log import FOREVER
from eventstore.seals import Sealer, sealed
from eventstore.signed_head import Head
from eventstore.verification import Verified
from eventstore.verification import verify as verify_log
from projections.events import EventRedacted
from projections.log_files import PathOf
from projections.redaction import Redacted
from projections.redaction import redact as redact_events
from service.cli.database import account, postgres
from service.cli.options import FAILED, USAGE, AsJson
from service.cli.output import BAD, GOOD
from service.cli.tables import verify_tables
from service.files import Files
from service.logs import log_to_stderr
from service.settings import Settings


def head(
    signed: Annotated[bool, typer.Option("--signed", help="Seal it first, and sign it with ADE_SIGNING_KEY.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which log this is, its newest event, and how far the chain is sealed."""
    log_to_stderr(quiet=True)
    settings = Settings()
    if signed and settings.signing_key is None:
        typer.echo(
            "ADE_SIGNING_KEY names no key: `openssl genpkey -algorithm ed25519 -out key.pem` makes one.", err=True
        )
        raise typer.Exit(USAGE)
    with postgres(settings) as database:
        newest, origin, found = anyio.run(_head, database.url, signed)
        if signed and settings.signing_key is not None:
            typer.echo(found.sign(settings.signing_key, rfc3339(now(), "seconds")).model_dump_json())
        elif as_json:
            typer.echo(json.dumps({"head": newest, "origin": origin, **found.model_dump(exclude_none=True)}))
        else:
            copied = f", a copy of {origin}" if origin else ""
            typer.echo(f"{found.log_id}{copied} at {newest}, sealed up to {found.id}")


async def _head(url: str, seal: bool) -> tuple[int, str | None, Head]:
    async with Database(url) as database:
        place = await (Sealer(database).catch_up() if seal else sealed(database))
        identity = await Log(database).identity()
        names = await database.row("log_names")
        origin = names["origin"] if names else None
        return identity.head, origin, Head(log_id=identity.log_id, id=place.id, chain_hash=place.chain_hash.hex())


def verify(
    first: Annotated[int, typer.Option("--from", min=1, help="The first id; what is before it is believed.")] = 1,
    last: Annotated[int, typer.Option("--to", min=1, help="The last id.")] = FOREVER,
    kept: Annotated[
        typer.FileText | None, typer.Option("--head", help="A head that you kept, to compare with.")
    ] = None,
    public_key: Annotated[Path | None, typer.Option(help="Whose signature the head must bear: a PEM file.")] = None,
    tables: Annotated[
        bool, typer.Option("--tables", help="Compare the tables with what the log says, and not the log itself.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the log with its seals, and with a head that was kept; exit code 1 where something was changed."""
    log_to_stderr(quiet=True)
    if tables:
        if (first, last, kept, public_key) != (1, FOREVER, None, None):
            raise typer.BadParameter("the tables follow from the whole log: --tables stands alone")
        verify_tables(as_json=as_json)
    if kept is None and public_key is not None:
        raise typer.BadParameter("a public key belongs to a head: give --head, too")
    if kept is not None and (first, last) != (1, FOREVER):
        raise typer.BadParameter("a head is compared with the whole log: leave out --from and --to")
    if first > last:
        raise typer.BadParameter("nothing lies between --from and --to: --from is the larger one")
    head = None if kept is None else _read_head(kept)
    with postgres(Settings()) as database, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("verify", total=None)

        async def compare() -> tuple[Verified, list[str]]:
            async with Database(database.url) as opened:
                about_head = [] if head is None else await _complaints(opened, head, public_key)
                found = await verify_log(
                    opened,
                    first=first,
                    last=last,
                    kept=None if head is None else head.place,
                    progress=lambda done, of: bar.update(task, completed=done, total=of),
                )
                return found, about_head

        found, about_head = anyio.run(compare)
    _report(found, about_head, as_json=as_json)


def _read_head(file: TextIO) -> Head:
    try:
        return Head.model_validate_json(file.read())
    except pydantic.ValidationError as error:
        raise typer.BadParameter(f"{file.name} holds no head: {error.errors()[0]['msg']}") from error


async def _complaints(database: Database, head: Head, public_key: Path | None) -> list[str]:
    """What is wrong with a head by itself."""
    complaints = [head.complaint(public_key)]
    row = await database.row("log_names")
    if row is None or head.log_id not in {row["log_id"], row["origin"]}:
        complaints.append(f"The head is of another log, {head.log_id}.")
    return [complaint for complaint in complaints if complaint is not None]


def _report(found: Verified, about_head: list[str], *, as_json: bool) -> None:
    """What a verification found, and the exit code that says so."""
    sound = not about_head and found.count == 0
    if as_json:
        document = {
            "sound": sound,
            "first_id": found.first_id,
            "last_id": found.last_id,
            "sealed_id": found.sealed.id,
            "unsealed": found.unsealed,
            "head": about_head,
            "findings": [asdict(finding) for finding in found.findings],
            "count": found.count,
        }
        typer.echo(json.dumps(document))
        raise typer.Exit(0 if sound else FAILED)
    for complaint in about_head:
        typer.echo(f"{BAD} {complaint}")
    for finding in found.findings:
        typer.echo(f"{BAD} event {finding.id} {finding.what}")
    if found.count > len(found.findings):
        typer.echo(f"{BAD} and {found.count - len(found.findings)} more")
    upto = min(found.last_id, found.sealed.id)
    if sound and found.first_id <= upto:
        typer.echo(f"{GOOD} events {found.first_id} to {upto} are as they were sealed")
    elif sound:
        typer.echo("There was nothing to compare: no sealed event lies there.")
    typer.echo(f"sealed up to {found.sealed.id}; not sealed yet: {found.unsealed}")
    raise typer.Exit(0 if sound else FAILED)


def redact(
    stream: Annotated[str, typer.Argument(help="A run or a build.")],
    events: Annotated[list[int], typer.Argument(help="The ids of lines of its output.", min=1)],
    reason: Annotated[str, typer.Option(help="Why; kept in the log.")],
    by: Annotated[str | None, typer.Option(help="Who asks for it; your account when not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Erase the text of events from the log, its tables and the log files of this machine, for good."""
    log_to_stderr(quiet=True)
    if not reason.strip():
        raise typer.BadParameter("it is erased for good: --reason must say why")
    settings = Settings()
    asked = EventRedacted(
        stream=stream,
        event_ids=sorted(set(events)),
        requested_by=_plain(by or account()),
        reason=_plain(reason),
    )
    with postgres(settings) as database:
        done = anyio.run(_redact, database.url, Files.of(settings).logfile, asked)
    if as_json:
        files = [str(path) for path in done.files]
        typer.echo(json.dumps({"redacted_by": done.by, "repeated_by": done.repeated_by, "files": files}))
    else:
        typer.echo("They had been redacted before." if done.by is None else f"Redacted; event {done.by} says so.")
        for path in done.files:
            typer.echo(f"Written anew: {path}")
    if done.repeated_by is not None:
        what = f"the `error_message` of event {done.repeated_by}, which cannot be erased: what {stream} is rests on it."
        typer.echo(f"error: The text is still in {what}", err=True)
        raise typer.Exit(FAILED)


async def _redact(url: str, path_of: PathOf, asked: EventRedacted) -> Redacted:
    async with Database(url) as database:
        return await redact_events(database, path_of, asked)


def _plain(text: str) -> str:
    """The text as UTF-8 can hold it, whatever bytes were given on the command line."""
    return text.encode("utf-8", "replace").decode()
