"""Gemini's native API, outbound: schemas in its own dialect, results by name, signatures on calls, blocks for safety."""

from __future__ import annotations

from typing import Any

import pytest

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.losses import CannotSay, Losses
from tests.conversations import PIXEL
from tests.translated import answer, request, stream

ASKED: dict[str, Any] = {
    "model": "alias",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        ]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "$defs": {}}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "max_tokens": 5, "seed": 7, "stop": ["a", "b"], "logprobs": True, "top_logprobs": 2, "frequency_penalty": 0.5,
    "service_tier": "flex",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
}  # fmt: skip


def test_a_request_has_all_in_geminis_own_places() -> None:
    """JSON schemas go as they are, where Gemini takes them so."""
    assert request("chat", "gemini", ASKED, "gemini-2.5-pro") == {
        "systemInstruction": {"parts": [{"text": "be brief"}]},
        "contents": [{"role": "user", "parts": [
            {"text": "see"},
            {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
            {"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}},
        ]}],
        "tools": [{"functionDeclarations": [{"name": "f", "parametersJsonSchema": {"type": "object", "$defs": {}}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
        "generationConfig": {
            "maxOutputTokens": 5, "seed": 7, "stopSequences": ["a", "b"], "responseLogprobs": True, "logprobs": 2,
            "frequencyPenalty": 0.5, "responseMimeType": "application/json", "responseJsonSchema": {"type": "object"},
        },
        "serviceTier": "flex",
    }  # fmt: skip


THINKING = [
    ("gemini-3-pro", "high", {"includeThoughts": True, "thinkingLevel": "high"}),
    ("gemini-3.1-pro-preview", "none", {"includeThoughts": False, "thinkingLevel": "minimal"}),
    ("gemini-2.5-flash", "high", {"includeThoughts": True, "thinkingBudget": 24_576}),
    ("gemini-2.5-flash", "none", {"includeThoughts": False, "thinkingBudget": 0}),
    ("gemini-2.0-flash", "high", None),
]


@pytest.mark.parametrize(("model", "effort", "config"), THINKING)
def test_an_effort_is_said_as_the_model_takes_it(model: str, effort: str, config: Any) -> None:
    """By level, by budget, or not at all."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": effort}
    assert request("chat", "gemini", asked, model).get("generationConfig", {}).get("thinkingConfig") == config


ANSWER: dict[str, Any] = {
    "responseId": "gem-1", "modelVersion": "gemini-3-pro",
    "candidates": [{"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": [
        {"text": "hm", "thought": True},
        {"text": "I ask"},
        {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"id": "own-1", "name": "f", "args": {}}},
    ]}}],
    "usageMetadata": {"promptTokenCount": 100, "cachedContentTokenCount": 60, "candidatesTokenCount": 20,
                      "thoughtsTokenCount": 5, "toolUsePromptTokenCount": 1, "totalTokenCount": 126},
}  # fmt: skip


@pytest.mark.parametrize("caller", ["anthropic", "chat", "responses"])
def test_a_signature_on_a_call_comes_back_through_every_client(caller: str) -> None:
    """Gemini refuses a call without its signature; no client knows the thing, so it travels where they keep theirs."""
    said = answer("gemini", caller, ANSWER)
    match caller:
        case "anthropic":
            results = [{"type": "tool_result", "tool_use_id": block["id"], "content": "ok"}
                       for block in said["content"] if block["type"] == "tool_use"]  # fmt: skip
            turns = [{"role": "assistant", "content": said["content"]}, {"role": "user", "content": results}]
            asked: Any = {"model": "m", "max_tokens": 9, "messages": turns}
        case "chat":
            message = said["choices"][0]["message"]
            results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in message["tool_calls"]]
            asked = {"model": "m", "messages": [message, *results]}
        case _:
            calls = [item for item in said["output"] if item["type"] == "function_call"]
            results = [{"type": "function_call_output", "call_id": c["call_id"], "output": "ok"} for c in calls]
            asked = {"model": "m", "input": [*said["output"], *results]}
    model, user = request(caller, "gemini", asked, "gemini-3-pro")["contents"]
    first, second = (part for part in model["parts"] if "functionCall" in part)
    assert first["thoughtSignature"] == "c2ln"
    assert "thoughtSignature" not in second
    assert first["functionCall"]["args"] == {"a": 1}
    assert [part["functionResponse"]["id"] for part in user["parts"]] == [first["functionCall"]["id"], "own-1"]
    assert [part["functionResponse"]["name"] for part in user["parts"]] == ["f", "f"]


def test_a_signature_on_a_call_is_streamed_too() -> None:
    """As a thought in front of the call, in the one API; in the call itself, in the other."""
    blocks = [one["content_block"] for one in stream("gemini", "anthropic", [ANSWER]) if "content_block" in one]
    assert [block["type"] for block in blocks] == ["thinking", "text", "thinking", "tool_use", "tool_use"]
    calls = [call for one in stream("gemini", "chat", [ANSWER]) if one["choices"]
             for call in one["choices"][0]["delta"].get("tool_calls", ())]  # fmt: skip
    assert calls[0]["extra_content"] == {"google": {"thought_signature": "c2ln"}}


def test_counts_of_thoughts_lie_within_the_output() -> None:
    """Gemini counts them beside it, and the cached ones within the prompt."""
    usage = answer("gemini", "anthropic", ANSWER)["usage"]
    assert usage == {
        "input_tokens": 41, "output_tokens": 25, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 60,
        "output_tokens_details": {"thinking_tokens": 5},
    }  # fmt: skip


def test_a_call_without_an_id_gets_one() -> None:
    """The same one whenever it is read, another one in another answer."""

    def ids(body: Any) -> list[str]:
        return [call["id"] for call in answer("gemini", "chat", body)["choices"][0]["message"]["tool_calls"]]

    assert ids(ANSWER) == ids(ANSWER)
    assert ids(ANSWER)[0] != ids(ANSWER | {"responseId": "gem-2"})[0]
    assert ids(ANSWER)[1] == "own-1"


def test_parts_of_a_stream_go_on_from_one_piece_to_the_next() -> None:
    """Words in three pieces are one text; the last counts are the right ones."""

    def piece(*parts: Any, **more: Any) -> Any:
        return {"candidates": [{"content": {"parts": list(parts)}} | more],
                "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": len(parts)}}  # fmt: skip

    told = stream("gemini", "anthropic", [
        piece({"text": "h", "thought": True}), piece({"text": "m", "thought": True, "thoughtSignature": "c2ln"}),
        piece({"text": "I "}), piece({"text": "ask"}), piece({"text": ""}, finishReason="MAX_TOKENS"),
    ])  # fmt: skip
    assert [one["content_block"]["type"] for one in told if "content_block" in one] == ["thinking", "text"]
    assert told[-2]["delta"]["stop_reason"] == "max_tokens"
    assert told[-2]["usage"]["output_tokens"] == 1


BLOCKED = [
    ({"promptFeedback": {"blockReason": "SAFETY"}}, "SAFETY", "content_filter"),
    ({"promptFeedback": {"blockReason": "OTHER", "blockReasonMessage": "not this"}}, "not this", "content_filter"),
    ({"candidates": [{"content": {"parts": [{"text": "wor"}]}, "finishReason": "SAFETY"}]}, None, "content_filter"),
    ({"candidates": [{"finishReason": "RECITATION"}]}, None, "content_filter"),
]


@pytest.mark.parametrize(("body", "refusal", "finish"), BLOCKED)
def test_what_was_blocked_is_filtered(body: Any, refusal: str | None, finish: str) -> None:
    """With the reason where there is one; never an empty answer that looks like a good one."""
    choice = answer("gemini", "chat", body)["choices"][0]
    assert (choice["message"]["refusal"], choice["finish_reason"]) == (refusal, finish)


def test_a_model_that_breaks_its_own_rules_has_failed() -> None:
    """So that another try may be made of it."""
    body = {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL", "finishMessage": "print(f())"}]}
    failure = APIS["gemini"].read_reply(body).failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("bad_gateway", "print(f())")
    assert stream("gemini", "anthropic", [body])[-1]["type"] == "error"


def test_an_error_within_a_stream_is_one() -> None:
    """Google puts it into the stream with a status of its own."""
    body = {"error": {"code": 503, "status": "UNAVAILABLE", "message": "overloaded"}}
    told = stream("gemini", "chat", [{"candidates": [{"content": {"parts": [{"text": "x"}]}}]}, body])
    assert told[-1]["error"]["message"] == "overloaded"
    assert not any(one.get("choices") and one["choices"][0]["finish_reason"] for one in told)


def test_pictures_of_a_result() -> None:
    """Models of the third generation take them in the result, those before behind it."""
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    asked = {"model": "m", "max_tokens": 9, "messages": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [picture]}]},
    ]}  # fmt: skip
    data = {"inlineData": {"mimeType": "image/png", "data": PIXEL}}
    later = request("anthropic", "gemini", asked, "gemini-3-pro")["contents"][1]["parts"]
    assert later[0]["functionResponse"]["parts"] == [data]
    earlier = request("anthropic", "gemini", asked, "gemini-2.5-pro")["contents"][1]["parts"]
    assert earlier[1] == data


def test_several_answers_at_once_are_refused() -> None:
    """Only one is translated."""
    with pytest.raises(CannotSay, match=r"^n: cannot be said to Gemini$"):
        request("chat", "gemini", {"model": "m", "messages": [], "n": 2}, "gemini-2.5-pro")
    losses = Losses("Gemini")
    request("chat", "gemini", {"model": "m", "messages": [], "n": 1}, "gemini-2.5-pro", losses)
    assert losses.dropped == []


def test_an_answer_that_is_no_answer_does_not_raise() -> None:
    """Whatever a provider sends."""
    odd: list[Any] = [None, [], {}, {"candidates": [None]}, {"candidates": [{"content": {"parts": [None, {}]}}]}]
    for body in odd:
        assert answer("gemini", "chat", body)["object"] == "chat.completion"
    assert stream("gemini", "chat", odd)[0]["object"] == "chat.completion.chunk"
