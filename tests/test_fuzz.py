"""The running service, asked by its own description: requests that fit it and requests that do not, of every endpoint.

The round is small, and always the same. ``ADE_TEST_FUZZ_EXAMPLES=100`` goes on for minutes, and differs each time.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from eventstore import Database
from service import key_records
from service.api.endpoint import Endpoint
from service.api.routes import ENDPOINTS
from service.api.uploads import ARCHIVES
from service.key_records import NewKey
from tests import engine
from tests.conftest import Server, own_service

LONG = "ADE_TEST_FUZZ_EXAMPLES" in os.environ
EXAMPLES = settings(
    max_examples=int(os.environ.get("ADE_TEST_FUZZ_EXAMPLES", "3")),
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""Of each endpoint."""
ANSWER_S = 30.0
PACKAGE = engine.pack(engine.package("fuzzed"))
EARLY = {400, 401, 403, 404, 405, 415, 422}
"""What is refused before anything is looked at."""
REJECTED = {"enabled": True, "expected-statuses": [400, 401, 403, 404, 405, 409, 410, 413, 415, 422]}
CHECKS = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": REJECTED}})


class Impatient(HTTPAdapter):
    """Leaves a stream when it has begun: many have no end."""

    def send(self, request: requests.PreparedRequest, **more: Any) -> requests.Response:  # type: ignore[override]
        answer = super().send(request, **{**more, "stream": True, "timeout": ANSWER_S})
        media_type = answer.headers.get("content-type", "").split(";")[0]
        if media_type in {engine.NDJSON, engine.SSE, "application/jsonl"}:
            answer.close()
            answer._content, answer._content_consumed = b"", True  # type: ignore[attr-defined]
        return answer


@dataclass(frozen=True)
class Fuzzed:
    """A service, what it says of itself, and what it wants in every request."""

    url: str
    schema: schemathesis.BaseSchema
    headers: dict[str, str]


@pytest.fixture(scope="module", params=["off", "keys"])
def fuzzed(request: pytest.FixtureRequest, server: Server) -> Iterator[Fuzzed]:
    """Its paths lead to what is there, so that not everything is 404."""
    rate = {"ADE_RATE_REQUESTS_PER_SECOND": "100000", "ADE_RATE_BURST_REQUESTS": "100000"}
    with own_service(server, ADE_AUTH=request.param, ADE_DRAIN_SECONDS="1", **rate) as service:
        headers = {} if request.param == "off" else {"X-API-Key": admin(service.database_url)}
        with service.http as http:
            http.headers.update(headers)
            ids = things(http)
        document = httpx.get(f"{service.url}/openapi.json").json()
        for path, operations in document["paths"].items():
            for operation in operations.values():
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "path":
                        kind = path.split("/{" + parameter["name"])[0].split("/")[-1]
                        parameter["schema"] = {"type": "string", "enum": [ids[kind]]}
        yield Fuzzed(service.url, schemathesis.openapi.from_dict(document, config=CHECKS), headers)


def admin(url: str) -> str:
    async def record() -> str:
        async with Database(url) as database:
            return (await key_records.make(database, NewKey(name="fuzz", role="admin", workspaces=["*"]), "tests")).text

    return anyio.run(record)


def things(http: httpx.Client) -> dict[str, str]:
    """One of each kind, by what stands before it in a path."""
    ws = engine.WORKSPACE
    document = engine.told(http.post(f"/workspaces/{ws}/documents?name=in.txt", content=b"x"))["id"]
    config = engine.actor(http)
    script = "open(sys.argv[-2] + '/out.txt', 'w').write('y')"
    run, _ = engine.run(http, config, script, document_ids=[document])
    (artifact,) = engine.told(http.get(f"/runs/{run['id']}/artifacts"))["data"]
    key = engine.told(http.post("/keys", json={"name": "spare", "role": "viewer", "workspaces": [ws]}))["id"]
    return {
        "workspaces": ws, "configs": config, "configurations": config, "documents": document, "runs": run["id"],
        "builds": run["build_id"], "artifacts": artifact["id"], "keys": key,
    }  # fmt: skip


@schemathesis.serializer(*ARCHIVES)
def packed(context: schemathesis.SerializationContext, _value: Any) -> bytes:
    """The body of an upload that has a media type of its own: a package, or the half of one."""
    fits = context.case.meta is None or context.case.meta.generation.mode is GenerationMode.POSITIVE
    return PACKAGE if fits else PACKAGE[: len(PACKAGE) // 2]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_the_service_does_what_it_says(fuzzed: Fuzzed, endpoint: Endpoint) -> None:
    """No server error, no status, media type, header or shape that is not described; what does not fit the description
    is refused; other methods are 405, with those that there are; with keys on, nothing is answered without one."""
    operation = fuzzed.schema[endpoint.path][endpoint.method]
    modes, answers = list(GenerationMode), set()
    with requests.Session() as session:
        session.mount("http://", Impatient())

        def ask(case: schemathesis.Case[Any]) -> None:
            answer = case.call(base_url=fuzzed.url, session=session, headers=fuzzed.headers)
            answers.add(answer.status_code)
            case.validate_response(answer, headers=fuzzed.headers, excluded_checks=not_checked(case, fuzzed))

        if fuzzed.headers or LONG:  # the bounds of each parameter; they are the same without keys
            generation = fuzzed.schema.config.generation_for(operation=operation)
            for case in fuzzed.schema.iter_coverage_cases(
                operation, generation_modes=modes, generation_config=generation
            ):
                ask(case)
            assert answers - EARLY, f"nothing came to the endpoint itself: {answers}"
        EXAMPLES(given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))(ask))()


def not_checked(case: schemathesis.Case[Any], fuzzed: Fuzzed) -> list[Any]:
    """What does not hold: what fits the description may be refused, for what is there, or is not (a page's mark, a
    document); other ids than ours are strings too; and where no key is asked for, none is missed."""
    found: list[Any] = [positive_data_acceptance]
    if not fuzzed.headers:
        found.append(ignored_auth)
    if case.meta is not None and case.meta.is_negative_at(ParameterLocation.PATH):
        found.append(negative_data_rejection)
    return found
