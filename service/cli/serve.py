"""``ade serve``, and the processes that it keeps: API, worker, projector.

It holds the bundled PostgreSQL open for all of them, and brings the schema up to date before they start.
"""

import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
import typer

from eventstore import Appender, Database, Leases, Log
from eventstore.clock import token_hex
from eventstore.embedded import EmbeddedServer, EmbeddedServerError
from eventstore.migrations import migrate
from eventstore.tail import LOG, WORK, Hints
from projections.projector import Projector, Step
from service import otlp
from service.api.access import is_loopback
from service.api.app import create_app
from service.cli.database import postgres
from service.cli.http_server import Server, bind
from service.cli.processes import Role, Supervisor, tell_ready
from service.exposition import Exposition, connection_name, shared_folder
from service.files import Files
from service.handler import Handler
from service.logs import log_to_stderr
from service.observer import observe
from service.settings import Settings
from service.span_sender import SpanSender
from service.work import cgroup
from service.work.installer import python_version
from service.worker import Worker

logger = logging.getLogger("ade")

POSTGRES_CHECK_S = 2.0
PROJECTOR_LEASE_S = 5.0
"""Shorter than a worker's: nothing is lost when two take turns, and log files wait for the next one to be elected."""


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.")] = None,
    api_processes: Annotated[int | None, typer.Option(min=1, max=64, help="API processes on that port.")] = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and errors only.")] = False,
) -> None:
    """Run the service: API, worker and projector, with the bundled PostgreSQL where no other is given.

    SIGHUP replaces its processes one after the other, and no request fails. SIGTERM stops it.
    """
    settings = Settings()
    host, port = host or settings.host, settings.port if port is None else port
    log_to_stderr("serve", quiet=quiet)
    if settings.auth == "off" and not is_loopback(host):
        logger.error("Refusing to listen on %s without keys: only loopback is safe then. Set ADE_AUTH=keys.", host)
        raise typer.Exit(2)
    try:
        sockets = bind(host, port, api_processes or settings.api_processes)
    except OSError as error:
        logger.error("Cannot listen on %s, port %d: %s.", host, port, error.strerror)  # noqa: TRY400 - it says it all
        raise typer.Exit(2) from error
    with suppress(cgroup.NotDelegated):  # the worker will say so
        cgroup.claim()
    with postgres(settings) as database, shared_folder(settings.metrics_dir) as metrics_dir:
        anyio.run(migrate, database.url)
        Files.of(settings).make()
        port = sockets[0].getsockname()[1]
        logger.info("database ready; listening on http://%s:%d", host, port)
        env = {**settings.child_env, "ADE_DATABASE_URL": database.url, "ADE_HOST": host, "ADE_PORT": str(port)}
        env["ADE_METRICS_DIR"] = str(metrics_dir)
        supervisor = Supervisor(list(_roles(sockets, quiet=quiet)), env, settings.drain_seconds)
        anyio.run(_supervise, supervisor, database.folder, sockets)


def _roles(sockets: Sequence[socket.socket], *, quiet: bool) -> Iterator[Role]:
    """The processes of a service, in the order in which they are replaced."""

    def argv(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "service.cli", *arguments, *(["--quiet"] if quiet else [])]

    for number, listening in enumerate(sockets, 1):
        name = f"api {number}" if len(sockets) > 1 else "api"
        yield Role(name, argv("api", "--socket", str(listening.fileno())), keep=(listening.fileno(),))
    for name in ("projector", "worker"):
        yield Role(name, argv(name))


async def _supervise(supervisor: Supervisor, bundled: Path | None, sockets: Sequence[socket.socket]) -> None:
    async with anyio.create_task_group() as tasks:
        if bundled is not None:
            tasks.start_soon(_keep_postgres, bundled)
        await supervisor.run(tasks, sockets)


async def _keep_postgres(folder: Path) -> None:
    """Starts the bundled server again where it was killed; opening one that runs takes a millisecond."""
    while True:
        await anyio.sleep(POSTGRES_CHECK_S)
        try:
            await anyio.to_thread.run_sync(lambda: EmbeddedServer.open(folder).close())
        except EmbeddedServerError as error:
            logger.error("%s", error)  # noqa: TRY400 - said again until somebody mends it


async def _asked_to_stop() -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


def api(
    quiet: bool = False,
    descriptor: Annotated[int | None, typer.Option("--socket", help="What to listen on, bound already.")] = None,
) -> None:
    """The API process of `ade serve`."""
    settings = Settings()
    log_to_stderr("api", quiet=quiet)
    listening = bind(settings.host, settings.port, 1)[0] if descriptor is None else socket.socket(fileno=descriptor)
    with postgres(settings) as database:
        calm_collector()
        ready = partial(tell_ready, settings.child_env)
        Server(create_app(settings, database.url), settings.drain_seconds, ready).serve_on(listening)


def calm_collector() -> None:
    """Lets Python look for cycles of garbage more rarely, and not at all among what was imported.

    A full look over thousands of streams takes 200 ms, in which nobody is served: it came every few seconds. And a
    worker that makes a hundred thousand lines a second spent a quarter of its time on it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@dataclass(frozen=True, slots=True)
class _Backstage:
    """What a process without HTTP works with."""

    database: Database
    log: Log
    hints: Hints


@asynccontextmanager
async def _backstage(kind: str, settings: Settings, url: str, channel: str) -> AsyncIterator[_Backstage]:
    async with Database(url, name=connection_name(kind)) as database, anyio.create_task_group() as tasks:
        hints = Hints(database, channel)
        for service in (hints, Exposition(kind, settings.metrics_dir)):
            await tasks.start(service.run)
        yield _Backstage(database, Log(database), hints)
        tasks.cancel_scope.cancel()


def worker(quiet: bool = False) -> None:
    """Run a worker alone, for a deployment with several machines."""
    settings = Settings()
    log_to_stderr("worker", quiet=quiet)
    Files.of(settings).make()
    try:
        logger.info("engines are limited by control groups below %s", cgroup.claim())
    except cgroup.NotDelegated as why:
        logger.info("engines are limited process by process, and counted. For control groups: %s", why)
    with postgres(settings) as database:
        calm_collector()
        anyio.run(_work, settings, database.url)


async def _work(settings: Settings, url: str) -> None:
    async with _backstage("worker", settings, url, WORK) as back, anyio.create_task_group() as tasks:
        appender = Appender(back.database, observe)
        await tasks.start(appender.run)
        python = await python_version(settings.python)
        handler = Handler(back.database, back.log, appender, Files.of(settings), settings, python)
        working = Worker(back.database, appender, back.hints, handler, settings)
        async with anyio.create_task_group() as jobs:
            jobs.start_soon(_drain_when_asked, working, settings.drain_seconds, jobs.cancel_scope)
            tell_ready(settings.child_env)
            await working.run()
            jobs.cancel_scope.cancel()
        tasks.cancel_scope.cancel()


async def _drain_when_asked(working: Worker, drain_s: float, everything: anyio.CancelScope) -> None:
    await _asked_to_stop()
    logger.info("draining: no more work is taken")
    working.drain()
    await anyio.sleep(drain_s)
    everything.cancel()  # what is not done by now is handed back


def projector(quiet: bool = False) -> None:
    """The projector process of `ade serve`."""
    settings = Settings()
    log_to_stderr("projector", quiet=quiet)
    with postgres(settings) as database:
        calm_collector()
        anyio.run(_project, settings, database.url)


async def _project(settings: Settings, url: str) -> None:
    async with _backstage("projector", settings, url, LOG) as back, anyio.create_task_group() as tasks:
        leases = Leases(back.database, f"projector-{token_hex(3)}", PROJECTOR_LEASE_S)
        also = _span_sender(settings, back, (await back.log.identity()).log_id)
        logfile = Files.of(settings).logfile
        tasks.start_soon(Projector(back.database, back.log, back.hints, leases, logfile, also).run)
        tell_ready(settings.child_env)
        await _asked_to_stop()
        tasks.cancel_scope.cancel()


def _span_sender(settings: Settings, back: _Backstage, log_id: str) -> list[Step]:
    if settings.otlp_endpoint is None:
        return []
    if not otlp.installed():
        logger.error("ADE_OTLP_ENDPOINT is set, but no spans are sent: install ade-runs[otel]")
        return []
    resource = {"service.name": "ade", "service.version": version("ade-runs"), "ade.log_id": log_id}
    receiver = otlp.Receiver(settings.otlp_endpoint, settings.otlp, resource)
    return [SpanSender(back.database, back.log, receiver).step]
