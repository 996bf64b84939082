"""What a request says: its parameters, its body, its idempotency, read strictly."""

import math
from datetime import datetime
from typing import Any, TypeVar

import orjson
import pydantic
from starlette.requests import Request

from service import handler
from service.api.deployment import Deployment
from service.errors import Invalid, Malformed, TooLarge, WrongMediaType

BODY_MAX_BYTES = 1 * 2**20
"""The largest JSON body; uploads have limits of their own."""
KEY_MAX_CHARACTERS = 255
FOREVER = 2**63 - 1

Model = TypeVar("Model", bound=pydantic.BaseModel)


def deployment(request: Request) -> Deployment:
    """What this process serves with."""
    found: Deployment = request.app.state.deployment
    return found


def integer(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number from the query."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 20):
        raise Malformed(f"`{name}` must be a whole number.", parameter=name)
    if not least <= int(text) <= most:
        raise Malformed(f"`{name}` must be between {least} and {most}.", parameter=name)
    return int(text)


def flag(request: Request, name: str) -> bool:
    """``true`` or ``false`` from the query."""
    text = request.query_params.get(name, "false")
    if text not in {"true", "false", "1", "0"}:
        raise Malformed(f"`{name}` must be true or false.", parameter=name)
    return text in {"true", "1"}


def moment(request: Request, name: str) -> float | None:
    """A time from the query: Unix seconds or RFC 3339."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            raise Malformed(f"`{name}` must be Unix seconds or RFC 3339.", parameter=name) from None
        if parsed.tzinfo is None:
            raise Malformed(f"`{name}` must name its time zone.", parameter=name) from None
        seconds = parsed.timestamp()
    if not (math.isfinite(seconds) and abs(seconds) < 1e11):
        raise Malformed(f"`{name}` is out of range.", parameter=name)
    return seconds


def text(request: Request, name: str, *, most: int = 200) -> str | None:
    """A short text from the query."""
    found = request.query_params.get(name)
    if found is not None and (len(found) > most or "\0" in found):
        raise Malformed(f"`{name}` may have {most} characters.", parameter=name)
    return found


async def json_body(request: Request, model: type[Model]) -> tuple[Model, Any]:
    """The body as a model, and as it came. An absent body is an empty object."""
    body = await _limited(request)
    if not body:
        return model(), {}
    media_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise WrongMediaType("Send the body as application/json.", media_type=media_type)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise Invalid("The body must be a JSON object.")
    return model.model_validate(document), document


async def _limited(request: Request) -> bytes:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > BODY_MAX_BYTES:
            raise TooLarge(f"A JSON body may have {BODY_MAX_BYTES} bytes.", most_bytes=BODY_MAX_BYTES)
        pieces.append(piece)
    return b"".join(pieces)


def idempotency(request: Request, scope: str, body: Any) -> handler.Request:
    """Who asks, and the idempotency of the asking. ``scope`` keeps the keys of workspaces apart."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= KEY_MAX_CHARACTERS:
        raise Malformed(f"`Idempotency-Key` may have {KEY_MAX_CHARACTERS} characters.")
    return handler.Request(
        key=None if key is None else f"{scope}:{key}", digest=handler.request_digest(request.url.path, body)
    )
