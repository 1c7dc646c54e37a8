"""OpenAI's chat completions, answers both ways: whole, as chunks, and their token counts.

Nothing here raises, whatever a provider sends. Leaves out all choices but the first: no other API has several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.openai import usage_of
from llm_proxy.dialects.reading import count, mapping, sequence, text
from llm_proxy.gateway.translate.chat import write_call, write_thought
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Begin,
    End,
    Event,
    Failure,
    Json,
    Part,
    PartBegin,
    PartEnd,
    Piece,
    Refusal,
    Reply,
    Signed,
    Stop,
    Text,
    Thinking,
    ToolCall,
)
from llm_proxy.gateway.translate.errors import code_of, kind_of, type_of
from llm_proxy.gateway.translate.signatures import ANTHROPIC, GEMINI, inward

_STOPS = {
    "stop": Stop.END,
    "length": Stop.LENGTH,
    "tool_calls": Stop.TOOL,
    "function_call": Stop.TOOL,
    "content_filter": Stop.FILTERED,
}
_STOP_NAMES = {
    Stop.END: "stop",
    Stop.SEQUENCE: "stop",
    Stop.PAUSED: "stop",
    Stop.LENGTH: "length",
    Stop.TOOL: "tool_calls",
    Stop.REFUSED: "content_filter",
    Stop.FILTERED: "content_filter",
}


def read_usage(told: Json) -> Usage:
    """Token counts: what was cached lies within the prompt there."""
    return usage_of(told) or Usage()


def write_usage(usage: Usage) -> Json:
    """As an answer tells it."""
    written = usage.cache_write_5m + usage.cache_write_1h
    within = {"cached_tokens": usage.cache_read, "audio_tokens": usage.input_audio + usage.cache_read_audio}
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": within | ({"cache_write_tokens": written} if written else {}),
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": usage.output_audio},
    }


# -- whole


def read_reply(body: Json, *, id: str = "", model: str = "") -> Reply:
    """What the first choice says; `id` and `model` are for an answer that does not tell them."""
    fields = mapping(body)
    choice = mapping(next(iter(sequence(fields.get("choices"))), None))
    parts = tuple(_parts(mapping(choice.get("message"))))
    return Reply(
        id=text(fields.get("id")) or id,
        model=text(fields.get("model")) or model,
        parts=parts,
        stop=_stop(text(choice.get("finish_reason")), any(isinstance(part, Refusal) for part in parts)),
        usage=read_usage(fields.get("usage")),
        created=count(fields.get("created")),
        logprobs=choice.get("logprobs"),
        tier=text(fields.get("service_tier")),
        fingerprint=text(fields.get("system_fingerprint")),
    )


def _stop(told: str, refused: bool) -> Stop:
    stop = _STOPS.get(told, Stop.END)
    return Stop.REFUSED if refused and stop is Stop.END else stop


def _parts(message: dict[str, Json]) -> Iterator[Part]:
    signed = [_thought(mapping(one)) for one in sequence(message.get("thinking_blocks"))]
    yield from signed
    if not signed and (thought := _plain_thought(message)):
        yield Thinking(thought)
    if said := _text_in(message.get("content")):
        yield Text(said)
    if refusal := text(message.get("refusal")):
        yield Refusal(refusal)
    old = [{"function": message["function_call"]}] if message.get("function_call") else []
    for call in [*sequence(message.get("tool_calls")), *old]:
        yield _call(mapping(call))


def _plain_thought(fields: dict[str, Json]) -> str:
    return text(fields.get("reasoning_content")) or text(fields.get("reasoning"))


def _thought(block: dict[str, Json]) -> Thinking:
    if block.get("type") == "redacted_thinking":
        return Thinking("", sealed=text(block.get("data")), origin=ANTHROPIC)
    return inward(text(block.get("thinking")), text(block.get("signature")), ANTHROPIC)


def _text_in(content: Json) -> str:
    """Some that are compatible answer with a list of parts."""
    return text(content) or "".join(text(mapping(part).get("text")) for part in sequence(content))


def _call(fields: dict[str, Json]) -> ToolCall:
    free = "custom" in fields
    told = mapping(fields.get("custom") if free else fields.get("function"))
    given = text(told.get("input") if free else told.get("arguments"))
    google = mapping(mapping(fields.get("extra_content")).get("google"))
    signature = text(google.get("thought_signature"))
    origin = GEMINI if signature else ""
    return ToolCall(text(fields.get("id")), text(told.get("name")), given, free, signature, origin)


def write_reply(reply: Reply, ask: Ask, created: int = 0) -> Json:
    """The body of a chat completion. `created` is seconds since 1970, for a reply that does not tell."""
    message = _message(reply.parts)
    refused = reply.stop is Stop.REFUSED and message["refusal"] is not None
    finish = "stop" if refused else _STOP_NAMES[reply.stop]
    body: dict[str, Json] = {
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created or created,
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "logprobs": reply.logprobs, "finish_reason": finish}],
        "usage": write_usage(reply.usage),
    }
    if reply.tier:
        body["service_tier"] = reply.tier
    return body | ({"system_fingerprint": reply.fingerprint} if reply.fingerprint else {})


def _message(parts: Iterable[Part]) -> dict[str, Json]:
    """An answer's content is one text there."""
    said: dict[type, str] = {}
    thoughts: list[Json] = []
    calls: list[Json] = []
    for part in parts:
        match part:
            case Text() | Refusal():
                said[type(part)] = said.get(type(part), "") + part.text
            case Thinking():
                said[Thinking] = said.get(Thinking, "") + part.text
                thoughts += [write_thought(part)] if part.origin else []
            case ToolCall():
                calls.append(write_call(part))
    message: dict[str, Json] = {"role": "assistant", "content": said.get(Text), "refusal": said.get(Refusal)}
    if said.get(Thinking):
        message["reasoning_content"] = said[Thinking]
    if thoughts:
        message["thinking_blocks"] = thoughts
    return message | ({"tool_calls": calls} if calls else {})


# -- streams


class StreamReader:
    """Chunks of a chat completion, as they come. A part has no end of its own there: the next one's begin is it."""

    def __init__(self, *, id: str = "", model: str = "") -> None:
        self._id = id
        self._model = model
        self._begun = False
        self._open: dict[str, int] = {}  # what is open: "text", "thinking", "refusal", "call N" -> its index
        self._count = 0
        self._stop: Stop | None = None
        self._usage = Usage()
        self._refused = self._failed = False

    def read(self, chunk: Json) -> Iterator[Event]:
        """What one chunk says."""
        fields = mapping(chunk)
        if error := fields.get("error"):
            told = mapping(error)
            kind = kind_of(text(told.get("code")) or text(told.get("type")))
            self._failed = True
            yield Failure(kind, text(told.get("message")) or text(error))
            return
        choices = [mapping(choice) for choice in sequence(fields.get("choices"))]
        if not self._begun and choices:
            self._begun = True
            yield Begin(
                text(fields.get("id")) or self._id,
                text(fields.get("model")) or self._model,
                created=count(fields.get("created")),
                tier=text(fields.get("service_tier")),
                fingerprint=text(fields.get("system_fingerprint")),
            )
        if fields.get("usage"):
            self._usage = read_usage(fields["usage"])
        for choice in choices:
            if not count(choice.get("index")):
                yield from self._choice(choice)

    def finish(self) -> Iterator[Event]:
        """The stream is over (`[DONE]`, or its end). Counts come last, so only now is all known."""
        if self._failed:
            return
        yield from self._close()
        if self._stop is not None:
            yield End(self._stop, usage=self._usage)

    def _choice(self, choice: dict[str, Json]) -> Iterator[Event]:
        delta = mapping(choice.get("delta"))
        yield from self._thoughts(delta)
        said, logprobs = _text_in(delta.get("content")), choice.get("logprobs")
        if said or (logprobs and not delta.get("refusal")):
            yield from self._piece("text", Text(""), said, logprobs)
        if refusal := text(delta.get("refusal")):
            self._refused = True
            yield from self._piece("refusal", Refusal(""), refusal, logprobs)
        for one in sequence(delta.get("tool_calls")):
            call = _call(mapping(one))
            key = f"call {count(mapping(one).get('index'))}"
            yield from self._piece(key, replace(call, arguments=""), call.arguments)
        if told := text(choice.get("finish_reason")):
            self._stop = _stop(told, self._refused)

    def _thoughts(self, delta: dict[str, Json]) -> Iterator[Event]:
        if thought := _plain_thought(delta):
            yield from self._piece("thinking", Thinking(""), thought)
        for one in map(_thought, map(mapping, sequence(delta.get("thinking_blocks")))):
            if one.sealed:
                yield from self._close()
                yield PartBegin(self._count, one)
                yield PartEnd(self._count)
                self._count += 1
            elif one.signature:
                yield from self._piece("thinking", Thinking("", id=one.id), "")
                yield Signed(self._open["thinking"], one.signature, one.origin)
                yield from self._close()  # the next thought is another one

    def _piece(self, key: str, part: Part, said: str, logprobs: Json = None) -> Iterator[Event]:
        if key not in self._open:
            if not key.startswith("call"):  # calls may come interleaved, nothing else does
                yield from self._close()
            self._open[key] = self._count
            yield PartBegin(self._count, part)
            self._count += 1
        if said or logprobs:
            yield Piece(self._open[key], said, logprobs)

    def _close(self) -> Iterator[Event]:
        for index in self._open.values():
            yield PartEnd(index)
        self._open = {}


class StreamWriter:
    """Writes a chat completion's chunks. `[DONE]` follows the last one."""

    def __init__(self, ask: Ask, created: int = 0) -> None:
        self._usage = ask.usage  # whether the caller asked for counts at the end
        self._created = created
        self._begin = Begin("", "")
        self._calls: dict[int, int] = {}
        self._parts: dict[int, Part] = {}
        self._refused = False

    def write(self, event: Event) -> Iterator[tuple[str, Json]]:
        """("", chunk): chunks have no names."""
        for chunk in self._chunks(event):
            yield "", chunk

    def _chunks(self, event: Event) -> Iterator[Json]:
        match event:
            case Begin():
                self._begin = event
                yield self._chunk({"role": "assistant", "content": "", "refusal": None})
            case PartBegin():
                yield from self._opened(event)
            case Piece():
                yield self._piece(event)
            case Signed():
                part = self._parts.get(event.index)
                if isinstance(part, Thinking):
                    signed = replace(part, signature=event.signature, origin=event.origin)
                    yield self._chunk({"thinking_blocks": [write_thought(signed)]})
            case End():
                refused = event.stop is Stop.REFUSED and self._refused
                yield self._chunk({}, finish="stop" if refused else _STOP_NAMES[event.stop])
                if self._usage:
                    yield self._chunk({}) | {"choices": [], "usage": write_usage(event.usage)}
            case Failure():
                kind = type_of("chat", event.kind)
                error = {"message": event.message, "type": kind, "param": None, "code": code_of(event.kind)}
                yield {"error": error}

    def _opened(self, event: PartBegin) -> Iterator[Json]:
        self._parts[event.index] = event.part
        match event.part:
            case ToolCall():
                number = self._calls[event.index] = len(self._calls)
                yield self._chunk({"tool_calls": [{"index": number} | write_call(event.part)]})
            case Thinking() if event.part.sealed:
                yield self._chunk({"thinking_blocks": [write_thought(event.part)]})
            case Refusal():
                self._refused = True

    def _piece(self, event: Piece) -> Json:
        match self._parts.get(event.index):
            case ToolCall(free=free):
                field = {"custom": {"input": event.text}} if free else {"function": {"arguments": event.text}}
                return self._chunk({"tool_calls": [{"index": self._calls[event.index]} | field]})
            case Thinking():
                return self._chunk({"reasoning_content": event.text})
            case Refusal():
                return self._chunk({"refusal": event.text}, logprobs=event.logprobs)
        return self._chunk({"content": event.text}, logprobs=event.logprobs)

    def _chunk(self, delta: Json, finish: str | None = None, logprobs: Json = None) -> dict[str, Json]:
        begin = self._begin
        chunk: dict[str, Json] = {
            "id": begin.id,
            "object": "chat.completion.chunk",
            "created": begin.created or self._created,
            "model": begin.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}],
        }
        if begin.tier:
            chunk["service_tier"] = begin.tier
        if begin.fingerprint:
            chunk["system_fingerprint"] = begin.fingerprint
        return chunk | ({"usage": None} if self._usage else {})
