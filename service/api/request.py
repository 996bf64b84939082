"""What a request says beside its query: its body, its idempotency, read strictly."""

from typing import Any, Self, TypeVar

import orjson
import pydantic
from starlette.requests import Request

from projections.tracing import parse
from service import handler
from service.api.deployment import Deployment
from service.errors import Invalid, Malformed, TooLarge, WrongMediaType
from service.keys import Caller

BODY_MAX_BYTES = 1 * 2**20
"""The largest JSON body; uploads have limits of their own."""
KEY_MAX_CHARACTERS = 255


class Body(pydantic.BaseModel):
    """A JSON body. Every field that is not known is refused, and so is a value of another type."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    _sent: dict[str, Any] = pydantic.PrivateAttr(default_factory=dict)

    def came_as(self, document: dict[str, Any]) -> Self:
        """Keeps the body as it came."""
        self._sent = document
        return self

    @property
    def sent(self) -> dict[str, Any]:
        """The body as it came, by which a repeated request is known."""
        return self._sent


Model = TypeVar("Model", bound=Body)


def deployment(request: Request) -> Deployment:
    """What this process serves with."""
    found: Deployment = request.app.state.deployment
    return found


def caller(request: Request) -> Caller:
    """Who asks, as the gate has found out."""
    found: Caller = request.state.caller
    return found


def own(request: Request) -> list[str] | None:
    """The workspaces that the caller may see; None for all of them."""
    workspaces = caller(request).workspaces
    return None if workspaces is None else sorted(workspaces)


async def json_body(request: Request, model: type[Model]) -> Model:
    """The body as a model. An absent body is an empty object."""
    sent = await _limited(request)
    if not sent:
        return model.model_validate({})
    media_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if media_type != "application/json":
        raise WrongMediaType("Send the body as application/json.", media_type=media_type)
    try:
        document = orjson.loads(sent)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise Invalid("The body must be a JSON object.", errors=[{"path": "", "message": "must be an object"}])
    return model.model_validate(document).came_as(document)


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
        raise Malformed(f"`Idempotency-Key` may have {KEY_MAX_CHARACTERS} characters.", parameter="Idempotency-Key")
    return handler.Request(
        requested_by=caller(request).name,
        key=None if key is None else f"{scope}:{key}",
        digest=handler.request_digest(request.url.path, body),
        traceparent=request.headers.get("traceparent") if parse(request.headers.get("traceparent")) else None,
    )
