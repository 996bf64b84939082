"""A receiver of OpenTelemetry's traces, as a real HTTP server: it decodes what comes, and answers as it is told to."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class OtlpReceiver:
    """What has arrived, by span id, and how often."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: dict[bytes, Span] = {}
        self.arrivals = 0
        self.resource: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.path = ""
        self.refusals: deque[int] = deque()
        """Statuses to answer with, one a request, before it takes anything."""
        self.taken = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if self.refusals:
            return self.refusals.popleft(), b"not now"
        self.path, self.headers = path, headers
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = attributes(of_resource.resource)
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self.spans[span.span_id] = span
                    self.arrivals += 1
        self.taken.set()
        self.may_answer.wait(30)
        return 200, ExportTraceServiceResponse().SerializeToString()

    def of(self, run: str) -> Span | None:
        """The span of a run or a build as a whole."""
        found = [
            s
            for s in self.spans.values()
            if attributes(s).get("cicd.pipeline.run.id") == run and s.kind == s.SPAN_KIND_SERVER
        ]
        assert len(found) < 2, found
        return found[0] if found else None

    def below(self, span: Span) -> dict[str, Span]:
        """Its children, by name."""
        return {found.name: found for found in self.spans.values() if found.parent_span_id == span.span_id}


def attributes(of: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


@contextmanager
def receiving() -> Iterator[OtlpReceiver]:
    """A receiver that listens for as long as the block lasts."""
    receiver = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = receiver.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                if status >= 400:
                    self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(answer)
            except BrokenPipeError:
                pass  # the sender was killed

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield receiver
        finally:
            receiver.may_answer.set()
            server.shutdown()
