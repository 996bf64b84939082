"""Decisions: from a state and a command to events, or a refusal. Pure: nothing here waits, reads or writes.

The shell around them (:mod:`service.handler`, :mod:`service.worker`) loads, decides, appends, and tries again when
somebody was faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from eventstore import NEW, NewEvent, Part
from projections import events
from projections.build import Build
from projections.config import Config
from projections.lifecycle import Phase
from projections.run import Run
from service.errors import AlreadyEnded, BuildInProgress
from service.work.manifest import MAX_ATTEMPTS

BACKOFF_S = 1.0
BACKOFF_MAX_S = 60.0
"""The pause before lost work is begun again; chance takes up to half of it, every loss doubles it, up to the most."""

SAFE_MODE = "Safe mode is on: no new work is taken."

Argument = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Identity = Annotated[str, StringConstraints(max_length=64, pattern=r"^[^\x00]*$")]
MetadataName = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class RunOptions(BaseModel):
    """How a run is to be done."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    document_ids: list[Identity] = Field(
        [], max_length=1000, description="Input documents, in the order of `{inputs}`."
    )
    engine_args: list[Argument] = Field([], max_length=1000, description="Appended to the config's command.")
    dry_run: bool = Field(
        False, description="All but the engine: inputs, venv and secrets are made ready, and the run has succeeded."
    )
    validate_only: bool = Field(
        False,
        description="The config's `validate` command in place of its `command`; without one, the run has succeeded.",
    )
    force_rebuild: bool = Field(False, description="A new build, even where one could be reused.")
    timeout_s: int | None = Field(
        None,
        ge=1,
        le=7 * 24 * 3600,
        description="Seconds from `run.started`; else the config's, else `ADE_RUN_TIMEOUT_SECONDS`.",
    )
    max_attempts: int | None = Field(
        None,
        ge=1,
        le=MAX_ATTEMPTS,
        description="How often it may be begun, where its worker is lost; else the config's, else"
        " `ADE_RUN_MAX_ATTEMPTS`. More than 1 says that the engine may be repeated.",
    )
    metadata: dict[MetadataName, MetadataValue] = Field(
        {},
        max_length=32,
        description="Up to 32 texts of yours, names of 64 and values of 512 characters; lists find them with `q`.",
    )
    cancel_on_disconnect: bool = Field(
        False, description="Cancels the run 5 s after the client that created and streams it hangs up."
    )


class BuildOptions(BaseModel):
    """How a build is to be ensured."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    force: bool = Field(False, description="A new build, even where one could be reused.")
    wait: bool = Field(False, description="Answers with the build in progress instead of refusing.")


@dataclass(frozen=True, slots=True)
class KnownBuild:
    """A build of the config at hand, as the decision sees it."""

    id: str
    status: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class BuildWanted:
    """What a build of this config would be, if one is to be made."""

    id: str
    fingerprint: str
    engine: str | None
    requested_by: str
    max_attempts: int | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """The build that answers a request: ``parts`` create it, or are empty for one that exists."""

    build_id: str
    active: bool
    how: Literal["created", "reused", "joined"]
    parts: tuple[Part, ...] = ()


def bind(
    config: Config, config_control_id: int, known: Sequence[KnownBuild], wanted: BuildWanted, *, force: bool
) -> Binding:
    """The build to use: a reusable one, the one in progress, or a new one. ``known``: newest first.

    A new one *claims* the config, so that of two decisions over the same builds only one lands.
    """
    same = [build for build in known if build.fingerprint == wanted.fingerprint]
    active = next((build for build in same if build.status == "active"), None)
    if active is not None and not force:
        return Binding(active.id, active=True, how="reused")
    in_progress = next((build for build in same if build.status in {"queued", "building"}), None)
    if in_progress is not None:
        return Binding(in_progress.id, active=False, how="joined")
    changed = bool(known) and known[0].fingerprint != wanted.fingerprint
    created = _build_created(config, wanted, "forced" if force else "changed" if changed else "missing")
    parts = (
        Part(config.id, (), expect=config_control_id),
        Part(wanted.id, (created.event(),), workspace=config.workspace_id, expect=NEW),
    )
    return Binding(wanted.id, active=False, how="created", parts=parts)


def refuse_busy_build(binding: Binding, status: str, options: BuildOptions) -> None:
    """A build in progress is no answer, unless the caller waits for it; a forced one joins only what is queued."""
    if binding.how != "joined" or (options.wait and not options.force) or (options.force and status == "queued"):
        return
    raise BuildInProgress(
        "Follow it at /api/v1/builds/" + binding.build_id + ", or ask with `wait: true` to be given it.",
        build_id=binding.build_id,
    )


@dataclass(frozen=True, slots=True)
class CreateRun:
    """A run is asked for."""

    id: str
    config: Config
    options: RunOptions
    inputs: Sequence[events.Input]
    requested_by: str
    max_attempts: int | None = None
    traceparent: str | None = None


def create_run(asked: CreateRun, binding: Binding) -> tuple[Part, ...]:
    """The run, bound to its build, with the build where that is new."""
    made = [_run_created(asked, binding.build_id).event()]
    if not binding.active:
        made.append(events.RunWaiting(for_="build", build_id=binding.build_id).event())
    run = Part(asked.id, tuple(made), workspace=asked.config.workspace_id, expect=NEW)
    return (run, *binding.parts)


def refuse_run_in_safe_mode(asked: CreateRun) -> tuple[Part, ...]:
    """The run, and at once its end: what was asked and refused is on record."""
    made = (
        _run_created(asked, None).event(),
        events.RunLog(stream="system", message=SAFE_MODE).event(),
        run_completed("failed", "safe_mode", error_message=SAFE_MODE).event(),
    )
    return (Part(asked.id, made, workspace=asked.config.workspace_id, expect=NEW),)


def refuse_build_in_safe_mode(config: Config, wanted: BuildWanted) -> tuple[Part, ...]:
    """The build, and at once its end."""
    made = (
        _build_created(config, wanted, "missing").event(),
        events.BuildLog(stream="system", message=SAFE_MODE).event(),
        build_completed("failed", "safe_mode", error_message=SAFE_MODE).event(),
    )
    return (Part(wanted.id, made, workspace=config.workspace_id, expect=NEW),)


def _run_created(asked: CreateRun, build_id: str | None) -> events.RunCreated:
    return events.RunCreated(
        workspace_id=asked.config.workspace_id,
        config_id=asked.config.id,
        config_version=asked.config.version,
        config_digest=asked.config.digest,
        build_id=build_id,
        options=asked.options.model_dump(mode="json", exclude_defaults=True),
        inputs=list(asked.inputs),
        requested_by=asked.requested_by,
        max_attempts=asked.max_attempts,
        traceparent=asked.traceparent,
    )


def _build_created(
    config: Config, wanted: BuildWanted, reason: Literal["missing", "changed", "forced"]
) -> events.BuildCreated:
    return events.BuildCreated(
        workspace_id=config.workspace_id,
        config_id=config.id,
        config_version=config.version,
        reason=reason,
        fingerprint=wanted.fingerprint,
        engine=wanted.engine,
        requested_by=wanted.requested_by,
        max_attempts=wanted.max_attempts,
        traceparent=wanted.traceparent,
    )


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody wants it to stop."""

    requested_by: str
    reason: str | None = None


def cancel_run(run: Run, asked: Cancel) -> Sequence[NewEvent]:
    """Queued: it ends here. Working: its worker is told. Asked twice: nothing more."""
    request = events.RunCancelRequested(requested_by=asked.requested_by, reason=asked.reason).event()
    match run.phase:
        case Phase.QUEUED:
            ask = [] if run.cancel_requested_at else [request]
            return [*ask, run_completed("canceled", "canceled", summary="Canceled before it started").event()]
        case Phase.WORKING:
            return [] if run.cancel_requested_at else [request]
        case _:
            raise AlreadyEnded(f"The run has ended already: {run.status}.", run_id=run.id, run_status=run.status)


def cancel_build(build: Build, asked: Cancel) -> Sequence[NewEvent]:
    """As for runs."""
    request = events.BuildCancelRequested(requested_by=asked.requested_by, reason=asked.reason).event()
    match build.phase:
        case Phase.QUEUED:
            ask = [] if build.cancel_requested_at else [request]
            return [*ask, build_completed("canceled", "canceled", summary="Canceled before it started").event()]
        case Phase.WORKING:
            return [] if build.cancel_requested_at else [request]
        case _:
            raise AlreadyEnded(
                f"The build has ended already: {build.status}.", build_id=build.id, build_status=build.status
            )


@dataclass(frozen=True, slots=True)
class Loss:
    """Why work is in nobody's hands any more.

    ``spread``: the jitter of the pause before it is begun again, 0.5 to 1. ``handed_back``: by a worker that stops;
    that costs no attempt. ``begun`` is False where that worker knows that nothing was executed yet.
    """

    reason: str
    spread: float = 1.0
    handed_back: bool = False
    begun: bool = True


def lose_run(run: Run, loss: Loss) -> Sequence[NewEvent]:
    """The run's worker is gone: it is queued again, or ends."""
    lost = events.RunLost(worker_id=run.worker_id or "", attempt=run.attempt, **_lost(run, loss)).event()
    if _tried_again(run, loss):
        return [lost]
    if run.cancel_requested_at is not None:
        return [lost, run_completed("canceled", "canceled", summary="Canceled; its worker was gone").event()]
    return [lost, run_completed("failed", "worker_lost", error_message=_why(run, loss)).event()]


def lose_build(build: Build, loss: Loss) -> Sequence[NewEvent]:
    """As for runs."""
    lost = events.BuildLost(worker_id=build.worker_id or "", attempt=build.attempt, **_lost(build, loss)).event()
    if _tried_again(build, loss):
        return [lost]
    if build.cancel_requested_at is not None:
        return [lost, build_completed("canceled", "canceled", summary="Canceled; its worker was gone").event()]
    return [lost, build_completed("failed", "worker_lost", error_message=_why(build, loss)).event()]


def _tried_again(work: Run | Build, loss: Loss) -> bool:
    """What may be begun once only is not begun a second time, whoever stops it: its engine may not be repeatable."""
    if work.cancel_requested_at is not None:
        return False
    if loss.handed_back:
        return work.max_attempts > 1 or not loss.begun
    return work.lost_attempts + 1 < work.max_attempts


def _lost(work: Run | Build, loss: Loss) -> dict[str, Any]:
    again = _tried_again(work, loss)
    pause_s = min(BACKOFF_S * 2**work.lost_attempts, BACKOFF_MAX_S) * loss.spread
    return {
        "reason": loss.reason,
        "next": "retry" if again else "fail",
        "delay_ms": int(pause_s * 1000) if again and not loss.handed_back else None,
        "handed_back": loss.handed_back or None,
    }


def _why(work: Run | Build, loss: Loss) -> str:
    attempts = "the only attempt" if work.max_attempts == 1 else f"attempt {work.attempt}"
    return f"The worker was lost in {attempts}: {loss.reason}"


def wait_for_disk(run: Run) -> Sequence[NewEvent]:
    """A worker would begin the run, and has no room on its disk."""
    if run.phase is not Phase.QUEUED or run.waiting_for != "worker":
        return []
    return [events.RunWaiting(for_="disk").event()]


def wait_for_safe_mode(run: Run, *, on: bool) -> Sequence[NewEvent]:
    """A worker would begin the run, but for safe mode; or safe mode keeps it back no longer."""
    if run.phase is not Phase.QUEUED or run.waiting_for != ("worker" if on else "safe_mode"):
        return []
    return [events.RunWaiting(for_="safe_mode" if on else "worker").event()]


def run_completed(
    status: events.RunEnd,
    stop_reason: events.StopReason,
    *,
    exit_code: int | None = None,
    error_message: str | None = None,
    summary: str | None = None,
    result: Any = None,
    duration_ms: int | None = None,
    lines: int = 0,
    size: int = 0,
) -> events.RunCompleted:
    """The terminal event of a run; ``lines`` and ``size`` (bytes) count what its engine wrote."""
    return events.RunCompleted(
        status=status,
        exit_code=exit_code,
        error_message=error_message,
        stop_reason=stop_reason,
        summary=summary,
        result=result,
        duration_ms=duration_ms,
        lines=lines,
        bytes=size,
    )


def build_completed(
    status: events.BuildEnd,
    stop_reason: events.StopReason,
    *,
    exit_code: int | None = None,
    error_message: str | None = None,
    summary: str | None = None,
    duration_ms: int | None = None,
    packages: Sequence[events.Package] = (),
    python: str | None = None,
) -> events.BuildCompleted:
    """The terminal event of a build."""
    return events.BuildCompleted(
        status=status,
        exit_code=exit_code,
        error_message=error_message,
        stop_reason=stop_reason,
        summary=summary,
        duration_ms=duration_ms,
        packages=list(packages),
        python=python,
    )
