"""Viewers over HTTP: how soon many of them get each event, and whether all get all."""

import multiprocessing
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import anyio

from benchmarks.runs import free_port, wait_until_ready
from benchmarks.table import Table
from eventstore import NEW, Append, Appender, Database, NewEvent, Part, encode
from eventstore.clock import ulid
from projections import events

SAMPLE = 25
"""Every so manyth viewer times its lines; the others count them."""


def measure(url: str, folder: Path, table: Table, *, viewers: int, per_second: int, seconds: float) -> None:
    """One API process, one feed, so many viewers, so many events a second."""
    port = free_port()
    env = {**os.environ, "ADE_DATABASE_URL": url, "ADE_DATA_DIR": str(folder / "streams"), "ADE_PORT": str(port)}
    (folder / "streams").mkdir(exist_ok=True)
    api = subprocess.Popen([sys.executable, "-m", "service.cli", "api", "--quiet"], env=env)
    try:
        wait_until_ready(port, "/health")
        run = f"run_{ulid()}"
        anyio.run(_create, url, run)
        ours, theirs = multiprocessing.Pipe()
        total = int(per_second * seconds)
        reader = multiprocessing.Process(target=_read_all, args=(theirs, port, run, viewers, total))
        reader.start()
        ours.recv()  # all are connected
        anyio.run(_write, url, run, per_second, total)
        took_s, late_ms, counts = ours.recv()
        reader.join()
        if counts != [total]:
            raise SystemExit(f"viewers got {counts} lines of {total}")
        what = f"fan-out, {viewers:,} viewers, {per_second:,} events/s: deliveries"
        cuts = statistics.quantiles(late_ms, n=100)
        table.add(what, viewers * total / took_s, "/s", limit=f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms")
    finally:
        api.terminate()
        api.wait(60)


async def _create(url: str, run: str) -> None:
    created = events.RunCreated(
        workspace_id="bench",
        config_id="config_bench",
        config_version=1,
        config_digest="",
        build_id=None,
        options={},
        inputs=[],
        requested_by="bench",
    )
    async with Database(url) as database, anyio.create_task_group() as tasks:
        appender = Appender(database)
        await tasks.start(appender.run)
        await appender.append(Append((Part(run, (created.event(),), workspace="bench", expect=NEW),)))
        tasks.cancel_scope.cancel()


async def _write(url: str, run: str, per_second: int, total: int) -> None:
    """Appends at an even pace, each line with the time at which it was handed over."""
    async with Database(url) as database, anyio.create_task_group() as tasks:
        appender = Appender(database)
        await tasks.start(appender.run)
        started, written = time.perf_counter(), 0
        while written < total:
            due = min(total, int((time.perf_counter() - started) * per_second))
            if due > written:
                lines = [
                    NewEvent("run.log", encode({"stream": "stdout", "message": repr(time.time())}), bulk=True)
                    for _ in range(due - written)
                ]
                await appender.append(Append((Part(run, lines),)))
                written = due
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()


def _read_all(answer: Connection, port: int, run: str, viewers: int, total: int) -> None:
    """Reads all viewers in one thread, until each has had all lines or two quiet seconds have passed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ready = selectors.DefaultSelector()
    request = (
        f"GET /api/v1/runs/{run}/events?stream=true HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Accept: application/x-ndjson\r\n\r\n"
    )
    for number in range(viewers):
        viewer = socket.create_connection(("127.0.0.1", port))
        viewer.sendall(request.encode())
        while b"run.created" not in viewer.recv(65536):
            pass
        viewer.setblocking(False)
        ready.register(viewer, selectors.EVENT_READ, number)
    counts, late_ms = [0] * viewers, []
    answer.send("connected")
    started = ended = 0.0
    while min(counts) < total:
        found = ready.select(2)
        if not found and started:
            break
        for key, _ in found:
            data = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]  # a socket, as registered
            now = time.time()
            started = started or now
            ended = now
            counts[key.data] += data.count(b'"type":"run.log"')
            if key.data % SAMPLE == 0:
                for piece in data.split(b'"message":"')[1:]:
                    text = piece.split(b'"', 1)[0]
                    if len(text) >= 15:  # not torn
                        late_ms.append((now - float(text)) * 1000)
    answer.send((ended - started, late_ms, sorted(set(counts))))
