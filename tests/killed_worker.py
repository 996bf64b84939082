"""``python -m tests.killed_worker MOMENT EVENT``: a worker that ends by kill -9 before or after it writes an event.

EVENT is a type, with the step and its status after a blank for `build.step`; or `lease`, with the moment `after`.
"""

import os
import signal
import sys

import orjson

from eventstore import Append, Appended, Appender, Lease, Leases
from eventstore.appender import PATIENCE_S
from service import worker as working
from service.cli import serve

MOMENT, EVENT = sys.argv[1:]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(append: Append) -> set[str]:
    """What the events of an append are called here."""
    found = set()
    for event in (event for part in append.parts for event in part.events):
        data = orjson.loads(event.data)
        step = f" {data['step']} {data['status']}" if event.type == "build.step" else ""
        found.add(f"{event.type}{step}")
    return found


class DyingAppender(Appender):
    async def append(self, append: Append, *, patience_s: float = PATIENCE_S) -> Appended:
        meant = EVENT in names(append)
        if meant and MOMENT == "before":
            die()
        appended = await super().append(append, patience_s=patience_s)
        if meant:
            die()
        return appended


class DyingLeases(Leases):
    async def take(self, stream: str) -> Lease | None:
        lease = await super().take(stream)
        if lease is not None and EVENT == "lease":
            die()
        return lease


if __name__ == "__main__":
    vars(serve)["Appender"] = DyingAppender  # where the worker gets it from
    vars(working)["Leases"] = DyingLeases
    serve.worker()
