"""The whole service, killed part by part in a loop, while runs run and clients read; then the history is judged.

Seed and length: see ``tests/faults.py``.
"""

import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import anyio
import anyio.to_thread
import httpx
import orjson
import psycopg
import pytest

from eventstore import Database
from service.files import Files
from service.settings import Settings
from tests import checker, engine
from tests.checker import History, Reading
from tests.conftest import Service, reachable_folder, running_service
from tests.faults import PATIENCE_S, SEED, OwnServer, own_server, strike
from tests.test_serve import kill

pytestmark = pytest.mark.anyio

RUNNERS, READERS = 3, 6
LINES = 150
SCRIPT = "for n in range({lines}): print('{mark}', n); time.sleep(.003)"
GROWTH = 40
"""Lines that must be read after each fault."""
SETTINGS = {"ADE_LEASE_SECONDS": "2", "ADE_CANCEL_GRACE_SECONDS": "1"}
AWAY = (429, 500, 502, 503, 504)


@pytest.fixture
def fragile() -> Iterator[tuple[Service, OwnServer]]:
    """A service on a PostgreSQL of its own."""
    with ExitStack() as ending:
        folder = ending.enter_context(reachable_folder())
        server = ending.enter_context(own_server(folder / "postgres"))
        data = folder / "data"
        data.mkdir()
        data.chmod(0o755)
        yield ending.enter_context(running_service(server.url, data, **SETTINGS)), server


@dataclass
class Started:
    """A run that a client asked for, under an idempotency key, until it was told its id."""

    mark: str
    run_id: str


@dataclass
class Clients:
    """Those who start runs and read them to their end, and those who read parts of them in every form."""

    http: httpx.AsyncClient
    config_id: str
    chance: random.Random
    started: list[Started] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    stopping: bool = False

    @property
    def lines(self) -> int:
        return sum(len(reading.lines) for reading in self.readings)

    async def run_on(self, name: int) -> None:
        """Run after run, each read to its end."""
        for n in count():
            if self.stopping:
                return
            mark = f"m{name}x{n}"
            run_id = await self.start(mark)
            self.started.append(Started(mark, run_id))
            form = self.chance.choice(sorted(FORMS))
            reading = Reading(form, run_id, 0)
            self.readings.append(reading)
            await self.read(reading, form, pieces=None)

    async def start(self, mark: str) -> str:
        """A run, asked for until there is an answer."""
        body = {"options": {"engine_args": [SCRIPT.format(lines=LINES, mark=mark)]}}
        while True:
            try:
                answer = await self.http.post(
                    f"/configs/{self.config_id}/runs", json=body, headers={"Idempotency-Key": mark}
                )
                if answer.status_code not in AWAY:
                    return str(engine.told(answer)["id"])
            except httpx.TransportError:
                pass  # asked again, as any client does
            await anyio.sleep(0.1)

    async def read_on(self) -> None:
        """Parts of feeds, from cursors anywhere."""
        while True:
            if not self.started:
                await anyio.sleep(0.05)
                continue
            run_id = self.chance.choice(self.started[-4:]).run_id
            known = [orjson.loads(r.lines[-1])["id"] for r in self.readings if r.stream == run_id and r.lines]
            after = self.chance.choice([0, self.chance.randint(0, max(known, default=0))])
            form = self.chance.choice(sorted(FORMS))
            reading = Reading(form, run_id, after)
            self.readings.append(reading)
            await self.read(reading, form, pieces=self.chance.randint(1, 4))

    async def read(self, reading: Reading, form: str, pieces: int | None) -> None:
        """So many connections, each cut somewhere and resumed by the next; None: to the end of the feed."""
        path = f"/runs/{reading.stream}/events"
        for _ in count() if pieces is None else range(pieces):
            after = orjson.loads(reading.lines[-1])["id"] if reading.lines else reading.after
            try:
                async with aclosing(FORMS[form](self, path, after)) as found:
                    async for lines in found:
                        reading.lines += lines
                        last = orjson.loads(reading.lines[-1]) if reading.lines else {}
                        if last.get("type") == "run.completed":
                            reading.complete = True
                            return
                        if self.chance.random() < 0.1:
                            break
            except (httpx.TransportError, Away):
                await anyio.sleep(0.05)

    async def ndjson(self, path: str, after: int) -> AsyncGenerator[list[bytes], None]:
        params: dict[str, str | int] = {"stream": "true", "after_id": after}
        torn = b""
        async with self.http.stream("GET", path, params=params, headers={"Accept": engine.NDJSON}) as response:
            check(response)
            async for chunk in response.aiter_raw():
                *lines, torn = (torn + chunk).split(b"\n")
                yield [line for line in lines if line]

    async def sse(self, path: str, after: int) -> AsyncGenerator[list[bytes], None]:
        """What an EventSource has dispatched, whenever something came."""
        text, told = b"", 0
        headers = {"Accept": engine.SSE, "Last-Event-ID": str(after)}
        async with self.http.stream("GET", path, headers=headers) as response:
            check(response)
            async for chunk in response.aiter_raw():
                text += chunk
                lines = engine.sse_lines(text)
                yield lines[told:]
                told = len(lines)

    async def pages(self, path: str, after: int) -> AsyncGenerator[list[bytes], None]:
        while True:
            params = {"after_id": after, "limit": self.chance.choice([1, 20, 1000]), "wait": 1}
            answer = await self.http.get(path, params=params)
            check(answer)
            page = engine.told(answer)
            after = page["next_after_id"]
            yield [orjson.dumps(event) for event in page["data"]]


FORMS = {"ndjson": Clients.ndjson, "sse": Clients.sse, "pages": Clients.pages}


class Away(Exception):
    """The service says that it cannot answer now."""


def check(response: httpx.Response) -> None:
    if response.status_code in AWAY:
        raise Away
    assert response.status_code in (200, 204), response  # 204: an EventSource need not come back


async def test_whatever_of_the_service_is_killed_the_history_holds(fragile: tuple[Service, OwnServer]) -> None:
    """API, worker, projector, backends and PostgreSQL; afterwards every run has ended, and all agree about all."""
    service, server = fragile
    chance = random.Random(SEED)
    with service.http as http:
        config_id = engine.actor(http)
        await anyio.to_thread.run_sync(engine.build, http, config_id)
    faults: dict[str, Callable[[], object]] = {
        **server.faults(chance),
        **{f"the {name} is killed": partial(kill, service, name) for name in ("api", "worker", "projector")},
    }
    async with httpx.AsyncClient(base_url=f"{service.url}/api/v1", timeout=60) as asynchronous:
        clients = Clients(asynchronous, config_id, random.Random(SEED))

        async def grow() -> None:
            wanted = clients.lines + GROWTH
            while clients.lines < wanted:  # noqa: ASYNC110 - nothing tells
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as reading:
            for _ in range(READERS):
                reading.start_soon(clients.read_on)
            with anyio.fail_after(PATIENCE_S * 10):
                async with anyio.create_task_group() as running:
                    for name in range(RUNNERS):
                        running.start_soon(clients.run_on, name)
                    struck = await strike(faults, chance, grow)
                    clients.stopping = True
            reading.cancel_scope.cancel()
    await anyio.to_thread.run_sync(engine.eventually, lambda: is_caught_up(server), "everything is caught up")
    async with Database(server.url) as database:
        history = await History.read(database)
        chained = await checker.chain(database)
    files = Files.of(Settings(data_dir=service.data))
    findings = checker.first(
        checker.numbering(history),
        checker.endings(history),
        checker.readings(history, clients.readings),
        checker.files(history, files.logfile),
        checker.tables(history, server.url),
        runs(history, clients.started),
        chained,
    )
    assert findings == [], f"seed {SEED}, after {dict(struck)}"
    ends = Counter(orjson.loads(own[-1].data)["stop_reason"] for name, own in history.by_stream.items() if is_run(name))
    assert ends["completed"] > 0
    assert ends["worker_lost"] > 0
    assert {reading.name for reading in clients.readings if reading.complete} == FORMS.keys()
    assert "Traceback" not in service.log.read_text()


def is_run(stream: str) -> bool:
    return stream.startswith("run_")


def is_caught_up(server: OwnServer) -> bool:
    with psycopg.connect(server.url) as connection:
        behind = "SELECT count(*) FROM checkpoints WHERE id = (SELECT max(id) FROM events)"
        return connection.execute(behind).fetchone() == (3,)


def runs(history: History, started: list[Started]) -> Iterator[str]:
    """Each run that was asked for is there once, has ended, and shows its lines from the first on without a hole."""
    asked = {one.run_id: one.mark for one in started}
    found = {stream for stream in history.by_stream if is_run(stream)}
    if found != asked.keys() or len(asked) != len(started):
        yield f"{len(started)} runs were started, {len(found)} are there"
    for stream in found & asked.keys():
        own = [(event.type, orjson.loads(event.data)) for event in history.by_stream[stream]]
        last, data = own[-1]
        if last != "run.completed":
            yield f"{stream} has not ended: {last}"
            continue
        said = [told["message"] for type_, told in own if type_ == "run.log" and told["stream"] == "stdout"]
        whole = [f"{asked[stream]} {n}" for n in range(LINES)]
        gap = any(type_ == "run.log_gap" for type_, _ in own)
        if said != whole[: len(said)] and not gap:
            yield f"{stream} says {said[:3]}… with a hole"
        if data["status"] == "succeeded" and said != whole and not gap:
            yield f"{stream} succeeded with {len(said)} lines"
