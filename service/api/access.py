"""Who may ask. While there are no keys the service answers on loopback only, and refuses what a browser brings along
from elsewhere: a page of another site must not reach it through its visitor (DNS rebinding, cross-site requests)."""

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import problem
from service.errors import ForeignOrigin, UnknownThing


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _host(authority: str) -> str:
    if authority.startswith("["):
        return authority.split("]", maxsplit=1)[0] + "]"
    return authority.rsplit(":", 1)[0] if ":" in authority else authority


class PlainPath:
    """Answers 404 for a path with a NUL: no id has one, and PostgreSQL takes none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "\0" in scope["path"]:
            return await problem(UnknownThing("There is nothing at this path."))(scope, receive, send)
        return await self._app(scope, receive, send)


class SameOrigin:
    """Refuses a foreign ``Host``, ``Origin`` or ``Sec-Fetch-Site``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        why = _foreign(Headers(scope=scope), scope["path"])
        if why is None:
            return await self._app(scope, receive, send)
        return await problem(ForeignOrigin(why))(scope, receive, send)


def _foreign(headers: Headers, path: str) -> str | None:
    host = headers.get("host", "")
    if not is_loopback(_host(host)):
        return f"`Host: {host}` is not this machine."
    origin = headers.get("origin")
    if origin is not None and origin.split("//", 1)[-1] != host:
        return f"`Origin: {origin}` is another site."
    site = headers.get("sec-fetch-site", "none")
    opened = headers.get("sec-fetch-mode") == "navigate" and path in {"/", "/docs"}  # a link to a page may be followed
    if site not in {"none", "same-origin"} and not opened:
        return f"`Sec-Fetch-Site: {site}`: the request was caused by another site."
    return None
