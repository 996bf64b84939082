"""What the jobs of a worker have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import anyio
import anyio.to_thread

from eventstore.clock import jitter
from projections.build import Build
from service.commands import Loss
from service.engine_account import EngineAccount
from service.files import Files
from service.handler import Handler
from service.settings import Settings
from service.work import leftovers
from service.work.builder import BuildPlan
from service.work.installer import BuildLimits
from service.work.leftovers import Killed
from service.work.manifest import Manifest
from service.work.masking import Mask, credentials, patterns_of
from service.writer import Writer, patiently

LEASE_RAN_OUT = "its lease ran out"


@dataclass(frozen=True, slots=True)
class Shop:
    """What every job of a worker works with."""

    worker_id: str
    handler: Handler
    files: Files
    settings: Settings
    engines: EngineAccount

    async def build_plan(self, build: Build) -> BuildPlan:
        """What a build makes, from its config's package at the version that it was asked for."""
        row = await patiently(
            lambda: self.handler.database.row("config_version", config=build.config_id, version=build.config_version)
        )
        if row is None:
            raise LookupError(f"version {build.config_version} of {build.config_id} is not on record")
        package = self.files.config(row["digest"])
        return BuildPlan(
            build_id=build.id,
            folder=self.files.build(build.workspace_id, build.config_id, build.id),
            package=package,
            manifest=await anyio.to_thread.run_sync(Manifest.read, package),
            engine=build.engine,
            python=self.settings.python,
            installer_env=self.settings.installer_env,
            cache_dir=self.files.cache(),
            account=self.engines.account,
        )

    def build_limits(self, timeout_s: float) -> BuildLimits:
        """How far a build, or a hydration, may go."""
        settings = self.settings
        return BuildLimits(
            timeout_s=timeout_s,
            step_timeout_s=settings.build_step_timeout_seconds,
            grace_s=settings.cancel_grace_seconds,
            line_max_bytes=settings.line_max_bytes,
            log_max_bytes=settings.log_max_bytes,
            mask=Mask(credentials(settings.installer_env), patterns_of(settings.mask_patterns)),
        )


class Job(ABC):
    """One run or build in a worker's hands, written through a lease."""

    def __init__(self, stream: str, write: Writer, shop: Shop) -> None:
        self._stream = stream
        self._write = write
        self._shop = shop
        self._canceled = anyio.Event()
        self._begun = False  # something was executed that may not be repeatable

    @abstractmethod
    async def run(self) -> None:
        """Does it, where it is queued. Afterwards the stream has its terminal event, or is queued again."""

    async def recover(self) -> None:
        """Says that the worker that had this is gone, once nothing of that attempt lives on this machine."""
        killed = await anyio.to_thread.run_sync(leftovers.kill, leftovers.mark_of_stream(self._stream))
        await self.lose(LEASE_RAN_OUT, killed)

    async def lose(self, reason: str, killed: Killed | None = None) -> None:
        """Says that the attempt is over without an end; nothing where it is not at work. ``killed``: what it left."""
        await self._lose(Loss(reason, spread=jitter(0.5, 1.0)), killed)

    async def hand_back(self, reason: str) -> None:
        """Says that this worker does it no more, because it stops; nothing where it has ended."""
        await self._lose(Loss(reason, handed_back=True, begun=self._begun), None)

    @abstractmethod
    async def _lose(self, loss: Loss, killed: Killed | None) -> None: ...

    def cancel(self) -> None:
        """Somebody asked for it to stop. Harmless when repeated, or too late."""
        self._canceled.set()
