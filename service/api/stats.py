"""How runs and builds fare: by workspace and time."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from eventstore import Database
from eventstore.clock import now
from projections.events import StopReason
from service.api import answers, shape
from service.api.query import Moment, Query
from service.api.request import deployment, own, workspace_of
from service.api.shape import Shape
from service.api.snapshots import BuildStatus, RunStatus, WaitingFor

DAY_S = 86_400.0
MOST = 10
"""Configs and errors that are named."""


class StatsQuery(Query):
    """Of which time."""

    created_after: Moment | None = Field(
        None, description="Of those from this moment on; without it, of a day up to `created_before`."
    )
    created_before: Moment | None = Field(None, description="Of those before this moment; without it, up to now.")


class Durations(Shape):
    """How long those took that went well, in ms; `null` where none did."""

    p50_ms: int | None
    p95_ms: int | None


class Failures(Shape):
    """What failed with the same words."""

    stop_reason: StopReason
    error_message: str | None
    count: int
    newest_id: str


class ConfigStats(Shape):
    """The runs of one config."""

    config_id: str
    name: str | None
    total: int
    failed: int
    durations: Durations


class Queue(Shape):
    """What is queued now, whenever it was created."""

    queued: int
    oldest_s: float | None = Field(description="How long the oldest has waited, in seconds.")


class RunQueue(Queue):
    """The runs that are queued now, whenever they were created."""

    waiting_for: dict[WaitingFor, int] = Field(description="How many wait for what.")


class _WorkStats(Shape):
    total: int
    by_status: Mapping[Any, int]
    by_stop_reason: dict[StopReason, int]
    durations: Durations
    failures: list[Failures] = Field(description=f"The most frequent errors, at most {MOST}.")
    queue: Queue


class RunStats(_WorkStats):
    """How runs fare. What there is none of has no number."""

    by_status: dict[RunStatus, int]
    queue: RunQueue
    configs: list[ConfigStats] = Field(description=f"Those with the most runs, at most {MOST}.")


class BuildStats(_WorkStats):
    """How builds fare. What there is none of has no number."""

    by_status: dict[BuildStatus, int]


class Stats(Shape):
    """How runs and builds fare that were created in a time."""

    object: Literal["ade.stats"] = "ade.stats"
    workspace_id: str | None = Field(description="`null`: all that the caller may see.")
    created_after: shape.Moment
    created_before: shape.MaybeMoment = Field(description="`null`: up to now.")
    runs: RunStats
    builds: BuildStats


async def everywhere(request: Request, query: StatsQuery) -> Response:
    """Show how runs and builds fare."""
    return answers.json(await read(deployment(request).database, query, workspaces=own(request)))


async def of_workspace(request: Request, query: StatsQuery) -> Response:
    """Show how the runs and builds of a workspace fare."""
    return answers.json(await read(deployment(request).database, query, workspace_of(request)))


async def read(
    database: Database, query: StatsQuery, workspace_id: str | None = None, *, workspaces: list[str] | None = None
) -> dict[str, Any]:
    """The document, as of now: of one workspace, of some, or of all."""
    before = query.created_before
    after = (now() if before is None else before) - DAY_S if query.created_after is None else query.created_after
    asked = {"workspace_id": workspace_id, "created_after": after, "created_before": before}
    (runs,) = await database.planned("run_stats", **asked, workspaces=workspaces, most=MOST)
    (builds,) = await database.planned("build_stats", **asked, workspaces=workspaces, most=MOST)
    of_runs = _common(runs) | {
        "queue": RunQueue.of({**runs, "waiting_for": runs["waiting_for"] or {}}),
        "configs": [ConfigStats.of({**one, "durations": _durations(one["took"])}) for one in runs["configs"] or []],
    }
    of_builds = _common(builds) | {"queue": Queue.of(builds)}
    return Stats.of({**asked, "runs": RunStats.of(of_runs), "builds": BuildStats.of(of_builds)})


def _common(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "total": row["total"],
        "by_status": row["by_status"] or {},
        "by_stop_reason": row["by_stop_reason"] or {},
        "durations": _durations(row["took"]),
        "failures": [Failures.of(one) for one in row["errors"] or []],
    }


def _durations(took: list[int | None] | None) -> dict[str, Any]:
    p50, p95 = took or (None, None)
    return Durations.of({"p50_ms": p50, "p95_ms": p95})
