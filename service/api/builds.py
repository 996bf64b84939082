"""Builds: ensure, look at, list, cancel."""

from dataclasses import asdict
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service import commands
from service.api import answers, feeds, lists
from service.api.deployment import Deployment
from service.api.query import AsOf, Several, Text
from service.api.request import Body, caller, deployment, idempotency
from service.api.runs import CancelBody
from service.api.snapshots import BuildSnapshot, BuildStatus
from service.api.streams import Streamed, check_kept, check_room
from service.errors import UnknownThing


class EnsureBuildBody(Body):
    """The body of ``POST …/builds``."""

    stream: bool = Field(False, description="Answers with the build's stream, from its first event. Implies `wait`.")
    options: commands.BuildOptions = Field(commands.BuildOptions(), description="Which build will do.")


class ListBuilds(lists.Work):
    """Which builds."""

    status: Several[BuildStatus] | None = Field(None, description="Those with one of these.")
    workspace_id: Text | None = Field(None, description="Those of this workspace.")


BUILDS = lists.Listing("build_page", "build", ListBuilds, BuildSnapshot)


async def ensure(request: Request, query: Streamed, body: EnsureBuildBody) -> Any:
    """Ensure that a config has a build.

    The config's newest version is meant. A new build is 201; one that can be reused, or that is in progress and waited
    for, is 200. With `stream` the answer is the stream of whichever build it is, from its first event.
    """
    found = deployment(request)
    config_id = request.path_params["config"]
    config = await found.handler.config(config_id)
    if config.workspace_id != request.path_params["ws"]:
        raise UnknownThing(f"There is no config {config_id} in this workspace.")
    if streamed := body.stream or query.stream:
        check_room(caller(request))
    options = body.options.model_copy(update={"wait": True}) if streamed else body.options
    created = await found.handler.ensure_build(config_id, options, idempotency(request, config_id, body.sent))
    if streamed:
        return await feeds.stream_of(found, request, query, created.id)
    new = created.how == "created"
    snapshot = await _as_of(found, created.id, created.upto) if new else await _snapshot(found, created.id)
    return answers.json(snapshot, 201 if new else 200, {"Location": f"/api/v1/builds/{created.id}"})


async def ensure_spelled_out(request: Request, query: Streamed, body: EnsureBuildBody) -> Any:
    """Ensure that a configuration has a build.

    The same under another name.
    """
    return await ensure(request, query, body)


async def show(request: Request, query: AsOf) -> Response:
    """Show a build, now or as of an event."""
    found, build_id = deployment(request), request.path_params["id"]
    if query.as_of is not None:
        await check_kept(query.as_of, query, found.log, found.log_id)
        return answers.json(await _as_of(found, build_id, query.as_of))
    return answers.json(await _snapshot(found, build_id))


async def _snapshot(found: Deployment, build_id: str) -> dict[str, Any]:
    return BuildSnapshot.of(await BUILDS.one(found.database, build_id))


async def _as_of(found: Deployment, build_id: str, upto: int) -> dict[str, Any]:
    build = await found.handler.build(build_id, upto=upto)
    row = await found.database.row("last_id_upto", streams=[build_id], upto=upto)
    return BuildSnapshot.of({**asdict(build), "last_event_id": row["last_id"] if row else upto})


async def listing(request: Request, query: ListBuilds) -> Response:
    """List builds."""
    return await BUILDS.answer(request, query)


async def cancel(request: Request, body: CancelBody) -> Response:
    """Ask a build to stop.

    Runs that wait for it fail. Asking twice is no error.
    """
    found, build_id = deployment(request), request.path_params["id"]
    await found.handler.cancel_build(build_id, commands.Cancel(caller(request).name, body.reason))
    return answers.json(await _snapshot(found, build_id), 202)
