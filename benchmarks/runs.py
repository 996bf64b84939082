"""Runs through the whole service: an engine that floods, how soon a run starts, how soon a line arrives."""

import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import orjson

from benchmarks.table import Table
from service.work.package import pack

ENGINE = """
import sys, time
what, count = sys.argv[1], int(sys.argv[2])
if what == "flood":
    line = "x" * 69 + "\\n"
    for _ in range(count // 1000):
        sys.stdout.write(line * 1000)
elif what == "tick":
    for _ in range(count):
        print(time.time(), flush=True)
        time.sleep(0.01)
"""
PYPROJECT = """
[build-system]
requires = ["uv_build>=0.9,<1"]
build-backend = "uv_build"
[project]
name = "bench-engine"
version = "1.0.0"
[tool.uv.build-backend]
module-root = ""
[tool.ade]
engine = ""
command = ["{python}", "-m", "bench_engine"]
"""


def measure(url: str, folder: Path, table: Table, *, lines: int) -> None:
    """Starts the service on a database and runs engines in it."""
    package = folder / "engine"
    (package / "bench_engine").mkdir(parents=True)
    (package / "pyproject.toml").write_text(PYPROJECT)
    (package / "bench_engine" / "__init__.py").write_text("")
    (package / "bench_engine" / "__main__.py").write_text(ENGINE)
    port = free_port()
    env = {**os.environ, "ADE_DATABASE_URL": url, "ADE_DATA_DIR": str(folder / "data")}
    (folder / "data").mkdir()
    command = [sys.executable, "-m", "service.cli", "serve", "--quiet", "--port", str(port)]
    child = subprocess.Popen(command, env=env)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
            wait_until_ready(port)
            _figures(http, pack(package), table, lines)
    finally:
        child.terminate()
        child.wait(60)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int, path: str = "/ready") -> None:
    """Returns when the service there says so; an API alone, whose log nobody seals, says it at ``/health``."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.05)
    raise SystemExit("the service did not become ready")


def _figures(http: httpx.Client, package: bytes, table: Table, lines: int) -> None:
    registered = http.post(
        "/api/v1/workspaces/bench/configs", content=package, headers={"Content-Type": "application/gzip"}
    ).raise_for_status()
    runs = f"/api/v1/configs/{registered.json()['id']}/runs"
    started = time.perf_counter()
    _run(http, runs, ["tick", "0"])
    table.add("first run, its build included", (time.perf_counter() - started) * 1000, "ms")
    to_start = [_created_to_started_ms(_run(http, runs, ["tick", "0"])) for _ in range(20)]
    table.add("POST to run.started, idle, p50", statistics.median(to_start), "ms")
    lags = [lag for event, at in _run(http, runs, ["tick", "200"]) if (lag := _lag_ms(event, at)) is not None]
    p99 = statistics.quantiles(lags, n=100)[98]
    table.add("engine prints to NDJSON viewer, p50", statistics.median(lags), "ms", limit=f"p99 {p99:.1f} ms")
    started = time.perf_counter()
    events = _run(http, runs, ["flood", str(lines)])
    took = time.perf_counter() - started
    if events[-1][0]["lines"] != lines:
        raise SystemExit(f"lines were lost: {events[-1][0]}")
    table.add(f"flood of {lines:,} lines, engine to log and viewer", lines / took, "lines/s")


def _run(http: httpx.Client, path: str, args: list[str]) -> list[tuple[dict[str, object], float]]:
    """The events of a new run that are worth a look, each with the time at which it arrived."""
    with http.stream("POST", path, json={"stream": True, "options": {"engine_args": args}}) as response:
        kept = [
            (orjson.loads(text), time.time())
            for text in response.iter_lines()
            if text and (args[0] != "flood" or '"type":"run.log"' not in text[:120])
        ]
    if kept[-1][0]["status"] != "succeeded":
        raise SystemExit(f"a run failed: {kept[-1][0]}")
    return kept


def _created_to_started_ms(events: list[tuple[dict[str, object], float]]) -> float:
    seen = {event["type"]: at for event, at in events}
    return (seen["run.started"] - seen["run.created"]) * 1000


def _lag_ms(event: dict[str, object], at: float) -> float | None:
    return (at - float(str(event["message"]))) * 1000 if event["type"] == "run.log" else None
