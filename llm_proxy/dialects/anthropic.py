"""Anthropic's Messages API: requests, answers plain and streamed, token counts.

The same bodies travel to Vertex AI, in Bedrock's envelopes (`bedrock`) and in batches (`anthropic_batches`), which use
what is public here. Leaves out the legacy text completions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec

from llm_proxy.dialects import reading
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage

# --- messages: what stands here as Any is checked where it is used, so that one odd field does not spoil the others

_ABSENT = msgspec.Raw()


class _Block(msgspec.Struct, gc=False):
    type: Any = None
    text: Any = None
    thinking: Any = None
    id: Any = None
    tool_use_id: Any = None
    name: Any = None
    title: Any = None
    is_error: Any = None
    input: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    source: msgspec.Raw = _ABSENT


_Blocks = str | list[_Block] | None


class _Message(msgspec.Struct, gc=False):
    role: Any = None
    content: _Blocks = None


class _OddMessage(msgspec.Struct, gc=False):
    role: Any = None
    content: msgspec.Raw = _ABSENT


class _Request(msgspec.Struct, gc=False):
    model: Any = None
    system: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    stream: Any = None
    max_tokens: Any = None
    service_tier: Any = None


class _Tool(msgspec.Struct, gc=False):
    name: Any = None
    type: Any = None


_REQUEST = msgspec.json.Decoder(_Request)
_MESSAGE = msgspec.json.Decoder(_Message)
_ODD_MESSAGE = msgspec.json.Decoder(_OddMessage)
_BLOCKS = msgspec.json.Decoder(_Blocks)
_BLOCK = msgspec.json.Decoder(_Block)
_TOOL = msgspec.json.Decoder(_Tool)

_VERTEX_MODEL = re.compile(r".*/models/([^/]+):(?:streamR|r)awPredict", re.DOTALL)


def asked(path: str, body: bytes) -> Asked:
    """What a request to messages or count_tokens asks. Never raises."""
    named = _VERTEX_MODEL.fullmatch(path)
    return request(body, unquote(named[1]) if named else "")


def request(body: bytes | msgspec.Raw, model: str = "", stream: bool = False) -> Asked:
    """A Messages body. `model` and `stream` are what the path says, where the body says nothing."""
    said = reading.read(_REQUEST, body)
    if said is None:
        return Asked(model=model, stream=stream, trouble="the body is not a JSON object" if body else "")
    return Asked(
        model=reading.text(said.model) or model,
        system=_system(said.system),
        messages=_messages(said.messages),
        tools=_tools(said.tools),
        stream=stream or said.stream is True,
        max_tokens=reading.count(said.max_tokens),
        service_tier=reading.text(said.service_tier),
    )


@partial(reading.remembered, most=64, longest=256 << 10)
def _system(data: bytes) -> str:
    return "\n\n".join(part.text for part in _parts(_blocks(data)) if part.text)


@partial(reading.remembered, most=64, longest=256 << 10)
def _tools(data: bytes) -> tuple[str, ...]:
    return tuple(filter(None, map(_tool, reading.read_each(_TOOL, data))))


def _tool(tool: _Tool) -> str:
    """Server tools may have a type only."""
    return reading.text(tool.name) or reading.text(tool.type)


def _messages(raw: msgspec.Raw) -> tuple[Message, ...]:
    return tuple([message for one in reading.read(reading.RAWS, raw) or () if (message := _read_message(one))])


@reading.remembered
def _read_message(data: bytes) -> Message | None:
    read = reading.read(_MESSAGE, data)
    if read is not None:
        return _message(read.role, read.content)
    odd = reading.read(_ODD_MESSAGE, data)
    return _message(odd.role, _blocks(odd.content)) if odd is not None else None


_ROLES = {"user": "user", "assistant": "assistant", "system": "system"}


def _message(role: Any, content: _Blocks) -> Message:
    """A user's message that only hands back results is the tool's."""
    parts = _parts(content)
    if type(content) is list and content and all(block.type == "tool_result" for block in content):
        return Message("tool", parts)
    return Message(_ROLES.get(reading.text(role), "user"), parts)


def _blocks(raw: msgspec.Raw | bytes) -> _Blocks:
    read = reading.read(_BLOCKS, raw)
    return list(reading.read_each(_BLOCK, raw)) if read is None else read


# --- blocks to parts


def _parts(content: _Blocks) -> tuple[Part, ...]:
    if type(content) is str:
        return (Part(PartKind.TEXT, content),)
    parts: list[Part] = []
    for block in content or ():
        parts += _block(block)  # type: ignore[arg-type]
    return tuple(parts)


def _block(block: _Block) -> Iterable[Part]:
    kind = reading.text(block.type)
    return _READERS.get(kind, _other)(block, kind)


def _text(block: _Block, kind: str) -> Iterable[Part]:
    said = reading.text(block.text)
    return (Part(PartKind.TEXT, said),) if said else ()


def _thinking(block: _Block, kind: str) -> Iterable[Part]:
    thought = reading.text(block.thinking)
    return (Part(PartKind.THINKING, thought),) if thought else ()


def _redacted_thinking(block: _Block, kind: str) -> Iterable[Part]:
    return (Part(PartKind.THINKING, "[redacted]"),)


def _call(block: _Block, kind: str) -> Iterable[Part]:
    arguments = reading.canonical(block.input)
    return (Part(PartKind.TOOL_CALL, arguments, reading.text(block.name), reading.text(block.id)),)


def _result(block: _Block, kind: str) -> Iterable[Part]:
    """The result's text as one part; pictures in it as parts behind it."""
    said, media, failed = _outcome(block.content)
    failed = failed or block.is_error is True
    return (Part(PartKind.TOOL_RESULT, said, "", reading.text(block.tool_use_id), failed), *media)


def _media(block: _Block, kind: str) -> Iterable[Part]:
    source = reading.mapping(reading.read_value(block.source))
    shown = (source.get("url"), source.get("file_id"), block.title, source.get("media_type"))
    return (Part(PartKind.MEDIA, next(filter(None, map(reading.text, shown)), ""), kind),)


def _other(block: _Block, kind: str) -> Iterable[Part]:
    if kind.endswith("_tool_use"):
        return _call(block, kind)
    if kind.endswith("_tool_result"):
        return _result(block, kind)
    said = reading.text(block.text) or reading.text(reading.read_value(block.content))
    return (Part(PartKind.OTHER, said, kind),)


_READERS: dict[str, Callable[[_Block, str], Iterable[Part]]] = {
    "text": _text,
    "thinking": _thinking,
    "redacted_thinking": _redacted_thinking,
    "tool_use": _call,
    "tool_result": _result,
    "image": _media,
    "document": _media,
}


def _outcome(raw: msgspec.Raw) -> tuple[str, Iterable[Part], bool]:
    """Of a tool result its text, its media, and whether it is one of the server tools' errors."""
    content = reading.read(_BLOCKS, raw)
    if type(content) is str:
        return content, (), False
    if content is not None and all(block.type in _IN_RESULTS for block in content):
        parts = _parts(content)
        texts = [part.text for part in parts if part.kind == PartKind.TEXT]
        return "\n".join(texts), [part for part in parts if part.kind == PartKind.MEDIA], False
    value = reading.read_value(raw)
    return "\n".join(_shown(value)), (), reading.text(reading.mapping(value).get("type")).endswith("_error")


_IN_RESULTS = ("text", "image", "document")
# What is worth reading in the results of server tools; the rest is encrypted, or numbers.
_SHOWN = ("title", "url", "text", "stdout", "stderr", "error_code", "error_message", "tool_name", "content", "source")
_DEPTH = 6


def _shown(value: Any, depth: int = 0) -> list[str]:
    if type(value) is str:
        return [value] if value else []
    if depth == _DEPTH:
        return []
    if type(value) is list:
        return [said for item in value for said in _shown(item, depth + 1)]
    fields = reading.mapping(value)
    within = [said for name in _SHOWN for said in _shown(fields.get(name), depth + 1)]
    is_text = fields.get("type") == "text" and type(fields.get("data")) is str  # a document's source
    return [*within, fields["data"]] if is_text else within


# --- usage


class Counts(msgspec.Struct):
    """`usage` as it was last said. None: not said."""

    input_tokens: Any = None
    cache_read_input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_creation: Any = None
    output_tokens: Any = None
    output_tokens_details: Any = None
    server_tool_use: Any = None
    iterations: Any = None
    service_tier: Any = None
    speed: Any = None

    def replace(self, newer: Counts) -> None:
        """Counts are cumulative: what is said later replaces, and what it leaves out stays."""
        for name in self.__struct_fields__:
            value = getattr(newer, name)
            if value is not None:
                setattr(self, name, value)

    @property
    def tier(self) -> str:
        """The tier that sets the price. Fast mode has prices of its own within the standard tier."""
        return "fast" if self.speed == "fast" else reading.text(self.service_tier)


_COUNTS = msgspec.json.Decoder(Counts)
_TOKENS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation")


def usage_of(counts: Counts) -> Usage | None:
    """Tokens by class, None where there are none. Includes what compaction cost, which the totals leave out."""
    if all(getattr(counts, name) is None for name in _TOKENS):
        return None
    usage = _tokens(counts)
    for iteration in _iterations(counts, "compaction"):
        usage += _tokens(iteration)
    return usage


def _tokens(counts: Counts) -> Usage:
    split = reading.mapping(counts.cache_creation)
    longer = reading.count(split.get("ephemeral_1h_input_tokens"))
    written = reading.count(split.get("ephemeral_5m_input_tokens")) + longer
    if counts.cache_creation_input_tokens is not None:
        # The total may be newer than the split, which streams tell only at their start.
        written = reading.count(counts.cache_creation_input_tokens)
    longer = min(longer, written)
    output = reading.count(counts.output_tokens)
    uses = reading.mapping(counts.server_tool_use)
    tools = {name.removesuffix("_requests"): reading.count(value) for name, value in uses.items()}
    return Usage(
        input=reading.count(counts.input_tokens),
        cache_read=reading.count(counts.cache_read_input_tokens),
        cache_write_5m=written - longer,
        cache_write_1h=longer,
        output=output,
        reasoning=min(output, reading.count(reading.mapping(counts.output_tokens_details).get("thinking_tokens"))),
        server_tools=tuple(sorted((name, number) for name, number in tools.items() if number)),
    )


def _iterations(counts: Counts, kind: str) -> list[Counts]:
    said = (reading.mapping(item) for item in reading.sequence(counts.iterations))
    return [counts_of(item) for item in said if item.get("type") == kind]


def counts_of(fields: dict[str, Any]) -> Counts:
    return Counts(**{name: fields[name] for name in Counts.__struct_fields__ if name in fields})


def _advice(counts: Counts) -> list[Answer]:
    """What an advisor, another model, said in between: its tokens are in no total."""
    said = (reading.mapping(item) for item in reading.sequence(counts.iterations))
    return [
        Answer(model=reading.text(item.get("model")), usage=_tokens(counts_of(item)), service_tier=counts.tier)
        for item in said
        if item.get("type") == "advisor_message"
    ]


# --- answers


class _Reply(msgspec.Struct, gc=False):
    id: Any = None
    type: Any = None
    model: Any = None
    content: msgspec.Raw = _ABSENT
    stop_reason: Any = None
    stop_details: Any = None
    usage: msgspec.Raw = _ABSENT
    error: Any = None
    message: Any = None
    input_tokens: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


def answers(content: Content) -> tuple[Answer, ...]:
    """What came back: one answer, and one more for each time an advisor was asked. Never raises."""
    if content.kind == "messages":
        return (Answer(trouble="this API is not spoken over WebSocket"),)
    if content.status is None and not content.data:
        return ()
    if reading.streamed(content):
        stream = Stream()
        for data in reading.events(content.data):
            stream.feed(data)
        return stream.answers()
    return reply(content.data) or (reading.failure(content),)


def reply(body: bytes | msgspec.Raw) -> tuple[Answer, ...]:
    """The answers in a plain body; none where it is not one of this API."""
    said = reading.read(_REPLY, body)
    if said is None:
        return ()
    if said.error is not None or said.type == "error":
        return (_error(said),)
    if said.type == "message" or said.content:
        counts = reading.read(_COUNTS, said.usage) or Counts()
        parts = (*_parts(_blocks(said.content)), *_refusal(said.stop_details))
        answer = Answer(
            model=reading.text(said.model),
            message=Message("assistant", parts),
            usage=usage_of(counts),
            stop_reason=reading.text(said.stop_reason),
            response_id=reading.text(said.id),
            service_tier=counts.tier,
        )
        return (*_advice(counts), answer)
    return (Answer(),) if type(said.input_tokens) is int else ()  # a count of tokens is no usage


def _error(said: _Reply) -> Answer:
    kind, words = reading.error_of(said.error)
    return Answer(error=words or reading.text(said.message) or "error", error_type=kind)


def _refusal(details: Any) -> tuple[Part, ...]:
    why = reading.text(reading.mapping(details).get("explanation"))
    return (Part(PartKind.REFUSAL, why),) if why else ()


# --- streams


class _Delta(msgspec.Struct, gc=False):
    type: Any = None
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    content: Any = None
    stop_reason: Any = None
    stop_details: Any = None


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    index: Any = None
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Reply | None = None
    usage: msgspec.Raw = _ABSENT
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event)

# Delta -> its field, and the type of the block it adds to.
_DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("partial_json", "tool_use"),
    "compaction_delta": ("content", "compaction"),
}


class _Open:
    """A block that is still growing."""

    __slots__ = ("block", "pieces")

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.pieces: list[str] = []

    def parts(self) -> Iterable[Part]:
        block, grown = self.block, "".join(self.pieces)
        if not grown:
            return _block(block)
        kind = reading.text(block.type)
        if kind.endswith("tool_use"):
            arguments = reading.canonical(grown)
            return (Part(PartKind.TOOL_CALL, arguments, reading.text(block.name), reading.text(block.id)),)
        if kind == "thinking":
            return (Part(PartKind.THINKING, reading.text(block.thinking) + grown),)
        if kind == "text":
            return (Part(PartKind.TEXT, reading.text(block.text) + grown),)
        return (Part(PartKind.OTHER, grown, kind),)


class Stream:
    """An answer that comes as events. Feed the data of each; ask for the answers at any time."""

    def __init__(self) -> None:
        self._model = self._id = self._stop_reason = ""
        self._error = self._error_type = self._trouble = ""
        self._counts = Counts()
        self._blocks: dict[Any, _Open] = {}
        self._refusal: tuple[Part, ...] = ()
        self._begun = self._ended = False

    def feed(self, data: bytes | str) -> None:
        event = reading.read(_EVENT, data)
        if event is None:
            self._trouble = "an event is not the JSON that this API sends"
            return
        take = _EVENTS.get(reading.text(event.type))
        if take is not None:
            take(self, event)

    def answers(self) -> tuple[Answer, ...]:
        """Complete after `message_stop` only."""
        parts = [part for opened in self._blocks.values() for part in opened.parts()]
        answer = Answer(
            model=self._model,
            message=Message("assistant", (*parts, *self._refusal)) if self._begun or parts else None,
            usage=usage_of(self._counts),
            stop_reason=self._stop_reason,
            response_id=self._id,
            service_tier=self._counts.tier,
            error=self._error,
            error_type=self._error_type,
            partial=not self._ended,
            trouble=self._trouble,
        )
        return (*_advice(self._counts), answer)

    def _on_start(self, event: _Event) -> None:
        self._begun = True
        message = event.message or _Reply()
        self._model, self._id = reading.text(message.model), reading.text(message.id)
        self._take_counts(message.usage)

    def _on_block(self, event: _Event) -> None:
        if type(event.index) is int and event.content_block is not None:
            self._blocks[event.index] = _Open(event.content_block)

    def _on_delta(self, event: _Event) -> None:
        delta = event.delta
        if delta is None or type(delta.type) is not str or type(event.index) is not int:
            return
        field, kind = _DELTAS.get(delta.type, ("", ""))
        piece = getattr(delta, field) if field else None
        if type(piece) is not str:
            return
        opened = self._blocks.get(event.index)
        if opened is None:  # its start went missing
            opened = self._blocks[event.index] = _Open(_Block(type=kind))
        opened.pieces.append(piece)

    def _on_message_delta(self, event: _Event) -> None:
        if event.delta is not None:
            self._stop_reason = reading.text(event.delta.stop_reason) or self._stop_reason
            self._refusal = _refusal(event.delta.stop_details) or self._refusal
        self._take_counts(event.usage)

    def _on_stop(self, event: _Event) -> None:
        self._ended = True

    def _on_error(self, event: _Event) -> None:
        self._error_type, words = reading.error_of(event.error)
        self._error = words or "error"

    def _take_counts(self, raw: msgspec.Raw) -> None:
        counts = reading.read(_COUNTS, raw)
        if counts is not None:
            self._counts.replace(counts)


_EVENTS: dict[str, Callable[[Stream, _Event], None]] = {
    "message_start": Stream._on_start,
    "content_block_start": Stream._on_block,
    "content_block_delta": Stream._on_delta,
    "message_delta": Stream._on_message_delta,
    "message_stop": Stream._on_stop,
    "error": Stream._on_error,
}
