"""Builds over HTTP, with the real uv: which build answers a request, how builds fail, and what runs make of them."""

import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import pytest

from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")

FIELDS = {
    *("id", "object", "workspace_id", "config_id", "status", "created", "started", "finished", "created_at"),
    *("started_at", "finished_at", "exit_code", "summary", "error_message", "stop_reason", "attempt"),
    *("cancel_requested_at", "last_event_id"),
}
BUSY = "/problems/build-in-progress"
ASKED: Mapping[str, Mapping[str, bool]] = {
    "neither": {},
    "wait": {"wait": True},
    "force": {"force": True},
    "both": {"wait": True, "force": True},
}


def ask(http: httpx.Client, config_id: str, **options: bool) -> httpx.Response:
    return http.post(f"/workspaces/{engine.WORKSPACE}/configs/{config_id}/builds", json={"options": options})


def builds_of(http: httpx.Client, config_id: str) -> list[engine.Json]:
    """All builds of a config, newest first."""
    found: list[engine.Json] = engine.told(http.get("/builds", params={"config_id": config_id}))["data"]
    return found


def slow(name: str, gate: Path, said: str = "importing") -> dict[str, str | bytes]:
    """A package whose import, and so whose build, waits for a gate."""
    files = engine.package(name, "print('hello')")
    files[f"{name}/__init__.py"] = (
        f"import time; from pathlib import Path\nprint({said!r}, flush=True)\n"
        f"while not Path({str(gate)!r}).exists(): time.sleep(.005)"
    )
    return files


@contextmanager
def building(service: Service, http: httpx.Client, name: str) -> Iterator[tuple[str, str, Path]]:
    """A config whose build is being made until the gate opens: config id, build id, gate."""
    with engine.gate(service) as gate:
        config_id = engine.register(http, slow(name, gate))["id"]
        build_id = engine.told(ask(http, config_id))["id"]
        engine.wait_for_event(http, build_id, engine.says("importing"))
        yield config_id, build_id, gate
    engine.feed(http, build_id)


# Which build answers: the table of docs/http.md, cell by cell


def test_one_that_is_queued_answers_whoever_waits_or_forces(service: Service, http: httpx.Client) -> None:
    """Neither: 409 with its id. Wait, force, both: 200, that one. No event comes of it."""
    with engine.occupied(service, http):
        config_id = engine.register(http, engine.package("queued"))["id"]
        build_id = engine.told(ask(http, config_id))["id"]
        head = engine.told(http.get("/events/head"))
        answers = {asked: ask(http, config_id, **options) for asked, options in ASKED.items()}
        assert engine.told(http.get("/events/head")) == head
        engine.told(http.post(f"/builds/{build_id}/cancel"))
    statuses = {asked: answer.status_code for asked, answer in answers.items()}
    assert statuses == {"neither": 409, "wait": 200, "force": 200, "both": 200}
    assert (answers["neither"].json()["type"], answers["neither"].json()["build_id"]) == (BUSY, build_id)
    for asked in ("wait", "force", "both"):
        assert (answers[asked].json()["id"], answers[asked].json()["status"]) == (build_id, "queued")
        assert answers[asked].headers["Location"] == f"/api/v1/builds/{build_id}"


def test_one_that_is_being_made_answers_whoever_waits(service: Service, http: httpx.Client) -> None:
    """Wait: 200, that one. Neither, force, both: 409 with its id."""
    with building(service, http, "in_the_making") as (config_id, build_id, _):
        answers = {asked: ask(http, config_id, **options) for asked, options in ASKED.items()}
        assert len(builds_of(http, config_id)) == 1
    statuses = {asked: answer.status_code for asked, answer in answers.items()}
    assert statuses == {"neither": 409, "wait": 200, "force": 409, "both": 409}
    assert (answers["wait"].json()["id"], answers["wait"].json()["status"]) == (build_id, "building")
    for asked in ("neither", "force", "both"):
        assert (answers[asked].json()["type"], answers[asked].json()["build_id"]) == (BUSY, build_id)


def test_an_active_one_answers_all_but_force(service: Service, http: httpx.Client) -> None:
    """Neither, wait: 200 and no event, also while a forced one is in progress. Force, both: 201, a new one."""
    config_id = engine.actor(http)
    active = engine.build(http, config_id)
    head = engine.told(http.get("/events/head"))
    for asked in ("neither", "wait"):
        answer = ask(http, config_id, **ASKED[asked])
        assert (answer.status_code, engine.told(answer)) == (200, active)
    assert engine.told(http.get("/events/head")) == head
    with engine.occupied(service, http):
        for asked in ("force", "both"):
            forced = ask(http, config_id, **ASKED[asked])
            assert (forced.status_code, forced.json()["reason"]) == (201, "forced")
            assert ask(http, config_id).json()["id"] == active["id"]
            engine.told(http.post(f"/builds/{forced.json()['id']}/cancel"))


def test_where_there_is_none_a_new_one_answers(service: Service, http: httpx.Client) -> None:
    """201 and the build as it was created, whatever was asked; a canceled one is as none."""
    with engine.occupied(service, http):
        for asked, options in ASKED.items():
            config_id = engine.register(http, engine.package("new"), name=f"new-{asked}")["id"]
            for _ in range(2):
                answer = ask(http, config_id, **options)
                build = engine.told(answer)
                assert answer.status_code == 201
                assert build.keys() >= FIELDS
                assert (build["object"], build["status"], build["config_id"]) == ("ade.build", "queued", config_id)
                assert build["reason"] == ("forced" if "force" in options else "missing")
                assert engine.told(http.get(answer.headers["Location"].removeprefix("/api/v1"))) == build
                engine.told(http.post(f"/builds/{build['id']}/cancel"))


def test_the_stream_is_of_whichever_build_it_is(service: Service, http: httpx.Client) -> None:
    """`stream: true` implies wait: new, in progress or active, the lines are those of its feed, from the first on."""
    with building(service, http, "streamed") as (config_id, build_id, gate):
        path = f"/workspaces/{engine.WORKSPACE}/configurations/{config_id}/builds"
        streams = []
        for _ in ("in progress", "active"):
            with http.stream("POST", path, json={"stream": True}) as response:
                gate.touch()
                streams.append([line for line in engine.whole_lines(response) if line])
    assert streams == [engine.feed(http, build_id)] * 2
    types = [orjson.loads(line)["type"] for line in streams[0]]
    assert (types[0], types[-1]) == ("build.created", "build.completed")


def test_no_engine_and_other_workspaces_are_refused(http: httpx.Client) -> None:
    """A config without [tool.ade], while no ADE_ENGINE_SPEC is set: 422. A config of another workspace: 404."""
    files = {"pyproject.toml": f'{engine.HEAD}name = "bare"\n', "bare/__init__.py": ""}
    config_id = engine.register(http, files)["id"]
    for path in (f"/workspaces/{engine.WORKSPACE}/configs/{config_id}/builds", f"/configs/{config_id}/runs"):
        answer = http.post(path, json={"options": {"validate_only": True}} if "runs" in path else {})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/no-engine")
    assert http.post(f"/workspaces/elsewhere/configs/{engine.actor(http)}/builds").status_code == 404
    assert builds_of(http, config_id) == []


# How a build fails


FAILING = {
    "requirement": ({"requires": '["nothing @ file:///nowhere/nothing-1.0-py3-none-any.whl"]'}, "", "nothing"),
    "import": ({}, "import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "syntax": ({}, "def broken(:", "SyntaxError"),
    "raise": ({}, 'raise RuntimeError("with \\"quotes\\" \\\\ and\\nlines")', 'RuntimeError: with "quotes" \\ and'),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_failing_build_says_why_and_fails_its_run(http: httpx.Client, kind: str) -> None:
    """`failed` with the reason in error_message; the run bound to it is `failed`, `build_failed`, and says the same."""
    given, init, reason = FAILING[kind]
    files = engine.package(f"failing_{kind}", **given)
    files[f"failing_{kind}/__init__.py"] = init
    config_id = engine.register(http, files)["id"]
    run, events = engine.run(http, config_id)
    (build,) = builds_of(http, config_id)
    assert (build["status"], build["stop_reason"]) == ("failed", "failed")
    assert reason in build["error_message"]
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("failed", "build_failed", None)
    assert reason in run["error_message"]
    assert [event["status"] for event in events if event["type"] == "build.step"][-1] == "failed"
    assert engine.told(http.get(f"/configs/{config_id}"))["active_build_id"] is None
    again = engine.build(http, config_id)
    assert (again["id"] == build["id"], again["status"]) == (False, "failed")


def test_a_build_in_progress_can_be_canceled(service: Service, http: httpx.Client) -> None:
    """It is `canceled`, nothing of it is left, its run is `build_failed`, and the next one is made."""
    with building(service, http, "stopped") as (config_id, build_id, gate):
        run = engine.start(http, config_id)
        assert http.post(f"/builds/{build_id}/cancel").status_code == 202
        last = orjson.loads(engine.feed(http, build_id)[-1])
        assert (last["status"], last["stop_reason"]) == ("canceled", "canceled")
        assert not (service.data / "venvs" / engine.WORKSPACE / config_id / build_id).exists()
        assert orjson.loads(engine.feed(http, run["id"])[-1])["stop_reason"] == "build_failed"
        assert http.post(f"/builds/{build_id}/cancel").json()["type"] == "/problems/already-ended"
        gate.touch()
        assert engine.run(http, config_id)[0]["status"] == "succeeded"


# Builds and runs


def test_an_active_build_tells_what_is_in_it(http: httpx.Client) -> None:
    """Packages with version and hash, the Python, each step; as_of an event it is what it was then."""
    build = engine.build(http, engine.actor(http))
    (package,) = build["packages"]
    assert (package["name"], package["version"], package["hash"][:7]) == ("actor", "1.0.0", "sha256:")
    events = [orjson.loads(line) for line in engine.feed(http, build["id"])]
    done = [event["step"] for event in events if event["type"] == "build.step" and event["status"] == "completed"]
    assert done == ["create_venv", "install_engine", "install_config", "verify_imports", "collect_metadata"]
    at = [engine.told(http.get(f"/builds/{build['id']}", params={"as_of": event["id"]})) for event in events]
    assert [(was["status"], was["last_event_id"]) for was in (at[0], at[-2])] == [
        ("queued", events[0]["id"]),
        ("building", events[-2]["id"]),
    ]
    assert at[-1] == build
    said = engine.told(http.get(f"/builds/{build['id']}/logs"))["entries"]
    assert [entry["id"] for entry in said] == [event["id"] for event in events if event["type"] == "build.log"]


def test_builds_are_listed_by_their_filters(http: httpx.Client) -> None:
    """By config, workspace, status, text; a status that is none is 400."""
    build = engine.build(http, engine.actor(http))
    for given in ({"config_id": build["config_id"], "status": "active"}, {"q": build["id"]}):
        found = engine.told(http.get("/builds", params={**given, "workspace_id": engine.WORKSPACE}))["data"]
        assert build["id"] in {entry["id"] for entry in found}
    assert engine.told(http.get("/builds", params={"q": build["id"], "status": "failed"}))["data"] == []
    assert http.get("/builds", params={"status": "running"}).json()["parameter"] == "status"


def test_two_runs_at_once_share_one_build(http: httpx.Client) -> None:
    """Created in the same moment on a config without a build, they are bound to one; it was created once."""
    config_id = engine.register(http, engine.package("shared", "print('hello')"))["id"]
    with ThreadPoolExecutor() as threads:
        runs = list(threads.map(lambda _: engine.start(http, config_id), range(8)))
    (build,) = builds_of(http, config_id)
    assert {run["build_id"] for run in runs} == {build["id"]}
    for run in runs:
        types = [orjson.loads(line)["type"] for line in engine.feed(http, run["id"])]
        assert types.count("build.created") <= 1
        assert types[-1] == "run.completed"
        assert engine.told(http.get(f"/runs/{run['id']}"))["status"] == "succeeded"


def test_whoever_waits_at_once_is_given_one_build(http: httpx.Client) -> None:
    """Builds that are asked for in the same moment, with `wait`: one is made, and all are told of it."""
    config_id = engine.register(http, engine.package("together", "print('hello')"))["id"]
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(lambda _: ask(http, config_id, wait=True), range(8)))
    (build,) = builds_of(http, config_id)
    assert {answer.json()["id"] for answer in answers} == {build["id"]}
    assert sorted(answer.status_code for answer in answers) == [*[200] * 7, 201]
    engine.feed(http, build["id"])


def test_the_active_build_is_used_while_a_new_one_is_made(service: Service, http: httpx.Client) -> None:
    """A forced build of the same version is in the making: runs go on with the one that there is. One that comes to
    nothing changes nothing."""
    with engine.gate(service) as gate:
        gate.touch()
        config_id = engine.register(http, slow("steady", gate))["id"]
        active = engine.build(http, config_id)
        gate.unlink()
        forced = engine.told(ask(http, config_id, force=True))["id"]
        engine.wait_for_event(http, forced, engine.says("importing"))
        run = engine.start(http, config_id, dry_run=True)
        assert run["build_id"] == active["id"]
        engine.feed(http, run["id"])
        assert engine.told(http.get(f"/runs/{run['id']}"))["status"] == "succeeded"
        assert engine.told(http.get(f"/builds/{forced}"))["status"] == "building"
        engine.told(http.post(f"/builds/{forced}/cancel"))
        engine.feed(http, forced)
        assert engine.told(http.get(f"/configs/{config_id}"))["active_build_id"] == active["id"]


def test_a_new_version_is_built_anew_and_old_runs_keep_theirs(service: Service, http: httpx.Client) -> None:
    """The same content changes nothing; other content is the next version, with a build of its own; `changed`."""
    first = engine.register(http, engine.package("versioned", "print('one')"))
    before, events = engine.run(http, first["id"])
    assert engine.register(http, engine.package("versioned", "print('one')"))["outcome"] == "unchanged"
    with engine.occupied(service, http):
        waiting = engine.start(http, first["id"])
        second = engine.register(http, engine.package("versioned", "print('two')"))
        assert (second["id"], second["version"], second["outcome"]) == (first["id"], 2, "updated")
        assert second["active_build_id"] is None
    old = [orjson.loads(line) for line in engine.feed(http, waiting["id"])]
    after, events = engine.run(http, first["id"])
    assert after["build_id"] != before["build_id"] == waiting["build_id"]
    assert next(filter(engine.is_type("build.created"), events))["reason"] == "changed"
    assert next(filter(engine.is_type("run.log"), old))["message"] == "one"
    assert next(filter(engine.is_type("run.log"), events))["message"] == "two"
    assert engine.told(http.get(f"/configs/{first['id']}"))["active_build_id"] == after["build_id"]


def test_a_forced_build_is_the_one_that_runs_use(http: httpx.Client) -> None:
    """`force` on the build, `force_rebuild` on a run: a new one each, and the newest becomes active_build_id."""
    config_id = engine.actor(http)
    built = [engine.build(http, config_id)["id"], engine.build(http, config_id, force=True)["id"]]
    run, _ = engine.run(http, config_id, dry_run=True)
    assert run["build_id"] == built[1]
    forced, _ = engine.run(http, config_id, dry_run=True, force_rebuild=True)
    assert forced["build_id"] not in built
    assert engine.told(http.get(f"/configs/{config_id}"))["active_build_id"] == forced["build_id"]


def test_a_venv_that_was_removed_is_made_again_by_the_runs_that_need_it(service: Service, http: httpx.Client) -> None:
    """From the lock, within the run, as the same build; two at once make it once. Without the lock: exit code 2."""
    config_id = engine.actor(http)
    build = engine.build(http, config_id)
    folder = service.data / "venvs" / engine.WORKSPACE / config_id / build["id"]
    shutil.rmtree(folder / ".venv")
    runs = [engine.start(http, config_id, "print('hello')")["id"] for _ in range(engine.SLOTS)]
    for run_id in runs:
        events = [orjson.loads(line) for line in engine.feed(http, run_id)]
        assert (events[-1]["status"], events[0]["build_id"]) == ("succeeded", build["id"]), events[-1]["error_message"]
        said = [event["message"] for event in events if event["type"] == "run.log"]
        assert "making it again" in said[0]
        assert said[-1] == "hello"
    assert (folder / ".venv" / "ade_build.json").is_file()
    shutil.rmtree(folder)
    gone, _ = engine.run(http, config_id, "print('hello')")
    assert (gone["status"], gone["stop_reason"], gone["exit_code"]) == ("failed", "build_failed", 2)
    assert "force_rebuild" in gone["error_message"]
    assert engine.run(http, config_id, "print('hello')", force_rebuild=True)[0]["status"] == "succeeded"


@pytest.mark.parametrize("harm", ["lock", "wheel"])
def test_a_venv_is_made_again_of_exactly_what_it_was_made_of(service: Service, http: httpx.Client, harm: str) -> None:
    """Another hash in the lock, or another wheel beside it, is refused, and no venv is left."""
    config_id = engine.register(http, engine.package(f"exact_{harm}", "print('hello')"))["id"]
    build = engine.build(http, config_id)
    folder = service.data / "venvs" / engine.WORKSPACE / config_id / build["id"]
    shutil.rmtree(folder / ".venv")
    if harm == "lock":
        lock = folder / "pylock.toml"
        changed, count = re.subn(r'(sha256 = ")[0-9a-f]{64}', rf"\g<1>{'0' * 64}", lock.read_text())
        assert count == 1
        lock.write_text(changed)
    else:
        (wheel,) = (folder / "wheels").rglob("*.whl")
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr(f"exact_{harm}/more.py", "")
    run, _ = engine.run(http, config_id)
    assert (run["status"], run["stop_reason"], run["exit_code"]) == ("failed", "build_failed", 2)
    assert "Hash mismatch" in run["error_message"]
    assert not (folder / ".venv").exists()
