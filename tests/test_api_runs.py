"""Runs over HTTP, against the service as it is run: create, look at, list, and what they leave."""

import hashlib
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import pytest

from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")

FIELDS = {
    *("id", "object", "workspace_id", "config_id", "build_id", "status", "waiting_for", "created", "started"),
    *("finished", "created_at", "started_at", "finished_at", "exit_code", "summary", "result", "error_message"),
    *("stop_reason", "attempt", "cancel_requested_at", "last_event_id"),
}


@pytest.fixture(scope="module")
def config(http: httpx.Client) -> str:
    """An engine that does what its argument says, with a build that is ready."""
    config_id = engine.actor(http)
    engine.build(http, config_id)
    return config_id


def ids(answer: httpx.Response) -> list[str]:
    return [entry["id"] for entry in engine.told(answer)["data"]]


# Creating


def test_a_new_run_is_201_with_its_place_and_its_snapshot(http: httpx.Client, config: str) -> None:
    """The answer is the run as it was created: every field of the contract, queued, up to its own last event."""
    answer = http.post(f"/configs/{config}/runs")
    run = engine.told(answer)
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api/v1/runs/{run['id']}"
    assert run.keys() >= FIELDS
    assert (run["object"], run["status"], run["waiting_for"]) == ("ade.run", "queued", "worker")
    assert run["created_at"].endswith("Z")
    assert run["started"] is run["finished"] is run["exit_code"] is None
    first = orjson.loads(engine.feed(http, run["id"])[0])
    assert (first["type"], first["id"]) == ("run.created", run["last_event_id"])
    assert (first["config_version"], first["build_id"]) == (1, run["build_id"])


@pytest.mark.parametrize("accept", ["*/*", "application/json", engine.NDJSON])
def test_a_streamed_creation_is_the_run_from_its_first_to_its_last_event(
    http: httpx.Client, config: str, accept: str
) -> None:
    """NDJSON unless SSE is named; the first line is run.created, the last run.completed; the same lines as later."""
    body = {"stream": True, "options": {"engine_args": ["print('hello')"]}}
    with http.stream("POST", f"/configs/{config}/runs", json=body, headers={"Accept": accept}) as response:
        assert response.headers["content-type"].startswith(engine.NDJSON)
        lines = [line for line in engine.whole_lines(response) if line]
    types = [orjson.loads(line)["type"] for line in lines]
    assert types == ["run.created", "run.started", "run.log", "run.completed"]
    assert engine.feed(http, orjson.loads(lines[0])["run_id"]) == lines


def test_a_streamed_creation_is_sse_where_that_is_named(http: httpx.Client, config: str) -> None:
    """`Accept: text/event-stream` gives SSE, first event run.created, last run.completed; ?stream=true does as well."""
    headers = {"Accept": f"{engine.SSE}, */*"}
    answer = http.post(f"/configs/{config}/runs", params={"stream": "true"}, headers=headers)
    assert answer.headers["content-type"].startswith(engine.SSE)
    names = [line.removeprefix("event: ") for line in answer.text.split("\n") if line.startswith("event: ")]
    assert (names[0], names[-1]) == ("run.created", "run.completed")


def test_tailing_from_a_snapshot_loses_and_repeats_nothing(service: Service, http: httpx.Client, config: str) -> None:
    """Snapshots taken while the engine writes: each is the state at its last_event_id, and what follows is the rest."""
    with engine.gate(service) as gate:
        script = f"while not Path({str(gate)!r}).exists(): print('tick'); time.sleep(0.001)"
        run_id = engine.start(http, config, script)["id"]
        engine.wait_for_event(http, run_id, engine.says("tick"))
        snapshots: list[Any] = []
        while len({snapshot["last_event_id"] for snapshot in snapshots}) < 3:  # it moves, or the client gives up
            assert len(snapshots) < 10_000, "the run did not move between snapshots"
            snapshots.append(engine.told(http.get(f"/runs/{run_id}")))
    uncut = engine.feed(http, run_id)
    snapshots.append(engine.told(http.get(f"/runs/{run_id}")))
    numbers = [orjson.loads(line)["id"] for line in uncut]
    for snapshot in {snapshot["last_event_id"]: snapshot for snapshot in snapshots}.values():
        at = numbers.index(snapshot["last_event_id"]) + 1
        assert snapshot["status"] == ("succeeded" if at == len(uncut) else "running")
        assert engine.feed(http, run_id, numbers[at - 1]) == uncut[at:]


def test_as_of_an_event_is_the_run_as_it_was_then(http: httpx.Client, config: str) -> None:
    """Each event gives the state at it; the last one, and any later id, the present; before the first is no run."""
    now, events = engine.run(http, config, "print('hello')")
    now |= dict.fromkeys(("processing_by", "lease_expires_at", "heartbeat_at"))  # a lease may last a moment longer
    seen = [engine.told(http.get(f"/runs/{now['id']}", params={"as_of": event["id"]})) for event in events]
    assert [run["status"] for run in seen] == ["queued", "running", "running", "succeeded"]
    assert [run["last_event_id"] for run in seen] == [event["id"] for event in events]
    later, _ = engine.run(http, config, dry_run=True)
    assert engine.told(http.get(f"/runs/{now['id']}", params={"as_of": later["last_event_id"]})) == seen[-1] == now
    assert http.get(f"/runs/{now['id']}", params={"as_of": events[0]["id"] - 1}).status_code == 404


def test_a_worker_shows_what_it_holds(service: Service, http: httpx.Client, config: str) -> None:
    """While a run is in its hands, the worker of run.started is in the list, with a heartbeat."""
    with engine.gate(service) as gate:
        run_id = engine.start(http, config, f"wait_for({str(gate)!r})")["id"]
        worker_id = engine.wait_for_event(http, run_id, engine.is_type("run.started"))["worker_id"]
        (worker,) = (entry for entry in engine.told(http.get("/workers"))["data"] if entry["id"] == worker_id)
    assert (worker["object"], worker["leases"]) == ("ade.worker", 1)
    assert worker["holds"] == [run_id]
    assert worker["heartbeat_at"].endswith("Z")


# Options


def test_a_dry_run_does_all_but_the_engine(http: httpx.Client, config: str) -> None:
    """It succeeds with the summary "Dry run", and no engine has written a line."""
    run, events = engine.run(http, config, "print('I ran')", dry_run=True)
    assert (run["status"], run["exit_code"], run["summary"]) == ("succeeded", 0, "Dry run")
    assert [event["type"] for event in events] == ["run.created", "run.started", "run.completed"]


def test_validate_only_runs_the_validate_command(http: httpx.Client, config: str) -> None:
    """Its output and its exit code, not those of the engine."""
    run, events = engine.run(http, config, validate_only=True)
    assert (run["status"], run["exit_code"]) == ("failed", 3)
    assert [event["message"] for event in events if event["type"] == "run.log"] == ["checked"]


def test_arguments_arrive_as_they_were_sent(http: httpx.Client, config: str) -> None:
    """Spaces, quotes, line breaks and characters of all planes, in the engine and in run.started."""
    script = "print(ascii(sys.argv[-1]))\n# \"$HOME\" 'a  b' \\ {output_dir} ü \u2028 \U0001f427"
    _, events = engine.run(http, config, script)
    started = next(filter(engine.is_type("run.started"), events))
    said = next(filter(engine.is_type("run.log"), events))
    assert started["command"][-1] == script
    assert said["message"] == ascii(script)


def test_metadata_comes_back(http: httpx.Client, config: str) -> None:
    """In the snapshot and in run.created, and the list finds it."""
    run, events = engine.run(http, config, dry_run=True, metadata={"ticket": "Pygoscelis-7"})
    assert run["options"]["metadata"] == events[0]["options"]["metadata"] == {"ticket": "Pygoscelis-7"}
    assert ids(http.get("/runs", params={"q": "pygoscelis-7"})) == [run["id"]]


def test_an_input_is_needed_where_the_command_names_one_and_is_given_to_it(http: httpx.Client) -> None:
    """Without a document 422 at creation; with documents all of them, in order, as copies under their own names."""
    command = 'command = ["{python}", "-m", "reader", "{run_id}", "{input}", "{inputs}"]'
    module = "import os, sys; from pathlib import Path\nprint(sys.argv[1] == os.environ['ADE_RUN_ID'])\n"
    module += "for name in sys.argv[2:]: print(Path(name).name, Path(name).read_text(), os.access(name, os.W_OK))\n"
    config_id = engine.register(http, engine.package("reader", module, ade=f'engine = ""\n{command}'))["id"]
    refused = http.post(f"/configs/{config_id}/runs")
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/needs-input")
    path = f"/workspaces/{engine.WORKSPACE}/documents"
    texts = {"one.txt": "eins", "zwei {run_id}.txt": "two"}
    documents = [engine.told(http.post(path, params={"name": n}, content=text))["id"] for n, text in texts.items()]
    run, events = engine.run(http, config_id, document_ids=documents)
    said = [event["message"] for event in events if event["type"] == "run.log"]
    one, two = (f"{name} {text} True" for name, text in texts.items())
    assert said == ["True", one, one, two]
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts.values()]
    assert [document["sha256"] for document in run["inputs"]] == digests


def test_without_a_validate_command_the_package_is_verified_by_its_build(http: httpx.Client) -> None:
    """validate_only succeeds with exit code 0 and "Package verified"; an input is not asked for."""
    ade = 'engine = ""\ncommand = ["{python}", "{input}"]'
    config_id = engine.register(http, engine.package("unchecked", ade=ade))["id"]
    run, _ = engine.run(http, config_id, validate_only=True)
    assert (run["status"], run["exit_code"], run["summary"]) == ("succeeded", 0, "Package verified")


# What a run leaves


def test_result_json_is_the_result_and_wins_over_telemetry(http: httpx.Client, config: str) -> None:
    """Without it, the result is the data of the last engine.run.completed, whose message is the summary."""
    told = "tell(event='engine.run.completed', message='All done', data={'rows': 3, 'share': 1e20})"
    run, _ = engine.run(http, config, told)
    assert (run["summary"], run["result"]) == ("All done", {"rows": 3, "share": 1e20})
    run, _ = engine.run(
        http, config, f"{told}; (output / 'result.json').write_text('[1, null, \"\\\\ud83d\\\\udc27\"]')"
    )
    assert run["result"] == [1, None, "\U0001f427"]


def test_artifacts_are_the_files_that_were_left(http: httpx.Client, config: str) -> None:
    """Names, sizes and hashes; content whole and by range; never shown by a browser as a part of this site."""
    content = bytes(range(256)) * 10
    script = "(output / 'a').mkdir(); (output / 'a/table.csv').write_bytes(bytes(range(256)) * 10)"
    run, _ = engine.run(http, config, script)
    (artifact,) = engine.told(http.get(f"/runs/{run['id']}/artifacts"))["data"]
    assert (artifact["name"], artifact["size"], artifact["media_type"]) == ("a/table.csv", 2560, "text/csv")
    assert artifact["sha256"] == hashlib.sha256(content).hexdigest()
    path = f"/artifacts/{artifact['id']}/content"
    whole = http.get(path)
    assert whole.content == content
    assert whole.headers["content-disposition"].startswith("attachment")
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-security-policy"].startswith("sandbox")
    part = http.get(path, headers={"Range": "bytes=250-259"})
    assert (part.status_code, part.content) == (206, content[250:260])
    assert part.headers["content-range"] == "bytes 250-259/2560"
    head = http.head(path)
    assert (head.headers["content-length"], head.content) == ("2560", b"")


def test_links_in_the_output_are_not_followed(http: httpx.Client, config: str) -> None:
    """Neither a link to a file outside, nor to a folder, nor a named pipe becomes an artifact, or stops the run."""
    script = (
        "(output / 'passwd').symlink_to('/etc/passwd'); (output / 'etc').symlink_to('/etc'); "
        "(output / 'result.json').symlink_to('/etc/hostname'); os.mkfifo(output / 'pipe'); "
        "(output / 'own.txt').write_text('mine')"
    )
    run, _ = engine.run(http, config, script)
    assert (run["status"], run["result"]) == ("succeeded", None)
    assert [left["name"] for left in engine.told(http.get(f"/runs/{run['id']}/artifacts"))["data"]] == ["own.txt"]


def test_logs_are_the_lines_with_a_message(http: httpx.Client, config: str) -> None:
    """Output and telemetry with a message, in order, by pages that follow each other; `tail` gives the last ones."""
    script = "print('one'); time.sleep(.05); tell(event='engine.step', level='warning', message='two')\n"
    script += "tell(event='engine.silent'); time.sleep(.05); print('three')"
    run, events = engine.run(http, config, script)
    path = f"/runs/{run['id']}/logs"
    whole = engine.told(http.get(path))
    assert (whole["object"], whole["run_id"], whole["next_after_id"]) == ("ade.run.logs", run["id"], None)
    said = [(entry["stream"], entry["level"], entry["message"]) for entry in whole["entries"]]
    assert said == [("stdout", None, "one"), ("stderr", "warning", "two"), ("stdout", None, "three")]
    assert {entry["id"] for entry in whole["entries"]} <= {event["id"] for event in events}
    paged: list[Any] = []
    after: int | None = 0
    while after is not None:
        page = engine.told(http.get(path, params={"after_id": after, "limit": 1}))
        paged, after = paged + page["entries"], page["next_after_id"]
    assert paged == whole["entries"]
    assert engine.told(http.get(path, params={"tail": 2}))["entries"] == whole["entries"][-2:]
    assert http.get(path, params={"tail": 2, "after_id": 1}).status_code == 400


# Lists


def test_the_runs_of_a_config_that_is_not_there(http: httpx.Client) -> None:
    """Are no empty list."""
    assert http.get("/configs/config_nothing/runs").status_code == 404


def test_lists_are_newest_first_and_obey_their_filters(http: httpx.Client, config: str) -> None:
    """By config, workspace, build, status, time and text; all of them together too."""
    other = engine.register(http, engine.files_of(engine.ENGINES / "actor"), workspace="lists")["id"]
    before = time.time()
    good, _ = engine.run(http, other, dry_run=True)
    bad, _ = engine.run(http, other, "sys.exit('no Adélie here')")
    both = [bad["id"], good["id"]]
    assert ids(http.get(f"/configs/{other}/runs")) == both
    assert ids(http.get("/workspaces/lists/runs")) == both
    assert ids(http.get("/runs", params={"config_id": other})) == both
    assert ids(http.get("/runs", params={"build_id": good["build_id"]})) == both
    assert ids(http.get(f"/configs/{other}/runs", params={"status": "failed"})) == [bad["id"]]
    assert ids(http.get("/runs", params={"status": "canceled,failed", "config_id": other})) == [bad["id"]]
    assert ids(http.get("/runs", params={"q": "ADÉLIE"})) == [bad["id"]]
    assert ids(http.get("/workspaces/lists/runs", params={"sort": "created"})) == both[::-1]
    assert ids(http.get("/workspaces/lists/runs", params={"created_after": before})) == both
    assert ids(http.get("/workspaces/lists/runs", params={"created_after": bad["created_at"]})) == [bad["id"]]
    assert ids(http.get("/workspaces/lists/runs", params={"created_before": bad["created_at"]})) == [good["id"]]
    every = {
        "status": "failed",
        "q": "exited",
        "config_id": other,
        "build_id": bad["build_id"],
        "created_after": before,
    }
    assert ids(http.get("/runs", params=every)) == [bad["id"]]
    assert ids(http.get(f"/configs/{config}/runs", params={"build_id": good["build_id"]})) == []


def test_pages_stay_right_while_runs_are_added(http: httpx.Client) -> None:
    """Following Link: rel="next" gives every run that was there at the beginning, once, whatever is added meanwhile."""
    files = engine.package("paged")
    config_id = engine.register(http, files)["id"]
    existing = [engine.start(http, config_id, dry_run=True)["id"] for _ in range(5)][::-1]
    url, seen = f"/configs/{config_id}/runs?limit=2&count=true&sort=-created", []
    while url:
        answer = http.get(url)
        seen.append(ids(answer))
        assert answer.json()["total"] == len(existing) + len(seen) - 1
        engine.start(http, config_id, dry_run=True)
        following = answer.links.get("next", {}).get("url", "")
        assert answer.json()["next_page"] == (parse_qs(urlsplit(following).query)["page"][0] if following else None)
        url = str(httpx.URL(str(http.base_url)).join(following)) if following else ""
    assert seen == [existing[:2], existing[2:4], existing[4:]]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=201", "limit=x", "limit=1.5", "page=!!", "page=LTE", "page=", "status=done", "q=%00"),
        *("status=failed,done", "status=", "stop_reason=none", "sort=name", "sort=status", "count=yes", "page=WzEsMl0"),
        *("created_after=yesterday", "created_before=2025-01-01T00:00:00", "created_after=nan", "q=" + "x" * 201),
    ],
)
def test_a_bad_list_parameter_is_400_and_named(http: httpx.Client, query: str) -> None:
    """Malformed, out of range, or without a time zone: a problem document with the parameter's name."""
    answer = http.get(f"/runs?{query}")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed")
    assert answer.json()["parameter"] == query.partition("=")[0]


# Creating it once, or not at all


def test_the_same_key_gives_the_first_answer_again(http: httpx.Client, config: str) -> None:
    """The same request creates one run and is answered alike, streamed or not; another body is 422."""
    for stream in (False, True):
        key = {"Idempotency-Key": f"once-{time.time_ns()}"}
        body = {"stream": stream, "options": {"dry_run": True, "metadata": {"key": key["Idempotency-Key"]}}}
        first, again = (http.post(f"/configs/{config}/runs", json=body, headers=key) for _ in range(2))
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert len(ids(http.get("/runs", params={"q": key["Idempotency-Key"]}))) == 1
        other = http.post(f"/configs/{config}/runs", json={"options": {"dry_run": False}}, headers=key)
        assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-key-reused")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["run", "build"])
def test_safe_mode_refuses_and_keeps_a_record(http: httpx.Client, config: str, kind: str, stream: bool) -> None:
    """422 with the id of what was refused, whose log is created, a system line, completed; then new work is taken."""
    path = {"run": f"/configs/{config}/runs", "build": f"/workspaces/{engine.WORKSPACE}/configs/{config}/builds"}[kind]
    assert engine.told(http.post("/safe-mode", json={"enabled": True})) == {"enabled": True, "forced": False}
    try:
        refused = http.post(path, json={"stream": stream})
    finally:
        engine.told(http.post("/safe-mode", json={"enabled": False}))
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/safe-mode")
    stream_id = refused.json()[f"{kind}_id"]
    created, line, completed = (orjson.loads(event) for event in engine.feed(http, stream_id))
    assert [event["type"] for event in (created, line, completed)] == [
        f"{kind}.{t}" for t in ("created", "log", "completed")
    ]
    assert (line["stream"], completed["status"], completed["stop_reason"]) == ("system", "failed", "safe_mode")
    assert engine.told(http.get(engine.path_of(stream_id)))["stop_reason"] == "safe_mode"
    assert engine.run(http, config, dry_run=True)[0]["status"] == "succeeded"
