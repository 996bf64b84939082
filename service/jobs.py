"""What the jobs of a worker have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import anyio
import anyio.to_thread

from projections.build import Build
from service.engine_account import EngineAccount
from service.files import Files
from service.handler import Handler
from service.settings import Settings
from service.work.builder import BuildPlan
from service.work.manifest import Manifest
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


class Job(ABC):
    """One run or build in a worker's hands, written through a lease."""

    def __init__(self, stream: str, write: Writer, shop: Shop) -> None:
        self._stream = stream
        self._write = write
        self._shop = shop
        self._canceled = anyio.Event()

    @abstractmethod
    async def run(self) -> None:
        """Does it. Afterwards the stream has its terminal event, or is queued again."""

    @abstractmethod
    async def give_up(self, reason: str) -> None:
        """Says that this worker does it no more; nothing where it has ended."""

    def cancel(self) -> None:
        """Somebody asked for it to stop. Harmless when repeated, or too late."""
        self._canceled.set()
