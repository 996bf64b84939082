"""PostgreSQL, by name: a pool, named statements, LISTEN. The only module that imports psycopg.

Driver errors end here: what a lost connection or a server that restarts can cause is :class:`Unavailable`, everything
else is a bug of ours and travels as it is.
"""

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Self

import psycopg
import psycopg_pool
from psycopg import sql
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format
from psycopg.rows import DictRow, dict_row

from eventstore.errors import DependedOn, LockTimeout, NoLog, Unavailable
from eventstore.statements import statements

Connection = psycopg.AsyncConnection[DictRow]

CONNECT_TIMEOUT_S = 10
POOL_TIMEOUT_S = 10.0
"""How long a request waits for a free connection before it is told that the database is unavailable."""

RECONNECT_S = 2.0
"""How long the pool tries by itself to connect again, further apart each time; then the next request tries at once.
With the pool's own five minutes the first answer after an outage of 40 s came 22 s late."""

# Connection failures (08), a server that is out of room for now (53), that stops or starts (57P), and a race that it
# resolved against us (40). What it refuses for ever, such as a key that fits no index (54), is not among them.
_PASSING = ("08", "53", "57P", "40")


def _is_away(error: BaseException) -> bool:
    if isinstance(error, psycopg.OperationalError):
        return error.sqlstate is None or error.sqlstate.startswith(_PASSING)
    return isinstance(error, psycopg.InterfaceError | psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed | OSError)


class Column(list[Any]):
    """One parameter of an append or an import: a column of values, sent as a binary array of a fixed type.

    psycopg's own list dumper picks the array's type by its values, so each batch would be another prepared statement.
    """

    element: ClassVar[int]
    array: ClassVar[int]
    packed: ClassVar[struct.Struct]


class Ints(Column):
    element, array, packed = 23, 1007, struct.Struct("!ii")


class BigInts(Column):
    element, array, packed = 20, 1016, struct.Struct("!iq")


class Bools(Column):
    element, array, packed = 16, 1000, struct.Struct("!i?")


class Texts(Column):
    element, array = 25, 1009


class Text(bytes):
    """One text, UTF-8 already."""


class _TextDumper(Dumper):
    format, oid = Format.BINARY, Texts.element

    def dump(self, obj: Text) -> Buffer:
        return obj


_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)


class _ColumnDumper(Dumper):
    format = Format.BINARY

    def __init__(self, cls: type[Column], context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        self._column = cls
        self.oid = cls.array

    def dump(self, obj: Column) -> Buffer:
        head = struct.pack("!iiIii", 1, 1, self._column.element, len(obj), 1)
        if not obj:
            return struct.pack("!iiI", 0, 0, self._column.element)
        if self._column is Texts:
            pieces = [head]
            for value in obj:
                if value is None:
                    pieces.append(_NULL)
                else:
                    text = value if isinstance(value, bytes) else value.encode()
                    pieces.append(_LENGTH.pack(len(text)))
                    pieces.append(text)
            return b"".join(pieces)
        pack, size = self._column.packed.pack, self._column.packed.size - 4
        return head + b"".join([_NULL if value is None else pack(size, value) for value in obj])


_MICROSECONDS = struct.Struct("!q")
_EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts from the year 2000."""


class _MomentLoader(Loader):
    """Every moment comes as Unix seconds: exact to the microsecond, and what an answer is made of."""

    format = Format.BINARY

    def load(self, data: Buffer) -> float:
        (microseconds,) = _MICROSECONDS.unpack(data)
        return (int(microseconds) + _EPOCH_US) / 1_000_000


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    for column in (Ints, BigInts, Bools, Texts):
        connection.adapters.register_dumper(column, _ColumnDumper)
    connection.adapters.register_dumper(Text, _TextDumper)
    connection.adapters.register_loader("timestamptz", _MomentLoader)
    connection.prepare_threshold = 0
    # Whatever this database's default is: under REPEATABLE READ an append would number from a stale snapshot.
    await connection.execute(statements()["read_committed"].encode())


class Database:
    """A pool of connections to one PostgreSQL. ``async with Database(url) as database``. ``name``: who it is, for those
    who look at the server's list of connections."""

    def __init__(self, url: str, *, connections: int = 10, name: str | None = None) -> None:
        self.url = url
        self._pool: psycopg_pool.AsyncConnectionPool[Connection] = psycopg_pool.AsyncConnectionPool(
            url,
            min_size=1,
            max_size=connections,
            timeout=POOL_TIMEOUT_S,
            reconnect_timeout=RECONNECT_S,
            open=False,
            configure=_configure,
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "connect_timeout": CONNECT_TIMEOUT_S,
                **({} if name is None else {"application_name": name}),
            },
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def rows(self, statement: str, **parameters: Any) -> list[DictRow]:
        """All rows of a named statement. Asked a second time where the first connection turned out to be dead."""
        return await self._twice(statement, parameters)

    async def planned(self, statement: str, **parameters: Any) -> list[DictRow]:
        """The same, planned for these parameters: for a statement with filters of which most are not given. The plan
        that serves all of them looks at every row, and a prepared statement comes to it after some calls."""
        return await self._twice(statement, parameters, prepare=False)

    async def _twice(self, statement: str, parameters: dict[str, Any], *, prepare: bool = True) -> list[DictRow]:
        try:
            return await self._rows(statement, parameters, prepare=prepare)
        except Unavailable:
            await self._pool.check()  # one connection was dead, and so are perhaps the others
            return await self._rows(statement, parameters, prepare=prepare)

    async def _rows(self, statement: str, parameters: dict[str, Any], *, prepare: bool) -> list[DictRow]:
        with _world():
            async with self._pool.connection() as connection:
                return await _fetch(connection, statement, parameters, prepare=prepare)

    async def row(self, statement: str, **parameters: Any) -> DictRow | None:
        """The first row of a named statement."""
        rows = await self.rows(statement, **parameters)
        return rows[0] if rows else None

    async def listen(self, *channels: str) -> AsyncIterator[str]:
        """The payloads of notifications, as they come, on a connection of its own. Ends by :class:`Unavailable`."""
        with _world():
            async with await connect(self.url) as connection:
                for channel in channels:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                yield ""  # listening from here on: what was committed before must be read now
                async for notification in connection.notifies():
                    yield notification.payload


def without_password(url: str) -> tuple[str, dict[str, str]]:
    """How another program connects: the URL without its password, which everybody can read in the list of processes,
    and the environment that gives it the password."""
    parameters = psycopg.conninfo.conninfo_to_dict(url)
    password = parameters.pop("password", None)
    return psycopg.conninfo.make_conninfo("", **parameters), {} if password is None else {"PGPASSWORD": str(password)}


async def connect(url: str) -> Connection:
    """A connection outside the pool, in autocommit, for those who keep one to themselves."""
    with _world():
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, row_factory=dict_row, connect_timeout=CONNECT_TIMEOUT_S
        )
        await _configure(connection)
        return connection


async def call(connection: Connection, statement: str, *parameters: Any, **named: Any) -> list[DictRow]:
    """All rows of a named statement on a connection that the caller keeps."""
    with _world():
        return await _fetch(connection, statement, parameters or named)


async def script(connection: Connection, text: str) -> None:
    """Runs a file of ``sql/`` as it stands."""
    with _world():
        await connection.execute(text.encode(), prepare=False)


@asynccontextmanager
async def transaction(connection: Connection) -> AsyncIterator[None]:
    """What happens inside is done as one, or not at all."""
    with _world():
        async with connection.transaction():
            yield


async def _fetch(
    connection: Connection, statement: str, parameters: Sequence[Any] | dict[str, Any], *, prepare: bool = True
) -> list[DictRow]:
    text = statements()[statement].encode()
    cursor = await connection.execute(text, parameters or None, binary=True, prepare=prepare)
    return await cursor.fetchall() if cursor.description else []


class _world:  # noqa: N801 - reads as a block: with _world()
    """Tells a database that is away from a mistake of ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, psycopg.errors.LockNotAvailable):
            raise LockTimeout(reason=str(error).strip()) from error
        if isinstance(error, psycopg.errors.DependentObjectsStillExist):
            raise DependedOn(reason=error.diag.message_detail) from error
        if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedFunction):
            raise NoLog(reason=error.diag.message_primary) from error
        if error is not None and _is_away(error):
            raise Unavailable(reason=str(error).strip()) from error
