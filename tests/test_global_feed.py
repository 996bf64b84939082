"""The feed of the whole log over HTTP: the same lines in every form, filtered, and cursors that move past the rest."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest

from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")

OTHER = "elsewhere"
SCRIPT = """
import json, sys
for number in range(5):
    print("line", number)
    print(json.dumps({"event": f"engine.part_{number % 2}.step", "message": "step"}), file=sys.stderr)
"""


@dataclass(frozen=True)
class Story:
    """The log up to an id at which all was quiet: its lines, uncut, and the runs and the build in it."""

    lines: list[bytes]
    runs: tuple[str, str]
    build: str

    @property
    def head(self) -> int:
        return len(self.lines)

    def passing(self, passes: Callable[[dict[str, Any]], object], after: int = 0) -> list[bytes]:
        return [line for line in self.lines[after:] if passes(orjson.loads(line))]


@pytest.fixture(scope="module")
def story(http: httpx.Client) -> Story:
    config = engine.register(http, engine.package("chapters", SCRIPT))["id"]
    elsewhere = engine.register(http, engine.package("chapters", SCRIPT), workspace=OTHER)["id"]
    runs = [engine.start(http, config)["id"], engine.start(http, elsewhere)["id"]]
    for run_id in runs:
        engine.feed(http, run_id)
    lines = ndjson(http)
    build = engine.told(http.get(f"/runs/{runs[0]}"))["build_id"]
    return Story(lines, (runs[0], runs[1]), build)


def ndjson(http: httpx.Client, **query: str | int) -> list[bytes]:
    """The lines up to the head, without the bookmark at the end."""
    answer = http.get("/events", params=query, headers={"Accept": engine.NDJSON})
    assert answer.is_success, answer.text
    return [line for line in answer.content.split(b"\n") if line and b'"ade.bookmark"' not in line]


def pages(http: httpx.Client, head: int, **query: str | int) -> list[Any]:
    """The events of all pages up to an id, each page from the cursor of the one before."""
    found: list[Any] = []
    after = int(query.pop("after_id", 0))
    while after < head:
        page = engine.told(http.get("/events", params={"after_id": after, **query}))
        assert page["next_after_id"] > after or not page["data"]
        found += page["data"]
        after = page["next_after_id"]
    return [event for event in found if event["id"] <= head]


def test_the_whole_log_is_every_event_once(http: httpx.Client, story: Story) -> None:
    """Ids are dense from 1, and the lines are those of the feeds of runs, byte for byte."""
    assert [orjson.loads(line)["id"] for line in story.lines] == list(range(1, story.head + 1))
    for run_id in story.runs:
        own = [line for line in story.lines if b'"run_id":"%b","seq"' % run_id.encode() in line]
        assert own == [line for line in engine.feed(http, run_id) if orjson.loads(line)["object"] == "ade.run.event"]
        assert len(own) > 10


CASES: dict[str, tuple[dict[str, str], Callable[[dict[str, Any], Story], object]]] = {
    "one type": ({"types": "run.started"}, lambda event, _: event["type"] == "run.started"),
    "types": (
        {"types": "run.completed,run.log"},
        lambda event, _: event["type"] in {"run.completed", "run.log"},
    ),
    "a family": ({"types": "build.*"}, lambda event, _: event["type"].startswith("build.")),
    "what engines write": ({"types": "engine.*"}, lambda event, _: event["type"].startswith("engine.")),
    "a type of an engine": ({"types": "engine.part_1.step"}, lambda event, _: event["type"] == "engine.part_1.step"),
    "a type that no engine wrote": ({"types": "engine.part_x.step"}, lambda _event, _: False),
    "a run": ({"run_id": "0"}, lambda event, story: event.get("run_id") == story.runs[0]),
    "a build": (
        {"build_id": "0"},
        lambda event, story: (event["object"], event.get("build_id")) == ("ade.build.event", story.build),
    ),
    "a run and types": (
        {"run_id": "1", "types": "run.*,engine.part_0.*"},
        lambda event, story: event.get("run_id") == story.runs[1] and event["type"] != "engine.part_1.step",
    ),
}


def query_of(case: str, story: Story) -> dict[str, str]:
    named = dict(CASES[case][0])
    if "run_id" in named:
        named["run_id"] = story.runs[int(named["run_id"])]
    if "build_id" in named:
        named["build_id"] = story.build
    return named


@pytest.mark.parametrize("case", CASES)
def test_a_filter_passes_the_same_lines_in_every_form(http: httpx.Client, story: Story, case: str) -> None:
    """From the beginning and from the middle; the last cursor is the head, whatever passed."""
    query, wanted = query_of(case, story), CASES[case][1]
    for after in (0, story.head // 2):
        expected = story.passing(lambda event: wanted(event, story), after)
        answer = http.get("/events", params={"after_id": after, **query}, headers={"Accept": engine.NDJSON})
        *lines, last = answer.content.splitlines()
        assert [line for line in [*lines, last] if line in set(story.lines)] == expected
        assert orjson.loads(last)["id"] >= story.head
        for limit, since in ((1000, after), (2, max(after, story.head - 300))):  # others have told much before
            passing = story.passing(lambda event: wanted(event, story), since)
            assert pages(http, story.head, after_id=since, limit=limit, **query) == [*map(orjson.loads, passing)]
        assert followed(http, story.head, after_id=after, **query) == expected


def followed(http: httpx.Client, head: int, **query: str | int) -> list[bytes]:
    """The data of the SSE events up to an id, which comes as an event or as a bookmark."""
    text = b""
    with http.stream("GET", "/events", params=query, headers={"Accept": engine.SSE}) as response:
        assert response.status_code == 200, response.read()
        for piece in engine.bounded(response.iter_raw()):
            text += piece
            events, last = engine.sse(text)
            if int(last or 0) >= head:
                break
    return [data for kind, data, id_ in events if kind != "bookmark" and int(id_) <= head]


def test_a_workspace_is_all_that_is_in_it(http: httpx.Client, story: Story) -> None:
    """Runs, builds, configs, and documents; a line does not name its workspace, its stream's first one does."""
    here = ndjson(http, workspace_id=OTHER)
    objects = {orjson.loads(line)["object"] for line in here}
    assert objects - {"ade.workspace.event"} == {"ade.config.event", "ade.build.event", "ade.run.event"}
    assert [line for line in here if story.runs[1].encode() in line] == [
        line for line in story.lines if story.runs[1].encode() in line
    ]
    assert not [line for line in here if story.runs[0].encode() in line]
    assert ndjson(http, workspace_id="nobody-was-here") == []
    assert pages(http, story.head, workspace_id=OTHER, types="engine.*") == [
        event for event in map(orjson.loads, here) if event["type"].startswith("engine.")
    ]


def test_every_cursor_that_was_given_leads_on(http: httpx.Client, story: Story) -> None:
    """Of events and of bookmarks alike: what follows is the rest, not one line more or less."""
    query = {"types": "run.started,run.completed"}
    text = http.get("/events", params=query, headers={"Accept": engine.NDJSON}).content
    whole = [orjson.loads(line)["id"] for line in text.splitlines() if line]
    for cursor in [*whole, *range(0, story.head, 9)]:
        rest = [orjson.loads(line)["id"] for line in ndjson(http, after_id=cursor, **query)]
        assert rest == [id_ for id_ in whole[:-1] if id_ > cursor] or rest == [id_ for id_ in whole if id_ > cursor]


def test_a_page_waits_for_what_passes(service: Service, http: httpx.Client) -> None:
    """`wait` lets pass by what does not pass; an empty page says how far that came."""
    head = engine.told(http.get("/events/head"))["head"]
    with engine.gate(service) as gate, ThreadPoolExecutor() as threads:
        run_id = engine.start(http, engine.actor(http), f"print('up'); wait_for({str(gate)!r})")["id"]
        query = {"after_id": head, "types": "run.completed", "run_id": run_id}
        engine.wait_for_event(http, run_id, engine.says("up"))
        asked = time.monotonic()
        page = engine.told(http.get("/events", params={**query, "wait": 1}))
        assert page["data"] == []
        assert page["next_after_id"] > head
        assert time.monotonic() - asked >= 1
        waiting = threads.submit(http.get, "/events", params={**query, "wait": 30})
        gate.touch()
        (event,) = engine.told(waiting.result())["data"]
        assert (event["type"], event["run_id"]) == ("run.completed", run_id)


def test_a_terminal_event_ends_nothing(http: httpx.Client, story: Story) -> None:
    """A filter by a run that has ended has no end: no 204, and what comes next is waited for."""
    last = [orjson.loads(line)["id"] for line in story.lines if story.runs[0].encode() in line][-1]
    query = {"run_id": story.runs[0], "after_id": last}
    with http.stream("GET", "/events", params=query, headers={"Accept": engine.SSE}) as response:
        assert response.status_code == 200
        assert response.headers["ade-log-id"] == engine.told(http.get("/events/head"))["log_id"]
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert next(response.iter_raw()).startswith(b"retry: ")


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("types=run.finished", 400, "'run.finished'"),
        ("types=", 400, "''"),
        ("types=run.log,", 400, "''"),
        ("types=*", 400, "'*'"),
        ("types=runs.*", 400, "'runs.*'"),
        ("types=engine", 400, "'engine'"),
        ("types=engine.Upper", 400, "'engine.Upper'"),
        ("types=engine.%25", 400, "'engine.%'"),
        ("types=engine.*.x", 400, "'engine.*.x'"),
        ("types=" + "engine.a," * 300, 400, "2000 characters"),
        ("workspace_id=No", 400, "'No'"),
        ("run_id=run_1&build_id=build_1", 400, "run_id"),
        ("run_id=run_none", 404, "run_none"),
        ("run_id=build_1", 404, "There is no run build_1"),
        ("build_id=build_none", 404, "build_none"),
        ("after_id=x", 400, "after_id"),
        ("after_id=99999999999", 409, "newest event"),
        ("log_id=log_other", 409, "another log"),
        ("limit=1001", 400, "limit"),
        ("wait=31", 400, "wait"),
    ],
)
def test_what_cannot_be_meant_is_refused(http: httpx.Client, query: str, status: int, says: str) -> None:
    """With a sentence that says what is wrong."""
    answer = http.get(f"/events?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]


def test_names_can_be_left_out_but_for_bookmarks(http: httpx.Client, story: Story) -> None:
    """So that who listens to unnamed events gets events alone, and still comes back from the bookmark."""
    text = b""
    query: dict[str, str] = {"types": "engine.*", "names": "off"}
    with http.stream("GET", "/events", params=query, headers={"Accept": engine.SSE}) as response:
        for piece in engine.bounded(response.iter_raw()):
            text += piece
            if int(engine.sse(text)[1] or 0) >= story.head:
                break
    events, _ = engine.sse(text)
    assert {kind for kind, _, _ in events} <= {"message", "bookmark"}
    for kind, data, id_ in events:
        assert ("head" in orjson.loads(data)) == (kind == "bookmark")
        assert str(orjson.loads(data).get("head", id_)) == id_
