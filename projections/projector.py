"""Keeps what is caught up, not inline, current: the tables of lines, the log files, and the seals of the log.

One projector of a deployment works at a time; a lease elects it. It can be killed at any moment: a table and its
checkpoint commit together, and a file is resumed from its last whole line.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
from anyio.abc import TaskStatus

from eventstore import Database, Lease, Leases, Log
from eventstore.clock import jitter
from eventstore.errors import Unavailable
from eventstore.seals import Sealer
from eventstore.tail import Hints
from projections.log_files import LogFiles, PathOf
from projections.tables import CAUGHT_UP

logger = logging.getLogger("ade.projector")

ELECTION = "projector_lease"
STEP_IDS = 20_000
"""Ids that one step of a table covers: a transaction of some 100 ms."""
TURNS = 2
"""Steps at a time: each keeps a process of the database busy, and in a flood whoever appends needs the other ones."""
HOUSEKEEPING_S = 600.0
DISK_PAUSE_S = 5.0

Step = Callable[[], Awaitable[bool]]
"""Goes forward a little; whether there is more to do."""


class Projector:
    """Start :meth:`run` in a task group. ``path_of(workspace, stream)`` says where a log file lies; ``also`` are steps
    of others who follow the log, one at a time in a deployment."""

    def __init__(
        self,
        database: Database,
        log: Log,
        hints: Hints,
        leases: Leases,
        path_of: PathOf,
        also: Sequence[Step] = (),
    ) -> None:
        self._database = database
        self._log = log
        self._hints = hints
        self._leases = leases
        self._path_of = path_of
        self._also = also
        self._turns = anyio.CapacityLimiter(TURNS)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Works while it is elected, waits for its turn otherwise; comes back after every outage."""
        task_status.started()
        while True:
            try:
                lease = await self._leases.take(ELECTION)
                if lease is not None:
                    await self._work(lease)
            except* Unavailable:  # alone, or several steps' at once
                await anyio.sleep(jitter(0.2, 1.0))
            await anyio.sleep(jitter(0.5, 1.0))

    async def _work(self, lease: Lease) -> None:
        files = LogFiles(self._database, self._log, self._path_of)
        steps: list[Step] = [partial(self._step_files, files), *self._also]
        steps += [partial(self._step_table, projection.name) for projection in CAUGHT_UP]
        try:
            async with anyio.create_task_group() as tasks:
                for step in steps:
                    tasks.start_soon(self._follow, step)
                tasks.start_soon(Sealer(self._database, self._turns).run)
                tasks.start_soon(self._keep_house)
                await self._stay_elected(lease)
                tasks.cancel_scope.cancel()
        finally:
            files.close()
            with anyio.CancelScope(shield=True):
                await self._resign(lease)

    async def _stay_elected(self, lease: Lease) -> None:
        """Renews the lease until somebody else has it."""
        while True:
            if await self._leases.renew({ELECTION: lease}):
                return
            await anyio.sleep(self._leases.seconds / 3)

    async def _resign(self, lease: Lease) -> None:
        try:
            await self._leases.drop(lease)
        except Unavailable:
            return  # the lease runs out by itself

    async def _follow(self, step: Step) -> None:
        while True:
            wait = self._hints.next()
            if not await step():
                await wait()

    async def _step_files(self, files: LogFiles) -> bool:
        """One page of the log files. A disk that refuses stops them alone: tables and seals go on."""
        try:
            async with self._turns:
                return await files.step()
        except OSError as error:
            logger.error("log files wait: %s", error)  # noqa: TRY400 - it says which file, and what is wrong
            files.close()
            await anyio.sleep(jitter(DISK_PAUSE_S / 2, DISK_PAUSE_S))
            return True

    async def _step_table(self, name: str) -> bool:
        """Moves one table forward; whether there is more to do."""
        async with self._turns:
            row = await self._database.row("catch_up", projection=name, most=STEP_IDS)
        return row is not None and row["reached"] < row["head"]

    async def _keep_house(self) -> None:
        while True:
            await self._database.rows("forget_append_keys")
            await anyio.sleep(HOUSEKEEPING_S)
