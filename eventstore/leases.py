"""The right to write a run or a build: take, renew, drop. The token is the fence; the append checks it."""

from collections.abc import Mapping
from dataclasses import dataclass

from eventstore.database import Connection, Database, call


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

    async def renew(self, held: Mapping[str, Lease], on: Connection | None = None) -> set[str]:
        """Renews all, on a connection of the caller's or one of the pool's: the streams whose lease was lost."""
        tokens = [lease.token for lease in held.values()]
        given = {"streams": list(held), "tokens": tokens, "seconds": float(self.seconds)}
        asked = self._database.rows("renew_leases", **given) if on is None else call(on, "renew_leases", **given)
        return set(held) - {row["stream"] for row in await asked}

    async def drop(self, lease: Lease) -> None:
        """Frees the stream for the next holder at once; of an ended stream nothing is kept."""
        await self._database.rows("drop_lease", stream=lease.stream, token=lease.token)
