"""Anthropic's Messages: what a call said and used, plain, streamed, cut short, in batches."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message as SdkMessage

from llm_proxy.dialects import registry
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Digest, Message, Part, PartKind, Usage
from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.goldens import check_cuts, check_pieces, golden, streams

Json = Any
API, PATH = "anthropic.messages", "/v1/messages"
SAID = "".join(SENTENCE)


def answers(body: Json, **other: Any) -> tuple[Answer, ...]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return registry.answers(API, PATH, Content("body", data, **other))


def streamed(*events: Json, **other: Any) -> tuple[Answer, ...]:
    data = b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
    return registry.answers(API, PATH, Content("events", data, **other))


def asked(**body: Json):
    return registry.asked(API, PATH, json.dumps(body).encode())


def start(**usage: Json) -> Json:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-opus-4-8", "content": []}
    return {"type": "message_start", "message": {**message, "usage": usage}}


def delta(stop_reason: str | None = "end_turn", **usage: Json) -> Json:
    return {"type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": None}, "usage": usage}


STOP = {"type": "message_stop"}


def block(index: int, **fields: Json) -> Json:
    return {"type": "content_block_start", "index": index, "content_block": fields}


def grow(index: int, kind: str, **fields: Json) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


# --- usage: (usage of message_start, usages of message_delta, what it comes to)

USAGES = [
    # The delta's counts are those of the whole message: they replace.
    ({"input_tokens": 10, "output_tokens": 1}, [{"output_tokens": 25}], Usage(input=10, output=25)),
    (
        {"input_tokens": 10, "output_tokens": 8},
        [{"output_tokens": 20}, {"output_tokens": 30}],
        Usage(input=10, output=30),
    ),
    ({"input_tokens": 10, "output_tokens": 1}, [{"input_tokens": 12, "output_tokens": 5}], Usage(input=12, output=5)),
    # What the delta leaves out or says as null stays.
    (
        {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 1},
        [{"input_tokens": None, "output_tokens": 5}],
        Usage(input=10, cache_read=90, output=5),
    ),
    # A server that counts only at the end.
    (
        {"input_tokens": 0, "output_tokens": 0},
        [{"input_tokens": 7, "cache_read_input_tokens": 3, "output_tokens": 5}],
        Usage(input=7, cache_read=3, output=5),
    ),
    # Cut before the delta: the start's counts are what there is.
    ({"input_tokens": 10, "output_tokens": 2}, [], Usage(input=10, output=2)),
    ({}, [], None),
    ({}, [{"output_tokens": 3}], Usage(output=3)),
    # Cache counts lie outside input_tokens. Without a split they are 5-minute writes.
    (
        {"input_tokens": 10, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 1000, "output_tokens": 1},
        [{"output_tokens": 5}],
        Usage(input=10, cache_read=1000, cache_write_5m=100, output=5),
    ),
    # With a split they are what it says.
    (
        {
            "input_tokens": 10,
            "cache_creation_input_tokens": 100,
            "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 70},
            "output_tokens": 1,
        },
        [{"cache_creation_input_tokens": 100, "output_tokens": 5}],
        Usage(input=10, cache_write_5m=30, cache_write_1h=70, output=5),
    ),
    # Only the start has the split; what was written later is the 5-minute kind, and none is counted twice.
    (
        {
            "input_tokens": 10,
            "cache_creation_input_tokens": 70,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 70},
            "output_tokens": 1,
        },
        [{"cache_creation_input_tokens": 95, "output_tokens": 5}],
        Usage(input=10, cache_write_5m=25, cache_write_1h=70, output=5),
    ),
    (
        {"input_tokens": 1, "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 6}},
        [{"output_tokens": 2}],
        Usage(input=1, cache_write_5m=4, cache_write_1h=6, output=2),
    ),
    # Thinking lies within the output.
    (
        {"input_tokens": 1, "output_tokens": 1},
        [{"output_tokens": 50, "output_tokens_details": {"thinking_tokens": 40}}],
        Usage(input=1, output=50, reasoning=40),
    ),
    # Tools that the provider runs are counted by use; what was not used is not told.
    (
        {"input_tokens": 1, "output_tokens": 1},
        [{"output_tokens": 2, "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 0}}],
        Usage(input=1, output=2, server_tools=(("web_search", 3),)),
    ),
    # Compaction is billed and in no total; the other iterations are in the totals.
    (
        {"input_tokens": 1, "output_tokens": 1},
        [
            {
                "input_tokens": 20,
                "output_tokens": 30,
                "iterations": [
                    {"type": "compaction", "input_tokens": 1000, "cache_read_input_tokens": 7, "output_tokens": 200},
                    {"type": "message", "input_tokens": 20, "output_tokens": 30},
                ],
            }
        ],
        Usage(input=1020, cache_read=7, output=230),
    ),
    # Numbers that are none.
    ({"input_tokens": -5, "output_tokens": "7"}, [{"output_tokens": True}], Usage()),
    ({"input_tokens": 5.0, "output_tokens": 2**80}, [], Usage(input=5)),
]


@pytest.mark.parametrize(("first", "later", "usage"), USAGES)
def test_usage_of_a_stream(first, later, usage):
    """A message_delta's usage replaces and never adds; no token is in two classes."""
    told = streamed(start(**first), *(delta(**counts) for counts in later), STOP)
    assert told[-1].usage == usage
    assert Digest(registry.asked(API, PATH, b"{}"), told).usage == usage


@pytest.mark.parametrize(("first", "later", "usage"), USAGES)
def test_usage_of_a_plain_answer(first, later, usage):
    """The same counts in one object give the same usage."""
    counts = {**first}
    for newer in later:
        counts |= {name: value for name, value in newer.items() if value is not None}
    assert answers({"type": "message", "content": [], "usage": counts})[-1].usage == usage


def test_an_advisor_is_another_models_answer():
    """Its tokens are in no total and cost what that model costs."""
    iterations = [
        {"type": "message", "input_tokens": 10, "output_tokens": 20},
        {"type": "advisor_message", "model": "claude-fable-5-2", "input_tokens": 800, "output_tokens": 500},
    ]
    advice, said = streamed(start(input_tokens=10), delta(output_tokens=20, iterations=iterations), STOP)
    assert (advice.model, advice.usage) == ("claude-fable-5-2", Usage(input=800, output=500))
    assert (said.model, said.usage) == ("claude-opus-4-8", Usage(input=10, output=20))


TIERS = [
    ({"service_tier": "standard"}, "standard"),
    ({"service_tier": "priority"}, "priority"),
    ({"service_tier": "standard", "speed": "fast"}, "fast"),
    ({"speed": "standard"}, ""),
]


@pytest.mark.parametrize(("usage", "tier"), TIERS)
def test_the_tier_that_sets_the_price(usage, tier):
    """As the answer says; fast mode is a price of its own."""
    assert streamed(start(input_tokens=1, **usage), delta(output_tokens=2), STOP)[-1].service_tier == tier
    assert answers({"type": "message", "usage": {"input_tokens": 1, **usage}})[-1].service_tier == tier


# --- golden calls


def test_a_plain_answer():
    """Model, text, usage, stop reason and id, and of the request what it asks."""
    one = golden("anthropic-plain")
    assert one.api == API
    assert one.asked.model == "claude-opus-4-8" and one.asked.max_tokens == 100 and not one.asked.stream
    assert one.asked.system == "Be brief."
    assert one.asked.messages == (Message("user", (Part(PartKind.TEXT, "Say hello."),)),)
    size = len(one.request)
    expected = Answer(
        model="claude-opus-4-8",
        message=Message("assistant", (Part(PartKind.TEXT, SAID),)),
        usage=Usage(input=size // 4, cache_read=11, cache_write_5m=3, cache_write_1h=2, output=9),
        stop_reason="end_turn",
        response_id="msg_0000000000000000000001",
        service_tier="standard",
    )
    assert one.answers == (expected,)


def test_a_streamed_answer():
    """The same, put together from events. The fake provider's start says one token of output, its delta four."""
    one = golden("anthropic-stream")
    assert one.asked.stream
    said = one.last
    assert said.message == Message("assistant", (Part(PartKind.TEXT, "".join(SENTENCE[:4])),))
    assert said.usage == Usage(input=len(one.request) // 4, cache_read=11, cache_write_5m=3, cache_write_1h=2, output=4)
    assert (said.model, said.stop_reason, said.partial) == ("claude-opus-4-8", "end_turn", False)


@pytest.mark.parametrize(("name", "said"), [("anthropic-tool", SAID), ("anthropic-tool-stream", SENTENCE[0])])
def test_thinking_and_tools(name, said):
    """Thinking, text and the call, whose arguments come in pieces that are no JSON."""
    one = golden(name)
    assert one.asked.tools == ("weather",)
    thought, words, call = one.last.message.parts
    assert thought == Part(PartKind.THINKING, "The user wants an answer.")
    assert words == Part(PartKind.TEXT, said)
    assert call == Part(PartKind.TOOL_CALL, '{"city":"Zürich","days":3}', "weather", call.id)
    assert call.id.startswith("toolu_") and one.last.stop_reason == "tool_use"


def test_an_error():
    """The provider's own words, and no usage."""
    assert golden("anthropic-error").answers == (
        Answer(error="The fake provider was told to fail.", error_type="overloaded_error"),
    )


def test_an_error_inside_a_stream():
    """What was said before it counts; the answer is partial."""
    said = golden("anthropic-error-stream").last
    assert (said.error, said.error_type) == ("The fake provider was told to fail.", "overloaded_error")
    assert said.partial and said.message.text == "Hello from" and said.usage.input > 0 and said.usage.output == 1


def test_counting_tokens_costs_nothing():
    """The model is known; there is neither text nor usage."""
    one = golden("anthropic-count")
    assert one.api == "anthropic.count_tokens" and one.asked.model == "claude-opus-4-8"
    assert one.answers == (Answer(),)


@pytest.mark.parametrize("name", streams("anthropic"))
def test_a_stream_may_come_in_any_pieces(name):
    """At every byte, the digest is the same."""
    check_pieces(golden(name))


@pytest.mark.parametrize("name", streams("anthropic"))
def test_a_stream_may_be_cut_anywhere(name):
    """What was there is told, and that it is not all."""
    check_cuts(golden(name))


# --- messages


PARTS = [
    ("Hi", (Part(PartKind.TEXT, "Hi"),)),
    ([{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}], (Part(PartKind.TEXT, "Hi"),)),
    ([{"type": "text", "text": ""}], ()),
    ([{"type": "thinking", "thinking": "Hm.", "signature": "x"}], (Part(PartKind.THINKING, "Hm."),)),
    ([{"type": "redacted_thinking", "data": "x"}], (Part(PartKind.THINKING, "[redacted]"),)),
    (
        [{"type": "tool_use", "id": "toolu_1", "name": "ls", "input": {"b": 1.0, "a": "ü"}}],
        (Part(PartKind.TOOL_CALL, '{"a":"ü","b":1}', "ls", "toolu_1"),),
    ),
    (
        [{"type": "mcp_tool_use", "id": "m", "name": "find", "server_name": "s", "input": {}}],
        (Part(PartKind.TOOL_CALL, "{}", "find", "m"),),
    ),
    (
        [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "2 files"}],
        (Part(PartKind.TOOL_RESULT, "2 files", id="toolu_1"),),
    ),
    (
        [
            {
                "type": "tool_result",
                "tool_use_id": "toolu_1",
                "is_error": True,
                "content": [
                    {"type": "text", "text": "no"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
                    {"type": "text", "text": "such file"},
                ],
            }
        ],
        (
            Part(PartKind.TOOL_RESULT, "no\nsuch file", id="toolu_1", failed=True),
            Part(PartKind.MEDIA, "image/png", "image"),
        ),
    ),
    ([{"type": "tool_result", "tool_use_id": "t"}], (Part(PartKind.TOOL_RESULT, id="t"),)),
    (
        [
            {
                "type": "web_search_tool_result",
                "tool_use_id": "s",
                "content": [{"type": "web_search_result", "title": "T", "url": "https://t", "encrypted_content": "x"}],
            }
        ],
        (Part(PartKind.TOOL_RESULT, "T\nhttps://t", id="s"),),
    ),
    (
        [
            {
                "type": "web_search_tool_result",
                "tool_use_id": "s",
                "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"},
            }
        ],
        (Part(PartKind.TOOL_RESULT, "max_uses_exceeded", id="s", failed=True),),
    ),
    (
        [
            {
                "type": "bash_code_execution_tool_result",
                "tool_use_id": "b",
                "content": {"type": "bash_code_execution_result", "stdout": "a", "stderr": "", "return_code": 0},
            }
        ],
        (Part(PartKind.TOOL_RESULT, "a", id="b"),),
    ),
    (
        [{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}],
        (Part(PartKind.MEDIA, "https://x/y.png", "image"),),
    ),
    (
        [
            {
                "type": "document",
                "title": "Q3",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "x"},
            }
        ],
        (Part(PartKind.MEDIA, "Q3", "document"),),
    ),
    (
        [{"type": "document", "source": {"type": "file", "file_id": "file_1"}}],
        (Part(PartKind.MEDIA, "file_1", "document"),),
    ),
    ([{"type": "compaction", "content": "So far."}], (Part(PartKind.OTHER, "So far.", "compaction"),)),
    ([{"type": "new_thing", "x": 1}], (Part(PartKind.OTHER, "", "new_thing"),)),
    # One odd block does not spoil its neighbours.
    ([7, None, {"type": "text", "text": "Hi"}, {"type": "text", "text": 7}, "x"], (Part(PartKind.TEXT, "Hi"),)),
    (None, ()),
    (7, ()),
]


@pytest.mark.parametrize(("content", "parts"), PARTS)
def test_parts_of_a_message(content, parts):
    """Every kind of block, asked and answered."""
    (message,) = asked(messages=[{"role": "assistant", "content": content}]).messages
    assert message.parts == parts
    if isinstance(content, list):
        assert answers({"type": "message", "content": content})[-1].message.parts == parts


def test_roles():
    """A message that only hands back results is the tool's; system may stand among the messages."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
    said = {"type": "text", "text": "and"}
    contents = [("user", "x"), ("system", "x"), ("user", [result, result]), ("user", [result, said]), ("assistant", [])]
    told = asked(messages=[{"role": role, "content": content} for role, content in contents], system=[said, said])
    assert [message.role for message in told.messages] == ["user", "system", "tool", "user", "assistant"]
    assert told.system == "and\n\nand"


def test_one_odd_message_does_not_spoil_the_others():
    """Nor does an odd field of the request."""
    told = asked(
        model=["m"],
        tools="x",
        max_tokens="9",
        stream="yes",
        messages=[{"role": "user", "content": "a"}, 7, {"role": 1}],
    )
    assert [message.text for message in told.messages] == ["a", ""]
    assert (told.model, told.tools, told.max_tokens, told.stream, told.trouble) == ("", (), 0, False, "")


def test_half_an_emoji_does_not_spoil_a_request():
    """Clients cut texts without regard to surrogate pairs; strict parsers refuse the whole body."""
    told = registry.asked(API, PATH, b'{"model":"m","x":NaN,"messages":[{"role":"user","content":"cut \\ud83d"}]}')
    assert (told.model, told.messages[0].text, told.trouble) == ("m", "cut \ufffd", "")


def test_tools_are_named():
    """The provider's own by their type, where they have no name."""
    tools = [{"name": "ls"}, {"type": "web_search_20250305", "name": "web_search"}, {"type": "mcp_toolset"}, {}]
    assert asked(tools=tools).tools == ("ls", "web_search", "mcp_toolset")


def test_vertex_names_the_model_in_the_path():
    """There the body has none."""
    path = "/v1/projects/p/locations/l/publishers/anthropic/models/claude-opus-4-8%4020260101:streamRawPredict"
    assert registry.asked(API, path, b'{"stream":true}').model == "claude-opus-4-8@20260101"


def test_a_request_that_is_no_json():
    """Is told so; no request at all is not."""
    assert registry.asked(API, PATH, b"model=m").trouble == "the body is not a JSON object"
    assert registry.asked(API, PATH, b"").trouble == ""


# --- answers that end badly


def test_a_refusal():
    """The stop reason says it, the explanation is what a person would read."""
    details = {"type": "refusal", "category": "cyber", "explanation": "This may do harm."}
    stop = {"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": details}, "usage": {}}
    plain = answers({"type": "message", "content": [], "stop_reason": "refusal", "stop_details": details})
    for (said,) in (streamed(start(), stop, STOP), plain):
        assert said.stop_reason == "refusal"
        assert said.message.parts == (Part(PartKind.REFUSAL, "This may do harm."),)


def test_broken_arguments_stay_text():
    """A call that was cut has no JSON yet."""
    told = streamed(
        start(),
        block(0, type="tool_use", id="t", name="ls", input={}),
        grow(0, "input_json_delta", partial_json='{"path": "/ho'),
    )
    assert told[-1].message.parts == (Part(PartKind.TOOL_CALL, '{"path": "/ho', "ls", "t"),)
    assert told[-1].partial


def test_a_call_without_arguments():
    """No delta comes: the call's input is the empty object, as in a plain answer."""
    told = streamed(start(), block(0, type="tool_use", id="t", name="ls", input={}), delta("tool_use"), STOP)
    assert told[-1].message.parts == (Part(PartKind.TOOL_CALL, "{}", "ls", "t"),)


def test_blocks_without_a_start():
    """What arrives is kept, under the kind that its pieces have."""
    told = streamed(grow(1, "text_delta", text="b"), grow(0, "thinking_delta", thinking="a"), {"type": "new_event"})
    assert told[-1].message.parts == (Part(PartKind.TEXT, "b"), Part(PartKind.THINKING, "a"))


def test_an_event_that_is_no_json():
    """Is passed over and told."""
    data = (
        b'data: {"type":"message_start","message":{"model":"m"}}\n\ndata: {broken\n\ndata: {"type":"message_stop"}\n\n'
    )
    (said,) = registry.answers(API, PATH, Content("events", data))
    assert (said.model, said.partial, said.trouble) == ("m", False, "an event is not the JSON that this API sends")


FAILURES = [
    (b"<html>Bad Gateway</html>", 502, Answer(error="<html>Bad Gateway</html>")),
    (b"", 529, Answer(error="status 529 without a body")),
    (
        b'{"type":"error","error":{"type":"api_error","message":"Oops"}}',
        500,
        Answer(error="Oops", error_type="api_error"),
    ),
    (b'{"error":"not found"}', 404, Answer(error="not found")),
    (b'{"detail":"odd"}', 422, Answer(error='{"detail":"odd"}')),
    (b"hello", 200, Answer(trouble="the body is not the JSON that this API answers with")),
    (b'{"other":1}', 200, Answer(trouble="the body is not the JSON that this API answers with")),
]


@pytest.mark.parametrize("kind", ["body", "events"])
@pytest.mark.parametrize(("data", "status", "answer"), FAILURES)
def test_failures(data, status, answer, kind):
    """The words of whoever failed, also where a stream was asked for."""
    if kind == "events" and not data.startswith(b"{"):
        return
    assert registry.answers(API, PATH, Content(kind, data, status=status)) == (answer,)


def test_no_response():
    """Nothing came: there is no answer. Nothing came yet: it is partial."""
    assert registry.answers(API, PATH, Content("body", status=None, complete=False)) == ()
    (said,) = registry.answers(API, PATH, Content("events", complete=False))
    assert said.partial and said.message is None and said.usage is None
    (said,) = registry.answers(API, PATH, Content("body", b'{"type":"mess', complete=False))
    assert said.partial


# --- the key of a message


@pytest.mark.parametrize("name", ["anthropic-tool", "anthropic-tool-stream"])
def test_an_answer_is_recognised_when_it_is_sent_back(name):
    """Clients drop thinking, trim texts and write arguments in their own way."""
    said = golden(name).last
    _, words, call = said.message.parts
    arguments = dict(reversed(json.loads(call.text).items()))
    arguments["days"] = 3.0
    content = [
        {"type": "text", "text": words.text.strip()},
        {
            "type": "tool_use",
            "id": call.id,
            "name": "weather",
            "input": arguments,
            "cache_control": {"type": "ephemeral"},
        },
    ]
    (sent,) = asked(messages=[{"role": "assistant", "content": content}]).messages
    assert sent.key == said.message.key
    other = [content[0], {**content[1], "input": {"city": "Bern", "days": 3}}]
    assert asked(messages=[{"role": "assistant", "content": other}]).messages[0].key != said.message.key


# --- batches


BATCHES = "/v1/messages/batches"


def test_a_batch_that_is_made():
    """Its requests one after the other, each behind a part that names it; making it costs nothing."""
    requests = [
        {"custom_id": "a", "params": {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "One?"}]}},
        {"custom_id": "b", "params": {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "Two?"}]}},
    ]
    told = registry.asked("anthropic.batches", BATCHES, json.dumps({"requests": requests}).encode())
    assert (told.model, told.service_tier) == ("claude-haiku-4-5", "batch")
    marks = [part for message in told.messages for part in message.parts if part.kind == PartKind.OTHER]
    assert marks == [Part(PartKind.OTHER, "claude-haiku-4-5", "batch_request", name) for name in ("a", "b")]
    assert [message.text for message in told.messages] == ["", "One?", "", "Two?"]
    made = {"id": "msgbatch_1", "type": "message_batch", "processing_status": "in_progress", "results_url": None}
    said = registry.answers("anthropic.batches", BATCHES, Content("body", json.dumps(made).encode()))
    assert said == (Answer(response_id="msgbatch_1", stop_reason="in_progress"),)
    requests[1]["params"]["model"] = "claude-opus-4-8"
    assert registry.asked("anthropic.batches", BATCHES, json.dumps({"requests": requests}).encode()).model == ""


def test_the_results_of_a_batch():
    """One answer per line, all at the batch's price; a line that was cut is partial."""

    def line(custom_id, **result):
        return json.dumps({"custom_id": custom_id, "result": result}).encode() + b"\n"

    def message(number):
        usage = {"input_tokens": 10 * number, "cache_read_input_tokens": 5, "output_tokens": number}
        content = [{"type": "text", "text": f"Answer {number}"}]
        return {
            "id": f"msg_{number}",
            "type": "message",
            "model": "claude-haiku-4-5",
            "content": content,
            "usage": usage,
        }

    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}
    lines = [
        line("a", type="succeeded", message=message(1)),
        line("b", type="errored", error=error),
        line("c", type="expired"),
        line("d", type="succeeded", message=message(2)),
    ]
    told = registry.answers("anthropic.batches", f"{BATCHES}/msgbatch_1/results", Content("body", b"".join(lines)))
    assert [answer.service_tier for answer in told] == ["batch"] * 4
    assert [answer.message.text for answer in told if answer.message] == ["Answer 1", "Answer 2"]
    assert (told[1].error, told[1].error_type, told[2].stop_reason) == ("No.", "invalid_request_error", "expired")
    digest = Digest(registry.asked("anthropic.batches", BATCHES, b""), told)
    assert digest.usage == Usage(input=30, cache_read=10, output=3) and not digest.partial
    cut = Content("body", b"".join(lines)[:-20], complete=False)
    told = registry.answers("anthropic.batches", f"{BATCHES}/msgbatch_1/results", cut)
    assert [answer.partial for answer in told] == [False, False, False, True]


# --- the official SDK as a second opinion

CLAUDE: Json = {
    "model": "claude-opus-4-8",
    "max_tokens": 2000,
    "messages": [{"role": "user", "content": 'please call weather {"city":"Zürich","days":[1,2,3]}'}],
    "tools": [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
}


def agree(said: Answer, message: SdkMessage) -> None:
    """The SDK's object and ours tell the same."""
    usage, counted = message.usage, said.usage
    assert counted is not None and said.message is not None
    assert (said.model, said.response_id, said.stop_reason) == (message.model, message.id, message.stop_reason)
    assert (counted.input, counted.output) == (usage.input_tokens, usage.output_tokens)
    assert counted.cache_read == usage.cache_read_input_tokens
    assert counted.cache_write_5m + counted.cache_write_1h == usage.cache_creation_input_tokens
    assert counted.cache_write_1h == usage.cache_creation.ephemeral_1h_input_tokens
    thinking, text, call = message.content
    thought, words, called = said.message.parts
    assert (thought.text, words.text) == (thinking.thinking, text.text)
    assert (called.id, called.name, json.loads(called.text)) == (call.id, call.name, call.input)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sdk_reads_the_same(stream):
    """One real call: what the SDK makes of it, and what we make of its bytes."""
    heads = {"X-Fake": "close", "Accept-Encoding": "identity"}
    async with FakeProvider() as fake, httpx2.AsyncClient() as http:
        client = anthropic.AsyncAnthropic(base_url=fake.url, api_key="sk-ant-none", max_retries=0, http_client=http)
        if stream:
            async with client.messages.stream(**CLAUDE, extra_headers=heads) as running:
                message = await running.get_final_message()
        else:
            message = await client.messages.create(**CLAUDE, extra_headers=heads)
    body = fake.responses[0].raw.partition(b"\r\n\r\n")[2]
    (said,) = registry.answers(API, PATH, Content("events" if stream else "body", body))
    agree(said, message)
    told = registry.asked(API, PATH, fake.requests[0].body)
    assert told.stream is stream and told.tools == ("weather",) and "Zürich" in told.messages[0].text
