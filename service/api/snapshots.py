"""Runs, builds, configs, documents and artifacts, as they are answered."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import Field

from projections.events import Input, Package, Step, StopReason
from service.api.shape import MaybeMoment, MaybeSeconds, Moment, Seconds, Shape

RunStatus = Literal["queued", "running", "succeeded", "failed", "canceled"]
WaitingFor = Literal["build", "worker", "safe_mode", "disk"]
BuildStatus = Literal["queued", "building", "active", "failed", "canceled"]
Item = TypeVar("Item")


class List(Shape, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item] = Field(description="The things themselves.")
    next_page: str | None = Field(None, description="What to send back as `page`; `null` on the last page.")
    total: int | None = Field(None, description="How many there are on all pages, where `count` asked for it.")


class Work(Shape):
    """What runs and builds have in common: who asked for what, its life, and who has it in hand."""

    id: str
    object: str
    workspace_id: str
    config_id: str
    config_version: int = Field(description="The version of the config that it is bound to.")
    created: Seconds = Field(description="When it was asked for, in Unix seconds.")
    started: MaybeSeconds = Field(description="When its last attempt began.")
    finished: MaybeSeconds = Field(description="When it ended.")
    created_at: Moment = Field(description="`created` in RFC 3339, to the microsecond.")
    started_at: MaybeMoment = Field(description="`started` in RFC 3339.")
    finished_at: MaybeMoment = Field(description="`finished` in RFC 3339.")
    exit_code: int | None = Field(
        description="`null` where a signal ended the process, or none was started; 2 where the venv is gone and"
        " cannot be made again."
    )
    summary: str | None = Field(description="One sentence for people, where it went well.")
    error_message: str | None = Field(description="One sentence for people, where it did not.")
    stop_reason: StopReason | None = Field(description="Why it ended.")
    attempt: int = Field(description="How often it was begun.")
    # Leases are no part of the history: as of an event nobody has one.
    processing_by: str | None = Field(None, description="The worker that has it now; `null` with `as_of`.")
    lease_expires_at: MaybeMoment = Field(None, description="When that worker counts as lost, unless it renews.")
    heartbeat_at: MaybeMoment = Field(None, description="When that worker was last heard of.")
    cancel_requested_at: MaybeMoment = Field(description="When somebody first asked it to stop.")
    requested_by: str = Field(description="`anonymous`, while there are no keys.")
    duration_ms: int | None = Field(description="How long the engine or the installer ran.")
    last_event_id: int = Field(
        description="This is what it was right after this event: follow from here, and you lose and repeat nothing."
    )


class RunSnapshot(Work):
    """A run: one execution of a config's engine."""

    object: Literal["ade.run"] = "ade.run"
    build_id: str | None = Field(description="The build that it is bound to, for good.")
    status: RunStatus
    waiting_for: WaitingFor | None = Field(
        description="While `queued`: what for. `disk`: the worker that would begin it has no room."
    )
    result: Any = Field(
        description="What the engine handed back: `result.json` of its output folder (at most 1 MiB), else the `data`"
        " of its last `engine.run.completed`."
    )
    options: dict[str, Any] = Field(description="The options that are not at their default.")
    inputs: list[Input] = Field(description="The documents that it was given.")
    lines: int | None = Field(description="How many lines the engine wrote.")
    bytes: int | None = Field(description="How many bytes the engine wrote.")


class BuildSnapshot(Work):
    """A build: the making of a venv for one version of a config."""

    object: Literal["ade.build"] = "ade.build"
    status: BuildStatus
    step: Step | None = Field(description="The last step that began.")
    reason: Literal["missing", "changed", "forced"] = Field(
        description="Why it was made: the config had no build, none of its builds could be used, or it was forced."
    )
    fingerprint: str = Field(description="Of the config's content, the engine and the Python version.")
    engine: str | None = Field(
        description="The requirement installed beside the config; `null` where the config is its own engine."
    )
    packages: list[Package] | None = Field(description="What is installed in the venv.")
    python: str | None = Field(description="The version of Python.")


class ConfigSnapshot(Shape):
    """A config at its newest version: a named package of settings and code for an engine."""

    id: str
    object: Literal["ade.config"] = "ade.config"
    workspace_id: str
    name: str
    version: int
    digest: str = Field(
        description="Of names, executable bits and contents: the same files have the same, however they were packed."
    )
    active_build_id: str | None = Field(description="The newest active build of this content.")
    created: Seconds = Field(description="When its first version was registered, in Unix seconds.")
    updated: Seconds = Field(description="When this version was registered, in Unix seconds.")
    created_at: Moment = Field(description="`created` in RFC 3339.")
    updated_at: Moment = Field(description="`updated` in RFC 3339.")


class RegisteredConfig(ConfigSnapshot):
    """A config, and what its registration did."""

    outcome: Literal["created", "updated", "unchanged"] = Field(
        description="A new name, a new version, or nothing: the same content was there already."
    )


class _File(Shape):
    id: str
    object: str
    name: str
    size: int = Field(description="In bytes.")
    sha256: str
    media_type: str
    created: Seconds = Field(description="When it was kept, in Unix seconds.")
    created_at: Moment = Field(description="`created` in RFC 3339.")


class DocumentSnapshot(_File):
    """A document: an input file."""

    object: Literal["ade.document"] = "ade.document"
    workspace_id: str


class ArtifactSnapshot(_File):
    """A regular file that an engine left in its output folder; ``name`` has its path there."""

    object: Literal["ade.artifact"] = "ade.artifact"
    run_id: str
