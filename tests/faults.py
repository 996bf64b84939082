"""What can befall a deployment: a PostgreSQL to be ill-treated, and processes that are killed or stand still."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import psycopg

from eventstore.embedded import EmbeddedServer
from eventstore.migrations import migrate
from tests.conftest import ROOT

PATIENCE_S = 60.0
OUTAGE_S = (0.2, 2.0)
SECONDS = float(os.environ.get("ADE_TEST_KILL_SECONDS", "10"))
"""How long a loop of faults goes on; longer where each of them has not befallen yet."""
SEED = int(os.environ.get("ADE_TEST_KILL_SEED", "1"))
"""What the order of the faults follows from."""
APPENDING = "query LIKE '%%append_events_v2%%' AND state = 'active' AND pid <> pg_backend_pid()"


class OwnServer:
    """A PostgreSQL of a test's own, with an empty log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open = EmbeddedServer.open(folder)
        self.url = self._open.url
        anyio.run(migrate, self.url)

    def close(self) -> None:
        self._open.close()

    def terminate_appender(self) -> None:
        """As an operator does it."""
        with self.session() as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [self._appender(connection)])

    def kill_appender(self) -> None:
        """As the kernel does it when memory is short: PostgreSQL then ends all other backends, and recovers."""
        with self.session() as connection:
            backend = self._appender(connection)
        os.kill(backend, signal.SIGKILL)

    def faults(self, chance: random.Random) -> dict[str, Callable[[], object]]:
        """What can befall it, by name."""

        def terminate_a_backend() -> None:
            backend = self._backend(chance)
            with self.session() as connection:
                connection.execute("SELECT pg_terminate_backend(%s)", [backend])

        def kill_a_backend() -> None:
            if backend := self._backend(chance):
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(backend, signal.SIGKILL)

        def stop_for_a_while() -> None:
            self.stop(chance.choice([signal.SIGKILL, signal.SIGINT]))
            time.sleep(chance.uniform(*OUTAGE_S))  # the fault itself: nobody waits for anything here
            self.start()

        return {
            "a backend is terminated": terminate_a_backend,
            "a backend is killed": kill_a_backend,
            "PostgreSQL is killed": self.crash,
            "PostgreSQL is away for a while": stop_for_a_while,
        }

    def _backend(self, chance: random.Random) -> int:
        """Any backend that serves a client, whatever it does; 0 where there is none just now."""
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        with self.session() as connection:
            found = connection.execute(f"{query} ORDER BY pid".encode()).fetchall()
        return int(chance.choice(found)[0]) if found else 0

    def restart(self) -> None:
        """As an upgrade does it."""
        self.stop(signal.SIGINT)
        self.start()

    def crash(self) -> None:
        """As a lost machine does it."""
        self.stop(signal.SIGKILL)
        self.start()

    def stop(self, how: signal.Signals) -> None:
        """Ends the postmaster; it is gone when this returns."""
        pid = int((self._folder / "18" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, how)
        while Path(f"/proc/{pid}").exists():
            pass

    def start(self) -> None:
        """Starts it again; it goes on, because this object has it open too."""
        EmbeddedServer.open(self._folder).close()

    def is_appending(self, name: str) -> bool:
        """Whether the client of this name is in the middle of an append."""
        query = f"SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND {APPENDING}"
        with self.session() as connection:
            return connection.execute(query.encode(), [name]).fetchone() is not None

    def session(self) -> "psycopg.Connection[tuple[int]]":
        """A connection for a person; one who comes while the server recovers asks again."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return psycopg.connect(self.url, autocommit=True)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)  # it has no other way to say that it is back

    def _appender(self, connection: "psycopg.Connection[tuple[int]]") -> int:
        """The backend of an appender, as soon as one is in the middle of an append."""
        while True:
            row = connection.execute(f"SELECT pid FROM pg_stat_activity WHERE {APPENDING}".encode(), []).fetchone()
            if row is not None:
                return row[0]


@contextmanager
def own_server(folder: Path) -> Iterator[OwnServer]:
    server = OwnServer(folder)
    try:
        yield server
    finally:
        server.close()


def python(*arguments: str) -> "subprocess.Popen[bytes]":
    """A Python process on the packages of this repository, which ends when its stdin does."""
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdin=subprocess.PIPE)


async def strike(
    faults: Mapping[str, Callable[[], object]], chance: random.Random, grow: Callable[[], Awaitable[None]]
) -> Counter[str]:
    """One fault after the other, each at least once, and after each ``grow`` to its end. How often each befell."""
    order = chance.sample(sorted(faults), len(faults))
    struck: Counter[str] = Counter()
    deadline = time.monotonic() + SECONDS
    while order or time.monotonic() < deadline:
        fault = order.pop() if order else chance.choice(sorted(faults))
        await anyio.to_thread.run_sync(faults[fault])
        struck[fault] += 1
        with anyio.fail_after(PATIENCE_S):
            await grow()
    return struck
