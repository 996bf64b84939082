"""How a worker's lines become events: the payloads, and the time of those that had to wait."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from eventstore import Append, Appended, Appender, Database, Lease, Leases, encode
from eventstore.clock import now
from service import writer
from service.files import Files
from service.handler import Handler
from service.settings import Settings
from service.work.lines import Line, Telemetry
from service.writer import Writer
from tests.conftest import Store
from tests.histories import run_created, run_started, tell

pytestmark = pytest.mark.anyio

SOCKET = ".s.PGSQL.5432"
PATIENCE_S = 60

LINES = st.builds(
    Line,
    st.sampled_from(["stdout", "stderr"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.text('a"\\\u2028\x85\x1fé'),
    part=st.none() | st.integers(1, 9),
    truncated=st.none() | st.integers(1, 9),
    overwritten=st.none() | st.integers(1, 9),
)


class WatchedAppender(Appender):
    """Tells when a second append was asked for."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.asked = 0
        self.again = anyio.Event()

    async def append(self, append: Append, *, patience_s: float = 0) -> Appended:
        self.asked += 1
        if self.asked == 2:
            self.again.set()
        return await super().append(append, patience_s=patience_s)


def writer_of(store: Store, appender: Appender, lease: Lease) -> Writer:
    here = Settings()
    handler = Handler(store.database, store.log, store.appender, Files.of(here), here, "3.11")
    return Writer(appender, handler, lease, "run")


@asynccontextmanager
async def at_work(store: Store) -> AsyncIterator[Lease]:
    await tell(store, "run_1", run_created(), run_started())
    lease = await Leases(store.database, "worker", 30).take("run_1")
    assert lease is not None
    yield lease


async def told(store: Store) -> list[dict[str, Any]]:
    return [orjson.loads(one.line) for one in (await store.log.read(0))[2:]]


@settings(deadline=None)
@given(st.lists(LINES, max_size=6), st.sampled_from([{}, {"step": "é"}, {"emitted_at": "x", "step": "b"}]))
def test_a_payload_is_what_the_event_has(found: list[Line], members: dict[str, str]) -> None:
    """Its members in their order, without those that are not there; the quick way is the plain one."""
    plain = [{**{n: v for n, v in line._asdict().items() if v is not None}, **members} for line in found]
    nowhere = Database("")
    made = Writer(Appender(nowhere), None, Lease("run_1", "me", 1), "run")._events(found, members)  # type: ignore[arg-type]
    assert [event.data for event in made] == [encode(line) for line in plain]
    assert {(event.type, event.bulk) for event in made} <= {("run.log", True)}


async def test_lines_that_waited_say_when_they_were_read(store: Store) -> None:
    """Those that are read anew do not, and telemetry has times of its own."""
    async with at_work(store) as lease:
        write = writer_of(store, store.appender, lease)
        read_at = now() - 2 * writer.LATE_S
        await write.lines([Line("stdout", "a"), Telemetry("stdout", "engine.a", {})], read_at=read_at)
        await write.lines([Line("stdout", "b")])
    late, telemetry, prompt = await told(store)
    assert datetime.fromisoformat(late["emitted_at"]).timestamp() == pytest.approx(read_at, abs=1e-5)
    assert late["emitted_at"].endswith("Z")
    assert datetime.fromisoformat(late["created_at"]).timestamp() - read_at > writer.LATE_S
    assert not {"emitted_at"} & (telemetry.keys() | prompt.keys())


async def test_lines_wait_for_a_database_that_is_away(
    store: Store, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are appended once, in order, and say when they were read."""
    monkeypatch.setattr(writer, "LATE_S", 0.05)
    begun = now()
    away = Database(make_conninfo(url, host=str(tmp_path)))
    async with at_work(store) as lease, away, anyio.create_task_group() as tasks:
        appender = WatchedAppender(away)
        await tasks.start(appender.run)
        write = writer_of(store, appender, lease)
        tasks.start_soon(write.lines, [Line("stdout", "a"), Line("stderr", "b")])
        with anyio.fail_after(PATIENCE_S):
            await appender.again.wait()
        (tmp_path / SOCKET).symlink_to(Path(str(conninfo_to_dict(url)["host"])) / SOCKET)
        await write.lines([Line("stdout", "c")])
        tasks.cancel_scope.cancel()
    lines = await told(store)
    assert [line["message"] for line in lines] == ["a", "b", "c"]
    assert all(begun <= datetime.fromisoformat(line["emitted_at"]).timestamp() < now() for line in lines[:2])
