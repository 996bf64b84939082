"""Every way in which a run or a build can end: one table, each by what really brings it about."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import httpx
import orjson
import psycopg
import pytest

from projections.events import StopReason
from tests import engine
from tests.conftest import Server, Service, own_service

SETTINGS = {
    "ADE_LEASE_SECONDS": "2",
    "ADE_CANCEL_GRACE_SECONDS": "1",
    "ADE_WORKER_PROCESSES": "6",
    "ADE_WORKER_DISK_MB": "1",
    "ADE_WORKER_CPU_SECONDS": "2",
    "ADE_BUILD_STEP_TIMEOUT_SECONDS": "6",
    "ADE_BUILD_MAX_ATTEMPTS": "1",
}
FOREVER = "print('up')\nwhile True: time.sleep(1)"
FORKS = "for _ in range(9): subprocess.Popen(['sleep', '99'])\ntime.sleep(99)"
FILLS = "for n in range(99): (output / str(n)).write_bytes(bytes(2**17))\ntime.sleep(99)"
SPARSE = "with open(output / 'large', 'wb') as f: f.truncate(2**21)"
ENDLESS_IMPORT = "print('up', flush=True)\nimport time\ntime.sleep(99)"


@pytest.fixture(scope="module")
def service(server: Server) -> Iterator[Service]:
    with own_service(server, **SETTINGS) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def config(http: httpx.Client) -> str:
    config_id = engine.actor(http)
    engine.build(http, config_id)
    return config_id


Doing = Callable[[Service, httpx.Client, str], None]


def let_be(service: Service, http: httpx.Client, stream: str) -> None:
    """It ends by itself."""


def cancel(service: Service, http: httpx.Client, stream: str) -> None:
    engine.wait_for_event(http, stream, engine.says("up"))
    engine.told(http.post(f"{engine.path_of(stream)}/cancel"))


def take_lease_away(service: Service, http: httpx.Client, stream: str) -> None:
    """As if another worker had it, which is silent from then on."""
    engine.wait_for_event(http, stream, engine.says("up"))
    with psycopg.connect(service.database_url) as connection:
        connection.execute(
            "UPDATE leases SET holder = 'gone', token = token + 1, expires_at = clock_timestamp() WHERE stream = %s",
            (stream,),
        )


RUNS: dict[str, tuple[str, dict[str, object], Doing, str, str | None]] = {
    "exits with 0": ("pass", {}, let_be, "completed", None),
    "exits with another code": ("sys.exit(3)", {}, let_be, "failed", "code 3"),
    "canceled": (FOREVER, {}, cancel, "canceled", None),
    "out of time": (FOREVER, {"timeout_s": 1}, let_be, "timeout", "longer than 1 s"),
    "its worker is lost": (FOREVER, {}, take_lease_away, "worker_lost", "its lease ran out"),
    "out of CPU time": ("while True: pass", {}, let_be, "resource_limit", "CPU time (ADE_WORKER_CPU_SECONDS)"),
    "too many processes": (FORKS, {}, let_be, "resource_limit", "processes (ADE_WORKER_PROCESSES)"),
    "out of disk space": (FILLS, {}, let_be, "resource_limit", "disk space (ADE_WORKER_DISK_MB)"),
    "leaves more than is kept": (SPARSE, {}, let_be, "resource_limit", "1 file of the output folder not kept"),
}
STATUS = {"completed": "succeeded", "canceled": "canceled"}


@pytest.mark.parametrize(("script", "options", "do", "reason", "error"), RUNS.values(), ids=RUNS)
def test_how_a_run_ends(
    service: Service,
    http: httpx.Client,
    config: str,
    script: str,
    options: dict[str, object],
    do: Doing,
    reason: str,
    error: str | None,
) -> None:
    """With its stop_reason, a sentence where it failed, and as the last event of its stream."""
    run_id = engine.start(http, config, script, **options)["id"]
    do(service, http, run_id)
    last = orjson.loads(engine.feed(http, run_id)[-1])
    run = engine.told(http.get(f"/runs/{run_id}"))
    assert (last["type"], last["id"]) == ("run.completed", run["last_event_id"])
    assert (run["stop_reason"], run["status"]) == (reason, STATUS.get(reason, "failed")), run
    assert (error or "") in (run["error_message"] or "")
    assert bool(run["error_message"]) == bool(error)
    if script == SPARSE:
        gap = engine.wait_for_event(http, run_id, engine.is_type("run.log_gap"))
        assert (gap["lines"], gap["bytes"], gap["reason"]) == (0, 2**21, run["error_message"])
        assert run["exit_code"] == 0


BUILDS: dict[str, tuple[str, Doing, str]] = {
    "imports": ("", let_be, "completed"),
    "cannot be imported": ("1 / 0", let_be, "failed"),
    "canceled": (ENDLESS_IMPORT, cancel, "canceled"),
    "a step out of time": (ENDLESS_IMPORT, let_be, "timeout"),
    "its worker is lost": (ENDLESS_IMPORT, take_lease_away, "worker_lost"),
}


@pytest.mark.parametrize(("code", "do", "reason"), BUILDS.values(), ids=BUILDS)
def test_how_a_build_ends_and_the_run_that_waits_for_it(
    service: Service, http: httpx.Client, code: str, do: Doing, reason: str
) -> None:
    """A run whose build is not active ends as `build_failed`, and says why."""
    files = engine.package(f"ends_{reason}")
    files[f"ends_{reason}/__init__.py"] = code
    run = engine.start(http, engine.register(http, files)["id"])
    do(service, http, run["build_id"])
    last = orjson.loads(engine.feed(http, run["build_id"])[-1])
    status = {"completed": "active", "canceled": "canceled"}.get(reason, "failed")
    assert (last["type"], last["stop_reason"], last["status"]) == ("build.completed", reason, status)
    ended = orjson.loads(engine.feed(http, run["id"])[-1])
    assert ended["stop_reason"] == ("completed" if reason == "completed" else "build_failed")
    signaled = [e for e in map(orjson.loads, engine.feed(http, run["build_id"])) if e["type"] == "build.signaled"]
    assert [(e["signal"], e["survivors"]) for e in signaled] == (
        [("SIGTERM", 0)] if reason in {"canceled", "timeout"} else []
    )


def test_what_safe_mode_refuses_has_ended_with_that_reason(http: httpx.Client, config: str) -> None:
    engine.told(http.post("/safe-mode", json={"enabled": True}))
    try:
        run_id = http.post(f"/configs/{config}/runs", json={}).json()["run_id"]
        path = f"/workspaces/{engine.WORKSPACE}/configs/{config}/builds"
        build_id = http.post(path, json={"options": {"force": True}}).json()["build_id"]
    finally:
        engine.told(http.post("/safe-mode", json={"enabled": False}))
    for stream in (run_id, build_id):
        assert engine.told(http.get(engine.path_of(stream)))["stop_reason"] == "safe_mode"


def test_the_tables_above_are_complete() -> None:
    reached = {reason for *_, reason, _ in RUNS.values()} | {"build_failed", "safe_mode"}
    assert reached == set(get_args(StopReason))
    assert {reason for *_, reason in BUILDS.values()} | {"build_failed", "resource_limit", "safe_mode"} == reached


@contextmanager
def another_worker_in(folder: Path) -> Iterator[None]:
    """The lock of a build's folder is taken, as by another worker that makes the same venv again."""
    with (folder.parent / f"{folder.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("how", ["canceled", "timeout"])
def test_a_run_ends_while_its_venv_is_made_again(service: Service, http: httpx.Client, how: str) -> None:
    """Its time counts from run.started, and a cancel needs no engine; the next run makes the venv."""
    config_id = engine.register(http, engine.package(f"again_{how}", "print('ran')"))["id"]
    build = engine.build(http, config_id)
    folder = service.data / "venvs" / engine.WORKSPACE / config_id / build["id"]
    shutil.rmtree(folder / ".venv")
    with another_worker_in(folder):
        run_id = engine.start(http, config_id, timeout_s=2 if how == "timeout" else 60)["id"]
        engine.wait_for_event(http, run_id, lambda e: "making it again" in e.get("message", ""))
        if how == "canceled":
            engine.told(http.post(f"/runs/{run_id}/cancel"))
        last = orjson.loads(engine.feed(http, run_id)[-1])
    assert last["stop_reason"] == how
    assert engine.run(http, config_id)[0]["status"] == "succeeded"
