"""What a call is as a span: names, numbers and ids by the conventions, and no word of what was said unless asked for."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llm_proxy.dialects.digest import Usage
from llm_proxy.formats.call import Call
from llm_proxy.formats.otel import span_of
from llm_proxy.formats.otel_content import LONGEST, LONGEST_TEXT
from llm_proxy.formats.otel_metrics import INSTRUMENTS, MOST, OVERFLOW, Totals
from llm_proxy.lanes.otlp_http import Sender
from llm_proxy.records import understood
from llm_proxy.records.exchange import Ending
from llm_proxy.sinks.session_jsonl import response_entry
from tests.calls import row
from tests.goldens import golden, names


def recorded(name, *, ending="complete", cut=None, **about):
    """A golden call as the record has it."""
    one = golden(name)
    request = {"method": one.method, "path": one.path, "headers": {}, "body": one.request.decode()}
    response = response_entry(one._exchange((one.answer[:cut],), Ending[ending.upper()]), "s", 1, "m")
    response["timing"] = {"ttfb_ms": 400, "total_ms": 900}
    digest = understood.understand(request, response)
    told = understood.facts(digest)
    facts = {
        "api": one.api,
        "path": one.path,
        "method": one.method,
        "provider": one.provider,
        "status": one.status,
        "model": digest.model,
        "usage": digest.usage,
        "stop_reason": digest.last.stop_reason,
        "response_id": digest.last.response_id,
        "error_type": told.get("error_type", ""),
        "ending": ending,
        "failed": ending == "upstream_failed" or (one.status or 0) >= 400 or bool(told.get("error_type")),
        "upstream": "127.0.0.1:9999",
        "basis": "list",
        "usd": Decimal("0.0123"),
    }
    return Call(row(**(facts | about)), request, response)


# golden, name, provider, attributes that stand there
DIALECTS = [
    ("anthropic-plain", "chat", "anthropic", {}),
    ("anthropic-stream", "chat", "anthropic", {"gen_ai.request.stream": True}),
    ("anthropic-count", "count_tokens", "anthropic", {}),
    ("chat-plain", "chat", "openai", {"openai.api.type": "chat_completions"}),
    ("chat-usage-stream", "chat", "openai", {"gen_ai.request.stream": True}),
    ("responses-plain", "chat", "openai", {"openai.api.type": "responses"}),
    ("embeddings-plain", "embeddings", "openai", {}),
    ("gemini-plain", "generate_content", "gcp.gemini", {}),
    ("gemini-stream", "generate_content", "gcp.gemini", {"gen_ai.request.stream": True}),
    ("converse-plain", "chat", "aws.bedrock", {}),
    ("bedrock-plain", "chat", "aws.bedrock", {}),
]


@pytest.mark.parametrize(("name", "operation", "provider", "more"), DIALECTS, ids=[case[0] for case in DIALECTS])
def test_every_dialect_tells_operation_provider_models_and_tokens(name, operation, provider, more):
    """What the conventions require is there, whichever API it was."""
    call = recorded(name)
    span = span_of(call)
    told = span.attributes
    model = call.digest.asked.model
    assert span.name == f"{operation} {model}".strip()
    assert told["gen_ai.operation.name"] == operation
    assert told["gen_ai.provider.name"] == provider
    assert told.get("gen_ai.request.model", "") == model
    assert told["gen_ai.conversation.id"] == "s"
    assert (told["server.address"], told["server.port"]) == ("127.0.0.1", 9999)
    assert told["http.response.status_code"] == 200
    assert told["llm_proxy.cost_usd"] == pytest.approx(0.0123)
    assert not span.failed and "error.type" not in told
    usage = call.row.usage
    if usage is not None:
        assert told["gen_ai.usage.input_tokens"] == usage.prompt
        assert told["gen_ai.usage.output_tokens"] == usage.output
    assert more.items() <= told.items()
    assert ("gen_ai.response.time_to_first_chunk" in told) == ("chunks" in call.response)
    assert span.end_ns - span.start_ns == 4 * 10**9


def test_what_came_from_a_cache_counts_as_input():
    """The conventions' input is all that went in; the parts stand beside it, and so does reasoning."""
    told = span_of(recorded("anthropic-plain", usage=Usage(5, 100, 20, 7, 50, reasoning=30))).attributes
    assert told["gen_ai.usage.input_tokens"] == 132
    assert told["gen_ai.usage.cache_read.input_tokens"] == 100
    assert told["gen_ai.usage.cache_creation.input_tokens"] == 27
    assert told["gen_ai.usage.output_tokens"] == 50
    assert told["gen_ai.usage.reasoning.output_tokens"] == 30
    bare = span_of(recorded("anthropic-plain", usage=None)).attributes
    assert not [name for name in bare if name.startswith("gen_ai.usage")]


# what a request says, what the span tells
PARAMETERS = [
    ("/v1/messages", {"max_tokens": 5, "temperature": 1, "top_p": 0.5, "top_k": 3, "stop_sequences": ["END"]}),
    ("/v1/chat/completions", {"max_completion_tokens": 5, "temperature": 1, "top_p": 0.5, "stop": "END"}),
    ("/v1/responses", {"max_output_tokens": 5, "temperature": 1, "top_p": 0.5}),
    (
        "/v1beta/models/m:generateContent",
        {
            "generationConfig": {
                "maxOutputTokens": 5,
                "temperature": 1,
                "topP": 0.5,
                "topK": 3,
                "stopSequences": ["END"],
            }
        },
    ),
    (
        "/model/m/converse",
        {"inferenceConfig": {"maxTokens": 5, "temperature": 1, "topP": 0.5, "stopSequences": ["END"]}},
    ),
    ("/api/chat", {"options": {"num_predict": 5, "temperature": 1, "top_p": 0.5, "top_k": 3, "stop": ["END"]}}),
]


def asking(path, body, **about):
    from llm_proxy.dialects import registry

    text = body if isinstance(body, str) else json.dumps(body)
    api = registry.api_of("POST", path)
    request = {"method": "POST", "path": path, "headers": about.pop("headers", {}), "body": text}
    return Call(row(**({"path": path, "api": api} | about)), request, {"status": 200, "headers": {}})


@pytest.mark.parametrize(("path", "body"), PARAMETERS, ids=[case[0] for case in PARAMETERS])
def test_parameters_have_one_name_whatever_the_api_calls_them(path, body):
    """Numbers as numbers of the conventions' types."""
    told = span_of(asking(path, {"model": "m"} | body)).attributes
    assert told["gen_ai.request.max_tokens"] == 5
    assert told["gen_ai.request.temperature"] == 1.0 and type(told["gen_ai.request.temperature"]) is float
    assert told["gen_ai.request.top_p"] == 0.5
    flat = body | next((value for value in body.values() if isinstance(value, dict)), {})
    assert told.get("gen_ai.request.top_k") == (3.0 if {"top_k", "topK"} & flat.keys() else None)
    stops = {"stop", "stop_sequences", "stopSequences"} & flat.keys()
    assert told.get("gen_ai.request.stop_sequences") == (("END",) if stops else None)


@pytest.mark.parametrize(
    "body",
    ["", "no json", "[1]", '{"temperature": "hot", "max_tokens": true, "n": 1, "seed": 1e400}', "{" * 5000, "\ud800"],
)
def test_a_request_that_is_nonsense_has_a_span(body):
    """What is of another type than it should be is left out."""
    told = span_of(asking("/v1/chat/completions", body), with_content=True).attributes
    assert not [name for name in told if name.startswith("gen_ai.request.") and name != "gen_ai.request.model"]
    assert told["gen_ai.operation.name"] == "chat"


HOSTS = {
    "api.anthropic.com": "anthropic",
    "my.openai.azure.com": "azure.ai.openai",
    "eu-west4-aiplatform.googleapis.com": "gcp.vertex_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "bedrock-runtime.us-east-1.amazonaws.com": "aws.bedrock",
    "api.x.ai": "x_ai",
    "api.groq.com:443": "groq",
    "api.mistral.ai": "mistral_ai",
    "notopenai.com.example": "anthropic",  # whose API it speaks
    "[::1]:11434": "anthropic",
}


@pytest.mark.parametrize("host", HOSTS)
def test_the_provider_is_who_answers(host):
    """By the upstream's name first; many hosts speak another one's API."""
    told = span_of(recorded("anthropic-plain", upstream=host)).attributes
    assert told["gen_ai.provider.name"] == HOSTS[host]
    assert told["server.port"] in (443, 11434)


@pytest.mark.parametrize(
    ("name", "about", "error"),
    [
        ("anthropic-error", {}, "authentication_error"),
        ("chat-error", {"error_type": "error"}, "429"),
        ("anthropic-error-stream", {}, "overloaded_error"),
        ("anthropic-plain", {"status": None, "ending": "upstream_failed", "error": "refused"}, "upstream_failed"),
        ("anthropic-plain", {"status": None, "ending": "timed_out", "failed": True}, "timed_out"),
        ("anthropic-plain", {"status": 503, "failed": True}, "503"),
    ],
)
def test_a_failed_call_tells_a_class_of_error(name, about, error):
    """The provider's own word, else the status, else how it ended."""
    call = recorded(name, **about)
    if name.endswith("error") and "error_type" not in about:
        error = call.row.error_type
    span = span_of(call)
    assert span.failed
    assert span.attributes["error.type"] == error
    assert span.why == about.get("error", "")


def test_the_words_of_an_error_are_content():
    """Providers quote what they were sent."""
    call = recorded("anthropic-error")
    words = call.digest.last.error
    assert words and span_of(call, with_content=True).why == words
    assert span_of(call).why == ""


def test_a_stream_that_was_cut_says_so():
    """A client that leaves has not failed; an upstream that breaks off has."""
    half = len(golden("anthropic-stream").answer) // 2
    left = span_of(recorded("anthropic-stream", ending="client_gone", cut=half, partial=True, failed=False))
    assert not left.failed
    assert left.attributes["llm_proxy.ending"] == "client_gone" and left.attributes["llm_proxy.partial"] is True
    broken = span_of(recorded("anthropic-stream", ending="upstream_failed", cut=half, partial=True))
    assert broken.failed and broken.attributes["error.type"] == "upstream_failed"


def test_a_call_of_no_known_api_is_a_plain_span():
    """It has no name of the conventions, and adds to no histogram."""
    span = span_of(asking("/v1/models", "", method="GET", api=""))
    assert span.name == "GET"
    assert not [name for name in span.attributes if name.startswith("gen_ai.")]
    assert Totals().plus([span]).series == {}


# --- ids


def test_ids_are_the_same_every_time_and_differ_between_calls():
    """What is sent twice is the same span."""
    one, again = span_of(recorded("anthropic-plain", seq=2)), span_of(recorded("anthropic-plain", seq=2))
    other = span_of(recorded("anthropic-plain", seq=2, id="another"))
    assert one.ids == again.ids
    assert one.ids.trace != other.ids.trace and one.ids.span != other.ids.span
    assert 0 < one.ids.trace < 1 << 128 and 0 < one.ids.span < 1 << 64


def test_later_calls_of_a_session_link_to_its_first():
    """A trace per call: sessions go on for days. The first one's ids follow from the session."""
    first = span_of(recorded("anthropic-plain", seq=1, id="a"))
    third = span_of(recorded("anthropic-plain", seq=3, id="c"))
    assert first.link is None
    assert third.link == first.ids
    assert third.ids.trace != first.ids.trace
    assert span_of(recorded("anthropic-plain", seq=3, session="other")).link != first.ids
    assert span_of(recorded("anthropic-plain", seq=3, session="")).link is None


def test_a_caller_that_names_its_trace_gets_the_span_into_it():
    """W3C trace context of the request; what is none is passed over."""
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

    def of(*values):
        return span_of(asking("/v1/messages", {}, headers={"Traceparent": list(values)}, seq=2))

    span = of(f"00-{trace}-{parent}-01")
    assert f"{span.ids.trace:032x}" == trace and f"{span.parent.span:016x}" == parent and span.link is None
    for wrong in (
        "",
        f"ff-{trace}-{parent}-01",
        f"00-{'0' * 32}-{parent}-01",
        f"00-{trace}-{'0' * 16}-01",
        f"00-{trace.upper()}-{parent}-01",
        f"00-{trace}-{parent}",
    ):
        assert of(wrong).parent is None, wrong
    assert of(f"00-{trace}-{parent}-01", f"00-{trace}-{parent}-01").parent is None


# --- content


def words_of(call):
    """Every text that was said in the call, of some length."""
    digest = call.digest
    messages = [*digest.asked.messages, *(one.message for one in digest.answers if one.message)]
    said = [part.text for message in messages for part in message.parts] + [digest.asked.system]
    said += [one.error for one in digest.answers]
    return [text for text in said if len(text) > 8]


SAYING = [
    name for name in names("anthropic", "chat", "gemini", "responses", "converse", "embeddings") if "ws" not in name
]


@pytest.mark.parametrize("name", SAYING)
def test_no_word_leaves_without_being_asked_for(name):
    """In the bytes that would be sent: nothing of messages, answers, arguments, results, errors."""
    call = recorded(name)
    sent = encoded(span_of(call))
    for text in words_of(call):
        assert text.encode() not in sent, text
        for line in text.splitlines():
            assert len(line) < 12 or line.encode() not in sent, line


def encoded(span):
    """As the exporter writes it."""
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    sender = Sender({"endpoint": "http://127.0.0.1:1"})
    try:
        return encode_spans([sender._span(span)]).SerializeToString()
    finally:
        sender.close()


# The conventions' own schemas, cut down to what they require.
MESSAGE = {
    "type": "object",
    "required": ["role", "parts"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool"]},
        "parts": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"type": "string", "minLength": 1}},
                "allOf": [
                    {
                        "if": {"properties": {"type": {"enum": [kind]}}},
                        "then": {"required": needed},
                    }
                    for kind, needed in (
                        ("text", ["content"]),
                        ("reasoning", ["content"]),
                        ("tool_call", ["name"]),
                        ("tool_call_response", ["response"]),
                        ("uri", ["modality", "uri"]),
                        ("blob", ["modality", "content"]),
                        ("file", ["modality", "file_id"]),
                    )
                ],
            },
        },
    },
}
SCHEMAS = {
    "gen_ai.input.messages": {"type": "array", "items": MESSAGE},
    "gen_ai.output.messages": {
        "type": "array",
        "items": MESSAGE | {"required": ["role", "parts", "finish_reason"]},
    },
    "gen_ai.system_instructions": {"type": "array", "items": MESSAGE["properties"]["parts"]["items"]},
    "gen_ai.tool.definitions": {"type": "array", "items": {"required": ["type", "name"]}},
}


@pytest.mark.parametrize("name", SAYING)
def test_content_has_the_conventions_forms(name):
    """For those who ask: JSON that keeps the schemas, with every text that was said."""
    call = recorded(name)
    told = span_of(call, with_content=True).attributes
    for attribute, schema in SCHEMAS.items():
        if attribute in told:
            Draft202012Validator(schema).validate(json.loads(told[attribute]))
    said = "".join(str(told.get(attribute, "")) for attribute in SCHEMAS)
    for message in call.digest.asked.messages:
        if message.text:
            assert json.dumps(message.text, ensure_ascii=False)[1:-1].split("\\n\\n")[0] in said
    if call.digest.asked.tools:
        assert [one["name"] for one in json.loads(told["gen_ai.tool.definitions"])] == list(call.digest.asked.tools)


def test_a_tool_that_is_called_and_answers_is_told_with_its_arguments():
    """The call with what it was given, as JSON and not as text in text, and the result under the same id."""
    body = {
        "model": "claude-sonnet-4-5",
        "system": "Be terse",
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Graz"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]},
        ],
        "tools": [{"name": "weather", "description": "Tells it", "input_schema": {"type": "object"}}],
    }
    told = span_of(asking("/v1/messages", body), with_content=True).attributes
    messages = json.loads(told["gen_ai.input.messages"])
    assert messages[1]["parts"] == [{"type": "tool_call", "id": "t1", "name": "weather", "arguments": {"city": "Graz"}}]
    assert messages[2]["parts"] == [{"type": "tool_call_response", "id": "t1", "response": "rain"}]
    assert json.loads(told["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be terse"}]
    assert json.loads(told["gen_ai.tool.definitions"]) == [
        {"type": "function", "name": "weather", "description": "Tells it", "parameters": {"type": "object"}}
    ]


def test_long_histories_are_cut_at_their_beginning_and_say_so():
    """A backend takes a few MB; what was said last is what counts."""
    said = [{"role": "user", "content": f"{number} " + "x" * 60_000} for number in range(20)]
    said.append({"role": "user", "content": "last " + "y" * (LONGEST_TEXT + 5)})
    told = span_of(asking("/v1/messages", {"model": "m", "messages": said}), with_content=True).attributes
    assert len(told["gen_ai.input.messages"]) <= LONGEST
    messages = json.loads(told["gen_ai.input.messages"])
    assert messages[-1]["parts"][0]["content"].startswith("last yyy")
    assert messages[-1]["parts"][0]["content"].endswith(f"({LONGEST_TEXT + 10} characters)")
    assert 0 < len(messages) < 21
    assert told["llm_proxy.content.cut"] is True


# --- sums


def test_each_call_is_in_the_bucket_that_the_conventions_say():
    """Tokens in and out, duration, and of streams the first piece; a failed call has only a duration."""
    good = span_of(recorded("anthropic-stream", usage=Usage(64, 0, 0, 0, 7)))
    bad = span_of(recorded("anthropic-plain", status=500, failed=True, usage=None))
    totals = Totals().plus([good, bad])
    found = {
        (name, dict(attrs).get("gen_ai.token.type"), dict(attrs).get("error.type")): one
        for (name, attrs), one in totals.series.items()
    }
    assert {key[0] for key in found} == set(INSTRUMENTS)
    into = found["gen_ai.client.token.usage", "input", None]
    assert into.sum == 64 and into.buckets[3] == 1 and into.count == 1  # 16 < 64 <= 64
    assert found["gen_ai.client.token.usage", "output", None].buckets[2] == 1
    assert found["gen_ai.client.operation.duration", None, "500"].count == 1
    assert found["gen_ai.client.operation.duration", None, None].sum == pytest.approx(4.0)
    assert found["gen_ai.client.operation.time_to_first_chunk", None, None].sum == pytest.approx(0.4)
    assert totals.start_ns == good.start_ns


def test_totals_survive_being_written_down():
    """The ledger is JSON; what comes back goes on counting."""
    spans = [span_of(recorded(name)) for name in ("anthropic-plain", "chat-plain", "anthropic-stream")]
    totals = Totals().plus(spans)
    again = Totals.from_json(json.loads(json.dumps(totals.to_json())))
    assert again == totals
    assert again.plus(spans[:1]).changed(again) and not again.changed(totals)
    assert Totals.from_json({}) == Totals()


def test_names_without_end_are_counted_together():
    """A client may invent a model per call: the number of series has a limit, and the sums stay true."""
    totals = Totals()
    for number in range(MOST + 50):
        totals = totals.plus([span_of(asking("/v1/messages", {"model": f"m{number}"}, id=str(number)))])
    series = {attrs: one for (name, attrs), one in totals.series.items() if name == "gen_ai.client.operation.duration"}
    assert len(series) == MOST + 1
    assert series[((OVERFLOW, True),)].count == 50
    assert sum(one.count for one in series.values()) == MOST + 50


TEXT = st.text(max_size=20)
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.sampled_from(["tools", "messages", "content", "role", "type", "function", "name", "stop", "generationConfig", "toolConfig"]), inner, max_size=4), max_leaves=15)  # fmt: skip


@given(st.sampled_from([path for path, _ in PARAMETERS]), JSON, st.text(max_size=10), st.text(max_size=30))
def test_whatever_a_request_holds_it_can_be_encoded(path, body, model, upstream):
    """Strangers write requests; a call that cannot be told would be parked."""
    try:
        text = json.dumps(body)
    except ValueError:
        text = repr(body)
    call = asking(path, text, model=model, upstream=upstream, session=model, failed=True, error=upstream, status=None)
    span = span_of(call, with_content=True)
    assert encoded(span)
    assert encoded(span_of(asking(path, text, error="\ud800", failed=True, status=None, session="\udfff")))
    Totals().plus([span]).to_json()
