"""A run, folded in memory from the control events of its feed: its own, and those of its build in its time."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from eventstore.event import Event
from projections.lifecycle import RUN, Phase, move, retry_at


@dataclass(frozen=True, slots=True)
class Run:
    """The state of one run. Times are Unix seconds; ``control_id`` is what the next decision expects."""

    id: str
    workspace_id: str = ""
    phase: Phase = Phase.NONE
    control_id: int = 0
    status: str = "queued"
    waiting_for: str | None = None
    config_id: str = ""
    config_version: int = 0
    config_digest: str = ""
    build_id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    requested_by: str = ""
    attempt: int = 0
    max_attempts: int = 1
    traceparent: str | None = None
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
    result: Any = None
    duration_ms: int | None = None
    lines: int | None = None
    bytes: int | None = None
    created_id: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    updated_at: float = 0.0


def apply(run: Run, event: Event) -> Run:
    """The run after one more control event of its feed."""
    if event.stream != run.id:
        if event.type == "build.completed" and run.waiting_for == "build":
            return replace(run, waiting_for="worker", updated_at=event.recorded_at)
        return run
    data = dict(event.data)
    run = replace(run, phase=move(RUN, run.phase, event.type, data), control_id=event.id, updated_at=event.recorded_at)
    match event.type:
        case "run.created":
            kept = ("config_id", "config_version", "config_digest", "build_id", "options", "inputs", "requested_by")
            return replace(
                run,
                workspace_id=event.workspace,
                waiting_for="worker",
                created_id=event.id,
                created_at=event.recorded_at,
                max_attempts=data.get("max_attempts") or run.max_attempts,
                traceparent=data.get("traceparent"),
                **{name: data[name] for name in kept},
            )
        case "run.waiting":
            return replace(run, waiting_for=data["for"])
        case "run.started":
            return replace(
                run,
                status="running",
                retry_at=None,
                waiting_for=None,
                attempt=data["attempt"],
                worker_id=data["worker_id"],
                started_at=run.started_at or event.recorded_at,
            )
        case "run.cancel_requested":
            return replace(
                run,
                cancel_requested_at=run.cancel_requested_at or event.recorded_at,
                cancel_requested_by=run.cancel_requested_by or data["requested_by"],
            )
        case "run.lost":
            again = run.phase is Phase.QUEUED
            return replace(
                run,
                worker_id=None,
                status="queued" if again else run.status,
                waiting_for="worker" if again else None,
                retry_at=retry_at(event) if again else None,
                lost_attempts=run.lost_attempts + (not data.get("handed_back")),
            )
        case "run.completed":
            ended = ("status", "exit_code", "error_message", "stop_reason", "summary", "result", "duration_ms")
            return replace(
                run,
                waiting_for=None,
                worker_id=None,
                retry_at=None,
                finished_at=event.recorded_at,
                **{name: data[name] for name in (*ended, "lines", "bytes")},
            )
    return run


def fold(run_id: str, events: Iterable[Event]) -> Run:
    """The run after all of these control events; ``Phase.NONE`` where there are none."""
    return reduce(apply, events, Run(run_id))
