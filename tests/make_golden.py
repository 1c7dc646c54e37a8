"""Makes the golden files: what the fake provider answers to one request of each kind, as it crossed the wire.

`python -m tests.make_golden` writes them to tests/golden, `--check` says which differ. Per case there is NAME.json (the
request, the head of the response) and NAME.answer (its body). The fake provider does not speak Amazon's formats: those
are made here, from its Anthropic events and by hand, with a framer of their own.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

from websockets.asyncio.client import connect

from tests.fakeprovider import FakeProvider

FOLDER = Path(__file__).parent / "golden"

Files = dict[str, bytes]
Json = Any

HI = [{"role": "user", "content": "Say hello."}]
CALL = [{"role": "user", "content": 'call weather {"city": "Zürich", "days": 3}'}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
STREAM = {"stream": True}

CLAUDE = {"model": "claude-opus-4-8", "max_tokens": 100}
CLAUDE_TOOLS = {"tools": [{"name": "weather", "input_schema": SCHEMA}]}
CLAUDE_THINKS = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
GPT = {"model": "gpt-5.2"}
GPT_TOOLS = {"tools": [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]}
RESPONSES_TOOLS = {"tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}]}
USAGE = {"stream_options": {"include_usage": True}}
GEMINI_HI = {"contents": [{"role": "user", "parts": [{"text": "Say hello."}]}]}
GEMINI_CALL = {
    "contents": [{"role": "user", "parts": [{"text": CALL[0]["content"]}]}],
    "tools": [{"functionDeclarations": [{"name": "weather"}]}],
}
GEMINI_THINKS = {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}
GEMINI = "/v1beta/models/gemini-3.1-pro-preview"

# Name: provider, path with query, body, what the fake provider is told.
CASES: dict[str, tuple[str, str, Json, str]] = {
    "anthropic-plain": ("anthropic", "/v1/messages", {**CLAUDE, "system": "Be brief.", "messages": HI}, ""),
    "anthropic-stream": ("anthropic", "/v1/messages?beta=true", {**CLAUDE, **STREAM, "messages": HI}, "words=4"),
    "anthropic-tool": ("anthropic", "/v1/messages", {**CLAUDE, **CLAUDE_TOOLS, **CLAUDE_THINKS, "messages": CALL}, ""),
    "anthropic-tool-stream": (
        "anthropic",
        "/v1/messages",
        {**CLAUDE, **CLAUDE_TOOLS, **CLAUDE_THINKS, **STREAM, "messages": CALL},
        "words=1",
    ),
    "anthropic-error": ("anthropic", "/v1/messages", {**CLAUDE, "messages": HI}, "status=529"),
    "anthropic-error-stream": ("anthropic", "/v1/messages", {**CLAUDE, **STREAM, "messages": HI}, "error-event=5"),
    "anthropic-count": ("anthropic", "/v1/messages/count_tokens", {**CLAUDE, "messages": HI}, ""),
    "chat-plain": ("openai", "/v1/chat/completions", {**GPT, "messages": HI}, ""),
    "chat-stream": ("openai", "/v1/chat/completions", {**GPT, **STREAM, "messages": HI}, "words=4"),
    "chat-usage-stream": ("openai", "/v1/chat/completions", {**GPT, **STREAM, **USAGE, "messages": HI}, "words=3"),
    "chat-tool": ("openai", "/v1/chat/completions", {**GPT, **GPT_TOOLS, "messages": CALL}, ""),
    "chat-tool-stream": ("openai", "/v1/chat/completions", {**GPT, **GPT_TOOLS, **STREAM, "messages": CALL}, ""),
    "chat-error": ("openai", "/v1/chat/completions", {**GPT, "messages": HI}, "status=429"),
    "chat-error-stream": ("openai", "/v1/chat/completions", {**GPT, **STREAM, "messages": HI}, "error-event=3"),
    "embeddings-plain": ("openai", "/v1/embeddings", {"model": "text-embedding-3-small", "input": ["a", "b"]}, ""),
    "responses-plain": ("openai", "/v1/responses", {**GPT, "input": "Say hello."}, ""),
    "responses-stream": ("openai", "/v1/responses", {**GPT, **STREAM, "input": "Say hello."}, "words=3"),
    "responses-tool": ("openai", "/v1/responses", {**GPT, **RESPONSES_TOOLS, "input": CALL}, ""),
    "responses-tool-stream": (
        "openai",
        "/v1/responses",
        {**GPT, **RESPONSES_TOOLS, **STREAM, "reasoning": {"effort": "low"}, "input": CALL},
        "",
    ),
    "responses-error": ("openai", "/v1/responses", {**GPT, "input": "Say hello."}, "status=500"),
    "responses-error-stream": ("openai", "/v1/responses", {**GPT, **STREAM, "input": "Hi"}, "error-event=4"),
    "gemini-plain": ("gemini", f"{GEMINI}:generateContent", GEMINI_HI, ""),
    "gemini-stream": ("gemini", f"{GEMINI}:streamGenerateContent?alt=sse", GEMINI_HI, "words=3"),
    "gemini-array": ("gemini", f"{GEMINI}:streamGenerateContent", GEMINI_HI, "words=3"),
    "gemini-tool": ("gemini", f"{GEMINI}:generateContent", GEMINI_CALL, ""),
    "gemini-tool-stream": (
        "gemini",
        f"{GEMINI}:streamGenerateContent?alt=sse",
        {**GEMINI_CALL, **GEMINI_THINKS},
        "",
    ),
    "gemini-error": ("gemini", f"{GEMINI}:generateContent", GEMINI_HI, "status=429"),
}


def facts(provider: str, target: str, request: Json, status: int | None, media_type: str, **other: Json) -> bytes:
    told = {
        "provider": provider,
        "method": "POST",
        "path": target.partition("?")[0],
        "request": request,
        "status": status,
        "media_type": media_type,
        **other,
    }
    return json.dumps(told, ensure_ascii=False, indent=1).encode() + b"\n"


def called(port: int) -> Files:
    """Every case of the table, over a real connection."""
    files: Files = {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for name, (provider, target, request, plan) in CASES.items():
        connection.request("POST", target, json.dumps(request, ensure_ascii=False).encode(), {"X-Fake": plan})
        response = connection.getresponse()
        kind = (response.getheader("Content-Type") or "").partition(";")[0]
        files[f"{name}.json"] = facts(provider, target, request, response.status, kind)
        files[f"{name}.answer"] = response.read()
    connection.close()
    return files


async def spoken(port: int) -> Files:
    """Two turns on one WebSocket, after a message that only warms up."""
    messages: list[tuple[str, str]] = []
    turns = ({"generate": False, "input": []}, {"input": "Say hello."}, {"input": CALL, **RESPONSES_TOOLS})
    async with connect(f"ws://127.0.0.1:{port}/v1/responses?fake=words=3", compression=None) as socket:
        for turn in turns:
            said = json.dumps({"type": "response.create", **GPT, **turn}, ensure_ascii=False)
            messages.append(("client", said))
            await socket.send(said)
            while messages[-1][0] == "client" or '"type":"response.completed"' not in messages[-1][1]:
                messages.append(("server", str(await socket.recv())))
    told = facts("openai", "/v1/responses", None, 101, "", method="GET", messages=messages)
    return {"responses-websocket.json": told, "responses-websocket.answer": b""}


# --- Amazon's formats

BEDROCK = "/model/us.anthropic.claude-opus-4-8-v1%3A0"
EVENTSTREAM = "application/vnd.amazon.eventstream"


def frame(payload: bytes, **headers: str) -> bytes:
    """One frame, all headers strings. `event_type` is `:event-type`."""
    packed = b""
    for name, value in headers.items():
        key, text = b":" + name.replace("_", "-").encode(), value.encode()
        packed += bytes([len(key)]) + key + b"\x07" + struct.pack(">H", len(text)) + text
    prelude = struct.pack(">II", len(packed) + len(payload) + 16, len(packed))
    body = prelude + struct.pack(">I", crc32(prelude)) + packed + payload
    return body + struct.pack(">I", crc32(body))


def event(kind: str, payload: Json) -> bytes:
    data = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    return frame(data, event_type=kind, content_type="application/json", message_type="event")


def wrapped(stream: bytes) -> Iterator[bytes]:
    """Server-sent events as Bedrock passes them on: one frame each, the event in base64."""
    for line in stream.split(b"\n"):
        if line.startswith(b"data: ") and b'"ping"' not in line:
            yield event("chunk", {"bytes": base64.b64encode(line[6:]).decode(), "p": "abcdefgh"})


CONVERSE_REQUEST = {
    "system": [{"text": "Be brief."}, {"cachePoint": {"type": "default"}}],
    "messages": [{"role": "user", "content": [{"text": "What is the weather?"}]}],
    "inferenceConfig": {"maxTokens": 100},
    "toolConfig": {"tools": [{"toolSpec": {"name": "weather", "inputSchema": {"json": SCHEMA}}}]},
}
CONVERSE_USAGE = {
    "inputTokens": 20,
    "outputTokens": 9,
    "totalTokens": 45,
    "cacheReadInputTokens": 11,
    "cacheWriteInputTokens": 5,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 2}, {"ttl": "5m", "inputTokens": 3}],
}
CONVERSE_ANSWER = {
    "metrics": {"latencyMs": 700},
    "output": {
        "message": {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "The user wants", "signature": "RmFrZQ=="}}},
                {"text": "I look it up."},
                {"toolUse": {"toolUseId": "tooluse_1", "name": "weather", "input": {"city": "Zürich"}}},
            ],
        }
    },
    "stopReason": "tool_use",
    "usage": CONVERSE_USAGE,
}


def _delta(index: int, delta: Json) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": delta})


def converse_events() -> Iterator[bytes]:
    """The same answer, streamed."""
    yield event("messageStart", {"role": "assistant"})
    yield _delta(0, {"reasoningContent": {"text": "The user"}})
    yield _delta(0, {"reasoningContent": {"text": " wants"}})
    yield _delta(0, {"reasoningContent": {"signature": "RmFrZQ=="}})
    yield event("contentBlockStop", {"contentBlockIndex": 0})
    yield _delta(1, {"text": "I look"})
    yield _delta(1, {"text": " it up."})
    yield event("contentBlockStop", {"contentBlockIndex": 1})
    tool = {"toolUse": {"toolUseId": "tooluse_1", "name": "weather"}}
    yield event("contentBlockStart", {"contentBlockIndex": 2, "start": tool})
    yield _delta(2, {"toolUse": {"input": '{"city": '}})
    yield _delta(2, {"toolUse": {"input": '"Zürich"}'}})
    yield event("contentBlockStop", {"contentBlockIndex": 2})
    yield event("messageStop", {"stopReason": "tool_use"})
    yield event("metadata", {"usage": CONVERSE_USAGE, "metrics": {"latencyMs": 700}})


def amazon(made: Files) -> Files:
    invoke = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 100, "messages": HI}
    stream = b"".join(wrapped(made["anthropic-tool-stream.answer"]))
    throttled = frame(
        b'{"message":"Too many tokens, please wait."}',
        exception_type="throttlingException",
        content_type="application/json",
        message_type="exception",
    )
    plain, events = "application/json", EVENTSTREAM
    cases = {
        "bedrock-plain": ("/invoke", invoke, plain, made["anthropic-plain.answer"]),
        "bedrock-stream": ("/invoke-with-response-stream", invoke, events, stream),
        "bedrock-error-stream": (
            "/invoke-with-response-stream",
            invoke,
            events,
            b"".join(list(wrapped(made["anthropic-stream.answer"]))[:4]) + throttled,
        ),
        "converse-plain": ("/converse", CONVERSE_REQUEST, plain, json.dumps(CONVERSE_ANSWER).encode()),
        "converse-stream": ("/converse-stream", CONVERSE_REQUEST, events, b"".join(converse_events())),
    }
    files: Files = {}
    for name, (verb, request, kind, answer) in cases.items():
        files[f"{name}.json"] = facts("bedrock", BEDROCK + verb, request, 200, kind)
        files[f"{name}.answer"] = answer
    return files


async def made() -> Files:
    async with FakeProvider() as fake:
        files = await asyncio.to_thread(called, fake.port)
        files |= await spoken(fake.port)
    return files | amazon(files)


def main() -> int:
    files = asyncio.run(made())
    if "--check" in sys.argv[1:]:
        stored = {path.name: path.read_bytes() for path in FOLDER.iterdir()} if FOLDER.is_dir() else {}
        differing = sorted(name for name in files if files[name] != stored.get(name))
        sys.stdout.writelines(f"{name} differs\n" for name in differing)
        return 1 if differing else 0
    FOLDER.mkdir(exist_ok=True)
    for name, data in files.items():
        (FOLDER / name).write_bytes(data)
    print(f"{len(files)} files, {sum(map(len, files.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
