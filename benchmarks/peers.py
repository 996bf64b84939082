"""What the log stands beside, on the same PostgreSQL and with the same payload: none of this is ours."""

import struct
import time
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.writing import line

TABLE = """
CREATE TABLE copied (
    id bigint PRIMARY KEY, stream text NOT NULL, seq bigint NOT NULL, workspace text NOT NULL, type text NOT NULL,
    bulk boolean NOT NULL, recorded_at timestamptz NOT NULL, data text NOT NULL
);
CREATE INDEX ON copied (stream, id);
"""
"""The columns of ``events``, and the index without which nobody finds a stream."""
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


def copy(connection: psycopg.Connection, first: int, events: int, size: int = 1_000) -> float:
    """Rows per second of COPY, ``size`` a transaction, with ids from ``first`` on.

    The rows are packed here and written in one piece: a third faster than psycopg's ``write_row``, so that the limit is
    PostgreSQL and not this client.
    """
    started = time.perf_counter()
    for at in range(first, first + events, size):
        with connection.cursor().copy("COPY copied FROM STDIN (FORMAT binary)") as copying:
            copying.write(_packed(range(at, at + size)))
    return events / (time.perf_counter() - started)


def select(url: str, events: int) -> float:
    """Rows per second of reading ids and payloads, 1,000 a page."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)
        copy(connection, 1, events)
        cursor = connection.cursor(binary=True)
        started, at, rows = time.perf_counter(), 0, 0
        while page := cursor.execute(
            "SELECT id, data FROM copied WHERE id > %s ORDER BY id LIMIT 1000", (at,), prepare=True
        ).fetchall():
            at, rows = page[-1][0], rows + len(page)
        return rows / (time.perf_counter() - started)


def _packed(ids: range) -> bytes:
    """Rows in the binary format of COPY."""

    def text(value: bytes) -> bytes:
        return struct.pack("!i", len(value)) + value

    stream, data = text(b"run_copied"), text(line(0))
    head = struct.Struct(f"!hiq{len(stream)}siq").pack
    tail = text(b"default") + text(b"run.log") + struct.pack("!i?iq", 1, True, 8, 0) + data
    return _BEGIN + b"".join([head(8, 8, i, stream, 8, i) + tail for i in ids]) + _END


def commit_per_line(url: str, seconds: float) -> float:
    """Rows per second of INSERT and COMMIT, one after the other, into the same table: what run services do."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLE)
        started, count = time.perf_counter(), 0
        while time.perf_counter() < started + seconds:
            count += 1
            commit_line(connection, count, line(count).decode())
        return count / (time.perf_counter() - started)


def commit_line(connection: psycopg.Connection, number: int, data: str) -> None:
    """One line inserted and committed, the connection being in autocommit."""
    connection.execute(
        "INSERT INTO copied VALUES (%s, 'run_copied', %s, 'default', 'run.log', true, %s, %s)",
        (number, number, datetime.now(UTC), data),
        prepare=True,
    )


def eventsourcing(url: str, size: int, events: int) -> float:
    """Events per second of the ``eventsourcing`` library's application recorder: it orders all events, as a log does.

    The faster of its two ways: a pipeline with a table lock (its default), or a function in the database.
    """
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

    info = conninfo_to_dict(url)
    rates = []
    for in_function in (False, True):
        with PostgresDatastore(
            str(info["dbname"]),
            str(info["host"]),
            str(info["port"]),
            str(info["user"]),
            "",
            enable_db_functions=in_function,
        ) as store:
            recorder = PostgresApplicationRecorder(store, events_table_name=f"stored_{size}_{in_function}".lower())
            recorder.create_table()
            stream, data = uuid4(), line(0)
            batches = [
                [StoredEvent(stream, version, "run.log", data) for version in range(first, first + size)]
                for first in range(0, events, size)
            ]
            started = time.perf_counter()
            for batch in batches:
                recorder.insert_events(batch)
            rates.append(events / (time.perf_counter() - started))
    return max(rates)
