"""``python -m benchmarks [short] [ROW…]``: a round of all benchmarks, or of those named, on a PostgreSQL of its own.

A full round of all of them writes ``RESULTS.md``.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import appends, derived, fanout, flooding, growth, lists, logs, neighbours, working
from benchmarks.bench import Bench, machine
from eventstore.embedded import EmbeddedServer

ROWS: dict[str, Callable[[Bench], None]] = {
    "append": appends.one_writer,
    "writers": appends.writers,
    "processes": appends.processes,
    "single": appends.single,
    "sustained": derived.sustained,
    "viewer": fanout.to_one_viewer,
    "fanout": fanout.thousand,
    "fanout-10000": fanout.ten_thousand,
    "fanout-4000": fanout.four_thousand,
    "neighbours": neighbours.beside_a_flood,
    "slow-viewer": neighbours.slow_viewer,
    "replay": derived.replay,
    "rebuild": derived.rebuild_and_verify,
    "growth": growth.growth,
    "logs": logs.logs,
    "lists": lists.lists,
    "runs": working.runs,
    "flood-peers": flooding.peers,
    "flood": flooding.flood,
    "builds": working.builds,
}


def main() -> int:
    """The exit code: 1 where a row failed, 2 for a row that is not there."""
    named = [word for word in sys.argv[1:] if word != "short"]
    unknown = [name for name in named if name not in ROWS]
    if unknown:
        print(f"There is no row {', '.join(unknown)}; these are: {', '.join(ROWS)}.", file=sys.stderr)
        return 2
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of every query that is cancelled on purpose
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ade-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # so that a root's PostgreSQL, which runs under another account, can live in it
        with EmbeddedServer.open(folder / "postgres") as server:
            bench = Bench(short="short" in sys.argv[1:], folder=folder, server=server)
            head = machine(server, folder, bench.of(3.0, 0.3))
            print(f"{head}\n\n{bench.table.HEAD}", flush=True)
            for row in named or ROWS:
                try:
                    ROWS[row](bench)
                except Exception as error:  # noqa: BLE001 - the row says what went wrong, and the others are measured
                    bench.table.failed(row, error)
    print(f"\n{bench.table.markdown().rpartition('|')[2].strip()} {time.monotonic() - started:.0f} s in all.")
    if not bench.short and not named:
        Path(__file__).with_name("RESULTS.md").write_text(
            f"# Results of a full round\n\n{head}\n\n{bench.table.markdown()}"
        )
    return 1 if bench.table.failures else 0


sys.exit(main())
