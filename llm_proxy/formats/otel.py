"""A call as OpenTelemetry tells it: the facts of one span, by the GenAI semantic conventions of version 1.41.1.

That is the last version in which the conventions stood beside all others; they are in development and have moved since.
Pure: the same call makes the same span with the same ids, however often it is told. Leaves out sums (`otel_metrics`)
and sending (`lanes.otlp`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from llm_proxy.dialects.digest import Digest
from llm_proxy.formats.call import Call, headers_of
from llm_proxy.formats.otel_content import content

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.1"

Value = str | bool | int | float | tuple[str, ...]

_LONGEST = 255  # characters of a name
_MOST = 32  # texts of a list
_LARGEST = (1 << 63) - 1  # what an integer of an attribute holds

# What is done, by API; the conventions allow names of one's own where theirs say nothing.
OPERATIONS = {
    "anthropic.messages": "chat",
    "anthropic.count_tokens": "count_tokens",
    "anthropic.batches": "batch",
    "bedrock.converse": "chat",
    "bedrock.invoke": "chat",
    "bedrock.count_tokens": "count_tokens",
    "openai.chat": "chat",
    "openai.completions": "text_completion",
    "openai.embeddings": "embeddings",
    "openai.responses": "chat",
    "gemini.generate": "generate_content",
    "gemini.count_tokens": "count_tokens",
    "gemini.embed": "embeddings",
    "ollama.chat": "chat",
}

# Who answers, by the upstream's name and, where that says nothing, by whose API it speaks.
_HOSTS = (
    (re.compile(r"(?:.*\.)?anthropic\.com"), "anthropic"),
    (re.compile(r"(?:.*\.)?openai\.azure\.com"), "azure.ai.openai"),
    (re.compile(r".*\.(?:inference|services)\.ai\.azure\.com"), "azure.ai.inference"),
    (re.compile(r"(?:.*\.)?(?:openai|chatgpt)\.com"), "openai"),
    (re.compile(r"generativelanguage\.googleapis\.com"), "gcp.gemini"),
    (re.compile(r"(?:.*[.-])?aiplatform\.googleapis\.com"), "gcp.vertex_ai"),
    (re.compile(r"(?:.*\.)?bedrock[a-z-]*\..*\.amazonaws\.com"), "aws.bedrock"),
    (re.compile(r"(?:.*\.)?x\.ai"), "x_ai"),
    (re.compile(r"(?:.*\.)?deepseek\.com"), "deepseek"),
    (re.compile(r"(?:.*\.)?groq\.com"), "groq"),
    (re.compile(r"(?:.*\.)?mistral\.ai"), "mistral_ai"),
    (re.compile(r"(?:.*\.)?perplexity\.ai"), "perplexity"),
    (re.compile(r"(?:.*\.)?cohere\.(?:com|ai)"), "cohere"),
    (re.compile(r".*\.ml\.cloud\.ibm\.com"), "ibm.watsonx.ai"),
)
_SPEAKERS = {"bedrock": "aws.bedrock", "gemini": "gcp.gemini"}

_OPENAI_APIS = {"openai.chat": "chat_completions", "openai.responses": "responses"}

# W3C Trace Context: version, trace, parent, flags. Later versions may say more behind these.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")


@dataclass(frozen=True, slots=True)
class Ids:
    """`trace` has 128 bits, `span` 64; neither is 0."""

    trace: int
    span: int


@dataclass(frozen=True, slots=True)
class Span:
    """One call. Times are nanoseconds since 1970. `failed` with `why`, which may be empty.

    `parent`: the caller's own span, where its request names it. `link`: the first call of the same session.
    """

    name: str
    ids: Ids
    parent: Ids | None
    link: Ids | None
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    failed: bool
    why: str


def span_of(call: Call, *, with_content: bool = False) -> Span:
    """The span of a finished call. Without `with_content` it holds no word of what was said."""
    row = call.row
    operation = OPERATIONS.get(row.api, "")
    told: dict[str, Value] = {}
    if operation:
        told |= _asked_and_answered(call, operation)
        if with_content:
            told |= content(call)
    told |= _about(call)
    model = told.get("gen_ai.request.model", "")
    name = f"{operation} {model}".strip() if operation else row.method or "HTTP"
    parent = _parent(call)
    start = row.started_ns
    end = max(start, row.ended_ns if row.ended_ns is not None else start + (row.total_ms or 0) * 1_000_000)
    return Span(
        name=name,
        ids=_ids(call, parent),
        parent=parent,
        link=_first_of(row.session) if parent is None and operation and row.session and row.seq > 1 else None,
        start_ns=start,
        end_ns=end,
        attributes={key: _sound(value) for key, value in told.items() if value not in ("", None, ())},
        failed=row.failed,
        why=_clean(_why(call, with_content)) if row.failed else "",
    )


# --- which span it is


def _ids(call: Call, parent: Ids | None) -> Ids:
    """A trace per call, because sessions go on for days. That of a session's first call follows from the session alone,
    so that the later ones can link to it."""
    row = call.row
    if row.session and row.seq == 1:
        first = _first_of(row.session)
        return first if parent is None else Ids(parent.trace, first.span)
    trace = parent.trace if parent is not None else _number(16, "trace", row.id)
    return Ids(trace, _number(8, "span", row.id))


def _first_of(session: str) -> Ids:
    return Ids(_number(16, "session trace", session), _number(8, "session span", session))


def _number(size: int, kind: str, name: str) -> int:
    said = f"llm-proxy {kind}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(sha256(said).digest()[:size], "big") or 1


def _parent(call: Call) -> Ids | None:
    values = next((v for name, v in headers_of(call.request).items() if name.lower() == "traceparent"), [])
    match = _TRACEPARENT.fullmatch(values[0].strip()) if len(values) == 1 else None
    found = Ids(int(match[1], 16), int(match[2], 16)) if match is not None else None
    return found if found is not None and found.trace and found.span else None


# --- what it tells


def _asked_and_answered(call: Call, operation: str) -> dict[str, Value]:
    row, digest = call.row, call.digest
    streamed = digest.asked.stream or call.streamed
    told: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _provider(row.upstream, row.api),
        "gen_ai.conversation.id": row.session,
        "gen_ai.request.model": digest.asked.model or row.model,  # where the body is not kept
    }
    told |= _parameters(call, digest)
    if streamed:
        told["gen_ai.request.stream"] = True
        told |= _waits(call)
    told |= {
        "gen_ai.response.model": next((one.model for one in reversed(digest.answers) if one.model), ""),
        "gen_ai.response.id": row.response_id,
        "gen_ai.response.finish_reasons": tuple(one.stop_reason for one in digest.answers if one.stop_reason)[:_MOST],
    }
    if row.api in _OPENAI_APIS:
        told["openai.api.type"] = _OPENAI_APIS[row.api]
        told["openai.response.service_tier"] = row.service_tier
    elif row.service_tier:
        told["llm_proxy.service_tier"] = row.service_tier
    usage = row.usage
    if usage is not None:
        # The conventions count all that went in as input, what came from a cache or went into it included.
        told["gen_ai.usage.input_tokens"] = usage.prompt
        told["gen_ai.usage.output_tokens"] = usage.output
        written = usage.cache_write_5m + usage.cache_write_1h
        told |= {
            name: count
            for name, count in (
                ("gen_ai.usage.cache_read.input_tokens", usage.cache_read),
                ("gen_ai.usage.cache_creation.input_tokens", written),
                ("gen_ai.usage.reasoning.output_tokens", usage.reasoning),
            )
            if count
        }
    return told


def _about(call: Call) -> dict[str, Value]:
    """What holds of any call, understood or not."""
    row = call.row
    told: dict[str, Any] = _server(call) | {
        "http.request.method": row.method,
        "url.path": row.path,
        "llm_proxy.call.id": row.id,
        "llm_proxy.ending": row.ending,
        "llm_proxy.project": row.project,
        "llm_proxy.program": row.program,
    }
    if row.session:
        told |= {"llm_proxy.session": row.session, "llm_proxy.session.seq": row.seq}
    if row.status is not None:
        told["http.response.status_code"] = row.status
    if row.usd is not None:
        told |= {"llm_proxy.cost_usd": float(row.usd), "llm_proxy.cost_basis": row.basis}
    if row.partial:
        told["llm_proxy.partial"] = True
    if row.failed:
        told["error.type"] = _error_type(call)
    return told


def _error_type(call: Call) -> str:
    """The provider's word, else the status, else how the call ended."""
    row = call.row
    if row.error_type and row.error_type != "error":
        return row.error_type
    return str(row.status) if row.status is not None and row.status >= 400 else row.ending or "_OTHER"


def _why(call: Call, with_content: bool) -> str:
    """What went wrong. Providers quote requests in their errors, so their words count as content."""
    said = next((one.error for one in call.digest.answers if one.error), "") if with_content else ""
    return said or (call.row.error if call.row.status is None else "")


def _provider(upstream: str, api: str) -> str:
    host = _host_and_port(upstream)[0]
    known = next((name for pattern, name in _HOSTS if pattern.fullmatch(host)), "")
    speaker = api.partition(".")[0]
    return known or _SPEAKERS.get(speaker, speaker)


def _server(call: Call) -> dict[str, Value]:
    host, port = _host_and_port(call.row.upstream)
    if not host:
        return {}
    return {"server.address": host, "server.port": port or (80 if call.url.startswith("http://") else 443)}


def _host_and_port(upstream: str) -> tuple[str, int]:
    """The port is 0 where none is told."""
    try:
        parts = urlsplit(f"//{upstream}")
        return (parts.hostname or "").lower(), parts.port or 0
    except ValueError:
        return upstream, 0


def _waits(call: Call) -> dict[str, Value]:
    """Seconds until a stream began: its first piece, which may say nothing yet, and the answer's first token."""
    told: dict[str, Value] = {}
    chunks = (call.response or {}).get("chunks")
    first = chunks[0] if isinstance(chunks, list) and chunks else None
    after = first.get("delta_ms") if isinstance(first, dict) else None
    if call.head_ms is not None and isinstance(after, int) and not isinstance(after, bool):
        told["gen_ai.response.time_to_first_chunk"] = max(0, call.head_ms + after) / 1000
    if call.row.ttfb_ms is not None and call.row.ttfb_ms != call.head_ms:
        told["llm_proxy.time_to_first_token"] = call.row.ttfb_ms / 1000
    return told


# --- parameters of the request


class _Body(msgspec.Struct):
    """Those fields of a request that may be parameters or hold some; the others, which are long, are passed over."""

    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    seed: Any = None
    n: Any = None
    stop: Any = None
    stop_sequences: Any = None
    encoding_format: Any = None
    dimensions: Any = None
    service_tier: Any = None
    response_format: Any = None
    generationConfig: Any = None
    generation_config: Any = None
    inferenceConfig: Any = None
    options: Any = None


_NESTED = ("generationConfig", "generation_config", "inferenceConfig", "options")


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < _LARGEST and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and abs(value) <= _LARGEST else None


def _several(value: Any) -> int | None:
    return None if value == 1 else _count(value)


def _texts(value: Any) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(one for one in listed if isinstance(one, str))[:_MOST]


def _tier(value: Any) -> str:
    return value if isinstance(value, str) and value != "auto" else ""


# attribute, what makes its value, names that the APIs give it
_PARAMETERS: tuple[tuple[str, Callable[[Any], Value | None], tuple[str, ...]], ...] = (
    ("gen_ai.request.temperature", _float, ("temperature",)),
    ("gen_ai.request.top_p", _float, ("top_p", "topP")),
    ("gen_ai.request.top_k", _float, ("top_k", "topK")),
    (
        "gen_ai.request.max_tokens",
        _count,
        ("max_completion_tokens", "max_output_tokens", "max_tokens", "maxTokens", "maxOutputTokens", "num_predict"),
    ),
    ("gen_ai.request.frequency_penalty", _float, ("frequency_penalty", "frequencyPenalty")),
    ("gen_ai.request.presence_penalty", _float, ("presence_penalty", "presencePenalty")),
    ("gen_ai.request.seed", _count, ("seed",)),
    ("gen_ai.request.choice.count", _several, ("n", "candidateCount")),
    ("gen_ai.request.stop_sequences", _texts, ("stop_sequences", "stopSequences", "stop")),
    ("gen_ai.request.encoding_formats", _texts, ("encoding_format",)),
    ("gen_ai.embeddings.dimension.count", _count, ("dimensions", "outputDimensionality")),
)


def _parameters(call: Call, digest: Digest) -> dict[str, Value]:
    try:
        body = msgspec.json.decode(call.request_body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # No JSON, or one that says more than JSON may; a WebSocket's request stands in its messages.
        return {"gen_ai.request.max_tokens": digest.asked.max_tokens} if digest.asked.max_tokens else {}
    given = {name: value for name in body.__struct_fields__ if (value := getattr(body, name)) is not None}
    for name in _NESTED:
        inner = given.pop(name, None)
        given |= inner if isinstance(inner, dict) else {}
    told = {name: _first(make, names, given) for name, make, names in _PARAMETERS}
    if digest.asked.api.startswith("openai."):
        told["openai.request.service_tier"] = _tier(given.get("service_tier"))
    if _wants_json(given):
        told["gen_ai.output.type"] = "json"
    return {name: value for name, value in told.items() if value is not None}


def _first(make: Callable[[Any], Value | None], names: tuple[str, ...], given: Mapping[str, Any]) -> Value | None:
    return next((made for name in names if name in given and (made := make(given[name])) is not None), None)


def _wants_json(given: Mapping[str, Any]) -> bool:
    form = given.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    return kind in ("json_object", "json_schema") or given.get("responseMimeType") == "application/json"


# --- what may stand in an attribute


def _sound(value: Value) -> Value:
    """Texts that UTF-8 can say, names of a length."""
    if isinstance(value, str):
        return _clean(value)
    return tuple(_clean(one)[:_LONGEST] for one in value) if isinstance(value, tuple) else value


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
