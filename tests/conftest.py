"""What the tests stand on: real PostgreSQL servers, an empty database for each test, the whole service as processes."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import psycopg
import pytest

from eventstore import Appender, Database, Log
from eventstore.embedded import EmbeddedServer
from eventstore.migrations import migrate
from eventstore.tail import LOG, Hints
from service.hub import Hub

ROOT = Path(__file__).resolve().parent.parent
PENGUINS = ROOT / "docs" / "examples" / "penguins"
READY_S = 60
STOP_S = 40


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def system_binaries() -> Path | None:
    """The newest PostgreSQL of the machine's own, where there is one that this program supports (15 or newer)."""
    found = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found and int(found[-1].parts[4]) >= 15 else None


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that every account can enter, so that a root's PostgreSQL and engines need no place elsewhere."""
    folder = Path(tempfile.mkdtemp(prefix="ade-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


RESET = """
DO $$
DECLARE t regclass;
BEGIN
    SET LOCAL session_replication_role = replica;  -- the log's own triggers refuse this to everybody else
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
             AND relname NOT IN ('log', 'schema_migrations', 'checkpoints') LOOP
        EXECUTE format('DELETE FROM %s', t);
    END LOOP;
    DELETE FROM checkpoints WHERE projection NOT IN ('run_logs', 'build_logs');
    UPDATE checkpoints SET id = 0;
    DROP SCHEMA IF EXISTS next CASCADE;
END $$
"""


class Server:
    """A running PostgreSQL, and a migrated database to copy."""

    _emptied: str | None = None

    def __init__(self, embedded: EmbeddedServer) -> None:
        self._embedded = embedded
        self._template = self.create()
        anyio.run(migrate, self._template)

    def url(self, name: str) -> str:
        return self._embedded.url.replace("/ade?", f"/{name}?").replace("dbname=ade", f"dbname={name}")

    def create(self, template: str | None = None) -> str:
        """A new database; its URL."""
        name = f"test_{secrets.token_hex(6)}"
        copied = f' TEMPLATE "{template}"' if template else ""
        with psycopg.connect(self._embedded.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"{copied}'.encode())
        return self.url(name)

    def copy(self) -> str:
        """A new database with the schema; its URL."""
        return self.create(psycopg.conninfo.conninfo_to_dict(self._template)["dbname"])  # type: ignore[arg-type]

    def empty(self) -> str:
        """The one database that tests share in turn, emptied: 5 ms, where a copy takes 0.3 s; its URL."""
        if self._emptied is None:
            self._emptied = self.copy()
        with psycopg.connect(self._emptied, autocommit=True) as connection:
            connection.execute(RESET.encode())
        return self._emptied

    def drop(self, url: str) -> None:
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        with psycopg.connect(self._embedded.url, autocommit=True) as connection:
            connection.execute(f"SET statement_timeout = '{STOP_S}s'".encode())  # it waits for all who listen anywhere
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextmanager
def running_server(version: int, binaries: Path | None = None) -> Iterator[Server]:
    with reachable_folder() as folder, EmbeddedServer.open(folder, version=version, binaries=binaries) as embedded:
        yield Server(embedded)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The newest bundled PostgreSQL."""
    with running_server(18) as running:
        yield running


@pytest.fixture(scope="session", params=["18", "16", "system"])
def every_server(request: pytest.FixtureRequest, server: Server) -> Iterator[Server]:
    """Every PostgreSQL that is here: both bundled ones, and the machine's own."""
    if request.param == "18":
        yield server
        return
    binaries = system_binaries() if request.param == "system" else None
    if request.param == "system" and binaries is None:
        pytest.skip("LOUD: this machine has no PostgreSQL of its own (15 or newer); tested on the bundled ones only")
    with running_server(16, binaries) as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """An empty database with the schema."""
    return server.empty()


@pytest.fixture
def fresh_url(server: Server) -> Iterator[str]:
    """A database with the schema that no test has used, for those that look at the schema itself."""
    fresh = server.copy()
    yield fresh
    server.drop(fresh)


@pytest.fixture
def every_url(every_server: Server) -> str:
    """An empty database with the schema, on every PostgreSQL."""
    return every_server.empty()


@dataclass(frozen=True)
class Store:
    """A log, open for writing and reading."""

    database: Database
    log: Log
    appender: Appender


async def open_store(url: str) -> AsyncIterator[Store]:
    async with Database(url) as database, anyio.create_task_group() as tasks:
        appender = Appender(database)
        await tasks.start(appender.run)
        yield Store(database, Log(database), appender)
        tasks.cancel_scope.cancel()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    async for opened in open_store(url):
        yield opened


@pytest.fixture
async def every_store(every_url: str) -> AsyncIterator[Store]:
    async for opened in open_store(every_url):
        yield opened


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """The whole service, as `ade serve` runs it."""

    url: str
    data: Path
    database_url: str
    env: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=f"{self.url}/api/v1", timeout=60)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.05)  # polls a process that has no other way to say so
        raise AssertionError(f"the service did not become ready:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(STOP_S)


@contextmanager
def running_service(database_url: str, data: Path, **settings: str) -> Iterator[Service]:
    """`ade serve` on a database and a data folder, until the block ends."""
    with running_release(ROOT, database_url, data, settings) as running:
        yield running


@contextmanager
def running_release(code: Path, database_url: str, data: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """:func:`running_service` of the release whose code lies there."""
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(data),
        "ADE_DATABASE_URL": database_url,
        "ADE_DATA_DIR": str(data),
        "ADE_URL": f"http://127.0.0.1:{port}",
        **{name: value for name, value in os.environ.items() if name.startswith(("UV_", "SSL_", "PIP_"))},
        **settings,
    }
    log = data / f"serve-{port}.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
        process = subprocess.Popen(command, env=env, cwd=code, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    service = Service(f"http://127.0.0.1:{port}", data, database_url, env, process, log)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


@contextmanager
def own_service(server: Server, **settings: str) -> Iterator[Service]:
    """`ade serve` on a database and a data folder of its own; both are gone afterwards."""
    url = server.copy()
    with reachable_folder() as data, running_service(url, data, **settings) as running:
        yield running
    server.drop(url)


@pytest.fixture(scope="session")
def service(server: Server) -> Iterator[Service]:
    """One service for all tests that do not break it."""
    with own_service(server, ADE_CANCEL_GRACE_SECONDS="2") as running:
        yield running


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with service.http as client:
        yield client


@pytest.fixture
def tidy(service: Service, http: httpx.Client) -> Iterator[None]:
    """No run goes on when a test is over."""
    from tests import engine  # which stands on this module

    with engine.tidy(service, http):
        yield


@asynccontextmanager
async def running_hub(store: Store) -> AsyncIterator[Hub]:
    """A hub over a log, with its hints."""
    hints = Hints(store.database, LOG)
    hub = Hub(store.log, hints)
    async with anyio.create_task_group() as tasks:
        for loop in (hints, hub):
            await tasks.start(loop.run)
        yield hub
        tasks.cancel_scope.cancel()
