"""A run in a worker's hands."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread

from eventstore import NewEvent
from eventstore.clock import ulid
from projections import events
from projections.build import Build
from projections.lifecycle import Phase
from projections.run import Run
from projections.tracing import span_of_attempt
from service import commands
from service.commands import Loss, RunOptions, run_completed
from service.jobs import Job, Shop
from service.work import builder, leftovers, runner
from service.work.builder import BuildFailed
from service.work.execution import Ended, Execution, Fact, Gap, Task
from service.work.leftovers import Killed
from service.work.manifest import Manifest, expand
from service.work.masking import Mask, patterns_of, unmaskable
from service.work.process import Command, Limits, Signaled
from service.writer import Decision, Writer, patiently

OUT_OF_RESOURCES: Mapping[str | None, str] = {
    "SIGXCPU": "CPU time (ADE_WORKER_CPU_SECONDS)",
    "cpu": "CPU time (ADE_WORKER_CPU_SECONDS)",
    "memory": "memory (ADE_WORKER_MEM_MB)",
    "SIGXFSZ": "file size (ADE_WORKER_FSIZE_MB)",
    "processes": "number of processes (ADE_WORKER_PROCESSES)",
    "disk": "disk space (ADE_WORKER_DISK_MB)",
}
"""By the signal that the kernel sends, or by the limit that its supervisor tells of."""
CANCELED = run_completed("canceled", "canceled", summary="Canceled before the engine started")
NO_VENV = 2
"""The exit code of a run whose venv is gone and cannot be made again."""


class RunJob(Job):
    """Runs an engine."""

    def __init__(self, stream: str, write: Writer, shop: Shop) -> None:
        super().__init__(stream, write, shop)
        self._run: Run | None = None  # as far as this job knows it: what is decided rests on it, while it is the newest
        self._left: list[NewEvent] = []  # what is told together with the end: of a lost attempt nothing is listed

    async def run(self) -> None:
        scratch = self._scratch()
        try:
            self._run, build = await self._load()
            completed = await self._attempt(self._run, build, scratch) if self._run.phase is Phase.QUEUED else None
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(scratch.remove)
        if completed is not None:
            ending = [*self._left, completed.event()]
            await self._decide(lambda r: ending if r.phase is not Phase.ENDED else [], self._run)

    async def recover(self) -> None:
        await super().recover()
        await anyio.to_thread.run_sync(self._scratch().remove)

    async def _lose(self, loss: Loss, killed: Killed | None) -> None:
        told = [] if killed is None else [_signaled("SIGKILL", killed.survivors)]
        await self._decide(lambda r: [*told, *commands.lose_run(r, loss)] if r.phase is Phase.WORKING else [])

    async def _attempt(self, run: Run, build: Build | None, scratch: runner.Scratch) -> events.RunCompleted | None:
        """One attempt at the run: how it ended; None where it was ended before it could begin."""
        if build is None:
            return run_completed("failed", "failed", error_message="The run was bound to no build.")
        if build.status != "active":
            why = (
                f"The build {build.id} was canceled"
                if build.status == "canceled"
                else f"The build {build.id} failed: {build.error_message or build.summary}"
            )
            return run_completed("failed", "build_failed", error_message=why)
        options = RunOptions.model_validate(run.options)
        folder = self._shop.files.build(run.workspace_id, run.config_id, build.id)
        try:
            manifest = await anyio.to_thread.run_sync(Manifest.read, self._shop.files.config(run.config_digest))
            argv = await self._command(run, manifest, options, scratch, folder)
        except OSError as error:
            return run_completed("failed", "failed", error_message=f"A file of this run is not here: {error}")
        if not await self._start(run, argv):  # canceled in between
            return None
        timeout_s = options.timeout_s or manifest.timeout_s or self._shop.settings.run_timeout_seconds
        time = _Time(timeout_s)
        refusal = await self._hydrate(build, folder, time) or self._refuse_secrets(manifest)
        if refusal is not None:
            return refusal
        if self._canceled.is_set():
            return CANCELED
        if not argv:
            summary = "Dry run" if options.dry_run else "Package verified"
            return run_completed("succeeded", "completed", exit_code=0, summary=summary)
        return await self._execute(run, manifest, argv, scratch, folder, time)

    async def _command(
        self, run: Run, manifest: Manifest, options: RunOptions, scratch: runner.Scratch, folder: Path
    ) -> tuple[str, ...]:
        """The command line, its inputs in place; empty where there is nothing to execute."""
        files = self._shop.files
        sources = [(document["name"], files.document(document["sha256"])) for document in run.inputs]
        inputs = await anyio.to_thread.run_sync(scratch.make, sources, self._shop.engines.account)
        argv = manifest.validate if options.validate_only else manifest.command
        if options.dry_run or not argv:
            return ()
        expanded = expand(
            argv,
            python=builder.venv_python(folder),
            inputs=inputs,
            output_dir=scratch.output,
            config_dir=files.config(run.config_digest),
            run_id=run.id,
        )
        return (*expanded, *options.engine_args)

    async def _start(self, run: Run, argv: tuple[str, ...]) -> bool:
        """Whether the attempt is begun, with nothing of an earlier one alive or kept on this machine."""
        killed = None
        if run.attempt:
            killed = await anyio.to_thread.run_sync(leftovers.kill, leftovers.mark_of_stream(run.id))
            await anyio.to_thread.run_sync(self._forget_artifacts, run)
        started = events.RunStarted(
            attempt=run.attempt + 1, worker_id=self._shop.worker_id, build_id=run.build_id, command=list(argv)
        ).event()
        told = [] if killed is None else [_signaled("SIGKILL", killed.survivors)]
        landed = await self._decide(lambda r: [started, *told] if r.phase is Phase.QUEUED else [], run)
        if landed is None:  # perhaps it did, and the answer was lost
            self._run, _ = await self._load()
        else:
            self._run = replace(run, phase=Phase.WORKING, control_id=landed)
        return self._run.phase is Phase.WORKING

    async def _hydrate(self, build: Build, folder: Path, time: "_Time") -> events.RunCompleted | None:
        """Makes a missing venv again, as part of this run; how the run ends where that cannot be."""
        if builder.usable(folder):
            return None
        await self._write.say(f"The venv of {build.id} is not on this machine; making it again from its lock.")
        limits = self._shop.build_limits(min(time.left_s, self._shop.settings.build_timeout_seconds))
        try:
            plan = await self._shop.build_plan(build)
            await builder.hydrate(plan, self._tell_build, limits, self._canceled)
        except (BuildFailed, OSError) as failed:
            if self._canceled.is_set():
                return CANCELED
            if time.left_s <= 0:
                return run_completed("failed", "timeout", error_message=time.up)
            why = f"There is no usable venv: {str(failed).rstrip('.')}. Start the run again with `force_rebuild`."
            return run_completed("failed", "build_failed", exit_code=NO_VENV, error_message=why)
        return None

    async def _tell_build(self, fact: builder.Fact) -> None:
        match fact:
            case builder.Output(_, line):
                await self._write.lines([line])
            case Signaled() | Gap():
                await self._tell(fact)

    def _refuse_secrets(self, manifest: Manifest) -> events.RunCompleted | None:
        """How the run ends where a secret that the config names is missing, or cannot be hidden."""
        for name in manifest.secrets:
            value = self._shop.settings.secrets.get(name)
            why = "is not set" if value is None else unmaskable(value)
            if why is not None:
                return run_completed("failed", "failed", error_message=f"The secret ADE_SECRET_{name} {why}.")
        return None

    async def _execute(
        self,
        run: Run,
        manifest: Manifest,
        argv: tuple[str, ...],
        scratch: runner.Scratch,
        folder: Path,
        time: "_Time",
    ) -> events.RunCompleted:
        settings = self._shop.settings
        secrets = {name: settings.secrets[name] for name in manifest.secrets}
        mask = Mask(secrets.values(), patterns_of(settings.mask_patterns))
        env = runner.environment(
            venv=builder.venv_python(folder).parent.parent,
            scratch=scratch,
            run_id=run.id,
            traceparent=str(span_of_attempt(run.id, run.traceparent, run.attempt + 1)),
            secrets=secrets,
        )
        inputs_bytes = sum(document["size"] for document in run.inputs)
        limits = Limits(
            settings.worker_cpu_seconds,
            _bytes(settings.worker_mem_mb),
            _bytes(settings.worker_fsize_mb),
            settings.worker_processes,
            settings.worker_disk_mb * 2**20 + inputs_bytes,
        )
        task = Task(
            command=Command(argv, scratch.folder, env, limits, self._shop.engines.account),
            timeout_s=time.left_s,
            grace_s=settings.cancel_grace_seconds,
            line_max_bytes=settings.line_max_bytes,
            log_max_bytes=settings.log_max_bytes,
            mask=mask,
        )
        self._begun = True
        ended = await Execution(task, self._tell, self._canceled).run()
        left_out = await self._keep_artifacts(run, scratch, mask)
        result = await anyio.to_thread.run_sync(runner.result_of, scratch.output, ended)
        completed = how_it_ended(ended, result, time.up, left_out)
        told = {name: mask.value(getattr(completed, name)) for name in ("error_message", "summary", "result")}
        return completed.model_copy(update=told)

    async def _tell(self, fact: Fact) -> None:
        match fact:
            case Signaled(signal, survivors):
                told = _signaled(signal, survivors)
            case Gap(lines, size, reason):
                told = events.RunLogGap(lines=lines, bytes=size, reason=reason).event()
            case lines:
                await self._write.lines(lines)
                return
        await self._decide(lambda r: [told] if r.phase is Phase.WORKING else [])

    async def _keep_artifacts(self, run: Run, scratch: runner.Scratch, mask: Mask) -> str | None:
        """Keeps what the engine left, to be told at the end; what there was no room for, as a sentence."""

        def place() -> tuple[str, Path]:
            artifact_id = f"art_{ulid()}"
            return artifact_id, self._shop.files.artifact(run.workspace_id, run.id, artifact_id)

        most = self._shop.settings.worker_disk_mb * 2**20
        found = await anyio.to_thread.run_sync(runner.collect, scratch.output, place, most)
        self._left = [
            events.RunArtifact(
                artifact_id=artifact_id,
                name=mask.text(left.name),
                size=left.size,
                sha256=left.sha256,
                media_type=left.media_type,
            ).event()
            for artifact_id, left in found.kept
        ]
        why = None
        if found.left_out:
            files = "1 file" if found.left_out == 1 else f"{found.left_out} files"
            why = f"{files} of the output folder not kept: no more than {runner.ARTIFACTS_MAX}, and {most} bytes, are."
            self._left.append(events.RunLogGap(lines=0, bytes=found.left_out_bytes, reason=why).event())
        return why

    def _forget_artifacts(self, run: Run) -> None:
        """Those that a lost attempt had kept, and did not come to tell."""
        shutil.rmtree(self._shop.files.artifacts(run.workspace_id, run.id), ignore_errors=True)

    def _scratch(self) -> runner.Scratch:
        return runner.Scratch(self._shop.files.scratch(self._stream))

    async def _load(self) -> tuple[Run, Build | None]:
        return await patiently(lambda: self._shop.handler.run_and_build(self._stream))

    async def _decide(self, decision: Decision[Run], known: Run | None = None) -> int | None:
        return await self._write.decide(self._shop.handler.run, decision, known)


class _Time:
    """The time that an attempt may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self.up = f"It ran longer than {seconds:g} s and was stopped."
        """What is said when it is over."""
        self._until = monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self._until - monotonic()


def how_it_ended(ended: Ended, result: Any, time_is_up: str, left_out: str | None) -> events.RunCompleted:
    """The terminal event for what became of the engine, and of what it left."""
    exit_, code = ended.exit, ended.exit.code
    status: events.RunEnd = "failed"
    stop_reason: events.StopReason = "failed"
    error, summary = None, None
    if ended.why == "canceled":
        status, stop_reason, summary = "canceled", "canceled", "Canceled"
    elif ended.why == "timeout":
        stop_reason, error = "timeout", time_is_up
    elif exit_.error is not None:
        error = exit_.error
    elif (limit := exit_.exceeded or exit_.signal) in OUT_OF_RESOURCES:
        stop_reason, error = "resource_limit", f"The engine used up its {OUT_OF_RESOURCES[limit]}."
    elif exit_.signal is not None:
        error = f"The engine was ended by {exit_.signal}."
    elif code == 0 and left_out:
        stop_reason, error = "resource_limit", left_out
    elif code == 0:
        status, stop_reason, summary = "succeeded", "completed", _own_summary(ended) or "Exited with code 0"
    else:
        error = f"The engine exited with code {code}" + (f": {ended.last_words}" if ended.last_words else "")
    return run_completed(
        status,
        stop_reason,
        exit_code=code,
        error_message=error,
        summary=summary,
        result=result,
        duration_ms=ended.duration_ms,
        lines=ended.lines,
        size=ended.bytes,
    )


def _own_summary(ended: Ended) -> str | None:
    message = ended.closing.members.get("message") if ended.closing else None
    return message if isinstance(message, str) else None


def _signaled(signal: str, survivors: int) -> NewEvent:
    return events.RunSignaled(signal=signal, survivors=survivors).event()


def _bytes(megabytes: int | None) -> int | None:
    return None if megabytes is None else megabytes * 2**20
