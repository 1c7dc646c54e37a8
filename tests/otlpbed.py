"""A receiver of OTLP/HTTP as a collector is one: decodes what comes with the protocol's own definitions, and says what it is told to."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

REQUESTS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}
RESPONSES = {"/v1/traces": ExportTraceServiceResponse, "/v1/metrics": ExportMetricsServiceResponse}


@dataclass
class Reply:
    """What is said next. `rejected` things are thrown away of what is taken; `hangs` takes all and says nothing."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    rejected: int = 0
    hangs: bool = False


@dataclass
class Got:
    """A request that was taken or not: `status` is what was answered."""

    path: str
    at: float  # monotonic
    headers: dict[str, str]
    raw: bytes  # as it was sent, decompressed
    request: Any
    status: int


class Receiver:
    """`replies` are used up in order, by path; when there are none, `judge` may say something, else all is well."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.got: list[Got] = []
        self.replies: dict[str, deque[Reply]] = {path: deque() for path in REQUESTS}
        self.judge: Callable[[str, Any], Reply | None] = lambda path, request: None
        self.news = threading.Condition()
        self._released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Senders may leave at any time."""

        self._server = Server(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "http" if context is None else "https"
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, true: Any, timeout: float = 20) -> Any:
        """Until it is true of this receiver; what it gave."""
        with self.news:
            deadline = time.monotonic() + timeout
            while not (found := true(self)):
                left = deadline - time.monotonic()
                assert left > 0, [(one.path, one.status) for one in self.got]
                self.news.wait(left)
            return found

    def taken(self, path: str) -> list[Any]:
        return [one.request for one in self.got if one.path == path and one.status == 200]

    def spans(self) -> list[Any]:
        """All that were taken, with those that came twice."""
        return [
            span
            for request in self.taken("/v1/traces")
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def calls(self) -> dict[str, set[tuple[bytes, bytes]]]:
        """Call -> the ids under which its span came."""
        found: dict[str, set[tuple[bytes, bytes]]] = {}
        for span in self.spans():
            found.setdefault(attributes(span)["llm_proxy.call.id"], set()).add((span.trace_id, span.span_id))
        return found

    def points(self, name: str) -> list[Any]:
        return [
            point
            for request in self.taken("/v1/metrics")
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.histogram.data_points
        ]

    def last(self, name: str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """Attributes -> the newest point of that histogram."""
        return {
            tuple(sorted(attributes(point).items())): point
            for point in sorted(self.points(name), key=lambda one: one.time_unix_nano)
        }

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        if handler.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        path = handler.path
        with self.news:
            queued = self.replies.get(path)
            request = REQUESTS[path].FromString(body) if path in REQUESTS else None
            usual = self.judge(path, request) or Reply(200 if path in REQUESTS else 404)
            reply = queued.popleft() if queued else usual
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.got.append(Got(path, time.monotonic(), headers, body, request, 0 if reply.hangs else reply.status))
            self.news.notify_all()
        if reply.hangs:
            self._released.wait(60)
            handler.close_connection = True
            return
        data = self._said(path, reply)
        handler.send_response(reply.status)
        for name, value in ({"Content-Type": "application/x-protobuf"} | reply.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _said(self, path: str, reply: Reply) -> bytes:
        if reply.status != 200:
            return Status(code=3, message=reply.message).SerializeToString()
        said = RESPONSES[path]()
        if reply.rejected or reply.message:
            what = "rejected_spans" if path == "/v1/traces" else "rejected_data_points"
            setattr(said.partial_success, what, reply.rejected)
            said.partial_success.error_message = reply.message
        return bytes(said.SerializeToString())


def attributes(told: Any) -> dict[str, Any]:
    """Of a span, a point or a resource."""
    return {one.key: value(one.value) for one in told.attributes}


def value(told: Any) -> Any:
    kind = told.WhichOneof("value")
    if kind == "array_value":
        return tuple(value(one) for one in told.array_value.values)
    return getattr(told, kind)
