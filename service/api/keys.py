"""Keys over HTTP, and what a browser needs in their place: sessions and signed addresses."""

from typing import Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from eventstore.clock import now
from projections.events import RoleName
from service import key_records
from service.api import answers
from service.api.gate import COOKIE, session, shown
from service.api.request import Body, caller, deployment
from service.api.shape import MaybeMoment, Moment, Shape
from service.api.snapshots import List
from service.errors import UnknownCaller, UnknownThing
from service.keys import EVERYWHERE, SIGNED_S, Caller, Key, SignedPath


class KeySnapshot(Shape):
    """A key, without its secret, which nobody knows but its bearer."""

    id: str
    object: Literal["ade.key"] = "ade.key"
    name: str
    role: RoleName
    workspaces: list[str] = Field(description='Those that it is good for; `["*"]` is all, also later ones.')
    state: Literal["live", "expired", "revoked"]
    created_at: Moment
    expires_at: MaybeMoment
    revoked_at: MaybeMoment
    last_used_at: MaybeMoment = Field(description="To the minute.")


class MadeKey(KeySnapshot):
    """A key as it was made."""

    key: str = Field(description="What its bearer sends. It is shown this once.")


class Session(Shape):
    """Who asks."""

    object: Literal["ade.session"] = "ade.session"
    key_id: str = Field(description="What events have as `requested_by`; `anonymous` where nobody needs a key.")
    role: RoleName
    workspaces: list[str]
    expires_at: MaybeMoment = Field(None, description="Of a session that was just opened: when the cookie is dead.")


class SignedUrls(Shape):
    """Paths with a query that stands for a key; add the usual parameters to them."""

    object: Literal["ade.signed_urls"] = "ade.signed_urls"
    events: str
    logs: str
    logfile: str
    expires_at: Moment


class NewKeyBody(Body, key_records.NewKey):
    """The body of ``POST /keys``."""


class RevokeBody(Body):
    """The body of ``POST /keys/{id}/revoke``."""

    reason: str | None = Field(None, max_length=1000, description="Why, for the log.")


async def listing(request: Request) -> Response:
    """List the keys that were ever made.

    Newest first, all on one page.
    """
    rows = await key_records.listed(deployment(request).database)
    return answers.json(List.of({"data": [KeySnapshot.of(row) for row in rows]}))


async def create(request: Request, body: NewKeyBody) -> Response:
    """Make a key.

    Its text is in the answer to this request, and nowhere else. An `Idempotency-Key` is of no use here.
    """
    database = deployment(request).database
    key = await key_records.make(database, body, caller(request).name)
    (row,) = await key_records.listed(database, key.id)
    return answers.json(MadeKey.of({**row, "key": key.text}), 201, {"Cache-Control": "no-store"})


async def revoke(request: Request, body: RevokeBody) -> Response:
    """Revoke a key.

    It is dead within a second on every node, and so are its sessions, the addresses that it signed and the streams
    that it opened. Asking twice is no error.
    """
    database, key_id = deployment(request).database, request.path_params["id"]
    await key_records.revoke(database, key_id, caller(request).name, body.reason)
    rows = await key_records.listed(database, key_id)
    if not rows:
        raise UnknownThing(f"There is no key {key_id}.")
    return answers.json(KeySnapshot.of(rows[0]))


def _who(asks: Caller) -> dict[str, object]:
    workspaces = [EVERYWHERE] if asks.workspaces is None else sorted(asks.workspaces)
    return {"key_id": asks.name, "role": asks.role.value, "workspaces": workspaces}


async def show_session(request: Request) -> Response:
    """Show who asks."""
    return answers.json(Session.of(_who(caller(request))))


async def open_session(request: Request) -> Response:
    """Open a session, for a browser.

    Asked with a key in a header, it answers with a cookie that stands for the key for 12 hours, and no longer than the
    key lives. Pages of this site can then do without the key. Where nobody needs a key there is no cookie either.
    """
    found, who = deployment(request), _who(caller(request))
    if found.gate.keys is None:
        return answers.json(Session.of(who))
    key = Key.parse(shown(request.headers) or "")
    opened = None if key is None else await key_records.open_session(found.database, key)
    if opened is None:
        raise UnknownCaller("A session is opened with a key in a header, not with another session.")
    made, expires = opened
    answer = answers.json(Session.of({**who, "expires_at": expires}))
    secure = "https" in {request.url.scheme, request.headers.get("origin", "").partition(":")[0]}  # or a proxy has TLS
    answer.set_cookie(COOKIE, made.text, int(expires - now()), secure=secure, httponly=True, samesite="strict")
    return answer


async def close_session(request: Request) -> Response:
    """End the session of the cookie that comes along.

    On other nodes it is dead within a second.
    """
    ended = session(request)
    if ended is not None:
        await key_records.close_session(deployment(request).database, ended)
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE)
    return answer


async def sign_run(request: Request) -> Response:
    """Sign addresses of a run's feed.

    For `EventSource` and links, which can send no headers: each is good for reading that one path, for 24 hours, and
    dies with the key. Where nobody needs a key they are the plain paths.
    """
    return await _sign(request, "runs")


async def sign_build(request: Request) -> Response:
    """Sign addresses of a build's feed.

    As for runs.
    """
    return await _sign(request, "builds")


async def _sign(request: Request, kind: str) -> Response:
    found, until = deployment(request), int(now()) + SIGNED_S
    thing = request.path_params["id"]
    if not thing.startswith(kind[:-1] + "_") or await found.gate.workspace_of(thing) is None:
        raise UnknownThing(f"There is no {kind[:-1]} {thing}.")
    urls = {}
    for part in ("events", "logs", "logfile"):
        path = f"/api/v1/{kind}/{thing}/{part}"
        urls[part] = path
        if found.gate.keys is not None:
            signed = await found.gate.keys.sign(SignedPath(path, caller(request).name, until))
            if signed is None:
                raise UnknownCaller("The key was revoked just now.")
            urls[part] = signed.url
    return answers.json(SignedUrls.of({**urls, "expires_at": until}))
