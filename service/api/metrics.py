"""``/metrics``: what the processes of this machine have counted, and how the deployment stands, for Prometheus."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
from prometheus_client import CONTENT_TYPE_LATEST, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response

from eventstore import Database
from eventstore.errors import EventStoreError
from service.api.deployment import Deployment
from service.api.request import deployment
from service.exposition import merged, text_of
from service.settings import Settings

DATABASE_TIMEOUT_S = 2.0
"""A database that is slower is shown as down: Prometheus itself waits for ten seconds."""


class Standing(NamedTuple):
    """A number that the database knows. It is the same on every machine of a deployment: take `max`, not `sum`."""

    metric: str
    help: str
    labels: tuple[str, ...] = ()


STANDING: Mapping[str, Standing] = {
    "queue_depth": Standing("ade_queue_depth", "What is queued, by what it waits for.", ("kind", "waiting_for")),
    "queue_age": Standing("ade_queue_oldest_age_seconds", "How long the oldest of it waits.", ("kind", "waiting_for")),
    "in_progress": Standing("ade_in_progress", "Runs and builds that are at work.", ("kind",)),
    "projection_lag": Standing("ade_projection_lag_events", "How far it is behind the log.", ("projection",)),
    "head": Standing("ade_log_events_total", "Events of the log."),
    "safe_mode": Standing("ade_safe_mode", "Whether safe mode was switched on."),
    "projectors": Standing("ade_projector_elected", "Whether a projector is elected, and alive."),
    "processes": Standing("ade_processes_connected", "Processes with a connection to the database.", ("kind",)),
    "connections": Standing("ade_database_connections", "Connections to the PostgreSQL server, by anyone."),
    "connections_max": Standing("ade_database_connections_max", "As many as it allows."),
    "unsealed": Standing("ade_unsealed_events", "Events that no seal covers yet."),
    "unsealed_age": Standing("ade_unsealed_age_seconds", "How long the oldest of them waits."),
}
"""By the name that the statement `standing` gives it."""


async def metrics(request: Request) -> Response:
    """Say what the processes of this machine have counted, and how the deployment stands.

    In the text format of Prometheus. `docs/observability.md` lists the metrics.
    """
    found = deployment(request)
    texts = await found.exposition.all()
    rows = await _standing(found.database)
    texts.append(text_of(lambda: [*_families(rows), *_disks(found)]))
    body = await anyio.to_thread.run_sync(merged, texts)
    return Response(body, media_type=None, headers={"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"})


async def _standing(database: Database) -> Sequence[Mapping[str, Any]] | None:
    """The numbers of the deployment; None while the database is away."""
    with anyio.move_on_after(DATABASE_TIMEOUT_S):
        try:
            rows = await database.rows("standing")
            unsealed = await database.row("unsealed") or {"events": 0, "seconds": 0}
        except EventStoreError:
            return None
        rows.append({"name": "unsealed", "of": None, "reason": None, "value": unsealed["events"]})
        rows.append({"name": "unsealed_age", "of": None, "reason": None, "value": unsealed["seconds"]})
        return rows
    return None


def _families(rows: Sequence[Mapping[str, Any]] | None) -> Iterator[Metric]:
    yield GaugeMetricFamily("ade_database_up", "Whether the database answers.", 0 if rows is None else 1)
    for name, (metric, help_, labels) in STANDING.items():
        kind = CounterMetricFamily if metric.endswith("_total") else GaugeMetricFamily
        family = kind(metric, help_, labels=labels)
        for row in rows or ():
            if row["name"] == name:
                family.add_metric([row["of"], row["reason"]][: len(labels)], row["value"])
        yield family


def _disks(found: Deployment) -> Iterator[Metric]:
    free = GaugeMetricFamily("ade_disk_free_bytes", "What is free on the disk of a folder.", labels=["folder"])
    size = GaugeMetricFamily("ade_disk_size_bytes", "The size of that disk.", labels=["folder"])
    for name, folder in _folders(found.settings):
        usage = shutil.disk_usage(folder)
        free.add_metric([name], usage.free)
        size.add_metric([name], usage.total)
    yield from (free, size)


def _folders(settings: Settings) -> Iterator[tuple[str, Any]]:
    for name, folder in (("data", settings.data), ("venvs", settings.venvs), ("runs", settings.runs)):
        if folder.exists():
            yield name, folder
