"""Logs over HTTP: from any place, searched, and in the dialect of the console."""

import json
from typing import Any

import anyio
import httpx
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventstore import Line, encode
from projections.entries import Entries
from service.api.console_lines import as_console
from service.api.log_search import SearchQuery, SearchStream
from service.keys import Caller
from service.roles import Role
from tests import engine
from tests.conftest import Store, running_hub
from tests.histories import line, tell

SCRIPT = """
for number in range(40):
    print(f'line {number} says "caf\\u00e9 \\\\\\\\ {number % 7}"')
tell(event='engine.step', level='warning', message='told with a scope', scope='mine')
tell(event='engine.silent')
print('The End')
"""


@pytest.fixture(scope="module")
def run(http: httpx.Client) -> dict[str, Any]:
    return engine.run(http, engine.actor(http), SCRIPT)[0]


@pytest.fixture(scope="module")
def whole(http: httpx.Client, run: dict[str, Any]) -> dict[str, Any]:
    return engine.told(http.get(f"/runs/{run['id']}/logs"))


# Windows


def test_a_viewer_opens_any_place(http: httpx.Client, run: dict[str, Any], whole: dict[str, Any]) -> None:
    """By id, number and time, in both directions; each answer has what a scroll bar needs."""
    path, entries = f"/runs/{run['id']}/logs", whole["entries"]
    assert len(entries) == 42
    events = engine.told(http.get(f"/runs/{run['id']}"))["last_event_id"]
    assert (whole["first_id"], whole["last_id"], whole["previous_before_id"]) == (run_created(http, run), events, None)
    middle = entries[20]

    def ask(**params: Any) -> dict[str, Any]:
        found: dict[str, Any] = engine.told(http.get(path, params=params))
        assert {name: found[name] for name in ("first_id", "last_id", "last_seq")} == {
            name: whole[name] for name in ("first_id", "last_id", "last_seq")
        }
        return found

    for params in ({"around": middle["id"]}, {"around_seq": middle["seq"]}):
        window = ask(**params, limit=10)
        assert (window["entries"], window["around_index"]) == (entries[15:25], 5)
        assert ask(before_id=window["previous_before_id"], limit=5)["entries"] == entries[10:15]
        assert ask(after_id=window["next_after_id"], limit=5)["entries"] == entries[25:30]
    ended = ask(around_time=2e9, limit=10)
    assert (ended["entries"], ended["around_index"], ended["next_after_id"]) == (entries[-5:], 5, None)
    assert ask(around_time="2001-01-01T00:00:00Z", limit=10)["entries"] == entries[:5]
    last = ask(tail=3)
    assert (last["entries"], last["next_after_id"], last["around_index"]) == (entries[-3:], None, None)
    assert ask(before_id=last["previous_before_id"], limit=2)["entries"] == entries[-5:-3]
    assert ask(before_id=entries[0]["id"])["entries"] == []


def run_created(http: httpx.Client, run: dict[str, Any]) -> int:
    lines = [orjson.loads(line) for line in engine.feed(http, run["id"])]
    return next(int(line["id"]) for line in lines if line["type"] == "run.created")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("tail=2&after_id=1", "tail"),
        ("around=2&tail=2", "around"),
        ("around_seq=2&around_time=3", "around_time"),
        ("before_id=0", "before_id"),
        ("tail=0", "tail"),
        ("around=x", "around"),
        ("around_time=soon", "around_time"),
    ],
)
def test_two_places_are_one_too_many(http: httpx.Client, run: dict[str, Any], query: str, parameter: str) -> None:
    """So are those that are none; the answer names the parameter."""
    answer = http.get(f"/runs/{run['id']}/logs?{query}")
    assert (answer.status_code, answer.json()["parameter"]) == (400, parameter), answer.text


def test_a_build_has_its_places_too(http: httpx.Client, run: dict[str, Any]) -> None:
    path = f"/builds/{run['build_id']}/logs"
    entries = engine.told(http.get(path))["entries"]
    assert engine.told(http.get(path, params={"tail": 2}))["entries"] == entries[-2:]
    found = engine.told(http.get(f"{path}/search"))
    assert [entry["id"] for entry in found["entries"]] == [entry["id"] for entry in entries]


# Search


@pytest.mark.parametrize(
    ("text", "more"),
    [('"', {}), ("\\ 3", {}), ("café", {}), ("CAFÉ", {"ignore_case": "true"}), ("CAFÉ", {}), ("line 3", {}), ("", {})],
)
def test_pages_and_stream_find_what_the_messages_hold(
    http: httpx.Client, run: dict[str, Any], whole: dict[str, Any], text: str, more: dict[str, str]
) -> None:
    """The entries with the place in each, by pages that follow each other and as they are found; counted truly."""
    path, params = f"/runs/{run['id']}/logs/search", {"q": text, **more}
    fold = str.casefold if more else str
    expected = [
        {"object": "ade.log.match", **entry, "at": fold(entry["message"]).index(fold(text))}
        for entry in whole["entries"]
        if fold(text) in fold(entry["message"])
    ]
    paged: list[Any] = []
    after: int | None = 0
    while after is not None:
        page = engine.told(http.get(path, params={**params, "after_id": after, "limit": 5}))
        assert len(page["entries"]) <= 5
        paged, after = paged + page["entries"], page["next_after_id"]
    assert paged == expected
    for form in (engine.NDJSON, "application/jsonl"):
        answer = http.get(path, params=params, headers={"Accept": form})
        assert answer.headers["content-type"].split(";")[0] == form
        *lines, summary = map(orjson.loads, answer.text.splitlines())
        assert [line for line in lines if line["object"] != "ade.bookmark"] == expected
        counted = {"object": "ade.log.search", "matches": len(expected), "upto_id": whole["last_id"]}
        assert summary == {**counted, "examined": whole["last_seq"]}


def test_a_search_goes_on_from_any_line(http: httpx.Client, run: dict[str, Any]) -> None:
    """Cut after any match or bookmark, the rest comes from there, and counts itself."""
    path, headers = f"/runs/{run['id']}/logs/search", {"Accept": engine.NDJSON}
    *lines, _ = map(orjson.loads, http.get(path, params={"q": "line"}, headers=headers).iter_lines())
    for place, cut in enumerate(lines, 1):
        rest = http.get(path, params={"q": "line", "after_id": cut["id"]}, headers=headers)
        *again, summary = map(orjson.loads, rest.iter_lines())
        left = [one for one in lines[place:] if one["object"] == "ade.log.match"]
        assert [one for one in again if one["object"] == "ade.log.match"] == left
        assert summary["matches"] == len(left)


@pytest.mark.anyio
@pytest.mark.parametrize("why", ["nothing", "hang-up", "drain", "revoked"])
async def test_a_search_stops_between_two_steps(store: Store, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When its client hangs up, its key dies or the server drains. Seen to go on to the end without a look at each."""
    monkeypatch.setattr("eventstore.random_access.EXAMINED_EVENTS", 10)
    told = await tell(store, "run_1", *[line("run_1", f"{number}") for number in range(100)])
    stream = await store.log.stream("run_1")
    assert stream is not None
    async with running_hub(store) as hub:
        sent: list[bytes] = []
        caller = Caller("key_1", Role.VIEWER, None)

        async def receive() -> dict[str, str]:
            if why != "hang-up" or len(sent) < 4:
                await anyio.sleep_forever()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if why == "drain" and len(sent) == 4:
                hub.drain()
            caller.over = why == "revoked" and len(sent) == 4

        search = SearchStream(hub, "log_1", Entries(store.log, stream), SearchQuery(q="5"), 0, caller)
        await search({"type": "http", "method": "GET"}, receive, send)
    lines = [orjson.loads(one) for one in b"".join(sent).splitlines()]
    if why == "nothing":
        assert lines[-1] == {
            "object": "ade.log.search", "matches": 19, "examined": 100, "upto_id": told.last_id,
        }  # fmt: skip
    else:
        assert lines[-1] == {"object": "ade.bookmark", "id": told.first_id + 29}


# The dialect of the console


def dialect(line: bytes) -> bytes:
    """What a client of it expects, made by taking the line apart."""
    told = json.loads(line)
    if told["type"] not in {"run.log", "build.log"} and not told["type"].startswith("engine."):
        return line
    if not isinstance(told.get("message"), str):
        return line
    members = list(told.items())
    place = 7 if "scope" not in told else len(members)
    told = dict([*members[:place], ("scope", told["object"].split(".")[1]), *members[place:]])
    told["type"], told["scope"] = "console.line", told["object"].split(".")[1]
    return encode(told)


@pytest.fixture(scope="module")
def feeds(http: httpx.Client, run: dict[str, Any]) -> tuple[str, list[bytes]]:
    lines = engine.feed(http, run["id"])
    return f"/runs/{run['id']}/events", [dialect(line) for line in lines]


def test_every_form_has_the_dialect(http: httpx.Client, feeds: tuple[str, list[bytes]]) -> None:
    """The page, NDJSON under both its names and SSE with and without names: the same lines, with the same ids."""
    path, expected = feeds
    types = [orjson.loads(line)["type"] for line in expected]
    assert types.count("console.line") >= 42
    assert {"run.created", "engine.silent", "run.completed"} <= set(types)
    page = http.get(path, params={"logs": "console", "limit": 1000})
    assert page.content == b'{"object":"list","data":[%b],"next_after_id":%d}' % (
        b",".join(expected),
        orjson.loads(expected[-1])["id"],
    )
    for form in (engine.NDJSON, "application/jsonl"):
        answer = http.get(path, params={"logs": "console", "stream": "true"}, headers={"Accept": form})
        assert answer.headers["content-type"].split(";")[0] == form
        assert answer.content == b"".join([line + b"\n" for line in expected])
    for names in ("on", "off"):
        params = {"logs": "console", "names": names}
        events, _ = engine.sse(http.get(path, params=params, headers={"Accept": engine.SSE}).content)
        shown = [(kind, data) for kind, data, _ in events]
        assert shown == [
            (kind if names == "on" else "message", line) for kind, line in zip(types, expected, strict=True)
        ]
    assert http.get(path, params={"logs": "others"}).status_code == 400


def test_what_is_created_may_be_followed_in_the_dialect(http: httpx.Client) -> None:
    """From the first line on, also where the request that creates is the stream; and the whole log, filtered."""
    config = engine.actor(http)
    body = {"stream": True, "options": {"engine_args": ["print('said')"]}}
    lines = list(map(orjson.loads, http.post(f"/configs/{config}/runs?logs=console", json=body).iter_lines()))
    said = [(line["scope"], line["message"]) for line in lines if line["type"] == "console.line"]
    assert ("run", "said") in said
    assert not any(line["type"] in {"run.log", "build.log"} for line in lines)
    params = {"types": "run.log", "run_id": lines[0]["run_id"], "logs": "console"}
    found = engine.told(http.get("/events", params=params))["data"]
    assert [(line["type"], line["message"]) for line in found] == [("console.line", "said")]


LINE = b'{"id":1,"object":"ade.run.event","type":"%b","run_id":"run_1","seq":1,"created":1763612345,'
LINE += b'"created_at":"2025-11-20T04:19:05.123456Z"%b}'


@given(
    st.sampled_from(["run.log", "engine.a.b", "run.started"]),
    st.dictionaries(
        st.sampled_from(["message", "scope", "level", '"type":"run.log"', "x"]),
        st.one_of(
            st.integers(0, 9), st.sampled_from(['"type":"run.log"', '"created_at":"', "\u2028 \u00e9", '\\"', ""])
        ),
    ),
)
@example("run.log", {"message": '"created_at":"'})
def test_no_message_bends_the_dialect(type_: str, payload: dict[str, Any]) -> None:
    """Whatever an engine writes, the line is the event's own members, under another name and with its scope."""
    data = encode(payload)
    line = LINE % (type_.encode(), b"," + data[1:-1] if payload else b"")
    made = as_console(Line.read(line))
    assert json.loads(made.line) == json.loads(dialect(line))
    assert (made.id, made.stream) == (1, "run_1")
    assert Line.read(made.line) == made
    assert len(made.line.decode().splitlines()) == 1
