"""``ade serve`` and the processes that it keeps: API, worker, projector. Each may be killed, and is started anew.

The supervisor holds the bundled PostgreSQL open for all of them, and brings the schema up to date before they start.
"""

import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated

import anyio
import anyio.to_thread
import typer
import uvicorn
from starlette.applications import Starlette

from eventstore import Appender, Database, Leases, Log
from eventstore.clock import jitter, token_hex
from eventstore.embedded import EmbeddedServer, EmbeddedServerError
from eventstore.errors import CallerMistake, EventStoreError
from eventstore.migrations import migrate
from eventstore.tail import LOG, WORK, Hints
from projections.projector import Projector, Step
from service import otlp
from service.api.access import is_loopback
from service.api.app import create_app
from service.api.streams import SEND_TIMEOUT_S
from service.cli.bounded_head import BoundedHead
from service.exposition import Exposition, connection_name, shared_folder
from service.files import Files
from service.handler import Handler
from service.logs import log_to_stderr
from service.observer import observe
from service.settings import Settings
from service.span_sender import SpanSender
from service.work import cgroup
from service.work.installer import python_version
from service.work.process import Child, spawn
from service.worker import Worker

logger = logging.getLogger("ade")

STOP_TIMEOUT_S = 10
"""What a process may take to stop after it was told to, beyond ``ADE_DRAIN_SECONDS``."""
POSTGRES_CHECK_S = 2.0
PROJECTOR_LEASE_S = 5.0
"""Shorter than a worker's: nothing is lost when two take turns, and log files wait for the next one to be elected."""
HEALTHY_S = 10.0
"""A process that ran for this long is started again at once, another one after a pause that grows."""


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
        raise typer.Exit(2 if isinstance(error, CallerMistake) else 3) from error


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    quiet: Annotated[bool, typer.Option(help="Warnings and errors only.")] = False,
) -> None:
    """Run the service: API, worker and projector, with the bundled PostgreSQL where no other is given."""
    settings = Settings()
    host, port = host or settings.host, settings.port if port is None else port
    log_to_stderr("serve", quiet=quiet)
    if settings.auth == "off" and not is_loopback(host):
        logger.error("Refusing to listen on %s without keys: only loopback is safe then. Set ADE_AUTH=keys.", host)
        raise typer.Exit(2)
    with suppress(cgroup.NotDelegated):  # the worker will say so
        cgroup.claim()
    with postgres(settings) as database, shared_folder(settings.metrics_dir) as metrics_dir:
        anyio.run(migrate, database.url)
        Files.of(settings).make()
        logger.info("database ready; listening on http://%s:%d", host, port)
        env = {**settings.child_env, "ADE_DATABASE_URL": database.url, "ADE_HOST": host, "ADE_PORT": str(port)}
        env["ADE_METRICS_DIR"] = str(metrics_dir)
        argv = [sys.executable, "-m", "service.cli"]
        quietly = ["--quiet"] if quiet else []
        commands = {name: [*argv, name, *quietly] for name in ("api", "worker", "projector")}
        anyio.run(_supervise, commands, env, database.folder, settings.drain_seconds + STOP_TIMEOUT_S)


async def _supervise(commands: dict[str, list[str]], env: dict[str, str], bundled: Path | None, stop_s: float) -> None:
    children: dict[str, Child] = {}
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:  # to the end: a second one is patience
        async with anyio.create_task_group() as tasks:
            for name, argv in commands.items():
                tasks.start_soon(_keep, name, argv, env, children)
            if bundled is not None:
                tasks.start_soon(_keep_postgres, bundled)
            await anext(signals)
            logger.info("stopping")
            tasks.cancel_scope.cancel()
        await _stop(list(children.values()), stop_s)


async def _keep_postgres(folder: Path) -> None:
    """Starts the bundled server again where it was killed; opening one that runs takes a millisecond."""
    while True:
        await anyio.sleep(POSTGRES_CHECK_S)
        try:
            await anyio.to_thread.run_sync(lambda: EmbeddedServer.open(folder).close())
        except EmbeddedServerError as error:
            logger.error("%s", error)  # noqa: TRY400 - said again until somebody mends it


async def _stop(children: Sequence[Child], stop_s: float) -> None:
    for child in children:
        child.terminate()
    with anyio.move_on_after(stop_s) as waiting:
        for child in children:
            await child.wait()
    if waiting.cancelled_caught:
        for child in children:
            child.kill()
            await child.wait()


async def _keep(name: str, argv: list[str], env: dict[str, str], children: dict[str, Child]) -> None:
    pause_s = 0.2
    while True:
        started = time.monotonic()
        children[name] = spawn(argv, env)
        ended = await children[name].wait()
        logger.error("%s ended (%s); starting it again", name, ended.signal or ended.code)
        pause_s = 0.2 if time.monotonic() - started > HEALTHY_S else min(pause_s * 2, 5.0)
        await anyio.sleep(jitter(pause_s / 2, pause_s))


async def _asked_to_stop() -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


def api(quiet: bool = False) -> None:
    """The API process of `ade serve`."""
    settings = Settings()
    log_to_stderr("api", quiet=quiet)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor a viewer; the usual 1,024 are too few
    with postgres(settings) as database:
        app = create_app(settings, database.url)
        config = uvicorn.Config(
            app,
            http=BoundedHead,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=STOP_TIMEOUT_S // 2,
        )
        calm_collector()
        listening = config.bind_socket()
        # uvicorn closes a connection when its last bytes are taken. Of a client that takes nothing the kernel ends it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_TIMEOUT_S * 1000))
        DrainingServer(config).run(sockets=[listening])


def calm_collector() -> None:
    """Lets Python look for cycles of garbage more rarely, and not at all among what was imported.

    A full look over thousands of streams takes 200 ms, in which nobody is served: it came every few seconds. And a
    worker that makes a hundred thousand lines a second spent a quarter of its time on it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


class DrainingServer(uvicorn.Server):
    """Ends the streams when it is told to stop: uvicorn by itself would wait for them without end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        app = self.config.app
        if isinstance(app, Starlette) and hasattr(app.state, "deployment"):
            app.state.deployment.hub.drain()
        super().handle_exit(sig, frame)


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
