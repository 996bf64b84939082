"""The service itself: health, readiness, the log's head, workspaces, workers, safe mode."""

import logging
import shutil
import time
from typing import Any, Literal

import anyio
import anyio.to_thread
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from eventstore.clock import now
from eventstore.errors import Unavailable
from eventstore.migrations import compare
from projections import events
from service.api import answers
from service.api.deployment import Deployment
from service.api.request import Body, caller, deployment, own
from service.api.shape import Moment, Seconds, Shape
from service.api.snapshots import List
from service.lag import LAG_EVENTS, UNSEALED_S

logger = logging.getLogger("ade.ready")

HEARTBEAT_S = 5.0
"""A tail that has not looked for this long is not tailing."""
DATABASE_TIMEOUT_S = 2.0
"""Who asks whether we are ready waits for seconds at the most; the pool waits longer for a database to come back."""
DISK_FREE_BYTES = 256 * 2**20


class Health(Shape):
    """How the process is, by what it knew last."""

    status: Literal["healthy"] = "healthy"
    database: Literal["connected", "disconnected"] = Field(description="What was known in the last five seconds.")
    timestamp: Moment


class Unsealed(Shape):
    """What of the log the chain does not cover yet."""

    events: int
    seconds: float = Field(description="How long the oldest of them has waited.")


class Readiness(Shape):
    """Whether requests should be sent here."""

    status: Literal["ready", "unready"]
    reasons: list[str] = Field(description="Why not, in sentences.")
    log_id: str
    unsealed: Unsealed | None = Field(description="`null` where the database cannot say.")


class Head(Shape):
    """Which log this is, and how far it goes."""

    log_id: str
    head: int = Field(description="The newest event.")
    oldest_id: int = Field(description="The oldest event that is kept.")


class Workspace(Shape):
    """A workspace; it exists from its first use."""

    id: str
    object: Literal["ade.workspace"] = "ade.workspace"
    created: Seconds = Field(description="When it was first used, in Unix seconds.")
    created_at: Moment = Field(description="`created` in RFC 3339.")


class Worker(Shape):
    """Who holds work now; the projector is one of them."""

    id: str
    leases: int = Field(description="How many.")
    holds: list[str] = Field(description="Of what: runs and builds; `projector_lease` of the projector.")
    heartbeat_at: Moment
    object: Literal["ade.worker"] = "ade.worker"


class SafeMode(Shape):
    """Whether new work is refused."""

    enabled: bool
    forced: bool = Field(description="`ADE_SAFE_MODE` is set, and nothing here can switch it off.")


class SafeModeBody(Body):
    """The body of ``POST /safe-mode``."""

    enabled: bool = Field(description="Whether new work is to be refused.")
    reason: str | None = Field(None, max_length=1000, description="Why, for the log.")


async def health(request: Request) -> Response:
    """Say that the process lives.

    Always 200, and asks nothing: `database` is what was known in the last five seconds.
    """
    alive = time.monotonic() - deployment(request).hub.heartbeat < HEARTBEAT_S
    return answers.json(Health.of({"database": "connected" if alive else "disconnected", "timestamp": now()}))


async def ready(request: Request) -> Response:
    """Say whether requests should be sent here.

    503 where the database cannot be reached, migrations are pending, the projector is more than 200,000 events behind,
    the tail of the log has stopped, the disk has less than 256 MiB left, events have waited for their seal for more
    than a minute, or the server is stopping.
    """
    found = deployment(request)
    reasons, unsealed = await _reasons(found)
    document = {
        "status": "unready" if reasons else "ready",
        "reasons": reasons,
        "log_id": found.log_id,
        "unsealed": unsealed,
    }
    return answers.json(Readiness.of(document), 503 if reasons else 200, {"Retry-After": "1"} if reasons else None)


async def _reasons(found: Deployment) -> tuple[list[str], dict[str, Any] | None]:
    """Why not, and what of the log is not sealed yet: how many events, and since when, in seconds."""
    reasons, unsealed = [], None
    try:
        with anyio.fail_after(DATABASE_TIMEOUT_S):
            schema = compare({row["name"]: row["digest"] for row in await found.database.rows("migrations")})
            if schema.pending:
                reasons.append(f"migrations are pending: {', '.join(schema.pending)}; run `ade db migrate`")
            else:
                unsealed = await found.database.row("unsealed")
            row = await found.database.row("projector_lag")
        if unsealed and unsealed["seconds"] > UNSEALED_S:
            reasons.append(f"{unsealed['events']} events are not sealed, since {unsealed['seconds']:.0f} seconds")
        if row and row["lag"] > LAG_EVENTS:
            reasons.append(f"the projector is {row['lag']} events behind")
    except TimeoutError:
        reasons.append(f"the database has not answered for {DATABASE_TIMEOUT_S:g} seconds")
    except Unavailable as away:
        reasons.append(unreachable(away, anybody=found.gate.keys is None))
    if time.monotonic() - found.hub.heartbeat > HEARTBEAT_S:
        reasons.append("the tail of the log has stopped looking")
    disk = await anyio.to_thread.run_sync(shutil.disk_usage, found.settings.data)
    if disk.free < DISK_FREE_BYTES:
        reasons.append(f"the disk has {disk.free} bytes left")
    if found.hub.draining:
        reasons.append("the server is stopping")
    return reasons, unsealed


def unreachable(away: Unavailable, *, anybody: bool) -> str:
    """That the database is away; why, only where ``anybody`` may do all: it may name hosts and accounts."""
    logger.warning("not ready: the database cannot be reached: %s", away.facts.get("reason"))
    return "the database cannot be reached" + (f": {away.facts.get('reason')}" if anybody else "; the log says why")


async def head(request: Request) -> Response:
    """Show which log this is, and its newest event."""
    identity = await deployment(request).log.identity()
    return answers.json(Head.of({"log_id": identity.log_id, "head": identity.head, "oldest_id": identity.oldest}))


async def workspaces(request: Request) -> Response:
    """List the workspaces that were ever used.

    All on one page.
    """
    rows = await deployment(request).database.rows("workspaces", workspaces=own(request))
    return answers.json(List.of({"data": [Workspace.of(row) for row in rows]}))


async def workers(request: Request) -> Response:
    """List who holds work now.

    All on one page.
    """
    rows = await deployment(request).database.rows("workers")
    return answers.json(List.of({"data": [Worker.of(row) for row in rows]}))


async def safe_mode(request: Request) -> Response:
    """Show whether new work is refused."""
    found = deployment(request)
    return answers.json(SafeMode.of({"enabled": await found.handler.safe_mode(), "forced": found.settings.safe_mode}))


async def switch_safe_mode(request: Request, body: SafeModeBody) -> Response:
    """Refuse new work from here on, or take it again.

    In safe mode a request for a run or a build is put on record, ended at once and refused. What is queued stays
    queued, what is running runs on. Workers see it within a second.
    """
    found = deployment(request)
    changed = events.SafeModeChanged(enabled=body.enabled, requested_by=caller(request).name, reason=body.reason)
    await found.handler.switch_safe_mode(changed)
    return await safe_mode(request)
