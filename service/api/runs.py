"""Runs: create, look at, list, cancel, and what they left."""

from dataclasses import asdict
from typing import Any

import anyio
import pydantic
from starlette.requests import Request
from starlette.responses import Response

from service import commands
from service.api import answers, feeds, lists, snapshots
from service.api.deployment import Deployment
from service.api.request import deployment, flag, idempotency, integer, json_body, text
from service.errors import AlreadyEnded, UnknownThing

STATUSES = ("queued", "running", "succeeded", "failed", "canceled")
HANG_UP_GRACE_S = 5.0
"""From the hang-up of a client that asked for ``cancel_on_disconnect`` to the cancel. Who follows the run again by
then, through the same API process, keeps it."""
ANY: dict[str, Any] = dict.fromkeys(
    ("id", "workspace_id", "config_id", "build_id", "status", "created_after", "created_before", "q")
)


class CreateRunBody(pydantic.BaseModel):
    """The body of ``POST …/runs``."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    stream: bool = False
    options: commands.RunOptions = commands.RunOptions()


class CancelBody(pydantic.BaseModel):
    """The body of ``POST …/cancel``."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    reason: str | None = pydantic.Field(None, max_length=1000)


async def create(request: Request) -> Any:
    """A new run: 201 and its snapshot, or 200 and its stream."""
    found = deployment(request)
    config_id = request.path_params["config"]
    body, document = await json_body(request, CreateRunBody)
    created = await found.handler.create_run(config_id, body.options, idempotency(request, config_id, document))
    if body.stream or flag(request, "stream"):
        on_hang_up = _cancel_later(found, created.id) if body.options.cancel_on_disconnect else None
        return await feeds.stream_of(found, request, created.id, on_hang_up=on_hang_up)
    snapshot = await _as_of(found, created.id, created.upto)
    return answers.json(snapshot, 201, {"Location": f"/api/v1/runs/{created.id}"})


def _cancel_later(found: Deployment, run_id: str) -> Any:
    async def cancel() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(HANG_UP_GRACE_S)
            if found.hub.watches(run_id):
                return
            try:
                await found.handler.cancel_run(run_id, commands.Cancel("client", "The client hung up"))
            except AlreadyEnded:
                return

    return cancel


async def show(request: Request) -> Response:
    """A run now, or ``as_of`` an event."""
    found, run_id = deployment(request), request.path_params["id"]
    if "as_of" in request.query_params:
        as_of = integer(request, "as_of", 0, 1, 2**63 - 1)
        return answers.json(await _as_of(found, run_id, as_of))
    return answers.json(await snapshot(found, run_id))


async def snapshot(found: Deployment, run_id: str) -> dict[str, Any]:
    """The run, folded up to exactly its ``last_event_id``: one statement, one moment."""
    row = await found.database.row("run_page", **{**ANY, "id": run_id}, before=2**63 - 1, limit=1)
    if row is None:
        raise UnknownThing(f"There is no run {run_id}.")
    return snapshots.run(row)


async def _as_of(found: Deployment, run_id: str, upto: int) -> dict[str, Any]:
    run = await found.handler.run(run_id, upto=upto)
    row = await found.database.row("last_id_upto", streams=[run_id, run.build_id or run_id], upto=upto)
    return snapshots.run({**asdict(run), "last_event_id": row["last_id"] if row else upto})


async def listing(request: Request) -> Response:
    """Runs, newest first: all, or those of a config or of a workspace."""
    filters = {
        **ANY,
        **lists.filters(request, STATUSES),
        "workspace_id": request.path_params.get("ws"),
        "build_id": text(request, "build_id"),
    }
    if "config" in request.path_params:
        filters["config_id"] = request.path_params["config"]
    return await lists.answer(request, "run_page", snapshots.run, **filters)


async def cancel(request: Request) -> Response:
    """Asks the run to stop; asking twice is no error."""
    found, run_id = deployment(request), request.path_params["id"]
    body, _ = await json_body(request, CancelBody)
    await found.handler.cancel_run(run_id, commands.Cancel("anonymous", body.reason))
    return answers.json(await snapshot(found, run_id), 202)


async def artifacts(request: Request) -> Response:
    """What a run left."""
    found, run_id = deployment(request), request.path_params["id"]
    await snapshot(found, run_id)
    rows = await found.database.rows("artifacts_of_run", run=run_id)
    return answers.json({"object": "list", "data": [snapshots.artifact(row) for row in rows], "next_page": None})


async def artifact_content(request: Request) -> Response:
    """The bytes of an artifact."""
    found, artifact_id = deployment(request), request.path_params["id"]
    row = await found.database.row("artifact", id=artifact_id)
    if row is None:
        raise UnknownThing(f"There is no artifact {artifact_id}.")
    path = found.files.artifact(row["workspace_id"], row["run_id"], row["id"])
    return answers.download(request, path, row)
