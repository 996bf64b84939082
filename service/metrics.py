"""What a process counts of its own work, and how it is counted: per batch, per look, per request, never per event.

No label holds an id, a name or a workspace, so the number of series is bounded by the program. How things stand
(queues, lag) is not counted here: the database knows, see :mod:`service.api.metrics`. What happened to runs and builds
is counted from the control events that this process has appended (:mod:`service.observer`), so a run is counted once in
a deployment, by whoever ended it. An append whose answer was lost is not counted.
"""

import time
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from eventstore import Page
from eventstore.appender import Landed
from eventstore.clock import now
from projections import events

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which nobody asks for

QUICK_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 2.5, 5, 10)
LONG_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600)
EVENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000, 10_000)

REGISTRY = CollectorRegistry()
"""All of this process."""
ProcessCollector(registry=REGISTRY)

INFO = Gauge("ade_info", "The release that this process runs; always 1.", ["version"], registry=REGISTRY)
INFO.labels(version("ade-runs")).set(1)

# Appends, in every process

APPEND_SECONDS = Histogram(
    "ade_append_duration_seconds", "One batch, from its sending to its commit.", buckets=QUICK_S, registry=REGISTRY
)
APPEND_EVENTS = Histogram("ade_append_batch_events", "Events of one batch.", buckets=EVENTS, registry=REGISTRY)
APPENDED_EVENTS = Counter("ade_appended_events_total", "Events that were appended.", registry=REGISTRY)
APPENDED_BYTES = Counter("ade_appended_bytes_total", "Payload of the events that were appended.", registry=REGISTRY)

# What the appended control events say

RUNS = Counter("ade_runs_completed_total", "Runs that ended.", ["status", "stop_reason"], registry=REGISTRY)
BUILDS = Counter("ade_builds_completed_total", "Builds that ended.", ["status", "stop_reason"], registry=REGISTRY)
RUN_SECONDS = Histogram(
    "ade_run_duration_seconds", "An engine, from its start to its end.", buckets=LONG_S, registry=REGISTRY
)
BUILD_SECONDS = Histogram(
    "ade_build_duration_seconds", "A build, from its start to its end.", buckets=LONG_S, registry=REGISTRY
)
STEP_SECONDS = Histogram(
    "ade_build_step_duration_seconds", "A step of a build.", ["step"], buckets=LONG_S, registry=REGISTRY
)
LOST = Counter("ade_attempts_lost_total", "Attempts whose worker went away.", ["kind", "next"], registry=REGISTRY)
GAP_LINES = Counter("ade_log_gap_lines_total", "Lines of output that were not kept.", ["kind"], registry=REGISTRY)
GAP_BYTES = Counter("ade_log_gap_bytes_total", "Bytes of output that were not kept.", ["kind"], registry=REGISTRY)

# The API

REQUESTS = Counter("ade_http_requests_total", "Requests.", ["method", "route", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "ade_http_request_duration_seconds",
    "A request, from its head to its answer; of a stream, to its beginning.",
    ["method", "route"],
    buckets=QUICK_S,
    registry=REGISTRY,
)
STREAMS = Gauge("ade_streams_open", "Streams that clients follow.", registry=REGISTRY)
TAIL_SECONDS = Histogram(
    "ade_tail_duration_seconds",
    "One look at what is new of all that is watched.",
    ["watched"],
    buckets=QUICK_S,
    registry=REGISTRY,
)
DELIVERY_SECONDS = Histogram(
    "ade_delivery_lag_seconds",
    "From the append of an event to its handing to the viewers; of one event in each look that found any.",
    buckets=QUICK_S,
    registry=REGISTRY,
)

# The worker

LEASES_LOST = Counter("ade_leases_lost_total", "Leases that this worker held and lost.", registry=REGISTRY)
SLOTS = Gauge("ade_worker_slots", "Runs and builds that this worker does at once.", registry=REGISTRY)
SLOTS_USED = Gauge("ade_worker_slots_used", "Runs and builds that this worker does now.", registry=REGISTRY)

# The projector

SPANS = Counter("ade_spans_sent_total", "Spans that the receiver of traces has taken.", registry=REGISTRY)
SPANS_REFUSED = Counter("ade_spans_refused_total", "Spans that it refused for good.", registry=REGISTRY)


def appended(landed: Landed) -> None:
    """Counts a batch that has landed."""
    APPEND_SECONDS.observe(landed.seconds)
    APPEND_EVENTS.observe(landed.events)
    APPENDED_EVENTS.inc(landed.events)
    APPENDED_BYTES.inc(landed.bytes)


def count(said: events.Payload) -> None:
    """Counts what a control event says that has landed."""
    kind = said.wire.partition(".")[0]
    match said:
        case events.RunCompleted():
            RUNS.labels(said.status, said.stop_reason).inc()
            if said.duration_ms is not None:
                RUN_SECONDS.observe(said.duration_ms / 1000)
        case events.BuildCompleted():
            BUILDS.labels(said.status, said.stop_reason).inc()
            if said.duration_ms is not None:
                BUILD_SECONDS.observe(said.duration_ms / 1000)
        case events.BuildStep(duration_ms=int(duration_ms)):
            STEP_SECONDS.labels(said.step).observe(duration_ms / 1000)
        case events.Lost():
            LOST.labels(kind, said.next).inc()
        case events.LogGap():
            GAP_LINES.labels(kind).inc(said.lines)
            GAP_BYTES.labels(kind).inc(said.bytes)


def looked(watched: str, since: float, found: Page | None) -> None:
    """Counts a look of the hub, begun at ``since`` (monotonic); ``found`` is new, and is handed out now."""
    TAIL_SECONDS.labels(watched).observe(time.monotonic() - since)
    if found is not None:
        DELIVERY_SECONDS.observe(max(0.0, now() - found.recorded_at))
