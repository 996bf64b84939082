"""A build, folded in memory from its control events."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from eventstore.event import Event
from projections.lifecycle import BUILD, Phase, move, retry_at


@dataclass(frozen=True, slots=True)
class Build:
    """The state of one build. Times are Unix seconds; ``control_id`` is what the next decision expects."""

    id: str
    workspace_id: str = ""
    phase: Phase = Phase.NONE
    control_id: int = 0
    status: str = "queued"
    config_id: str = ""
    config_version: int = 0
    reason: str = ""
    fingerprint: str = ""
    engine: str | None = None
    requested_by: str = ""
    step: str | None = None
    attempt: int = 0
    max_attempts: int = 3
    lost_attempts: int = 0
    """Attempts that are lost and count; one that was handed back does not."""
    retry_at: float | None = None
    """Before this it is not begun again."""
    worker_id: str | None = None
    cancel_requested_at: float | None = None
    cancel_requested_by: str | None = None
    exit_code: int | None = None
    error_message: str | None = None
    stop_reason: str | None = None
    summary: str | None = None
    packages: list[dict[str, Any]] | None = None
    python: str | None = None
    duration_ms: int | None = None
    created_id: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    updated_at: float = 0.0


def apply(build: Build, event: Event) -> Build:
    """The build after one more control event."""
    data = dict(event.data)
    build = replace(
        build, phase=move(BUILD, build.phase, event.type, data), control_id=event.id, updated_at=event.recorded_at
    )
    match event.type:
        case "build.created":
            kept = ("config_id", "config_version", "reason", "fingerprint", "engine", "requested_by")
            return replace(
                build,
                workspace_id=event.workspace,
                created_id=event.id,
                created_at=event.recorded_at,
                max_attempts=data.get("max_attempts") or build.max_attempts,
                **{name: data[name] for name in kept},
            )
        case "build.started":
            return replace(
                build,
                status="building",
                retry_at=None,
                attempt=data["attempt"],
                worker_id=data["worker_id"],
                python=data["python"],
                started_at=build.started_at or event.recorded_at,
            )
        case "build.step":
            return replace(build, step=data["step"])
        case "build.cancel_requested":
            return replace(
                build,
                cancel_requested_at=build.cancel_requested_at or event.recorded_at,
                cancel_requested_by=build.cancel_requested_by or data["requested_by"],
            )
        case "build.lost":
            again = build.phase is Phase.QUEUED
            return replace(
                build,
                worker_id=None,
                step=None,
                status="queued" if again else build.status,
                retry_at=retry_at(event) if again else None,
                lost_attempts=build.lost_attempts + (not data.get("handed_back")),
            )
        case "build.completed":
            ended = ("status", "exit_code", "error_message", "stop_reason", "summary", "packages", "duration_ms")
            return replace(
                build,
                worker_id=None,
                retry_at=None,
                python=build.python if data["python"] is None else data["python"],
                finished_at=event.recorded_at,
                **{name: data[name] for name in ended},
            )
    return build


def fold(build_id: str, events: Iterable[Event]) -> Build:
    """The build after all of these control events; ``Phase.NONE`` where there are none."""
    return reduce(apply, events, Build(build_id))
