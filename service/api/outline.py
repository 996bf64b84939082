"""The description of the API, read for people: what both of its renderings, page and reference, say in words."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
Link = Callable[[str], str]
"""From the name of a schema to a link to it."""


@dataclass(frozen=True)
class Row:
    """A field, a parameter or a header. All but the name is text with backticks, ``kind`` with links too."""

    name: str
    kind: str
    about: str
    required: bool = False
    """Said only where others of its object may be left out."""


@dataclass(frozen=True)
class Reply:
    """A status, and what comes with it."""

    status: str
    about: str
    content: str
    headers: tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """An endpoint."""

    name: str
    method: str
    path: str
    summary: str
    about: str
    role: str
    parameters: tuple[Row, ...]
    body: str
    body_fields: tuple[Row, ...]
    replies: tuple[Reply, ...]
    problems: tuple[tuple[str, str, str], ...]
    """Status, slug and the name of the schema."""
    example: str


class Outline:
    """What a description says, in words; ``link`` makes the links."""

    def __init__(self, document: Schema, link: Link) -> None:
        self.document = document
        self._link = link
        self._schemas: dict[str, Schema] = document["components"]["schemas"]

    def groups(self) -> Iterator[tuple[str, str, list[Operation]]]:
        """Each tag, what it stands for, and its endpoints."""
        for tag in self.document["tags"]:
            found = [
                self._operation(method.upper(), path, operation)
                for path, methods in self.document["paths"].items()
                for method, operation in methods.items()
                if tag["name"] in operation["tags"]
            ]
            yield tag["name"], tag["description"], found

    def schemas(self) -> Iterator[tuple[str, str, list[Row]]]:
        """Each schema: its name, what it is, and its fields. Problems and events have references of their own, but are
        told here as well."""
        for name, schema in self._schemas.items():
            kinds = "" if "properties" in schema else self.kind(schema)
            about = schema.get("description", "")
            yield name, f"{about} {f'One of: {kinds}.' if kinds else ''}".strip(), self.rows(schema)

    def rows(self, schema: Schema) -> list[Row]:
        """The fields of an object."""
        required = schema.get("required", [])
        every = len(required) == len(schema.get("properties", {}))
        return [
            Row(name, self.kind(field), self._about(field), name in required and not every)
            for name, field in schema.get("properties", {}).items()
        ]

    def kind(self, schema: Schema) -> str:
        """What a value is."""
        match schema:
            case {"$ref": place}:
                return self._link(place.rsplit("/", 1)[-1])
            case {"const": value}:
                return f"`{value}`"
            case {"enum": values}:
                return ", ".join(f"`{value}`" for value in values)
            case {"anyOf": kinds} | {"oneOf": kinds}:
                return " or ".join(self.kind(kind) for kind in kinds)
            case {"type": "array"}:
                return f"list of {self.kind(schema['items'])}" + _at_most(schema.get("maxItems"), "")
            case {"type": "integer", "minimum": least, "maximum": most} if most < 2**53:
                return f"integer, {least:,} to {most:,}"
            case {"type": "string", "format": "date-time"}:
                return "RFC 3339"
            case {"type": "string"}:
                return "text" + _at_most(schema.get("maxLength"), " characters")
            case {"type": kind}:
                return str(kind)
        return "any JSON"

    def _about(self, field: Schema) -> str:
        about: str = field.get("description", "")
        default = field.get("default")
        if default in (None, [], {}) or isinstance(default, dict) or "const" in field:
            return about
        said = str(default).lower() if isinstance(default, bool) else default
        return f"{about} Default: `{said}`.".strip()

    def _operation(self, method: str, path: str, operation: Schema) -> Operation:
        parameters = tuple(
            Row(one["name"], f"{one['in']}: {self.kind(one['schema'])}", self._about({**one["schema"], **one}))
            for one in operation.get("parameters", [])
        )
        body = operation.get("requestBody", {}).get("content", {})
        shape = self._schemas[_named(body["application/json"])] if "application/json" in body else {}
        problems = []
        replies = []
        for status, answer in operation["responses"].items():
            answer = self._resolved(answer)
            refused = answer.get("content", {}).get("application/problem+json", {}).get("schema")
            if refused is None:
                replies.append(self._reply(status, answer))
                continue
            for kind in refused.get("oneOf", [refused]):
                name = kind["$ref"].rsplit("/", 1)[-1]
                slug = self._schemas[name]["properties"]["type"]["const"].rsplit("/", 1)[-1]
                problems.append((status, slug, name))
        return Operation(
            name=operation["operationId"],
            method=method,
            path=path,
            summary=operation["summary"],
            about=operation.get("description", ""),
            role=operation["x-role"],
            parameters=parameters,
            body=" or ".join(f"`{media_type}`" for media_type in body),
            body_fields=tuple(self.rows(shape)),
            replies=tuple(replies),
            problems=tuple(problems),
            example=_example(method, path, body),
        )

    def _resolved(self, answer: Schema) -> Schema:
        found: Schema = answer
        if "$ref" in answer:
            found = self.document["components"]["responses"][answer["$ref"].rsplit("/", 1)[-1]]
        return found

    def _reply(self, status: str, answer: Schema) -> Reply:
        said = []
        for media_type, content in answer.get("content", {}).items():
            item = content.get("x-itemSchema")
            shape = content.get("schema", {})
            what = f": each {self.kind(item)}" if item else f": {self.kind(shape)}" if "$ref" in shape else ""
            said.append(f"`{media_type}`{what}")
        headers = tuple(name for name in answer.get("headers", {}) if name != "X-Request-ID")
        return Reply(status, answer["description"], "; ".join(said), headers)


def _named(content: Schema) -> str:
    return str(content["schema"]["$ref"]).rsplit("/", 1)[-1]


def _at_most(most: int | None, unit: str) -> str:
    return "" if most is None else f", at most {most:,}{unit}"


def _example(method: str, path: str, body: Schema) -> str:
    """A line for a shell."""
    words = ["curl", "-sN" if path.endswith("/events") else "-s"]
    if "application/json" in body:
        words += ["-H 'Content-Type: application/json'", "-d '{}'"]
    elif body:
        words += [f"-H 'Content-Type: {next(iter(body)).replace('*/*', 'text/csv')}'", "--data-binary @FILE"]
    elif method != "GET":
        words.append(f"-X {method}")
    return " ".join([*words, f"http://127.0.0.1:8000{path}"])
