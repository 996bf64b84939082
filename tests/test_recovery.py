"""What becomes of runs whose worker dies, stops, or is asked to; and in which order workspaces are served."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx
import orjson
import psycopg
import pytest

from service import worker as working
from tests import engine
from tests.conftest import Server, Service, reachable_folder, running_service
from tests.faults import OwnServer, own_server
from tests.test_process import lives
from tests.test_serve import paused, without_worker
from tests.test_worker_kills import worker

LEASE_S = 2
NOTICED_S = LEASE_S + 15
"""The lease and 5 s, and what a machine that does more may take."""
SETTINGS = {
    "ADE_LEASE_SECONDS": str(LEASE_S),
    "ADE_DRAIN_SECONDS": "1",
    "ADE_CANCEL_GRACE_SECONDS": "1",
    "ADE_MAX_CONCURRENCY": "1",
}
SILENT = "print('pid', os.getpid())\nwhile True: time.sleep(1)"


@pytest.fixture(scope="module")
def service(server: Server) -> Iterator[Service]:
    """A service whose own worker stands still: what is done, the workers of the tests do."""
    with without_worker(server, **SETTINGS) as running:
        yield running


def begun(http: httpx.Client, script: str = SILENT, **options: object) -> tuple[str, int]:
    """A run at work: its id, and its engine's process id."""
    run_id = engine.start(http, engine.actor(http), script, **options)["id"]
    return run_id, pid_of(http, run_id)


def begins(attempt: int) -> Callable[[engine.Json], bool]:
    """Whether an event is the beginning of this attempt."""
    return lambda event: event["type"] == "run.started" and event["attempt"] == attempt


def pid_of(http: httpx.Client, run_id: str) -> int:
    """Of the newest attempt's engine."""
    said = engine.wait_for_event(http, run_id, lambda e: e.get("message", "").startswith("pid"))
    return int(said["message"].split()[1])


def own_events(http: httpx.Client, run_id: str) -> list[engine.Json]:
    events = [orjson.loads(line) for line in engine.feed(http, run_id)]
    return [event for event in events if event["object"] == "ade.run.event"]


def types(events: list[engine.Json]) -> list[str]:
    return [event["type"].removeprefix("run.") for event in events]


def supervisor_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def killed(process: "subprocess.Popen[bytes]") -> float:
    """The worker is dead; when that was."""
    process.kill()
    process.wait()
    return time.monotonic()


def test_a_run_is_tried_again_once_what_is_left_of_it_is_dead(service: Service, http: httpx.Client) -> None:
    """Worker killed, its supervisor stopped: the engine lives on. It is ended before the run is lost, within the lease
    and 5 s; the second attempt begins after a pause, and its lines are its own."""
    with engine.gate(service) as gate:
        script = f"print('pid', os.getpid()); wait_for({str(gate)!r}); print('done')"
        with worker(service) as first:
            run_id, pid = begun(http, script, max_attempts=2)
            supervisor = supervisor_of(pid)
            os.kill(supervisor, signal.SIGSTOP)
            at = killed(first)
        assert lives(pid), "the engine was to survive its worker"
        with worker(service):
            lost = engine.wait_for_event(http, run_id, engine.is_type("run.lost"))
            assert time.monotonic() - at < NOTICED_S
            assert not lives(pid)
            assert not lives(supervisor)
            snapshot = engine.told(http.get(f"/runs/{run_id}"))
            gate.touch()
            own = own_events(http, run_id)
    assert snapshot["status"] in {"queued", "running"}
    assert 500 <= lost["delay_ms"] <= 1000
    two = ["created", "started", "log", "signaled", "lost", "started", "log", "log", "completed"]
    assert types(own) == two
    assert (own[3]["signal"], own[3]["survivors"]) == ("SIGKILL", 0)
    assert (lost["attempt"], lost["next"], own[5]["attempt"]) == (1, "retry", 2)
    assert orjson.loads(engine.feed(http, run_id)[-1])["status"] == "succeeded"
    waited_ms = 1000 * (seconds(own[5]) - seconds(own[4]))
    assert lost["delay_ms"] <= waited_ms


def seconds(event: engine.Json) -> float:
    return datetime.fromisoformat(event["created_at"]).timestamp()


def test_a_worker_without_room_on_its_disk_begins_nothing(service: Service, http: httpx.Client) -> None:
    """The run says what it waits for, once; a worker that has room begins it."""
    full = replace(service, env={**service.env, "ADE_DISK_FREE_MIN_MB": str(2**40)})
    with worker(full):
        run_id = engine.start(http, engine.actor(http), dry_run=True)["id"]
        engine.wait_for_event(http, run_id, engine.is_type("run.waiting"))
        assert engine.told(http.get(f"/runs/{run_id}"))["waiting_for"] == "disk"
    with worker(service):
        own = own_events(http, run_id)
    assert types(own) == ["created", "waiting", "started", "completed"]
    assert own[1]["for"] == "disk"


def test_a_worker_that_starts_clears_away_what_others_left(service: Service, http: httpx.Client) -> None:
    """A process and a folder of a run that has ended; what belongs to no run of this deployment is not touched."""
    with worker(service):
        run_id = engine.run(http, engine.actor(http), dry_run=True)[0]["id"]
    (service.data / "scratch" / run_id).mkdir()
    with (
        subprocess.Popen(["/bin/sleep", "99"], env={"ADE_RUN_ID": run_id}) as left,
        subprocess.Popen(["/bin/sleep", "99"], env={"ADE_RUN_ID": "run_of_another_deployment"}) as other,
        worker(service),
    ):
        assert left.wait(engine.PATIENCE_S) == -signal.SIGKILL
        engine.eventually(lambda: not (service.data / "scratch" / run_id).exists(), "the folder is gone")
        assert other.poll() is None
        other.kill()


def test_a_lost_run_is_ended_though_every_slot_is_taken(service: Service, http: httpx.Client) -> None:
    """There is one slot, and a run in it that does not end."""
    with worker(service) as first:
        lost, _ = begun(http)
        at = killed(first)
    with worker(service):
        busy, _ = begun(http)
        ended = engine.wait_for_event(http, lost, engine.is_type("run.completed"))
        assert time.monotonic() - at < NOTICED_S
        assert engine.told(http.get(f"/runs/{busy}"))["status"] == "running"
        engine.told(http.post(f"/runs/{busy}/cancel"))
        engine.feed(http, busy)
    assert (ended["status"], ended["stop_reason"]) == ("failed", "worker_lost")
    assert "the only attempt" in ended["error_message"]


def test_who_has_a_run_in_hand_is_shown(service: Service, http: httpx.Client) -> None:
    """While it runs; with the moment at which its lease ends. Afterwards nobody has it."""
    with worker(service):
        run_id, _ = begun(http)
        shown = engine.told(http.get(f"/runs/{run_id}"))
        started = engine.wait_for_event(http, run_id, engine.is_type("run.started"))
        assert shown["processing_by"] == started["worker_id"]
        assert shown["heartbeat_at"] < shown["lease_expires_at"]
        renewed = engine.eventually(
            lambda: engine.told(http.get(f"/runs/{run_id}"))["heartbeat_at"] > shown["heartbeat_at"], "it is renewed"
        )
        assert renewed
        engine.told(http.post(f"/runs/{run_id}/cancel"))
        engine.feed(http, run_id)
        engine.eventually(lambda: not engine.told(http.get(f"/runs/{run_id}"))["processing_by"], "it is let go")
    assert engine.told(http.get(f"/runs/{run_id}"))["lease_expires_at"] is None


def test_a_canceled_run_of_a_dead_worker_is_ended_by_another(service: Service, http: httpx.Client) -> None:
    """Canceled while its worker stood still, which then died: it is not tried again, though it might be."""
    with worker(service) as first:
        run_id, pid = begun(http, max_attempts=3)
        with paused(first.pid):
            assert http.post(f"/runs/{run_id}/cancel").status_code == 202
            first.kill()
        first.wait()
    with worker(service):
        own = own_events(http, run_id)
    assert types(own)[3:] == ["cancel_requested", "lost", "completed"]
    assert (own[-2]["next"], own[-1]["status"], own[-1]["stop_reason"]) == ("fail", "canceled", "canceled")
    assert not lives(pid)


def test_a_run_that_waits_to_be_tried_again_is_canceled_at_once(service: Service, http: httpx.Client) -> None:
    """It is queued, holds no slot, and its pause outlives the worker that gave it."""
    with worker(service) as first:
        run_id, _ = begun(http, max_attempts=10)
        killed(first)
    with worker(service) as second:
        engine.wait_for_event(http, run_id, engine.is_type("run.lost"))
        killed(second)
    canceled = engine.told(http.post(f"/runs/{run_id}/cancel"))
    assert (canceled["status"], canceled["attempt"]) == ("canceled", 1)
    assert types(own_events(http, run_id))[-3:] == ["lost", "cancel_requested", "completed"]


def test_a_worker_that_is_asked_to_stop_hands_back_what_may_be_repeated(service: Service, http: httpx.Client) -> None:
    """At once and without a pause, and as often as it likes: that costs no attempt."""
    with engine.gate(service) as gate:
        script = f"print('pid', os.getpid()); wait_for({str(gate)!r})"
        run_id = engine.start(http, engine.actor(http), script, max_attempts=2)["id"]
        for attempt in (1, 2, 3):
            with worker(service) as stopping:
                engine.wait_for_event(http, run_id, begins(attempt))
                stopping.terminate()
                assert stopping.wait(engine.PATIENCE_S) == 0
            snapshot = engine.told(http.get(f"/runs/{run_id}"))
            assert (snapshot["status"], snapshot["attempt"], snapshot["waiting_for"]) == ("queued", attempt, "worker")
        gate.touch()
        with worker(service):
            own = own_events(http, run_id)
    lost = [event for event in own if event["type"] == "run.lost"]
    told = [(event["next"], event["handed_back"], event.get("delay_ms")) for event in lost]
    assert told == [("retry", True, None)] * 3
    assert own[-1]["status"] == "succeeded"


@pytest.fixture
def outage() -> Iterator[tuple[Service, OwnServer]]:
    """A service with a PostgreSQL of its own."""
    with (
        reachable_folder() as folder,
        own_server(folder) as server,
        reachable_folder() as data,
        running_service(server.url, data, **SETTINGS) as running,
    ):
        yield running, server


def test_a_database_that_is_away_for_longer_than_a_lease_kills_no_run(outage: tuple[Service, OwnServer]) -> None:
    """Two workers with a run each: every lease looks as if it had run out, and neither takes what the other has. The
    engines are paused at their pipes meanwhile, and lose no line."""
    service, server = outage
    count = 3000
    with service.http as http, engine.gate(service) as gate:
        engine.build(http, engine.actor(http))
        script = (
            f"print('pid', os.getpid()); wait_for({str(gate)!r})\nfor n in range({count}): print(n); time.sleep(.002)"
        )
        with worker(service):
            runs = [begun(http, script)[0] for _ in "12"]
            gate.touch()
            server.stop(signal.SIGINT)
            time.sleep(LEASE_S * 2)  # the fault itself
            server.start()
            service.wait_until_ready()
            histories = [own_events(http, run_id) for run_id in runs]
    assert len({own[1]["worker_id"] for own in histories}) == 2
    for own in histories:
        assert [event["message"] for event in own if event["type"] == "run.log"][1:] == [str(n) for n in range(count)]
        assert [kind for kind in types(own) if kind != "log"] == ["created", "started", "completed"]
        assert own[-1]["status"] == "succeeded"


def test_workspaces_are_served_in_turn(service: Service, http: httpx.Client) -> None:
    """One has 200 runs in the queue, another one a run that came last: it is the first or the second to begin."""
    crowd = engine.actor(http)
    alone = engine.register(http, engine.files_of(engine.ENGINES / "actor"), workspace="zoo")["id"]
    with worker(service):
        engine.told(http.post(f"/workspaces/zoo/configs/{alone}/builds", json={}))
        engine.eventually(lambda: engine.told(http.get(f"/configs/{alone}"))["active_build_id"], "it is built")
    queued = [engine.start(http, crowd, dry_run=True)["id"] for _ in range(200)]
    one = engine.start(http, alone, dry_run=True)["id"]
    with worker(service):
        engine.feed(http, queued[-1])
    with psycopg.connect(service.database_url) as connection:
        query = "SELECT stream FROM events WHERE type = 'run.started' AND stream = ANY(%s) ORDER BY id"
        order = [row[0] for row in connection.execute(query, ([*queued, one],))]
    assert order.index(one) <= 1
    assert [run_id for run_id in order if run_id != one] == queued, "oldest first within a workspace"


def test_after_an_outage_one_looks_for_a_while_before_others_are_called_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pause between two looks is an outage, or a machine that slept; so is a clock that was put back."""
    clock = iter([0.0, 1.0, 2.0, 3.0, 13.0, 14.0, 15.0, 16.0, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(working, "now", lambda: next(clock))
    sight = working._Sight(3.0)
    looks = [sight.is_steady() for _ in range(11)]
    assert looks == [False, False, True, False, False, False, True, False, False, False, True]
