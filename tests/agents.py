"""A short conversation of an agent as each API tells it: a tool that fails, the same again beside another, an answer.

Three calls, each (path, request, answer); the first tool's result is an error where the API can say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from llm_proxy.formats.call import Call
from tests.calls import row

Turn = tuple[str, dict[str, Any], dict[str, Any]]
READ, GREP = {"file_path": "a.py"}, {"pattern": "x"}
TOOLS = ("Read", "Grep")
# (name, id, arguments) of the calls of each answer, and what came of them: (text, failed).
CALLED = ((("Read", "id_1", READ),), (("Read", "id_2", READ), ("Grep", "id_3", GREP)), ())
CAME = ((("no such file", True),), (("text", False), ("a line", False)))


def _turns() -> Iterator[tuple[Any, Any]]:
    """For each answer the tools that it calls, and the results that come before it."""
    yield CALLED[0], ()
    for at in (1, 2):
        yield CALLED[at], [(*called, *came) for called, came in zip(CALLED[at - 1], CAME[at - 1], strict=True)]


def anthropic(path: str = "/v1/messages", **more: Any) -> Iterator[Turn]:
    said: list[Any] = [{"role": "user", "content": "look"}]
    usage = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    for number, (called, came) in enumerate(_turns(), start=1):
        if came:
            blocks = [
                {"type": "tool_result", "tool_use_id": id, "content": text} | ({"is_error": True} if failed else {})
                for _, id, _, text, failed in came
            ]
            said.append({"role": "user", "content": blocks})
        content: list[Any] = [
            {"type": "tool_use", "id": id, "name": name, "input": given} for name, id, given in called
        ]
        content = content or [{"type": "text", "text": "done"}]
        request = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": list(said), **more}
        yield (
            path,
            request | {"tools": [{"name": name} for name in TOOLS]},
            {
                "id": f"msg_{number}",
                "type": "message",
                "role": "assistant",
                "model": "claude-sonnet-4-5",
                "content": content,
                "stop_reason": "tool_use" if called else "end_turn",
                "usage": usage,
            },
        )
        said.append({"role": "assistant", "content": content})


def bedrock() -> Iterator[Turn]:
    for _, request, answer in anthropic("/model/anthropic.claude-sonnet-4-5-v1:0/invoke"):
        del request["model"]
        yield "/model/anthropic.claude-sonnet-4-5-v1:0/invoke", request, answer


def converse() -> Iterator[Turn]:
    said: list[Any] = [{"role": "user", "content": [{"text": "look"}]}]
    for called, came in _turns():
        if came:
            blocks = [
                {"toolResult": {"toolUseId": id, "content": [{"text": text}], "status": ("success", "error")[failed]}}
                for _, id, _, text, failed in came
            ]
            said.append({"role": "user", "content": blocks})
        content: list[Any] = [
            {"toolUse": {"toolUseId": id, "name": name, "input": given}} for name, id, given in called
        ]
        message = {"role": "assistant", "content": content or [{"text": "done"}]}
        tools = [{"toolSpec": {"name": name}} for name in TOOLS]
        yield (
            "/model/amazon.nova-pro-v1:0/converse",
            {"messages": list(said), "toolConfig": {"tools": tools}},
            {
                "output": {"message": message},
                "stopReason": "tool_use" if called else "end_turn",
                "usage": {"inputTokens": 10, "outputTokens": 5},
            },
        )
        said.append(message)


def chat() -> Iterator[Turn]:
    said: list[Any] = [{"role": "user", "content": "look"}]
    for number, (called, came) in enumerate(_turns(), start=1):
        said += [{"role": "tool", "tool_call_id": id, "content": text} for _, id, _, text, _ in came]
        calls = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for name, id, given in called
        ]
        message = {"role": "assistant", "content": None if calls else "done"} | ({"tool_calls": calls} if calls else {})
        tools = [{"type": "function", "function": {"name": name}} for name in TOOLS]
        yield (
            "/v1/chat/completions",
            {"model": "gpt-5", "messages": list(said), "tools": tools},
            {
                "id": f"chatcmpl-{number}",
                "model": "gpt-5-2025",
                "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5},
            },
        )
        said.append(message)


def responses(*, chained: bool = False) -> Iterator[Turn]:
    """`chained`: a request names the answer before and repeats nothing."""
    said: list[Any] = [{"role": "user", "content": "look"}]
    for number, (called, came) in enumerate(_turns(), start=1):
        new = [
            {"type": "function_call_output", "call_id": id, "output": text} | ({"status": "failed"} if failed else {})
            for _, id, _, text, failed in came
        ]
        said += new
        calls = [
            {"type": "function_call", "id": f"fc_{id}", "call_id": id, "name": name, "arguments": json.dumps(given)}
            for name, id, given in called
        ]
        output: list[Any] = calls or [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]}
        ]
        request: dict[str, Any] = {"model": "gpt-5", "input": list(said)}
        if chained and number > 1:
            request = {"model": "gpt-5", "input": new, "previous_response_id": f"resp_{number - 1}"}
        yield (
            "/v1/responses",
            request | {"tools": [{"type": "function", "name": name} for name in TOOLS]},
            {
                "id": f"resp_{number}",
                "model": "gpt-5",
                "status": "completed",
                "output": output,
                "usage": {"input_tokens": 10, "output_tokens": 5},
            },
        )
        said += output


def gemini() -> Iterator[Turn]:
    """No ids."""
    said: list[Any] = [{"role": "user", "parts": [{"text": "look"}]}]
    for called, came in _turns():
        if came:
            parts = [
                {"functionResponse": {"name": name, "response": {("output", "error")[failed]: text}}}
                for name, _, _, text, failed in came
            ]
            said.append({"role": "user", "parts": parts})
        made: list[Any] = [{"functionCall": {"name": name, "args": given}} for name, _, given in called]
        content = {"role": "model", "parts": made or [{"text": "done"}]}
        declared = [{"functionDeclarations": [{"name": name} for name in TOOLS]}]
        yield (
            "/v1beta/models/gemini-2.5-pro:generateContent",
            {"contents": list(said), "tools": declared},
            {
                "candidates": [{"content": content, "finishReason": "STOP"}],
                "modelVersion": "gemini-2.5-pro",
                "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5},
            },
        )
        said.append(content)


def ollama() -> Iterator[Turn]:
    """Neither ids nor, in what older clients send back, names."""
    said: list[Any] = [{"role": "user", "content": "look"}]
    for called, came in _turns():
        said += [{"role": "tool", "content": text} for _, _, _, text, _ in came]
        calls = [{"function": {"name": name, "arguments": given}} for name, _, given in called]
        message = {"role": "assistant", "content": "" if calls else "done"} | ({"tool_calls": calls} if calls else {})
        tools = [{"type": "function", "function": {"name": name}} for name in TOOLS]
        yield (
            "/api/chat",
            {"model": "llama4", "messages": list(said), "tools": tools, "stream": False},
            {
                "model": "llama4",
                "message": message,
                "done": True,
                "done_reason": "stop",
                "prompt_eval_count": 10,
                "eval_count": 5,
            },
        )
        said.append(message)


# --- as calls


def call(turn: Turn, number: int = 1, *, session: str = "s", start: bool = True, **about: Any) -> Call:
    """A turn as the log has it, `number` seconds after the first; `about` are fields of the response entry."""
    path, request, answer = turn
    head = {"method": "POST", "path": path, "headers": {"Content-Type": ["application/json"]}}
    asked = entry("request", number, session=session, **head, body=json.dumps(request), size=len(json.dumps(request)))
    told = {
        "status": 200,
        "ending": "complete",
        "headers": {"Request-Id": [f"req_{number}"]},
        "body": json.dumps(answer),
    }
    answered = entry("response", number, 0.5, session=session, **told | about)
    return made(asked, answered, number, session=session, start=start)


def over_websocket(turns: Sequence[Turn]) -> Call:
    """All turns in one call."""
    messages: list[Any] = []
    for _, request, answer in turns:
        asked, done = {"type": "response.create", **request}, {"type": "response.completed", "response": answer}
        messages += [{"from": "client", "raw": json.dumps(asked)}, {"from": "server", "raw": json.dumps(done)}]
    told = {"messages": [{"type": "text", **message} for message in messages]}
    head = {"method": "GET", "path": "/v1/responses", "headers": {"Upgrade": ["websocket"]}}
    request = entry("request", 1, **head, body="", size=0)
    return made(request, entry("response", 1, 0.5, status=101, ending="complete", headers={}, websocket=told), 1)


def entry(kind: str, number: int, later: float = 0.0, *, session: str = "s", **fields: Any) -> dict[str, Any]:
    """As the log has it, of a call `number` seconds into a day long ago."""
    fraction = f"{later:.3f}"[1:]
    meta = {
        "ts": f"2026-11-21T04:{number // 60:02d}:{number % 60:02d}{fraction}Z",
        "machine": "ann@desk",
        "host": "api.example.com",
    }
    return {"_meta": meta | {"session": session, "request_id": f"call-{number}"}, "type": kind, "seq": number, **fields}


def made(request: Any, response: Any, number: int, *, session: str = "s", start: bool = True) -> Call:
    """Its row as far as it matters here."""
    begun = entry(
        "session_start", 1, session=session, provider="anthropic", upstream="api.example.com", client_session="c-1"
    )
    del begun["seq"], begun["_meta"]["request_id"]
    about = {"session": session, "method": request["method"], "path": request["path"], "upstream": "api.example.com"}
    return Call(row(number, **about), request, response, begun if start else None)
