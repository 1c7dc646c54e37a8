"""Amazon Bedrock, outbound: Converse for every model, InvokeModel for Anthropic's; as Amazon's own SDK would send it."""

from __future__ import annotations

from typing import Any

import pytest

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.bedrock import invoked
from llm_proxy.gateway.translate.losses import CannotSay, Losses
from tests.conversations import PIXEL
from tests.translated import answer, request, stream

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA = "us.amazon.nova-2-lite-v1:0"
ASKED: dict[str, Any] = {
    "model": "alias", "max_tokens": 1000,
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "messages": [
        {"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            {"type": "document", "title": "my report/1.pdf",
             "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
            {"type": "text", "text": "see", "cache_control": {"type": "ephemeral"}},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": "no"}]},
    ],
    "tools": [{"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}],
    "tool_choice": {"type": "auto"}, "stop_sequences": ["END"], "top_k": 5, "temperature": 1,
    "thinking": {"type": "enabled", "budget_tokens": 2000}, "service_tier": "standard_only",
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
}  # fmt: skip


def test_a_request_has_all_in_amazons_own_places() -> None:
    """Bytes, cache points behind what they belong to, what only Claude knows among the model's own fields."""
    assert request("anthropic", "bedrock", ASKED, CLAUDE) == {
        "system": [{"text": "be brief"}, {"cachePoint": {"type": "default", "ttl": "1h"}}],
        "messages": [
            {"role": "user", "content": [
                {"image": {"format": "png", "source": {"bytes": PIXEL}}},
                {"document": {"format": "pdf", "name": "my report-1-pdf", "source": {"bytes": "JVBERi0="}}},
                {"text": "see"},
                {"cachePoint": {"type": "default"}},
            ]},
            {"role": "assistant", "content": [
                {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "c2ln"}}},
                {"toolUse": {"toolUseId": "toolu_1", "name": "f", "input": {"a": 1}}},
            ]},
            {"role": "user", "content": [
                {"toolResult": {"toolUseId": "toolu_1", "status": "error", "content": [{"text": "no"}]}}]},
        ],
        "inferenceConfig": {"maxTokens": 1000, "temperature": 1, "stopSequences": ["END"]},
        "toolConfig": {
            "tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {"type": "object"}}}},
                      {"cachePoint": {"type": "default"}}],
            "toolChoice": {"auto": {}},
        },
        "outputConfig": {"textFormat": {"type": "json_schema",
                                        "structure": {"jsonSchema": {"schema": '{"type":"object"}'}}}},
        "additionalModelRequestFields": {"top_k": 5},
        "serviceTier": {"type": "default"},
    } | {"additionalModelRequestFields": {"top_k": 5}}  # fmt: skip


def test_claude_is_told_how_much_to_think() -> None:
    """As in Anthropic's own API, and within what may be said in all."""
    asked = ASKED | {"max_tokens": 5000}
    del asked["top_k"]
    body = request("anthropic", "bedrock", asked, CLAUDE)
    assert body["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert body["inferenceConfig"]["maxTokens"] == 5000


EFFORTS = [
    (CLAUDE, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
    ("anthropic.claude-opus-4-7", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
    (NOVA, {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}}),
    ("openai.gpt-oss-120b-1:0", {"reasoning_effort": "low"}),
    ("meta.llama3-3-70b-instruct-v1:0", None),
]


@pytest.mark.parametrize(("model", "fields"), EFFORTS)
def test_each_maker_is_told_in_its_own_way(model: str, fields: Any) -> None:
    """Amazon passes these fields on as they are."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": "low"}
    losses = Losses("Bedrock")
    assert request("chat", "bedrock", asked, model, losses).get("additionalModelRequestFields") == fields
    assert losses.dropped == ([] if fields else ["reasoning_effort"])


def test_no_tool_may_be_called() -> None:
    """Said by offering none, which Amazon only takes where none was called before."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tool_choice": "none",
             "tools": [{"type": "function", "function": {"name": "f"}}]}  # fmt: skip
    assert "toolConfig" not in request("chat", "bedrock", asked, NOVA)
    called = asked | {"messages": [{"role": "assistant", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]}  # fmt: skip
    with pytest.raises(CannotSay, match=r"^tool_choice: "):
        request("chat", "bedrock", called, NOVA)


ANSWER: dict[str, Any] = {
    "output": {"message": {"role": "assistant", "content": [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "c2VhbA=="}},
        {"text": "I ask"},
        {"toolUse": {"toolUseId": "tooluse_1", "name": "f", "input": {"a": 1}}},
    ]}},
    "stopReason": "tool_use",
    "usage": {"inputTokens": 40, "outputTokens": 20, "totalTokens": 130, "cacheReadInputTokens": 60,
              "cacheWriteInputTokens": 10, "cacheDetails": [{"ttl": "1h", "inputTokens": 4}]},
    "metrics": {"latencyMs": 1},
}  # fmt: skip


def test_an_answer_comes_as_a_message() -> None:
    """Claude's signature holds on both platforms; what Amazon sealed goes in an envelope, and comes back."""
    said = answer("bedrock", "anthropic", ANSWER)
    assert said["id"] == "id-1"
    assert said["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    assert said["content"][2:] == [
        {"type": "text", "text": "I ask"},
        {"type": "tool_use", "id": "tooluse_1", "name": "f", "input": {"a": 1}},
    ]
    assert said["usage"] == {
        "input_tokens": 40, "output_tokens": 20, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 60,
        "cache_creation": {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 4},
    }  # fmt: skip
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "assistant", "content": said["content"]}]}
    back = request("anthropic", "bedrock", asked, CLAUDE)["messages"][0]["content"]
    assert back == ANSWER["output"]["message"]["content"]


ENDS = [
    ("end_turn", "stop"), ("stop_sequence", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"),
    ("guardrail_intervened", "content_filter"), ("content_filtered", "content_filter"),
    ("model_context_window_exceeded", "length"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "finish"), ENDS)
def test_an_answer_ends_for_openais_reasons(told: str, finish: str) -> None:
    """Not for Amazon's."""
    assert answer("bedrock", "chat", ANSWER | {"stopReason": told})["choices"][0]["finish_reason"] == finish


def test_a_stream_comes_as_chunks() -> None:
    """Texts have no beginning there, and the counts come last."""
    told = stream("bedrock", "chat", [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"text": "I ask"}, "p": "abc"}},
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"contentBlockStart": {"contentBlockIndex": 1, "start": {"toolUse": {"toolUseId": "t", "name": "f"}}}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"toolUse": {"input": '{"a":1}'}}}},
        {"contentBlockStop": {"contentBlockIndex": 1}},
        {"messageStop": {"stopReason": "tool_use"}},
        {"metadata": {"usage": {"inputTokens": 7, "outputTokens": 3}}},
    ])  # fmt: skip
    deltas = [piece["choices"][0]["delta"] for piece in told if piece["choices"]]
    assert deltas[1] == {"content": "I ask"}
    assert deltas[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": ""}
    assert deltas[3]["tool_calls"][0]["function"] == {"arguments": '{"a":1}'}
    assert told[-1]["usage"]["total_tokens"] == 10


def test_an_exception_within_a_stream_is_an_error() -> None:
    """Under Amazon's name for it; nothing looks like an end."""
    told = stream("bedrock", "anthropic", [
        {"messageStart": {"role": "assistant"}}, {"throttlingException": {"message": "too many"}}])  # fmt: skip
    assert told[-1] == {"type": "error", "error": {"type": "rate_limit_error", "message": "too many"}}


def test_a_model_that_breaks_its_own_rules_has_failed() -> None:
    """So that another try may be made of it."""
    failure = APIS["bedrock"].read_reply(ANSWER | {"stopReason": "malformed_tool_use"}).failure
    assert failure is not None
    assert failure.kind == "bad_gateway"


def test_invoke_model_takes_anthropics_body() -> None:
    """Without what stands in the path, with what stands in headers elsewhere; nothing else is touched."""
    assert invoked(ASKED | {"stream": True}, ["context-1m"]) == {
        name: value for name, value in ASKED.items() if name != "model"
    } | {"anthropic_version": "bedrock-2023-05-31", "anthropic_beta": ["context-1m"]}
    assert invoked({"anthropic_version": "other"})["anthropic_version"] == "other"


def test_an_answer_that_is_no_answer_does_not_raise() -> None:
    """Whatever a provider sends."""
    odd: list[Any] = [None, [], {}, {"output": {"message": {"content": [None, {"toolUse": None}]}}}]
    for body in odd:
        assert answer("bedrock", "chat", body)["object"] == "chat.completion"
    events = [{"messageStart": None}, {"contentBlockDelta": {"delta": None}}, {"metadata": 7}, {"messageStop": {}}]
    assert stream("bedrock", "chat", [*odd, *events])[-1]["choices"] == []
