"""Each request, counted and told: by its route, never by its path or its query, which may hold what is secret."""

import logging
import time

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.logs import fields

logger = logging.getLogger("ade.access")

SLOW_S = 1.0
"""A request that takes longer has a line at `info`."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are one label: a client may invent as many as it likes."""


class AccessLog:
    """Stands inside of :class:`service.api.headers.Heads`. A stream is over for it when it begins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = time.monotonic()
        status = 0

        async def send_watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with fields(request_id=scope["state"]["request_id"]):
            try:
                await self._app(scope, receive, send_watched)
            except Exception:
                status = 500  # the answer is made further out
                raise
            finally:
                _tell(scope, status or 200, time.monotonic() - begun)


def _tell(scope: Scope, status: int, seconds: float) -> None:
    route, method = _route(scope), scope["method"] if scope["method"] in METHODS else "other"
    metrics.REQUESTS.labels(method, route, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(method, route).observe(seconds)
    level = logging.ERROR if status >= 500 else logging.INFO if status >= 400 or seconds > SLOW_S else logging.DEBUG
    if logger.isEnabledFor(level):
        told = {"method": method, "route": route, "status": status, "duration_ms": round(seconds * 1000, 1)}
        if caller := scope["state"].get("caller"):
            told["actor"] = caller.name
        logger.log(level, "%s %s %d", method, route, status, extra=told)


def _route(scope: Scope) -> str:
    """The pattern of the path, as it stands in the table of routes."""
    route = scope.get("route")
    return route.path if isinstance(route, Route) else "none"
