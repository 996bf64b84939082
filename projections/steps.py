"""The steps that an engine tells of, from its telemetry: what begins with `….started` and ends with the same name and
another last word.

    {"event": "engine.file.started", "data": {"id": "7", "name": "penguins.csv"}}
    {"event": "engine.file.completed", "data": {"id": "7", "rows": 344}}

A step lies within the innermost one that is open, or within the one that ``data.parent_id`` names. ``data.id`` tells
those of one name apart that are open at once. What never ends, ends with its attempt. An engine writes what it likes:
whatever does not fit is passed over, and there are limits to all of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

STEPS_MAX = 1_000
"""Of one run; of those that begin later none is kept, but counted."""
ATTRIBUTES_MAX = 32
TEXT_MAX = 1_024
SKEW_MAX_S = 24 * 3600.0
"""An engine whose clock is further off than this is not asked for the time."""

ENDINGS: Mapping[str, str] = {
    "completed": "success",
    "finished": "success",
    "failed": "failure",
    "canceled": "cancellation",
    "skipped": "skip",
}
"""The last word of an event that ends a step, and how it went."""
RESERVED = ("ade.", "cicd.", "error.")
"""Attributes that say what the service knows, and which an engine's cannot be mistaken for."""

Value = str | int | float | bool


@dataclass(slots=True)
class Step:
    """A step: ``id`` of the event that began it; ``end`` and ``result`` are None where it never ended."""

    id: int
    stem: str
    key: Any
    start: float
    within: "Step | None"
    end: float | None = None
    result: str | None = None
    error: str | None = None
    attributes: dict[str, Value] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called: its event's name, and its own."""
        own = self.attributes.get("engine.data.name")
        return f"{self.stem} {own}"[:TEXT_MAX] if own is not None else self.stem


class Steps:
    """Made from the telemetry of one run, event by event, in the order of their ids."""

    def __init__(self, attempts: Sequence[int] = ()) -> None:
        """``attempts``: the ids of the events that began them."""
        self.found: list[Step] = []
        self.left_out = 0
        self._attempts = sorted(attempts, reverse=True)
        self._open: list[Step] = []

    def add(self, id_: int, type_: str, recorded_at: float, told: Mapping[str, Any]) -> None:
        """Takes one event."""
        while self._attempts and self._attempts[-1] < id_:
            self._attempts.pop()
            self._open.clear()  # what an earlier attempt left open ended with it
        stem, _, word = type_.removeprefix("engine.").rpartition(".")
        data = told.get("data")
        data = data if isinstance(data, Mapping) else {}
        if word == "started":
            self._begin(id_, stem, _time(told, recorded_at), data)
        elif word in ENDINGS:
            self._finish(stem, word, _time(told, recorded_at), data, told.get("error"))

    def _begin(self, id_: int, stem: str, at: float, data: Mapping[str, Any]) -> None:
        if len(self.found) == STEPS_MAX:
            self.left_out += 1
            return
        parent = data.get("parent_id")
        named = [step for step in self._open if parent is not None and step.key == parent]
        within = (named or self._open)[-1:]
        step = Step(id_, stem, data.get("id"), at, within[0] if within else None)
        _describe(step, data)
        self.found.append(step)
        self._open.append(step)

    def _finish(self, stem: str, word: str, at: float, data: Mapping[str, Any], error: Any) -> None:
        for step in reversed(self._open):
            if step.stem == stem and ("id" not in data or step.key == data["id"]):
                self._open.remove(step)
                step.end, step.result = max(at, step.start), ENDINGS[word]
                _describe(step, data)
                if word == "failed":
                    message = error.get("message") if isinstance(error, Mapping) else None
                    step.error = message[:TEXT_MAX] if isinstance(message, str) else ""
                return


def _describe(step: Step, data: Mapping[str, Any]) -> None:
    """Names with a dot (``gen_ai.request.model``) are somebody's convention, and stay as they are."""
    for name, value in data.items():
        if len(step.attributes) >= ATTRIBUTES_MAX or len(name) > TEXT_MAX:
            continue
        if isinstance(value, str | int | float):
            named = "." in name and not name.startswith(RESERVED)
            step.attributes[name if named else f"engine.data.{name}"] = (
                value[:TEXT_MAX] if isinstance(value, str) else value
            )


def _time(told: Mapping[str, Any], recorded_at: float) -> float:
    """When the engine says that it happened, where that can be: lines that were stored together have one time."""
    try:
        said = datetime.fromisoformat(told["engine_timestamp"])
        at = said.timestamp()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return recorded_at
    return at if said.tzinfo is not None and abs(at - recorded_at) < SKEW_MAX_S else recorded_at
