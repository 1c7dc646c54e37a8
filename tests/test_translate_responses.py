"""OpenAI's Responses, both ways: what Codex and the SDKs send reaches others, and what others say comes as items."""

from __future__ import annotations

from typing import Any

import pytest

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import Ask
from llm_proxy.gateway.translate.losses import BadRequest, CannotSay, Losses
from tests.conversations import PIXEL
from tests.translated import answer, request, stream

FUNCTION = {"type": "function", "name": "weather", "description": "tells it", "strict": False,
            "parameters": {"type": "object", "properties": {}}}  # fmt: skip
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}
ASKED: dict[str, Any] = {
    "model": "alias",
    "instructions": "be brief",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be kind"}]},
        {"role": "user", "content": [
            {"type": "input_text", "text": "see"},
            {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
        ]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
         "encrypted_content": "ZW5j"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "I ask", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "patch", "input": "any"},
        {"type": "function_call_output", "call_id": "call_1", "output": [
            {"type": "input_text", "text": "rain"}, {"type": "input_image", "image_url": "https://host.example/a.png"},
        ]},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
        {"role": "user", "content": "so?"},
    ],
    "tools": [FUNCTION, {"type": "custom", "name": "patch", "description": "mends", "format": GRAMMAR}],
    "tool_choice": "auto",
    "max_output_tokens": 500,
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}, "verbosity": "medium"},
    "include": ["reasoning.encrypted_content"],
    "store": False,
    "stream": True,
    "prompt_cache_key": "k",
}  # fmt: skip


def test_items_go_to_anthropic_as_turns() -> None:
    """Reasoning of another maker stays behind; free tools take an object; pictures stay in their result."""
    losses = Losses("Anthropic")
    body = request("responses", "anthropic", ASKED, "claude-sonnet-4-5", losses)
    assert body["system"] == [{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}]
    assert body["messages"] == [
        {"role": "user", "content": [
            {"type": "text", "text": "see"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            {"type": "document", "title": "a.pdf",
             "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        ]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "I ask"},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}},
            {"type": "tool_use", "id": "call_2", "name": "patch", "input": {"input": "any"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [
                {"type": "text", "text": "rain"},
                {"type": "image", "source": {"type": "url", "url": "https://host.example/a.png"}},
            ]},
            {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "done"}]},
            {"type": "text", "text": "so?"},
        ]},
    ]  # fmt: skip
    assert body["tools"][1] == {
        "name": "patch",
        "description": "mends\n\nThe input follows this lark grammar:\nstart: /a/",
        "input_schema": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
    }
    assert (body["max_tokens"], body["stream"]) == (500, True)
    assert losses.dropped == ["input[2]", "prompt_cache_key", "tools[1].format"]


KEPT = {
    "previous_response_id": "resp_1",
    "store": True,
    "background": True,
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
    "truncation": "auto",
    "max_tool_calls": 3,
}


@pytest.mark.parametrize("field", KEPT)
def test_what_openai_would_keep_is_refused_by_name(field: str) -> None:
    """No other provider has what an earlier request left there."""
    with pytest.raises(CannotSay, match=f"^{field}: cannot be said to Anthropic Messages"):
        request("responses", "anthropic", ASKED | {field: KEPT[field]}, "claude-sonnet-4-5")


def test_tools_may_stand_among_the_items() -> None:
    """Codex sends them so."""
    items = [{"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}, *ASKED["input"]]
    asked = {name: value for name, value in ASKED.items() if name != "tools"} | {"input": items}
    assert request("responses", "chat", asked, "gpt-5")["tools"][0]["function"]["name"] == "weather"


def test_what_is_written_keeps_nothing_at_openai() -> None:
    """Stored nowhere, its reasoning sealed for the next request, which is only asked of models that reason."""
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    body = request("anthropic", "responses", asked, "gpt-5")
    assert body == {
        "model": "gpt-5",
        "store": False,
        "input": [{"type": "message", "role": "user", "content": "x"}],
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 9,
    }
    assert "include" not in request("anthropic", "responses", asked, "gpt-4.1")


RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "created_at": 1_700_000_000.0, "status": "completed", "model": "gpt-5",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
         "encrypted_content": "ZW5j"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I ask", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": "{}"},
    ],
    "usage": {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3,
              "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 13},
}  # fmt: skip


def test_sealed_reasoning_comes_back_through_an_anthropic_client() -> None:
    """The client keeps a signature as it is; the next request has the item again, with its id."""
    said = answer("responses", "anthropic", RESPONSE)
    assert [block["type"] for block in said["content"]] == ["thinking", "text", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"}
    asked = {"model": "m", "max_tokens": 9, "messages": [
        {"role": "assistant", "content": said["content"]}, {"role": "user", "content": [result]}]}  # fmt: skip
    assert request("anthropic", "responses", asked, "gpt-5")["input"][0] == RESPONSE["output"][0]
    # Another maker's model does not get it.
    losses = Losses("Anthropic")
    request("anthropic", "anthropic", asked, "claude-sonnet-4-5", losses)
    assert losses.dropped == ["messages[0].content[0]"]


@pytest.mark.parametrize(
    ("status", "why", "finish"),
    [("incomplete", "max_output_tokens", "length"), ("incomplete", "content_filter", "content_filter"),
     ("completed", None, "tool_calls")],
)  # fmt: skip
def test_an_answer_ends_for_chats_reasons(status: str, why: str | None, finish: str) -> None:
    """A response has a status only."""
    told = RESPONSE | {"status": status, "incomplete_details": {"reason": why} if why else None}
    assert answer("responses", "chat", told)["choices"][0]["finish_reason"] == finish


def test_a_response_that_failed_is_a_failure() -> None:
    """OpenAI says so with a status of 200."""
    failed = RESPONSE | {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "too many"}}
    reply = APIS["responses"].read_reply(failed)
    assert reply.failure is not None
    assert (reply.failure.kind, reply.failure.message) == ("rate_limited", "too many")


PIECES = [
    {"type": "message_start", "message": {"id": "msg_1", "model": "c", "usage": {"input_tokens": 9}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "I ask"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": {
        "type": "tool_use", "id": "toolu_1", "name": "patch", "input": {}}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"inp'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": 'ut":"a\\nb"}'}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 4}},
    {"type": "message_stop"},
]  # fmt: skip


def test_a_stream_of_a_message_comes_as_a_responses_events() -> None:
    """Every event that OpenAI sends, numbered; a free tool's call has its text again."""
    ask = APIS["responses"].read_request(ASKED, Losses("nobody"))
    told = stream("anthropic", "responses", PIECES, ask)
    assert [piece["sequence_number"] for piece in told] == list(range(len(told)))
    assert [piece["type"].removeprefix("response.") for piece in told] == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    done = [piece["item"] for piece in told if piece["type"] == "response.output_item.done"]
    assert told[-1]["response"]["output"] == done
    assert done[2] == {"id": "ctc_msg_1_2", "type": "custom_tool_call", "call_id": "toolu_1", "name": "patch",
                       "input": "a\nb"}  # fmt: skip
    for index, item in enumerate(done):
        ids = {piece["item_id"] for piece in told if piece.get("output_index") == index and "item_id" in piece}
        assert ids == {item["id"]}
    assert told[-1]["response"]["usage"]["total_tokens"] == 13
    # The signed thought comes back to Anthropic as it was.
    asked = {"model": "m", "input": [done[0], {"role": "user", "content": "x"}]}
    back = request("responses", "anthropic", asked, "claude-sonnet-4-5")["messages"][0]["content"]
    assert back == [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}]


def test_an_answer_whole_and_streamed_is_the_same() -> None:
    """Output, status and counts, item for item."""
    blocks = [{"type": "text", "text": "I ask"}, {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]
    body = {"id": "msg_1", "model": "c", "content": blocks, "stop_reason": "max_tokens",
            "usage": {"input_tokens": 9, "output_tokens": 4}}  # fmt: skip
    pieces = [
        PIECES[0],
        {"type": "content_block_start", "index": 0, "content_block": blocks[0]},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": blocks[1]},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 4}},
    ]
    whole = answer("anthropic", "responses", body)
    assert whole == stream("anthropic", "responses", pieces)[-1]["response"]
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_stream_without_its_beginnings_is_understood() -> None:
    """Some that are compatible send deltas only, others whole items only."""
    pieces: list[Any] = [
        {"type": "response.created", "response": {"id": "resp_1", "model": "m"}},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "words"},
        {"type": "response.output_item.done", "output_index": 1, "item": RESPONSE["output"][3] | {"arguments": "{}"}},
        {"type": "response.completed", "response": RESPONSE},
    ]
    told = stream("responses", "anthropic", pieces)
    said = [piece["delta"] for piece in told if piece["type"] == "content_block_delta"]
    assert said == [{"type": "text_delta", "text": "words"}, {"type": "input_json_delta", "partial_json": "{}"}]
    assert told[-2]["delta"]["stop_reason"] == "tool_use"


def test_a_provider_that_breaks_off_fails_the_response() -> None:
    """Within a stream as `response.failed`, before it as an error."""
    broken = {"type": "error", "error": {"type": "overloaded_error", "message": "too many"}}
    told = stream("anthropic", "responses", [*PIECES[:3], broken])
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["error"] == {"code": "server_error", "message": "too many"}
    assert stream("anthropic", "responses", [broken])[-1] == {
        "type": "error", "sequence_number": 0, "code": "overloaded", "message": "too many", "param": None,
    }  # fmt: skip


BAD = [
    ({"model": "m", "input": 7}, "input: must be a list"),
    ({"model": "m", "input": [{"role": "robot"}]},
     "input[0].role: must be one of user, assistant, system, developer"),
    ({"model": "m", "input": [{"type": "function_call", "call_id": "1", "name": "f"}]},
     "input[0].arguments: is required"),
    ({"model": "m", "input": [], "tool_choice": 1},
     "tool_choice: must be none, auto, required, a named tool or allowed tools"),
    ({"model": "m", "input": [{"id": "msg_1"}]},
     "input[0]: cannot be said to Anthropic Messages: an item of type item_reference"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), BAD)
def test_a_request_that_is_wrong_is_told_where(body: object, words: str) -> None:
    """In the caller's own names."""
    with pytest.raises(BadRequest) as wrong:
        request("responses", "anthropic", body)
    assert str(wrong.value) == words


def test_an_answer_that_is_no_answer_does_not_raise() -> None:
    """Whatever a provider sends, whole or as events."""
    for body in (None, [], {}, {"output": [None, {"type": "message"}]}, {"output": [{"type": "reasoning"}]}):
        assert answer("responses", "anthropic", body, Ask("m", ()))["type"] == "message"
    odd = [None, {"type": "response.output_item.done"}, {"type": "response.output_text.delta"}, {"type": 7}]
    assert stream("responses", "anthropic", [*odd, {"type": "response.completed"}])[-1] == {"type": "message_stop"}
