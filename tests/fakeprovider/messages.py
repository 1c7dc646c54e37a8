"""Anthropic's Messages API: messages, their streams, count_tokens and models."""

from __future__ import annotations

from collections.abc import Iterator

from tests.fakeprovider.answers import (
    THOUGHTS,
    Answer,
    Call,
    Fields,
    Json,
    Provider,
    ToolCall,
    document,
    dumps,
    named_event,
    new_id,
    stream,
    text_of,
    tool_wanted,
)

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
SIGNATURE = "RmFrZVNpZ25hdHVyZQ=="


def _fields(fresh_id: str) -> Fields:
    return (
        (b"request-id", f"req_{fresh_id}".encode()),
        (b"anthropic-organization-id", b"00000000-0000-4000-8000-000000000000"),
        (b"anthropic-ratelimit-requests-remaining", b"49"),
    )


def _error(status: int, message: str) -> Json:
    kind = ERROR_TYPES.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": new_id("req_")}


def _error_event(message: str) -> bytes:
    return named_event({"type": "error", "error": {"type": "overloaded_error", "message": message}})


ANTHROPIC = Provider(_fields, _error, _error_event)


def messages(call: Call) -> Answer:
    if call.streams:
        return stream(_events(call))
    content, tokens = _content(call)
    stop = "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"
    return document(_message(call, content, stop, tokens))


def count_tokens(call: Call) -> Answer:
    return document({"input_tokens": call.input_tokens})


def models(call: Call) -> Answer:
    data = [_model("claude-opus-4-8", "Claude Opus 4.8"), _model("claude-haiku-4-5", "Claude Haiku 4.5")]
    return document({"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})


def model(call: Call) -> Answer:
    name = call.path.rpartition("/")[2]
    return document(_model(name, name.title()))


def _model(name: str, display: str) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": display,
        "created_at": "2026-01-02T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }


def _tool(call: Call) -> ToolCall | None:
    turns = [turn for turn in call.body.get("messages") or [] if turn.get("role") == "user"]
    content = turns[-1].get("content") if turns else ""
    if isinstance(content, list) and any(part.get("type") == "tool_result" for part in content):
        return None
    choice = call.body.get("tool_choice") or {}
    forced = choice.get("name") or choice.get("type") == "any"
    names = [tool["name"] for tool in call.body.get("tools") or [] if "name" in tool]
    return tool_wanted(names, text_of(content), forced)


def _thinks(call: Call) -> bool:
    return (call.body.get("thinking") or {}).get("type") in {"enabled", "adaptive"}


def _content(call: Call) -> tuple[list[Json], int]:
    """All content blocks, and how many tokens they count as."""
    words = list(call.text)
    blocks: list[Json] = [{"type": "text", "text": "".join(words), "citations": None}]
    if _thinks(call):
        blocks.insert(0, {"type": "thinking", "thinking": "".join(THOUGHTS), "signature": SIGNATURE})
    if tool := _tool(call):
        blocks.append({"type": "tool_use", "id": new_id("toolu_"), "name": tool.name, "input": tool.arguments})
    return blocks, len(words) + len(THOUGHTS) * _thinks(call)


def _message(call: Call, content: list[Json], stop: str | None, output_tokens: int) -> Json:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": call.input_tokens,
            "cache_creation_input_tokens": 5,
            "cache_read_input_tokens": 11,
            "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
            "output_tokens": output_tokens,
            "service_tier": "standard",
        },
    }


def _events(call: Call) -> Iterator[bytes]:
    yield named_event({"type": "message_start", "message": _message(call, [], None, 1)})
    index = tokens = 0
    if _thinks(call):
        yield _start(index, {"type": "thinking", "thinking": "", "signature": ""})
        for thought in THOUGHTS:
            yield _delta(index, {"type": "thinking_delta", "thinking": thought})
        yield _delta(index, {"type": "signature_delta", "signature": SIGNATURE})
        yield _stop(index)
        index, tokens = 1, len(THOUGHTS)
    yield _start(index, {"type": "text", "text": ""})
    yield named_event({"type": "ping"})
    for word in call.text:
        tokens += 1
        yield _delta(index, {"type": "text_delta", "text": word})
    yield _stop(index)
    tool = _tool(call)
    if tool:
        index += 1
        yield _start(index, {"type": "tool_use", "id": new_id("toolu_"), "name": tool.name, "input": {}})
        for fragment in ("", *tool.fragments):
            yield _delta(index, {"type": "input_json_delta", "partial_json": fragment})
        yield _stop(index)
    usage = {
        "input_tokens": call.input_tokens,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 11,
        "output_tokens": tokens,
    }
    delta = {"stop_reason": "tool_use" if tool else "end_turn", "stop_sequence": None}
    yield named_event({"type": "message_delta", "delta": delta, "usage": usage})
    yield named_event({"type": "message_stop"})


def _start(index: int, block: Json) -> bytes:
    return named_event({"type": "content_block_start", "index": index, "content_block": block})


def _delta(index: int, delta: Json) -> bytes:
    return named_event({"type": "content_block_delta", "index": index, "delta": delta})


def _stop(index: int) -> bytes:
    return named_event({"type": "content_block_stop", "index": index})


def fixed(size: int) -> bytes:
    """A whole message as JSON, padded to `size` bytes where it is shorter."""
    call = Call("/v1/messages", {"model": "claude-opus-4-8"}, 100, None, False)
    value = _message(call, _content(call)[0], "end_turn", 9)
    missing = size - len(dumps(value).encode())
    value["content"][0]["text"] += "x" * missing
    return dumps(value).encode()
