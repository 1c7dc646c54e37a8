"""Bedrock: Anthropic's bodies in Amazon's envelopes, and Converse, plain, streamed, cut short."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from llm_proxy.dialects import registry
from llm_proxy.dialects.bedrock import model_of
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Message, Part, PartKind, Usage
from tests.goldens import check_cuts, check_pieces, golden, streams
from tests.make_golden import event, frame

Json = Any
MODEL = "us.anthropic.claude-opus-4-8-v1:0"
INVOKE = f"/model/{MODEL}/invoke"
INVOKE_STREAM = f"/model/{MODEL}/invoke-with-response-stream"
CONVERSE = f"/model/{MODEL}/converse"
EVENTSTREAM = "application/vnd.amazon.eventstream"


def chunk(value: Json, encode=base64.b64encode) -> bytes:
    return event("chunk", {"bytes": encode(json.dumps(value).encode()).decode(), "p": "abc"})


def invoked(data: bytes, path: str = INVOKE_STREAM, **other: Any) -> Answer:
    (said,) = registry.answers("bedrock.invoke", path, Content("body", data, media_type=EVENTSTREAM, **other))
    return said


def conversed(body: Json, **other: Any) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    (said,) = registry.answers("bedrock.converse", CONVERSE, Content("body", data, **other))
    return said


ARN = "arn:aws:bedrock:us-east-1:123456789012"
MODELS = [
    (INVOKE, MODEL),
    ("/model/us.anthropic.claude-v1%3A0/invoke", "us.anthropic.claude-v1:0"),
    ("/bedrock/us-east-1/model/m/converse-stream", "m"),
    (f"/model/{ARN}:inference-profile/eu.anthropic.claude-v1:0/invoke", "eu.anthropic.claude-v1:0"),
    ("/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A%3Afoundation-model%2Famazon.nova-pro-v1%3A0/converse", "amazon.nova-pro-v1:0"),
    (f"/model/{ARN}:application-inference-profile/x1/converse", f"{ARN}:application-inference-profile/x1"),
    ("/v1/messages", ""),
]  # fmt: skip


@pytest.mark.parametrize(("path", "model"), MODELS)
def test_the_path_names_the_model(path, model):
    """Escapes are undone; of an ARN the name, where it has one."""
    assert model_of(path) == model


def test_the_paths_name_counts():
    """It says maker and region, which the answer's name does not; of an application's profile the answer says more."""
    body = json.dumps({"type": "message", "model": "claude-3-haiku-20240307", "content": []}).encode()
    for path, model in (
        (INVOKE, MODEL),
        (f"/model/{ARN}:application-inference-profile/x1/invoke", "claude-3-haiku-20240307"),
    ):
        (said,) = registry.answers("bedrock.invoke", path, Content("body", body))
        assert said.model == model


def test_an_anthropic_answer_is_the_same_in_amazons_envelope():
    """Plain and streamed: all but the model's name."""
    for there, here in (("anthropic-plain", "bedrock-plain"), ("anthropic-tool-stream", "bedrock-stream")):
        direct, wrapped = golden(there).last, golden(here).last
        assert wrapped.model == MODEL and direct.model == "claude-opus-4-8"
        for name in ("message", "usage", "stop_reason", "response_id", "service_tier", "error", "partial", "trouble"):
            assert getattr(wrapped, name) == getattr(direct, name), name
    asked = golden("bedrock-stream").asked
    assert (asked.model, asked.stream, asked.max_tokens) == (MODEL, True, 100)
    assert asked.messages[0].text == "Say hello." and not golden("bedrock-plain").asked.stream


CONVERSED = Message(
    "assistant",
    (
        Part(PartKind.THINKING, "The user wants"),
        Part(PartKind.TEXT, "I look it up."),
        Part(PartKind.TOOL_CALL, '{"city":"Zürich"}', "weather", "tooluse_1"),
    ),
)


@pytest.mark.parametrize("name", ["converse-plain", "converse-stream"])
def test_converse(name):
    """20 fresh, 11 read, 5 written of which 2 for an hour: 36 + 9 out = the 45 that Bedrock gives as total."""
    one = golden(name)
    usage = Usage(input=20, cache_read=11, cache_write_5m=3, cache_write_1h=2, output=9)
    assert one.answers == (Answer(model=MODEL, message=CONVERSED, usage=usage, stop_reason="tool_use"),)
    assert usage.total == 45
    asked = one.asked
    assert (asked.system, asked.tools, asked.max_tokens) == ("Be brief.", ("weather",), 100)
    assert asked.stream == (name == "converse-stream") and asked.messages[0].text == "What is the weather?"


@pytest.mark.parametrize("name", streams("bedrock", "converse"))
def test_a_stream_may_come_in_any_pieces(name):
    """At every byte, the digest is the same."""
    check_pieces(golden(name))


@pytest.mark.parametrize("name", streams("bedrock", "converse"))
def test_a_stream_may_be_cut_anywhere(name):
    """What was there is told, and that it is not all."""
    check_cuts(golden(name))


USAGES = [
    ({"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}, Usage(input=10, output=5)),
    # What the cache holds is not in inputTokens; without details it was written for five minutes.
    (
        {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 7, "cacheWriteInputTokens": 4},
        Usage(input=10, cache_read=7, cache_write_5m=4, output=5),
    ),
    (
        {"inputTokens": 1, "cacheWriteInputTokens": 9, "cacheDetails": [{"ttl": "1h", "inputTokens": 9}]},
        Usage(input=1, cache_write_1h=9),
    ),
    (
        {"inputTokens": 1, "cacheDetails": [{"ttl": "5m", "inputTokens": 2}, {"ttl": "1h", "inputTokens": 3}, 7]},
        Usage(input=1, cache_write_5m=2, cache_write_1h=3),
    ),
    ({"inputTokens": 1, "cacheWriteInputTokens": 2, "cacheDetails": [{"ttl": "1h", "inputTokens": 9}]}, Usage(input=1, cache_write_1h=2)),
    ({}, None),
    (None, None),
    ({"inputTokens": "many"}, Usage()),
]  # fmt: skip


@pytest.mark.parametrize(("told", "usage"), USAGES)
def test_usage_of_converse(told, usage):
    """Plain and in the stream's last event."""
    output = {"message": {"role": "assistant", "content": [{"text": "Hi"}]}}
    assert conversed({"output": output, "stopReason": "end_turn", "usage": told}).usage == usage
    stream = event("messageStart", {"role": "assistant"}) + event("metadata", {"usage": told})
    assert conversed(stream).usage == usage


def test_the_tier_of_converse():
    """As the answer says."""
    tier = {"serviceTier": {"type": "priority"}}
    assert conversed({"output": {"message": {"content": []}}, **tier}).service_tier == "priority"
    assert conversed(event("metadata", {"usage": {"inputTokens": 1}, **tier})).service_tier == "priority"
    body = json.dumps({"messages": [], "serviceTier": {"type": "flex"}}).encode()
    assert registry.asked("bedrock.converse", CONVERSE, body).service_tier == "flex"


PARTS = [
    ({"text": "Hi"}, (Part(PartKind.TEXT, "Hi"),)),
    ({"text": ""}, ()),
    ({"cachePoint": {"type": "default"}}, ()),
    (
        {"toolUse": {"toolUseId": "t", "name": "ls", "input": {"b": 1, "a": "ü"}}},
        (Part(PartKind.TOOL_CALL, '{"a":"ü","b":1}', "ls", "t"),),
    ),
    (
        {"toolResult": {"toolUseId": "t", "content": [{"text": "a"}, {"json": {"n": 1}}], "status": "error"}},
        (Part(PartKind.TOOL_RESULT, 'a\n{"n":1}', id="t", failed=True),),
    ),
    (
        {"toolResult": {"toolUseId": "t", "content": [{"image": {"format": "png", "source": {"bytes": "iVBO"}}}]}},
        (Part(PartKind.TOOL_RESULT, id="t"), Part(PartKind.MEDIA, "png", "image")),
    ),
    ({"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "x"}}}, (Part(PartKind.THINKING, "Hm."),)),
    ({"reasoningContent": {"redactedContent": "x"}}, (Part(PartKind.THINKING, "[redacted]"),)),
    ({"guardContent": {"text": {"text": "Hi", "qualifiers": []}}}, (Part(PartKind.TEXT, "Hi"),)),
    ({"citationsContent": {"content": [{"text": "So "}, {"text": "it is."}]}}, (Part(PartKind.TEXT, "So it is."),)),
    ({"image": {"format": "png", "source": {"bytes": "iVBO"}}}, (Part(PartKind.MEDIA, "png", "image"),)),
    ({"document": {"format": "pdf", "name": "Q3", "source": {}}}, (Part(PartKind.MEDIA, "Q3", "document"),)),
    (
        {"video": {"format": "mp4", "source": {"s3Location": {"uri": "s3://b/v.mp4"}}}},
        (Part(PartKind.MEDIA, "s3://b/v.mp4", "video"),),
    ),
    ({"newThing": {}}, (Part(PartKind.OTHER, "", "unknown"),)),
    (7, ()),
]


@pytest.mark.parametrize(("block", "parts"), PARTS)
def test_parts_of_a_message(block, parts):
    """Every kind of block, asked and answered; one odd block does not spoil its neighbours."""
    message = {"role": "assistant", "content": [block, {"text": "end"}]}
    end = Part(PartKind.TEXT, "end")
    asked = registry.asked("bedrock.converse", CONVERSE, json.dumps({"messages": [message]}).encode())
    assert asked.messages[0].parts == (*parts, end)
    assert conversed({"output": {"message": message}}).message.parts == (*parts, end)


def test_a_message_that_only_hands_back_results_is_the_tools():
    """As with the other APIs."""
    result = {"toolResult": {"toolUseId": "t", "content": [{"text": "x"}]}}
    contents = ([result], [result, {"text": "and"}], [])
    body = {"messages": [{"role": "user", "content": content} for content in contents]}
    asked = registry.asked("bedrock.converse", CONVERSE, json.dumps(body).encode())
    assert [message.role for message in asked.messages] == ["tool", "user", "user"]


def test_an_answer_is_recognised_when_it_is_sent_back():
    """Without its thinking, with the arguments written anew."""
    sent = [
        {"text": "I look it up. "},
        {"toolUse": {"toolUseId": "tooluse_1", "name": "weather", "input": {"city": "Zürich"}}},
    ]
    body = json.dumps({"messages": [{"role": "assistant", "content": sent}]}).encode()
    (message,) = registry.asked("bedrock.converse", CONVERSE, body).messages
    assert golden("converse-stream").last.message.key == message.key == golden("converse-plain").last.message.key


# --- errors


def test_an_exception_inside_a_stream():
    """Amazon's type and words; what came before it counts."""
    said = golden("bedrock-error-stream").last
    assert (said.error_type, said.error) == ("throttlingException", "Too many tokens, please wait.")
    assert said.partial and said.message.text == "Hello from" and said.usage.output == 1


def test_an_error_frame_tells_in_its_headers():
    """The other way in which a stream can fail."""
    failed = frame(b"", message_type="error", error_code="InternalFailure", error_message="Oops")
    assert (invoked(failed).error_type, invoked(failed).error) == ("InternalFailure", "Oops")


def test_errors_of_the_service():
    """In the three ways in which Amazon writes them."""
    for body, kind in (
        ({"message": "No."}, ""),
        ({"Message": "No.", "__type": "com.amazon#AccessDenied"}, "AccessDenied"),
    ):
        assert conversed(body, status=403) == Answer(model=MODEL, error="No.", error_type=kind)
    named = {"status": 429, "error_type": "ThrottlingException"}
    assert conversed({"message": "No."}, **named) == Answer(model=MODEL, error="No.", error_type="ThrottlingException")
    assert conversed(b"<html>", **named).error_type == "ThrottlingException"
    assert conversed(b"", status=503).error == "status 503 without a body"


def test_damage_is_told():
    """The frames before it count."""
    data = bytearray(golden("bedrock-stream").answer)
    data[-30] ^= 1
    said = invoked(bytes(data))
    assert "checksum" in said.trouble and said.partial and said.stop_reason == "tool_use"


# --- what else has travelled through here


def anthropic_events() -> list[Json]:
    lines = golden("anthropic-stream").answer.split(b"\n")
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_either_base64(encode):
    """Standard, or with - and _."""
    texts = ("~~~", "???", "x~~", "x??")
    data = b"".join(
        chunk({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}, encode)
        for text in texts
    )
    assert (b"n5-f" in data, b"j8_P" in data) == (encode is base64.urlsafe_b64encode,) * 2
    assert invoked(data).message.text == "".join(texts)
    assert invoked(event("chunk", {"bytes": "A"})).trouble == "a frame holds no base64"


@pytest.mark.parametrize("between", [b"", b"\n", b"\n\n", b"\r\n"])
def test_old_logs_hold_what_was_inside_the_frames(between):
    """One `data: {...}` after the other, even with nothing between; a text that looks like a seam is none."""
    events = anthropic_events()
    for one in events:
        if one["type"] == "content_block_delta":
            one["delta"]["text"] = '}data: {"'
    data = between.join(b"data: " + json.dumps(one).encode() for one in events)
    content = Content("events", data, media_type="text/event-stream")
    (said,) = registry.answers("bedrock.invoke", INVOKE_STREAM, content)
    assert said.message.text == '}data: {"' * 4
    assert said.usage.output == 4 and not said.partial


def test_amazons_own_models_speak_converse_through_invoke():
    """Plain and streamed, requests too."""
    path = "/model/amazon.nova-pro-v1:0/invoke-with-response-stream"
    request = {"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "inferenceConfig": {"max_new_tokens": 9}}
    asked = registry.asked("bedrock.invoke", path, json.dumps(request).encode())
    assert (asked.model, asked.max_tokens, asked.messages[0].text) == ("amazon.nova-pro-v1:0", 9, "Hi")
    events = [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"delta": {"text": "Hello"}, "contentBlockIndex": 0}},
        {"messageStop": {"stopReason": "end_turn"}},
        {"metadata": {"usage": {"inputTokens": 3, "outputTokens": 1}, "metrics": {}}},
    ]
    said = invoked(b"".join(map(chunk, events)), path)
    assert (said.message.text, said.usage, said.partial) == ("Hello", Usage(input=3, output=1), False)


def test_other_makers_streams_are_counted():
    """Bedrock adds its counts to the last event, whatever the model's own events look like."""
    metrics = {"inputTokenCount": 12, "outputTokenCount": 5, "cacheReadInputTokenCount": 2, "invocationLatency": 535}
    events = [
        {"generation": "Hi"},
        {"generation": "", "stop_reason": "stop", "amazon-bedrock-invocationMetrics": metrics},
    ]
    said = invoked(b"".join(map(chunk, events)))
    assert said.usage == Usage(input=12, cache_read=2, output=5) and not said.partial
    assert invoked(chunk(events[0])).partial


def test_a_call_without_arguments():
    """The empty object, as where the answer is plain."""
    start = {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "t", "name": "ls"}}}
    assert conversed(event("contentBlockStart", start)).message.parts == (Part(PartKind.TOOL_CALL, "{}", "ls", "t"),)


def test_no_response():
    """Nothing came: there is no answer. Nothing came yet: it is partial."""
    assert registry.answers("bedrock.invoke", INVOKE, Content("body", status=None, complete=False)) == ()
    assert invoked(b"", complete=False).partial and conversed(b"", complete=False).partial
