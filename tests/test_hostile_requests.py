"""What a hostile client sends: text that would be more than text, framing that two readers read in two ways, too much,
too deep, too slow, too many. It is refused, it is in the log, and the service serves the next one at once."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from service.api.endpoint import Endpoint
from service.api.request import BODY_MAX_BYTES, Body
from service.api.routes import ENDPOINTS
from service.cli.bounded_head import WAITING_REQUESTS
from tests import engine
from tests.conftest import Service
from tests.test_api_problems import problem

pytestmark = pytest.mark.usefixtures("tidy")

QUICK_S = 4.0
"""For an answer; less than the five seconds that the texts below would have the database sleep."""
SQL = ("'; DROP TABLE events; SELECT pg_sleep(5); --", "' OR 1=1 UNION SELECT pg_sleep(5)::text --", "%s %(id)s $1 {0}")
PATHS = ("../../../../etc/passwd", "..%2f..%252e%252e%255cetc", "/etc/passwd", "file:///etc/passwd\u2028..")
BYTES = ("\0", "a\r\nX-Injected: 1\r\n\r\n<script>", "\ud800", "\ufeff\u202e", "9" * 5000)
TEXTS = (*SQL, *PATHS, *BYTES)
RAW = ("%C0%AE%C0%AE%C0%AF", "%ED%A0%80", "%F8%88%80%80%80", "%FF%00")
"""Overlong, a surrogate, five bytes, none: what is no UTF-8, as it stands in an address."""
VALID: dict[str, engine.Json] = {
    "create_run": {"options": {"dry_run": True}},
    "switch_safe_mode": {"enabled": False},
    "create_key": {"name": "spare", "role": "viewer", "workspaces": [engine.WORKSPACE]},
}
"""What a body needs for the rest of it to be looked at."""


@pytest.fixture(scope="module")
def ids(http: httpx.Client) -> dict[str, str]:
    """What is there, by the name of a path's parameter and what stands before it."""
    config = engine.actor(http)
    run, _ = engine.run(http, config, "print('hello')")
    return {"ws": engine.WORKSPACE, "config": config, "runs": run["id"], "builds": run["build_id"]}


def encoded(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def hostile(endpoint: Endpoint, ids: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests of an endpoint that say each text in each place: the address, and what else there is."""

    def path(**wrong: str) -> str:
        def one(found: re.Match[str]) -> str:
            before, name = found.groups()
            key = before if name == "id" else name
            return f"/{before}/{wrong.get(key) or ids.get(key, 'none')}"

        return re.sub(r"/(\w+)/\{(\w+)\}", one, endpoint.path)

    places = [before if name == "id" else name for before, name in re.findall(r"/(\w+)/\{(\w+)\}", endpoint.path)]
    for text in (*map(encoded, TEXTS), *RAW):
        yield from ((path(**{place: text}), {}) for place in places)
        yield from ((f"{path()}?{name}={text}", {}) for name in endpoint.query.model_fields)
        yield f"{path()}?{text}={text}", {}
    for text in TEXTS:
        value = re.sub(rb"[\0\r\n]", b"x", text.encode("utf-8", "surrogatepass"))  # a client cannot send these at all
        yield from ((path(), {"headers": {header.name: value}}) for header in endpoint.takes)
        if endpoint.body is not None:
            yield from ((path(), {"json": body}) for body in bodies(endpoint.body, VALID.get(endpoint.name, {}), text))


def bodies(model: type[Body], valid: engine.Json, text: str) -> Iterator[engine.Json]:
    """The valid body with the text in each of its fields, in every shape that a field has; and as a field."""
    yield {**valid, text: text}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Body):
            yield from ({**valid, name: inner} for inner in bodies(field.annotation, valid.get(name, {}), text))
        else:
            yield from ({**valid, name: value} for value in (text, [text], {text: text}))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_text_is_text(service: Service, ids: dict[str, str], endpoint: Endpoint) -> None:
    """SQL, paths, line breaks and broken Unicode in every place of every endpoint: found nowhere, refused or kept as
    it is. Nothing breaks, nothing sleeps, no header is made of it."""
    with httpx.Client(base_url=service.url, timeout=60) as http:
        before = http.get("/api/v1/events/head").json()["head"]
        for address, more in hostile(endpoint, ids):
            if "json" in more:
                more = {"content": json.dumps(more["json"]), "headers": {"Content-Type": "application/json"}}
            begun = time.monotonic()
            answer = http.request(endpoint.method, address, **more)
            assert time.monotonic() - begun < QUICK_S, (address, more)
            assert answer.status_code < 500, (address, more, answer.text)
            assert "x-injected" not in answer.headers
            assert "root:" not in answer.text
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json", (address, more)
        assert http.get("/ready").status_code == 200
        assert http.get("/api/v1/events/head").json()["head"] >= before


@pytest.mark.parametrize("name", ["..", "a/b", "a\r\nX-Injected: 1", "a\\b", '"; x="', "ü\u2028", "%2e%2e%2fa", "a;b"])
def test_a_name_is_a_name_in_a_download(http: httpx.Client, name: str) -> None:
    """It is refused, or it comes back as it was, in one header that holds nothing else."""
    answer = http.post(f"/workspaces/{engine.WORKSPACE}/documents", params={"name": name}, content=b"x")
    if answer.status_code == 400:
        assert name in {"..", "a/b", "a\r\nX-Injected: 1", "ü\u2028"}
        return
    given = http.get(f"/documents/{engine.told(answer)['id']}/content")
    plain = "".join("_" if c in '"\\' else c for c in name)
    assert given.headers["content-disposition"] == (
        f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
    )


# Framing

POST = b"POST /api/v1/safe-mode HTTP/1.1\r\n"
GET = b"GET /health HTTP/1.1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
INSIDE = b"GET /inside HTTP/1.1\r\nHost: localhost\r\n\r\n"
HOST = b"Host: localhost\r\n"
AMBIGUOUS = {
    "both lengths": POST + HOST + b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + INSIDE,
    "both lengths, with a tab": POST
    + HOST
    + b"Transfer-Encoding:\tchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"
    + INSIDE,
    "two lengths": POST + HOST + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + INSIDE,
    "a list of lengths": POST + HOST + b"Content-Length: 0, 44\r\n\r\n" + INSIDE,
    "a length with a sign": POST + HOST + b"Content-Length: +2\r\n\r\n{}" + INSIDE,
    "a length beyond all bounds": POST + HOST + b"Content-Length: 99999999999999999999999\r\n\r\n" + INSIDE,
    "another coding": POST + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + INSIDE,
    "a coding behind chunked": POST + HOST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INSIDE,
    "two codings": POST + HOST + b"Transfer-Encoding: identity\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + INSIDE,
    "a chunk of no size": POST + HOST + CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n" + INSIDE,
    "a chunk of 0x2": POST + HOST + CHUNKED + b"\r\n0x2\r\n{}\r\n0\r\n\r\n" + INSIDE,
    "a chunk beyond all bounds": POST + HOST + CHUNKED + b"\r\nFFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n" + INSIDE,
    "chunks with bare line feeds": POST + HOST + CHUNKED + b"\r\n2\n{}\n0\n\n" + INSIDE,
    "a line feed in a chunk's head": POST + HOST + CHUNKED + b"\r\n2;\n{}\r\n0\r\n\r\n" + INSIDE,
    "a space before the colon": POST + HOST + b"Content-Length : 44\r\n\r\n" + INSIDE,
    "a folded header": GET + HOST + b"X-A: b\r\n Content-Length: 44\r\n\r\n" + INSIDE,
    "bare line feeds": b"GET /health HTTP/1.1\nHost: localhost\n\n" + INSIDE,
    "a bare carriage return": GET + HOST + b"X-A: b\rX-B: c\r\n\r\n" + INSIDE,
    "a NUL in a header": GET + HOST + b"X-A: b\0c\r\n\r\n" + INSIDE,
    "two hosts": GET + HOST + b"Host: evil.example\r\n\r\n" + INSIDE,
    "no host": GET + b"\r\n" + INSIDE,
    "a path that is not ASCII": "GET /ä HTTP/1.1\r\n".encode() + HOST + b"\r\n" + INSIDE,
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n" + INSIDE,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method without end": b"A" * 5000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n",
}


def connected(service: Service) -> socket.socket:
    host, port = service.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def everything(connection: socket.socket) -> bytes:
    """What comes until the service closes the connection."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_what_two_readers_may_read_in_two_ways_is_refused(service: Service, sent: bytes) -> None:
    """With 400 and a problem document, and that is the end of the connection: what lies behind is not read as a
    request. ``two codings`` and ``two hosts`` were seen to be answered by uvicorn alone."""
    with connected(service) as connection:
        connection.sendall(sent)
        answers = everything(connection).split(b"HTTP/1.1 ")[1:]
    assert len(answers) == 1, answers
    head, _, body = answers[0].partition(b"\r\n\r\n")
    assert head.startswith(b"400 ")
    assert b"content-type: application/problem+json" in head.lower()
    assert b"x-request-id: " in head.lower()
    assert json.loads(body)["type"] == "/problems/malformed"


@pytest.mark.parametrize(
    ("start", "headers", "status"),
    [
        ("TRACE /health", b"Cookie: secret=1\r\n", 405),
        ("OPTIONS *", b"", 404),
        ("OPTIONS /api/v1/runs", b"", 405),
        ("HEAD /health", b"", 200),
        ("GET http://evil.example/health", b"", 200),
        ("GET //evil.example/%2e%2e/etc/passwd", b"", 404),
        ("GET /%0d%0aX-Injected:%201", b"", 404),
        ("GET /health", b"X-Request-ID: a\xff b\r\nAuthorization: Bearer \xe4\r\nCookie: ade_session=\xff\r\n", 200),
        ("GET /api/v1/events", b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AA==\r\n", 200),
        ("GET /health", b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n", 200),
    ],
)
def test_odd_requests_are_answered_as_what_they_are(service: Service, start: str, headers: bytes, status: int) -> None:
    """No other protocol is begun, nothing is echoed, no other host is asked for."""
    with connected(service) as connection:
        upgrade = b"Connection: Upgrade, close\r\n" if b"Upgrade" in headers else b"Connection: close\r\n"
        connection.sendall(start.encode() + b" HTTP/1.1\r\n" + HOST + headers + upgrade + b"\r\n")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"secret" not in answer
    assert b"\nx-injected" not in answer.lower()
    assert b"evil.example" not in answer


# Too much


def api(service: Service) -> int:
    """The id of the process that serves HTTP."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if parent == service.process.pid and b"api" in command.rsplit(b"service.cli", 1)[-1]:
            return int(status.parent.name)
    raise AssertionError("no API process")


def memory(pid: int) -> int:
    """What the process has in memory, in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def deep(opening: str, closing: str) -> bytes:
    """As deep as the limit of a body allows."""
    times = BODY_MAX_BYTES // len(opening + closing) - 100
    return b'{"enabled":' + opening.encode() * times + b"1" + closing.encode() * times + b"}"


TOO_MUCH = {
    "lists in lists": (deep("[", "]"), 400, "malformed"),
    "objects in objects": (deep('{"a":', "}"), 400, "malformed"),
    "lists without end": (b"[" * (BODY_MAX_BYTES - 1), 400, "malformed"),
    "deep enough to be read": (b'{"enabled":' + b"[" * 500 + b"]" * 500 + b"}", 422, "invalid"),
    "a number of a million digits": (b'{"enabled":' + b"9" * (BODY_MAX_BYTES - 100) + b"}", 400, "malformed"),
    "a power beyond all bounds": (b'{"enabled":1e999999999}', 400, "malformed"),
    "a hundred thousand fields": (
        b'{"enabled":1' + b"".join(b',"%x":0' % n for n in range(80_000)) + b"}",
        422,
        "invalid",
    ),
    "a name of a million characters": (b'{"%b":1}' % (b"a" * (BODY_MAX_BYTES - 100)), 422, "invalid"),
    "the same field, again and again": (b'{"enabled":1' + b',"enabled":1' * 80_000 + b"}", 422, "invalid"),
    "more than a body may have": (b'{"enabled":"' + b"a" * BODY_MAX_BYTES + b'"}', 413, "too-large"),
}


@pytest.mark.parametrize(("body", "status", "slug"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_too_much_json(http: httpx.Client, body: bytes, status: int, slug: str) -> None:
    """Too deep, too long, too many: refused quickly, in few words. Seen to be answered with 5 MB of errors."""
    begun = time.monotonic()
    answer = http.post("/safe-mode", content=body, headers={"Content-Type": "application/json"})
    problem(answer, status, slug)
    assert time.monotonic() - begun < QUICK_S
    assert len(answer.content) < 32 * 1024


MORE_BYTES = 100 * 2**20
SMALL = GET + HOST + b"X-Pad: aaaaaaaaaaaaaa\r\n\r\n"
"""A request of 64 bytes: no piece of many ends within one."""


def test_memory_is_bounded(service: Service, http: httpx.Client) -> None:
    """A package over the limit, without a length; requests of which no answer is taken; many large bodies at a time:
    the process stays about as large as it was. Seen to grow by 180 MB without a limit of waiting requests."""
    pid = api(service)
    engine.told(http.get("/events/head"))
    before = memory(pid)
    path = f"/workspaces/{engine.WORKSPACE}/configs"
    headers = {"Content-Type": "application/gzip"}
    pieces = (b"\0" * 2**20 for _ in range(65))
    problem(http.post(path, content=pieces, headers=headers), 413, "too-large")
    with connected(service) as connection:
        with suppress(ConnectionError):  # it is closed under us
            for _ in range(200):
                connection.sendall(SMALL * 800)
                time.sleep(0.003)  # many pieces at once would be cut where a head seems to be too long
        assert memory(pid) - before < MORE_BYTES
    with ExitStack() as opened:
        for _ in range(50):
            connection = opened.enter_context(connected(service))
            connection.sendall(POST + HOST + b"Content-Length: %d\r\n\r\n" % BODY_MAX_BYTES + b" " * 2**19)
        engine.told(http.get("/events/head"))
        assert memory(pid) - before < MORE_BYTES


def test_requests_may_be_sent_before_answers_are_taken(service: Service) -> None:
    """As many as the limit, answered in their order."""
    with connected(service) as connection:
        one = b"GET /%d HTTP/1.1\r\n" + HOST
        sent = b"".join(one % n + b"X-Request-ID: id-%d\r\n\r\n" % n for n in range(WAITING_REQUESTS))
        connection.sendall(sent + GET + HOST + b"Connection: close\r\n\r\n")
        answers = everything(connection)
    assert re.findall(rb"x-request-id: id-(\d+)\r\n", answers) == [b"%d" % n for n in range(WAITING_REQUESTS)]
    assert answers.count(b"HTTP/1.1 ") == WAITING_REQUESTS + 1


def test_many_connections_of_one_client(service: Service, http: httpx.Client) -> None:
    """Silent ones, and halves of heads and bodies: another client is served at once."""
    with ExitStack() as opened:
        for part in (b"", GET[:10], POST + HOST + b"Content-Length: 10\r\n\r\n{") * 100:
            opened.enter_context(connected(service)).sendall(part)
        begun = time.monotonic()
        engine.told(http.get("/runs"))
        assert time.monotonic() - begun < QUICK_S


def test_what_is_refused_is_in_the_log(service: Service, http: httpx.Client) -> None:
    """By its id and its route, one line each, without a word of what was sent; also what is no HTTP."""
    before = service.log.stat().st_size
    path = "/runs/%0d%0aINJECTED/events?after_id=%27;DROP%20TABLE%20events"
    answer = http.get(path, headers={"X-Request-ID": "hostile-1"})
    problem(answer, 400, "malformed")
    with connected(service) as connection:
        connection.sendall(b"\x16INJECTED\r\n\r\n")
        everything(connection)
    said = service.log.read_bytes()[before:]
    lines = [json.loads(line) for line in said.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "hostile-1"]
    assert (line["status"], line["route"]) == (400, "/api/v1/runs/{id}/events")
    assert any("Invalid HTTP request" in line["event"] for line in lines)
    assert b"INJECTED" not in said
    assert b"DROP" not in said
