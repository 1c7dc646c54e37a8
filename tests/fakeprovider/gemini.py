"""Google's Gemini API: generateContent, its streams, countTokens and models."""

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
    new_id,
    stream,
    text_of,
    tool_wanted,
)

STATUSES = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}


def _fields(fresh_id: str) -> Fields:
    return ((b"Server", b"scaffolding on HTTPServer2"), (b"X-Content-Type-Options", b"nosniff"), (b"Vary", b"Origin"))


def _error(status: int, message: str) -> Json:
    return {"error": {"code": status, "message": message, "status": STATUSES.get(status, "UNAVAILABLE")}}


def _error_event(message: str) -> bytes:
    return _event(_error(503, message))


GEMINI = Provider(_fields, _error, _error_event)


def generate(call: Call) -> Answer:
    if call.must_stream:
        return stream_generate(call)
    words, tool = list(call.text), _tool(call)
    return document(_chunk(call, new_id("gem"), _parts(tool, "".join(words), _thinks(call)), len(words), "STOP"))


def stream_generate(call: Call) -> Answer:
    """Server-sent events where `alt=sse` asks for them, else one JSON array that grows."""
    chunks = _chunks(call)
    if "alt=sse" in call.path:
        return stream(_event(chunk) for chunk in chunks)
    kind = (b"Content-Type", b"application/json; charset=UTF-8")
    return Answer(200, (kind,), _array(chunks), None)


def count_tokens(call: Call) -> Answer:
    return document({"totalTokens": call.input_tokens})


def models(call: Call) -> Answer:
    name = "gemini-3.1-pro-preview"
    methods = ["generateContent", "countTokens"]
    return document(
        {"models": [{"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": methods}]}
    )


def _event(value: Json) -> bytes:
    return f"data: {dumps(value)}\r\n\r\n".encode()


def _array(chunks: Iterator[Json]) -> Iterator[bytes]:
    lead = "["
    for chunk in chunks:
        yield (lead + dumps(chunk)).encode()
        lead = ",\r\n"
    yield b"]"


def _thinks(call: Call) -> bool:
    config = call.body.get("generationConfig") or {}
    return bool((config.get("thinkingConfig") or {}).get("includeThoughts"))


def _tool(call: Call) -> ToolCall | None:
    turns = call.body.get("contents") or []
    parts = turns[-1].get("parts") or [] if turns else []
    if any("functionResponse" in part for part in parts):
        return None
    config = (call.body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    tools = call.body.get("tools") or []
    names = [function["name"] for tool in tools for function in tool.get("functionDeclarations") or []]
    return tool_wanted(names, text_of(parts), config.get("mode") == "ANY")


def _parts(tool: ToolCall | None, text: str, thinks: bool) -> list[Json]:
    thoughts = [{"text": "".join(THOUGHTS), "thought": True}] if thinks else []
    if tool:
        return [*thoughts, {"functionCall": {"name": tool.name, "args": tool.arguments}}]
    return [*thoughts, {"text": text}]


def _chunk(call: Call, fresh_id: str, parts: list[Json], tokens: int, finish: str | None) -> Json:
    candidate: dict[str, Json] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    thoughts = len(THOUGHTS) if _thinks(call) else 0
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": call.input_tokens + 11,
            "cachedContentTokenCount": 11,
            "candidatesTokenCount": tokens,
            "thoughtsTokenCount": thoughts,
            "totalTokenCount": call.input_tokens + 11 + tokens + thoughts,
        },
        "modelVersion": call.path.rpartition("/")[2].partition(":")[0],
        "responseId": fresh_id,
    }


def _chunks(call: Call) -> Iterator[Json]:
    fresh_id, tokens, tool = new_id("gem"), 0, _tool(call)
    if _thinks(call):
        yield _chunk(call, fresh_id, [{"text": "".join(THOUGHTS), "thought": True}], 0, None)
    if tool:
        yield _chunk(call, fresh_id, _parts(tool, "", False), 3, "STOP")
        return
    for word in call.text:
        tokens += 1
        yield _chunk(call, fresh_id, [{"text": word}], tokens, None)
    yield _chunk(call, fresh_id, [{"text": ""}], tokens, "STOP")
