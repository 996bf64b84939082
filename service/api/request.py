"""What a request says beside its query: its body, its idempotency, read strictly."""

import time
from collections.abc import AsyncIterator
from typing import Any, Self, TypeVar

import anyio
import orjson
import pydantic
from starlette.requests import Request

from eventstore.event import WORKSPACE
from projections.tracing import parse
from service import handler
from service.api.deployment import Deployment
from service.errors import Invalid, Malformed, TooLarge, TooSlow, WrongMediaType
from service.keys import Caller

BODY_MAX_BYTES = 1 * 2**20
"""The largest JSON body; uploads have limits of their own."""
BODY_S = 20.0
"""How long a body may be waited for without a pause; each KiB that comes gives a second back. So it may pause for this
long, and not be slower than a KiB a second."""
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


def workspace_of(request: Request) -> str:
    """The workspace of the path. Raises Malformed for what can be none."""
    workspace: str = request.path_params["ws"]
    if not WORKSPACE.match(workspace):
        raise Malformed("A workspace has lower-case letters, digits and `-`: at most 63.", parameter="workspace")
    return workspace


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
    return b"".join([piece async for piece in pieces(request, BODY_MAX_BYTES, "JSON body")])


async def pieces(request: Request, most_bytes: int, what: str) -> AsyncIterator[bytes]:
    """The body of a request as it comes. Raises TooLarge, and TooSlow by the time that was spent on waiting for it:
    what becomes of the pieces takes no time from the client."""
    stream, size, left_s = request.stream(), 0, BODY_S
    while True:
        begun = time.monotonic()
        with anyio.move_on_after(left_s) as patience:
            piece = await anext(stream, None)
        if patience.cancelled_caught:
            raise TooSlow(f"A {what} must come at 1 KiB a second, and may not pause for {BODY_S:g} seconds.")
        if piece is None:
            return
        size += len(piece)
        if size > most_bytes:
            raise TooLarge(f"A {what} may have {most_bytes} bytes.", most_bytes=most_bytes)
        left_s = min(BODY_S, left_s + len(piece) / 1024 - (time.monotonic() - begun))
        yield piece


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
