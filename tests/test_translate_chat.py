"""Callers of OpenAI's chat completions reach every other provider, and get what OpenAI would have sent."""

from __future__ import annotations

from typing import Any

import pytest

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.losses import BadRequest, CannotSay, Losses
from tests.conversations import PIXEL
from tests.translated import NOTHING, answer, request, stream

FUNCTION = {"name": "weather", "description": "tells it", "parameters": {"type": "object", "properties": {}}}
ASKED: dict[str, Any] = {
    "model": "alias",
    "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "high"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
            {"id": "functions.weather:1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "functions.weather:1", "content": [{"type": "text", "text": "sun"}]},
        {"role": "system", "content": "answer in German"},
        {"role": "user", "content": "so?"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "max_completion_tokens": 500,
    "temperature": 0.3,
    "stop": "END",
    "user": "u-1",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
}  # fmt: skip


def test_a_conversation_with_tools_goes_to_anthropic() -> None:
    """Results in one turn and in front, ids as Anthropic takes them, the schema where it has its place."""
    losses = Losses("Anthropic")
    body = request("chat", "anthropic", ASKED, "claude-sonnet-4-5", losses)
    second = body["messages"][1]["content"][1].pop("id")
    assert body == {
        "model": "claude-sonnet-4-5",
        "max_tokens": 500,
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "see"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                {"type": "document", "title": "a.pdf",
                 "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
            ]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bern"}},
                {"type": "tool_use", "name": "weather", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": second, "content": [{"type": "text", "text": "sun"}]},
            ]},
            {"role": "system", "content": [{"type": "text", "text": "answer in German"}]},
            {"role": "user", "content": [{"type": "text", "text": "so?"}]},
        ],
        "temperature": 0.3,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "tools": [{"name": "weather", "description": "tells it",
                   "input_schema": {"type": "object", "properties": {}}}],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    }  # fmt: skip
    assert second.startswith("functions_weather_1_")
    assert losses.dropped == ["messages[1].content[1].detail"]


MOST = [
    ("claude-3-haiku-20240307", 4096),
    ("claude-3-5-sonnet-latest", 8192),
    ("claude-sonnet-4-5-20250929", 32_000),
    ("claude-opus-4-7", 32_000),
]


@pytest.mark.parametrize(("model", "most"), MOST)
def test_anthropic_is_told_how_much_it_may_say(model: str, most: int) -> None:
    """It wants to be told; no other API does. The most that the model is sure to take."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    assert request("chat", "anthropic", asked, model)["max_tokens"] == most


THINKING = [
    ("claude-sonnet-4-5-20250929", {"type": "enabled", "budget_tokens": 8192}, None, 32_000),
    ("us.anthropic.claude-opus-4-20250514-v1:0", {"type": "enabled", "budget_tokens": 8192}, None, 32_000),
    ("claude-haiku-4-5", {"type": "enabled", "budget_tokens": 8192}, None, 32_000),
    ("claude-3-7-sonnet-latest", {"type": "enabled", "budget_tokens": 8192}, None, 32_000),
    ("claude-opus-4-6", {"type": "adaptive"}, {"effort": "medium"}, 32_000),
    ("claude-sonnet-4-8", {"type": "adaptive"}, {"effort": "medium"}, 32_000),
    ("claude-opus-5", {"type": "adaptive"}, {"effort": "medium"}, 32_000),
    ("claude-3-5-haiku-latest", None, None, 8192),
]


@pytest.mark.parametrize(("model", "thinking", "output", "most"), THINKING)
def test_an_effort_is_said_as_the_model_takes_it(model: str, thinking: Any, output: Any, most: int) -> None:
    """By a budget, by a word, or not at all: Claude's generations differ."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": "medium"}
    body = request("chat", "anthropic", asked, model)
    assert (body.get("thinking"), body.get("output_config"), body["max_tokens"]) == (thinking, output, most)


def test_thinking_leaves_room_for_the_answer() -> None:
    """A budget below what may be said in all; below the least that there is, there is none."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": "high"}
    small = request("chat", "anthropic", asked | {"max_tokens": 3000}, "claude-sonnet-4-5")
    assert small["thinking"] == {"type": "enabled", "budget_tokens": 2999}
    losses = Losses("Anthropic")
    assert "thinking" not in request("chat", "anthropic", asked | {"max_tokens": 1000}, "claude-sonnet-4-5", losses)
    assert losses.dropped == ["reasoning_effort"]


def test_thinking_gives_way_where_anthropic_would_refuse_it() -> None:
    """To a tool that must be called, and among calls that were made without it."""
    for asked in (ASKED, ASKED | {"tool_choice": "auto", "messages": ASKED["messages"][:5]}):
        body = request("chat", "anthropic", asked | {"reasoning_effort": "low", "temperature": 1}, "claude-sonnet-4-5")
        assert "thinking" not in body
    with pytest.raises(CannotSay, match=r"^temperature: .*not while it thinks"):
        request("chat", "anthropic", {
            "model": "m", "messages": [], "temperature": 0.3, "reasoning_effort": "low"}, "claude-sonnet-4-5",
        )  # fmt: skip


def test_old_functions_in_a_history_are_calls() -> None:
    """Calls without ids get one, and their results the same."""
    asked = {"model": "m", "messages": [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "one"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "two"},
    ]}  # fmt: skip
    body = request("chat", "anthropic", asked, "claude-sonnet-4-5")
    ids = [block.get("id") or block["tool_use_id"] for one in body["messages"] for block in one["content"]]
    assert ids == ["call_0", "call_0", "call_1", "call_1"]


def test_only_allowed_tools_are_offered() -> None:
    """Other APIs cannot offer a tool and forbid it."""
    other = {"type": "function", "function": FUNCTION | {"name": "other"}}
    chosen = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "other"}}]}}  # fmt: skip
    asked = ASKED | {"tools": [*ASKED["tools"], other], "tool_choice": chosen}
    body = request("chat", "gemini", asked | {"parallel_tool_calls": True}, "gemini-2.5-pro")
    assert [one["name"] for one in body["tools"][0]["functionDeclarations"]] == ["other"]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


@pytest.mark.parametrize(("api", "model"), [("gemini", "gemini-2.5-pro"), ("bedrock", "amazon.nova-pro-v1:0")])
def test_one_call_at_a_time_is_a_hint_where_one_tool_is_forced(api: str, model: str) -> None:
    """Frameworks say both where they want JSON of a shape; with a choice of tools it would change the answer."""
    forced = {"type": "function", "function": {"name": FUNCTION["name"]}}
    for choice in (forced, None):
        asked: dict[str, Any] = ASKED | {"parallel_tool_calls": False, "tool_choice": choice or "auto"}
        losses = Losses(api)
        ask = APIS["chat"].read_request(
            {name: asked[name] for name in ("model", "messages", "tools", "tool_choice", "parallel_tool_calls")}, losses
        )
        if choice:
            APIS[api].write_request(ask, losses)
            assert "parallel_tool_calls" in losses.dropped
        else:
            with pytest.raises(CannotSay, match=r"^parallel_tool_calls: "):
                APIS[api].write_request(ask, losses)


def test_json_without_a_schema() -> None:
    """Gemini has it, Anthropic has not."""
    asked = {"model": "m", "messages": [], "response_format": {"type": "json_object"}}
    config = request("chat", "gemini", asked, "gemini-2.5-pro")["generationConfig"]
    assert config == {"responseMimeType": "application/json"}
    with pytest.raises(CannotSay, match=r"^response_format: "):
        request("chat", "anthropic", asked, "claude-sonnet-4-5")


MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "c2VhbA=="},
        {"type": "text", "text": "I "},
        {"type": "text", "text": "ask"},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
    ],
    "stop_reason": "tool_use", "stop_sequence": None,
    "usage": {
        "input_tokens": 40, "output_tokens": 20, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 60,
        "cache_creation": {"ephemeral_1h_input_tokens": 4}, "output_tokens_details": {"thinking_tokens": 5},
    },
}  # fmt: skip


def test_a_message_comes_as_a_completion() -> None:
    """One text, calls with arguments as text, a time, a reason to end that OpenAI has, counts that lie within others."""
    thoughts = [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "c2VhbA=="},
    ]
    assert answer("anthropic", "chat", MESSAGE) == {
        "id": "msg_1", "object": "chat.completion", "created": 1_760_000_000, "model": "claude-sonnet-4-5",
        "choices": [{"index": 0, "finish_reason": "tool_calls", "logprobs": None, "message": {
            "role": "assistant", "content": "I ask", "refusal": None,
            "reasoning_content": "hm", "thinking_blocks": thoughts,
            "tool_calls": [{"id": "toolu_1", "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}],
        }}],
        "usage": {
            "prompt_tokens": 110, "completion_tokens": 20, "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0, "cache_write_tokens": 10},
            "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
        },
    }  # fmt: skip


ENDS = [
    ("anthropic", "end_turn", "stop"),
    ("anthropic", "stop_sequence", "stop"),
    ("anthropic", "max_tokens", "length"),
    ("anthropic", "model_context_window_exceeded", "length"),
    ("anthropic", "tool_use", "tool_calls"),
    ("anthropic", "refusal", "content_filter"),
    ("anthropic", "pause_turn", "stop"),
]


@pytest.mark.parametrize(("source", "told", "finish"), ENDS)
def test_an_answer_ends_for_openais_reasons(source: str, told: str, finish: str) -> None:
    """Clients switch on these; Anthropic's own would break them."""
    assert answer(source, "chat", MESSAGE | {"stop_reason": told})["choices"][0]["finish_reason"] == finish


def test_thoughts_that_a_caller_sends_back_reach_anthropic_signed() -> None:
    """Whoever keeps `thinking_blocks` can think on in the middle of calls."""
    said = answer("anthropic", "chat", MESSAGE)["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"}
    asked = {"model": "m", "messages": [said, result], "reasoning_effort": "low"}
    body = request("chat", "anthropic", asked, "claude-sonnet-4-5")
    assert body["messages"][0]["content"][:2] == MESSAGE["content"][:2]  # type: ignore[index]
    assert body["thinking"]["type"] == "enabled"


def test_a_stream_of_a_message_comes_as_chunks() -> None:
    """Role first, then words and arguments as they come, the reason, and the counts where they were asked for."""
    pieces = [
        {"type": "message_start", "message": {"id": "msg_1", "model": "c", "usage": {"input_tokens": 9}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "ping"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "I ask"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": {
            "type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 4}},
        {"type": "message_stop"},
    ]  # fmt: skip
    told = stream("anthropic", "chat", pieces)
    deltas = [piece["choices"][0]["delta"] for piece in told if piece["choices"]]
    begun = {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    assert deltas == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "hm"},
        {"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "c2ln"}]},
        {"content": "I ask"},
        {"tool_calls": [{"index": 0} | begun]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {},
    ]
    assert told[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert told[-1]["usage"]["prompt_tokens"] == 9
    assert told[-1]["choices"] == []
    assert {piece["created"] for piece in told} == {1_760_000_000}
    assert APIS["chat"].ending == b"data: [DONE]\n\n"


def test_counts_are_streamed_to_those_who_asked_for_them() -> None:
    """To others no chunk has a field `usage`, as OpenAI does it."""
    ask = APIS["chat"].read_request({"model": "m", "messages": [], "stream": True}, Losses("nobody"))
    told = stream("anthropic", "chat", [
        {"type": "message_start", "message": {"id": "msg_1", "model": "c"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}},
    ], ask)  # fmt: skip
    assert [piece for piece in told if "usage" in piece or not piece["choices"]] == []
    assert NOTHING.usage


def test_logprobs_come_from_those_who_have_them() -> None:
    """Gemini and OpenAI's Responses do; whole and streamed."""
    result = {"chosenCandidates": [{"token": "a", "logProbability": -0.5}],
              "topCandidates": [{"candidates": [{"token": "b", "logProbability": -1}]}]}  # fmt: skip
    said = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "logprobsResult": result}]}
    expected = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
        {"token": "b", "logprob": -1.0, "bytes": [98]}]}], "refusal": None}  # fmt: skip
    assert answer("gemini", "chat", said)["choices"][0]["logprobs"] == expected
    told = [piece["choices"][0]["logprobs"] for piece in stream("gemini", "chat", [said]) if piece["choices"]]
    assert expected in told


BAD = [
    ({"model": "m"} | {"messages": [{"role": "robot"}]},
     "messages[0].role: must be one of system, developer, user, assistant, tool, function"),
    ({"model": "m", "messages": [{"role": "user", "content": 7}]}, "messages[0].content: must be a text or a list"),
    ({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[0].content[0].image_url: is required"),
    ({"model": "m", "messages": [], "stream": "yes"}, "stream: must be true or false"),
    ({"model": "m", "messages": [], "tools": [{"type": "function", "function": {}}]},
     "tools[0].function.name: is required"),
    ({"model": "m", "messages": [{"role": "assistant", "tool_calls": [
        {"id": "1", "function": {"name": "f", "arguments": "{oops"}}]}]},
     "messages[0].tool_calls[0]: must be JSON, because the API it goes to takes objects only"),
    ([], "must be an object"),
    ({"model": "m", "messages": [], "reasoning_effort": "huge"},
     "reasoning_effort: must be one of none, minimal, low, medium, high, xhigh, max"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), BAD)
def test_a_request_that_is_wrong_is_told_where(body: object, words: str) -> None:
    """In the caller's own names."""
    with pytest.raises(BadRequest) as wrong:
        request("chat", "anthropic", body)
    assert str(wrong.value) == words


def test_an_answer_that_is_no_answer_does_not_raise() -> None:
    """Whatever a provider sends, whole or as chunks."""
    for body in (None, [], {}, {"choices": [None]}, {"choices": [{"message": {"tool_calls": [None, {}]}}]}):
        assert answer("chat", "anthropic", body)["type"] == "message"
    pieces = [None, [], {"choices": [None, {"delta": None}, {"delta": {"tool_calls": [None]}}]}, {"error": "x"}]
    assert stream("chat", "anthropic", pieces)[-1]["error"]["message"] == "x"
