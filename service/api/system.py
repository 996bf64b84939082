"""The service itself: health, readiness, the log's head, workspaces, workers, safe mode, and the page at ``/``."""

import shutil
import time
from pathlib import Path
from typing import Any

import anyio.to_thread
import pydantic
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from eventstore.clock import now
from eventstore.errors import Unavailable
from eventstore.migrations import compare
from projections import events
from service.api import answers
from service.api.deployment import Deployment
from service.api.request import deployment, json_body
from service.api.snapshots import rfc3339

HEARTBEAT_S = 5.0
"""A tail that has not looked for this long is not tailing."""
LAG_EVENTS = 200_000
UNSEALED_S = 60.0
"""Events are sealed within a second; for this long only where the projector is not there, or will not."""
DISK_FREE_BYTES = 256 * 2**20
CONSOLE = Path(__file__).resolve().parent.parent / "console"


async def health(request: Request) -> Response:
    """Always 200: what was last known, without a query."""
    alive = time.monotonic() - deployment(request).hub.heartbeat < HEARTBEAT_S
    document = {
        "status": "healthy",
        "database": "connected" if alive else "disconnected",
        "timestamp": rfc3339(now()),
    }
    return answers.json(document)


async def ready(request: Request) -> Response:
    """200, or 503 with the reasons."""
    found = deployment(request)
    reasons, unsealed = await _reasons(found)
    document = {
        "status": "unready" if reasons else "ready",
        "reasons": reasons,
        "log_id": found.log_id,
        "unsealed": unsealed,
    }
    return answers.json(document, 503 if reasons else 200, {"Retry-After": "1"} if reasons else None)


async def _reasons(found: Deployment) -> tuple[list[str], dict[str, Any] | None]:
    """Why not, and what of the log is not sealed yet: how many events, and since when, in seconds."""
    reasons, unsealed = [], None
    try:
        schema = compare({row["name"]: row["digest"] for row in await found.database.rows("migrations")})
        if schema.pending:
            reasons.append(f"migrations are pending: {', '.join(schema.pending)}; run `ade db migrate`")
        else:
            unsealed = await found.database.row("unsealed")
        if unsealed and unsealed["seconds"] > UNSEALED_S:
            reasons.append(f"{unsealed['events']} events are not sealed, since {unsealed['seconds']:.0f} seconds")
        row = await found.database.row("projector_lag")
        if row and row["lag"] > LAG_EVENTS:
            reasons.append(f"the projector is {row['lag']} events behind")
    except Unavailable as away:
        reasons.append(f"the database cannot be reached: {away.facts.get('reason')}")
    if time.monotonic() - found.hub.heartbeat > HEARTBEAT_S:
        reasons.append("the tail of the log has stopped looking")
    disk = await anyio.to_thread.run_sync(shutil.disk_usage, found.settings.data)
    if disk.free < DISK_FREE_BYTES:
        reasons.append(f"the disk has {disk.free} bytes left")
    if found.hub.draining:
        reasons.append("the server is stopping")
    return reasons, unsealed


async def head(request: Request) -> Response:
    """Which log this is, and its newest event."""
    identity = await deployment(request).log.identity()
    return answers.json({"log_id": identity.log_id, "head": identity.head, "oldest_id": identity.oldest})


async def workspaces(request: Request) -> Response:
    """Every workspace that was ever used."""
    rows = await deployment(request).database.rows("workspaces")
    data = [
        {
            "id": row["id"],
            "object": "ade.workspace",
            "created": int(row["created_at"]),
            "created_at": rfc3339(row["created_at"]),
        }
        for row in rows
    ]
    return answers.json({"object": "list", "data": data, "next_page": None})


async def workers(request: Request) -> Response:
    """Who holds work now."""
    rows = await deployment(request).database.rows("workers")
    data: list[dict[str, Any]] = [
        {**row, "object": "ade.worker", "heartbeat_at": rfc3339(row["heartbeat_at"])} for row in rows
    ]
    return answers.json({"object": "list", "data": data, "next_page": None})


class SafeModeBody(pydantic.BaseModel):
    """The body of ``POST /safe-mode``."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    enabled: bool
    reason: str | None = pydantic.Field(None, max_length=1000)


async def safe_mode(request: Request) -> Response:
    """Whether new work is refused, and whether the environment forces it."""
    found = deployment(request)
    return answers.json({"enabled": await found.handler.safe_mode(), "forced": found.settings.safe_mode})


async def switch_safe_mode(request: Request) -> Response:
    """Refuses new work from here on, or takes it again."""
    found = deployment(request)
    body, _ = await json_body(request, SafeModeBody)
    changed = events.SafeModeChanged(enabled=body.enabled, requested_by="anonymous", reason=body.reason)
    await found.handler.switch_safe_mode(changed)
    return await safe_mode(request)


async def console(_request: Request) -> Response:
    """The page that lists runs and follows one."""
    headers = {
        "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
    }
    return FileResponse(CONSOLE / "index.html", headers=headers)


async def console_script(_request: Request) -> Response:
    """The script of that page."""
    return FileResponse(CONSOLE / "console.js", media_type="text/javascript")
