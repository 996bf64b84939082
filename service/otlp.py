"""Spans on the wire: OTLP over HTTP, as protobuf. The messages are OpenTelemetry's own (extra `otel`).

Its exporter is not used: it gives up after ten seconds and drops what it has, and takes 429 for a refusal. Here the log
keeps everything, so what a receiver cannot take now is sent later, and only what it refuses for its content is dropped.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import httpx

from projections.spans import Span
from projections.steps import Value

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message

TIMEOUT_S = 10.0
PATH = "/v1/traces"
REFUSED_FOR_CONTENT = frozenset({400, 413, 422})


def installed() -> bool:
    """Whether the extra `otel` is."""
    try:
        return find_spec("opentelemetry.proto") is not None
    except ModuleNotFoundError:
        return False


class Busy(Exception):
    """The receiver cannot take it now, or says that we may not. ``wait_s``: what it asks for, if it does."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Receiver:
    """Where spans are sent. ``endpoint`` is its base, as in ``OTEL_EXPORTER_OTLP_ENDPOINT``."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], resource: Mapping[str, Value]) -> None:
        self._url = endpoint.rstrip("/").removesuffix(PATH) + PATH
        self._headers = {**headers, "Content-Type": "application/x-protobuf"}
        self._resource = resource

    async def send(self, spans: Sequence[Span]) -> str | None:
        """The spans are with the receiver; or why it will never take them, or some of them. Raises :class:`Busy`."""
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
                answer = await client.post(self._url, content=self._encode(spans), headers=self._headers)
        except httpx.HTTPError as error:
            raise Busy(f"{type(error).__name__} {error}") from error
        if answer.is_success:
            return _partly_refused(answer.content)
        reason = f"HTTP {answer.status_code}: {answer.text[:200]}"
        if answer.status_code in REFUSED_FOR_CONTENT:
            return reason
        asked = answer.headers.get("retry-after", "")
        raise Busy(reason, float(asked) if asked.isdigit() else None)

    def _encode(self, spans: Sequence[Span]) -> bytes:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        request = ExportTraceServiceRequest()
        of_resource = request.resource_spans.add()
        _attributes(of_resource.resource.attributes, self._resource)
        of_scope = of_resource.scope_spans.add()
        of_scope.scope.name = "ade-runs"
        for span in spans:
            _message(of_scope.spans.add(), span)
        encoded: bytes = request.SerializeToString()
        return encoded


def _message(message: "Message", span: Span) -> None:
    message.name = span.name
    message.trace_id, message.span_id = bytes.fromhex(span.context.trace_id), bytes.fromhex(span.context.span_id)
    message.flags = int(span.context.flags, 16)
    if span.parent is not None:
        message.parent_span_id = bytes.fromhex(span.parent)
    message.kind = message.SPAN_KIND_SERVER if span.server else message.SPAN_KIND_INTERNAL
    message.start_time_unix_nano, message.end_time_unix_nano = int(span.start * 1e9), int(span.end * 1e9)
    _attributes(message.attributes, span.attributes)
    if span.error is not None:
        message.status.code, message.status.message = message.status.STATUS_CODE_ERROR, span.error
    if span.link is not None:
        link = message.links.add()
        link.trace_id, link.span_id = bytes.fromhex(span.link.trace_id), bytes.fromhex(span.link.span_id)


def _attributes(of: Any, attributes: Mapping[str, Value]) -> None:
    for name, value in attributes.items():
        found = of.add(key=name).value
        match value:
            case bool():
                found.bool_value = value
            case int() if -(2**63) <= value < 2**63:
                found.int_value = value
            case int() | float():
                found.double_value = float(value)
            case str():
                found.string_value = value


def _partly_refused(content: bytes) -> str | None:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        refused = ExportTraceServiceResponse.FromString(content).partial_success
    except DecodeError:  # some answer with JSON, or with a page
        return None
    return f"{refused.rejected_spans} spans: {refused.error_message}" if refused.rejected_spans else None
