"""What this process has appended, as it is counted and told: one look at each control event, after it has landed."""

import orjson

from eventstore.appender import Landed
from projections import events
from service import logs, metrics


def observe(landed: Landed) -> None:
    """For the :class:`Appender` of a process of the service."""
    metrics.appended(landed)
    for stream, event in landed.control:
        said = events.read(event.type, orjson.loads(event.data))
        if said is not None:
            metrics.count(said)
            logs.tell(stream, said)
