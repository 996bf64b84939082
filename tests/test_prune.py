"""`ade builds prune`: which venvs go, what stays of them, and that nobody loses one that is in use."""

import shutil
import subprocess
import sys
from dataclasses import replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest

from eventstore.clock import ulid
from service.pruning import Policy, Verdict, judge
from service.work.builder import discard, usable
from tests import engine
from tests.conftest import ROOT, Service
from tests.test_builder import PACKAGES, Bench, bench, cache_dir

__all__ = ["bench", "cache_dir"]

# Who is judged how

OLD = {"config_id": "c", "status": "active", "current": False, "needed": False, "unused_s": 10.0 * 24 * 3600}


def judged(*rows: dict[str, Any], keep: int = 0, half: str = "") -> list[tuple[str, str]]:
    """The verdicts about builds 1, 2, … from the newest; `half` is one whose venv is not whole."""
    named = [{**OLD, **row, "id": str(number)} for number, row in enumerate(rows, 1)]
    verdicts = judge(named, {row["id"]: row["id"] != half for row in named}, Policy(keep, 7))
    return [(verdict.action, verdict.why) for verdict in verdicts]


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"status": "queued"}, "it is queued"),
        ({"status": "building"}, "it is building"),
        ({"needed": True}, "a run needs it"),
        ({"current": True}, "new runs use it"),
        ({"unused_s": 6.95 * 24 * 3600}, "it was used 7.0 days ago"),
        ({}, None),
        ({"status": "failed", "current": False}, None),
        ({"status": "canceled", "unused_s": 0.0}, None),
    ],
)
def test_what_is_in_use_or_recent_is_kept(row: dict[str, Any], kept: str | None) -> None:
    [(action, why)] = judged(row)
    assert (action, why) == ("keep", kept) if kept else action == "remove"


def test_the_newest_of_each_config_are_kept_beside_the_one_that_new_runs_use() -> None:
    rows: tuple[dict[str, Any], ...] = ({"current": True}, {}, {"config_id": "other"}, {}, {})
    assert [action for action, _ in judged(*rows, keep=2)] == ["keep", "keep", "keep", "keep", "remove"]
    assert [action for action, _ in judged(*rows, keep=0)] == ["keep", "remove", "remove", "remove", "remove"]


def test_what_is_not_whole_goes_however_recent_but_not_under_a_run() -> None:
    """A venv without its marker is of no use to anybody, and does not count among the newest. But an engine may be
    running in one whose Python went away."""
    assert judged({"unused_s": 0.0}, {}, half="1", keep=1) == [
        ("remove", "it is not whole"),
        ("keep", "it is among the 1 newest of its config"),
    ]
    assert judged({"current": True}, half="1") == [("remove", "it is not whole")]
    assert judged({"needed": True}, half="1") == [("keep", "a run needs it")]


# The removal


async def nobody() -> bool:
    return False


@pytest.mark.anyio
async def test_the_record_stays_and_the_venv_can_be_made_again(bench: Bench) -> None:
    """A run that begins while the venv is going waits, and makes it again: it never sees half a venv."""
    plan = bench.plan(PACKAGES / "greeter")
    built = await bench.build(plan)
    asked, answer = anyio.Event(), anyio.Event()

    async def asking() -> bool:
        assert not usable(plan.folder)  # whoever begins now, does not begin with it
        asked.set()
        await answer.wait()
        return False

    async def hydrate() -> None:
        assert await bench.hydrate(plan) == built

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(discard, plan.folder, asking)
        await asked.wait()
        bench.facts.clear()
        tasks.start_soon(hydrate)
        await anyio.wait_all_tasks_blocked()
        assert bench.facts == []
        answer.set()
    assert usable(plan.folder)
    assert bench.facts != []


@pytest.mark.anyio
async def test_a_venv_that_somebody_needs_is_as_it_was(bench: Bench) -> None:
    """Needed by now; or it cannot be asked, because the database is away."""

    async def needed() -> bool:
        return True

    async def away() -> bool:
        raise ConnectionError

    plan = bench.plan(PACKAGES / "greeter")
    await bench.build(plan)
    before = sorted(plan.folder.rglob("*"))
    assert not await discard(plan.folder, needed)
    with pytest.raises(ConnectionError):
        await discard(plan.folder, away)
    assert sorted(plan.folder.rglob("*")) == before
    assert usable(plan.folder)


@pytest.mark.anyio
@pytest.mark.parametrize("whole", [False, True])
async def test_where_somebody_works_nothing_is_touched(tmp_path: Path, whole: bool) -> None:
    """A build or a hydration holds the lock; a prune neither waits for it nor goes on without it."""
    folder = tmp_path / "build_1"
    (folder / ".venv").mkdir(parents=True)
    with (tmp_path / "build_1.lock").open("wb") as lock:
        flock(lock, LOCK_EX)
        assert not await discard(folder, nobody, whole=whole)
        assert (folder / ".venv").is_dir()
    assert await discard(folder, nobody, whole=whole)
    assert folder.exists() != whole
    assert not (folder / ".venv").exists()


# The command


def prune(service: Service, *arguments: str) -> dict[str, Verdict]:
    """The verdicts of a prune, by build."""
    command = [sys.executable, "-m", "service.cli", "builds", "prune", "--json", *arguments]
    done = subprocess.run(command, env=service.env, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    document = orjson.loads(done.stdout)
    assert document["dry_run"] == ("--dry-run" in arguments)
    return {build["build_id"]: Verdict(**build) for build in document["builds"]}


def test_pruned_venvs_are_made_again_by_who_needs_them(service: Service, http: httpx.Client) -> None:
    """Version 1 is pruned when version 2 is there, but not while a run is in it; it comes back by its lock."""
    name, stamp = "pruned", ulid()
    with engine.gate(service) as gate:
        script = f"import pathlib, time\nprint('{stamp}', flush=True)\n"
        one = engine.package(name, f"{script}while not pathlib.Path({str(gate)!r}).exists(): time.sleep(.01)")
        config = engine.register(http, one)["id"]
        run = engine.start(http, config)
        engine.wait_for_event(http, run["id"], engine.says(stamp))
        engine.register(http, engine.package(name, f"print('{ulid()}')"))
        new = engine.build(http, config)["id"]
        old = run["build_id"]
        verdicts = prune(service, "--keep", "0", "--older-than", "0")
        assert (verdicts[old].why, verdicts[new].why) == ("a run needs it", "new runs use it")
    engine.feed(http, run["id"])
    folder = service.data / "venvs" / engine.WORKSPACE / config / old
    assert prune(service)[old].why == "it is among the 1 newest of its config"
    assert prune(service, "--keep", "0")[old].why == "it was used 0.0 days ago"
    would = prune(service, "--keep", "0", "--older-than", "0", "--dry-run")[old]
    assert (would.action, usable(folder)) == ("remove", True)
    assert would.bytes > 0
    assert prune(service, "--keep", "0", "--older-than", "0")[old] == would
    left = {path.name for path in folder.iterdir()}
    assert {"pylock.toml", "wheels"} <= left
    assert ".venv" not in left
    assert old not in prune(service, "--keep", "0", "--older-than", "0")  # there is nothing of it to judge

    assert engine.register(http, one)["version"] == 3
    again = engine.run(http, config)[0]
    assert (again["status"], again["build_id"], usable(folder)) == ("succeeded", old, True)
    verdicts = prune(
        service, "--keep", "0", "--older-than", "0"
    )  # a build of version 1, and of what version 3 contains
    assert (verdicts[old].why, verdicts[new].action) == ("new runs use it", "remove")


def test_leftovers_go_and_what_nobody_knows_stays(service: Service, http: httpx.Client) -> None:
    """Of a build that failed everything goes; of an active one the venv without a marker; of others nothing."""
    config = engine.register(http, engine.package("unprunable", requires='["./nowhere"]'))["id"]
    failed = engine.told(
        http.post(f"/workspaces/{engine.WORKSPACE}/configs/{config}/builds", json={"options": {"wait": True}})
    )["id"]
    engine.feed(http, failed)
    venvs = service.data / "venvs" / engine.WORKSPACE
    (venvs / config / failed / ".venv" / "lib").mkdir(parents=True)
    stranger = venvs / config / f"build_{ulid()}"
    (stranger / ".venv").mkdir(parents=True)
    active = engine.build(http, engine.actor(http))
    half = venvs / active["config_id"] / active["id"] / ".venv"
    (half / "ade_build.json").unlink()
    verdicts = prune(service)
    assert verdicts[failed] == replace(verdicts[failed], action="remove", why="the build failed", whole=True)
    assert not (venvs / config / failed).exists()
    assert verdicts[stranger.name].why == "no build of this log explains it"
    assert (stranger / ".venv").is_dir()
    assert (verdicts[active["id"]].why, half.exists()) == ("it is not whole", False)
    assert engine.run(http, active["config_id"], "print('hello')")[0]["status"] == "succeeded"
    shutil.rmtree(stranger)


def test_people_are_told_what_went(service: Service) -> None:
    command = [sys.executable, "-m", "service.cli", "builds", "prune", "--dry-run"]
    said = subprocess.run(command, env=service.env, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    assert "  kept: new runs use it\n" in said
    assert said.splitlines()[-1].startswith("0 to be removed, 0 B; ")
