"""Safe mode, switched while the service runs: what is queued waits and says so, what runs runs on."""

from collections.abc import Iterator
from dataclasses import replace

import httpx
import orjson
import pytest

from eventstore.clock import ulid
from tests import engine
from tests.conftest import Service
from tests.test_recovery import own_events, service, types
from tests.test_worker_kills import worker

__all__ = ["service"]  # a service whose own worker stands still


@pytest.fixture(autouse=True)
def switched_off(http: httpx.Client) -> Iterator[None]:
    yield
    switch(http, enabled=False)


def switch(http: httpx.Client, *, enabled: bool) -> None:
    engine.told(http.post("/safe-mode", json={"enabled": enabled}))


def waits_for(http: httpx.Client, run_id: str, what: str) -> None:
    """Returns when the run says so."""
    engine.eventually(lambda: engine.told(http.get(f"/runs/{run_id}"))["waiting_for"] == what, f"it waits for {what}")


def test_queued_runs_say_that_they_wait_and_go_on_without_a_restart(service: Service, http: httpx.Client) -> None:
    """Once, and only while it is so: there is one slot, and the second waits for a worker when safe mode is off."""
    config = engine.actor(http)
    first, second = (engine.start(http, config, dry_run=True)["id"] for _ in range(2))
    switch(http, enabled=True)
    with worker(service):
        for run_id in (first, second):
            waits_for(http, run_id, "safe_mode")
        switch(http, enabled=False)
        for run_id in (first, second):
            own = own_events(http, run_id)
            assert types(own)[:4] == ["created", "waiting", "waiting", "started"]
            assert [event["for"] for event in own[1:3]] == ["safe_mode", "worker"]


def test_what_runs_runs_on_and_what_has_no_slot_says_what_it_waits_for(service: Service, http: httpx.Client) -> None:
    """Every slot is taken: safe mode is noticed all the same, on and off."""
    config = engine.actor(http)
    with engine.gate(service) as gate, worker(service):
        running = engine.start(http, config, f"print('up')\nwait_for({str(gate)!r})")["id"]
        engine.wait_for_event(http, running, engine.says("up"))
        queued = engine.start(http, config, dry_run=True)["id"]
        switch(http, enabled=True)
        waits_for(http, queued, "safe_mode")
        switch(http, enabled=False)
        waits_for(http, queued, "worker")
        switch(http, enabled=True)
        waits_for(http, queued, "safe_mode")
        gate.touch()
        assert own_events(http, running)[-1]["status"] == "succeeded"
        assert engine.told(http.get(f"/runs/{queued}"))["status"] == "queued"
        switch(http, enabled=False)
        assert own_events(http, queued)[-1]["status"] == "succeeded"


def test_a_queued_build_waits_and_so_does_its_run(service: Service, http: httpx.Client) -> None:
    """The run says that it waits for the build, which is so; both go on."""
    files = engine.package("safely", f"print({ulid()!r})")
    config = engine.register(http, files)["id"]
    run = engine.start(http, config)
    other = engine.start(http, engine.actor(http), dry_run=True)["id"]
    switch(http, enabled=True)
    with worker(service):
        waits_for(http, other, "safe_mode")  # so the worker has looked
        assert engine.told(http.get(f"/runs/{run['id']}"))["waiting_for"] == "build"
        assert engine.told(http.get(f"/builds/{run['build_id']}"))["status"] == "queued"
        switch(http, enabled=False)
        assert types(own_events(http, run["id"]))[:3] == ["created", "waiting", "started"]


def test_a_worker_that_is_forced_into_it_says_so_too(service: Service, http: httpx.Client) -> None:
    """ADE_SAFE_MODE of the worker; the next one, without it, takes back what the first one said."""
    run_id = engine.start(http, engine.actor(http), dry_run=True)["id"]
    with worker(replace(service, env={**service.env, "ADE_SAFE_MODE": "true"})):
        waits_for(http, run_id, "safe_mode")
    with worker(service):
        events = own_events(http, run_id)
    assert types(events) == ["created", "waiting", "waiting", "started", "completed"]


def test_a_queued_run_that_waits_for_safe_mode_is_canceled_at_once(service: Service, http: httpx.Client) -> None:
    run_id = engine.start(http, engine.actor(http), dry_run=True)["id"]
    switch(http, enabled=True)
    with worker(service):
        waits_for(http, run_id, "safe_mode")
        engine.told(http.post(f"/runs/{run_id}/cancel"))
        assert types([orjson.loads(line) for line in engine.feed(http, run_id)])[-1] == "completed"


def test_a_run_whose_build_failed_ends_in_safe_mode_too(service: Service, http: httpx.Client) -> None:
    """It begins nothing, so it says nothing of safe mode."""
    config = engine.register(http, engine.package("unsafely", requires='["./nowhere"]'))["id"]
    run = engine.start(http, config)
    engine.told(http.post(f"/builds/{run['build_id']}/cancel"))
    switch(http, enabled=True)
    with worker(service):
        assert types(own_events(http, run["id"])) == ["created", "waiting", "completed"]
