"""``ade doctor``: whether this machine and its database can do what the service needs, and what to do where not."""

import json
import os
import resource
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import anyio
import typer
from uv import find_uv_bin

from eventstore.clock import now
from eventstore.database import call, connect
from eventstore.errors import EventStoreError
from eventstore.migrations import status as schema_status
from service import otlp
from service.cli import findings
from service.cli.database import postgres
from service.cli.findings import Finding
from service.cli.options import FAILED, AsJson
from service.engine_account import EngineAccount
from service.files import Files
from service.logs import log_to_stderr
from service.settings import Settings
from service.work import cgroup
from service.work.installer import CommandFailed, python_version

FILES_LEAST = 4_096


def doctor(as_json: AsJson = False) -> None:
    """Look at everything that the service needs, and say what to do where something is missing."""
    log_to_stderr(quiet=True)
    settings = Settings()
    found = [*_machine(settings), *_database(settings)]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        for finding in found:
            typer.echo(f"{'ok ' if finding.to_do is None else '!! '} {finding.name:<11} {finding.found}")
            if finding.to_do is not None:
                typer.echo(f"                {finding.to_do}")
    if any(finding.to_do for finding in found):
        raise typer.Exit(FAILED)


def _machine(settings: Settings) -> Iterator[Finding]:
    if settings.unknown:
        what = f"{', '.join(settings.unknown)}: no such setting"
        yield Finding("settings", what, "Correct the name, or remove it: it has no effect.")
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
        yield _folder(folder)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = f"Raise the hard limit to {FILES_LEAST} or more (LimitNOFILE=, ulimit -Hn): a stream takes one."
    yield Finding("files", f"{most} may be open", few if 0 <= most < FILES_LEAST else None)
    if settings.otlp_endpoint is not None:
        yield Finding("traces", "spans are sent", None if otlp.installed() else "Install ade-runs[otel].")


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


def _folder(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("folder", f"{there} cannot be written", f"Let the service's user own it: chown -R USER {there}")
    if there == folder and stat.S_IMODE(there.stat().st_mode) & 0o002:
        return Finding("folder", f"everybody may write {there}", f"chmod o-w {there}")
    return Finding("folder", f"{folder} is ours")


def _database(settings: Settings) -> Iterator[Finding]:
    with postgres(settings) as database:
        what = "the bundled PostgreSQL" if database.folder else "ADE_DATABASE_URL"
        try:
            found = anyio.run(_ask, database.url)
        except EventStoreError as away:
            yield Finding("database", f"{what}: {away}", "Start PostgreSQL, or correct ADE_DATABASE_URL.")
            return
    yield Finding("database", f"{what} answers")
    yield from found


async def _ask(url: str) -> list[Finding]:
    schema = await schema_status(url)
    async with await connect(url) as connection:
        here = now()
        [server] = await call(connection, "server_settings")
        found = [findings.schema(schema), *findings.server(server, (here + now()) / 2)]
        if not schema.pending:
            [unsealed] = await call(connection, "unsealed")
            found += findings.deployment(await call(connection, "standing"), unsealed)
        return found
