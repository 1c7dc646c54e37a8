"""OpenAI's Responses API: plain, as server-sent events, and the same events as WebSocket messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fakeprovider.answers import (
    CREATED,
    THOUGHTS,
    Answer,
    Call,
    Json,
    Provider,
    ToolCall,
    document,
    named_event,
    new_id,
    stream,
    text_of,
    tool_wanted,
)
from tests.fakeprovider.chat import OPENAI


def _error_event(message: str) -> bytes:
    return named_event(
        {"type": "error", "code": "server_error", "message": message, "param": None, "sequence_number": 9}
    )


RESPONSES = Provider(OPENAI.fields, OPENAI.error, _error_event)


def responses(call: Call) -> Answer:
    if call.streams:
        return stream(named_event(event) for event in events(call))
    # What a stream ends with is the whole answer.
    *_, last = events(call)
    return document(last["response"])


def events(call: Call) -> Iterator[dict[str, Any]]:
    """All events of one answer, numbered. With `generate: false` nothing is said."""
    for number, event in enumerate(_events(call)):
        yield {"type": event["type"], "sequence_number": number, **event}


def _events(call: Call) -> Iterator[dict[str, Any]]:
    fresh_id = new_id("resp_")
    begun = _response(call, fresh_id, "in_progress", [], None)
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    output: list[Json] = []
    tokens = 0
    if call.body.get("generate") is not False:
        if call.body.get("reasoning"):
            output.append((yield from _reasoning(len(output))))
            tokens += len(THOUGHTS)
        if tool := _tool(call):
            output.append((yield from _function_call(len(output), tool)))
            tokens += 3
        else:
            item, said = yield from _message(len(output), call)
            output.append(item)
            tokens += said
    usage = {
        "input_tokens": call.input_tokens + 11,
        "input_tokens_details": {"cached_tokens": 11, "cache_write_tokens": 0},
        "output_tokens": tokens,
        "output_tokens_details": {"reasoning_tokens": len(THOUGHTS) if call.body.get("reasoning") else 0},
        "total_tokens": call.input_tokens + 11 + tokens,
    }
    yield {"type": "response.completed", "response": _response(call, fresh_id, "completed", output, usage)}


def _message(index: int, call: Call) -> Any:
    item = {"id": new_id("msg_"), "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    where = {"item_id": item["id"], "output_index": index, "content_index": 0}
    yield {"type": "response.output_item.added", "output_index": index, "item": item}
    yield {"type": "response.content_part.added", **where, "part": _text("")}
    said: list[str] = []
    for word in call.text:
        if not call.must_stream:  # an endless text is never asked for whole
            said.append(word)
        yield {"type": "response.output_text.delta", **where, "delta": word, "logprobs": []}
    text = "".join(said)
    yield {"type": "response.output_text.done", **where, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **where, "part": _text(text)}
    done = {**item, "status": "completed", "content": [_text(text)]}
    yield {"type": "response.output_item.done", "output_index": index, "item": done}
    return done, len(said)


def _function_call(index: int, tool: ToolCall) -> Any:
    item = {
        "id": new_id("fc_"),
        "type": "function_call",
        "status": "in_progress",
        "call_id": new_id("call_"),
        "name": tool.name,
        "arguments": "",
    }
    where = {"item_id": item["id"], "output_index": index}
    yield {"type": "response.output_item.added", "output_index": index, "item": item}
    for fragment in tool.fragments:
        yield {"type": "response.function_call_arguments.delta", **where, "delta": fragment}
    yield {"type": "response.function_call_arguments.done", **where, "arguments": tool.json}
    done = {**item, "status": "completed", "arguments": tool.json}
    yield {"type": "response.output_item.done", "output_index": index, "item": done}
    return done


def _reasoning(index: int) -> Any:
    item: dict[str, Json] = {"id": new_id("rs_"), "type": "reasoning", "summary": []}
    where = {"item_id": item["id"], "output_index": index, "summary_index": 0}
    whole = {"type": "summary_text", "text": "".join(THOUGHTS)}
    yield {"type": "response.output_item.added", "output_index": index, "item": item}
    yield {"type": "response.reasoning_summary_part.added", **where, "part": {"type": "summary_text", "text": ""}}
    for thought in THOUGHTS:
        yield {"type": "response.reasoning_summary_text.delta", **where, "delta": thought}
    yield {"type": "response.reasoning_summary_text.done", **where, "text": whole["text"]}
    yield {"type": "response.reasoning_summary_part.done", **where, "part": whole}
    done = {**item, "summary": [whole]}
    yield {"type": "response.output_item.done", "output_index": index, "item": done}
    return done


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _tool(call: Call) -> ToolCall | None:
    given = call.body.get("input")
    turns = given if isinstance(given, list) else [{"role": "user", "content": given}]
    if not turns or turns[-1].get("type") == "function_call_output":
        return None
    choice = call.body.get("tool_choice")
    forced = choice.get("name", False) if isinstance(choice, dict) else choice == "required"
    names = [tool["name"] for tool in _tools(call, turns) if tool.get("type") == "function"]
    return tool_wanted(names, text_of(turns[-1].get("content")), forced)


def _tools(call: Call, turns: list[Json]) -> list[Json]:
    """Of the request, also those that stand in its input."""
    inside = [tool for turn in turns if turn.get("type") == "additional_tools" for tool in turn.get("tools") or []]
    return [*(call.body.get("tools") or []), *inside]


def _response(call: Call, fresh_id: str, status: str, output: list[Json], usage: Json) -> Json:
    body = call.body
    tools = [
        {
            "type": "function",
            "name": tool["name"],
            "description": tool.get("description"),
            "parameters": tool.get("parameters") or {},
            "strict": bool(tool.get("strict", True)),
        }
        for tool in body.get("tools") or []
        if tool.get("type") == "function"
    ]
    return {
        "id": fresh_id,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
        "service_tier": "default",
        "store": bool(body.get("store", True)),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": tools,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage,
    }
