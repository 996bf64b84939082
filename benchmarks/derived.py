"""What is made of the log: tables and files kept up to date, made anew, proved; and the log read over HTTP."""

import time
from pathlib import Path
from urllib.request import Request, urlopen

import anyio
import psycopg

from benchmarks.bench import Bench, check
from benchmarks.serving import running
from benchmarks.table import Target, at_least, at_most, mb, number
from benchmarks.viewers import NDJSON
from benchmarks.writing import Beside, asked, create_runs, fill, flood
from eventstore import Database
from eventstore.seals import Sealer
from eventstore.verification import verify
from projections.rebuild import rebuild
from projections.tables import CAUGHT_UP

CAUGHT_UP_S = 600.0
SUSTAINED = 120_000
REACHED = """
SELECT CASE count(*) WHEN 3 THEN min(id) ELSE 0 END FROM checkpoints
WHERE projection IN ('run_logs', 'build_logs', 'log_files')
"""
"""How far the last of them has come; the tables and the files are separate projections."""


def sustained(bench: Bench) -> None:
    """Appends beside the projector process: as fast as can be, then at the rate that is to be kept up."""
    count, seconds = bench.of(1_000_000, 60_000), bench.of(10.0, 1.0)
    with bench.database() as url, bench.room() as data, running("projector", url, data):
        (run, other) = anyio.run(create_runs, url, 2)
        wait_until_derived(url, 2)
        started = time.monotonic()
        rate = anyio.run(fill, url, run, count)
        logged_s = time.monotonic() - started
        wait_until_derived(url, count + 2)
        caught_up_s = time.monotonic() - started
        everything = count / caught_up_s
        bench.table.add(
            f"append of {count:,} lines with run_logs and events.ndjson kept up to date",
            f"{number(everything)} events/s",
            at_least(everything, SUSTAINED, "events/s"),
            beside=f"into the log {number(rate)} events/s; caught up {caught_up_s - logged_s:.1f} s after the last",
        )
        with Beside(flood, url, other, SUSTAINED, seconds) as flooding:
            most, written = _watch_lag(url, flooding)
            ended = time.monotonic()
            wait_until_derived(url, count + 2 + written)
            lag_s = time.monotonic() - ended
        check(asked(url, "SELECT count(*) FROM run_logs") == count + written, "run_logs has not each line once")
        size = sum(_lines_of(path) for path in data.rglob("events.ndjson"))
        check(size == count + written + 2, f"the log files have {size} lines, not {count + written + 2}")
    what = (
        f"the same, {number(written / seconds)} events/s for {seconds:.0f} s ({SUSTAINED:,} asked for): back to lag 0"
    )
    target = at_most(lag_s, 1, "s after the last")
    bench.table.add(what, f"{lag_s:.2f} s", target, beside=f"lag at most {most:,} events on the way")


def _watch_lag(url: str, flooding: Beside) -> tuple[int, int]:
    """The greatest lag while somebody writes, in events; and how many he wrote."""
    most = 0
    with psycopg.connect(url, autocommit=True) as connection:
        while not flooding.ready(0.05):
            row = connection.execute(f"SELECT (SELECT max(id) FROM events) - ({REACHED})".encode()).fetchone()
            most = max(most, int(row[0]) if row else 0)
    return most, flooding.result()


def wait_until_derived(url: str, head: int) -> None:
    """Until everything derived has come to an id."""
    deadline = time.monotonic() + CAUGHT_UP_S
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute(REACHED.encode()).fetchone()
            if row and row[0] >= head:
                return
            check(time.monotonic() < deadline, f"the projector stands at {row and row[0]} of {head}")
            time.sleep(0.01)


def _lines_of(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def rebuild_and_verify(bench: Bench) -> None:
    """The largest table made anew; the whole chain proved."""
    count = bench.of(1_000_000, 60_000)
    with bench.database() as url:
        (run,) = anyio.run(create_runs, url, 1)
        anyio.run(fill, url, run, count)
        run_logs = next(projection for projection in CAUGHT_UP if projection.name == "run_logs")
        started = time.perf_counter()
        anyio.run(rebuild, url, run_logs)
        rebuilt = count / (time.perf_counter() - started)
        check(asked(url, "SELECT count(*) FROM run_logs") == count, "the rebuilt table has not each line once")
        sealed, verified = anyio.run(_seal_and_verify, url, count)
    beside = f"{rebuilt / bench.select:.2f} × plain SELECT"
    bench.table.add(
        "rebuild of run_logs", f"{number(rebuilt)} events/s", at_least(rebuilt, 200_000, "events/s"), beside=beside
    )
    beside = f"{verified / bench.select:.2f} × plain SELECT; sealing them: {number(sealed)} events/s"
    bench.table.add("verify", f"{number(verified)} events/s", at_least(verified, 300_000, "events/s"), beside=beside)


async def _seal_and_verify(url: str, count: int) -> tuple[float, float]:
    async with Database(url) as database:
        started = time.perf_counter()
        await Sealer(database).catch_up()
        sealed = time.perf_counter()
        report = await verify(database)
        verified = time.perf_counter()
        check(report.count == 0 and report.unsealed == 0, f"the log is not sound: {report.findings}")
        return count / (sealed - started), count / (verified - sealed)


def replay(bench: Bench) -> None:
    """A whole run over HTTP as NDJSON, up to the head."""
    count = bench.of(1_000_000, 60_000)
    with bench.database() as url, bench.room() as data:
        (run,) = anyio.run(create_runs, url, 1)
        anyio.run(fill, url, run, count)
        with running("api", url, data) as api:
            idle = api.rss
            api.forget_peak()
            with Beside(_fetch, f"{api.url}/runs/{run}/events") as reading:
                lines, seconds = reading.result()
            grown = api.peak_rss - idle
    check(lines == count + 1, f"{lines} lines of {count + 1}")
    rate = count / seconds
    target = at_least(rate, 400_000, "events/s")
    flat = Target("memory ≤ 50 MB over idle", grown <= 50e6)
    beside = f"{rate / bench.select:.2f} × plain SELECT; API {mb(grown)} over idle"
    bench.table.add(
        f"replay over HTTP, {count:,} events NDJSON", f"{number(rate)} events/s", target, flat, beside=beside
    )


def _fetch(url: str) -> tuple[int, float]:
    """Lines of an answer that ends by itself, and the seconds that it took."""
    started, lines = time.perf_counter(), 0
    with urlopen(Request(url, headers={"Accept": NDJSON})) as answer:
        while block := answer.read1(1 << 20):
            lines += block.count(b"\n")
    return lines, time.perf_counter() - started
