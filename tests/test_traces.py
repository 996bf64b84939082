"""Spans: a real receiver of OTLP is told what runs and builds did, whoever is killed; engines are told their place."""

import os
import signal
from collections.abc import Iterator

import anyio
import httpx
import orjson
import pytest
from opentelemetry.semconv._incubating.attributes import cicd_attributes

from projections import events
from service import span_sender
from service.otlp import Receiver
from service.span_sender import SpanSender
from tests import engine
from tests.conftest import Server, Service, Store, own_service
from tests.histories import rows, run_created, run_started, tell
from tests.otlp import OtlpReceiver, attributes, receiving
from tests.test_serve import processes

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SCRIPT = """
import json
def say(event, **members): print(json.dumps({"event": event, **members}))
print('I am', os.environ['TRACEPARENT'])
say('engine.file.started', data={'name': 'penguins.csv', 'gen_ai.request.model': 'm1', 'cicd.pipeline.name': 'forged'})
say('engine.file.row.started')
say('engine.file.row.failed', error={'message': 'no such row'})
say('engine.file.completed', data={'rows': 344})
say('engine.rest.started')
"""


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def traced(server: Server, receiver: OtlpReceiver) -> Iterator[Service]:
    """A service that sends spans."""
    settings = {"ADE_OTLP_ENDPOINT": receiver.url, "ADE_OTLP_HEADERS": "x-api-key=of%20a%20receiver,x-project=ade"}
    with own_service(server, **settings) as running:
        yield running


def complete(stop_reason: events.StopReason = "completed") -> events.RunCompleted:
    status: events.RunEnd = "succeeded" if stop_reason == "completed" else "failed"
    return events.RunCompleted(
        status=status, exit_code=0, error_message="why", stop_reason=stop_reason, summary=None, result=None,
        duration_ms=1, lines=0, bytes=0,
    )  # fmt: skip


def test_a_run_is_a_trace_from_its_caller_to_the_steps_of_its_engine(traced: Service, receiver: OtlpReceiver) -> None:
    """The caller's span ─► run ─► queued, build (made for it) ─► steps, engine ─► its steps, nested; the engine was
    told its own span; the names are those of the conventions; and a projector that is killed after the receiver has
    taken spans, before it hears of that, sends the same ones again, and no others."""
    receiver.may_answer.clear()
    with traced.http as http:
        config = engine.actor(http)
        body = {"options": {"engine_args": [SCRIPT]}}
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        run = engine.told(http.post(f"/configs/{config}/runs", json=body, headers=headers))
        said = [orjson.loads(line) for line in engine.feed(http, run["id"])]
        assert receiver.taken.wait(30)
        os.kill(processes(traced)["projector"], signal.SIGKILL)
        receiver.may_answer.set()
        engine.eventually(lambda: receiver.of(run["id"]), "the run's span has arrived")

        root = receiver.of(run["id"])
        assert root is not None
        build = receiver.of(run["build_id"])
        assert build is not None
        assert {span.trace_id.hex() for span in receiver.spans.values()} == {TRACE}
        assert (root.parent_span_id.hex(), root.name) == (CALLER, "RUN actor")
        assert (build.parent_span_id, build.name) == (root.span_id, "BUILD actor")
        assert receiver.below(root).keys() == {"queued", "engine", "BUILD actor"}
        assert receiver.below(receiver.below(build)["attempt"]).keys() == {
            *("create_venv", "install_engine", "install_config", "verify_imports", "collect_metadata")
        }
        ran = receiver.below(root)["engine"]
        assert f"I am 00-{TRACE}-{ran.span_id.hex()}-01" in [event.get("message") for event in said]
        file = receiver.below(ran)["file penguins.csv"]
        row = receiver.below(file)["file.row"]
        assert receiver.below(ran).keys() == {"file penguins.csv", "rest"}
        assert (row.status.code, row.status.message) == (row.status.STATUS_CODE_ERROR, "no such row")
        assert root.start_time_unix_nano <= ran.start_time_unix_nano <= row.start_time_unix_nano
        assert row.end_time_unix_nano <= file.end_time_unix_nano <= ran.end_time_unix_nano <= root.end_time_unix_nano

        told = attributes(file)
        assert (told["engine.data.rows"], told["gen_ai.request.model"]) == (344, "m1")
        assert told["engine.data.cicd.pipeline.name"] == "forged"
        assert told["cicd.pipeline.task.run.result"] == "success"
        assert attributes(root)["cicd.pipeline.result"] == "success"
        used = {name for span in receiver.spans.values() for name in attributes(span) if name.startswith("cicd.")}
        assert used <= {value for name, value in vars(cicd_attributes).items() if name.isupper()}
        assert (receiver.path, receiver.headers["x-api-key"]) == ("/v1/traces", "of a receiver")
        assert receiver.resource["service.name"] == "ade"
        assert receiver.arrivals > len(receiver.spans)  # the build's came twice, and were the same
        assert "of a receiver" not in traced.log.read_text()


def test_an_engine_is_told_its_place_where_nobody_receives_spans(service: Service, http: httpx.Client) -> None:
    """TRACEPARENT is there without a receiver, and without a caller's; a header that is none is passed over."""
    config = engine.actor(http)
    script = "print(os.environ['TRACEPARENT'])"
    for given in (None, "00-nonsense", f"00-{'0' * 32}-{CALLER}-01"):
        headers = {} if given is None else {"traceparent": given}
        body = {"options": {"engine_args": [script]}}
        run = engine.told(http.post(f"/configs/{config}/runs", json=body, headers=headers))
        created, *_, line, _ = [orjson.loads(line) for line in engine.feed(http, run["id"])]
        assert "traceparent" not in created
        assert line["message"].startswith("00-")
        assert TRACE not in line["message"]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [429, 503, 401, 404])
async def test_what_a_receiver_cannot_take_is_sent_later(
    store: Store, receiver: OtlpReceiver, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is dropped for a receiver that is busy, or has another key; nor is any sent twice once it said yes."""
    monkeypatch.setattr(span_sender, "PAUSE_S", (0.01, 0.02))
    sender = SpanSender(store.database, store.log, Receiver(receiver.url, {}, {}))
    assert not await sender.step()
    for run in ("run_1", "run_2"):
        await tell(store, run, run_created(), run_started(), complete().event())
    receiver.refusals.extend([status, status])
    with anyio.fail_after(60):
        while receiver.refusals:
            assert await sender.step()
        assert not await sender.step()
    assert receiver.of("run_1")
    assert receiver.of("run_2")
    assert not await SpanSender(store.database, store.log, Receiver(receiver.url, {}, {})).step()
    assert receiver.arrivals == len(receiver.spans) == 6


@pytest.mark.anyio
async def test_what_it_refuses_for_its_content_stops_nothing(store: Store, receiver: OtlpReceiver) -> None:
    """It is passed over, counted, and the next ones arrive. What ended before the first start is not sent at all, nor
    what belongs to a trace that its caller does not keep."""
    await tell(store, "run_0", run_created(), complete().event())
    sender = SpanSender(store.database, store.log, Receiver(receiver.url, {}, {}))
    await sender.step()
    await tell(store, "run_1", run_created(), complete().event())
    receiver.refusals.append(400)
    assert not await sender.step()
    unsampled = events.read("run.created", orjson.loads(run_created().data))
    assert unsampled is not None
    unsampled = unsampled.model_copy(update={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    await tell(store, "run_2", unsampled.event(), complete().event())
    await tell(store, "run_3", run_created(), run_started(), complete("timeout").event())
    assert not await sender.step()
    roots = [
        attributes(span)["cicd.pipeline.run.id"]
        for span in receiver.spans.values()
        if span.kind == span.SPAN_KIND_SERVER
    ]
    assert roots == ["run_3"]
    root = receiver.of("run_3")
    assert root is not None
    assert (attributes(root)["cicd.pipeline.result"], attributes(root)["error.type"]) == ("timeout", "timeout")
    assert root.status.message == "why"
    assert rows(store.database.url, "SELECT id FROM checkpoints WHERE projection = 'traces'") == [{"id": 9}]
