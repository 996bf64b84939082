"""Who may ask for what: every endpoint with every role, in its own workspace and in another one, by the table of
routes; sessions, signed addresses, streams whose key is revoked, other origins, and who did what in the log."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any, NamedTuple

import anyio
import httpx
import orjson
import pytest
from pydantic import ValidationError
from starlette.requests import Request

from eventstore import Database
from eventstore.tail import LOG, Hints
from service import key_records
from service.api.endpoint import Endpoint
from service.api.gate import COOKIE, SIGNED, Gate, names_a_thing
from service.api.problems import problem
from service.api.routes import ENDPOINTS, PREFIX
from service.errors import TooManyRequests
from service.key_records import NewKey
from service.keys import EVERYWHERE, SIGNED_S, Key, SignedPath
from service.known_keys import KnownKeys
from service.roles import Role
from service.settings import Settings
from tests import engine
from tests.conftest import ROOT, Server, Service, Store, own_service

pytestmark = pytest.mark.anyio

Keys = dict[tuple[Role, str], Key]
OWN, OTHER = engine.WORKSPACE, "elsewhere"
SCOPES = {"own": [OWN], "other": [OTHER], "all": [EVERYWHERE]}
ROLES: list[Role] = [role for role in Role if role is not Role.PUBLIC]
KEY_STREAMS = 3
PAGES_OF = "https://ok.example"
ANY_VIEWER = NewKey(name="viewer", role="viewer", workspaces=[EVERYWHERE])
ALLOWED = "passes"
GUARDED = [one for one in ENDPOINTS if one.role is not Role.PUBLIC]
UNKNOWN = "?nonsense=1"
"""Refused by every endpoint with 400, once the gate is passed, and before anything is done."""


@pytest.fixture(scope="module")
def open_to_all(server: Server) -> Iterator[Service]:
    """A service that listens everywhere, and asks for keys."""
    rate = {"ADE_RATE_REQUESTS_PER_SECOND": "10000", "ADE_RATE_BURST_REQUESTS": "10000"}
    keys = {"ADE_AUTH": "keys", "ADE_KEY_STREAMS": str(KEY_STREAMS), **rate}
    with own_service(server, ADE_HOST="0.0.0.0", ADE_CORS_ORIGINS=PAGES_OF, **keys) as running:
        yield running


def make(service: Service, role: str, workspaces: list[str]) -> Key:
    wanted = NewKey(name=f"{role} of {workspaces}", role=role, workspaces=workspaces)  # type: ignore[arg-type]

    async def record() -> Key:
        async with Database(service.database_url) as database:
            return await key_records.make(database, wanted, "tests")

    return anyio.run(record)


def revoke(service: Service, key: Key) -> None:
    async def end() -> None:
        async with Database(service.database_url) as database:
            assert await key_records.revoke(database, key.id, "tests", None)

    anyio.run(end)


@pytest.fixture(scope="module")
def keys(open_to_all: Service) -> Keys:
    """A key of each role for each scope."""
    return {(role, scope): make(open_to_all, role.value, SCOPES[scope]) for role, scope in product(ROLES, SCOPES)}


@pytest.fixture(scope="module")
def http(open_to_all: Service) -> Iterator[httpx.Client]:
    """Without a key."""
    with open_to_all.http as client:
        yield client


@pytest.fixture(scope="module")
def operator(open_to_all: Service, keys: Keys) -> Iterator[httpx.Client]:
    """With the key of an operator of its own workspace."""
    with open_to_all.http as client:
        client.headers.update(by(keys[Role.OPERATOR, "own"]))
        yield client


def by(key: Key) -> dict[str, str]:
    return {"X-API-Key": key.text}


class Things(NamedTuple):
    """One of each kind, all of them of one workspace; by what leads to them in a path or a parameter."""

    runs: str
    builds: str
    documents: str
    artifacts: str
    config: str
    keys: str
    ws: str = OWN

    def path(self, endpoint: Endpoint) -> str:
        """The path of an endpoint, about these. A parameter that is not known here fails the test of its endpoint."""

        def thing(found: re.Match[str]) -> str:
            before, name = found.groups()
            return f"/{before}/{getattr(self, before if name == 'id' else name)}"

        return re.sub(r"/(\w+)/\{(\w+)\}", thing, endpoint.path)

    def parameter(self, name: str) -> str:
        return {"run_id": self.runs, "build_id": self.builds, "config_id": self.config, "workspace_id": self.ws}[name]


@pytest.fixture(scope="module")
def things(operator: httpx.Client, keys: Keys) -> Things:
    """What an operator has left behind: a run with its build, an input, an artifact."""
    document = engine.told(operator.post(f"/workspaces/{OWN}/documents?name=in.txt", content=b"x"))["id"]
    config = engine.actor(operator)
    script = "open(sys.argv[-2] + '/out.txt', 'w').write('y')"
    run, _ = engine.run(operator, config, script, document_ids=[document])
    (artifact,) = engine.told(operator.get(f"/runs/{run['id']}/artifacts"))["data"]
    key = keys[Role.VIEWER, "own"].id
    return Things(run["id"], run["build_id"], document, artifact["id"], config, key)


# The table


def outcome(answer: httpx.Response) -> str:
    """``passes``, or the slug of the problem with which the gate has refused."""
    slug = str(answer.json()["type"]).removeprefix("/problems/")
    return ALLOWED if (answer.status_code, slug) == (400, "malformed") else slug


def expected(endpoint: Endpoint, role: Role, scope: str) -> str:
    if ROLES.index(role) < ROLES.index(endpoint.role) or (endpoint.everywhere and scope != "all"):
        return "role-too-low"
    return "not-found" if "{" in endpoint.path and scope == "other" else ALLOWED


@pytest.mark.parametrize("endpoint", GUARDED, ids=lambda one: one.name)
def test_every_role_in_every_workspace(http: httpx.Client, keys: Keys, things: Things, endpoint: Endpoint) -> None:
    """Each cell: who is unknown is 401, whose role is too low 403, another workspace's thing is 404. Seen to fail with
    a gate that looks at no path, with one that compares roles by name, and with one that knows no `everywhere`."""
    url = str(http.base_url).removesuffix(f"{PREFIX}/") + things.path(endpoint) + UNKNOWN
    cells = {cell: outcome(http.request(endpoint.method, url, headers=by(key))) for cell, key in keys.items()}
    assert cells == {(role, scope): expected(endpoint, role, scope) for role, scope in keys}
    nobody = http.request(endpoint.method, url)
    assert (outcome(nobody), nobody.status_code) == ("unknown-caller", 401)
    assert nobody.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("endpoint", GUARDED, ids=lambda one: one.name)
def test_a_parameter_leads_into_no_other_workspace(
    http: httpx.Client, keys: Keys, things: Things, endpoint: Endpoint
) -> None:
    """What a query names is one's own, or not there; and what is not there is the same to a key of one workspace."""
    url = str(http.base_url).removesuffix(f"{PREFIX}/") + things.path(endpoint)
    for name in filter(names_a_thing, endpoint.query.model_fields):
        asked = f"{url}{UNKNOWN}&{name}={things.parameter(name)}"
        found = {
            scope: outcome(http.request(endpoint.method, asked, headers=by(keys[Role.ADMIN, scope])))
            for scope in SCOPES
        }
        assert found == {"own": ALLOWED, "other": "not-found", "all": ALLOWED}, name


def test_the_page_on_keys_says_what_the_table_says() -> None:
    """Reading asks for a viewer and doing for an operator; what does not is listed, and so is what needs all
    workspaces. Seen to fail with a row too many, one too few, and another role."""
    text = (ROOT / "docs" / "keys.md").read_text()
    rows = re.findall(r"^\| (`(?:GET|POST|DELETE)[^|]*)\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    listed = {
        name: (role.strip().strip("`"), everywhere.strip() == "yes")
        for names, role, everywhere in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    by_rule = {"GET": Role.VIEWER, "POST": Role.OPERATOR}
    assert listed == {
        f"{one.method} {one.path.removeprefix(PREFIX)}": (
            "none" if one.role is Role.PUBLIC else one.role.value,
            one.everywhere,
        )
        for one in ENDPOINTS
        if one.everywhere or by_rule.get(one.method) is not one.role
    }


# What is seen


READS = [one for one in GUARDED if one.method == "GET" and "{" not in one.path and not one.everywhere]


@pytest.mark.parametrize("endpoint", READS, ids=lambda one: one.name)
def test_no_list_shows_another_workspaces_things(
    http: httpx.Client, keys: Keys, things: Things, endpoint: Endpoint
) -> None:
    """Every GET without a thing in its path: none of ours is anywhere in the answer to a stranger, who would see it
    with a key of our own. Seen to fail with a list, and with a selection, that does not ask whose rows it gives."""
    ours = {*things[:5], OWN}
    url = endpoint.path.removeprefix(PREFIX)
    stranger, own = (http.get(url, headers=by(keys[Role.ADMIN, scope])) for scope in ("other", "own"))
    assert stranger.status_code == own.status_code == 200
    assert not {thing for thing in ours if f'"{thing}"' in stranger.text}
    if endpoint.name in {"list_runs", "list_builds", "list_workspaces", "follow_log"}:
        assert {thing for thing in ours if f'"{thing}"' in own.text}
        assert "system_log" not in own.text


def test_the_log_is_cut_to_the_own_workspaces(http: httpx.Client, keys: Keys, things: Things) -> None:
    """A page, NDJSON and SSE alike: the same events; all of them, with the system's, for a key of all workspaces."""
    both = keys[Role.VIEWER, "own"], keys[Role.VIEWER, "all"]
    own, whole = (
        [
            orjson.loads(line)
            for line in http.get("/events", headers={**by(key), "Accept": engine.NDJSON}).iter_lines()
            if line
        ]
        for key in both
    )
    own = [event for event in own if event["object"] != "ade.bookmark"]
    assert {event["object"] for event in own} >= {"ade.run.event", "ade.build.event", "ade.config.event"}
    assert "ade.system.event" not in {event["object"] for event in own}
    assert "ade.system.event" in {event["object"] for event in whole}
    assert engine.told(http.get("/events?limit=1000", headers=by(both[0])))["data"] == own


def test_a_body_names_nothing_of_another_workspace(http: httpx.Client, keys: Keys, things: Things) -> None:
    """A run elsewhere on our document is 404, as with one that is not there; and an Idempotency-Key stands for one
    thing in each workspace."""
    stranger = {**by(keys[Role.OPERATOR, "other"]), "Idempotency-Key": "same"}
    with httpx.Client(base_url=http.base_url, headers=by(keys[Role.OPERATOR, "other"])) as client:
        config = engine.register(client, engine.files_of(engine.ENGINES / "actor"), workspace=OTHER)["id"]
    for document in (things.documents, "doc_none"):
        body = {"options": {"document_ids": [document], "dry_run": True}}
        assert http.post(f"/configs/{config}/runs", json=body, headers=stranger).status_code == 404
    made = {
        workspace: engine.told(http.post(f"/workspaces/{workspace}/documents", content=b"z", headers=headers))["id"]
        for workspace, headers in ((OTHER, stranger), (OWN, {**stranger, **by(keys[Role.OPERATOR, "own"])}))
    }
    assert made[OTHER] != made[OWN]


# Who did it


def test_the_log_says_whose_key_it_was(http: httpx.Client, operator: httpx.Client, keys: Keys, things: Things) -> None:
    """In every event that says who: what was made, canceled and switched over HTTP has the id of the key."""
    mine, admin = keys[Role.OPERATOR, "own"].id, keys[Role.ADMIN, "all"]
    run = engine.start(operator, things.config, "import time; time.sleep(60)")["id"]
    engine.told(operator.post(f"/runs/{run}/cancel"))
    engine.feed(operator, run)
    engine.told(http.post("/safe-mode", json={"enabled": False}, headers=by(admin)))
    made = engine.told(http.post("/keys", json={"name": "n", "role": "viewer", "workspaces": [OWN]}, headers=by(admin)))
    assert Key.parse(made["key"]) is not None
    for _ in range(2):
        revoked = engine.told(http.post(f"/keys/{made['id']}/revoke", json={"reason": "r"}, headers=by(admin)))
        assert revoked["state"] == "revoked"
    assert "key" not in engine.told(http.get("/keys", headers=by(admin)))["data"][0]
    params = {
        "types": "document.stored,config.registered,build.created,run.created,run.cancel_requested",
        "limit": "500",
    }
    acts = engine.told(operator.get("/events", params=params))["data"]
    assert {event["requested_by"] for event in acts} == {mine}
    assert {event["type"] for event in acts} == set(params["types"].split(","))
    params = {"types": "safe_mode.changed,key.created,key.revoked", "limit": "500"}
    acts = engine.told(http.get("/events", params=params, headers=by(admin)))["data"]
    assert [event["type"] for event in acts if event["requested_by"] == admin.id] == [
        "safe_mode.changed",
        "key.created",
        "key.revoked",
    ]


# Keys, sessions, signed addresses


def test_a_key_is_shown_in_either_header(http: httpx.Client, keys: Keys) -> None:
    """And nothing that is not a key that lives is taken for one."""
    key = keys[Role.VIEWER, "own"]
    for headers in (by(key), {"Authorization": f"Bearer {key.text}"}, {"Authorization": f"bearer  {key.text}"}):
        who = engine.told(http.get("/session", headers=headers))
        assert (who["key_id"], who["role"], who["workspaces"]) == (key.id, "viewer", [OWN])
    wrong = ["", "x", key.id, key.secret, key.text[:-1], key.text + "0", key.text.upper(), Key(key.id, "0" * 64).text]
    for text in wrong:
        assert http.get("/runs", headers={"X-API-Key": text}).status_code == 401
        assert http.get("/runs", headers={"Authorization": f"Bearer {text}".rstrip()}).status_code == 401
        assert http.get("/runs", headers={"Cookie": f"{COOKIE}={text}"}).status_code == 401
    assert http.get("/runs", headers={"Authorization": f"Basic {key.text}"}).status_code == 401
    for query in ("run_id=%00", "config_id=%ff", "workspace_id=%00", "run_id=%ed%a0%80"):
        assert http.get(f"/events?{query}", headers=by(key)).status_code == 404


def test_a_session_is_for_pages_of_this_site(open_to_all: Service, keys: Keys) -> None:
    """The cookie cannot be read by scripts, does what the key does, for requests that a page of ours has caused, and is
    over when it is closed. Seen to fail with a gate that believes every cookie."""
    own_page = {"Sec-Fetch-Site": "same-origin"}
    with open_to_all.http as browser:
        answer = browser.post("/session", headers=by(keys[Role.OPERATOR, "own"]))
        cookie = answer.headers["set-cookie"]
        assert re.search(rf"^{COOKIE}=ade_\w+; HttpOnly; Max-Age=431\d\d; Path=/; SameSite=strict$", cookie)
        https = browser.post("/session", headers={**by(keys[Role.VIEWER, "own"]), "Origin": "https://ade.example"})
        assert "; Secure" in https.headers["set-cookie"]
        browser.cookies.clear()
        browser.cookies.set(COOKIE, cookie.partition(";")[0].partition("=")[2])
        assert browser.get("/runs").status_code == 200
        origin = open_to_all.url
        document = f"/workspaces/{OWN}/documents"
        for headers in (own_page, {"Origin": origin}, {**own_page, "Origin": origin}):
            assert browser.post(document, headers=headers, content=b"x").status_code == 201
        for headers in (
            {},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": origin},
        ):
            refused = browser.post(document, headers=headers, content=b"x")
            assert (refused.status_code, refused.json()["type"]) == (403, "/problems/foreign-origin")
        assert browser.get("/runs", headers={"Sec-Fetch-Site": "same-site"}).status_code == 403
        assert browser.post("/session", headers=own_page).status_code == 401
        assert browser.request("DELETE", "/session", headers=own_page).status_code == 204
        browser.cookies.set(COOKIE, cookie.partition(";")[0].partition("=")[2])
        engine.eventually(lambda: browser.get("/runs").status_code == 401, "the session is over")


def test_a_signed_address_is_good_for_one_path(
    http: httpx.Client, operator: httpx.Client, things: Things, keys: Keys
) -> None:
    """For reading it, with any parameters, until its time is over; and for a key of another workspace there is none."""
    for kind in ("runs", "builds"):
        urls = engine.told(operator.post(f"/{kind}/{getattr(things, kind)}/signed-urls"))
        assert urls["expires_at"]
        for part in ("events", "logs", "logfile"):
            url = urls[part].removeprefix(PREFIX)
            assert http.get(f"{url}&limit=1" if part != "logfile" else url).status_code == 200
            assert http.head(url).status_code == 200
            assert http.post(url).status_code in {401, 405}
    url = urls["events"].removeprefix(PREFIX)
    assert http.get(f"{url}&limit=0").json()["type"] == "/problems/malformed"
    resumed = http.get(url, headers={"Accept": engine.SSE, "Last-Event-ID": "999999999"})
    assert resumed.json()["type"] == "/problems/cursor-ahead"
    query = url.partition("?")[2]
    for other in (f"/runs/{things.runs}/events", f"/builds/{things.builds}", f"/builds/{things.builds}/logs"):
        assert http.get(f"{other}?{query}").status_code == 401
    for name, wrong in product(SIGNED, ("", "00", "%00", "%ff", "\u0661")):
        assert http.get(re.sub(rf"\b{name}=\w+", f"{name}={wrong}", url)).status_code == 401
    key, path = keys[Role.OPERATOR, "own"], f"{PREFIX}/runs/{things.runs}/events"
    for seconds, status in ((60, 200), (-1, 401)):
        signed = SignedPath(path, key.id, int(time.time()) + seconds).sign(key.sha256)
        assert http.get(signed.url.removeprefix(PREFIX)).status_code == status
    assert SIGNED_S == 24 * 3600


@pytest.mark.parametrize("way", ["key", "session", "signed"])
def test_a_stream_ends_with_its_key(open_to_all: Service, things: Things, way: str) -> None:
    """SSE of a run that waits and NDJSON of the log, between two events, within about a second; who comes back is told
    401. Seen to fail with a hub that knows no callers: the stream went on."""
    key = make(open_to_all, "operator", [OWN])
    with open_to_all.http as http:
        body = {"options": {"engine_args": ["import time; time.sleep(60)"]}}
        run = engine.told(http.post(f"/configs/{things.config}/runs", json=body, headers=by(key)))["id"]
        path, headers = f"/runs/{run}/events", {"Accept": engine.SSE}
        if way == "key":
            headers |= by(key)
        elif way == "session":
            engine.told(http.post("/session", headers=by(key)))
        else:
            path = engine.told(http.post(f"/runs/{run}/signed-urls", headers=by(key)))["events"].removeprefix(PREFIX)
        with http.stream("GET", path, headers=headers) as stream:
            assert stream.status_code == 200
            chunks = stream.iter_raw()
            received = next(chunks)
            revoked_at = time.monotonic()
            revoke(open_to_all, key)
            received += b"".join(engine.bounded(chunks))
            assert time.monotonic() - revoked_at < 20  # a second, on a machine that does nothing else
        assert re.search(rb"\n\nretry: \d+\n\n$", received)
        again = http.get(path, headers=headers)
        assert again.status_code == 401
        with open_to_all.http as admin:
            admin.headers.update(by(make(open_to_all, "admin", [EVERYWHERE])))
            engine.told(admin.post(f"/runs/{run}/cancel"))
            engine.feed(admin, run)


def test_a_key_has_so_many_streams(open_to_all: Service, things: Things) -> None:
    """One more is told to come back: NDJSON by 429, before a run is created for it, and SSE by 200 and a time, which an
    `EventSource` obeys. Those that have ended count no more; another key has its own. Seen to be served without the
    limit."""
    key, other = (make(open_to_all, "operator", [OWN]) for _ in range(2))
    with open_to_all.http as http, ExitStack() as opened:

        def follow(by_key: Key, form: str) -> httpx.Response:
            headers = {**by(by_key), "Accept": form}
            return opened.enter_context(http.stream("GET", "/events", params={"stream": "true"}, headers=headers))

        for _ in range(2 * KEY_STREAMS):  # of a run that has ended
            over = http.get(f"/runs/{things.runs}/events", headers={**by(key), "Accept": engine.SSE})
            assert b"run.completed" in over.content
        for _ in range(KEY_STREAMS):
            next(follow(key, engine.SSE).iter_raw())
        refused = follow(key, engine.NDJSON)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        answer = http.post(f"/configs/{things.config}/runs", json={"stream": True}, headers=by(key))
        assert answer.status_code == 429
        later = follow(key, engine.SSE)
        assert later.status_code == 200
        assert re.fullmatch(rb"retry: \d+\n\n", later.read())
        assert follow(other, engine.NDJSON).status_code == 200


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(store: Store) -> None:
    """429 with Retry-After, in whole seconds; and nobody else's request is in its way."""
    eager, calm = [await key_records.make(store.database, ANY_VIEWER, "tests") for _ in range(2)]
    known = KnownKeys(store.database, Hints(store.database, LOG), lambda: None, per_second=0.1, burst=2)
    gate = Gate(store.database, known)

    def asked(key: Key) -> Request:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "path_params": {}}
        return Request({**scope, "headers": [(b"x-api-key", key.text.encode())]})

    for key in (eager, eager, calm):
        await gate.admit(asked(key), Role.VIEWER, everywhere=False)
    with pytest.raises(TooManyRequests) as refused:
        await gate.admit(asked(eager), Role.VIEWER, everywhere=False)
    answer = problem(refused.value)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
    await gate.admit(asked(calm), Role.VIEWER, everywhere=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"cors_origins": "*", "auth": "keys"}, "no origin"),
        ({"cors_origins": "https://a.example/", "auth": "keys"}, "no origin"),
        ({"cors_origins": "https://a.example"}, "needs ADE_AUTH=keys"),
        ({"auth": "none"}, "'keys' or 'off'"),
        ({"rate_requests_per_second": 0}, "greater than 0"),
    ],
)
def test_settings_that_would_let_everybody_in_are_refused(settings: dict[str, Any], says: str) -> None:
    """Before anything listens. Seen to fail without the relation of origins and keys."""
    with pytest.raises(ValidationError, match=says):
        Settings(**settings)


# Heads


def test_every_answer_says_how_it_may_be_used(
    open_to_all: Service, http: httpx.Client, operator: httpx.Client, things: Things
) -> None:
    """Answers of every kind: no sniffing, no framing, no referrer, no cache that would not ask."""
    with engine.following(operator, things.runs) as stream:
        answers = [stream]
    answers += [operator.get("/runs"), http.get("/runs"), http.get("/nowhere"), http.get(f"{open_to_all.url}/")]
    answers.append(operator.get(f"/artifacts/{things.artifacts}/content"))
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"]
        assert re.search("private|no-store", answer.headers["cache-control"])
        names = [name.lower() for name, _ in answer.headers.multi_items()]
        assert len(names) == len(set(names))


def test_pages_of_other_origins(http: httpx.Client, operator: httpx.Client, things: Things) -> None:
    """Those that are let in may send a key and read what matters, on streams too; others are told nothing."""
    ask = {"Origin": PAGES_OF, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    first = http.options("/runs", headers=ask)
    assert first.status_code == 204
    assert {"X-API-Key", "Last-Event-ID", "Idempotency-Key"} <= set(
        first.headers["access-control-allow-headers"].split(", ")
    )
    with operator.stream("GET", f"/runs/{things.runs}/events?stream=true", headers={"Origin": PAGES_OF}) as stream:
        assert stream.headers["access-control-allow-origin"] == PAGES_OF
        assert "ADE-Log-Id" in stream.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in stream.headers
    assert http.get("/runs", headers={"Origin": PAGES_OF}).headers["access-control-allow-origin"] == PAGES_OF
    for origin in ("https://evil.example", f"{PAGES_OF}.evil.example", "null"):
        assert http.options("/runs", headers={**ask, "Origin": origin}).status_code == 405
        answer = operator.get("/runs", headers={"Origin": origin})
        assert answer.headers["vary"] == "Origin"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_long_head_is_refused(http: httpx.Client) -> None:
    """In headers and in the address, before anybody looks who asks."""
    for asked in ({"url": "/runs", "headers": {"X-Long": "x" * 40_000}}, {"url": "/runs?q=" + "x" * 40_000}):
        answer = http.get(**asked)
        assert (answer.status_code, answer.json()["type"]) == (431, "/problems/head-too-large")


def test_the_command_line_shows_its_key(open_to_all: Service, keys: Keys, things: Things) -> None:
    """`ADE_API_KEY`; without one it says what is wrong."""
    command = [sys.executable, "-m", "service.cli", "runs", "list", "-w", OWN, "--json"]
    for key, code in ((keys[Role.VIEWER, "own"].text, 0), ("", 2)):
        env = {**open_to_all.env, "ADE_API_KEY": key}
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        assert (things.runs in done.stdout) == (code == 0)
    assert "ADE_API_KEY" in done.stderr
