"""The gate before every endpoint: it finds out who asks, and whether that one may.

It stands in one place, and works by the table of routes: what a path or a parameter names is looked up by its id, and
what is not of the caller's own workspaces is not there (404), whether or not it is. So no handler can forget to ask.
"""

from starlette.datastructures import Headers
from starlette.requests import Request

from eventstore import Database
from eventstore.clock import now
from service.errors import ForeignOrigin, RoleTooLow, TooManyRequests, UnknownCaller, UnknownThing
from service.keys import ANYBODY, Caller, Key, SignedPath
from service.known_keys import KnownKeys
from service.roles import Role

COOKIE = "ade_session"
SIGNED = ("key", "until", "signature")
"""What a signed address carries in its query."""
NOT_THINGS = frozenset({"after_id", "before_id", "log_id"})
"""Parameters that end in `_id` and name nothing that belongs to a workspace."""
WORKSPACES = frozenset({"ws", "workspace_id"})
"""What names a workspace itself, in a path and in a query."""
PLACES = 10_000
"""How many ids are remembered with their workspace; that never changes."""


class Gate:
    """``keys`` is None where nobody needs a key."""

    def __init__(self, database: Database, keys: KnownKeys | None) -> None:
        self._database = database
        self.keys = keys
        self._places: dict[str, str] = {}

    async def admit(self, request: Request, role: Role, *, everywhere: bool) -> None:
        """Lets the request pass, with its caller as ``request.state.caller``; ``everywhere``: only who sees all.

        Raises UnknownCaller, TooManyRequests, RoleTooLow, ForeignOrigin, UnknownThing.
        """
        caller = ANYBODY if self.keys is None else await self._caller(request, self.keys)
        if not caller.holds(role):
            raise RoleTooLow(f"This asks for the role {role.value}; yours is {caller.role.value}.", role=role.value)
        if caller.workspaces is not None:
            if everywhere:
                raise RoleTooLow("This is about all workspaces, and so needs a key for all (`*`).", role=role.value)
            await self._keep_within(request, caller)
        request.state.caller = caller

    # Who

    async def _caller(self, request: Request, keys: KnownKeys) -> Caller:
        text = shown(request.headers)
        if text is not None:
            found = None if (key := Key.parse(text)) is None else await keys.bearer(key)
        elif "signature" in request.query_params:
            found = await self._reader(request, keys)
        elif (key := session(request)) is not None:
            if not _from_our_page(request):
                raise ForeignOrigin("The cookie of a session is good for the pages of this site only.")
            found = await keys.bearer(key)
        else:
            raise UnknownCaller("Show a key: `X-API-Key: ade_…`, or `Authorization: Bearer ade_…`.")
        if found is None:
            raise UnknownCaller("This key, session or signature is unknown, expired or revoked.")
        caller, wait_s = found
        if wait_s > 0:
            raise TooManyRequests("This key has asked too often.", retry_after_s=int(wait_s) + 1)
        return caller

    async def _reader(self, request: Request, keys: KnownKeys) -> tuple[Caller, float] | None:
        """Who comes with a signed address. What signs it is taken out of the query, where no endpoint looks for it."""
        if request.method not in {"GET", "HEAD"}:
            return None
        signed = SignedPath.parse(request.scope["path"], *(request.query_params.get(name, "") for name in SIGNED))
        parts = request.scope["query_string"].split(b"&")
        request.scope["query_string"] = b"&".join(
            part for part in parts if part.partition(b"=")[0].decode("latin-1") not in SIGNED
        )
        return await keys.reader(signed) if signed is not None and now() < signed.until else None

    # Where

    async def _keep_within(self, request: Request, caller: Caller) -> None:
        asked = [(name, value) for name, value in request.query_params.multi_items() if names_a_thing(name)]
        for name, value in (*request.path_params.items(), *asked):
            workspace = value if name in WORKSPACES else await self.workspace_of(value)
            if workspace is None or not caller.sees(workspace):
                raise UnknownThing(f"There is no {value} that this key may see.")

    async def workspace_of(self, thing: str) -> str | None:
        """The workspace of a run, build, config, document or artifact, asked of the database once; None where there is
        no such thing."""
        workspace = self._places.get(thing)
        if workspace is None and "\0" not in thing:  # no id has one, and PostgreSQL takes none
            row = await self._database.row("workspace_of", id=thing)
            if row is None:
                return None
            if len(self._places) >= PLACES:
                del self._places[next(iter(self._places))]
            workspace = self._places[thing] = str(row["workspace"])
        return workspace


def names_a_thing(parameter: str) -> bool:
    """Whether a parameter of a query names something that belongs to a workspace."""
    return parameter.endswith("_id") and parameter not in NOT_THINGS


def session(request: Request) -> Key | None:
    """The session that a browser sends along."""
    cookie = request.cookies.get(COOKIE)
    return None if cookie is None else Key.parse(cookie)


def shown(headers: Headers) -> str | None:
    """The key that a client shows, whatever it is."""
    key = headers.get("x-api-key")
    if key is None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else None
    return key


def _from_our_page(request: Request) -> bool:
    """Whether no other site can have caused a request that the browser adds a cookie to.

    Browsers say where a request comes from, in headers that no page can set; so no token must be kept, handed out and
    sent along. Only what changes nothing may come from a client that says nothing of it.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site in {"same-origin", "none"}
    if origin is not None:
        return origin.split("//", 1)[-1] == request.headers.get("host")
    return request.method in {"GET", "HEAD"}
