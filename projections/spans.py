"""The spans of runs and builds: a fold of their events, made when they have ended.

    run     queued, attempt ─► the engine's own steps, nested as it tells them
    build   queued, attempt ─► steps

A build that was made for a run lies below that run, in its trace; runs that only wait for it link to it. The names are
those of OpenTelemetry's conventions for CI/CD, with ``ade.…`` for what they do not name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from eventstore.event import Event
from projections.steps import Steps, Value
from projections.tracing import SpanContext, parse, span_of

RESULTS = {
    "completed": "success",
    "failed": "failure",
    "build_failed": "failure",
    "canceled": "cancellation",
    "timeout": "timeout",
    "safe_mode": "skip",
    "worker_lost": "error",
    "resource_limit": "error",
}
"""``cicd.pipeline.result`` by ``stop_reason``: a failure is the work's own, an error is that of what it runs on."""
BAD = frozenset({"failure", "error", "timeout"})


@dataclass(slots=True)
class Span:
    """One piece of work: ``start`` and ``end`` in seconds since the epoch; ``error`` says what went wrong, if so."""

    name: str
    context: SpanContext
    parent: str | None
    start: float
    end: float
    attributes: dict[str, Value] = field(default_factory=dict)
    error: str | None = None
    server: bool = False
    link: SpanContext | None = None


def spans(stream: str, events: Sequence[Event], steps: Steps, name: str) -> list[Span]:
    """All spans of a run or a build that has ended; none where who asked for it keeps no trace.

    ``events`` are the control events of its feed, ``steps`` what its engine told, ``name`` that of its config.
    """
    own = [event for event in events if event.stream == stream]
    created, completed = own[0], own[-1]
    kind = stream.partition("_")[0]
    given = created.data.get("traceparent")
    context = span_of(stream, given)
    if not context.sampled:
        return []
    parent = parse(given)
    result = RESULTS.get(completed.data["stop_reason"], "failure")
    root = Span(
        f"{kind.upper()} {name}",
        context,
        parent.span_id if parent else None,
        created.recorded_at,
        completed.recorded_at,
        {
            "cicd.pipeline.name": name,
            "cicd.pipeline.run.id": stream,
            "cicd.pipeline.action.name": kind.upper(),
            "cicd.pipeline.result": result,
            "ade.stop_reason": completed.data["stop_reason"],
            "ade.workspace_id": created.workspace,
            "ade.config_id": created.data["config_id"],
            "ade.config_version": created.data["config_version"],
            "ade.requested_by": created.data["requested_by"],
        },
        server=True,
        link=_build_elsewhere(context, events, created.data.get("build_id")),
    )
    if completed.data.get("exit_code") is not None:
        root.attributes["process.exit.code"] = completed.data["exit_code"]
    if result in BAD:
        root.attributes["error.type"] = completed.data["stop_reason"]
        root.error = completed.data["error_message"] or ""
    history = _History(root, kind)
    for event in own[1:]:
        history.take(event)
    return [root, *history.spans, *_told(steps, history)]


def _build_elsewhere(context: SpanContext, events: Iterable[Event], build_id: str | None) -> SpanContext | None:
    """The build that the run uses, where it lies in another trace: who came first has it."""
    for event in events:
        if event.stream == build_id and event.type == "build.created":
            build = span_of(event.stream, event.data.get("traceparent"))
            return None if build.trace_id == context.trace_id else build
    return None


class _History:
    """The attempts of a run or a build, the times in the queue before them, and the steps within them."""

    def __init__(self, root: Span, kind: str) -> None:
        self.spans: list[Span] = []
        self.attempts: list[tuple[int, Span]] = []
        """Each with the id of the event that began it."""
        self.root, self._kind = root, kind
        self._waiting_since: float | None = root.start
        self._attempt: Span | None = None
        self._steps: dict[str, Span] = {}

    def take(self, event: Event) -> None:
        """The next event of its stream."""
        at, data = event.recorded_at, event.data
        match event.type.partition(".")[2]:
            case "started":
                self._queued(at, data["attempt"])
                self._begin(event)
            case "step" if data["status"] == "started" and self._attempt is not None:
                self._steps[data["step"]] = self._span(
                    self._attempt, data["step"], f"{event.stream}/{event.seq}", at, data["step"]
                )
                self._steps[data["step"]].attributes["cicd.pipeline.task.type"] = "build"
            case "step" if (step := self._steps.pop(data["step"], None)) is not None:
                _end(step, at, "success" if data["status"] == "completed" else "failure", data.get("message"))
            case "lost":
                self._finish(at, "error", data["reason"])
                self._waiting_since = at if data["next"] == "retry" else None
            case "completed":
                self._queued(at, 0)  # it never came to its turn
                self._finish(at, str(self.root.attributes["cicd.pipeline.result"]), self.root.error)

    def _begin(self, event: Event) -> None:
        number, stream = event.data["attempt"], event.stream
        task = "engine" if event.data.get("command") else "attempt"
        self._attempt = self._span(self.root, task, f"{stream}/{number}", event.recorded_at, f"{task}/{number}")
        self._attempt.attributes |= {"cicd.worker.id": event.data["worker_id"], "ade.attempt": number}
        self.attempts.append((event.id, self._attempt))

    def _queued(self, at: float, attempt: int) -> None:
        if self._waiting_since is None:
            return
        root = self.root
        name = f"{root.attributes['cicd.pipeline.run.id']}/queued/{attempt}"
        span = Span("queued", root.context.child(name), root.context.span_id, self._waiting_since, at)
        span.attributes["cicd.pipeline.run.state"] = "pending"
        self.spans.append(span)
        self._waiting_since = None

    def _span(self, within: Span, name: str, identity: str, start: float, task: str) -> Span:
        span = Span(name, within.context.child(identity), within.context.span_id, start, start)
        run = within.attributes.get("cicd.pipeline.task.run.id", self.root.attributes["cicd.pipeline.run.id"])
        span.attributes = {"cicd.pipeline.task.name": name, "cicd.pipeline.task.run.id": f"{run}/{task}"}
        self.spans.append(span)
        return span

    def _finish(self, at: float, result: str, error: str | None) -> None:
        """The attempt is over, and so is what it was at."""
        if self._attempt is not None:
            for span in (*self._steps.values(), self._attempt):
                _end(span, at, result, error)
        self._attempt = None
        self._steps.clear()


def _end(span: Span, end: float, result: str, error: str | None) -> None:
    span.end = end
    span.attributes["cicd.pipeline.task.run.result"] = result
    if result in BAD:
        span.error = error or ""


def _told(steps: Steps, history: _History) -> Iterable[Span]:
    """The steps that the engine told of, each within its attempt."""
    made: dict[int, Span] = {}
    stream = history.root.attributes["cicd.pipeline.run.id"]
    for step in steps.found:
        attempt = next((span for first_id, span in reversed(history.attempts) if first_id < step.id), None)
        if attempt is None:
            continue
        within = made[step.within.id] if step.within is not None else attempt
        end = max(attempt.end, step.start) if step.end is None else step.end
        span = Span(
            step.name, attempt.context.child(f"{stream}/event/{step.id}"), within.context.span_id, step.start, end
        )
        span.attributes = {"cicd.pipeline.task.name": step.stem, **step.attributes}
        if step.result is not None:
            span.attributes["cicd.pipeline.task.run.result"] = step.result
        span.error = step.error
        made[step.id] = span
        yield span
    if steps.left_out:
        history.root.attributes["ade.steps_left_out"] = steps.left_out
