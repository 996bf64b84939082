"""The lines of events as JSON schemas: the envelope, and behind it the payload's own fields."""

from collections.abc import Mapping
from typing import Any

from projections.events import Payload

Schema = dict[str, Any]

_KINDS = {"run": "run", "build": "build", "config": "config", "document": "workspace"}
"""By the first word of an event's name: what it is an event of. All others are of the system."""

_ENGINE: Schema = {
    "title": "EngineEvent",
    "description": "Telemetry of an engine, in its own words. It stands in the stream of the run or build.",
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "object": {"enum": ["ade.run.event", "ade.build.event"]},
        "type": {"type": "string", "pattern": r"^engine(\.[a-z0-9_]{1,64}){1,8}$"},
        "run_id": {"type": "string"},
        "build_id": {"type": "string"},
        "seq": {"type": "integer"},
        "created": {"type": "integer"},
        "created_at": {"type": "string", "format": "date-time"},
        "stream": {"enum": ["stdout", "stderr"]},
        "message": {"description": "Where it is a text, the line is part of the logs."},
        "level": {},
        "redacted": {"type": "string", "description": "The hash of what was here, where it was erased."},
    },
    "required": ["id", "object", "type", "seq", "created", "created_at"],
    "additionalProperties": True,
}
_CONSOLE_LINE = {
    "title": "ConsoleLine",
    "description": "With `logs=console`: a line that has a message, in place of `run.log`, `build.log` and `engine.*`."
    " All else of it is as there.",
    "type": "object",
    "properties": {
        **_ENGINE["properties"],
        "type": {"const": "console.line"},
        "scope": {"enum": ["run", "build"]},
        "message": {"type": "string"},
    },
    "required": [*_ENGINE["required"], "scope", "message"],
    "additionalProperties": True,
}
_BOOKMARK = {
    "title": "Bookmark",
    "description": "No event: everything that passes the filter, up to and including this id, was given.",
    "type": "object",
    "properties": {"object": {"const": "ade.bookmark"}, "id": {"type": "integer"}},
    "required": ["object", "id"],
}


def schemas(payloads: Mapping[type[Payload], Schema]) -> dict[str, Schema]:
    """A component for each event by the name of its class, and ``Event``, which is any of them."""
    found = {payload.__name__: _line(payload, schema) for payload, schema in payloads.items()}
    mapping = {payload.wire: f"#/components/schemas/{payload.__name__}" for payload in payloads}
    return {
        **found,
        "EngineEvent": _ENGINE,
        "ServiceEvent": {
            "description": "An event that the service writes. More types may come: skip those that you do not know.",
            "oneOf": [{"$ref": place} for place in mapping.values()],
            "discriminator": {"propertyName": "type", "mapping": mapping},
        },
        "Event": {
            "description": "A line of a stream, of a page of events, and of a log file.",
            "oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ServiceEvent", "EngineEvent")],
        },
        "ConsoleLine": _CONSOLE_LINE,
        "Bookmark": _BOOKMARK,
    }


def _line(payload: type[Payload], schema: Schema) -> Schema:
    kind = _KINDS.get(payload.wire.split(".")[0], "system")
    envelope: Schema = {
        "id": {"type": "integer", "description": "The place in the log: 1, 2, 3 … without a gap."},
        "object": {"const": f"ade.{kind}.event"},
        "type": {"const": payload.wire},
        f"{kind}_id": {"type": "string", "description": "The stream that it belongs to."},
        "seq": {"type": "integer", "description": "The place in its stream: 1, 2, 3 … without a gap."},
        "created": {"type": "integer", "description": "Unix seconds, by the database's clock."},
        "created_at": {"type": "string", "format": "date-time", "description": "The same moment, to the microsecond."},
    }
    always = {field.alias or name for name, field in payload.model_fields.items() if field.default is not None}
    own = {name: kind_ if name in always else _present(kind_) for name, kind_ in schema["properties"].items()}
    if payload.bulk:
        own["redacted"] = {"type": "string", "description": "The hash of what was here, where it was erased."}
    return {
        "title": payload.__name__,
        "description": schema.get("description", ""),
        "type": "object",
        "properties": envelope | own,
        "required": [
            *envelope,
            *(name for name in own if name in always and not payload.bulk and name not in envelope),
        ],
    }


def _present(schema: Schema) -> Schema:
    """Of a field that is left out of the line where it has no value: what it is where it has one."""
    kinds: list[Schema] = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    return {name: value for name, value in schema.items() if name not in {"anyOf", "default"}} | kinds[0]
