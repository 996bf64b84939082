"""The right to write a run or a build: take, renew, drop, forget. The token is the fence; the append checks it."""

from collections.abc import Mapping
from dataclasses import dataclass

from eventstore.database import Database


@dataclass(frozen=True, slots=True)
class Lease:
    """``holder`` may write ``stream`` under ``token``, until somebody takes the lease with a greater one."""

    stream: str
    holder: str
    token: int


class Leases:
    """The leases of one holder, each good for ``seconds`` after it was last renewed."""

    def __init__(self, database: Database, holder: str, seconds: float) -> None:
        self._database = database
        self.holder = holder
        self.seconds = seconds

    async def take(self, stream: str) -> Lease | None:
        """The lease, or None where another's lives or the stream has ended."""
        row = await self._database.row("take_lease", stream=stream, holder=self.holder, seconds=float(self.seconds))
        return None if row is None else Lease(stream, self.holder, row["token"])

    async def renew(self, held: Mapping[str, Lease]) -> set[str]:
        """Renews all; answers the streams whose lease was lost."""
        rows = await self._database.rows(
            "renew_leases",
            streams=list(held),
            tokens=[lease.token for lease in held.values()],
            seconds=float(self.seconds),
        )
        return set(held) - {row["stream"] for row in rows}

    async def drop(self, lease: Lease) -> None:
        """Frees the stream for the next holder at once; of an ended stream nothing is kept."""
        await self._database.rows("drop_lease", stream=lease.stream, token=lease.token)
