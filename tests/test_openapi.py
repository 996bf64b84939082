"""The description of the API: kept, readable by programs of others, and true of what the service answers."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from starlette.requests import Request

from service.api import docs_page, openapi, reference
from service.api.endpoint import RANGE, Endpoint
from service.api.query import Query, parameters, parse
from service.api.routes import ENDPOINTS
from service.errors import Malformed
from tests import engine
from tests.conftest import ROOT, Service
from tests.histories import golden

REFERENCE = ROOT / "docs" / "reference"
NODE = Path(sys.prefix) / "bin" / "node"
MODULES = Path(sys.prefix) / "node" / "node_modules"
HERE = "urn:api"
CLIENT = """
import type { components, operations, paths } from "./api";
type Run = components["schemas"]["RunSnapshot"];
export function done(run: Run): boolean { return run.status === "succeeded" || run.stop_reason === "canceled"; }
export function text(event: components["schemas"]["ServiceEvent"]): string {
  return event.type === "run.log" ? event.message ?? "" : event.type === "run.completed" ? event.status : event.type;
}
export const body: components["schemas"]["CreateRunBody"] = { stream: true, options: { engine_args: ["--fast"] } };
export const query: operations["list_runs"]["parameters"]["query"] = { status: ["failed"], limit: 5 };
type Refusal = paths["/api/v1/runs/{id}/cancel"]["post"]["responses"][409]["content"]["application/problem+json"];
export const slug = (refusal: Refusal): "/problems/already-ended" => refusal.type;
"""
WRONG = 'export const wrong: operations["list_runs"]["parameters"]["query"] = { status: ["building"] };'


@cache
def document() -> dict[str, Any]:
    return openapi.document(ENDPOINTS)


def validator(name: str) -> jsonschema.Draft202012Validator:
    """For a schema of the document."""
    registry: Registry[Any] = Registry().with_resource(HERE, DRAFT202012.create_resource(document()))
    return jsonschema.Draft202012Validator({"$ref": f"{HERE}#/components/schemas/{name}"}, registry=registry)


# The files


def test_the_kept_description_is_the_one_of_the_code() -> None:
    """Seen to fail with another docstring, limit, path and status."""
    assert json.loads((REFERENCE / "openapi.json").read_text("utf-8")) == document(), "run `make reference`"


def test_the_reference_is_made_from_the_same() -> None:
    assert (REFERENCE / "http.md").read_text("utf-8") == reference.markdown(document()), "run `make reference`"


def test_everything_is_described_in_words() -> None:
    """Endpoints, parameters, answers, by names of their own; and every shape, field by field where it is not plain."""
    assert len({one.name for one in ENDPOINTS}) == len({(one.method, one.path) for one in ENDPOINTS}) == len(ENDPOINTS)
    assert {one.tag for one in ENDPOINTS} == set(openapi.TAGS)
    summaries = []
    for path, operations in document()["paths"].items():
        for operation in operations.values():
            summaries.append(operation["summary"])
            assert all(one["description"] for one in operation.get("parameters", [])), path
            assert all("$ref" in answer or answer["description"] for answer in operation["responses"].values()), path
    assert len(set(summaries)) == len(summaries)
    assert [name for name, schema in document()["components"]["schemas"].items() if not schema.get("description")] == []


# Programs of others


def test_a_validator_accepts_it() -> None:
    """As OpenAPI 3.1. Seen to fail with a reference to a schema that is not there."""
    openapi_spec_validator.validate(document(), cls=openapi_spec_validator.OpenAPIV31SpecValidator)


@pytest.mark.skipif(not (MODULES / "typescript").is_dir(), reason="LOUD: npm could not install openapi-typescript")
def test_a_generator_of_typescript_clients_accepts_it(tmp_path: Path) -> None:
    """And what it makes tells right from wrong: a client compiles, one with a status that no run has does not."""
    generator, compiler = MODULES / "openapi-typescript/bin/cli.js", MODULES / "typescript/bin/tsc"
    made = ["-o", str(tmp_path / "api.ts"), "--default-non-nullable", "false"]  # what has a default may be left out
    subprocess.run([NODE, generator, REFERENCE / "openapi.json", *made], check=True)
    (tmp_path / "right.ts").write_text(CLIENT)
    (tmp_path / "wrong.ts").write_text(CLIENT + WRONG)
    said = subprocess.run(
        [NODE, compiler, "--noEmit", "--strict", "right.ts", "wrong.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "wrong.ts" in said
    assert {line.split("(")[0] for line in said.splitlines() if "error" in line} == {"wrong.ts"}, said


# Events


def test_every_event_ever_written_fits() -> None:
    """The golden file, line by line; and none fits any more with a type, an object or an id of another kind.
    Seen to fail with documents that are no events of a workspace."""
    event = validator("Event")
    for example in golden():
        line = json.loads(example.line)
        event.validate(line)
        for name, value in (("type", "run.nothing"), ("object", "ade.run"), ("id", "1")):
            assert not event.is_valid({**line, name: value}), example.type
    (run, *_) = (example for example in golden() if example.type == "run.completed")
    erased = {name: value for name, value in json.loads(run.line).items() if name in run.envelope}
    event.validate({**erased, "type": "run.log", "redacted": "00"})


# What is answered


def check(endpoint: Endpoint, answer: httpx.Response) -> None:
    """The answer is one of those that are described: status, media type, headers, shape."""
    operation = document()["paths"][endpoint.path][endpoint.method.lower()]
    assert str(answer.status_code) in operation["responses"], answer.text
    described = operation["responses"][str(answer.status_code)]
    if "$ref" in described:
        described = document()["components"]["responses"][described["$ref"].rsplit("/", 1)[-1]]
    optional = {"Link", "Location", "ADE-Log-Id", "Set-Cookie"} if answer.status_code == 200 else set()
    assert {name for name in described["headers"] if name not in answer.headers} <= optional, endpoint
    content, media_type = described.get("content", {}), answer.headers.get("content-type", "").split(";")[0]
    if not content:
        assert answer.content == b""
        return
    found = content.get(media_type, content.get("*/*"))
    assert found is not None, f"{endpoint.name}: {media_type}"
    if media_type == engine.NDJSON and "x-itemSchema" in found:
        for line in filter(None, answer.text.split("\n")):
            fits(json.loads(line), found["x-itemSchema"])
    elif media_type in {"application/json", "application/problem+json"}:
        fits(answer.json(), found["schema"])


def fits(answer: Any, schema: dict[str, Any]) -> None:
    """One of the shapes that are meant, and nothing beside its fields."""
    shapes = [one["$ref"].rsplit("/", 1)[-1] for one in schema.get("oneOf", [schema]) if "$ref" in one]
    errors = [error for shape in shapes for error in validator(shape).iter_errors(answer)]
    right = [shape for shape in shapes if validator(shape).is_valid(answer)]
    assert right or not shapes, errors
    for shape in right:
        known = document()["components"]["schemas"][shape].get("properties", answer).keys()
        assert answer.keys() <= known, shape


@pytest.fixture(scope="module")
def names(http: httpx.Client) -> dict[str, str]:
    """Of each kind of thing one, by the part of a path that names it."""
    config = engine.actor(http)
    document_id = engine.told(http.post(f"/workspaces/{engine.WORKSPACE}/documents", content=b"abc"))["id"]
    run = engine.run(http, config, "(output / 'left.txt').write_text('x')", document_ids=[document_id])[0]
    (artifact,) = engine.told(http.get(f"/runs/{run['id']}/artifacts"))["data"]
    key = engine.told(http.post("/keys", json={"name": "k", "role": "viewer", "workspaces": ["*"]}))
    return {
        "ws": engine.WORKSPACE,
        "config": config,
        "runs": run["id"],
        "builds": run["build_id"],
        "documents": document_id,
        "artifacts": artifact["id"],
        "keys": key["id"],
    }


def path_of(endpoint: Endpoint, names: dict[str, str]) -> str:
    def named(match: re.Match[str]) -> str:
        return f"/{match[1]}/{names[match[1] if match[2] == 'id' else match[2]]}"

    return re.sub(r"/(\w+)/\{(\w+)\}", named, endpoint.path)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_every_endpoint_answers_as_it_is_described(endpoint: Endpoint, service: Service, names: dict[str, str]) -> None:
    """What there is, what there is not, a parameter that it does not have, one given twice, and a body that is none.

    Seen to fail with a field more, one of another type, a status that is not described, a header and a fact less.
    """
    with httpx.Client(base_url=service.url, timeout=engine.PATIENCE_S) as http:
        path, content = path_of(endpoint, names), b"[]" if endpoint.method == "POST" else None
        whole = http.request(endpoint.method, path, content=content)
        check(endpoint, whole)
        needs_none = endpoint.body is None and endpoint.uploads in {(), ("*/*",)}
        assert whole.is_success == needs_none, whole.text
        if "{id}" in endpoint.path or "{config}" in endpoint.path:
            nothing = http.request(endpoint.method, path_of(endpoint, dict.fromkeys(names, "x")))
            check(endpoint, nothing)
            assert nothing.status_code == 404 or endpoint.query.__name__ == "ListRuns"
        known = next(iter(parameters(endpoint.query)), "x")
        for query in ("nonsense=1", f"{known}=1&{known}=1"):
            wrong = http.request(endpoint.method, f"{path}?{query}", content=content)
            check(endpoint, wrong)
            assert (wrong.status_code, wrong.json().get("parameter")) == (400, query.partition("=")[0])
        if endpoint.method == "GET":
            head = http.head(path)
            assert (head.status_code, head.content) == (200, b"")
            if RANGE in endpoint.takes:
                for part, status in (("0-0", 206), ("99999999-", 416)):
                    partial = http.get(path, headers={"Range": f"bytes={part}"})
                    check(endpoint, partial)
                    assert partial.status_code == status


def test_a_run_is_described_in_every_form(http: httpx.Client, names: dict[str, str]) -> None:
    """Created, listed with a next page, streamed, canceled too late, repeated with another body."""
    by_name = {one.name: one for one in ENDPOINTS}
    runs, headers = f"/configs/{names['config']}/runs", {"Idempotency-Key": "described"}
    created = http.post(runs, json={"options": {"dry_run": True}}, headers=headers)
    streamed = http.post(runs, json={"stream": True, "options": {"dry_run": True}})
    page = http.get("/runs?limit=1&count=true")
    for name, answer, status in (
        ("create_run", created, 201),
        ("create_run", streamed, 200),
        ("create_run", http.post(runs, json={}, headers=headers), 422),
        ("list_runs", page, 200),
        ("show_stats", http.get("/stats"), 200),
        ("show_stats_of_workspace", http.get("/workspaces/nobody/stats"), 200),
        ("follow_log", http.get("/events?types=run.*", headers={"Accept": engine.NDJSON}), 200),
        ("follow_run", http.get(f"/runs/{names['runs']}/events", headers={"Accept": engine.NDJSON}), 200),
        ("follow_run", http.get(f"/runs/{names['runs']}/events?stream=true"), 200),
        ("follow_run", http.get(f"/runs/{names['runs']}/events?after_id={2**62}"), 409),
        ("cancel_run", http.post(f"/runs/{names['runs']}/cancel"), 409),
    ):
        assert answer.status_code == status, answer.text
        check(by_name[name], answer)
    assert page.headers["link"].endswith('; rel="next"')
    assert page.json()["next_page"]


def test_the_service_describes_itself(service: Service) -> None:
    """The document, and a page that needs nothing else: no script, no other origin, and no link that leads nowhere."""
    assert httpx.get(f"{service.url}/openapi.json").json() == document()
    page = httpx.get(f"{service.url}/docs")
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert page.text == docs_page.page(document())
    assert "<script" not in page.text
    assert set(re.findall(r"(?:src|href)='(?!#)([^']*)'", page.text)) == {"/", "/openapi.json"}
    anchors = re.findall(r" id='?(\w+)'?[ >]", page.text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"href='#(\w+)'", page.text)) <= set(anchors)


def test_every_parameter_has_words_for_its_mistakes() -> None:
    """None is refused with a sentence that pydantic made up for programmers, or breaks for want of one. Seen to fail
    with a limit beside `| None` in place of within it."""
    said: list[tuple[str, str]] = []
    for model in {one.query for one in ENDPOINTS} - {Query}:
        for name in parameters(model):
            for value in ("", "-1", "x", "9" * 19, "%00" * 3000):
                request = Request({"type": "http", "query_string": f"{name}={value}".encode()})
                try:
                    parse(request, model)
                except Malformed as refusal:
                    said.append((name, refusal.detail))
    for name, detail in said:
        assert detail.startswith(f"`{name}` "), detail
        assert not re.search("Value error|Input should|String should", detail), detail
    assert {name for name, _ in said} == {name for one in ENDPOINTS for name in parameters(one.query)} - {"log_id"}
