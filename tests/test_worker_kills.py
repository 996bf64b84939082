"""A worker that dies by kill -9 at every step of a run and of a build; and two that race for the same runs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import httpx
import orjson
import psycopg
import pytest

from service.work import leftovers
from tests import engine
from tests.conftest import ROOT, Server, Service
from tests.test_serve import without_worker

SETTINGS = {
    "ADE_LEASE_SECONDS": "2",
    "ADE_CANCEL_GRACE_SECONDS": "1",
    "ADE_MAX_CONCURRENCY": "4",
    "ADE_RUN_MAX_ATTEMPTS": "10",
    "ADE_BUILD_MAX_ATTEMPTS": "10",
}
STEPS = ("create_venv", "install_engine", "install_config", "verify_imports", "collect_metadata")
RUN_POINTS = (
    ("after", "lease"),
    *product(("before", "after"), ("run.started", "run.log", "run.artifact", "run.completed")),
)
BUILD_POINTS = (
    ("before", "build.started"),
    ("after", "build.started"),
    *(("after", f"build.step {step} started") for step in STEPS),
    ("before", "build.step collect_metadata completed"),
    ("before", "build.completed"),
    ("after", "build.completed"),
)
SCRIPT = "print('pid', os.getpid()); (output / 'left.txt').write_text('left'); print('done')"


@pytest.fixture(scope="module")
def service(server: Server) -> Iterator[Service]:
    """A service whose own worker stands still: what is done, the workers of the tests do."""
    with without_worker(server, **SETTINGS) as running:
        yield running


@contextmanager
def worker(service: Service, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the service: a common one, or one that dies at a point."""
    module = ["tests.killed_worker", *arguments] if arguments else ["service.cli", "worker"]
    with service.log.open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", *module], env=service.env, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(engine.PATIENCE_S)


def test_a_worker_killed_at_any_step(service: Service, http: httpx.Client) -> None:
    """Each run and each build comes to its one end, by as many attempts as it takes; each attempt's lines are its own;
    no process and no folder of an attempt is left."""
    built = engine.actor(http)
    runs = []
    for number, point in enumerate((*RUN_POINTS, *BUILD_POINTS)):
        config_id = built if point in RUN_POINTS else unbuilt(http, f"unbuilt_{number}")
        runs.append(engine.start(http, config_id, SCRIPT)["id"])
        with worker(service, *point) as dying:
            assert dying.wait(engine.PATIENCE_S) == -signal.SIGKILL, point
    with worker(service):
        feeds = {run_id: [orjson.loads(line) for line in engine.feed(http, run_id)] for run_id in runs}
        engine.eventually(lambda: not list((service.data / "scratch").iterdir()), "the scratch folders are gone")
    assert leftovers.streams().isdisjoint(runs)
    attempts = 0
    for run_id, events in feeds.items():
        own = [event for event in events if event["object"] == "ade.run.event"]
        assert [event["seq"] for event in own] == list(range(1, len(own) + 1))
        assert [event["type"] for event in own].count("run.completed") == 1
        assert (own[-1]["type"], own[-1]["status"]) == ("run.completed", "succeeded")
        attempts += check_attempts(own)
        artifacts = engine.told(http.get(f"/runs/{run_id}/artifacts"))["data"]
        assert [artifact["name"] for artifact in artifacts] == ["left.txt"]
        kept = service.data / "runs" / engine.WORKSPACE / run_id / "artifacts"
        assert [path.name for path in kept.iterdir()] == [artifacts[0]["id"]]
        check_build(http, engine.told(http.get(f"/runs/{run_id}"))["build_id"])
    assert attempts > len(runs) + len(RUN_POINTS) // 2, "hardly any run was begun twice"


def unbuilt(http: httpx.Client, name: str) -> str:
    """A config like the actor, under another name and without a build."""
    files = engine.files_of(engine.ENGINES / "actor")
    project = bytes(files["pyproject.toml"]) + f'imports = ["actor"]  # {name}\n'.encode()  # type: ignore[arg-type]
    config_id: str = engine.register(http, {**files, "pyproject.toml": project}, name)["id"]
    return config_id


def check_attempts(own: list[engine.Json]) -> int:
    """Every attempt but the last is lost, the next one begins after that, and no line stands outside of one."""
    attempt, pids = 0, set()
    for before, event in zip([None, *own], own, strict=False):
        if event["type"] == "run.started":
            attempt += 1
            assert event["attempt"] == attempt
            assert before is not None
            assert before["type"] in {"run.created", "run.waiting", "run.lost"}
        if event["type"] == "run.lost":
            assert (event["attempt"], event["next"]) == (attempt, "retry")
        if event["type"] == "run.log" and event["message"].startswith("pid"):
            pids.add(event["message"])
    assert len(pids) <= attempt
    said = [event["message"] for event in own[-5:] if event["type"] == "run.log"]
    assert said[-1] == "done"
    return attempt


def check_build(http: httpx.Client, build_id: str) -> None:
    events = [orjson.loads(line) for line in engine.feed(http, build_id)]
    types = [event["type"] for event in events]
    assert types.count("build.completed") == 1
    assert (events[-1]["type"], events[-1]["status"]) == ("build.completed", "active")
    assert types.count("build.started") == types.count("build.lost") + 1
    assert [event["attempt"] for event in events if event["type"] == "build.started"] == list(
        range(1, types.count("build.started") + 1)
    )


def test_two_workers_race_for_the_same_runs(service: Service, http: httpx.Client) -> None:
    """Each run is begun once, by one of them, and both take some."""
    config_id = engine.actor(http)
    runs = [engine.start(http, config_id, dry_run=True)["id"] for _ in range(40)]
    with worker(service), worker(service):
        for run_id in runs:
            engine.feed(http, run_id)
    with psycopg.connect(service.database_url) as connection:
        query = "SELECT stream, data::json ->> 'worker_id' FROM events WHERE type = 'run.started' AND stream = ANY(%s)"
        begun = connection.execute(query, (runs,)).fetchall()
    assert sorted(stream for stream, _ in begun) == sorted(runs)
    assert len({worker_id for _, worker_id in begun}) == 2
