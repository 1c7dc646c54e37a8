"""Callers of Anthropic's Messages reach every other provider, and get what Anthropic would have sent."""

from __future__ import annotations

import json

import pytest

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import Ask
from llm_proxy.gateway.translate.losses import BadRequest, CannotSay, Losses
from tests.conversations import PIXEL
from tests.translated import answer, events, request, stream

TOOL = {"name": "weather", "description": "tells it", "input_schema": {"type": "object", "properties": {}}}
ASKED = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 1000,
    "system": [
        {"type": "text", "text": "be brief"},
        {"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "how is it in"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        ]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "let me see", "signature": "c2ln"},
            {"type": "text", "text": "I ask"},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
            {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"city": "Zürich"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"},
            {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True, "content": [
                {"type": "text", "text": "no such place"},
                {"type": "image", "source": {"type": "url", "url": "https://host.example/map.png"}},
            ]},
            {"type": "text", "text": "and?"},
        ]},
        {"role": "system", "content": "answer in German"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "stop_sequences": ["END"],
    "temperature": 0.5,
    "top_p": 0.9,
    "metadata": {"user_id": "u-1"},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "service_tier": "standard_only",
    "stream": True,
}  # fmt: skip


def test_a_conversation_with_tools_goes_to_openai_chat() -> None:
    """System in front and in between, parallel calls, a failed result with a picture, a schema, every setting."""
    losses = Losses("OpenAI")
    body = request("anthropic", "chat", ASKED, "gpt-4.1", losses)
    assert body == {
        "model": "gpt-4.1",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}]},
            {"role": "user", "content": [
                {"type": "text", "text": "how is it in"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            ]},
            {"role": "assistant", "content": "I ask", "tool_calls": [
                {"id": "toolu_1", "type": "function",
                 "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
                {"id": "toolu_2", "type": "function",
                 "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}},
            ]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "rain"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": [
                {"type": "text", "text": "no such place"},
                {"type": "text", "text": "[1 attachment(s): see the next message of the user]"},
            ]},
            {"role": "user", "content": [
                {"type": "text", "text": "[attached to the result of toolu_2]"},
                {"type": "image_url", "image_url": {"url": "https://host.example/map.png"}},
                {"type": "text", "text": "and?"},
            ]},
            {"role": "system", "content": "answer in German"},
        ],
        "max_tokens": 1000,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "user": "u-1",
        "service_tier": "default",
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": {
            "name": "weather", "description": "tells it", "parameters": {"type": "object", "properties": {}},
        }}],
        "tool_choice": "required",
        "response_format": {"type": "json_schema", "json_schema": {
            "name": "answer", "schema": {"type": "object"}, "strict": True,
        }},
        "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert losses.dropped == [
        "system[1].cache_control",
        "messages[1].content[0]",
        "messages[2].content[1].is_error",
    ]


def test_the_same_conversation_goes_to_gemini() -> None:
    """Results know their tool's name there, and results that failed say so."""
    asked = {name: value for name, value in ASKED.items() if name != "tool_choice"}
    body = request("anthropic", "gemini", asked, "gemini-3-pro")
    assert body["systemInstruction"] == {"parts": [{"text": "be brief"}, {"text": "be kind"}]}
    assert body["contents"][1]["parts"] == [
        {"text": "I ask"},
        {"functionCall": {"id": "toolu_1", "name": "weather", "args": {"city": "Bern"}},
         "thoughtSignature": "skip_thought_signature_validator"},
        {"functionCall": {"id": "toolu_2", "name": "weather", "args": {"city": "Zürich"}}},
    ]  # fmt: skip
    assert body["contents"][2]["parts"] == [
        {"functionResponse": {"id": "toolu_1", "name": "weather", "response": {"output": "rain"}}},
        {"functionResponse": {"id": "toolu_2", "name": "weather", "response": {"error": "no such place"}}},
        {"fileData": {"fileUri": "https://host.example/map.png", "mimeType": "image/png"}},
        {"text": "and?"},
        {"text": "answer in German"},
    ]
    assert body["generationConfig"] == {
        "maxOutputTokens": 1000, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"],
        "responseMimeType": "application/json", "responseJsonSchema": {"type": "object"},
    }  # fmt: skip


THINKING = [
    ("gpt-5", "chat", {"type": "enabled", "budget_tokens": 2000}, "reasoning_effort", "low"),
    ("gpt-5", "chat", {"type": "enabled", "budget_tokens": 10_000}, "reasoning_effort", "medium"),
    ("gpt-5", "chat", {"type": "enabled", "budget_tokens": 30_000}, "reasoning_effort", "high"),
    ("gpt-5", "responses", {"type": "enabled", "budget_tokens": 2000}, "reasoning",
     {"effort": "low", "summary": "auto"}),
    ("gpt-5", "responses", {"type": "disabled"}, "reasoning", None),
]  # fmt: skip


@pytest.mark.parametrize(("model", "target", "thinking", "field", "value"), THINKING)
def test_a_budget_becomes_an_effort(model: str, target: str, thinking: object, field: str, value: object) -> None:
    """Tokens to think with are said in words elsewhere."""
    asked = {"model": "m", "max_tokens": 32_000, "messages": [{"role": "user", "content": "x"}], "thinking": thinking}
    assert request("anthropic", target, asked, model).get(field) == value


CHAT_ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "gpt-5",
    "choices": [{"index": 0, "finish_reason": "tool_calls", "logprobs": None, "message": {
        "role": "assistant", "content": "I ask", "refusal": None, "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": "{oops"}},
        ]}}],
    "usage": {
        "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 60}, "completion_tokens_details": {"reasoning_tokens": 5},
    },
}  # fmt: skip


def test_an_answer_of_openai_chat_comes_as_a_message() -> None:
    """Cached tokens are counted beside the input, arguments are an object even where the model wrote none."""
    assert answer("chat", "anthropic", CHAT_ANSWER) == {
        "id": "chatcmpl-1", "type": "message", "role": "assistant", "model": "gpt-5",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "I ask"},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bern"}},
            {"type": "tool_use", "id": "call_2", "name": "weather", "input": {"input": "{oops"}},
        ],
        "stop_reason": "tool_use", "stop_sequence": None,
        "usage": {
            "input_tokens": 40, "output_tokens": 20, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 60,
            "output_tokens_details": {"thinking_tokens": 5},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("finish", "stop"), [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")]
)
def test_an_answer_ends_for_anthropics_reasons(finish: str, stop: str) -> None:
    """Not for OpenAI's."""
    choice = {"finish_reason": finish, "message": {"content": "x"}}
    assert answer("chat", "anthropic", {"choices": [choice]})["stop_reason"] == stop


def chunk(delta: object, finish: str | None = None) -> dict[str, object]:
    return {"id": "chatcmpl-1", "model": "gpt-5", "created": 1, "choices": [
        {"index": 0, "delta": delta, "finish_reason": finish}]}  # fmt: skip


def call(index: int, arguments: str, **begin: str) -> dict[str, object]:
    told = {"function": {"arguments": arguments} | ({"name": begin["name"]} if begin else {})}
    return {"tool_calls": [{"index": index} | ({"id": begin["id"]} if begin else {}) | told]}


def test_a_stream_of_openai_chat_comes_as_blocks() -> None:
    """Thoughts, words and two interleaved calls, one block after the other; the counts come at the end."""
    told = stream("chat", "anthropic", [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "hm"}),
        chunk({"content": "I "}),
        chunk({"content": "ask"}),
        chunk(call(0, "", id="call_1", name="weather")),
        chunk(call(0, '{"city":')),
        chunk(call(1, '{"city"', id="call_2", name="weather")),
        chunk(call(0, '"Bern"}')),
        chunk(call(1, ':"Chur"}')),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 4}},
    ])  # fmt: skip
    assert [piece["type"] for piece in told] == [
        "message_start",
        "content_block_start", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert [piece["index"] for piece in told if "index" in piece] == [0] * 3 + [1] * 4 + [2] * 4 + [3] * 4
    given = {2: "", 3: ""}
    for piece in told:
        if piece.get("delta", {}).get("type") == "input_json_delta":
            given[piece["index"]] += piece["delta"]["partial_json"]
    assert {index: json.loads(text) for index, text in given.items()} == {2: {"city": "Bern"}, 3: {"city": "Chur"}}
    assert told[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert told[-2]["usage"]["input_tokens"] == 10


def test_a_provider_that_breaks_off_is_an_error_event() -> None:
    """In the words that Anthropic's clients know, and nothing behind it that looks like an end."""
    told = stream("chat", "anthropic", [
        chunk({"content": "x"}), {"error": {"message": "too many", "code": "rate_limit_exceeded"}},
    ])  # fmt: skip
    assert told[-1] == {"type": "error", "error": {"type": "rate_limit_error", "message": "too many"}}
    assert "message_delta" not in [piece["type"] for piece in told]


def test_counts_of_the_end_replace_those_of_the_beginning() -> None:
    """They are cumulative; what the end leaves out stays."""
    *_, end = events("anthropic", [
        {"type": "message_start", "message": {"id": "m", "model": "c", "usage": {
            "input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 7}}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 30}},
    ])  # fmt: skip
    assert (end.usage.input, end.usage.cache_read, end.usage.output) == (5, 7, 30)  # type: ignore[union-attr]


def test_a_refusal_is_told_with_its_reason() -> None:
    """OpenAI's callers look for it in `refusal`, whole and streamed."""
    details = {"type": "refusal", "category": "bio", "explanation": "too dangerous"}
    said = {"id": "m", "model": "c", "content": [], "stop_reason": "refusal", "stop_details": details}
    message = answer("anthropic", "chat", said)["choices"][0]
    assert (message["message"]["refusal"], message["finish_reason"]) == ("too dangerous", "stop")
    told = stream("anthropic", "chat", [
        {"type": "message_start", "message": {"id": "m", "model": "c"}},
        {"type": "message_delta", "delta": {"stop_reason": "refusal", "stop_details": details}, "usage": {}},
    ])  # fmt: skip
    assert [piece["choices"][0]["delta"].get("refusal") for piece in told if piece["choices"]][1] == "too dangerous"


BAD = [
    ({"max_tokens": 1, "messages": []}, "model: is required"),
    ({"model": "m", "messages": []}, "max_tokens: is required"),
    ({"model": "m", "max_tokens": 1, "messages": {}}, "messages: must be a list"),
    ({"model": "m", "max_tokens": 1, "messages": ["x"]}, "messages[0]: must be an object"),
    ({"model": "m", "max_tokens": 1, "messages": [{"role": "tool"}]},
     "messages[0].role: must be user, assistant or system"),
    ({"model": "m", "max_tokens": 1, "messages": [], "tool_choice": {"type": "x"}},
     "tool_choice.type: must be one of auto, any, none, tool"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), BAD)
def test_a_request_that_is_wrong_is_told_where(body: object, words: str) -> None:
    """In the caller's own names."""
    with pytest.raises(BadRequest) as wrong:
        request("anthropic", "chat", body)
    assert str(wrong.value) == words


def test_tools_that_anthropic_runs_are_refused_by_name() -> None:
    """Nobody else has them; with leave to drop they are told, and the rest goes on."""
    asked = ASKED | {"tools": [{"type": "web_search_20250305", "name": "web_search"}, TOOL]}
    with pytest.raises(CannotSay, match=r"^tools\[0\]: cannot be said to .*: a tool of type web_search_20250305$"):
        request("anthropic", "chat", asked, "gpt-5")
    losses = Losses("OpenAI", refuse=False)
    assert len(request("anthropic", "chat", asked, "gpt-5", losses)["tools"]) == 1
    assert "tools[0]" in losses.dropped


def test_an_answer_that_is_no_answer_does_not_raise() -> None:
    """Whatever a provider sends."""
    for body in (None, [], {}, {"content": "x"}, {"content": [None, {"type": "text"}, {"type": "tool_use"}]}):
        assert answer("anthropic", "chat", body, Ask("m", ()))["object"] == "chat.completion"


def test_clearing_old_turns_is_a_hint() -> None:
    """Claude Code always asks for it; a summary of Anthropic's own would be a part of the answer."""
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    clear = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "clear_tool_uses_20250919"}]}
    losses = Losses("OpenAI")
    APIS["anthropic"].read_request(asked | {"context_management": clear}, losses)
    assert losses.dropped == ["context_management"]
    with pytest.raises(CannotSay, match=r"^context_management: "):
        compact = {"edits": [{"type": "compact_20260112"}]}
        APIS["anthropic"].read_request(asked | {"context_management": compact}, Losses("OpenAI"))
