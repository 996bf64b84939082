"""``python -m benchmarks [short]``: a round of every benchmark, on a bundled PostgreSQL of its own."""

import os
import platform
import sys
import tempfile
from pathlib import Path

import anyio

from benchmarks import log, runs, streams
from benchmarks.table import Table
from eventstore.embedded import EmbeddedServer
from eventstore.migrations import migrate

FULL, SHORT = 1_000_000, 60_000
"""Events per throughput figure."""


def main() -> None:
    short = "short" in sys.argv[1:]
    events = SHORT if short else FULL
    table = Table()
    with tempfile.TemporaryDirectory(prefix="ade-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # so that a root's PostgreSQL, which runs under another account, can live in it
        with EmbeddedServer.open(folder / "postgres") as server:
            anyio.run(migrate, server.url)
            anyio.run(log.measure, server.url, table, events)
            for viewers, per_second in ((100, 100),) if short else ((1_000, 1_000), (4_000, 2)):
                seconds = 2.0 if short else 10.0
                streams.measure(server.url, folder, table, viewers=viewers, per_second=per_second, seconds=seconds)
            runs.measure(server.url, folder, table, lines=events)
    if not short:
        cores = len(os.sched_getaffinity(0))
        head = (
            f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, bundled PostgreSQL 18, fsync on"
        )
        Path(__file__).with_name("RESULTS.md").write_text(
            f"# Results of a full round\n\n{head}\n\n{table.markdown()}\n"
        )


main()
