"""A build in a worker's hands."""

import anyio

from projections import events
from projections.build import Build
from projections.lifecycle import Phase
from service import commands
from service.commands import Loss
from service.jobs import Job
from service.work import builder
from service.work.archive import BadPackage
from service.work.builder import BuildFailed, Built
from service.work.execution import Gap
from service.work.installer import CommandFailed, python_version
from service.work.leftovers import Killed
from service.work.process import Signaled
from service.writer import Decision, patiently


class BuildJob(Job):
    """Makes a venv."""

    async def run(self) -> None:
        build = await self._load()
        if build.phase is not Phase.QUEUED:
            return
        started = anyio.current_time()
        completed = await self._attempt(build)
        if completed is None:
            return
        took_ms = int((anyio.current_time() - started) * 1000)
        ending = completed.model_copy(update={"duration_ms": took_ms}).event()
        await self._decide(lambda b: [ending] if b.phase is not Phase.ENDED else [])

    async def _lose(self, loss: Loss, killed: Killed | None) -> None:
        told = [] if killed is None else [events.BuildSignaled(signal="SIGKILL", survivors=killed.survivors).event()]
        await self._decide(lambda b: [*told, *commands.lose_build(b, loss)] if b.phase is Phase.WORKING else [])

    async def _attempt(self, build: Build) -> events.BuildCompleted | None:
        """One attempt at the build: how it ended; None where it was ended before it could begin."""
        settings = self._shop.settings
        try:
            python = await python_version(settings.python)
            started = events.BuildStarted(
                attempt=build.attempt + 1, worker_id=self._shop.worker_id, python=python
            ).event()
            await self._decide(lambda b: [started] if b.phase is Phase.QUEUED else [])
            if (await self._load()).phase is not Phase.WORKING:  # canceled in between
                return None
            plan = await self._shop.build_plan(build)
            limits = self._shop.build_limits(settings.build_timeout_seconds)
            built = await builder.build(plan, self._tell, limits, self._canceled)
        except BuildFailed as failed:
            if failed.stop_reason == "canceled":
                return commands.build_completed("canceled", "canceled", summary="Canceled")
            return commands.build_completed(
                "failed", failed.stop_reason, exit_code=failed.exit_code, error_message=failed.message
            )
        except CommandFailed as failed:
            return commands.build_completed("failed", "failed", error_message=f"ADE_PYTHON_BIN: {failed.reason}")
        except (BadPackage, OSError) as error:
            return commands.build_completed("failed", "failed", error_message=f"The package cannot be read: {error}")
        return _active(built)

    async def _tell(self, fact: builder.Fact) -> None:
        told: events.Payload
        match fact:
            case Signaled(signal, survivors):
                told = events.BuildSignaled(signal=signal, survivors=survivors)
            case Gap(lines, size, reason):
                told = events.BuildLogGap(lines=lines, bytes=size, reason=reason)
            case builder.StepStarted(step):
                told = events.BuildStep(step=step, status="started")
            case builder.StepCompleted(step, duration_ms, message):
                told = events.BuildStep(step=step, status="completed", message=message, duration_ms=duration_ms)
            case builder.StepFailed(step, message):
                told = events.BuildStep(step=step, status="failed", message=message)
            case builder.Output(step, line):
                await self._write.lines([line], step=step)
                return
        await self._decide(lambda b: [told.event()] if b.phase is Phase.WORKING else [])

    async def _load(self) -> Build:
        return await patiently(lambda: self._shop.handler.build(self._stream))

    async def _decide(self, decision: Decision[Build]) -> None:
        await self._write.decide(self._shop.handler.build, decision)


def _active(built: Built) -> events.BuildCompleted:
    packages = [events.Package(name=p.name, version=p.version, hash=p.hash) for p in built.packages]
    return commands.build_completed(
        "active",
        "completed",
        exit_code=0,
        summary=f"{len(packages)} {'package' if len(packages) == 1 else 'packages'}, Python {built.python}",
        packages=packages,
        python=built.python,
    )
