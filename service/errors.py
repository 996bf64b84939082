"""Why the service says no. The class docstring is the title; ``detail`` says what is wrong and what to do about it.

Each refusal has a slug, a status and facts, and becomes a problem document (RFC 9457) in ``service.api.problems``.
"""

from typing import Annotated, Any, ClassVar, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads no other one before Python 3.12


class NoFacts(TypedDict):
    """Nothing beside the sentence."""


class OfConfig(TypedDict):
    """The config that is meant."""

    config_id: str


class OfRunOrBuild(TypedDict):
    """The run or the build that is meant."""

    run_id: NotRequired[str]
    build_id: NotRequired[str]


class FieldError(TypedDict):
    """A field of a body that is wrong."""

    path: Annotated[str, Field(description="The names and numbers that lead to it, with dots; empty for the body.")]
    message: str


class Refusal(Exception):
    """The request cannot be fulfilled."""

    slug: ClassVar[str]
    status: ClassVar[int]
    Facts: ClassVar[type] = NoFacts
    """What the problem document says for programs, beside what all have."""

    def __init__(self, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.facts = facts


class Malformed(Refusal):
    """The request cannot be understood"""

    slug, status = "malformed", 400

    class Facts(TypedDict):
        parameter: NotRequired[Annotated[str, Field(description="The parameter or header that is wrong.")]]


class UnknownThing(Refusal):
    """There is no such thing"""

    slug, status = "not-found", 404


class MethodNotAllowed(Refusal):
    """This method is not offered here"""

    slug, status = "method-not-allowed", 405


class TooSlow(Refusal):
    """The body comes too slowly"""

    slug, status = "too-slow", 408


class BuildInProgress(Refusal):
    """A build is in progress"""

    slug, status = "build-in-progress", 409

    class Facts(TypedDict):
        build_id: Annotated[str, Field(description="The one in progress.")]


class AlreadyEnded(Refusal):
    """It has ended already"""

    slug, status = "already-ended", 409

    class Facts(TypedDict):
        run_id: NotRequired[str]
        run_status: NotRequired[str]
        build_id: NotRequired[str]
        build_status: NotRequired[str]


class CursorAhead(Refusal):
    """The cursor is ahead of the log"""

    slug, status = "cursor-ahead", 409

    class Facts(TypedDict):
        head: Annotated[int, Field(description="The newest event.")]
        log_id: Annotated[str, Field(description="The log that this is.")]


class OtherLog(Refusal):
    """The cursor belongs to another log"""

    slug, status = "other-log", 409

    class Facts(TypedDict):
        log_id: Annotated[str, Field(description="The log that this is.")]


class CursorGone(Refusal):
    """The cursor is older than what is kept"""

    slug, status = "cursor-gone", 410

    class Facts(TypedDict):
        oldest_id: int
        newest_id: int


class TooLarge(Refusal):
    """The body is too large"""

    slug, status = "too-large", 413

    class Facts(TypedDict):
        most_bytes: int


class WrongMediaType(Refusal):
    """The content type is not one that is taken here"""

    slug, status = "wrong-media-type", 415

    class Facts(TypedDict):
        media_type: Annotated[str, Field(description="What was sent.")]


class RangeNotSatisfiable(Refusal):
    """The range lies outside of the content"""

    slug, status = "range-not-satisfiable", 416

    class Facts(TypedDict):
        size: Annotated[int, Field(description="How many bytes there are.")]


class Invalid(Refusal):
    """The body is not valid"""

    slug, status = "invalid", 422

    class Facts(TypedDict):
        errors: list[FieldError]


class BadConfig(Refusal):
    """The config package cannot be used"""

    slug, status = "bad-config", 422

    class Facts(TypedDict):
        reason: NotRequired[Annotated[str, Field(description="What is wrong with the package, as a slug.")]]
        config_id: NotRequired[str]


class NoEngine(Refusal):
    """No engine is named anywhere"""

    slug, status = "no-engine", 422
    Facts = OfConfig


class NeedsInput(Refusal):
    """The command needs an input document"""

    slug, status = "needs-input", 422
    Facts = OfConfig


class InSafeMode(Refusal):
    """The service is in safe mode"""

    slug, status = "safe-mode", 422
    Facts = OfRunOrBuild


class KeyReuse(Refusal):
    """The idempotency key was used for another request"""

    slug, status = "idempotency-key-reused", 422


class UnknownCaller(Refusal):
    """A key is needed"""

    slug, status = "unknown-caller", 401


class RoleTooLow(Refusal):
    """The key is not good for this"""

    slug, status = "role-too-low", 403

    class Facts(TypedDict):
        role: Annotated[str, Field(description="The one that is needed.")]


class HeadTooLarge(Refusal):
    """The address or the headers are too long"""

    slug, status = "head-too-large", 431

    class Facts(TypedDict):
        most_bytes: int


class TooManyRequests(Refusal):
    """Too many requests"""

    slug, status = "too-many-requests", 429

    class Facts(TypedDict):
        retry_after_s: int


class ForeignOrigin(Refusal):
    """The request comes from a foreign origin"""

    slug, status = "foreign-origin", 403


class TooBusy(Refusal):
    """The service is busy"""

    slug, status = "unavailable", 503


class InternalError(Refusal):
    """Something is broken on our side"""

    slug, status = "internal", 500
