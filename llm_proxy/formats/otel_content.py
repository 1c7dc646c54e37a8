"""What was said in a call, as attributes of its span: the JSON forms of OpenTelemetry's GenAI conventions.

Only for those who ask for it. Pure. Leaves out everything else that a span tells (`otel`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from llm_proxy.dialects.digest import Answer, Message, Part, PartKind
from llm_proxy.formats.call import Call

LONGEST_TEXT = 64 << 10  # characters of one text
LONGEST = 512 << 10  # characters of one attribute: receivers take 4 MB at a time at least

# Words of the providers for why an answer ended, as the conventions name it.
FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "completed": "stop",
    "STOP": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "MAX_TOKENS": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_call",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "refusal": "content_filter",
    "guardrail_intervened": "content_filter",
    "SAFETY": "content_filter",
}


def content(call: Call) -> dict[str, str | bool]:
    """Attribute -> JSON. What is too long is cut: texts at their end, histories and tools at their beginning."""
    asked, answers = call.digest.asked, call.digest.answers
    system = [{"type": "text", "content": _cut(asked.system)}] if asked.system else []
    told: dict[str, list[Any]] = {
        "gen_ai.system_instructions": system,
        "gen_ai.input.messages": [_message(one) for one in asked.messages],
        "gen_ai.output.messages": [_output(one) for one in answers if one.message is not None],
        "gen_ai.tool.definitions": list(_definitions(call)),
    }
    written = {name: _written(items) for name, items in told.items() if items}
    found: dict[str, str | bool] = {name: text for name, (text, _) in written.items()}
    if any(left_out for _, left_out in written.values()):
        found["llm_proxy.content.cut"] = True
    return found


def _written(items: list[Any]) -> tuple[str, bool]:
    """The last of these that fit, and whether some do not."""
    kept: list[str] = []
    size = 0
    for item in reversed(items):
        text = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
        size += len(text) + 1
        if size > LONGEST:
            break
        kept.append(text)
    return f"[{','.join(reversed(kept))}]", len(kept) < len(items)


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "parts": [_part(one) for one in message.parts]}


def _output(answer: Answer) -> dict[str, Any]:
    assert answer.message is not None
    reason = FINISHES.get(answer.stop_reason, answer.stop_reason) or ("error" if answer.error else "")
    return _message(answer.message) | {"finish_reason": reason}


def _part(part: Part) -> dict[str, Any]:
    match part.kind:
        case PartKind.TEXT:
            return {"type": "text", "content": _cut(part.text)}
        case PartKind.THINKING:
            return {"type": "reasoning", "content": _cut(part.text)}
        case PartKind.TOOL_CALL:
            return {"type": "tool_call", "id": part.id or None, "name": part.name, "arguments": _value(part.text)}
        case PartKind.TOOL_RESULT:
            return {"type": "tool_call_response", "id": part.id or None, "response": _cut(part.text)}
        case PartKind.REFUSAL:
            return {"type": "refusal", "content": _cut(part.text)}
        case PartKind.MEDIA if part.text.startswith(("http://", "https://", "gs://", "s3://")):
            return {"type": "uri", "modality": part.name, "uri": _cut(part.text)}
        case PartKind.MEDIA:
            return {"type": "media", "modality": part.name, "mime_type": _cut(part.text)}
    return {"type": part.name or "other"}


def _value(text: str) -> Any:
    """Arguments as what they mean, where they are JSON of a size."""
    if len(text) > LONGEST_TEXT:
        return _cut(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text)} characters)"


# --- tools


class _Offer(msgspec.Struct):
    tools: Any = None
    toolConfig: Any = None


def _definitions(call: Call) -> Iterator[dict[str, Any]]:
    """The tools that a request offers, whichever API says it; of those that are no functions, type and name."""
    try:
        offer = msgspec.json.decode(call.request_body, type=_Offer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        for name in call.digest.asked.tools:
            yield {"type": "function", "name": name}
        return
    config = offer.toolConfig.get("tools") if isinstance(offer.toolConfig, dict) else None
    for tool in _tables(offer.tools, config):
        declared = tool.get("functionDeclarations") or tool.get("function_declarations")
        inner = [declared] if isinstance(declared, dict) else declared
        for one in _tables(inner) if inner else (tool.get("function") or tool.get("toolSpec") or tool,):
            if isinstance(one, dict):
                yield _definition(tool, one)


def _tables(*lists: Any) -> Iterable[dict[str, Any]]:
    return (one for items in lists if isinstance(items, list) for one in items if isinstance(one, dict))


def _definition(tool: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    schema = next((one[key] for key in ("parameters", "input_schema", "inputSchema") if one.get(key)), None)
    schema = schema.get("json", schema) if isinstance(schema, dict) else None
    kind = str(tool.get("type") or "function")
    told: dict[str, Any] = {"type": "function" if kind == "custom" else kind[:255], "name": str(one.get("name") or "")}
    if isinstance(one.get("description"), str):
        told["description"] = _cut(one["description"])
    if schema is not None and len(repr(schema)) <= LONGEST_TEXT:
        told["parameters"] = schema
    return told
