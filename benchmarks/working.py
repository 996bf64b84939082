"""Runs and builds on an idle service: how soon they start, how many a second, how long a build takes."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import engines
from benchmarks.bench import Bench, Broken, check
from benchmarks.engines import Client
from benchmarks.serving import Process
from benchmarks.table import at_least, at_most, ms, number, p50_p99, percentile
from benchmarks.viewers import SSE
from benchmarks.writing import WORKSPACE, asked

REQUIREMENTS = ("idna", "certifi", "h11")
"""Three that every index has; nobody's version matters here."""
PATIENCE_S = 120.0


def runs(bench: Bench) -> None:
    """How soon an engine starts and its lines arrive on an idle service; how many runs a second from a queue."""
    with engines.deployed(bench) as deployment:
        client = deployment.client
        started = time.perf_counter()
        client.ended(client.start("tick", "0"))
        bench.table.add("first run of a config, its build included", ms(time.perf_counter() - started))
        _idle(bench, client)
        _queued(bench, client, deployment.url, deployment.service.child("worker"))


def _idle(bench: Bench, client: Client) -> None:
    """From POST to the start of an engine, and from its print to a viewer."""
    to_start = [_to_started(client) for _ in range(bench.of(100, 5))]
    target = at_most(percentile(to_start, 50) * 1000, 30, "ms p50")
    bench.table.add("idle: POST → run.started at the client", p50_p99(to_start), target)
    count = bench.of(1_000, 50)
    with client.stream("tick", str(count), accept=SSE) as events:
        late = [event["at"] - engines.stamp_s(event) for event in events if event["type"] == "run.log"]
    check(len(late) == count, f"{len(late)} of {count} lines arrived")
    target = at_most(percentile(late, 50) * 1000, 30, "ms p50")
    bench.table.add("idle: engine prints → SSE viewer, 100 lines/s", p50_p99(late), target)


def _to_started(client: Client) -> float:
    asked_at, started_at = time.monotonic(), 0.0
    with client.stream("tick", "0") as events:
        for event in events:
            if event["type"] == "run.started":
                started_at = event["at"]
    return started_at - asked_at


def _queued(bench: Bench, client: Client, url: str, worker: Process) -> None:
    """Dry runs that were queued while the worker was stopped, from its first breath to the last one's end."""
    count, before = bench.of(200, 20), _ended(url)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: client.start(dry_run=True), range(count)))
        check(_ended(url) == before, "a worker that was stopped has ended a run")
        started = time.perf_counter()
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    while (ended := _ended(url) - before) < count:
        check(time.perf_counter() < started + PATIENCE_S, f"{ended} of {count} dry runs have succeeded")
        time.sleep(0.01)
    rate = count / (time.perf_counter() - started)
    bench.table.add(f"{count} queued dry runs", f"{number(rate)} runs/s", at_least(rate, 100, "runs/s"))


def _ended(url: str) -> int:
    return int(asked(url, "SELECT count(*) FROM runs WHERE status = 'succeeded'"))


def builds(bench: Bench) -> None:
    """A build again, with the installer's cache warm; and the answer where there is nothing to build."""
    with engines.deployed(bench, REQUIREMENTS) as deployment:
        client = deployment.client
        path = f"/workspaces/{WORKSPACE}/configs/{client.config}/builds"
        first = _build(client, path)
        again = [_build(client, path) for _ in range(bench.of(5, 1))]
        reused = [_reuse(client, path) for _ in range(bench.of(100, 10))]
    slowest, p50 = max(again), percentile(reused, 50)
    what = f"rebuild with a warm cache, {len(REQUIREMENTS)} requirements, the slowest of {len(again)}"
    bench.table.add(what, f"{slowest:.2f} s", at_most(slowest, 3, "s"), beside=f"the first, cache empty: {first:.1f} s")
    bench.table.add("reuse of a build", p50_p99(reused), at_most(p50 * 1000, 50, "ms"))


def _build(client: Client, path: str) -> float:
    started = time.perf_counter()
    build = client.post(path, {"options": {"force": True}})["id"]
    while (found := client.get(f"/builds/{build}"))["finished_at"] is None:
        time.sleep(0.01)
    if found["status"] != "active":
        raise Broken(f"the build failed: {found['error_message']}")
    return time.perf_counter() - started


def _reuse(client: Client, path: str) -> float:
    started = time.perf_counter()
    check(client.post(path)["status"] == "active", "a build that could be reused was not")
    return time.perf_counter() - started
