"""OpenAI's chat completions, the older completions, and embeddings; with them the many hosts that speak the same.

Several choices are several answers, of which the first carries the usage. Log probabilities, annotations and what a
router charges in dollars are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind
from llm_proxy.dialects.errors import provider_error
from llm_proxy.dialects.openai import arguments_of, parts_of, result_of, role_of, usage_of
from llm_proxy.dialects.reading import (
    count,
    decoder,
    events,
    failure,
    mapping,
    read,
    read_value,
    sequence,
    streamed,
    text,
    written,
)

# --- requests


class _Request(msgspec.Struct):
    model: Any = None
    messages: Any = None
    prompt: Any = None  # of completions
    input: Any = None  # of embeddings
    tools: Any = None
    functions: Any = None  # how tools were once offered
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    service_tier: Any = None


_REQUEST = decoder(_Request)
_DEPLOYMENT = re.compile(r".*/deployments/([^/]+)/.*", re.DOTALL)  # Azure names the model in the path


def asked(path: str, body: bytes) -> Asked:
    """What the request asks. Never raises."""
    api = _api(path)
    request = read(_REQUEST, body)
    if request is None:
        return Asked(api, trouble="the request is no JSON object")
    deployment = _DEPLOYMENT.fullmatch(path)
    return Asked(
        api=api,
        model=text(request.model) or (deployment[1] if deployment else ""),
        messages=tuple(_messages(request)),
        tools=tuple(_tools(request)),
        stream=request.stream is True,
        max_tokens=count(request.max_completion_tokens) or count(request.max_tokens),
        service_tier=text(request.service_tier),
    )


def _api(path: str) -> str:
    path = path.rstrip("/")
    if path.endswith("/embeddings"):
        return "openai.embeddings"
    return "openai.chat" if path.endswith("/chat/completions") else "openai.completions"


def _messages(request: _Request) -> Iterator[Message]:
    for message in sequence(request.messages):
        yield _message(mapping(message))
    for given in (request.prompt, request.input):
        parts = _prompt(given)
        if parts:
            yield Message("user", parts)


def _prompt(given: Any) -> tuple[Part, ...]:
    """A text, several, or their tokens."""
    numbers = type(given) is list and given and type(given[0]) in (int, list)
    return (Part(PartKind.OTHER, name="tokens"),) if numbers else parts_of(given)


def _tools(request: _Request) -> Iterator[str]:
    for tool in sequence(request.tools):
        kind = text(mapping(tool).get("type"))
        yield text(mapping(mapping(tool).get(kind)).get("name")) or kind
    for function in sequence(request.functions):
        yield text(mapping(function).get("name"))


# --- messages


def _message(message: dict[str, Any]) -> Message:
    """A message as it stands in a request and in an answer."""
    role = role_of(message.get("role"))
    content = message.get("content")
    if role == "tool":
        return Message(role, result_of(content, text(message.get("tool_call_id")), text(message.get("name"))))
    parts = [*_thoughts(message), *parts_of(content), *_refusal(message), *_audio(message), *_calls(message)]
    return Message(role, tuple(parts))


def _thoughts(message: dict[str, Any]) -> Iterator[Part]:
    """Some hosts give the same thoughts under both names."""
    said = text(message.get("reasoning_content")) or text(message.get("reasoning"))
    if said:
        yield Part(PartKind.THINKING, said)


def _refusal(message: dict[str, Any]) -> Iterator[Part]:
    said = text(message.get("refusal"))
    if said:
        yield Part(PartKind.REFUSAL, said)


def _audio(message: dict[str, Any]) -> Iterator[Part]:
    audio = mapping(message.get("audio"))
    if audio:
        yield Part(PartKind.MEDIA, name="audio", id=text(audio.get("id")))
    said = text(audio.get("transcript"))
    if said:
        yield Part(PartKind.TEXT, said)


def _calls(message: dict[str, Any]) -> Iterator[Part]:
    for call in sequence(message.get("tool_calls")):
        fields = mapping(call)
        custom = mapping(fields.get("custom"))
        if custom:
            yield Part(PartKind.TOOL_CALL, text(custom.get("input")), text(custom.get("name")), text(fields.get("id")))
        else:
            yield _call(mapping(fields.get("function")), text(fields.get("id")))
    legacy = mapping(message.get("function_call"))
    if legacy:
        yield _call(legacy, "")


def _call(function: dict[str, Any], id: str) -> Part:
    return Part(PartKind.TOOL_CALL, arguments_of(function.get("arguments")), text(function.get("name")), id)


# --- answers


class _Document(msgspec.Struct):
    """A whole answer, or one chunk of a stream. What isn't named here (vectors) is never built."""

    id: Any = None
    model: Any = None
    choices: Any = None
    usage: Any = None
    service_tier: Any = None
    error: Any = None
    x_groq: Any = None


_DOCUMENT = decoder(_Document)
_DONE = b"[DONE]"


def answers(content: Content) -> tuple[Answer, ...]:
    """What came back, one answer per choice; none where nothing came. Never raises."""
    if content.status is None and not content.data:
        return ()
    if streamed(content):
        return _from_stream(content)
    failed = content.status is not None and content.status >= 400
    kind, words = provider_error(read_value(content.data), content.status) if failed else ("", "")
    document = read(_DOCUMENT, content.data)
    if document is None:
        return (Answer(error=words, error_type=kind) if words else failure(content),)
    if not words:
        kind, words = provider_error({"error": document.error})
    told = Answer(
        model=text(document.model),
        usage=usage_of(document.usage),
        response_id=text(document.id),
        service_tier=text(document.service_tier),
        error=words,
        error_type=kind,
    )
    return _per_choice(told, [_choice(mapping(choice)) for choice in sequence(document.choices)])


def _per_choice(told: Answer, choices: Sequence[tuple[Message, str]]) -> tuple[Answer, ...]:
    """An answer for each (message, stop reason). Tokens are told of all together."""
    if not choices:
        return (told,)
    first, *others = (replace(told, message=message, stop_reason=stop) for message, stop in choices)
    return (first, *(replace(answer, usage=None) for answer in others))


def _choice(choice: dict[str, Any]) -> tuple[Message, str]:
    said = mapping(choice.get("message")) or {"content": choice.get("text")}
    return _message({**said, "role": "assistant"}), text(choice.get("finish_reason"))


# --- streams


def _from_stream(content: Content) -> tuple[Answer, ...]:
    told = Answer()
    choices: dict[int, _Choice] = {}
    datas = events(content.data)
    for data in datas:
        chunk = read(_DOCUMENT, data)
        if chunk is None:
            continue
        if _has_news(chunk, told):
            told = _with_facts(told, chunk)
        for choice in sequence(chunk.choices):
            fields = mapping(choice)
            choices.setdefault(count(fields.get("index")), _Choice()).add(fields)
    said = [choices[index] for index in sorted(choices)]
    # Not every host ends with the mark. Where the mark is missing and the stream was cut, the usage may be missing too.
    finished = content.complete and bool(said) and all(choice.stop for choice in said)
    told = replace(told, partial=not finished and _DONE not in datas[-1:])
    return _per_choice(told, [_choice(choice.whole) for choice in said])


def _has_news(chunk: _Document, told: Answer) -> bool:
    """Most chunks only repeat what the first one said."""
    news = chunk.usage or chunk.error or chunk.x_groq or not told.response_id
    return bool(news) or (chunk.service_tier or "") != told.service_tier


def _with_facts(told: Answer, chunk: _Document) -> Answer:
    """What a chunk says apart from words. A later count replaces: some hosts give one with every chunk."""
    kind, words = provider_error({"error": chunk.error})
    return Answer(
        model=told.model or text(chunk.model),
        usage=usage_of(chunk.usage) or usage_of(mapping(chunk.x_groq).get("usage")) or told.usage,
        response_id=told.response_id or text(chunk.id),
        service_tier=text(chunk.service_tier) or told.service_tier,
        error=words or told.error,
        error_type=kind or told.error_type,
    )


class _Choice:
    """A choice as its deltas build it up."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._audio: dict[str, list[str]] = {}
        self._calls: list[_Call] = []
        self._by_index: dict[Any, _Call] = {}
        self.stop = ""

    def add(self, choice: dict[str, Any]) -> None:
        delta = mapping(choice.get("delta")) or {"content": choice.get("text")}
        for name, said in delta.items():
            if type(said) is str:
                self._texts.setdefault(name, []).append(said)
            elif said:
                self._add_structure(name, said)
        self.stop = text(choice.get("finish_reason")) or self.stop

    def _add_structure(self, name: str, said: Any) -> None:
        if name == "content":
            # Mistral sends thoughts as typed pieces of the content.
            for part in parts_of(said):
                kind = "reasoning_content" if part.kind == PartKind.THINKING else "content"
                self._texts.setdefault(kind, []).append(part.text)
        elif name == "tool_calls":
            for call in sequence(said):
                self._add_call(mapping(call))
        elif name == "function_call":
            self._add_call({"function": said})
        elif name == "audio":
            for field in ("id", "transcript"):
                self._audio.setdefault(field, []).append(text(mapping(said).get(field)))

    def _add_call(self, delta: dict[str, Any]) -> None:
        """Some hosts give every call the index 0, or none: then a fresh id tells."""
        index, id = delta.get("index"), text(delta.get("id"))
        index = index if type(index) is int else 0
        call = self._by_index.get(index)
        if call is None or (id and call.id and id != call.id):
            call = self._by_index[index] = _Call()
            self._calls.append(call)
        call.add(id, delta)

    @property
    def whole(self) -> dict[str, Any]:
        """The choice as a plain answer would have it."""
        message: dict[str, Any] = {name: "".join(said) for name, said in self._texts.items()}
        if self._audio:
            message["audio"] = {name: "".join(said) for name, said in self._audio.items()}
        message["tool_calls"] = [call.whole for call in self._calls]
        return {"message": message, "finish_reason": self.stop}


class _Call:
    """A tool call as its deltas build it up."""

    def __init__(self) -> None:
        self.id = ""
        self._kind = "function"
        self._name = ""
        self._said: list[str] = []

    def add(self, id: str, delta: dict[str, Any]) -> None:
        self.id = self.id or id
        custom = mapping(delta.get("custom"))
        if custom:
            self._kind = "custom"
        told = custom or mapping(delta.get("function"))
        self._name = self._name or text(told.get("name"))
        said = told.get("arguments") or told.get("input")
        self._said.append(text(said) or (written(said) if said else ""))

    @property
    def whole(self) -> dict[str, Any]:
        said = "".join(self._said)
        return {"id": self.id, self._kind: {"name": self._name, "arguments": said, "input": said}}
