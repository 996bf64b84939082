"""The description of the API, OpenAPI 3.1, made from its endpoints, its models, its refusals and the events."""

import inspect
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema

from projections.events import registry
from service.api import event_schemas
from service.api.endpoint import JSON, RETRY_AFTER, Answer, Bytes, Endpoint, Header, Lines
from service.api.gate import COOKIE
from service.api.problems import MEDIA_TYPE, all_problems
from service.api.query import parameters
from service.api.request import KEY_MAX_CHARACTERS
from service.api.shape import Shape
from service.errors import Refusal
from service.roles import Role

Schema = dict[str, Any]
REF = "#/components/schemas/"

TAGS = {
    "configs": "Named, versioned packages of settings and code for an engine.",
    "documents": "Input files.",
    "runs": "Executions of a config's engine: asked for, followed, and what they left.",
    "builds": "The making of a venv for one version of a config. Runs bring about the builds that they need.",
    "log": "The whole log, of which the history of every run and build is a part.",
    "service": "The service itself.",
    "keys": "Who may ask, and what a browser needs in place of a key.",
    "pages": "For people, and for programs that are new here.",
}
_ABOUT = """Runs and builds whose whole history is one append-only log.

Errors are problem documents (RFC 9457): go by `type`. Every `GET` has its `HEAD`. Every answer carries `X-Request-ID`.
An unknown, repeated or wrong query parameter is 400; an unknown field of a body is 422."""
_PATH = {
    "ws": ("A workspace; it exists from its first use.", {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"}),
    "config": ("A config: `config_…`.", {"type": "string"}),
    "runs": ("A run: `run_…`.", {"type": "string"}),
    "builds": ("A build: `build_…`.", {"type": "string"}),
    "documents": ("A document: `doc_…`.", {"type": "string"}),
    "artifacts": ("An artifact: `art_…`.", {"type": "string"}),
    "keys": ("A key: `key_…`.", {"type": "string"}),
}
"""The parameters of paths; an ``id`` by what stands before it."""
_SECURITY: dict[str, Schema] = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key: `ade_…`."},
    "bearer": {"type": "http", "scheme": "bearer", "description": "The same key, as `Authorization: Bearer ade_…`."},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "For pages of this site alone."},
}
_REQUEST_ID = Header("X-Request-ID", "Yours, if it has at most 64 letters, digits, `.`, `_` and `-`; else a new one.")


def document(endpoints: Sequence[Endpoint]) -> Schema:
    """The whole description."""
    paths: dict[str, Schema] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "ADE Runs",
            "version": version("ade-runs"),
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": about} for name, about in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted((_models(endpoints) | _problems()).items())),
            "responses": {kind.__name__: _refusal([kind]) for kind in all_problems()},
            "headers": {_REQUEST_ID.name: _header(_REQUEST_ID)},
            "securitySchemes": _SECURITY,
        },
    }


def _operation(endpoint: Endpoint) -> Schema:
    summary, _, description = (inspect.getdoc(endpoint.handler) or "").partition("\n\n")
    found: Schema = {
        "operationId": endpoint.name,
        "tags": [endpoint.tag],
        "summary": summary.removesuffix("."),
        "description": description.strip(),
        "x-role": endpoint.role.value,
        "x-all-workspaces": endpoint.everywhere or "",
        "security": [] if endpoint.role is Role.PUBLIC else [{scheme: []} for scheme in _SECURITY],
        "parameters": [*_in_path(endpoint.path), *_in_query(endpoint), *map(_in_header, endpoint.takes)],
        "responses": _responses(endpoint),
    }
    if endpoint.body is not None:
        required = any(field.is_required() for field in endpoint.body.model_fields.values())
        content = {JSON: {"schema": {"$ref": REF + endpoint.body.__name__}}}
        found["requestBody"] = {"required": required, "content": content}
    elif endpoint.uploads:
        content = {media_type: {} for media_type in endpoint.uploads}
        found["requestBody"] = {"required": True, "description": "The bytes themselves.", "content": content}
    return {name: value for name, value in found.items() if value not in ("", [])}


def _in_path(path: str) -> list[Schema]:
    found = []
    for before, name in re.findall(r"/(\w+)/\{(\w+)\}", path):
        description, schema = _PATH[before if name == "id" else name]
        found.append({"name": name, "in": "path", "required": True, "description": description, "schema": schema})
    return found


def _in_query(endpoint: Endpoint) -> list[Schema]:
    found = []
    for name, schema in parameters(endpoint.query).items():
        described = {key: value for key, value in schema.items() if key != "description"}
        one: Schema = {"name": name, "in": "query", "description": schema["description"], "schema": described}
        found.append(one | {"style": "form", "explode": False} if schema.get("type") == "array" else one)
    return found


def _in_header(header: Header) -> Schema:
    schema: Schema = {"type": header.type}
    if header.name == "Idempotency-Key":
        schema |= {"minLength": 1, "maxLength": KEY_MAX_CHARACTERS}
    return {"name": header.name, "in": "header", "description": header.description, "schema": schema}


def _header(header: Header) -> Schema:
    return {"description": header.description, "schema": {"type": header.type}}


def _responses(endpoint: Endpoint) -> Schema:
    found = {str(answer.status): _response(answer) for answer in endpoint.answers}
    by_status: dict[str, list[type[Refusal]]] = {}
    for kind in endpoint.every_refusal:
        by_status.setdefault(str(kind.status), []).append(kind)
    for status, kinds in by_status.items():
        found[status] = _refusal(kinds) if len(kinds) > 1 else {"$ref": f"#/components/responses/{kinds[0].__name__}"}
    return dict(sorted(found.items()))


def _response(answer: Answer) -> Schema:
    headers = {header.name: _header(header) for header in answer.headers}
    found: Schema = {
        "description": answer.description,
        "headers": {**headers, _REQUEST_ID.name: {"$ref": f"#/components/headers/{_REQUEST_ID.name}"}},
    }
    if answer.content:
        found["content"] = {media_type: _content(media_type, kind) for media_type, kind in answer.content.items()}
    return found


def _content(media_type: str, kind: type[Shape] | type[Bytes] | Lines) -> Schema:
    match kind:
        case Lines(names=names):
            what = "SSE; the `data` of each" if media_type == "text/event-stream" else "One line each; each"
            items = [{"$ref": REF + name} for name in names]
            one_of = " or ".join(f"{'an' if name[0] in 'AEIOU' else 'a'} `{name}`" for name in names)
            return {
                "schema": {"type": "string", "description": f"{what} is {one_of}."},
                "x-itemSchema": {"oneOf": items} if len(items) > 1 else items[0],
            }
        case type() if issubclass(kind, Shape):
            return {"schema": {"$ref": REF + kind.__name__}}
    return {"schema": {"type": "object"}} if media_type == JSON else {}


def _refusal(kinds: Sequence[type[Refusal]]) -> Schema:
    """What is refused with one status: one of several problems."""
    places = {f"/problems/{kind.slug}": REF + problem_name(kind) for kind in kinds}
    one_of: Schema = {
        "oneOf": [{"$ref": place} for place in places.values()],
        "discriminator": {"propertyName": "type", "mapping": places},
    }
    headers: Schema = {_REQUEST_ID.name: {"$ref": f"#/components/headers/{_REQUEST_ID.name}"}}
    if any(kind.status in {429, 503} for kind in kinds):
        headers[RETRY_AFTER.name] = _header(RETRY_AFTER)
    return {
        "description": " ".join(f"{(kind.__doc__ or '').strip()}." for kind in kinds),
        "headers": headers,
        "content": {MEDIA_TYPE: {"schema": one_of if len(kinds) > 1 else one_of["oneOf"][0]}},
    }


class _Untitled(GenerateJsonSchema):
    """Without a title for each field that only repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def problem_name(kind: type[Refusal]) -> str:
    """How the problem of a refusal is called among the schemas."""
    return f"{kind.__name__}Problem"


def _problems() -> dict[str, Schema]:
    """A schema for every problem, with its facts."""
    found: dict[str, Schema] = {}
    for kind in all_problems():
        facts = TypeAdapter(kind.Facts).json_schema(ref_template=REF + "{model}", schema_generator=_Untitled)
        found |= facts.get("$defs", {})
        title = (kind.__doc__ or "").strip()
        common: Schema = {
            "type": {"const": f"/problems/{kind.slug}"},
            "title": {"type": "string", "examples": [title]},
            "status": {"const": kind.status},
            "detail": {"type": "string", "description": "What is wrong, and what to do about it, for people."},
        }
        found[problem_name(kind)] = {
            "title": problem_name(kind),
            "description": f"{title}.",
            "type": "object",
            "properties": common | facts["properties"] if "properties" in facts else common,
            "required": [*common, *facts.get("required", [])],
        }
    return found


def _models(endpoints: Sequence[Endpoint]) -> dict[str, Schema]:
    """A schema for every body, for every shape that is answered, and for every event."""
    bodies = {endpoint.body for endpoint in endpoints if endpoint.body is not None}
    answered = [kind for one in endpoints for answer in one.answers for kind in answer.content.values()]
    kinds = [kind for one in answered for kind in (one.items if isinstance(one, Lines) else (one,))]
    shapes = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Shape)}
    modes: list[tuple[Any, JsonSchemaMode]] = [(body, "validation") for body in bodies]
    modes += [(shape, "serialization") for shape in (*shapes, *registry.values())]
    _, top = models_json_schema(modes, ref_template=REF + "{model}", schema_generator=_Untitled)
    schemas: dict[str, Schema] = top["$defs"]
    payloads = {payload: schemas.pop(payload.__name__) for payload in registry.values()}
    found = {**schemas, **event_schemas.schemas(payloads)}
    for schema in found.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"]).replace("``", "`")
    return found
