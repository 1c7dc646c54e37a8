"""What needs OpenTelemetry's packages: facts into the SDK's own objects, and those through its exporters by HTTP.

Imported only where OTLP is switched on. Each thing is sent once; what came of it is an `Answer`. Leaves out what to
make of that, and when to try again (`otlp`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status as RpcStatus
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from llm_proxy.formats.otel import SCHEMA_URL, Ids, Span
from llm_proxy.formats.otel_metrics import INSTRUMENTS, Key, Series

Point = tuple[Key, Series, int]  # which, its totals, at which time (nanoseconds since 1970)

_DEFAULT = "http://localhost:4318"  # the exporter's own
_TIMEOUT, _LONGEST_TIMEOUT = 10.0, 60.0  # seconds
_LONGEST_ANSWER = 64 << 10  # bytes
_LONGEST_WORDS = 300  # characters
_VARIABLE = "OTEL_EXPORTER_OTLP_"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request. `status` is None where none came; `words` say why, or what the receiver said.

    `rejected`: how many of the things sent it threw away, although it took the others. `sent` is False where it never
    came to a request.
    """

    status: int | None = None
    words: str = ""
    retry_after: str = ""
    rejected: int = 0
    sent: bool = True


class _Session(requests.Session):
    """Notes what was answered, and keeps the exporter from trying again: it would wait, and forget why."""

    def __init__(self, response_type: Any, secrets: Iterable[str]) -> None:
        super().__init__()
        self.auth = _as_it_is  # else requests looks for credentials in ~/.netrc
        self.answer = Answer(sent=False)
        self._response_type = response_type
        self._secrets = tuple(value for value in secrets if value)

    def request(self, method: Any, url: Any, *arguments: Any, **how: Any) -> requests.Response:
        try:
            how |= {"stream": True, "verify": self.verify}  # else a variable for all programs beats our certificate
            with super().request(method, url, *arguments, **how) as response:
                # A receiver may be anybody: no more is read than an answer needs.
                data = response.raw.read(_LONGEST_ANSWER, decode_content=True) or b""
        except Exception as error:
            self.answer = Answer(words=self._plain(_reason(error)))
            raise _Said from None
        self.answer = self._judged(response, data)
        raise _Said

    def _judged(self, response: requests.Response, data: bytes) -> Answer:
        status = response.status_code
        form = response.headers.get("content-type", "")
        retry_after = response.headers.get("retry-after", "")
        if status != 200 and status != 202:
            words = self._plain(_words(form, data)) if status not in (401, 403) else ""
            return Answer(status, f"{response.reason or ''}{': ' if words else ''}{words}".strip(), retry_after)
        if "protobuf" not in form:  # some take the data and answer in JSON, or nothing
            return Answer(status)
        try:
            partial = self._response_type.FromString(data).partial_success
        except DecodeError:
            return Answer(status)
        rejected = getattr(partial, "rejected_spans", 0) or getattr(partial, "rejected_data_points", 0)
        return Answer(status, self._plain(partial.error_message), rejected=rejected)

    def _plain(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[masked]")
        return "".join(one if one.isprintable() else " " for one in text[:_LONGEST_WORDS]).strip()


class _Said(Exception):
    """For the exporter, which tries again after errors that it knows; the session has noted what came."""


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _reason(error: BaseException) -> str:
    """The innermost reason: what lies around it repeats the address, which may hold a key."""
    chain: list[BaseException] = []
    following: Any = error
    while isinstance(following, BaseException) and following not in chain and len(chain) < 20:
        chain.append(following)
        inner = [following.__cause__, following.__context__, getattr(following, "reason", None), *following.args]
        following = next((one for one in inner if isinstance(one, BaseException) and one not in chain), None)
    if isinstance(chain[-1], TimeoutError):
        return "timed out"
    told = (one.strerror or str(one.args[-1]) for one in reversed(chain) if isinstance(one, OSError) and one.errno)
    return next(told, type(chain[-1]).__name__)


def _words(form: str, data: bytes) -> str:
    """What a receiver says of a failure: `google.rpc.Status` as the protocol wants it, or some text."""
    if "protobuf" in form:
        try:
            return str(RpcStatus.FromString(data).message)
        except DecodeError:
            return ""
    return "" if "html" in form else data.decode("utf-8", "replace")


class Sender:
    """Both exporters. Not to be shared between threads. Raises ValueError for what cannot be an address."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        base = str(options.get("endpoint") or "").rstrip("/").removesuffix("/v1/traces")
        headers = {str(name): str(value) for name, value in options.get("headers") or ()}
        if base:
            # Credentials that were meant for where the environment points must not go somewhere else.
            for name in ("HEADERS", "TRACES_HEADERS", "METRICS_HEADERS"):
                os.environ.pop(_VARIABLE + name, None)
        secrets = {part for value in headers.values() for part in (value, value.partition(" ")[2])}
        secrets |= {
            part.partition("=")[2] for name in ("", "TRACES_", "METRICS_") for part in _env(f"{name}HEADERS").split(",")
        }
        self._spans_session = _Session(ExportTraceServiceResponse, secrets)
        self._metrics_session = _Session(ExportMetricsServiceResponse, secrets)
        how: dict[str, Any] = {
            "headers": headers,
            "certificate_file": options.get("certificate") or None,
            "timeout": _timeout(options),
            "max_request_size": 0,
        }
        self._spans = OTLPSpanExporter(
            endpoint=f"{base}/v1/traces" if base else None,
            compression=_compression(options, "TRACES_"),
            session=self._spans_session,
            **how,
        )
        self._metrics = OTLPMetricExporter(
            endpoint=f"{base}/v1/metrics" if base else None,
            compression=_compression(options, "METRICS_"),
            session=self._metrics_session,
            **how,
        )
        self.place = _place(base or _env("TRACES_ENDPOINT") or _env("ENDPOINT") or _DEFAULT)
        self._resource = _resource(options)
        self._scope = InstrumentationScope("llm_proxy", str(options.get("version") or ""), SCHEMA_URL)

    def send_spans(self, spans: Sequence[Span]) -> Answer:
        self._spans_session.answer = Answer(sent=False)
        self._spans.export([self._span(one) for one in spans])
        return self._spans_session.answer

    def send_metrics(self, start_ns: int, points: Sequence[Point]) -> Answer:
        metrics = [
            Metric(one.name, one.description, one.unit, Histogram(told, AggregationTemporality.CUMULATIVE))
            for one in INSTRUMENTS.values()
            if (told := [_data_point(start_ns, point) for point in points if point[0][0] == one.name])
        ]
        scoped = ScopeMetrics(self._scope, metrics, SCHEMA_URL)
        self._metrics_session.answer = Answer(sent=False)
        self._metrics.export(MetricsData([ResourceMetrics(self._resource, [scoped], SCHEMA_URL)]))
        return self._metrics_session.answer

    def close(self) -> None:
        for exporter in (self._spans, self._metrics):
            exporter.shutdown()

    def _span(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=_context(span.ids),
            parent=_context(span.parent, remote=True) if span.parent is not None else None,
            resource=self._resource,
            attributes=span.attributes,
            links=[Link(_context(span.link, remote=True))] if span.link is not None else (),
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR, span.why or None) if span.failed else Status(StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )


def _context(ids: Ids, *, remote: bool = False) -> SpanContext:
    return SpanContext(ids.trace, ids.span, remote, TraceFlags(TraceFlags.SAMPLED))


def _data_point(start_ns: int, point: Point) -> HistogramDataPoint:
    (name, attributes), series, at_ns = point
    return HistogramDataPoint(
        attributes=dict(attributes),
        start_time_unix_nano=start_ns,
        time_unix_nano=at_ns,
        count=series.count,
        sum=series.sum,
        bucket_counts=series.buckets,
        explicit_bounds=INSTRUMENTS[name].boundaries,
        min=series.low,
        max=series.high,
    )


def _resource(options: Mapping[str, Any]) -> Resource:
    """Whose data it is; the standard variables (OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME) say it too."""
    facts = {"host.name": platform.node(), "service.version": str(options.get("version") or "")}
    if options.get("instance"):
        facts["service.instance.id"] = str(options["instance"])
    # What `create` finds includes an id of the process, and ours has to outlive it.
    found = Resource.create(facts, SCHEMA_URL).merge(OTELResourceDetector().detect())
    service = str(options.get("service_name") or "")
    if not service and str(found.attributes.get("service.name", "")).startswith("unknown_service"):
        service = "llm-proxy"
    return found.merge(Resource({"service.name": service})) if service else found


def _env(name: str) -> str:
    return os.environ.get(_VARIABLE + name, "")


def _compression(options: Mapping[str, Any], signal: str) -> Compression | None:
    """None: as the environment says."""
    given = str(options.get("compression") or "")
    if not given and (_env(f"{signal}COMPRESSION") or _env("COMPRESSION")):
        return None
    return Compression.NoCompression if given == "none" else Compression.Gzip


def _timeout(options: Mapping[str, Any]) -> float:
    """Seconds. The specification has milliseconds in the variable, the SDK seconds: nobody means 1000 s."""
    try:
        seconds = float(options.get("timeout") or _env("TIMEOUT") or _TIMEOUT)
    except ValueError:
        return _TIMEOUT
    seconds = seconds / 1000 if seconds >= 1000 else seconds
    return min(seconds, _LONGEST_TIMEOUT) if seconds > 0 else _TIMEOUT


def _place(url: str) -> str:
    """Host and port, without what may be secret."""
    parts = urlsplit(url)
    return f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
