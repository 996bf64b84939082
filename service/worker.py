"""The worker: takes leases on work that may begin or must end, does it, and writes what happens under its token.

A worker that loses a lease stops that work at once and writes nothing more about it. One that is asked to stop takes no
more work, lets what it has end, and hands the rest back. What another worker has left is queued again or ended, by
whoever notices first. A database that is away is waited out: the engine pauses at its pipe meanwhile.
"""

import logging
import os
import shutil
import socket
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from eventstore import Appender, Database, Lease, Leases
from eventstore.clock import jitter, now, token_hex
from eventstore.database import Connection, connect
from eventstore.errors import Fenced, Unavailable
from eventstore.tail import Hints
from service import commands, metrics
from service.build_job import BuildJob
from service.engine_account import EngineAccount
from service.files import Files
from service.handler import Handler
from service.jobs import Job, Shop
from service.logs import always, fields
from service.run_job import RunJob
from service.settings import Settings
from service.work import leftovers
from service.work.runner import Scratch
from service.writer import Writer, patiently

logger = logging.getLogger("ade.worker")

RENEWALS_PER_LEASE = 3
LOST_LOOK_S = 1.0
SETTLING_LEAST_S = 2.0


@dataclass(slots=True)
class _Held:
    lease: Lease
    job: Job
    slot: bool
    """Whether it takes one of the slots: what is only ended does not."""
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
        self._last_workspace = ""
        self._said_safe_mode = True  # perhaps by a worker before this one
        self._draining = anyio.Event()
        self._wake = anyio.Event()  # there may be work, or a slot for it

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled, or until it is drained."""
        always(worker_id=self.id)
        if self._shop.engines.notice:
            logger.warning(self._shop.engines.notice)
        metrics.SLOTS.set(self._settings.max_concurrency)
        await patiently(self._clean_up)
        async with anyio.create_task_group() as tasks:
            for service in (self._renew, self._watch_cancels, self._recover, self._pass_on_hints):
                tasks.start_soon(service)
            async with anyio.create_task_group() as jobs:
                task_status.started()
                await self._dispatch(jobs)
            tasks.cancel_scope.cancel()

    def drain(self) -> None:
        """Takes no more work."""
        self._draining.set()
        self._wake.set()

    # Taking work

    async def _dispatch(self, jobs: anyio.abc.TaskGroup) -> None:
        while not self._draining.is_set():
            wake = self._wake = anyio.Event()
            try:
                taken = await self._take(jobs)
            except Unavailable:
                await anyio.sleep(jitter(0.2, 1.0))
                continue
            if not taken:
                await wake.wait()

    async def _pass_on_hints(self) -> None:
        """To the dispatch, which a free slot wakes too: that concerns nobody else who waits for hints."""
        while True:
            await self._hints.next()()
            self._wake.set()

    async def _take(self, jobs: anyio.abc.TaskGroup) -> int:
        """Takes as much as there are free slots for: how much that was."""
        begin = not await self._handler.safe_mode()
        await self._say_safe_mode(on=not begin)
        free = self._settings.max_concurrency - sum(held.slot for held in self._held.values())
        if free <= 0:
            return 0
        room = await anyio.to_thread.run_sync(self._has_room)
        taken = 0
        for row in await self._database.rows("dispatchable", limit=free, begin=begin, last=self._last_workspace):
            if self._draining.is_set():
                break
            if not room and not row["only_ends"]:
                await self._let_wait(row)
            elif row["id"] not in self._held and (held := await self._hold(row["id"])) is not None:
                self._last_workspace = row["workspace_id"]
                taken += 1
                jobs.start_soon(self._work, held)
        return taken

    def _has_room(self) -> bool:
        """Whether the disks that work fills have enough left, so that PostgreSQL beside it has."""
        least = self._settings.disk_free_min_mb * 2**20
        files = self._shop.files
        return all(shutil.disk_usage(folder).free >= least for folder in (files.data, files.venvs, files.runs))

    async def _let_wait(self, row: Mapping[str, Any]) -> None:
        """Says of a run that would begin now why it does not."""
        if row["waiting_for"] != "worker":
            return
        logger.warning("%s waits: less than ADE_DISK_FREE_MIN_MB is free on the disk", row["id"])
        await self._handler.decide(row["id"], self._handler.run, commands.wait_for_disk)

    async def _say_safe_mode(self, *, on: bool) -> None:
        """Runs that would begin say that they wait for safe mode, and no longer once it is off."""
        if not on and not self._said_safe_mode:
            return
        found = await self._database.rows("held_back", said="worker" if on else "safe_mode")
        for row in found:
            await self._handler.decide(row["id"], self._handler.run, partial(commands.wait_for_safe_mode, on=on))
        self._said_safe_mode = on or bool(found)  # a part at a time: work does not wait for what is said

    async def _hold(self, stream: str, *, slot: bool = True) -> _Held | None:
        """A run or build in this worker's hands; None where another one was faster, or it has ended."""
        lease = await self._leases.take(stream)
        if lease is None:
            return None
        prefix, kind = ("build", BuildJob) if stream.startswith("build_") else ("run", RunJob)
        job: Job = kind(stream, Writer(self._appender, self._handler, lease, prefix), self._shop)
        held = self._held[stream] = _Held(lease, job, slot)
        metrics.SLOTS_USED.inc(slot)
        return held

    async def _work(self, held: _Held) -> None:
        try:
            with held.scope, fields(**{f"{held.lease.stream.partition('_')[0]}_id": held.lease.stream}):
                await self._do(held)
        except anyio.get_cancelled_exc_class():  # not the lease was lost: the worker is being stopped
            with anyio.CancelScope(shield=True):
                await self._fenced(held, held.job.hand_back("the worker was stopped"))
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
            await self._fenced(held, held.job.lose("a bug in the worker; its log has the traceback"))

    async def _fenced(self, held: _Held, saying: Awaitable[None]) -> None:
        try:
            await saying
        except Fenced:
            logger.warning("%s is in other hands already", held.lease.stream)

    async def _let_go(self, held: _Held) -> None:
        del self._held[held.lease.stream]
        metrics.SLOTS_USED.dec(held.slot)
        self._wake.set()  # what is next does not wait until the lease is dropped
        try:
            await self._leases.drop(held.lease)
        except Unavailable:
            logger.warning("could not drop the lease of %s; it will run out", held.lease.stream)

    # Work that others have left

    async def _clean_up(self) -> None:
        """Ends and removes what workers left on this machine whose work has gone on elsewhere."""
        files = self._shop.files
        scratches = await anyio.to_thread.run_sync(lambda: {path.name for path in files.scratches().iterdir()})
        found = scratches | await anyio.to_thread.run_sync(leftovers.streams)
        for row in await self._database.rows("idle", streams=sorted(found)):
            await anyio.to_thread.run_sync(leftovers.kill, leftovers.mark_of_stream(row["stream"]))
            await anyio.to_thread.run_sync(Scratch(files.scratch(row["stream"])).remove)

    async def _recover(self) -> None:
        """Ends, or queues again, what is in nobody's hands. It takes no slot."""
        sight = _Sight(max(self._settings.lease_seconds / RENEWALS_PER_LEASE, SETTLING_LEAST_S))
        while True:
            try:
                found = await self._database.rows("lost_work")
                for row in found if sight.is_steady() else ():
                    await self._take_over(row["id"])
            except Unavailable:
                pass  # looked for again
            await anyio.sleep(LOST_LOOK_S)  # nobody notifies of his own end

    async def _take_over(self, stream: str) -> None:
        if stream in self._held or (held := await self._hold(stream, slot=False)) is None:
            return
        try:
            with held.scope:
                await self._fenced(held, held.job.recover())
        except Unavailable:
            raise
        except Exception:
            logger.exception("%s cannot be taken over", stream)  # the others are not to suffer
        finally:
            with anyio.CancelScope(shield=True):
                await self._let_go(held)

    # Keeping work

    async def _renew(self) -> None:
        """Keeps the leases, on a connection of its own: the pool's come back slowly after an outage, and meanwhile
        others would take what is well."""
        while True:
            try:
                async with await connect(self._database.url) as connection:
                    while True:
                        await self._renew_all(connection)
                        await anyio.sleep(self._settings.lease_seconds / RENEWALS_PER_LEASE)
            except Unavailable:  # the fence is the token: while nobody takes the lease, its holder may write
                await anyio.sleep(jitter(0.1, 0.5))

    async def _renew_all(self, connection: Connection) -> None:
        lost = await self._leases.renew({stream: held.lease for stream, held in self._held.items()}, connection)
        for stream in self._held.keys() & lost:
            metrics.LEASES_LOST.inc()
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


class _Sight:
    """How long this worker has seen the database without a break.

    After an outage, or when the whole machine has slept, every lease looks as if it had run out. Whoever judged then
    would take work from workers that are well, and about to renew. So one looks for ``settling_s`` first. The wall
    clock counts: leases run out while a machine sleeps, and the monotonic clock stands.
    """

    def __init__(self, settling_s: float) -> None:
        self._settling_s = settling_s
        self._since = self._last = now()

    def is_steady(self) -> bool:
        """The database was seen at this moment: whether who is silent now is silent by itself."""
        seen = now()
        if not 0 <= seen - self._last <= self._settling_s:
            self._since = seen
        self._last = seen
        return seen - self._since >= self._settling_s
