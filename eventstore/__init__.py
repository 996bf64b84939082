"""An append-only log on PostgreSQL. It knows streams and events, not what they mean.

What it promises (each with its test, see docs/guarantees.md):

- ids are dense, in commit order; a reader never sees k+1 before k;
- an append lands whole or not at all, once, under the expectation and the lease that it names;
- an event is never changed.
"""

from eventstore.appender import Appender
from eventstore.database import Database
from eventstore.event import NEW, Append, Appended, Event, Line, NewEvent, Page, Part, encode
from eventstore.leases import Lease, Leases
from eventstore.log import Feed, Log, Stream

__all__ = [
    "NEW",
    "Append",
    "Appended",
    "Appender",
    "Database",
    "Event",
    "Feed",
    "Lease",
    "Leases",
    "Line",
    "Log",
    "NewEvent",
    "Page",
    "Part",
    "Stream",
    "encode",
]
