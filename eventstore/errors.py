"""What can go wrong with the log: the caller's mistake, the world moved on, or our own bug.

The class docstring is the message; the facts are attributes.
"""

from typing import Any


class EventStoreError(Exception):
    """Something is wrong with the event store."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)
        super().__init__(facts)

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.facts.items())
        sentence = (self.__doc__ or "").strip().splitlines()[0]
        return f"{sentence} ({told})" if told else sentence


class CallerMistake(EventStoreError):
    """The caller asked for something that cannot be."""


class InvalidEvent(CallerMistake):
    """An event must have a dotted type, a known stream and an object of its own members as payload."""


class TooLarge(CallerMistake):
    """One append may not be larger than the log takes at once."""


class NoLog(CallerMistake):
    """This database holds no log, or that of another release. If it is the right one, `ade db migrate` sees to it."""


class WorldMovedOn(EventStoreError):
    """Somebody else was faster."""


class Conflict(WorldMovedOn):
    """The stream has moved on since it was read, or it has ended."""

    stream: str
    last_control_id: int


class Fenced(WorldMovedOn):
    """The lease was taken by somebody else; nothing was written."""

    stream: str


class KeyReused(WorldMovedOn):
    """The idempotency key was used before, for something else."""

    key: str


class Unavailable(WorldMovedOn):
    """The database cannot be reached; nothing is known to be lost. Try again."""


class LockTimeout(WorldMovedOn):
    """Somebody holds what this needs for longer than it may wait; nothing was changed."""


class DependedOn(CallerMistake):
    """Something that others made depends on what was to be replaced; nothing was changed."""


class RebuildRunning(WorldMovedOn):
    """Another rebuild is running; wait for it to end."""


class StoreBug(EventStoreError):
    """The event store broke its own rules; please report this."""
