"""``ade doctor``: whether this machine and its database can do what the service needs, and what to do where not."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import typer
from uv import find_uv_bin

from eventstore.errors import EventStoreError
from eventstore.migrations import status as schema_status
from service.cli.connection import FAILED, AsJson
from service.cli.serve import log_to_stderr, postgres
from service.engine_account import EngineAccount
from service.files import Files
from service.settings import Settings
from service.work import cgroup
from service.work.installer import CommandFailed, python_version


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it where it is not as it should be."""

    name: str
    found: str
    to_do: str | None = None


def doctor(as_json: AsJson = False) -> None:
    """Look at everything that the service needs, and say what to do where something is missing."""
    log_to_stderr(quiet=True)
    settings = Settings()
    findings = [*_machine(settings), *_database(settings)]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            typer.echo(f"{'ok ' if finding.to_do is None else '!! '} {finding.name:<10} {finding.found}")
            if finding.to_do is not None:
                typer.echo(f"               {finding.to_do}")
    if any(finding.to_do for finding in findings):
        raise typer.Exit(FAILED)


def _machine(settings: Settings) -> Iterator[Finding]:
    yield _python(settings)
    try:
        yield Finding("uv", find_uv_bin())
    except FileNotFoundError as missing:
        yield Finding("uv", str(missing), "Install ade-runs again: the package uv belongs to it.")
    account = EngineAccount.choose(settings)
    found = f"engines run as {account.account.name}" if account.account else "engines run as the service's own user"
    yield Finding("account", found, account.notice)
    yield Finding("processes", f"at most {settings.worker_processes} of an engine, {_who_limits()}")
    files = Files.of(settings)
    for folder in dict.fromkeys((files.data, files.venvs, files.runs)):
        yield _disk(folder, settings.disk_free_min_mb)


def _python(settings: Settings) -> Finding:
    try:
        version = anyio.run(python_version, settings.python)
    except (CommandFailed, OSError) as error:
        return Finding("python", f"{settings.python}: {error}", "Set ADE_PYTHON_BIN to a Python that runs.")
    return Finding("python", f"{version} at {settings.python}")


def _who_limits() -> str:
    """Of the service that runs on this machine; where none does, of one that would be started here."""
    if homes := cgroup.homes():
        return f"by its control group below {' or '.join(map(str, sorted(homes)))}"
    try:
        return f"by its control group, where the service is alone in {cgroup.delegated()}"
    except cgroup.NotDelegated as why:
        return f"counted by its supervisor. For control groups: {why}"


def _disk(folder: Path, least_mb: int) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free_mb = shutil.disk_usage(there).free // 2**20
    if free_mb >= least_mb:
        return Finding("disk", f"{free_mb} MiB free for {folder}")
    return Finding(
        "disk",
        f"{free_mb} MiB free for {folder}; ADE_DISK_FREE_MIN_MB is {least_mb}",
        "Nothing is begun until there is room: remove venvs and runs that are not needed, or enlarge the disk.",
    )


def _database(settings: Settings) -> Iterator[Finding]:
    with postgres(settings) as database:
        what = "the bundled PostgreSQL" if database.folder else "ADE_DATABASE_URL"
        try:
            schema = anyio.run(schema_status, database.url)
        except EventStoreError as away:
            yield Finding("database", f"{what}: {away}", "Start PostgreSQL, or correct ADE_DATABASE_URL.")
            return
    yield Finding("database", f"{what} answers")
    if schema.pending:
        yield Finding("schema", f"pending: {', '.join(schema.pending)}", "Run `ade db migrate`.")
    elif schema.ahead:
        yield Finding("schema", f"newer than this program, which works: {', '.join(schema.ahead)}")
    else:
        yield Finding("schema", f"up to date: {schema.applied[-1]}")
