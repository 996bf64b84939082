"""Why the service says no. The class docstring is the title; ``detail`` says what is wrong and what to do about it.

Each refusal has a slug and a status, and becomes a problem document (RFC 9457) in ``service.api.problems``.
"""

from typing import Any, ClassVar


class Refusal(Exception):
    """The request cannot be fulfilled."""

    slug: ClassVar[str]
    status: ClassVar[int]

    def __init__(self, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts


class Malformed(Refusal):
    """The request cannot be understood"""

    slug, status = "malformed", 400


class UnknownThing(Refusal):
    """There is no such thing"""

    slug, status = "not-found", 404


class MethodNotAllowed(Refusal):
    """This method is not offered here"""

    slug, status = "method-not-allowed", 405


class BuildInProgress(Refusal):
    """A build is in progress"""

    slug, status = "build-in-progress", 409


class AlreadyEnded(Refusal):
    """It has ended already"""

    slug, status = "already-ended", 409


class CursorAhead(Refusal):
    """The cursor is ahead of the log"""

    slug, status = "cursor-ahead", 409


class OtherLog(Refusal):
    """The cursor belongs to another log"""

    slug, status = "other-log", 409


class CursorGone(Refusal):
    """The cursor is older than what is kept"""

    slug, status = "cursor-gone", 410


class TooLarge(Refusal):
    """The body is too large"""

    slug, status = "too-large", 413


class WrongMediaType(Refusal):
    """The content type is not one that is taken here"""

    slug, status = "wrong-media-type", 415


class RangeNotSatisfiable(Refusal):
    """The range lies outside of the content"""

    slug, status = "range-not-satisfiable", 416


class Invalid(Refusal):
    """The body is not valid"""

    slug, status = "invalid", 422


class BadConfig(Refusal):
    """The config package cannot be used"""

    slug, status = "bad-config", 422


class NoEngine(Refusal):
    """No engine is named anywhere"""

    slug, status = "no-engine", 422


class NeedsInput(Refusal):
    """The command needs an input document"""

    slug, status = "needs-input", 422


class InSafeMode(Refusal):
    """The service is in safe mode"""

    slug, status = "safe-mode", 422


class KeyReuse(Refusal):
    """The idempotency key was used for another request"""

    slug, status = "idempotency-key-reused", 422


class ForeignOrigin(Refusal):
    """The request comes from a foreign origin"""

    slug, status = "foreign-origin", 403


class TooBusy(Refusal):
    """The service is busy"""

    slug, status = "unavailable", 503


class InternalError(Refusal):
    """Something is broken on our side"""

    slug, status = "internal", 500
