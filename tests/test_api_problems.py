"""What the service says when it says no: every refusal is a problem document, and none leaves a traceback."""

import socket
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from service.api.problems import all_problems
from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")

UNKNOWN = ("run_00000000000000000000000000", "build_00000000000000000000000000", "x", "%00", "%FF", "..%2F..", "a b")
TITLES = {f"/problems/{kind.slug}": ((kind.__doc__ or "").strip(), kind.status) for kind in all_problems()}


@pytest.fixture(scope="module")
def run(http: httpx.Client) -> engine.Json:
    """A run that has ended."""
    return engine.run(http, engine.actor(http), "print('hello')")[0]


def problem(answer: httpx.Response, status: int, slug: str) -> engine.Json:
    """The problem document of an answer, which is one of the kind that is expected, in every part."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    document: engine.Json = answer.json()
    assert document["type"] == f"/problems/{slug}"
    assert (document["title"], document["status"]) == TITLES[document["type"]]
    assert document["status"] == status
    assert document["detail"]
    facts = next(kind for kind in all_problems() if kind.slug == slug).Facts
    told = document.keys() - {"type", "title", "status", "detail"}
    assert facts.__required_keys__ <= told <= facts.__annotations__.keys()  # type: ignore[attr-defined]
    return document


# What is not there


@pytest.mark.parametrize("unknown", UNKNOWN)
@pytest.mark.parametrize(
    "path",
    [
        *("/runs/{}", "/runs/{}/events", "/runs/{}/logs", "/runs/{}/logfile", "/runs/{}/artifacts", "/builds/{}"),
        *("/builds/{}/events", "/builds/{}/logs", "/builds/{}/logfile", "/configs/{}", "/documents/{}"),
        *("/documents/{}/content", "/artifacts/{}/content", "/{}"),
    ],
)
def test_what_is_not_there_is_404(http: httpx.Client, path: str, unknown: str) -> None:
    """Unknown ids, ids of another kind, and what no id can be."""
    problem(http.get(path.format(unknown)), 404, "not-found")


@pytest.mark.parametrize(
    "path", ["/runs/{}/cancel", "/builds/{}/cancel", "/configs/{}/runs", "/workspaces/t/configs/{}/builds"]
)
@pytest.mark.parametrize("unknown", ["x", "%00", "run_0"])
def test_nothing_can_be_done_to_what_is_not_there(http: httpx.Client, path: str, unknown: str) -> None:
    """404, for each POST that names something."""
    problem(http.post(path.format(unknown)), 404, "not-found")


def test_a_run_with_an_unknown_document_is_404(http: httpx.Client) -> None:
    """And the document's id is in the detail; a document of another workspace is as unknown."""
    config = engine.actor(http)
    elsewhere = engine.told(http.post("/workspaces/elsewhere/documents", content=b"x"))["id"]
    for unknown in ("doc_none", elsewhere):
        answer = http.post(f"/configs/{config}/runs", json={"options": {"document_ids": [unknown]}})
        assert unknown in problem(answer, 404, "not-found")["detail"]


def test_another_method_is_405(http: httpx.Client, run: engine.Json) -> None:
    """With the methods that there are."""
    for method, path in (("DELETE", f"/runs/{run['id']}"), ("PUT", "/runs"), ("GET", f"/runs/{run['id']}/cancel")):
        answer = http.request(method, path)
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"]


# Bodies


@pytest.mark.parametrize(
    "body", [b"{", b"nothing", b'{"options": {"timeout_s": 1e999}}', b"[" * 2000, b"\xff", b'"\\ud800"', b"{}{}"]
)
def test_what_is_no_json_is_400(http: httpx.Client, body: bytes) -> None:
    """Cut off, nested without end, numbers beyond all bounds, lone surrogates, not UTF-8."""
    headers = {"Content-Type": "application/json"}
    problem(http.post(f"/configs/{engine.actor(http)}/runs", content=body, headers=headers), 400, "malformed")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"option": {}}, "option"),
        ({"options": {"timeout": 5}}, "options.timeout"),
        ({"options": {"timeout_s": 0}}, "options.timeout_s"),
        ({"options": {"timeout_s": 7 * 24 * 3600 + 1}}, "options.timeout_s"),
        ({"options": {"timeout_s": 1.5}}, "options.timeout_s"),
        *(({"options": {"timeout_s": five}}, "options.timeout_s") for five in ("5", 5.0, True)),
        ({"options": {"max_attempts": "2"}}, "options.max_attempts"),
        ({"options": {"engine_args": "x"}}, "options.engine_args"),
        ({"options": {"engine_args": ["fine", 5]}}, "options.engine_args.1"),
        ({"options": {"engine_args": ["nul\0"]}}, "options.engine_args.0"),
        ({"options": {"engine_args": ["x" * 4097]}}, "options.engine_args.0"),
        ({"options": {"engine_args": ["x"] * 1001}}, "options.engine_args"),
        ({"options": {"document_ids": [None]}}, "options.document_ids.0"),
        ({"options": {"document_ids": ["nul\0"]}}, "options.document_ids.0"),
        ({"options": {"metadata": {"a": 1}}}, "options.metadata.a"),
        ({"options": {"metadata": {"a": "x" * 513}}}, "options.metadata.a"),
        ({"options": {"metadata": {str(n): "" for n in range(33)}}}, "options.metadata"),
        *(({"options": {"dry_run": yes}}, "options.dry_run") for yes in (None, "true", 1)),
        ({"options": []}, "options"),
        ({"stream": "true"}, "stream"),
    ],
)
def test_a_body_that_does_not_fit_is_422_with_the_path(http: httpx.Client, body: Mapping[str, Any], path: str) -> None:
    """Unknown fields, values out of range and of the wrong type, each by its path."""
    document = problem(http.post(f"/configs/{engine.actor(http)}/runs", json=body), 422, "invalid")
    assert path in {error["path"] for error in document["errors"]}
    assert f"`{document['errors'][0]['path']}`" in document["detail"]


def test_every_field_that_is_wrong_is_named(http: httpx.Client) -> None:
    """Three mistakes, three errors, each with a message."""
    body = {"x": 1, "options": {"y": 2, "timeout_s": "soon"}}
    document = problem(http.post(f"/configs/{engine.actor(http)}/runs", json=body), 422, "invalid")
    assert {error["path"] for error in document["errors"]} == {"x", "options.y", "options.timeout_s"}
    assert all(error["message"] for error in document["errors"])


def test_a_json_body_must_be_an_object_and_be_called_json(http: httpx.Client) -> None:
    """A list is 422; another content type 415; builds and cancels and safe mode as well."""
    config = engine.actor(http)
    builds = f"/workspaces/{engine.WORKSPACE}/configs/{config}/builds"
    for path in (f"/configs/{config}/runs", builds, "/runs/x/cancel", "/safe-mode"):
        problem(http.post(path, json=[]), 422, "invalid")
        for media_type in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
            answer = http.post(path, content=b"{}", headers={"Content-Type": media_type})
            problem(answer, 415, "wrong-media-type")
    problem(http.post("/safe-mode"), 422, "invalid")
    none = problem(http.post(builds, json={"options": None}), 422, "invalid")["errors"]
    assert none == [{"path": "options", "message": "Input should be an object"}]  # none of our names for it
    problem(http.post(builds, json={"options": {"forced": True}}), 422, "invalid")
    problem(http.post(builds, json={"options": {"force": "true"}}), 422, "invalid")
    problem(http.post("/safe-mode", json={"enabled": 1}), 422, "invalid")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_its_limits(http: httpx.Client, key: str) -> None:
    """Empty or too long: 400."""
    answer = http.post(f"/configs/{engine.actor(http)}/runs", headers={"Idempotency-Key": key})
    problem(answer, 400, "malformed")


# Queries and cursors


@pytest.mark.parametrize(
    "query",
    [
        *("after_id=x", "after_id=-1", "after_id=1.5", "after_id=", "after_id=١", "after_id=1e3", "after_id=+1"),
        *(
            f"after_id={2**70}",
            "limit=0",
            "limit=1001",
            "limit=",
            "wait=31",
            "wait=-1",
            "stream=perhaps",
            "names=maybe",
        ),
    ],
)
def test_a_bad_query_of_events_is_400(http: httpx.Client, run: engine.Json, query: str) -> None:
    """Cursors that are no number, negative, or of other digits; limits out of range; the parameter is named."""
    accept = engine.SSE if query.startswith("names") else "application/json"
    answer = http.get(f"/runs/{run['id']}/events?{query}", headers={"Accept": accept})
    assert problem(answer, 400, "malformed").get("parameter") == query.partition("=")[0]


@pytest.mark.parametrize("accept", ["application/json", engine.NDJSON, engine.SSE])
def test_a_cursor_ahead_or_of_another_log_is_409(http: httpx.Client, run: engine.Json, accept: str) -> None:
    """With the head, and with the log's own id; the head itself is a good cursor, of this log."""
    head = engine.told(http.get("/events/head"))
    path, headers = f"/runs/{run['id']}/events", {"Accept": accept}
    ahead = problem(http.get(path, params={"after_id": head["head"] + 1}, headers=headers), 409, "cursor-ahead")
    assert (ahead["head"], ahead["log_id"]) == (head["head"], head["log_id"])
    other = problem(http.get(path, params={"log_id": "log_other"}, headers=headers), 409, "other-log")
    assert other["log_id"] == head["log_id"]
    good = http.get(path, params={"after_id": head["head"], "log_id": head["log_id"]}, headers=headers)
    assert good.status_code == (204 if accept == engine.SSE else 200)
    problem(http.get(f"/runs/{run['id']}/logs", params={"after_id": head["head"] + 1}), 409, "cursor-ahead")


@pytest.mark.parametrize("value", ["x", "-1", ""])
def test_a_bad_last_event_id_is_400(http: httpx.Client, run: engine.Json, value: str) -> None:
    """It is a cursor like after_id."""
    headers = {"Accept": engine.SSE, "Last-Event-ID": value}
    answer = http.get(f"/runs/{run['id']}/events", headers=headers)
    assert problem(answer, 400, "malformed")["parameter"] == "Last-Event-ID"


@pytest.mark.parametrize("query", ["as_of=0", "as_of=x", f"as_of={2**63}", "as_of="])
def test_a_bad_as_of_is_400(http: httpx.Client, run: engine.Json, query: str) -> None:
    """An event id, 1 or more."""
    assert problem(http.get(f"/runs/{run['id']}?{query}"), 400, "malformed")["parameter"] == "as_of"


def test_as_of_what_has_not_happened_is_409(http: httpx.Client, run: engine.Json) -> None:
    """It is a cursor like after_id: what is now is no answer about later, nor one log about another."""
    head = engine.told(http.get("/events/head"))["head"]
    for path in (f"/runs/{run['id']}", f"/builds/{run['build_id']}"):
        assert http.get(path, params={"as_of": head}).status_code == 200
        problem(http.get(path, params={"as_of": head + 1_000_000}), 409, "cursor-ahead")
        problem(http.get(path, params={"as_of": head, "log_id": "log_x"}), 409, "other-log")


@pytest.mark.parametrize("what", ["runs", "configs", "documents", "stats"])
def test_what_can_be_no_workspace_is_400(http: httpx.Client, what: str) -> None:
    """In each list alike; one that was never used is an empty list."""
    assert problem(http.get(f"/workspaces/UPPER/{what}"), 400, "malformed")["parameter"] == "workspace"
    assert http.get(f"/workspaces/never-used/{what}").status_code == 200


def test_a_slash_too_many_is_404(service: Service, http: httpx.Client) -> None:
    """No redirect: it would name the address that the service sees, not the one of the proxy."""
    problem(http.get("/runs/"), 404, "not-found")
    problem(httpx.get(f"{service.url}/docs/"), 404, "not-found")


# Who asks


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example:80"},
        {"Host": "10.0.0.1"},
        {"Host": "me@evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_request_from_elsewhere_is_403(http: httpx.Client, headers: Mapping[str, str]) -> None:
    """Foreign Host, Origin or Sec-Fetch-Site, for reads and writes alike."""
    before = engine.told(http.get("/events/head"))
    problem(http.get("/runs", headers=headers), 403, "foreign-origin")
    problem(http.post("/safe-mode", json={"enabled": True}, headers=headers), 403, "foreign-origin")
    assert engine.told(http.get("/events/head")) == before


def test_a_request_from_here_is_answered(service: Service, http: httpx.Client) -> None:
    """By every name of the loopback, from a page of our own, and by a link to the console."""
    port = httpx.URL(service.url).port
    for headers in (
        {"Host": f"localhost:{port}"},
        {"Host": "[::1]"},
        {"Origin": service.url, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ):
        assert http.get("/runs", headers=headers).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(f"{service.url}/", headers=link).status_code == 200
    problem(http.get("/runs", headers=link), 403, "foreign-origin")


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html", "image/png", "nonsense", ""])
def test_no_accept_is_a_406(http: httpx.Client, run: engine.Json, accept: str) -> None:
    """JSON, whatever was asked for."""
    for path in ("/runs", f"/runs/{run['id']}", f"/runs/{run['id']}/events", f"/runs/{run['id']}/logs"):
        answer = http.get(path, headers={"Accept": accept})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


def test_every_answer_has_a_request_id(service: Service, http: httpx.Client, run: engine.Json) -> None:
    """The client's own where it is a plain one, else a new one; on answers of all kinds."""
    for path in (
        "/runs",
        f"/runs/{run['id']}/events?stream=true",
        f"/runs/{run['id']}/logfile",
        "/nowhere",
        "/runs?limit=0",
    ):
        assert http.get(path, headers={"X-Request-ID": "my.own-1"}).headers["x-request-id"] == "my.own-1"
        made = {http.get(path, headers={"X-Request-ID": bad}).headers["x-request-id"] for bad in ("a b", "x" * 65)}
        assert len(made) == 2
    for path in ("/health", "/ready", "/", "/nowhere"):
        assert httpx.get(f"{service.url}{path}").headers["x-request-id"]


def test_health_and_ready_say_how_the_service_is(service: Service) -> None:
    """Healthy with its database; ready, without a reason against it."""
    health, ready = (httpx.get(f"{service.url}{path}") for path in ("/health", "/ready"))
    assert (health.status_code, health.json()["status"], health.json()["database"]) == (200, "healthy", "connected")
    assert (ready.status_code, ready.json()["status"], ready.json()["reasons"]) == (200, "ready", [])


def test_what_is_no_http_does_no_harm(service: Service) -> None:
    """Garbage on the line is answered 400, and the next one is served."""
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port or 80), timeout=engine.PATIENCE_S) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{service.url}/health").status_code == 200
