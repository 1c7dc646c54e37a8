"""A stream's own end is recognised, and nothing written inside it can look like one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.dialects.terminal import ends_complete

ANTHROPIC, CHAT, RESPONSES = (
    ("anthropic", "/v1/messages"),
    ("openai", "/v1/chat/completions"),
    ("openai", "/v1/responses"),
)
INVOKE, CONVERSE = (
    ("bedrock", "/model/us.anthropic.claude-v1:0/invoke-with-response-stream"),
    ("bedrock", "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ax%2Fy/converse-stream"),
)
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
DONE = b"data: [DONE]\n\n"
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'

ENDED = [
    (ANTHROPIC, STOP),
    (ANTHROPIC, b'data: {"type":"message_stop"}\n\n'),
    (ANTHROPIC, STOP.replace(b"\n", b"\r\n")),
    (ANTHROPIC, STOP.replace(b"\n", b"\r")),
    (ANTHROPIC, STOP + b": ping\n\n" + b'event: ping\ndata: {"type":"ping"}\n\n'),
    (("openai", "/v1/messages"), STOP),
    (("anthropic", "/v1/chat/completions"), DONE),
    (CHAT, DONE),
    (CHAT, b"data:[DONE]\n\n"),
    (CHAT, b'"}]}\n\n' + DONE),
    (CHAT, DONE + b"data: more\n\n"),
    (RESPONSES, COMPLETED),
    (RESPONSES, b'data: {"response":{"id":1},"type":"response.completed"}\n\n'),
    (RESPONSES, COMPLETED.replace(b"completed", b"failed")),
    (RESPONSES, COMPLETED.replace(b"completed", b"incomplete")),
    (("openai", "/backend-api/codex/responses"), COMPLETED),
    (("openai", "/v1/threads/t/runs"), b"event: done\ndata: [DONE]\n\n"),
    (("other", "/somewhere"), STOP),
    # Bedrock's frames as the record tells them.
    (INVOKE, b'data: {"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":1}}\n\n'),
    (INVOKE, b'data: {"type":"message_stop"}\n\n'),
    (INVOKE, b'data: {"generation":"","amazon-bedrock-invocationMetrics":{"outputTokenCount":1}}\n\n'),
    (INVOKE, b'data: {"messageStop":{"stopReason":"end_turn"}}\n\n'),
    (("bedrock", "/secret/x/model/m/invoke-with-response-stream"), b'data: {"metadata":{"usage":{}}}\n\n'),
    (CONVERSE, b'event: messageStop\ndata: {"stopReason":"end_turn"}\n\n'),
    (CONVERSE, b'event: metadata\ndata: {"usage":{}}\n\n'),
    # One WebSocket message.
    (RESPONSES, b'{"type":"response.completed","response":{"output":[]}}'),
    (RESPONSES, b'{"type":"response.failed"}'),
    # A tail that happens to begin inside an event.
    (RESPONSES, b'{"type":"response.created"}\n\n' + COMPLETED),
]

TEXT = json.dumps('data: [DONE]\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n').encode()
OPEN = [
    (ANTHROPIC, b""),
    (ANTHROPIC, b'event: message_delta\ndata: {"type":"message_delta"}\n\n'),
    (ANTHROPIC, STOP[:-1]),  # its blank line never came: the client has not seen it
    (ANTHROPIC, STOP[:-2]),
    (ANTHROPIC, b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":' + TEXT + b"}\n\n"),
    (ANTHROPIC, b'data: {"delta":{"type":"message_stop"}}\n\n'),
    (ANTHROPIC, b"event: message_stop\n\n"),
    (ANTHROPIC, b": event: message_stop\ndata: x\n\n"),
    (ANTHROPIC, b"data: {\n\n"),
    (INVOKE, b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'),
    (INVOKE, b'data: {"type":"content_block_delta","delta":{"text":' + TEXT + b"}}\n\n"),
    (INVOKE, b'data: {"delta":{"messageStop":{}}}\n\n'),
    (INVOKE, b'event: exception:throttlingException\ndata: {"message":"messageStop"}\n\n'),
    (CONVERSE, b'event: contentBlockStop\ndata: {"contentBlockIndex":0}\n\n'),
    (CONVERSE, b'event: contentBlockDelta\ndata: {"delta":{"text":"messageStop"}}\n\n'),
    (CONVERSE, b'event: messageStop\ndata: {"stopReason":"end_turn"}\n'),
    (CHAT, b'data: {"messageStop":{},"metadata":{}}\n\n'),
    (CHAT, b'data: {"choices":[{"delta":{"content":' + TEXT + b"}}]}\n\n"),
    (CHAT, b'data: [DONE]"}}]}\n\n'),  # the end of a longer line
    (CHAT, b"data: [DONE] \n\n"),
    (CHAT, b"data: x\ndata: [DONE]\n\n"),
    (CHAT, b"[DONE]"),
    (CHAT, STOP),
    (("anthropic", "/somewhere"), DONE),
    (
        RESPONSES,
        b'event: response.output_text.done\ndata: {"type":"response.output_text.done","text":' + TEXT + b"}\n\n",
    ),
    (RESPONSES, b'{"type":"response.created"}'),
    (RESPONSES, b'{"type":"response.completed"'),
    (RESPONSES, b'{"type":["response.completed"]}'),
    (RESPONSES, b"\x88\x02\x03\xe8"),
    (RESPONSES, b"data: " + b"[" * 100_000 + b"\n\n"),
    (RESPONSES, b"{" * 100_000),
    (RESPONSES, b'data: {"type":"\\ud800"}\n\n\xff'),
]


@pytest.mark.parametrize(("where", "tail"), ENDED)
def test_a_terminal_event_is_seen(where, tail):
    """By its name or its type, in every line end, with or without something after it."""
    assert ends_complete(*where, tail)


@pytest.mark.parametrize(("where", "tail"), OPEN)
def test_what_is_no_whole_terminal_event_is_not(where, tail):
    """Text of the model, half events, other events, garbage."""
    assert not ends_complete(*where, tail)


@given(st.text(max_size=40), st.sampled_from([ANTHROPIC, CHAT, RESPONSES]), st.integers(0, 400))
def test_no_text_of_a_model_ends_a_stream_wherever_the_tail_begins(text, where, start):
    """The text stands in JSON strings; a cut tail may begin at any byte of them."""
    texts = [text, "data: [DONE]\n\n" + text, '{"type":"message_stop"}' + text, "event: message_stop\ndata: 1\n\n"]
    stream = b"".join(b"event: x\ndata: " + json.dumps({"text": one}).encode() + b"\n\n" for one in texts)
    assert not ends_complete(*where, stream[min(start, len(stream)) :])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tail(tail):
    """Never raises."""
    for where in (ANTHROPIC, CHAT, RESPONSES):
        ends_complete(*where, tail)
