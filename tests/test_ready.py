"""`/ready`: every reason against sending requests here, and none where all is well."""

import dataclasses
import time

import anyio
import psycopg
import pytest

from eventstore import Database
from eventstore.errors import Unavailable
from eventstore.tail import LOG, Hints
from service.api import system
from service.api.deployment import Deployment
from service.api.gate import Gate
from service.exposition import Exposition
from service.files import Files
from service.handler import Handler
from service.hub import Hub
from service.settings import Settings
from tests.conftest import Store
from tests.histories import rows, run_created, tell, until_blocked

pytestmark = pytest.mark.anyio


@pytest.fixture
async def deployment(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """What an API process serves with, on a log with an event; its hub has just looked, its projector is not there."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    await tell(store, "run_1", run_created())
    for projection in ("run_logs", "build_logs"):
        await store.database.rows("checkpoint", projection=projection, id=1)
    files = Files.of(settings)
    handler = Handler(store.database, store.log, store.appender, files, settings, "3.11")
    hub, log_id = Hub(store.log, Hints(store.database, LOG)), (await store.log.identity()).log_id
    exposition, gate = Exposition("api", None), Gate(store.database, None)
    return Deployment(settings, store.database, store.log, log_id, handler, hub, files, exposition, gate)


async def reasons(deployment: Deployment) -> list[str]:
    found, _ = await system._reasons(deployment)
    return found


async def test_without_a_reason_it_is_ready(deployment: Deployment) -> None:
    """And a receiver of traces that is away is none: its spans wait, and nothing else does."""
    await deployment.database.rows("checkpoint", projection="traces", id=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "LAG_EVENTS", 0)
        assert await reasons(deployment) == []


async def test_a_database_that_is_away(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Is told in time, and the other reasons are looked for all the same. Seen to fail when the pool's own patience of
    twice 10 s was waited for."""
    nowhere = f"postgresql://ade@/ade?host={tmp_path_factory.mktemp('nowhere')}"
    async with Database(nowhere) as away:
        deployment.hub.draining = True
        with anyio.fail_after(system.DATABASE_TIMEOUT_S + 2):
            said = await reasons(dataclasses.replace(deployment, database=away))
    assert said == ["the database has not answered for 2 seconds", "the server is stopping"]


@pytest.mark.parametrize("anybody", [True, False])
async def test_why_the_database_is_away_is_not_for_everybody(anybody: bool, caplog: pytest.LogCaptureFixture) -> None:
    """With keys on, `/ready` needs none: the host and the account that the driver names stand in the log only."""
    said = system.unreachable(Unavailable(reason="host db-1, user ade"), anybody=anybody)
    assert ("db-1" in said) is anybody
    assert "db-1" in caplog.text


async def test_migrations_that_are_pending(deployment: Deployment) -> None:
    """By name, with what to do."""
    undo = "DELETE FROM schema_migrations WHERE name = '0003_seals' RETURNING name, digest"
    [undone] = rows(deployment.database.url, undo)
    try:
        assert await reasons(deployment) == ["migrations are pending: 0003_seals; run `ade db migrate`"]
    finally:
        put_back = "INSERT INTO schema_migrations (name, digest) VALUES (%s, %s)"
        rows(deployment.database.url, put_back, undone["name"], undone["digest"])


async def test_a_projector_that_is_behind(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how far; so are seals that nobody makes."""
    rows(deployment.database.url, "UPDATE checkpoints SET id = 0 WHERE projection = 'run_logs'")
    monkeypatch.setattr(system, "LAG_EVENTS", 0)
    monkeypatch.setattr(system, "UNSEALED_S", 0.0)
    late, behind = await reasons(deployment)
    assert late.startswith("1 events are not sealed")
    assert behind == "the projector is 1 events behind"


async def test_a_tail_that_has_stopped_looking(deployment: Deployment) -> None:
    """It is dead, or hangs: viewers would wait for ever."""
    deployment.hub._feeds.heartbeat = time.monotonic() - system.HEARTBEAT_S - 1
    assert await reasons(deployment) == ["the tail of the log has stopped looking"]


async def test_a_tail_asks_though_nobody_watches(deployment: Deployment) -> None:
    """Else its heartbeat, and `/health` with it, would be fine without a database. Seen to fail when it only asked
    about what was watched."""
    url = deployment.database.url
    async with await psycopg.AsyncConnection.connect(url) as holder, anyio.create_task_group() as tasks:
        await tasks.start(deployment.hub.run)
        await holder.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        await until_blocked(url, "%read_feeds%")
        tasks.cancel_scope.cancel()


async def test_a_disk_without_room(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """With how much is left."""
    monkeypatch.setattr(system, "DISK_FREE_BYTES", 2**62)
    [full] = await reasons(deployment)
    assert full.startswith("the disk has ")
