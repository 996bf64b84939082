"""The worker: takes leases on work that may begin or must end, does it, and writes what happens under its token.

A worker that loses a lease stops that work at once and writes nothing more about it. One that is asked to stop takes no
more work and lets what it has end. A database that is away is waited out: the engine pauses at its pipe meanwhile.
"""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from eventstore import Appender, Database, Lease, Leases
from eventstore.clock import jitter, token_hex
from eventstore.errors import Fenced, Unavailable
from eventstore.tail import Hints
from service.build_job import BuildJob
from service.engine_account import EngineAccount
from service.files import Files
from service.handler import Handler
from service.jobs import Job, Shop
from service.run_job import RunJob
from service.settings import Settings
from service.writer import Writer

logger = logging.getLogger("ade.worker")

RENEWALS_PER_LEASE = 3


@dataclass(slots=True)
class _Held:
    lease: Lease
    job: Job
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Worker:
    """Does up to ``max_concurrency`` runs and builds at once."""

    def __init__(
        self, database: Database, appender: Appender, hints: Hints, handler: Handler, settings: Settings
    ) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
        self._database, self._appender = database, appender
        self._hints, self._handler, self._settings = hints, handler, settings
        self._leases = Leases(database, self.id, settings.lease_seconds)
        self._shop = Shop(self.id, handler, Files.of(settings), settings, EngineAccount.choose(settings))
        self._held: dict[str, _Held] = {}
        self._draining = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled, or until it is drained."""
        if self._shop.engines.notice:
            logger.warning(self._shop.engines.notice)
        async with anyio.create_task_group() as tasks:
            for service in (self._renew, self._watch_cancels):
                tasks.start_soon(service)
            async with anyio.create_task_group() as jobs:
                task_status.started()
                await self._dispatch(jobs)
            tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Takes no more work."""
        self._draining.set()
        self._hints.pulse()

    async def _dispatch(self, jobs: anyio.abc.TaskGroup) -> None:
        while not self._draining.is_set():
            wait = self._hints.next()
            try:
                taken = await self._take(jobs)
            except Unavailable:
                await anyio.sleep(jitter(0.2, 1.0))
                continue
            if not taken:
                await wait()

    async def _take(self, jobs: anyio.abc.TaskGroup) -> int:
        free = self._settings.max_concurrency - len(self._held)
        if free <= 0:
            return 0
        begin = not await self._handler.safe_mode()
        taken = 0
        for statement in ("dispatchable_builds", "dispatchable_runs"):
            for row in await self._database.rows(statement, limit=free, begin=begin):
                if taken == free or self._draining.is_set():
                    return taken
                if row["id"] in self._held:
                    continue
                lease = await self._leases.take(row["id"])
                if lease is not None:
                    taken += 1
                    held = _Held(lease, self._job(lease))
                    self._held[lease.stream] = held
                    jobs.start_soon(self._work, held)
        return taken

    def _job(self, lease: Lease) -> Job:
        prefix, kind = ("build", BuildJob) if lease.stream.startswith("build_") else ("run", RunJob)
        return kind(lease.stream, Writer(self._appender, self._handler, lease, prefix), self._shop)

    async def _work(self, held: _Held) -> None:
        try:
            with held.scope:
                await self._do(held)
        except anyio.get_cancelled_exc_class():  # not the lease was lost: the worker is being stopped
            with anyio.CancelScope(shield=True):
                await self._give_up(held, "the worker was stopped")
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go(held)

    async def _do(self, held: _Held) -> None:
        try:
            await held.job.run()
        except* Fenced:
            logger.warning("lost the lease of %s; stopped working on it", held.lease.stream)
        except* Exception:
            logger.exception("the work on %s broke", held.lease.stream)
            await self._give_up(held, "a bug in the worker; its log has the traceback")

    async def _give_up(self, held: _Held, reason: str) -> None:
        try:
            await held.job.give_up(reason)
        except Fenced:
            logger.warning("%s is in other hands already", held.lease.stream)

    async def _let_go(self, held: _Held) -> None:
        del self._held[held.lease.stream]
        try:
            await self._leases.drop(held.lease)
        except Unavailable:
            logger.warning("could not drop the lease of %s; it will run out", held.lease.stream)
        self._hints.pulse()

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(self._settings.lease_seconds / RENEWALS_PER_LEASE)
            held = {stream: one.lease for stream, one in self._held.items()}
            if not held:
                continue
            try:
                lost = await self._leases.renew(held)
            except Unavailable:
                continue  # the fence is the token: while nobody takes the lease, its holder may write
            for stream in lost & self._held.keys():
                self._held[stream].scope.cancel()

    async def _watch_cancels(self) -> None:
        while True:
            wait = self._hints.next()
            try:
                await self._look_for_cancels()
            except Unavailable:
                await anyio.sleep(jitter(0.2, 1.0))
            await wait()

    async def _look_for_cancels(self) -> None:
        streams: Sequence[str] = list(self._held)
        if not streams:
            return
        for row in await self._database.rows("cancel_requests", streams=streams):
            if row["stream"] in self._held:
                self._held[row["stream"]].job.cancel()
