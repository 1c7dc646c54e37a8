"""OpenAI's chat completions, embeddings and models, and OpenAI's errors."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

from tests.fakeprovider.answers import (
    CREATED,
    Answer,
    Call,
    Fields,
    Json,
    Provider,
    ToolCall,
    data_event,
    document,
    new_id,
    stream,
    text_of,
    tool_wanted,
)

ERROR_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


def _fields(fresh_id: str) -> Fields:
    return (
        (b"x-request-id", f"req_{fresh_id}".encode()),
        (b"openai-organization", b"fake-org"),
        (b"openai-processing-ms", b"7"),
        (b"openai-version", b"2020-10-01"),
        (b"x-ratelimit-remaining-requests", b"499"),
    )


def _error(status: int, message: str) -> Json:
    kind, code = ERROR_TYPES.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _error_event(message: str) -> bytes:
    return data_event(_error(500, message))


OPENAI = Provider(_fields, _error, _error_event)


def completions(call: Call) -> Answer:
    if call.streams:
        return stream(_events(call))
    words, tool = list(call.text), _tool(call)
    message: dict[str, Json] = {
        "role": "assistant",
        "content": None if tool else "".join(words),
        "refusal": None,
        "annotations": [],
    }
    if tool:
        message["tool_calls"] = [_tool_call(tool, tool.json)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(tool)}
    frame = _frame(call, "chat.completion", [choice])
    return document({**frame, "usage": _usage(call, len(words)), "service_tier": "default"})


def embeddings(call: Call) -> Answer:
    inputs = call.body.get("input")
    count = len(inputs) if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else 1
    vector: list[float] = [0.25, -0.5, 0.125]
    coded = base64.b64encode(struct.pack("<3f", *vector)).decode()
    value = coded if call.body.get("encoding_format") == "base64" else vector
    data = [{"object": "embedding", "index": index, "embedding": value} for index in range(count)]
    usage = {"prompt_tokens": call.input_tokens, "total_tokens": call.input_tokens}
    return document({"object": "list", "data": data, "model": call.model, "usage": usage})


def models(call: Call) -> Answer:
    return document({"object": "list", "data": [_model("gpt-5.2"), _model("gpt-5-mini")]})


def model(call: Call) -> Answer:
    return document(_model(call.path.rpartition("/")[2]))


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "fake"}


def _tool(call: Call) -> ToolCall | None:
    turns = call.body.get("messages") or []
    if not turns or turns[-1].get("role") == "tool":
        return None
    choice = call.body.get("tool_choice")
    forced = choice["function"]["name"] if isinstance(choice, dict) and "function" in choice else choice == "required"
    names = [tool["function"]["name"] for tool in call.body.get("tools") or [] if tool.get("type") == "function"]
    return tool_wanted(names, text_of(turns[-1].get("content")), forced)


def _tool_call(tool: ToolCall, arguments: str) -> Json:
    return {"id": new_id("call_"), "type": "function", "function": {"name": tool.name, "arguments": arguments}}


def _finish(tool: ToolCall | None) -> str:
    return "tool_calls" if tool else "stop"


def _frame(call: Call, kind: str, choices: list[Json], fresh_id: str = "") -> dict[str, Json]:
    return {
        "id": fresh_id or new_id("chatcmpl-"),
        "object": kind,
        "created": CREATED,
        "model": call.model,
        "choices": choices,
        "system_fingerprint": "fp_fake",
    }


def _usage(call: Call, tokens: int) -> Json:
    return {
        "prompt_tokens": call.input_tokens + 11,
        "completion_tokens": tokens,
        "total_tokens": call.input_tokens + 11 + tokens,
        "prompt_tokens_details": {"cached_tokens": 11, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 2,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _events(call: Call) -> Iterator[bytes]:
    fresh_id = new_id("chatcmpl-")
    with_usage = bool((call.body.get("stream_options") or {}).get("include_usage"))
    unknown_yet = {"usage": None} if with_usage else {}

    def chunk(delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return data_event({**_frame(call, "chat.completion.chunk", [choice], fresh_id), **unknown_yet})

    tool, tokens = _tool(call), 0
    yield chunk({"role": "assistant", "content": None if tool else "", "refusal": None})
    if tool:
        yield chunk({"tool_calls": [{"index": 0, **_tool_call(tool, "")}]})
        for fragment in tool.fragments:
            tokens += 1
            yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": fragment}}]})
    else:
        for word in call.text:
            tokens += 1
            yield chunk({"content": word})
    yield chunk({}, _finish(tool))
    if with_usage:
        frame = _frame(call, "chat.completion.chunk", [], fresh_id)
        yield data_event({**frame, "usage": _usage(call, tokens)})
    yield b"data: [DONE]\n\n"
