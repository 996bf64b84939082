"""`ade serve` under fire: each process killed at work, told to stop, started anew, and twice on one database."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import psycopg
import pytest

from service.client import Consumer, follow
from tests import engine
from tests.conftest import ROOT, Server, Service, own_service, reachable_folder, running_service

LEASE_S = 2
DRAIN_S = 2
SETTINGS = {
    "ADE_LEASE_SECONDS": str(LEASE_S),
    "ADE_DRAIN_SECONDS": str(DRAIN_S),
    "ADE_CANCEL_GRACE_SECONDS": "1",
}
SILENT = "print(os.getpid())\nwhile True: time.sleep(1)"
TICKING = "print(os.getpid())\nwhile True: print('tick'); time.sleep(.01)"


@pytest.fixture(scope="module")
def fragile(server: Server) -> Iterator[Service]:
    """A service whose processes are killed."""
    url = server.copy()
    with reachable_folder() as data:
        with running_service(url, data, **SETTINGS) as running:
            yield running
        assert "Traceback" not in running.log.read_text()
    server.drop(url)


@pytest.fixture(scope="module")
def second(fragile: Service) -> Iterator[Service]:
    """Another one on the same database and the same folder."""
    with running_service(fragile.database_url, fragile.data, **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def http(fragile: Service) -> Iterator[httpx.Client]:
    with fragile.http as client:
        yield client


def children(service: Service) -> Iterator[tuple[str, int]]:
    """The name and the id of each process that `ade serve` keeps."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            arguments = (stat.parent / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since the listing
        if parent == service.process.pid and b"service.cli" in arguments:
            yield arguments[arguments.index(b"service.cli") + 1].decode(), int(stat.parent.name)


def processes(service: Service) -> dict[str, int]:
    """The ids of these processes by name, where there is one of each."""
    return dict(children(service))


def kill(service: Service, name: str) -> None:
    """Kills one of the processes, and waits until another one stands in its place."""
    killed = engine.eventually(lambda: processes(service).get(name, 0), f"there is a {name}")
    os.kill(killed, signal.SIGKILL)
    engine.eventually(lambda: processes(service).get(name, killed) != killed, f"the {name} is started again")


def started(http: httpx.Client, script: str = TICKING) -> tuple[str, str]:
    """A run at work: its id, and its engine's process id."""
    run_id = engine.start(http, engine.actor(http), script)["id"]
    pid = engine.wait_for_event(http, run_id, lambda e: e["type"] == "run.log" and e["stream"] == "stdout")["message"]
    return run_id, pid


@contextmanager
def paused(process: int) -> Iterator[None]:
    """A process that does nothing for a while, and does not know."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextmanager
def without_worker(server: Server, **settings: str) -> Iterator[Service]:
    """A service whose own worker stands still, after it has built the actor: what is done, others do."""
    with own_service(server, **settings) as running:
        own = engine.eventually(lambda: processes(running).get("worker", 0), "there is a worker")
        with running.http as http:
            engine.build(http, engine.actor(http))
        with paused(own):
            yield running
        assert "Traceback" not in running.log.read_text()


def lives(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


def lines(http: httpx.Client, run_id: str) -> bytes:
    return b"".join(line + b"\n" for line in engine.feed(http, run_id))


def check_history(service: Service, http: httpx.Client, run_id: str) -> list[engine.Json]:
    """What must hold of a run that has ended, whatever happened: one end, nothing missing, the same file."""
    content = lines(http, run_id)
    events = [orjson.loads(line) for line in content.splitlines()]
    own = [event for event in events if event["object"] == "ade.run.event"]
    assert [event["seq"] for event in own] == list(range(1, len(own) + 1))
    assert [event["type"] for event in own].count("run.completed") == 1
    assert own[-1]["type"] == events[-1]["type"] == "run.completed"
    file = service.data / "runs" / engine.WORKSPACE / run_id / "events.ndjson"
    engine.eventually(lambda: file.exists() and file.stat().st_size >= len(content), "the log file is complete")
    assert file.read_bytes() == content
    assert engine.told(http.get(f"/runs/{run_id}"))["status"] == events[-1]["status"]
    return own


# One process killed


def test_a_killed_worker_loses_its_run_and_nothing_else(fragile: Service, http: httpx.Client) -> None:
    """Its engine is gone at once; the run ends as lost when the lease is over; the next worker does what is queued."""
    run_id, pid = started(http)
    killed = time.monotonic()
    kill(fragile, "worker")
    engine.eventually(lambda: not lives(pid), "the engine of the killed worker is gone")
    waiting = engine.start(http, engine.actor(http), "print('hello')")["id"]
    own = check_history(fragile, http, run_id)
    assert time.monotonic() - killed < LEASE_S + 20
    assert [event["type"] for event in own[-2:]] == ["run.lost", "run.completed"]
    assert (own[-1]["status"], own[-1]["stop_reason"]) == ("failed", "worker_lost")
    assert check_history(fragile, http, waiting)[-1]["status"] == "succeeded"


def test_a_killed_worker_s_build_is_built_by_the_next_one(fragile: Service, http: httpx.Client) -> None:
    """Builds are repeatable: the same build, a second attempt, and the run that waited for it succeeds."""
    with engine.gate(fragile) as gate:
        files = engine.package("built_twice", "print('hello')")
        files["built_twice/__init__.py"] = (
            "import time; from pathlib import Path\nprint('importing', flush=True)\n"
            f"while not Path({str(gate)!r}).exists(): time.sleep(.005)"
        )
        run = engine.start(http, engine.register(http, files)["id"])
        engine.wait_for_event(http, run["build_id"], engine.says("importing"))
        kill(fragile, "worker")
        gate.touch()
        assert check_history(fragile, http, run["id"])[-1]["status"] == "succeeded"
    types = [orjson.loads(line)["type"] for line in engine.feed(http, run["build_id"])]
    assert types.count("build.started") == 2
    assert types.count("build.lost") == types.count("build.completed") == 1


def test_a_killed_api_is_back_and_its_followers_go_on(fragile: Service, http: httpx.Client) -> None:
    """The run does not notice; a follower reconnects and has every line; an idempotency key still knows its run."""
    key = {"Idempotency-Key": "before and after"}
    config_id = engine.actor(http)
    with engine.gate(fragile) as gate, ThreadPoolExecutor() as threads, fragile.http as other:
        body = {"options": {"engine_args": [f"print('up'); wait_for({str(gate)!r}); print('down')"]}}
        first = http.post(f"/configs/{config_id}/runs", json=body, headers=key)
        run_id = engine.told(first)["id"]
        engine.wait_for_event(http, run_id, engine.says("up"))
        following = threads.submit(lambda: [event.line for event in follow(other, Consumer(run_id))])
        kill(fragile, "api")
        fragile.wait_until_ready()
        again = http.post(f"/configs/{config_id}/runs", json=body, headers=key)
        assert (again.status_code, again.content) == (first.status_code, first.content)
        gate.touch()
        assert following.result(engine.PATIENCE_S) == engine.feed(http, run_id)
    own = check_history(fragile, http, run_id)
    assert [event.get("message") for event in own if event["type"] == "run.log"] == ["up", "down"]


def test_a_killed_projector_catches_up(fragile: Service, http: httpx.Client) -> None:
    """What was written while it was away is in the log files afterwards, without a line lost or doubled."""
    with engine.gate(fragile) as gate:
        script = f"print('up')\nwhile not Path({str(gate)!r}).exists(): print('tick'); time.sleep(.001)"
        run_id, _ = started(http, script)
        kill(fragile, "projector")
    assert check_history(fragile, http, run_id)[-1]["status"] == "succeeded"


def test_a_draining_api_ends_its_streams_between_two_events(fragile: Service, http: httpx.Client) -> None:
    """Told to stop, it ends SSE with a time to come back and NDJSON after a whole line; both go on where they were."""
    with engine.gate(fragile) as gate, fragile.http as other:
        run_id, _ = started(
            http, f"print('up')\nwhile not Path({str(gate)!r}).exists(): print('tick'); time.sleep(.005)"
        )
        accept = {"Accept": engine.SSE}
        with (
            other.stream("GET", f"/runs/{run_id}/events", headers=accept) as sse,
            engine.following(http, run_id) as ndjson,
        ):
            for response in (sse, ndjson):
                assert response.status_code == 200
            os.kill(processes(fragile)["api"], signal.SIGTERM)
            text = b"".join(engine.bounded(sse.iter_raw()))
            before = [line for line in engine.whole_lines(ndjson) if line]
        retry = re.search(rb"\n\nretry: (\d+)\n\n\Z", text)
        assert retry is not None, text[-300:]
        assert 1000 <= int(retry[1]) <= 5000
        assert b"run.completed" not in text
        fragile.wait_until_ready()
        gate.touch()
        uncut = engine.feed(http, run_id)
    assert uncut[: len(before)] == before
    last = int(re.findall(rb"^id: (\d+)$", text, re.MULTILINE)[-1])
    resumed = http.get(f"/runs/{run_id}/events", headers={**accept, "Last-Event-ID": str(last)}).content
    data = [piece.removeprefix(b"data: ") for piece in (text + resumed).split(b"\n") if piece.startswith(b"data: ")]
    assert data == uncut


def test_a_database_that_drops_its_connections_loses_nothing(fragile: Service, http: httpx.Client) -> None:
    """Every connection of every process ended, again and again: each line is there once, in order, before the end."""
    config_id, count = engine.actor(http), 400
    with psycopg.connect(fragile.database_url, autocommit=True) as connection, fragile.http as other:
        run_id = engine.start(http, config_id, f"for n in range({count}): print(n); time.sleep(.002)")["id"]
        followed = []
        for event in follow(other, Consumer(run_id)):
            followed.append(event.line)
            if len(followed) % 100 == 50:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
    assert followed == engine.feed(http, run_id)
    own = check_history(fragile, http, run_id)
    assert own[-1]["status"] == "succeeded"
    assert [event["message"] for event in own if event["type"] == "run.log"] == [str(n) for n in range(count)]


# Two services, and whole ones


def test_two_services_share_one_database(fragile: Service, second: Service, http: httpx.Client) -> None:
    """Both take work, neither takes what the other has, and each shows all of it."""
    config_id = engine.actor(http)
    engine.build(http, config_id)
    with second.http as other:
        clients = [http, other] * 5
        runs = [engine.start(client, config_id, "print('hello'); time.sleep(.2)")["id"] for client in clients]
        uncut = {run_id: engine.feed(client, run_id) for run_id, client in zip(runs, clients[::-1], strict=True)}
        for run_id in runs:
            assert engine.feed(http, run_id) == engine.feed(other, run_id) == uncut[run_id]
            own = check_history(fragile, http, run_id)
            assert [event["type"] for event in own] == ["run.created", "run.started", "run.log", "run.completed"]
    workers = {orjson.loads(lines[1])["worker_id"] for lines in uncut.values()}
    assert len(workers) == 2, "one of the two took all the work"


def test_a_worker_that_was_asleep_beyond_its_lease_writes_nothing_more(
    fragile: Service, second: Service, http: httpx.Client
) -> None:
    """Another one has ended its run and taken its build; awake again it stops its engine and leaves the build alone."""
    with engine.gate(fragile) as gate:
        files = engine.package("taken_over")
        files["taken_over/__init__.py"] = (
            "import time; from pathlib import Path\n"
            f"while not Path({str(gate)!r}).exists(): print('importing', flush=True); time.sleep(.01)"
        )
        with paused(processes(second)["worker"]):
            run_id, pid = started(http, SILENT)
            waiting = engine.start(http, engine.register(http, files)["id"])
            build_id = waiting["build_id"]
            engine.wait_for_event(http, build_id, engine.says("importing"))
        with paused(processes(fragile)["worker"]):
            before = lines(http, run_id)
            engine.wait_for_event(http, build_id, lambda e: e["type"] == "build.started" and e["attempt"] == 2)
        engine.eventually(lambda: not lives(pid), "the engine of the run that was lost is ended")
        gate.touch()
    build = orjson.loads(engine.feed(http, build_id)[-1])
    assert (build["status"], build["error_message"]) == ("active", None)
    assert check_history(fragile, http, run_id)[-1]["stop_reason"] == "worker_lost"
    assert lines(http, run_id) == before
    assert check_history(fragile, http, waiting["id"])[-1]["status"] == "succeeded"
    assert "Traceback" not in fragile.log.read_text() + second.log.read_text()


def test_a_service_that_is_told_to_stop_lets_short_work_end_and_gives_long_work_up(
    fragile: Service, second: Service, http: httpx.Client
) -> None:
    """What ends within the drain time, ends well; the rest is lost at once. No process is left; the exit code is 0."""
    engine.build(http, engine.actor(http))
    with paused(processes(fragile)["worker"]):  # so that the other one takes these
        long, pid = started(http)
        short, _ = started(http, "print('up'); time.sleep(.5); print('done')")
        asked = time.monotonic()
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(engine.PATIENCE_S) == 0
    assert DRAIN_S <= time.monotonic() - asked < DRAIN_S + 20
    assert not lives(pid)
    assert check_history(fragile, http, short)[-1]["status"] == "succeeded"
    lost = check_history(fragile, http, long)
    assert (lost[-1]["stop_reason"], lost[-2]["reason"]) == ("worker_lost", "the worker was stopped")
    assert "Traceback" not in second.log.read_text()


def test_a_killed_service_leaves_no_process_and_needs_no_repair(fragile: Service, http: httpx.Client) -> None:
    """kill -9 of `ade serve`: nothing of it runs on; started anew on the same folder it ends what was lost."""
    run_id, pid = started(http)
    children = processes(fragile)
    fragile.process.kill()
    fragile.process.wait()
    engine.eventually(lambda: not any(map(lives, map(str, children.values()))), "its processes are gone")
    engine.eventually(lambda: not lives(pid), "the engine is gone")
    with running_service(fragile.database_url, fragile.data, **SETTINGS) as again, again.http as other:
        assert check_history(again, other, run_id)[-1]["stop_reason"] == "worker_lost"
        assert engine.run(other, engine.actor(other), "print('hello')")[0]["status"] == "succeeded"
        engine.eventually(lambda: not list((again.data / "scratch").glob("*")), "the scratch folder of the run is gone")


def test_a_host_that_is_not_loopback_is_refused(tmp_path: Path) -> None:
    """While there are no keys: exit code 2 and a sentence, before anything is started."""
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "0.0.0.0"]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ADE_DATA_DIR": str(tmp_path / "data")}
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "loopback" in ended.stderr
    assert not (tmp_path / "data").exists()
