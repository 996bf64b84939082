"""An engine that writes as fast as it can, through the whole service; and what others in the same worker feel of it."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks import engines
from benchmarks.bench import Bench, Broken, check
from benchmarks.derived import wait_until_derived
from benchmarks.engines import Client
from benchmarks.peers import TABLE, commit_line
from benchmarks.serving import Process
from benchmarks.table import Target, at_least, at_most, mb, ms, number, percentile
from benchmarks.writing import asked

PATIENCE_S = 600.0
LEASE_S = 3
HEARTBEAT_S = LEASE_S / 3
"""A worker renews its leases this often."""


def peers(bench: Bench) -> None:
    """A loop that only counts the lines, and a runner that commits each."""
    with bench.room() as room, bench.database(migrated=False) as url:
        program = engines.write_engine(room)
        counted = _bare_loop(program, bench.of(5_000_000, 500_000))
        bench.table.add("bare subprocess loop that only counts lines", f"{number(counted)} lines/s")
        committed = _commit_per_line(program, url, bench.of(10_000, 1_000))
        bench.table.add("runner that commits each line", f"{number(committed)} lines/s")


def _bare_loop(program: Path, lines: int) -> float:
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, program, "flood", str(lines)], stdout=subprocess.PIPE) as engine:
        count = sum(1 for _ in engine.stdout or ())
    check(count == lines, f"the loop counted {count} of {lines} lines")
    return lines / (time.perf_counter() - started)


def _commit_per_line(program: Path, url: str, lines: int) -> float:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)
        started = time.perf_counter()
        with subprocess.Popen([sys.executable, program, "flood", str(lines)], stdout=subprocess.PIPE) as engine:
            for count, line in enumerate(engine.stdout or (), 1):
                commit_line(connection, count, line.decode())
        return lines / (time.perf_counter() - started)


def flood(bench: Bench) -> None:
    """Lines into the log, what is derived caught up, the worker's memory, the disk; alone, then with others beside."""
    lines = bench.of(5_000_000, 60_000)
    with engines.deployed(bench, ADE_LEASE_SECONDS=str(LEASE_S), ADE_MAX_CONCURRENCY="4") as deployment:
        client, url = deployment.client, deployment.url
        client.ended(client.start("tick", "0"))  # built
        worker = deployment.service.child("worker")
        _alone(bench, client, worker, url, lines)
        _disk(bench, url, deployment.data, lines)
        _with_others(bench, client, url, bench.of(2_000_000, 100_000))


def _alone(bench: Bench, client: Client, worker: Process, url: str, lines: int) -> None:
    idle, started = worker.rss, time.monotonic()
    run = client.start("flood", str(lines), timeout_s=3600)
    halfway = _rss_at(worker, url, lines // 2)
    client.ended(run)
    logged_s = time.monotonic() - started
    wait_until_derived(url, int(client.get(f"/runs/{run}")["last_event_id"]))
    caught_up_s = time.monotonic() - started
    kept = asked(url, f"SELECT count(*) FROM events WHERE stream = '{run}' AND type = 'run.log'")
    check(kept == lines, f"{kept} of {lines} lines are in the log")
    logged, all_done = lines / logged_s, lines / caught_up_s
    bench.table.add(
        f"flood of {lines:,} lines of 70 bytes, engine to log",
        f"{number(logged)} lines/s",
        at_least(logged, 200_000, "lines/s"),
    )
    what = "the same with run_logs and events.ndjson caught up"
    bench.table.add(
        what,
        f"{number(all_done)} lines/s",
        at_least(all_done, 120_000, "lines/s"),
        beside=f"{caught_up_s - logged_s:.1f} s after the run",
    )
    peak = worker.peak_rss
    flat = Target("flat (≤ 10 % over that halfway)", peak <= 1.1 * halfway)
    beside = f"{mb(idle)} idle, {mb(halfway)} halfway"
    bench.table.add(
        "memory of the worker in that flood, at most", mb(peak), at_most(peak / 1e6, 150, "MB"), flat, beside=beside
    )


def _rss_at(worker: Process, url: str, head: int) -> int:
    """The most that the worker has held when the log comes to an id."""
    deadline = time.monotonic() + PATIENCE_S
    while asked(url, "SELECT coalesce(max(id), 0) FROM events") < head:
        check(time.monotonic() < deadline, "the log does not grow")
        time.sleep(0.05)
    return worker.peak_rss


def _disk(bench: Bench, url: str, data: Path, lines: int) -> None:
    """Bytes that are kept for a byte that the engine wrote."""
    written = 70 * lines
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM")
        rows = connection.execute(
            "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace ORDER BY 2 DESC"
        ).fetchall()
    tables = {str(name): int(size) / written for name, size in rows if int(size) > written / 50}
    tables["events.ndjson"] = sum(path.stat().st_size for path in data.rglob("events.ndjson")) / written
    beside = ", ".join(f"{name} {share:.2f}" for name, share in tables.items())
    bench.table.add("bytes on disk for a byte of output", number(sum(tables.values())), beside=beside)


@dataclass
class _Others:
    """What was felt beside the flood, in seconds."""

    to_start: list[float] = field(default_factory=list)
    to_sigterm: list[float] = field(default_factory=list)
    heartbeats: list[float] = field(default_factory=list)


def _with_others(bench: Bench, client: Client, url: str, lines: int) -> None:
    """Runs that start and are canceled while another one floods."""
    others, over = _Others(), threading.Event()
    flooding = client.start("flood", str(lines), timeout_s=3600)
    watching = threading.Thread(target=_watch_heartbeats, args=(url, flooding, others.heartbeats, over), daemon=True)
    watching.start()
    while client.get(f"/runs/{flooding}")["finished_at"] is None:
        _start_and_cancel(client, others)
    over.set()
    watching.join()
    client.ended(flooding)
    if not others.to_start:
        raise Broken("the flood was over before another run began")
    starts, stops = percentile(others.to_start, 99), percentile(others.to_sigterm, 99)
    beside = f"p50 {ms(percentile(others.to_start, 50))}, {len(others.to_start)} times"
    bench.table.add(
        "during a flood: POST → run.started of another run, p99",
        ms(starts),
        at_most(starts * 1000, 500, "ms"),
        beside=beside,
    )
    beside = f"p50 {ms(percentile(others.to_sigterm, 50))}, {len(others.to_sigterm)} times"
    bench.table.add("during a flood: cancel → SIGTERM, p99", ms(stops), at_most(stops, 1, "s"), beside=beside)
    jitter = max((abs(gap - HEARTBEAT_S) for gap in others.heartbeats), default=0.0)
    what = f"during a flood: heartbeat jitter, at most (one each {HEARTBEAT_S:.0f} s)"
    bench.table.add(what, ms(jitter), at_most(jitter, 1, "s"), beside=f"{len(others.heartbeats)} heartbeats")


def _start_and_cancel(client: Client, others: _Others) -> None:
    """One run that waits to be stopped."""
    asked_at = time.monotonic()
    canceled_at = 0.0
    with client.stream("wait", "0") as found:
        for event in found:
            if event["type"] == "run.started":
                others.to_start.append(event["at"] - asked_at)
            elif event["type"] == "run.log" and event["message"] == "ready":
                canceled_at = time.monotonic()
                client.post(f"/runs/{event['run_id']}/cancel")
            elif event["type"] == "run.log" and canceled_at:
                others.to_sigterm.append(engines.stamp_s(event) - canceled_at)
            elif event["type"] == "run.completed" and event["status"] != "canceled":
                raise Broken(f"a run that was canceled has {event['status']}: {event['error_message']}")


def _watch_heartbeats(url: str, run: str, gaps: list[float], over: threading.Event) -> None:
    """How long it takes from each heartbeat of the flooding run to the next."""
    last = None
    with psycopg.connect(url, autocommit=True) as connection:
        while not over.wait(0.05):
            row = connection.execute(
                "SELECT extract(epoch FROM heartbeat_at)::float8 FROM leases WHERE stream = %s AND holder IS NOT NULL",
                (run,),
            ).fetchone()
            if row is not None and row[0] != last:
                if last is not None:
                    gaps.append(row[0] - last)
                last = row[0]
