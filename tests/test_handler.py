"""Decisions that rest on a state at hand: the newest one wins, and an answer that was lost changes nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import orjson
import pytest

from eventstore import Append, Appended, Appender, Leases, NewEvent, encode
from eventstore.appender import PATIENCE_S
from eventstore.errors import Unavailable
from projections import events
from projections.lifecycle import Phase
from projections.run import Run
from service import commands
from service.commands import build_completed, run_completed
from service.engine_account import EngineAccount
from service.files import Files
from service.handler import Handler
from service.jobs import Shop
from service.run_job import RunJob
from service.settings import Settings
from service.work.builder import MARKER, venv_python
from service.work.installer import VENV
from service.writer import Writer
from tests.conftest import Store
from tests.histories import WORKSPACE, build_created, build_started, run_created, run_started, tell

pytestmark = pytest.mark.anyio

PYPROJECT = '[project]\nname = "own"\nversion = "1"\n[tool.ade]\nengine = ""\ncommand = ["{python}"]\n'


class DeafAppender(Appender):
    """What it appends lands, and nobody hears of it; what is refused is heard."""

    async def append(self, append: Append, *, patience_s: float = PATIENCE_S) -> Appended:
        await super().append(append, patience_s=patience_s)
        raise Unavailable(reason="the answer was lost")


def handler_of(store: Store, appender: Appender, files: Files) -> Handler:
    return Handler(store.database, store.log, appender, files, Settings(), "3.11")


async def types(store: Store, stream: str) -> list[str]:
    return [event.type for event in await store.log.control_events(stream)]


async def unloadable(stream: str) -> Run:
    raise AssertionError(f"{stream} was loaded, though its newest state was at hand")


def complete(run: Run) -> Sequence[NewEvent]:
    """The end of a run that has begun, and was not asked to stop."""
    assert run.phase is Phase.WORKING
    if run.cancel_requested_at is not None:
        return [run_completed("canceled", "canceled").event()]
    return [run_completed("succeeded", "completed").event()]


async def test_a_state_that_is_the_newest_is_not_loaded_again(store: Store, tmp_path: Path) -> None:
    """The answer is the id of what was appended, from which the next state at hand is made."""
    handler = handler_of(store, store.appender, Files(tmp_path, tmp_path, tmp_path))
    await tell(store, "run_1", run_created())
    queued = await handler.run("run_1")
    landed = await handler.decide("run_1", unloadable, lambda _: [run_started()], known=queued)
    assert landed == 2
    working = replace(queued, phase=Phase.WORKING, control_id=landed)
    assert await handler.decide("run_1", unloadable, complete, known=working) == 3
    assert await types(store, "run_1") == ["run.created", "run.started", "run.completed"]


async def test_a_state_that_others_have_moved_is_loaded(store: Store, tmp_path: Path) -> None:
    """Somebody asked for a cancel meanwhile: the decision is made about that."""
    handler = handler_of(store, store.appender, Files(tmp_path, tmp_path, tmp_path))
    await tell(store, "run_1", run_created(), run_started())
    old = await handler.run("run_1")
    await handler.cancel_run("run_1", commands.Cancel("somebody"))
    assert await handler.decide("run_1", handler.run, complete, known=old) == 4
    assert (await handler.run("run_1")).stop_reason == "canceled"


async def test_where_there_is_nothing_to_say_nothing_is_answered(store: Store, tmp_path: Path) -> None:
    """Also where that was found out only after a conflict."""
    handler = handler_of(store, store.appender, Files(tmp_path, tmp_path, tmp_path))
    await tell(store, "run_1", run_created())
    old = await handler.run("run_1")
    await handler.cancel_run("run_1", commands.Cancel("somebody"))

    def start(run: Run) -> Sequence[NewEvent]:
        return [run_started()] if run.phase is Phase.QUEUED else []

    assert await handler.decide("run_1", handler.run, start, known=old) is None
    assert await types(store, "run_1") == ["run.created", "run.cancel_requested", "run.completed"]


async def test_a_build_beside_its_run_is_of_the_same_moment(store: Store, tmp_path: Path) -> None:
    """A run is as of an event, and so is its build; what the build says later is not in it."""
    handler = handler_of(store, store.appender, Files(tmp_path, tmp_path, tmp_path))
    await tell(store, "build_1", build_created())
    await tell(store, "run_1", run_created("build_1"), events.RunWaiting(for_="build", build_id="build_1").event())
    before = await tell(store, "build_1", build_started())
    await tell(store, "build_1", build_completed("active", "completed").event())
    run, build = await handler.run_and_build("run_1", upto=before.last_id)
    assert build is not None
    assert (run.waiting_for, build.status) == ("build", "building")
    run, build = await handler.run_and_build("run_1")
    assert build is not None
    assert (run.waiting_for, build.status, run.control_id) == ("worker", "active", 3)
    await tell(store, "run_2", run_created())
    assert (await handler.run_and_build("run_2"))[1] is None


async def test_a_run_goes_on_though_the_answers_were_lost(store: Store, tmp_path: Path) -> None:
    """Its start landed and nobody heard of it: it is not begun twice, and not taken for canceled."""
    here = Settings()
    files = Files(tmp_path / "data", tmp_path / "venvs", tmp_path / "runs")
    files.make()
    await tell(store, "build_1", build_created(), build_started(), build_completed("active", "completed").event())
    created = run_created("build_1")
    asked = {**orjson.loads(created.data), "options": {"dry_run": True}}
    await tell(store, "run_1", replace(created, data=encode(asked)))
    files.config("d1").mkdir()
    (files.config("d1") / "pyproject.toml").write_text(PYPROJECT)
    folder = files.build(WORKSPACE, "config_1", "build_1")
    venv_python(folder).parent.mkdir(parents=True)
    venv_python(folder).touch()
    (folder / VENV / MARKER).touch()
    lease = await Leases(store.database, "w", 30).take("run_1")
    assert lease is not None
    async with anyio.create_task_group() as tasks:
        appender = DeafAppender(store.database)
        await tasks.start(appender.run)
        handler = handler_of(store, appender, files)
        write = Writer(appender, handler, lease, "run")
        await RunJob("run_1", write, Shop("w", handler, files, here, EngineAccount(None))).run()
        tasks.cancel_scope.cancel()
    assert await types(store, "run_1") == ["run.created", "run.started", "run.completed"]
    assert (await handler.run("run_1")).summary == "Dry run"
