"""Runs: create, look at, list, cancel, and what they left."""

from dataclasses import asdict
from typing import Any

import anyio
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service import commands
from service.api import answers, feeds, lists
from service.api.deployment import Deployment
from service.api.query import AsOf, Several, Text
from service.api.request import Body, caller, deployment, idempotency, workspace_of
from service.api.snapshots import ArtifactSnapshot, List, RunSnapshot, RunStatus
from service.api.streams import Streamed, check_kept, check_room
from service.errors import AlreadyEnded, UnknownThing
from service.keys import Caller

HANG_UP_GRACE_S = 5.0
"""From the hang-up of a client that asked for ``cancel_on_disconnect`` to the cancel. Who follows the run again by
then, through the same API process, keeps it."""


class CreateRunBody(Body):
    """The body of ``POST …/runs``."""

    stream: bool = Field(False, description="Answers with the run's stream, from its first event.")
    options: commands.RunOptions = Field(commands.RunOptions(), description="How it is to be done.")


class CancelBody(Body):
    """The body of ``POST …/cancel``."""

    reason: str | None = Field(None, max_length=1000, description="Why, for the log.")


class ListRuns(lists.Work):
    """Which runs."""

    status: Several[RunStatus] | None = Field(None, description="Those with one of these.")
    build_id: Text | None = Field(None, description="Those that are bound to this build.")


RUNS = lists.Listing("run_page", "run", ListRuns, RunSnapshot)


async def create(request: Request, query: Streamed, body: CreateRunBody) -> Any:
    """Create a run.

    It is a run of the config's newest version, and bound to one build for good: an active one with the right
    fingerprint, the one in progress, or a new one that is created in the same moment. It waits until that build is
    active, without a timeout; where the build fails or is canceled, the run fails with `build_failed`. With `stream`
    the answer is the run's stream from its first event: NDJSON, or SSE where `Accept` names it.
    """
    found = deployment(request)
    config_id, streamed = request.path_params["config"], body.stream or query.stream
    if streamed:
        check_room(caller(request))  # before anything is created that nobody would hear of
    created = await found.handler.create_run(config_id, body.options, idempotency(request, config_id, body.sent))
    if streamed:
        on_hang_up = _cancel_later(found, created.id, caller(request)) if body.options.cancel_on_disconnect else None
        return await feeds.stream_of(found, request, query, created.id, on_hang_up=on_hang_up)
    snapshot = await _as_of(found, created.id, created.upto)
    return answers.json(snapshot, 201, {"Location": f"/api/v1/runs/{created.id}"})


def _cancel_later(found: Deployment, run_id: str, by: Caller) -> Any:
    async def cancel() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(HANG_UP_GRACE_S)
            if found.hub.watches(run_id):
                return
            try:
                await found.handler.cancel_run(run_id, commands.Cancel(by.name, "The client hung up"))
            except AlreadyEnded:
                return

    return cancel


async def show(request: Request, query: AsOf) -> Response:
    """Show a run, now or as of an event.

    It is folded up to exactly its `last_event_id`: who follows from there loses nothing and gets nothing twice.
    """
    found, run_id = deployment(request), request.path_params["id"]
    if query.as_of is not None:
        await check_kept(query.as_of, query, found.log, found.log_id)
        return answers.json(await _as_of(found, run_id, query.as_of))
    return answers.json(await _snapshot(found, run_id))


async def _snapshot(found: Deployment, run_id: str) -> dict[str, Any]:
    """The run, folded up to exactly its ``last_event_id``: one statement, one moment."""
    return RunSnapshot.of(await RUNS.one(found.database, run_id))


async def _as_of(found: Deployment, run_id: str, upto: int) -> dict[str, Any]:
    run = await found.handler.run(run_id, upto=upto)
    row = await found.database.row("last_id_upto", streams=[run_id, run.build_id or run_id], upto=upto)
    return RunSnapshot.of({**asdict(run), "last_event_id": row["last_id"] if row else upto})


async def listing(request: Request, query: ListRuns) -> Response:
    """List all runs."""
    return await RUNS.answer(request, query)


async def of_config(request: Request, query: ListRuns) -> Response:
    """List the runs of a config."""
    config_id = request.path_params["config"]
    if not config_id.startswith("config_") or await deployment(request).gate.workspace_of(config_id) is None:
        raise UnknownThing(f"There is no config {config_id}.")
    return await RUNS.answer(request, query, config_id=config_id)


async def of_workspace(request: Request, query: ListRuns) -> Response:
    """List the runs of a workspace."""
    return await RUNS.answer(request, query, workspace_id=workspace_of(request))


async def cancel(request: Request, body: CancelBody) -> Response:
    """Ask a run to stop.

    A queued run ends at once. A running engine gets SIGTERM, and after `ADE_CANCEL_GRACE_SECONDS` SIGKILL with all
    that it has started. Asking twice is no error.
    """
    found, run_id = deployment(request), request.path_params["id"]
    await found.handler.cancel_run(run_id, commands.Cancel(caller(request).name, body.reason))
    return answers.json(await _snapshot(found, run_id), 202)


async def artifacts(request: Request) -> Response:
    """List what a run left.

    The regular files of the engine's output folder, all on one page, at most 1,000. Links are not followed.
    """
    found, run_id = deployment(request), request.path_params["id"]
    await RUNS.one(found.database, run_id)
    rows = await found.database.rows("artifacts_of_run", run=run_id)
    return answers.json(List.of({"data": [ArtifactSnapshot.of(row) for row in rows]}))


async def artifact_content(request: Request) -> Response:
    """Download an artifact.

    Artifacts come from strangers, so a browser may not treat them as a part of this site: they are attachments, with
    `X-Content-Type-Options: nosniff` and a `Content-Security-Policy` that begins with `sandbox`.
    """
    found, artifact_id = deployment(request), request.path_params["id"]
    row = await found.database.row("artifact", id=artifact_id)
    if row is None:
        raise UnknownThing(f"There is no artifact {artifact_id}.")
    path = found.files.artifact(row["workspace_id"], row["run_id"], row["id"])
    return answers.download(request, path, row)
