"""Every error as a problem document (RFC 9457): ``type``, ``title``, ``status``, ``detail``, and the facts."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pydantic
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from eventstore.errors import Unavailable
from service import errors
from service.errors import Refusal
from service.work.archive import BadPackage

logger = logging.getLogger("ade.api")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
ERRORS, PATH_CHARACTERS = 100, 200
"""Of a body that does not fit so many fields are named, and so much of where each is: else the answer would be several
times as large as the body."""

_BY_STATUS: dict[int, type[Refusal]] = {
    400: errors.Malformed,
    404: errors.UnknownThing,
    405: errors.MethodNotAllowed,
    413: errors.TooLarge,
    415: errors.WrongMediaType,
    416: errors.RangeNotSatisfiable,
}


_ROUTING = {404: "There is nothing at this path.", 405: "The path has other methods: see `Allow`."}
"""What Starlette says in two words."""


def all_problems() -> list[type[Refusal]]:
    """Every kind of refusal, by slug."""
    return sorted(Refusal.__subclasses__(), key=lambda kind: kind.slug)


def problem(refusal: Refusal) -> Response:
    """The answer for a refusal."""
    document: dict[str, Any] = {
        "type": f"/problems/{refusal.slug}",
        "title": (refusal.__doc__ or "").strip(),
        "status": refusal.status,
        "detail": refusal.detail,
        **refusal.facts,
    }
    headers = {}
    if refusal.status in {429, 503}:
        headers["Retry-After"] = str(refusal.facts.get("retry_after_s", RETRY_AFTER_S))
    if refusal.status == 408:
        headers["Connection"] = "close"  # what is left of the body is not waited for
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(document), refusal.status, headers, MEDIA_TYPE)


def to_refusal(error: Exception) -> Refusal:
    """What an exception means to the one who asked. Raises it again where it is a bug of ours."""
    match error:
        case Refusal():
            return error
        case BadPackage():
            return errors.BadConfig(str(error), reason=error.slug)
        case Unavailable():
            return errors.TooBusy("The database cannot be reached just now; nothing was lost. Try again.")
        case pydantic.ValidationError():
            return invalid(error)
        case HTTPException() if error.status_code in _BY_STATUS:
            return _BY_STATUS[error.status_code](_ROUTING.get(error.status_code, error.detail))
        case _:
            raise error


_MESSAGES = {"extra_forbidden": "There is no such field", "model_type": "Input should be an object"}
"""What pydantic says for those who wrote the models."""


def invalid(error: pydantic.ValidationError) -> errors.Invalid:
    """A body that does not fit its model, with the path of every field that is wrong, up to a number of them."""
    found = [
        {
            "path": ".".join(str(step) for step in item["loc"])[:PATH_CHARACTERS],
            "message": _MESSAGES.get(item["type"], item["msg"]),
        }
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:ERRORS]
    ]
    first = found[0]
    where = f"`{first['path']}`: " if first["path"] else ""
    return errors.Invalid(f"{where}{first['message']}.", errors=found)


async def handle(request: Request, error: Exception) -> Response:
    """The exception handler of the app, for all that is foreseen."""
    answer = problem(to_refusal(error))
    if isinstance(error, HTTPException) and error.status_code == 405:
        answer.headers["Allow"] = ", ".join(_methods(request))
    if isinstance(error, errors.RangeNotSatisfiable):
        answer.headers["Content-Range"] = f"bytes */{error.facts['size']}"
    return answer


def _methods(request: Request) -> list[str]:
    """Those that the path of a request has. The router has looked no further than to the first of its routes."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in routes for method in route.methods})


async def handle_hang_up(_request: Request, _error: Exception) -> Response:
    """The client went away in the middle of its body: an answer that nobody reads, and no news."""
    return Response(status_code=400)


async def handle_bug(request: Request, _error: Exception) -> Response:
    """The answer for what nobody foresaw; the server logs the traceback itself, right after this line."""
    request_id = request.state.request_id
    logger.error("request %s broke: %s %s", request_id, request.method, request.url.path)
    answer = problem(errors.InternalError("This is a bug; the server's log has its traceback under this request's id."))
    for name, value in request.state.headers:  # the answer is made outside of the middleware that adds them
        answer.headers.setdefault(name.decode(), value.decode())
    return answer


Handler = Callable[[Request, Exception], Awaitable[Response]]
HANDLERS: dict[Any, Handler] = {
    Refusal: handle,
    BadPackage: handle,
    Unavailable: handle,
    pydantic.ValidationError: handle,
    HTTPException: handle,
    ClientDisconnect: handle_hang_up,
    Exception: handle_bug,
}
