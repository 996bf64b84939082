"""Keys on record: made, listed, revoked, and the sessions that browsers open with them."""

from typing import Annotated, Any

import pydantic

from eventstore import Database
from eventstore.clock import now, rfc3339
from projections.events import KeyCreated, KeyRevoked, RoleName
from service.keys import Key

SESSION_S = 12 * 3600
"""How long a browser is let in: a working day."""
SESSIONS_MAX = 100
"""Of one key at a time; the next one ends the oldest."""
LIFE_MAX_S = 10 * 366 * 24 * 3600

Workspace = Annotated[str, pydantic.StringConstraints(pattern=r"^([a-z0-9][a-z0-9-]{0,62}|\*)$")]
Name = Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]


class NewKey(pydantic.BaseModel):
    """What a key is to be good for; ``["*"]`` is every workspace."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    name: Name
    role: RoleName
    workspaces: list[Workspace] = pydantic.Field(min_length=1, max_length=100)
    expires_in_s: int | None = pydantic.Field(None, ge=1, le=LIFE_MAX_S)


async def make(database: Database, wanted: NewKey, by: str) -> Key:
    """A new key. Its text is to be shown now: nobody can find it out later."""
    key, expires = Key.new(), None if wanted.expires_in_s is None else now() + wanted.expires_in_s
    made = KeyCreated(
        key_id=key.id,
        name=wanted.name,
        role=wanted.role,
        workspaces=wanted.workspaces,
        expires_at=None if expires is None else rfc3339(expires, "seconds"),
        requested_by=by,
    )
    await database.rows(
        "make_key",
        id=key.id,
        name=wanted.name,
        sha256=key.sha256,
        role=wanted.role,
        workspaces=wanted.workspaces,
        expires=expires,
        says=made.event().data.decode(),
    )
    await _hint(database)
    return key


async def revoke(database: Database, key_id: str, by: str, reason: str | None) -> bool:
    """The key is dead from here on, on every node within a second; False where it was so before, or never was."""
    revoked = KeyRevoked(key_id=key_id, requested_by=by, reason=reason)
    row = await database.row("revoke_key", id=key_id, says=revoked.event().data.decode())
    await _hint(database)
    return row is not None and row["id"] is not None


async def _hint(database: Database) -> None:
    await database.rows("hint", moved=False)


async def listed(database: Database, key_id: str | None = None) -> list[dict[str, Any]]:
    """Every key, newest first, or one of them: all that is known but the secret, which nobody knows."""
    return await database.rows("keys", id=key_id)


async def open_session(database: Database, key: Key) -> tuple[Key, float] | None:
    """What a browser may hold in place of the key, and until when; None where the key is none, or a session itself."""
    session = Key.new()
    await database.rows("forget_sessions", parent=key.id, most=SESSIONS_MAX - 1)
    row = await database.row(
        "open_session", id=session.id, parent=key.id, sha256=session.sha256, seconds=float(SESSION_S)
    )
    return None if row is None else (session, row["expires_at"])


async def close_session(database: Database, session: Key) -> None:
    """The session is over."""
    await database.rows("close_session", id=session.id)
    await _hint(database)
