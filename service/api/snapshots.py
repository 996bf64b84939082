"""Runs, builds, configs and documents as JSON: times as Unix seconds, and beside them as RFC 3339."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

Row = Mapping[str, Any]


def run(row: Row) -> dict[str, Any]:
    """A run, from a row of ``run_page`` or the fields of a folded one with its ``last_event_id``."""
    return {
        "id": row["id"],
        "object": "ade.run",
        "workspace_id": row["workspace_id"],
        "config_id": row["config_id"],
        "config_version": row["config_version"],
        "build_id": row["build_id"],
        "status": row["status"],
        "waiting_for": row["waiting_for"],
        **_life(row),
        "exit_code": row["exit_code"],
        "summary": row["summary"],
        "result": row["result"],
        "error_message": row["error_message"],
        "stop_reason": row["stop_reason"],
        "attempt": row["attempt"],
        **_lease(row),
        "cancel_requested_at": rfc3339(row["cancel_requested_at"]),
        "options": row["options"],
        "inputs": row["inputs"],
        "requested_by": row["requested_by"],
        "duration_ms": row["duration_ms"],
        "lines": row["lines"],
        "bytes": row["bytes"],
        "last_event_id": row["last_event_id"],
    }


def build(row: Row) -> dict[str, Any]:
    """A build, from a row of ``build_page`` or the fields of a folded one with its ``last_event_id``."""
    return {
        "id": row["id"],
        "object": "ade.build",
        "workspace_id": row["workspace_id"],
        "config_id": row["config_id"],
        "config_version": row["config_version"],
        "status": row["status"],
        "step": row["step"],
        "reason": row["reason"],
        "fingerprint": row["fingerprint"],
        "engine": row["engine"],
        **_life(row),
        "exit_code": row["exit_code"],
        "summary": row["summary"],
        "error_message": row["error_message"],
        "stop_reason": row["stop_reason"],
        "attempt": row["attempt"],
        **_lease(row),
        "cancel_requested_at": rfc3339(row["cancel_requested_at"]),
        "packages": row["packages"],
        "python": row["python"],
        "requested_by": row["requested_by"],
        "duration_ms": row["duration_ms"],
        "last_event_id": row["last_event_id"],
    }


def config(row: Row) -> dict[str, Any]:
    """A config, from a row of ``config_page``."""
    return {
        "id": row["id"],
        "object": "ade.config",
        "workspace_id": row["workspace_id"],
        "name": row["name"],
        "version": row["version"],
        "digest": row["digest"],
        "active_build_id": row["active_build_id"],
        **_stamps(row, "created", "updated"),
    }


def document(row: Row) -> dict[str, Any]:
    """A document, from a row of ``document_page``."""
    return {
        "id": row["id"],
        "object": "ade.document",
        "workspace_id": row["workspace_id"],
        **_file(row),
        **_stamps(row, "created"),
    }


def artifact(row: Row) -> dict[str, Any]:
    """An artifact, from a row of ``artifacts_of_run``."""
    return {
        "id": row["id"],
        "object": "ade.artifact",
        "run_id": row["run_id"],
        **_file(row),
        **_stamps(row, "created"),
    }


def _file(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("name", "size", "sha256", "media_type")}


def _lease(row: Row) -> dict[str, Any]:
    """Who has it in hand now. Leases are no part of the history: as of an event nobody has."""
    return {
        "processing_by": row.get("processing_by"),
        "lease_expires_at": rfc3339(row.get("lease_expires_at")),
        "heartbeat_at": rfc3339(row.get("heartbeat_at")),
    }


def _life(row: Row) -> dict[str, Any]:
    return _stamps(row, "created", "started", "finished")


def _stamps(row: Row, *names: str) -> dict[str, Any]:
    seconds = {name: row[f"{name}_at"] for name in names}
    return {
        **{name: None if at is None else int(at) for name, at in seconds.items()},
        **{f"{name}_at": rfc3339(at) for name, at in seconds.items()},
    }


def rfc3339(seconds: float | None) -> str | None:
    """Unix seconds as RFC 3339, to the microsecond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
