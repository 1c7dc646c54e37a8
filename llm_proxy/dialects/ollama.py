"""Ollama's own API, /api/chat and /api/generate: one JSON object, or one per line. Leaves out embeddings and models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage
from llm_proxy.dialects.errors import provider_error
from llm_proxy.dialects.openai import arguments_of, role_of
from llm_proxy.dialects.reading import count, decoder, failure, mapping, read, read_value, sequence, text

API = "ollama.chat"

# --- requests


class _Request(msgspec.Struct):
    model: Any = None
    messages: Any = None
    prompt: Any = None  # of generate, as are the next two
    images: Any = None
    system: Any = None
    tools: Any = None
    options: Any = None
    stream: Any = None


_REQUEST = decoder(_Request)


def asked(path: str, body: bytes) -> Asked:
    """What the request asks; it streams unless it says no. Never raises."""
    request = read(_REQUEST, body)
    if request is None:
        return Asked(API, trouble="the request is no JSON object")
    messages = [_message(mapping(message)) for message in sequence(request.messages)]
    if request.prompt:
        messages.append(_message({"content": request.prompt, "images": request.images}))
    tools = (mapping(mapping(tool).get("function")) for tool in sequence(request.tools))
    return Asked(
        api=API,
        model=text(request.model),
        system=text(request.system),
        messages=tuple(messages),
        tools=tuple(text(tool.get("name")) for tool in tools),
        stream=request.stream is not False,
        max_tokens=count(mapping(request.options).get("num_predict")),
    )


def _message(message: dict[str, Any]) -> Message:
    """A message as it stands in a request and in an answer."""
    role, said = role_of(message.get("role")), text(message.get("content"))
    if role == "tool":
        name = text(message.get("tool_name")) or text(message.get("name"))
        return Message(role, (Part(PartKind.TOOL_RESULT, said, name),))
    return Message(role, tuple(_parts(message, said)))


def _parts(message: dict[str, Any], said: str) -> Iterator[Part]:
    thoughts = text(message.get("thinking"))
    if thoughts:
        yield Part(PartKind.THINKING, thoughts)
    if said:
        yield Part(PartKind.TEXT, said)
    for _ in sequence(message.get("images")):
        yield Part(PartKind.MEDIA, name="image")
    # Clients send calls back without their ids, which newer versions give.
    for call in sequence(message.get("tool_calls")):
        function = mapping(mapping(call).get("function"))
        yield Part(PartKind.TOOL_CALL, arguments_of(function.get("arguments")), text(function.get("name")))


# --- answers


class _Line(msgspec.Struct):
    """A whole answer or a line of a stream; the context that generate gives back, numbers, is passed over."""

    model: Any = None
    message: Any = None
    response: Any = None  # of generate, as is the next
    thinking: Any = None
    done: Any = None
    done_reason: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None


_LINE = decoder(_Line)


def answers(content: Content) -> tuple[Answer, ...]:
    """What came back; none where nothing came. Never raises."""
    if content.status is None and not content.data:
        return ()
    if content.status is not None and content.status >= 400:
        kind, words = provider_error(read_value(content.data), content.status)
        return (Answer(error=words, error_type=kind) if words else failure(content),)
    lines = _lines(content.data)
    return (_answer(lines) if lines else failure(content),)


def _lines(data: bytes) -> list[_Line]:
    """One object per line; a whole answer may also be spread over several."""
    first, _, rest = data.strip().partition(b"\n")
    if rest and read(_LINE, first) is None:
        whole = read(_LINE, data)
        return [] if whole is None else [whole]
    found = (read(_LINE, line) for line in (first, *rest.split(b"\n")))
    return [line for line in found if line is not None]


def _answer(lines: list[_Line]) -> Answer:
    last = lines[-1]
    over = last.done is True
    kind, words = provider_error({"error": last.error})
    return Answer(
        model=next((text(line.model) for line in lines if line.model), ""),
        message=_said(lines),
        usage=Usage(input=count(last.prompt_eval_count), output=count(last.eval_count)) if _counted(last) else None,
        stop_reason=text(last.done_reason),
        error=words,
        error_type=kind,
        partial=not over,
    )


def _counted(line: _Line) -> bool:
    return line.prompt_eval_count is not None or line.eval_count is not None


def _said(lines: list[_Line]) -> Message | None:
    messages = [mapping(line.message) or {"content": line.response, "thinking": line.thinking} for line in lines]
    texts = {name: "".join(text(one.get(name)) for one in messages) for name in ("content", "thinking")}
    lists = {name: [each for one in messages for each in sequence(one.get(name))] for name in ("tool_calls", "images")}
    whole = {"role": "assistant", **texts, **lists}
    return _message(whole) if any((*texts.values(), *lists.values())) else None
