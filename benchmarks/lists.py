"""Runs, lists of them and stats with a million runs behind them, over HTTP."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import psycopg

from benchmarks.bench import Bench, check
from benchmarks.engines import Client, deployed
from benchmarks.serving import Process
from benchmarks.table import Target, at_most, number, p50_p99, percentile

DAYS = 30
PAGES = 1_000
"""How deep the deep page lies."""
FLAT = 1.5
LOAD = (
    """INSERT INTO events (id, stream, seq, workspace, type, bulk, recorded_at, data)
       SELECT h.head + i, 'run_' || lpad(i::text, 26, '0'), 1, 'bench-' || (h.head + i) %% 10, 'run.created', false,
              h.now - (%(count)s - i) * interval '1 day' * %(days)s / %(count)s, '{}'
       FROM generate_series(1, %(count)s) AS i, (SELECT max(id) AS head, now() FROM events) AS h""",
    """INSERT INTO streams (stream, workspace, first_id, last_control_id)
       SELECT stream, workspace, id, id FROM events WHERE workspace LIKE 'bench-%%'""",
    """INSERT INTO segments (stream, first_id, last_id, bytes, last_seq)
       SELECT stream, id, id, 2, 1 FROM events WHERE workspace LIKE 'bench-%%'""",
    """INSERT INTO runs (id, workspace_id, config_id, config_version, config_digest, status, options, inputs, exit_code,
                         error_message, stop_reason, summary, requested_by, attempt, duration_ms, lines, bytes,
                         created_id, created_at, started_at, finished_at, updated_at)
       SELECT e.stream, e.workspace, 'config_' || id %% 50, 1, 'd', CASE WHEN bad THEN 'failed' ELSE 'succeeded' END,
              CASE WHEN id %% 20 = 0 THEN json_build_object('metadata', json_build_object('ticket', 'T-' || id))
                   ELSE '{}' END, '[]', bad::int,
              CASE WHEN bad THEN 'The engine exited with code ' || id / 100 %% 7 END,
              CASE WHEN bad THEN 'failed' ELSE 'completed' END, 'Mapped ' || id %% 97 || ' columns', 'bench', 1,
              took, 100, 7000, id, recorded_at, recorded_at + interval '1 s',
              recorded_at + interval '1 s' + took * interval '1 ms', recorded_at + interval '1 min'
       FROM (SELECT *, id %% 100 = 7 AS bad, 200 + id * 7919 %% 60000 AS took FROM events
             WHERE workspace LIKE 'bench-%%') AS e""",
)


def lists(bench: Bench) -> None:
    """Each thing many times; what looks at every row a few times."""
    count = bench.of(1_000_000, 20_000)
    with (
        deployed(bench) as deployment,
        httpx.Client(base_url=deployment.service.url, timeout=900) as http,
        ExitStack() as still,
    ):
        deployment.client.ended(deployment.client.start(dry_run=True))  # its build is there
        for name in ("worker", "projector"):  # which would make files for all these runs
            still.enter_context(_stopped(deployment.service.child(name)))
        load_s = _load(deployment.url, count)
        bench.table.add(f"({count:,} runs of {DAYS} days were loaded in)", f"{load_s:.0f} s")
        _measure(bench, http, deployment.client, f"with {number(count)} runs")


@contextmanager
def _stopped(process: Process) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def _load(url: str, count: int) -> float:
    """Straight into the tables; and what autovacuum would come to."""
    started = time.perf_counter()
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in LOAD:
            connection.execute(statement.encode(), {"count": count, "days": DAYS})
        connection.execute("VACUUM ANALYZE")
    return time.perf_counter() - started


def _measure(bench: Bench, http: httpx.Client, client: Client, behind: str) -> None:
    times, few = bench.of(300, 20), bench.of(5, 2)

    def row(what: str, call: Callable[[], object], target_ms: float, *more: Target, often: int = times) -> float:
        call()  # the first one pays for a connection
        took_s = [_timed(call) for _ in range(often)]
        p50 = percentile(took_s, 50)
        bench.table.add(f"{what}, {behind}", p50_p99(took_s), at_most(p50 * 1000, target_ms, "ms p50"), *more)
        return p50

    def get(path: str, **query: str) -> Callable[[], object]:
        return lambda: http.get(path, params=query).raise_for_status()

    row("GET of a run", get(f"/runs/run_{7:026}"), 10)
    row("POST of a run", lambda: client.start(dry_run=True), 20)
    for sort in ("-created", "-duration"):
        first_s = row(f"page 1 of the list, `{sort}`", get("/runs", sort=sort), 10)
        deep, page = _deep(http, sort, bench.of(PAGES, 20))
        deep_s = row(f"page {page:,} of it", get("/runs", sort=sort, page=deep), 10)
        flat = Target(f"≤ {FLAT} × page 1", deep_s <= FLAT * first_s)
        bench.table.add(f"page {page:,} beside page 1, `{sort}`", f"{deep_s / first_s:.2f} ×", flat)
    row("the failed ones of a workspace", get("/workspaces/bench-7/runs", status="failed"), 10)
    row("the same, longest first", get("/workspaces/bench-7/runs", status="failed", sort="-duration"), 100)
    row("search for what is often there", get("/runs", q="columns"), 10)
    day = str(time.time() - 86_400)
    row("search of a day for what is nowhere", get("/runs", q="nowhere", created_after=day), 200, often=few)
    row("search of all for what is nowhere", get("/runs", q="nowhere"), 3_000, often=few)
    row("count of all", get("/runs", count="true", limit="1"), 500, often=few)
    row("stats of a day", get("/stats"), 200, often=few)
    row(f"stats of {DAYS} days", get("/stats", created_after=str(time.time() - DAYS * 86_400)), 3_000, often=few)


def _deep(http: httpx.Client, sort: str, pages: int) -> tuple[str, int]:
    """The mark of a page that lies deep, reached through all before it; each run came once."""
    mark: str | None = None
    seen: set[str] = set()
    for _ in range(pages - 1):
        query = {"sort": sort} if mark is None else {"sort": sort, "page": mark}
        found = http.get("/runs", params=query).raise_for_status().json()
        seen.update(run["id"] for run in found["data"])
        mark = found["next_page"]
    check(len(seen) == 100 * (pages - 1), f"{len(seen)} runs on {pages - 1} pages of 100")
    check(mark is not None, "the list ends before its deep page")
    return str(mark), pages


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
