"""``ade db backup`` and ``restore``: the database as one file, by PostgreSQL's own pg_dump and pg_restore."""

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from eventstore.database import Connection, call, connect, script, transaction, without_password
from eventstore.embedded import BUNDLED, bundled
from eventstore.errors import CallerMistake
from eventstore.migrations import migrate
from eventstore.statements import texts
from projections.whole_file import whole_file
from service.cli.database import postgres
from service.cli.output import size
from service.logs import log_to_stderr
from service.settings import Settings
from service.work.process import spawn

LOOK_S = 0.2
"""How often a person is told how far it is."""

FILES = "documents, artifacts, log files, config packages and venvs: they lie under ADE_DATA_DIR"


class ProgramFailed(CallerMistake):
    """PostgreSQL's own program failed, and has said why; what it had begun is undone."""


class NotABackup(CallerMistake):
    """This is no backup of a log."""


class LogNotEmpty(CallerMistake):
    """There are events in this database already: restore into one of its own."""


class InUse(CallerMistake):
    """Others are connected to this database: stop the service, and leave its shells."""


def backup(
    file: Annotated[Path, typer.Argument(help="Where to; it is whole or absent.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write the database to one file, as it is at this moment; the service goes on."""
    log_to_stderr(quiet=True)
    settings = Settings()
    with postgres(settings) as database, whole_file(file, replace=force) as making:
        head = anyio.run(_backup, database.url, making, settings)
    typer.echo(f"{file}: the log up to event {head} at least, {size(file.stat().st_size)}.")
    typer.echo(f"Not in it are the files of this deployment: {FILES}.")


async def _backup(url: str, making: Path, settings: Settings) -> int:
    async with await connect(url) as connection:
        head = (await call(connection, "head"))[0]["head"]
        major = (await call(connection, "server"))[0]["major"]
    # Not the tables that a rebuild is about to swap in.
    options = ["--format=custom", "--no-password", "--exclude-schema=next", "--exclude-schema=past"]
    database, password = without_password(url)
    argv = [_program("pg_dump", major), *options, f"--file={making}", f"--dbname={database}"]
    await _run("backup", argv, {**settings.child_env, **password}, lambda: making.stat().st_size)
    return int(head)


def restore(
    file: Annotated[Path, typer.Argument(help="What `ade db backup` wrote.")],
) -> None:
    """Fill an empty database from a backup. The log gets a new name, so that whoever knows the old one is told."""
    log_to_stderr(quiet=True)
    settings = Settings()
    with postgres(settings) as database:
        log_id, origin = anyio.run(_restore, database.url, file, settings)
    typer.echo(f"{log_id}, a copy of {origin}. `ade log verify` compares it with its seals.")
    typer.echo(f"Not in a backup are the files of a deployment: {FILES}. Bring them back, too.")
    typer.echo("Runs and builds that were not done go on when the service starts; ADE_SAFE_MODE refuses new ones only.")


async def _restore(url: str, file: Path, settings: Settings) -> tuple[str, str]:
    async with await connect(url) as connection:
        server = (await call(connection, "server"))[0]
        if server["others"]:
            raise InUse(connections=server["others"])
        program = _program("pg_restore", server["major"])
        with tempfile.TemporaryDirectory() as folder:
            contents, origin = await _read(program, file, Path(folder), settings)
            if not await _is_restored(connection):
                await _make_room(connection)
                options = ["--single-transaction", "--no-owner", "--no-password", f"--use-list={contents}"]
                database, password = without_password(url)
                argv = [program, *options, f"--dbname={database}", str(file)]
                await _run("restore", argv, {**settings.child_env, **password})
        await migrate(url)
        # Last: until then nobody can use the log under its old name, and a restore that was killed can be finished.
        named = (await call(connection, "name_restored", origin=origin))[0]
        return named["log_id"], named["origin"]


async def _read(program: str, file: Path, folder: Path, settings: Settings) -> tuple[Path, str]:
    """What is to be restored, which is all but the log's name, as a list for pg_restore; and that name."""
    contents, name = folder / "contents", folder / "name"
    await _run("read", [program, "--list", f"--file={contents}", str(file)], settings.child_env)
    listed = contents.read_text()
    kept = re.sub(r"^\d+; \d+ \d+ TABLE DATA public log .*\n", "", listed, flags=re.MULTILINE)
    if kept == listed:
        raise NotABackup(file=str(file))
    await _run("read", [program, "--data-only", "--table=log", f"--file={name}", str(file)], settings.child_env)
    found = re.search(r"^(log_[0-9A-Za-z]+)\t", name.read_text(), re.MULTILINE)
    if found is None:
        raise NotABackup(file=str(file))
    contents.write_text(kept)
    return contents, found[1]


async def _is_restored(connection: Connection) -> bool:
    """Whether an earlier restore was killed before it gave the log its name. Raises LogNotEmpty."""
    if not (await call(connection, "has_events_table"))[0]["known"]:
        return False
    head = (await call(connection, "head"))[0]["head"]
    if head and await call(connection, "log_names"):
        raise LogNotEmpty(head=head)
    return bool(head)


async def _make_room(connection: Connection) -> None:
    """Nothing of ours is in the database. Raises LogNotEmpty, and DependedOn where somebody's own view stands on it."""
    async with transaction(connection):
        await call(connection, "log_lock")
        if await _is_restored(connection):
            raise LogNotEmpty
        await script(connection, dict(texts("operator"))["drop_empty_log"])


def _program(name: str, major: int) -> str:
    """The program of the server's own version, where there is one; else the newest: it knows older servers, too."""
    beside = shutil.which(name)
    if major in BUNDLED or beside is None:
        return str(bundled(major if major in BUNDLED else max(BUNDLED)) / name)
    return beside


async def _run(
    what: str, argv: Sequence[str], env: Mapping[str, str], written: Callable[[], int] | None = None
) -> None:
    """Runs one of PostgreSQL's programs, which says on stderr what is wrong. Raises ProgramFailed."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what)

        async def tell() -> None:
            while True:
                if written is not None:
                    bar.update(task, description=f"{what} {size(written())}")
                await anyio.sleep(LOOK_S)

        child = spawn(argv, env)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tell)
                ended = await child.wait()
                tasks.cancel_scope.cancel()
        except BaseException:
            child.kill()
            raise
    if ended.code != 0:
        raise ProgramFailed(program=Path(argv[0]).name, exit=ended.signal or ended.code)
