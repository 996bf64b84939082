"""Structured lines about a run: one JSON object a line, on stderr; the run service keeps them as `engine.*` events."""

import json
import os
import sys
import uuid
from datetime import UTC, datetime


class Telemetry:
    """The lines of one run, all with the same `engine_run_id`: the id that the service gave the run, if it did."""

    def __init__(self) -> None:
        self._run_id = os.environ.get("ADE_RUN_ID") or f"penguins_{uuid.uuid4().hex}"

    def emit(self, event: str, message: str, *, level: str = "info", **members: object) -> None:
        """Write one line. `event` is a dotted name that starts with `engine.`; `members` are `data` or `error`."""
        line = {
            "event_id": uuid.uuid4().hex,
            "engine_run_id": self._run_id,
            "timestamp": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": level,
            "event": event,
            "message": message,
            **members,
        }
        print(json.dumps(line), file=sys.stderr)
