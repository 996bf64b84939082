"""The moves that a run and a build can make.

Rules: a stream begins with its ``…created`` and ends with its ``…completed``; nothing follows that. Work that is lost
goes back to the queue (``next: retry``), perhaps for a pause, or stays where it is until it is ended (``next: fail``).
Whoever asks for a
cancel of queued work ends it in the same append. Lines of output are no moves: they are bulk, and stand in no table.
"""

from enum import StrEnum
from typing import Any

from eventstore.event import Event


class Phase(StrEnum):
    """Where a run or a build is in its life."""

    NONE = "none"
    QUEUED = "queued"
    WORKING = "working"
    ENDED = "ended"


Moves = dict[Phase, dict[str, Phase]]

RUN: Moves = {
    Phase.NONE: {"run.created": Phase.QUEUED},
    Phase.QUEUED: {
        "run.waiting": Phase.QUEUED,
        "run.started": Phase.WORKING,
        "run.cancel_requested": Phase.QUEUED,
        "run.completed": Phase.ENDED,
    },
    Phase.WORKING: {
        "run.cancel_requested": Phase.WORKING,
        "run.signaled": Phase.WORKING,
        "run.log_gap": Phase.WORKING,
        "run.artifact": Phase.WORKING,
        "run.lost": Phase.WORKING,  # to QUEUED where the event says `next: retry`
        "run.completed": Phase.ENDED,
    },
    Phase.ENDED: {},
}

BUILD: Moves = {
    Phase.NONE: {"build.created": Phase.QUEUED},
    Phase.QUEUED: {
        "build.started": Phase.WORKING,
        "build.cancel_requested": Phase.QUEUED,
        "build.completed": Phase.ENDED,
    },
    Phase.WORKING: {
        "build.step": Phase.WORKING,
        "build.cancel_requested": Phase.WORKING,
        "build.signaled": Phase.WORKING,
        "build.log_gap": Phase.WORKING,
        "build.lost": Phase.WORKING,  # to QUEUED where the event says `next: retry`
        "build.completed": Phase.ENDED,
    },
    Phase.ENDED: {},
}


class ImpossibleMove(Exception):
    """The log holds a move that the lifecycle does not allow: a bug of the writer."""


def move(moves: Moves, phase: Phase, wire: str, data: dict[str, Any]) -> Phase:
    """The phase after an event."""
    try:
        after = moves[phase][wire]
    except KeyError:
        raise ImpossibleMove(f"{wire} cannot follow in phase {phase}") from None
    if wire.endswith(".lost") and data["next"] == "retry":
        return Phase.QUEUED
    return after


def retry_at(lost: Event) -> float | None:
    """Before which moment lost work is not begun again, in Unix seconds to the microsecond, as the tables have it."""
    delay_ms = lost.data.get("delay_ms")
    return None if delay_ms is None else round(lost.recorded_at + delay_ms / 1000, 6)
