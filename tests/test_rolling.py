"""Several API processes on one port, and several services on one database: killed, replaced, and nobody notices."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import count, cycle

import anyio
import anyio.to_thread
import httpx
import orjson
import pytest

from service.cli.http_server import bind
from service.client import Consumer, follow
from tests import engine
from tests.conftest import Server, Service, own_service, running_service
from tests.test_serve import check_history, children

pytestmark = pytest.mark.anyio

API_PROCESSES = 2
DRAIN_S = 1
REQUESTERS = 2
READERS = 4
ROLL_S = 120
"""Four processes, one after the other; 4 s on a machine that has nothing else to do."""
CUTS = 8


@pytest.fixture(scope="module")
def many(server: Server) -> Iterator[Service]:
    """A service with several API processes, which tells us, as it would systemd, when all of them are up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("")
        settings = {
            "ADE_API_PROCESSES": str(API_PROCESSES),
            "ADE_DRAIN_SECONDS": str(DRAIN_S),
            "ADE_CANCEL_GRACE_SECONDS": "1",
            "NOTIFY_SOCKET": "@" + told.getsockname()[1:].decode(),
        }
        with own_service(server, **settings) as running:
            told.settimeout(engine.PATIENCE_S)
            assert told.recv(100) == b"READY=1"
            yield running
            assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def http(many: Service) -> Iterator[httpx.Client]:
    with many.http as client:
        engine.build(client, engine.actor(client))
        yield client


def apis(service: Service) -> set[int]:
    return {process for name, process in children(service) if name == "api"}


def ticking(gate: object) -> str:
    return f"while not Path({str(gate)!r}).exists(): print('tick'); time.sleep(.01)"


def test_an_address_is_taken_by_one_service_only() -> None:
    """Processes of one service share a port; another service of the same user is refused, though the kernel would
    let it in."""
    mine = bind("127.0.0.1", 0, 2)
    port = mine[0].getsockname()[1]
    try:
        assert [one.getsockname()[1] for one in mine] == [port, port]
        mine[1].listen()
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", port, 2)
    finally:
        for one in mine:
            one.close()


def test_every_api_process_is_started_again_and_its_viewers_go_on_with_any(many: Service, http: httpx.Client) -> None:
    """Each of them killed in turn: every follower has every line once, in order; the others go on undisturbed."""
    with engine.gate(many) as gate, ThreadPoolExecutor() as threads:
        run_id = engine.start(http, engine.actor(http), ticking(gate))["id"]
        engine.wait_for_event(http, run_id, engine.says("tick"))

        def followed() -> list[bytes]:
            with many.http as client:
                return [event.line for event in follow(client, Consumer(run_id))]

        following = [threads.submit(followed) for _ in range(READERS)]
        for process in apis(many):
            before = apis(many)
            os.kill(process, signal.SIGKILL)
            engine.eventually(lambda b=before: len(apis(many) - b) == 1, "another one stands in its place")  # type: ignore[misc]
            many.wait_until_ready()
        gate.touch()
        uncut = engine.feed(http, run_id)
        for one in following:
            assert one.result(engine.PATIENCE_S) == uncut
    assert len(apis(many)) == API_PROCESSES
    check_history(many, http, run_id)


@dataclass
class Clients:
    """Those who ask while the processes are replaced under them, and what they were told."""

    http: str
    run_id: str
    config_id: str
    stopping: bool = False
    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    streams: list[list[bytes]] = field(default_factory=list)
    connections: int = 0
    told_to_go: int = 0
    following: anyio.Event = field(default_factory=anyio.Event)
    """Every reader has its stream."""

    async def ask(self, number: int) -> None:
        """One request after the other, each on a connection of its own; some create a run."""
        paths = cycle(["/runs?limit=1", f"/runs/{self.run_id}", f"/configs/{self.config_id}/runs"])
        async with httpx.AsyncClient(base_url=self.http, timeout=30, headers={"Connection": "close"}) as client:
            for n, path in zip(count(), paths, strict=False):
                if self.stopping:
                    return
                create = path.startswith("/configs") and n % 15 == 14
                try:
                    if create:
                        answer = await client.post(path, json={"options": {"dry_run": True}})
                    else:
                        answer = await client.get(path)
                    self.answers[answer.status_code] += 1
                except httpx.TransportError as error:
                    self.failures.append(f"client {number}, request {n}: {error!r}")
                await anyio.sleep(0.01)

    def ask_on_one_connection(self) -> None:
        """Requests on a connection that is kept, by a client that is not prepared for its end: it goes when it is told.

        httpx would look whether the other side has closed, and hide it."""
        address = httpx.URL(self.http)
        connection = HTTPConnection(address.host, address.port, timeout=30)
        while not self.stopping:
            try:
                connection.request("GET", f"{address.path.rstrip('/')}/runs/{self.run_id}")
                answer = connection.getresponse()
                answer.read()
                self.answers[answer.status] += 1
                self.told_to_go += answer.will_close
            except (HTTPException, OSError) as error:
                self.failures.append(f"a kept connection: {error!r}")
                connection.close()
            time.sleep(0.01)  # between two requests it is idle: then a server may think that nobody minds
        connection.close()

    async def wait_for_news(self) -> None:
        """A long poll, which would outlast a process that is told to stop."""
        async with httpx.AsyncClient(base_url=self.http, timeout=60) as client:
            while not self.stopping:
                head = engine.told(await client.get("/events/head"))["head"]
                params = {"after_id": head, "wait": 5, "types": "config.registered"}
                self.answers[(await client.get("/events", params=params)).status_code] += 1

    async def read(self, number: int) -> None:
        """One feed to its end, on as many connections as it takes; each must end between two events."""
        lines: list[bytes] = []
        self.streams.append(lines)
        accept = engine.SSE if number % 2 else engine.NDJSON
        async with httpx.AsyncClient(base_url=self.http, timeout=30) as client:
            while not (lines and orjson.loads(lines[-1])["type"] == "run.completed"):
                self.connections += 1
                after = orjson.loads(lines[-1])["id"] if lines else 0
                path = f"/runs/{self.run_id}/events?stream=true&after_id={after}"
                try:
                    async with client.stream("GET", path, headers={"Accept": accept}) as response:
                        self.answers[response.status_code] += 1
                        if self.answers[200] >= READERS:
                            self.following.set()
                        body = response.aiter_raw()
                        lines += [line async for line in (sse(body) if number % 2 else ndjson(body))]
                except httpx.TransportError as error:
                    self.failures.append(f"stream {number}: {error!r}")


async def ndjson(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    text = b"".join([chunk async for chunk in body])
    assert text.endswith(b"\n"), text[-100:]
    for line in filter(None, text.split(b"\n")):
        yield line


async def sse(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    text = b"".join([chunk async for chunk in body])
    assert text.endswith(b"\n\n"), text[-100:]
    for line in engine.sse_lines(text):
        yield line


async def test_a_rolling_restart_fails_no_request_and_loses_no_event(many: Service, http: httpx.Client) -> None:
    """SIGHUP: every process is another one afterwards; all that was asked was answered, all that was read is dense; the
    worker's run was handed back, which costs no attempt.

    Seen to fail where idle connections are closed at once, as uvicorn does."""
    with engine.gate(many) as gate:
        run_id = engine.start(http, engine.actor(http), ticking(gate), max_attempts=2)["id"]
        engine.wait_for_event(http, run_id, engine.says("tick"))
        before = set(children(many))
        clients = Clients(str(http.base_url), run_id, engine.actor(http))

        def replaced() -> bool:
            return "every process was replaced" in many.log.read_text()

        async with anyio.create_task_group() as tasks:
            for number in range(READERS):
                tasks.start_soon(clients.read, number)
            await clients.following.wait()
            async with anyio.create_task_group() as asking:
                for number in range(REQUESTERS):
                    asking.start_soon(clients.ask, number)
                    asking.start_soon(anyio.to_thread.run_sync, clients.ask_on_one_connection)
                asking.start_soon(clients.wait_for_news)
                many.process.send_signal(signal.SIGHUP)
                try:
                    with anyio.fail_after(ROLL_S):
                        while not replaced():  # noqa: ASYNC110 - nothing tells
                            await anyio.sleep(0.05)
                finally:
                    clients.stopping = True
            gate.touch()
        after = set(children(many))
    assert clients.failures == []
    assert set(clients.answers) == {200, 201}
    assert clients.answers.total() > 100
    assert clients.told_to_go >= REQUESTERS, "no kept connection was ended"
    assert clients.connections >= 2 * READERS, "no stream was cut"
    uncut = await anyio.to_thread.run_sync(engine.feed, http, run_id)
    assert all(lines == uncut for lines in clients.streams)
    assert not before & after
    assert sorted(name for name, _ in before) == sorted(name for name, _ in after)
    own = check_history(many, http, run_id)
    (lost,) = [event for event in own if event["type"] == "run.lost"]
    assert (lost["reason"], lost["next"]) == ("the worker was stopped", "retry")
    assert own[-1]["status"] == "succeeded"


def test_two_services_are_one_to_their_clients(many: Service, http: httpx.Client) -> None:
    """What one has done the other shows at once; a key is known to both; a stream that is cut on one and resumed on
    the other, again and again, equals the uncut one."""
    with running_service(many.database_url, many.data) as second, second.http as other, engine.gate(many) as gate:
        config_id = engine.actor(http)
        body = {"options": {"engine_args": [ticking(gate)]}}
        key = {"Idempotency-Key": "on any node"}
        run = engine.told(http.post(f"/configs/{config_id}/runs", json=body, headers=key))
        assert other.get(f"/runs/{run['id']}").json()["id"] == run["id"]
        assert other.get("/runs", params={"limit": 1}).json()["data"][0]["id"] == run["id"]
        again = other.post(f"/configs/{config_id}/runs", json=body, headers=key)
        assert (again.status_code, again.json()["id"]) == (201, run["id"])
        assert other.post(f"/configs/{config_id}/runs", json={}, headers=key).status_code == 422
        read: list[bytes] = []
        clients = cycle([(http, engine.NDJSON), (other, engine.SSE), (other, engine.NDJSON), (http, engine.SSE)])
        for n in count():
            client, accept = next(clients)
            after = orjson.loads(read[-1])["id"] if read else 0
            if n == CUTS:
                gate.touch()
            with engine.following(client, run["id"], after, accept) as response:
                text, found = b"", []
                for chunk in response.iter_raw(512):
                    text += chunk
                    whole = text.rpartition(b"\n")[0]
                    found = engine.sse_lines(text) if accept == engine.SSE else list(filter(None, whole.split(b"\n")))
                    if n < CUTS and len(found) >= 10:
                        break
                read += found
            if orjson.loads(read[-1])["type"] == "run.completed":
                break
        assert n >= CUTS
        assert read == engine.feed(http, run["id"]) == engine.feed(other, run["id"])
