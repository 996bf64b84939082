"""How runs end: by themselves, canceled, timed out, without their worker; always with one terminal event, and clean."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg
import pytest

from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")

FOREVER = "while True: time.sleep(1)"


@pytest.fixture(scope="module")
def config(http: httpx.Client) -> str:
    config_id = engine.actor(http)
    engine.build(http, config_id)
    return config_id


@pytest.fixture
def sql(service: Service) -> Iterator[psycopg.Connection[Any]]:
    """The service's database, to look behind what HTTP tells."""
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        yield connection


def events_of(http: httpx.Client, run_id: str) -> list[engine.Json]:
    return [orjson.loads(line) for line in engine.feed(http, run_id)]


def types_of(events: list[engine.Json]) -> list[str]:
    return [event["type"] for event in events if event["type"] != "run.log"]


def living(*processes: str) -> list[str]:
    """Those of these process ids that a living process has."""
    return [process for process in processes if Path(f"/proc/{process}").exists()]


def cancel(http: httpx.Client, stream: str) -> engine.Json:
    answer = http.post(f"{engine.path_of(stream)}/cancel", json={"reason": "enough"})
    assert answer.status_code == 202, answer.text
    return engine.told(answer)


# By themselves


@pytest.mark.parametrize(
    ("script", "code", "error"),
    [
        ("sys.exit(1)", 1, "The engine exited with code 1"),
        ("print('first', file=sys.stderr); print('why', file=sys.stderr); sys.exit(7)", 7, "…code 7: why"),
        ("raise ValueError('no \"penguins\" \\\\ here')", 1, '…code 1: ValueError: no "penguins" \\ here'),
        ("os.kill(os.getpid(), signal.SIGSEGV)", None, "The engine was ended by SIGSEGV."),
        ("os.close(1); os.close(2); os._exit(3)", 3, "The engine exited with code 3"),
    ],
)
def test_an_engine_that_fails_says_why(
    http: httpx.Client, config: str, script: str, code: int | None, error: str
) -> None:
    """`failed`, with the exit code or the signal, and the last words on stderr in error_message."""
    run, events = engine.run(http, config, script)
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("failed", "failed", code)
    assert run["error_message"].endswith(error.removeprefix("…"))
    assert events[-1]["error_message"] == run["error_message"]


def test_an_executable_that_is_missing_is_a_failed_run(http: httpx.Client) -> None:
    """No engine, no exit code, a sentence that names the program."""
    files = engine.package("nowhere", ade='engine = ""\ncommand = ["no-such-program", "{output_dir}"]')
    run, events = engine.run(http, engine.register(http, files)["id"])
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("failed", "failed", None)
    assert "no-such-program" in run["error_message"]
    assert types_of(events)[-2:] == ["run.started", "run.completed"]


def test_what_an_engine_leaves_running_is_ended_with_it(http: httpx.Client, config: str) -> None:
    """A child in a session of its own, that ignores SIGTERM and holds the output open, delays and survives nothing."""
    child = (
        "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN); print(os.getpid()); time.sleep(99)"
    )
    script = f"left = subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(.2)"
    run, events = engine.run(http, config, script)
    (pid,) = (event["message"] for event in events if event["type"] == "run.log")
    assert (run["status"], living(pid)) == ("succeeded", [])


def test_an_engine_that_removes_its_output_folder_leaves_no_artifacts(http: httpx.Client, config: str) -> None:
    """That is its own affair. Seen to be taken for a bug of the worker, which gave the run up."""
    run, _ = engine.run(http, config, "import shutil; shutil.rmtree(output)")
    assert (run["status"], run["stop_reason"]) == ("succeeded", "completed")
    assert engine.told(http.get(f"/runs/{run['id']}/artifacts"))["data"] == []


def test_a_timeout_counts_from_the_start_and_ends_the_engine(http: httpx.Client, config: str) -> None:
    """SIGTERM at `timeout_s`, `failed` with `timeout`; what the engine still says is kept."""
    script = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('bye') or 0))\n{FOREVER}"
    run, events = engine.run(http, config, script, timeout_s=1)
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("failed", "timeout", 0)
    assert run["error_message"] == "It ran longer than 1 s and was stopped."
    assert 900 <= run["duration_ms"] < 20_000
    assert [event["message"] for event in events if event["type"] == "run.log"] == ["bye"]


# Canceled


def test_a_queued_run_is_canceled_at_once(service: Service, http: httpx.Client, config: str) -> None:
    """It ends in the answer itself, while no worker has a slot for it, and never starts."""
    with engine.occupied(service, http):
        run = engine.start(http, config, "print('I ran')")
        canceled = cancel(http, run["id"])
    assert (canceled["status"], canceled["stop_reason"]) == ("canceled", "canceled")
    assert canceled["cancel_requested_at"] == canceled["finished_at"]
    events = events_of(http, run["id"])
    assert types_of(events) == ["run.created", "run.cancel_requested", "run.completed"]
    assert events[1]["reason"] == "enough"


def test_a_running_engine_is_asked_to_end_first(http: httpx.Client, config: str) -> None:
    """It gets SIGTERM, and what it says then comes before the terminal event."""
    script = f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('bye') or 5))\nprint('up')\n{FOREVER}"
    run_id = engine.start(http, config, script)["id"]
    engine.wait_for_event(http, run_id, engine.says("up"))
    assert cancel(http, run_id)["cancel_requested_at"]
    events = events_of(http, run_id)
    assert types_of(events)[2:] == ["run.cancel_requested", "run.signaled", "run.completed"]
    assert events[-1] | {"status": "canceled", "stop_reason": "canceled", "exit_code": 5} == events[-1]
    assert [event["message"] for event in events if event["type"] == "run.log"] == ["up", "bye"]
    signaled = next(filter(engine.is_type("run.signaled"), events))
    assert signaled["signal"] == "SIGTERM"


def test_an_engine_that_ignores_sigterm_is_killed_with_all_that_it_started(http: httpx.Client, config: str) -> None:
    """After the grace comes SIGKILL, and no process is left; asking again meanwhile is no error and no event."""
    deaf = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', os.getpid(), flush=True)"
    child = f"{deaf}; os.setsid(); time.sleep(99)"
    script = f"{deaf}; subprocess.Popen([sys.executable, '-c', {child!r}])\n{FOREVER}"
    run_id = engine.start(http, config, script)["id"]
    with engine.following(http, run_id) as response:
        heard = (orjson.loads(line) for line in engine.whole_lines(response))
        pids = [next(e["message"] for e in heard if e.get("message", "").startswith("deaf")).split()[1] for _ in "12"]
    asked = time.monotonic()
    first, again = cancel(http, run_id), cancel(http, run_id)
    assert again["cancel_requested_at"] == first["cancel_requested_at"]
    events = events_of(http, run_id)
    took = time.monotonic() - asked
    assert types_of(events)[2:] == ["run.cancel_requested", "run.signaled", "run.completed"]
    signaled = next(filter(engine.is_type("run.signaled"), events))
    assert (signaled["signal"], signaled["survivors"]) == ("SIGKILL", 0)
    assert (events[-1]["status"], events[-1]["exit_code"]) == ("canceled", None)
    assert living(*pids) == []
    assert 2 <= took < 20, "ADE_CANCEL_GRACE_SECONDS is 2"


def test_a_run_that_has_ended_cannot_be_canceled(http: httpx.Client, config: str) -> None:
    """409 with how it ended, and not an event more."""
    run, events = engine.run(http, config, dry_run=True)
    answer = http.post(f"/runs/{run['id']}/cancel")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/already-ended")
    assert (answer.json()["run_id"], answer.json()["run_status"]) == (run["id"], "succeeded")
    assert events_of(http, run["id"]) == events


def test_a_run_that_waits_for_its_build_ends_at_its_cancel(service: Service, http: httpx.Client) -> None:
    """The build goes on; the run's feed, live or later, ends at run.completed, whatever the build says afterwards."""
    with engine.gate(service) as gate:
        files = engine.package("chatty")
        files["chatty/__init__.py"] = (
            "import time; from pathlib import Path\n"
            f"while not Path({str(gate)!r}).exists(): print('tick', flush=True); time.sleep(.001)"
        )
        run = engine.start(http, engine.register(http, files)["id"])
        assert run["waiting_for"] == "build"
        with engine.following(http, run["id"]) as response:
            live = []
            for line in filter(None, engine.whole_lines(response)):
                live.append(line)
                if len(live) == 100:
                    assert cancel(http, run["id"])["status"] == "canceled"
        build = engine.told(http.get(f"/builds/{run['build_id']}"))
        assert build["status"] == "building"
        assert orjson.loads(live[-1])["type"] == "run.completed"
        assert engine.feed(http, run["id"]) == live
    assert engine.wait_for_event(http, run["build_id"], engine.is_type("build.completed"))["status"] == "active"


def test_a_client_that_hangs_up_cancels_only_what_it_wanted_canceled(http: httpx.Client, config: str) -> None:
    """With cancel_on_disconnect the run is canceled 5 s after the hang-up, not before; without it, it runs on."""
    ids = []
    for wanted in (True, False):
        body = {"stream": True, "options": {"engine_args": [FOREVER], "cancel_on_disconnect": wanted}}
        with http.stream("POST", f"/configs/{config}/runs", json=body) as response:
            ids.append(orjson.loads(next(engine.whole_lines(response)))["run_id"])
    hung_up = time.monotonic()
    # Looked at, not followed: whoever follows it within the grace keeps it.
    engine.eventually(lambda: engine.told(http.get(f"/runs/{ids[0]}"))["finished"], "the run is canceled")
    took = time.monotonic() - hung_up
    ended = events_of(http, ids[0])
    assert types_of(ended)[-1] == "run.completed"
    assert ended[-1]["status"] == "canceled"
    assert 4 < took < 30
    assert engine.told(http.get(f"/runs/{ids[1]}"))["status"] == "running"
    cancel(http, ids[1])
    assert events_of(http, ids[1])[-1]["status"] == "canceled"


def test_a_client_that_comes_back_in_time_keeps_its_run(http: httpx.Client, config: str) -> None:
    """It follows the run again within the 5 s; after them the run still runs."""
    body = {"stream": True, "options": {"engine_args": [FOREVER], "cancel_on_disconnect": True}}
    with http.stream("POST", f"/configs/{config}/runs", json=body) as response:
        run_id = orjson.loads(next(engine.whole_lines(response)))["run_id"]
    hung_up = time.monotonic()
    with engine.following(http, run_id) as again:
        lines = engine.whole_lines(again)
        engine.eventually(lambda: time.monotonic() - hung_up > 6, "the grace is over")  # what does not happen is waited
        assert engine.told(http.get(f"/runs/{run_id}"))["cancel_requested_at"] is None
        cancel(http, run_id)
        *_, last = filter(None, lines)
    assert orjson.loads(last)["status"] == "canceled"


# Without its supervisor, a hint, or a lease


def test_a_killed_supervisor_takes_its_engine_with_it(http: httpx.Client, config: str) -> None:
    """kill -9 of the process between worker and engine: the engine is gone, and the run is `failed` at once."""
    run_id = engine.start(http, config, f"print(os.getppid(), os.getpid())\n{FOREVER}")["id"]
    started = engine.wait_for_event(http, run_id, engine.is_type("run.log"))
    supervisor, pid = started["message"].split()
    os.kill(int(supervisor), signal.SIGKILL)
    ended = events_of(http, run_id)[-1]
    assert (ended["status"], ended["stop_reason"], ended["exit_code"]) == ("failed", "failed", None)
    assert ended["error_message"]
    engine.eventually(lambda: not living(pid), "the engine is gone")


@contextmanager
def deaf_worker(service: Service) -> Iterator[None]:
    """The worker's notifications are cut off again and again: what it learns, it learns by looking."""
    stop = threading.Event()

    def cut() -> None:
        with psycopg.connect(service.database_url, autocommit=True) as connection:
            while not stop.wait(0.02):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query LIKE 'LISTEN%ade_work%'"
                )

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        yield
    finally:
        stop.set()
        cutter.join()


def held_by(sql: psycopg.Connection[Any], stream: str) -> str | None:
    row = sql.execute("SELECT holder FROM leases WHERE stream = %s", (stream,)).fetchone()
    return row[0] if row else None


def test_a_run_canceled_in_a_workers_hands_but_before_its_start_is_not_executed(
    service: Service, http: httpx.Client, config: str, sql: psycopg.Connection[Any]
) -> None:
    """The worker lays out the inputs while the cancel lands, and hears nothing of it: it finds out and does nothing."""
    path = f"/workspaces/{engine.WORKSPACE}/documents"
    document = engine.told(http.post(path, content=bytes(1_000_000)))["id"]
    trace = service.data / "trace"
    trace.touch()
    trace.chmod(0o666)  # the engine may have another account
    with deaf_worker(service):
        script = f"Path({str(trace)!r}).write_text('I ran')"
        run = engine.start(http, config, script, document_ids=[document] * 300)
        engine.eventually(lambda: held_by(sql, run["id"]), "the worker takes the run")
        cancel(http, run["id"])
        engine.eventually(lambda: not held_by(sql, run["id"]), "the worker lets go of the run")
    assert trace.read_text() == ""
    assert types_of(events_of(http, run["id"])) == ["run.created", "run.cancel_requested", "run.completed"]


def test_a_worker_whose_lease_was_taken_stops_that_work_and_goes_on_with_the_rest(
    service: Service, http: httpx.Client, config: str, sql: psycopg.Connection[Any]
) -> None:
    """It writes nothing more, its engine is gone, its other run is not disturbed; the next one ends the run as lost."""
    with engine.gate(service) as gate:
        other = engine.start(http, config, f"print('up'); wait_for({str(gate)!r})")["id"]
        engine.wait_for_event(http, other, engine.says("up"))
        lost = engine.start(http, config, "print(os.getpid())\nwhile True: print('tick'); time.sleep(.002)")["id"]
        engine.wait_for_event(http, lost, engine.says("tick"))
        (pid,) = (e["message"] for e in engine.told(http.get(f"/runs/{lost}/logs", params={"limit": 1}))["entries"])
        taken = sql.execute(
            "UPDATE leases SET holder = 'somebody else', token = token + 1,"
            " expires_at = clock_timestamp() + interval '1 second' WHERE stream = %s",
            (lost,),
        )
        assert taken.rowcount == 1
        engine.eventually(lambda: not living(pid), "the engine of the lost run is ended")
        written = len(engine.told(http.get(f"/runs/{lost}/logs"))["entries"])
        events = events_of(http, lost)
    assert types_of(events)[-2:] == ["run.lost", "run.completed"]
    assert (events[-1]["status"], events[-1]["stop_reason"]) == ("failed", "worker_lost")
    assert sum(event["type"] == "run.log" for event in events) == written
    assert events_of(http, other)[-1]["status"] == "succeeded"


def test_a_lost_run_ends_in_safe_mode_too(http: httpx.Client, config: str, sql: psycopg.Connection[Any]) -> None:
    """Safe mode keeps new work from beginning, not lost work from ending."""
    run_id = engine.start(http, config, "while True: print('up'); time.sleep(.01)")["id"]
    engine.wait_for_event(http, run_id, engine.says("up"))
    engine.told(http.post("/safe-mode", json={"enabled": True}))
    try:
        sql.execute("UPDATE leases SET holder = 'gone', token = token + 1 WHERE stream = %s", (run_id,))
        sql.execute("UPDATE leases SET expires_at = clock_timestamp() WHERE stream = %s", (run_id,))
        assert events_of(http, run_id)[-1]["stop_reason"] == "worker_lost"
    finally:
        engine.told(http.post("/safe-mode", json={"enabled": False}))


def test_a_flood_of_lines_does_not_delay_a_cancel(http: httpx.Client, config: str) -> None:
    """An engine that writes as fast as it can is canceled at once; every line that it wrote comes before the end."""
    run_id = engine.start(http, config, "while True: print('flood ' * 10)")["id"]
    engine.wait_for_event(http, run_id, engine.says("flood " * 10))
    cancel(http, run_id)
    asked = time.monotonic()
    engine.eventually(lambda: engine.told(http.get(f"/runs/{run_id}"))["finished"], "the flooding run ends")
    assert time.monotonic() - asked < 2 + 18, "ADE_CANCEL_GRACE_SECONDS is 2"
    run = engine.told(http.get(f"/runs/{run_id}"))
    assert (run["status"], run["stop_reason"]) == ("canceled", "canceled")
    last = engine.told(http.get(f"/runs/{run_id}/logs", params={"tail": 1}))["entries"][0]
    assert last["id"] < run["last_event_id"]
