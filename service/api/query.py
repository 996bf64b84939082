"""The parameters of a query as models: read strictly, and described by the same fields."""

from datetime import datetime
from functools import cache
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import pydantic
from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from eventstore.log import FOREVER
from service.errors import Malformed

TEXT_MAX_CHARACTERS = 200


def wrong(must: str) -> PydanticCustomError:
    """Why a value is refused, in words that follow the parameter's name: ``must be …``."""
    return PydanticCustomError("parameter", "{must}", {"must": must})


def whole(text: Any) -> Any:
    """What is read as a whole number: plain digits."""
    # Python and pydantic also take other digits, `+1`, `1_0` and `1.0`.
    if isinstance(text, str) and not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 20):
        raise wrong("must be a whole number")
    return text


def _flag(text: Any) -> Any:
    if text not in {"true", "false", "1", "0"}:
        raise wrong("must be true or false")
    return text in {"true", "1"}


def _moment(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise wrong("must be Unix seconds or RFC 3339") from None
        if parsed.tzinfo is None:
            raise wrong("must name its time zone") from None
        seconds = parsed.timestamp()
    if not -6e10 < seconds < 1e11:  # the years 68 to 5138; nor is it true of nan
        raise wrong("is out of range")
    return seconds


Whole = Annotated[int, BeforeValidator(whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Moment = Annotated[
    float,
    BeforeValidator(_moment),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}]}),
]
"""Unix seconds or RFC 3339; Unix seconds here."""
Item = TypeVar("Item")
Several = Annotated[list[Item], BeforeValidator(lambda text: text.split(","))]
"""Values with commas between them."""
Text = Annotated[str, StringConstraints(max_length=TEXT_MAX_CHARACTERS, pattern=r"^[^\x00]*$")]


class Query(pydantic.BaseModel):
    """The parameters of an endpoint; this one takes none. Each has a default."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class OfLog(Query):
    """What names an event, and may say of which log."""

    log_id: str | None = Field(
        None, description="The log that the event's id is of (`ADE-Log-Id`); another one is refused with 409."
    )


class AsOf(OfLog):
    """The moment of a snapshot."""

    # The limits stand before the reading: behind it, and beside None, pydantic leaves them out of the JSON schema.
    as_of: Annotated[int, Field(ge=1, le=FOREVER), BeforeValidator(whole)] | None = Field(
        None, description="As it was right after this event."
    )


class Cursor(OfLog):
    """A place in the log."""

    after_id: Whole = Field(
        0, ge=0, le=FOREVER, description="What you have: everything up to and including this event."
    )


Asked = TypeVar("Asked", bound=Query)


def parse(request: Request, model: type[Asked]) -> Asked:
    """The parameters of a request. Raises Malformed for one that is unknown, repeated or wrong."""
    given: dict[str, str] = {}
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name in given:
            raise Malformed(f"`{name}` is given more than once.", parameter=name)
        given[name] = value
    try:
        return model.model_validate(given)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = ", ".join(f"`{one}`" for one in parameters(model))
        why = f"is no parameter of this; there are: {known}" if known else "is no parameter of this, which takes none"
        raise Malformed(f"`{name}` {why}.", parameter=name)
    must = first["msg"] if first["type"] == "parameter" else _must(parameters(model)[name])
    raise Malformed(f"`{name}` {must}.", parameter=name)


@cache
def parameters(model: type[Query]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each parameter. That it may be left out is no part of it."""
    found: dict[str, dict[str, Any]] = {}
    for name, schema in model.model_json_schema().get("properties", {}).items():
        described = {key: value for key, value in schema.items() if key not in {"title", "anyOf"}}
        kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
        described |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
        if described.get("default", "") is None:
            del described["default"]
        found[name] = described
    return found


def _must(schema: dict[str, Any]) -> str:
    """What a value must be, in words."""
    match schema:
        case {"enum": values}:
            return f"is one of {', '.join(values)}"
        case {"items": {"enum": values}}:
            return f"is one or several of {', '.join(values)}, with commas between them"
        case {"minimum": least, "maximum": most}:
            return f"must be between {least} and {most}"
        case {"maxLength": most}:
            return f"may have {most} characters, and no NUL"
    raise AssertionError(f"no words for {schema}")
