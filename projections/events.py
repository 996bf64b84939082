"""The vocabulary: every event as a frozen model, under a wire name that never changes.

The class may be renamed, the wire name never. Fields are only added, with a default; a reader ignores those that it
does not know. ``tests/golden/`` holds an example of every event ever written.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from eventstore.event import NewEvent, encode

OutputName = Literal["stdout", "stderr", "system"]
RunEnd = Literal["succeeded", "failed", "canceled"]
BuildEnd = Literal["active", "failed", "canceled"]
RoleName = Literal["viewer", "operator", "admin"]
StopReason = Literal[
    "completed", "failed", "canceled", "timeout", "worker_lost", "build_failed", "resource_limit", "safe_mode"
]
Step = Literal["create_venv", "install_engine", "install_config", "verify_imports", "collect_metadata"]

registry: dict[str, "type[Payload]"] = {}
"""Every event by its wire name."""


class Payload(pydantic.BaseModel):
    """What an event says. A field whose default is None is left out of the line while it is None."""

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    wire: ClassVar[str]
    bulk: ClassVar[bool] = False
    ends: ClassVar[bool] = False

    def __init_subclass__(cls, *, wire: str = "", bulk: bool = False, ends: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if wire:
            cls.wire, cls.bulk, cls.ends = wire, bulk, ends
            registry[wire] = cls

    def event(self) -> NewEvent:
        """The event, ready for the log."""
        fields = type(self).model_fields
        members = {
            fields[name].alias or name: value
            for name, value in self.model_dump(mode="json").items()
            if value is not None or fields[name].is_required()
        }
        return NewEvent(self.wire, encode(members), bulk=self.bulk, ends=self.ends)


Name = Annotated[str, pydantic.StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$")]
"""What is part of a path somewhere: a log that was imported may say anything."""


def read(wire: str, data: Mapping[str, Any]) -> Payload | None:
    """The payload of a stored event; None for a type that this release does not know."""
    model = registry.get(wire)
    return None if model is None else model.model_validate(data)


# Configs and documents


class ConfigRegistered(Payload, wire="config.registered"):
    """A version of a config package was taken in; ``digest`` is of its content."""

    workspace_id: Name
    name: str
    version: int
    digest: Name
    requested_by: str


class DocumentStored(Payload, wire="document.stored"):
    """An input file is kept; its bytes lie under ``sha256``."""

    document_id: Name
    name: str
    size: int
    sha256: Name
    media_type: str
    requested_by: str | None = None


# Runs


class Input(pydantic.BaseModel):
    """A document as a run was given it."""

    document_id: Name
    name: str
    size: int
    sha256: Name


class RunCreated(Payload, wire="run.created"):
    """A run was asked for, and is bound to one build for good."""

    workspace_id: Name
    config_id: Name
    config_version: int
    config_digest: Name
    build_id: Name | None
    status: Literal["queued"] = "queued"
    options: dict[str, Any]
    inputs: list[Input]
    requested_by: str
    max_attempts: int | None = None
    traceparent: str | None = None


class RunWaiting(Payload, wire="run.waiting"):
    """What the queued run waits for now. `worker` is said only where it was something else before."""

    for_: Literal["build", "safe_mode", "disk", "worker"] = Field(alias="for")
    build_id: Name | None = None


class RunStarted(Payload, wire="run.started"):
    """A worker has begun an attempt."""

    attempt: int
    worker_id: str
    build_id: Name | None
    command: list[str]


class LogLine(Payload):
    """A line of output. A long line comes in ``part`` 1, 2, …; ``truncated`` bytes of it were not kept.

    ``overwritten`` states of it, as of a progress bar, were drawn over by this one.
    """

    stream: OutputName
    message: str
    part: int | None = None
    truncated: int | None = None
    overwritten: int | None = None
    emitted_at: str | None = None


class RunLog(LogLine, wire="run.log", bulk=True):
    """A line of a run's output."""


class CancelRequested(Payload):
    """Somebody wants it to stop."""

    requested_by: str
    reason: str | None = None


class RunCancelRequested(CancelRequested, wire="run.cancel_requested"):
    """Somebody wants the run to stop."""


class Signaled(Payload):
    """A signal was sent to the processes; ``survivors`` are still alive."""

    signal: str
    survivors: int


class RunSignaled(Signaled, wire="run.signaled"):
    """A signal was sent to the engine's processes."""


class Lost(Payload):
    """The worker is gone. ``next``: ``retry`` puts the work back in the queue, ``fail`` ends it.

    ``delay_ms``: it is not begun again before. ``handed_back``: by a worker that was asked to stop; does not count as
    one of the attempts that it may have.
    """

    worker_id: str
    attempt: int
    reason: str
    next: Literal["retry", "fail"]
    delay_ms: int | None = None
    handed_back: bool | None = None


class RunLost(Lost, wire="run.lost"):
    """The run's worker is gone."""


class LogGap(Payload):
    """What could not be kept of the output, and why."""

    lines: int
    bytes: int
    reason: str


class RunLogGap(LogGap, wire="run.log_gap"):
    """What could not be kept of a run's output."""


class RunArtifact(Payload, wire="run.artifact"):
    """A file that the engine left in its output folder."""

    artifact_id: Name
    name: str
    size: int
    sha256: Name
    media_type: str


class RunCompleted(Payload, wire="run.completed", ends=True):
    """How the run ended."""

    status: RunEnd
    exit_code: int | None
    error_message: str | None
    stop_reason: StopReason
    summary: str | None
    result: Any
    duration_ms: int | None
    lines: int
    bytes: int


# Builds


class BuildCreated(Payload, wire="build.created"):
    """A venv is to be made for one version of a config."""

    workspace_id: Name
    config_id: Name
    config_version: int
    status: Literal["queued"] = "queued"
    reason: Literal["missing", "changed", "forced"]
    fingerprint: str
    engine: str | None
    requested_by: str
    max_attempts: int | None = None
    traceparent: str | None = None


class BuildStarted(Payload, wire="build.started"):
    """A worker has begun an attempt."""

    attempt: int
    worker_id: str
    python: str


class BuildStep(Payload, wire="build.step"):
    """A step of the build has begun or ended."""

    step: Step
    status: Literal["started", "completed", "failed"]
    message: str | None = None
    duration_ms: int | None = None


class BuildLog(LogLine, wire="build.log", bulk=True):
    """A line of a build's output."""

    step: Step | None = None


class BuildCancelRequested(CancelRequested, wire="build.cancel_requested"):
    """Somebody wants the build to stop."""


class BuildSignaled(Signaled, wire="build.signaled"):
    """A signal was sent to the installer's processes."""


class BuildLost(Lost, wire="build.lost"):
    """The build's worker is gone."""


class BuildLogGap(LogGap, wire="build.log_gap"):
    """What could not be kept of a build's output."""


class Package(pydantic.BaseModel):
    """A distribution in a venv."""

    name: str
    version: str
    hash: str | None = None


class BuildCompleted(Payload, wire="build.completed", ends=True):
    """How the build ended."""

    status: BuildEnd
    exit_code: int | None
    error_message: str | None
    stop_reason: StopReason
    summary: str | None
    duration_ms: int | None
    packages: list[Package]
    python: str | None


# The system


class SafeModeChanged(Payload, wire="safe_mode.changed"):
    """From here on new work is refused, or taken again."""

    enabled: bool
    requested_by: str
    reason: str | None = None


class KeyCreated(Payload, wire="key.created"):
    """A key of the API was made. ``workspaces`` is ``["*"]`` for one that is good everywhere."""

    key_id: Name
    name: str
    role: RoleName
    workspaces: list[str]
    expires_at: str | None = None
    requested_by: str


class KeyRevoked(Payload, wire="key.revoked"):
    """A key of the API is good for nothing any more, nor is what was opened or signed with it."""

    key_id: Name
    requested_by: str
    reason: str | None = None


class EventRedacted(Payload, wire="event.redacted"):
    """The payloads of these events of ``stream`` were erased; each was replaced by its hash."""

    stream: str
    event_ids: list[int]
    requested_by: str
    reason: str


ACTED = tuple(sorted(wire for wire, payload in registry.items() if "requested_by" in payload.model_fields))
"""What somebody did, and who: an audit is these."""

TERMINAL = frozenset(wire for wire, payload in registry.items() if payload.ends)
"""What ends a stream. Exactly these: an engine may well call an event of its own ``engine.run.completed``."""
