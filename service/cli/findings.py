"""What the doctor finds in a database, given what that said: pure, so that every sickness can be shown to it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventstore.migrations import SchemaStatus
from service.lag import LAG_EVENTS, UNSEALED_S

OLDEST_MAJOR = 15
SKEW_S = 5.0
CONNECTIONS_LEFT = 40
"""About what the processes of one machine take together."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it where it is not as it should be."""

    name: str
    found: str
    to_do: str | None = None


def schema(status: SchemaStatus) -> Finding:
    """Whether the database has this program's schema."""
    if status.pending:
        return Finding("schema", f"pending: {', '.join(status.pending)}", "Run `ade db migrate`.")
    if status.ahead:
        return Finding("schema", f"newer than this program, which works: {', '.join(status.ahead)}")
    return Finding("schema", f"up to date: {status.applied[-1]}")


def server(row: Mapping[str, Any], here: float) -> Iterator[Finding]:
    """Of the statement `server_settings`; ``here`` is the time on this machine when it was asked."""
    old = row["major"] < OLDEST_MAJOR
    yield Finding("version", f"PostgreSQL {row['version']}", f"Upgrade it to {OLDEST_MAJOR} or newer." if old else None)
    careless = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if row[name] == "off"]
    yield Finding(
        "durability",
        f"{', '.join(careless)} off" if careless else "commits are kept",
        f"Switch on {', '.join(careless)}: a crash would take back what was acknowledged." if careless else None,
    )
    left = row["connections_max"] - row["connections"]
    yield Finding(
        "connections",
        f"{row['connections']} of {row['connections_max']} taken",
        f"Raise max_connections: a machine takes about {CONNECTIONS_LEFT}." if left < CONNECTIONS_LEFT else None,
    )
    skew = row["now"] - here
    yield Finding(
        "clock",
        f"the database's is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}",
        "Let both machines take the time from one server (NTP): people compare their times."
        if abs(skew) > SKEW_S
        else None,
    )


def deployment(rows: Sequence[Mapping[str, Any]], unsealed: Mapping[str, Any]) -> Iterator[Finding]:
    """Of the statements `standing` and `unsealed`: who is there, and what waits for whom."""

    def number(name: str, of: str | None = None) -> int:
        return int(sum(row["value"] for row in rows if row["name"] == name and of in {None, row["of"]}))

    runs = number("processes", "api") + number("processes", "projector") > 0
    workers, queued, at_work = number("processes", "worker"), number("queue_depth"), number("in_progress")
    alone = workers == 0 and (runs or queued + at_work > 0)
    yield Finding(
        "workers",
        f"{workers} connected; {queued} queued, {at_work} at work",
        "Start one: `ade serve`, or `ade worker`. If one should run, its log says why it ended." if alone else None,
    )
    safe_mode = " Safe mode is on: `ade safe-mode off` ends it." if number("safe_mode") else ""
    elected = number("projectors") > 0
    yield Finding(
        "projector",
        ("elected" if elected else "none is elected") + safe_mode,
        "Look at the log of `ade serve` for the projector." if runs and not elected else None,
    )
    lags = {row["of"]: int(row["value"]) for row in rows if row["name"] == "projection_lag"}
    behind = [name for name, lag in lags.items() if lag > LAG_EVENTS]
    slowest = max(lags.items(), key=lambda one: one[1], default=("nothing", 0))
    yield Finding(
        "lag",
        f"{slowest[0]} is {slowest[1]} events behind" if slowest[1] else "nothing is behind the log",
        f"docs/operate.md, what follows from the log is behind: {', '.join(behind)}." if behind else None,
    )
    late = unsealed["seconds"] > UNSEALED_S
    yield Finding(
        "seals",
        f"{unsealed['events']} events are not sealed" + (f", since {unsealed['seconds']:.0f} s" if late else ""),
        "The projector seals: it does not run, or its log says what is missing." if late else None,
    )
