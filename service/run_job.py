"""A run in a worker's hands."""

from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from eventstore import NewEvent
from eventstore.clock import ulid
from projections import events
from projections.build import Build
from projections.lifecycle import Phase
from projections.run import Run
from service import commands
from service.commands import RunOptions, run_completed
from service.jobs import LEASE_RAN_OUT, Job
from service.settings import SECRET_LEAST_BYTES
from service.work import builder, runner
from service.work.builder import BuildFailed
from service.work.manifest import Manifest, expand
from service.work.process import Command, Limits, Signaled
from service.writer import Decision, patiently

OUT_OF_RESOURCES = {"SIGXCPU": "CPU time", "SIGXFSZ": "file size"}
NO_VENV = 2
"""The exit code of a run whose venv is gone and cannot be made again."""


class RunJob(Job):
    """Runs an engine."""

    _execution: runner.Execution | None = None

    async def run(self) -> None:
        scratch = runner.Scratch(self._shop.files.scratch(self._stream))
        try:
            if (await self._load()).phase is Phase.WORKING:
                await self.give_up(LEASE_RAN_OUT)
            run = await self._load()
            completed = await self._attempt(run, scratch) if run.phase is Phase.QUEUED else None
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(scratch.remove)  # also what a worker that is gone has left
        if completed is not None:
            ending = completed.event()
            await self._decide(lambda r: [ending] if r.phase is not Phase.ENDED else [])

    async def give_up(self, reason: str) -> None:
        await self._decide(lambda r: commands.lose_run(r, reason) if r.phase is Phase.WORKING else [])

    def cancel(self) -> None:
        super().cancel()
        if self._execution is not None:
            self._execution.cancel()

    async def _attempt(self, run: Run, scratch: runner.Scratch) -> events.RunCompleted | None:
        """One attempt at the run: how it ended; None where it was ended before it could begin."""
        build_id = run.build_id
        if build_id is None:
            return run_completed("failed", "failed", error_message="The run was bound to no build.")
        build = await patiently(lambda: self._shop.handler.build(build_id))
        if build.status != "active":
            why = f"The build {build.id} {build.status}: {build.error_message or build.summary}"
            return run_completed("failed", "build_failed", error_message=why)
        options = RunOptions.model_validate(run.options)
        folder = self._shop.files.build(run.workspace_id, run.config_id, build.id)
        try:
            manifest = await anyio.to_thread.run_sync(Manifest.read, self._shop.files.config(run.config_digest))
            argv = await self._command(run, manifest, options, scratch, folder)
        except OSError as error:
            return run_completed("failed", "failed", error_message=f"A file of this run is not here: {error}")
        await self._start(run, argv)
        if (await self._load()).phase is not Phase.WORKING:  # canceled in between
            return None
        refusal = await self._hydrate(build, folder) or self._refuse_secrets(manifest)
        if refusal is not None:
            return refusal
        if self._canceled.is_set():
            return run_completed("canceled", "canceled", summary="Canceled before the engine started")
        if not argv:
            summary = "Dry run" if options.dry_run else "Package verified"
            return run_completed("succeeded", "completed", exit_code=0, summary=summary)
        return await self._execute(run, manifest, options, argv, scratch, folder)

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

    async def _start(self, run: Run, argv: tuple[str, ...]) -> None:
        started = events.RunStarted(
            attempt=run.attempt + 1, worker_id=self._shop.worker_id, build_id=run.build_id, command=list(argv)
        ).event()
        await self._decide(lambda r: [started] if r.phase is Phase.QUEUED else [])

    async def _hydrate(self, build: Build, folder: Path) -> events.RunCompleted | None:
        """Makes a missing venv again, as part of this run; how the run ends where that cannot be."""
        if builder.usable(folder):
            return None
        await self._write.say(f"The venv of {build.id} is not on this machine; making it again from its lock.")
        try:
            plan = await self._shop.build_plan(build)
            await builder.hydrate(plan, self._tell_build, timeout_s=self._shop.settings.build_timeout_seconds)
        except (BuildFailed, OSError) as failed:
            why = f"There is no usable venv: {failed} Start the run again with `force_rebuild`."
            return run_completed("failed", "build_failed", exit_code=NO_VENV, error_message=why)
        return None

    async def _tell_build(self, fact: builder.Fact) -> None:
        if isinstance(fact, builder.Output):
            await self._write.lines([fact.line])

    def _refuse_secrets(self, manifest: Manifest) -> events.RunCompleted | None:
        """How the run ends where a secret that the config names is missing, or too short to be hidden."""
        for name in manifest.secrets:
            value = self._shop.settings.secrets.get(name)
            if value is None or len(value.encode()) < SECRET_LEAST_BYTES:
                what = "is not set" if value is None else f"has less than {SECRET_LEAST_BYTES} bytes"
                return run_completed("failed", "failed", error_message=f"The secret ADE_SECRET_{name} {what}.")
        self._write.mask(self._shop.settings.secrets[name] for name in manifest.secrets)
        return None

    async def _execute(
        self,
        run: Run,
        manifest: Manifest,
        options: RunOptions,
        argv: tuple[str, ...],
        scratch: runner.Scratch,
        folder: Path,
    ) -> events.RunCompleted:
        settings = self._shop.settings
        env = runner.environment(
            venv=builder.venv_python(folder).parent.parent,
            scratch=scratch,
            run_id=run.id,
            secrets={name: settings.secrets[name] for name in manifest.secrets},
        )
        limits = Limits(settings.worker_cpu_seconds, _bytes(settings.worker_mem_mb), _bytes(settings.worker_fsize_mb))
        task = runner.Task(
            command=Command(argv, scratch.folder, env, limits, self._shop.engines.account),
            timeout_s=options.timeout_s or manifest.timeout_s or settings.run_timeout_seconds,
            grace_s=settings.cancel_grace_seconds,
            line_max_bytes=settings.line_max_bytes,
            log_max_bytes=settings.log_max_bytes,
        )
        self._execution = runner.Execution(task, self._tell)
        if self._canceled.is_set():
            self._execution.cancel()
        ended = await self._execution.run()
        await self._keep_artifacts(run, scratch)
        result = await anyio.to_thread.run_sync(runner.result_of, scratch.output, ended)
        completed = how_it_ended(ended, result, task.timeout_s)
        told = {name: self._write.hide(getattr(completed, name)) for name in ("error_message", "summary", "result")}
        return completed.model_copy(update=told)

    async def _tell(self, fact: runner.Fact) -> None:
        match fact:
            case Signaled(signal, survivors):
                told = events.RunSignaled(signal=signal, survivors=survivors).event()
            case runner.Gap(lines, size, reason):
                told = events.RunLogGap(lines=lines, bytes=size, reason=reason).event()
            case lines:
                await self._write.lines(lines)
                return
        await self._decide(lambda r: [told] if r.phase is Phase.WORKING else [])

    async def _keep_artifacts(self, run: Run, scratch: runner.Scratch) -> None:
        """Keeps what the engine left, and says so."""

        def place() -> tuple[str, Path]:
            artifact_id = f"art_{ulid()}"
            return artifact_id, self._shop.files.artifact(run.workspace_id, run.id, artifact_id)

        found = await anyio.to_thread.run_sync(runner.collect, scratch.output, place)
        told: list[NewEvent] = [
            events.RunArtifact(
                artifact_id=artifact_id,
                name=self._write.hide(left.name),
                size=left.size,
                sha256=left.sha256,
                media_type=left.media_type,
            ).event()
            for artifact_id, left in found
        ]
        if told:
            await self._decide(lambda r: told if r.phase is Phase.WORKING else [])

    async def _load(self) -> Run:
        return await patiently(lambda: self._shop.handler.run(self._stream))

    async def _decide(self, decision: Decision[Run]) -> None:
        await self._write.decide(self._shop.handler.run, decision)


def how_it_ended(ended: runner.Ended, result: Any, timeout_s: float) -> events.RunCompleted:
    """The terminal event for what became of the engine."""
    exit_, code = ended.exit, ended.exit.code
    status: events.RunEnd = "failed"
    stop_reason: events.StopReason = "failed"
    error, summary = None, None
    if ended.why == "canceled":
        status, stop_reason, summary = "canceled", "canceled", "Canceled"
    elif ended.why == "timeout":
        stop_reason, error = "timeout", f"It ran longer than {timeout_s:g} s and was stopped."
    elif exit_.error is not None:
        error = exit_.error
    elif exit_.signal in OUT_OF_RESOURCES:
        stop_reason, error = "resource_limit", f"The engine used up its {OUT_OF_RESOURCES[exit_.signal]}."
    elif exit_.signal is not None:
        error = f"The engine was ended by {exit_.signal}."
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


def _own_summary(ended: runner.Ended) -> str | None:
    message = ended.closing.members.get("message") if ended.closing else None
    return message if isinstance(message, str) else None


def _bytes(megabytes: int | None) -> int | None:
    return None if megabytes is None else megabytes * 2**20
