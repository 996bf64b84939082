"""Builds: ensure, look at, list, cancel."""

from dataclasses import asdict
from typing import Any

import pydantic
from starlette.requests import Request
from starlette.responses import Response

from service import commands
from service.api import answers, feeds, lists, snapshots
from service.api.deployment import Deployment
from service.api.request import FOREVER, deployment, flag, idempotency, integer, json_body, text
from service.api.runs import CancelBody
from service.errors import UnknownThing

STATUSES = ("queued", "building", "active", "failed", "canceled")
ANY: dict[str, Any] = dict.fromkeys(
    ("id", "workspace_id", "config_id", "status", "created_after", "created_before", "q")
)


class EnsureBuildBody(pydantic.BaseModel):
    """The body of ``POST …/builds``."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    stream: bool = False
    options: commands.BuildOptions = commands.BuildOptions()


async def ensure(request: Request) -> Any:
    """A build of a config: 201 for a new one, 200 for one that exists, or 200 and the stream of either."""
    found = deployment(request)
    config_id = request.path_params["config"]
    config = await found.handler.config(config_id)
    if config.workspace_id != request.path_params["ws"]:
        raise UnknownThing(f"There is no config {config_id} in this workspace.")
    body, document = await json_body(request, EnsureBuildBody)
    streamed = body.stream or flag(request, "stream")
    options = body.options.model_copy(update={"wait": True}) if streamed else body.options
    created = await found.handler.ensure_build(config_id, options, idempotency(request, config_id, document))
    if streamed:
        return await feeds.stream_of(found, request, created.id)
    new = created.how == "created"
    snapshot = await _as_of(found, created.id, created.upto) if new else await _snapshot(found, created.id)
    return answers.json(snapshot, 201 if new else 200, {"Location": f"/api/v1/builds/{created.id}"})


async def show(request: Request) -> Response:
    """A build now, or ``as_of`` an event."""
    found, build_id = deployment(request), request.path_params["id"]
    if "as_of" in request.query_params:
        return answers.json(await _as_of(found, build_id, integer(request, "as_of", 0, 1, FOREVER)))
    return answers.json(await _snapshot(found, build_id))


async def _snapshot(found: Deployment, build_id: str) -> dict[str, Any]:
    row = await found.database.row("build_page", **{**ANY, "id": build_id}, before=FOREVER, limit=1)
    if row is None:
        raise UnknownThing(f"There is no build {build_id}.")
    return snapshots.build(row)


async def _as_of(found: Deployment, build_id: str, upto: int) -> dict[str, Any]:
    build = await found.handler.build(build_id, upto=upto)
    row = await found.database.row("last_id_upto", streams=[build_id], upto=upto)
    return snapshots.build({**asdict(build), "last_event_id": row["last_id"] if row else upto})


async def listing(request: Request) -> Response:
    """Builds, newest first."""
    filters = {**ANY, **lists.filters(request, STATUSES), "workspace_id": text(request, "workspace_id")}
    return await lists.answer(request, "build_page", snapshots.build, **filters)


async def cancel(request: Request) -> Response:
    """Asks the build to stop; asking twice is no error."""
    found, build_id = deployment(request), request.path_params["id"]
    body, _ = await json_body(request, CancelBody)
    await found.handler.cancel_build(build_id, commands.Cancel("anonymous", body.reason))
    return answers.json(await _snapshot(found, build_id), 202)
