"""Amazon Bedrock's runtime: Anthropic's bodies in Amazon's envelopes (invoke), and the Converse API.

Amazon's own models speak Converse's shapes through invoke too. Leaves out the bodies of other makers' models: of their
streams the token counts are read, which Bedrock adds at the end.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import msgspec

from llm_proxy.dialects import anthropic, frames, reading
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage
from llm_proxy.wire import eventstream

_ABSENT = msgspec.Raw()

# --- paths

_PATH = re.compile(r".*/model/(.+)/(converse|invoke|count-tokens)(-stream|-with-response-stream)?/?", re.DOTALL)
# The name at the end of these tells the model; that of an application's own profile or a router does not.
_NAMED_ARN = re.compile(r"arn:[^:]*:bedrock:[^/]*:(?:foundation-model|inference-profile)/([^/]+)")


def model_of(path: str) -> str:
    """The model's id as Bedrock names it, or an ARN where that is all there is; "" without one."""
    match = _PATH.fullmatch(path)
    model = unquote(match[1]) if match else ""
    arn = _NAMED_ARN.fullmatch(model)
    return arn[1] if arn else model


def asked(path: str, body: bytes) -> Asked:
    """What a request to invoke, converse or count-tokens asks. Never raises."""
    match = _PATH.fullmatch(path)
    if match is not None and match[2] == "count-tokens":
        return _counted(body, model_of(path))
    return _asked_in(body, model_of(path), bool(match and match[3]), match is not None and match[2] == "converse")


def _asked_in(body: bytes, model: str, streams: bool = False, converses: bool = False) -> Asked:
    """A body of either API. Amazon's models are asked in Converse's shapes through invoke too."""
    request = reading.read(_REQUEST, body)
    if request is not None and (converses or request.inferenceConfig is not None):
        return _converse(request, model, streams)
    return anthropic.request(body, model, streams)


def _counted(body: bytes, model: str) -> Asked:
    """A request whose tokens are counted is in it whole: Converse's as an object, InvokeModel's in base64."""
    asked = reading.mapping(reading.mapping(reading.read_value(body)).get("input"))
    conversed = reading.mapping(asked.get("converse"))
    if conversed:
        return _asked_in(reading.written(conversed).encode(), model, converses=True)
    coded = reading.text(reading.mapping(asked.get("invokeModel")).get("body"))
    try:
        return _asked_in(base64.b64decode(coded), model)
    except ValueError:
        return Asked(model=model, trouble="the request to count is not base64")


# --- Converse: requests


class _Request(msgspec.Struct, gc=False):
    messages: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    inferenceConfig: Any = None
    toolConfig: Any = None
    serviceTier: Any = None


class _Block(msgspec.Struct, gc=False):
    text: Any = None
    toolUse: msgspec.Raw = _ABSENT
    toolResult: Any = None
    reasoningContent: Any = None
    guardContent: Any = None
    citationsContent: Any = None
    cachePoint: Any = None
    image: Any = None
    document: Any = None
    video: Any = None
    audio: Any = None


class _ToolUse(msgspec.Struct, gc=False):
    toolUseId: Any = None
    name: Any = None
    input: msgspec.Raw = _ABSENT


class _Message(msgspec.Struct, gc=False):
    role: Any = None
    content: msgspec.Raw = _ABSENT


_REQUEST = msgspec.json.Decoder(_Request)
_MESSAGE = msgspec.json.Decoder(_Message)
_BLOCKS = msgspec.json.Decoder(list[_Block])
_BLOCK = msgspec.json.Decoder(_Block)
_TOOL_USE = msgspec.json.Decoder(_ToolUse)


def _converse(said: _Request, model: str, streams: bool) -> Asked:
    limits = reading.mapping(said.inferenceConfig)
    tools = reading.sequence(reading.mapping(said.toolConfig).get("tools"))
    system = _parts(_blocks(said.system))
    return Asked(
        model=model,
        system="\n\n".join(part.text for part in system if part.text),
        messages=tuple(map(_message, reading.read_each(_MESSAGE, said.messages))),
        tools=tuple(name for tool in tools if (name := _tool(tool))),
        stream=streams,
        max_tokens=reading.count(limits.get("maxTokens")) or reading.count(limits.get("max_new_tokens")),
        service_tier=_tier(said.serviceTier),
    )


def _tool(tool: Any) -> str:
    fields = reading.mapping(tool)
    spec = reading.mapping(fields.get("toolSpec")) or reading.mapping(fields.get("systemTool"))
    return reading.text(spec.get("name"))


def _tier(value: Any) -> str:
    return reading.text(reading.mapping(value).get("type"))


def _message(said: _Message) -> Message:
    """A user's message that only hands back results is the tool's."""
    blocks = _blocks(said.content)
    if blocks and all(block.toolResult is not None for block in blocks):
        return Message("tool", _parts(blocks))
    return Message("assistant" if said.role == "assistant" else "user", _parts(blocks))


def _blocks(raw: msgspec.Raw) -> list[_Block]:
    read = reading.read(_BLOCKS, raw)
    return list(reading.read_each(_BLOCK, raw)) if read is None else read


def _parts(blocks: Iterable[_Block]) -> tuple[Part, ...]:
    return tuple(part for block in blocks for part in _block(block))


_MEDIA = ("image", "document", "video", "audio")


def _block(block: _Block) -> Iterable[Part]:
    if type(block.text) is str:
        return (Part(PartKind.TEXT, block.text),) if block.text else ()
    use = reading.read(_TOOL_USE, block.toolUse)
    if use is not None:
        arguments = reading.canonical(use.input)
        return (Part(PartKind.TOOL_CALL, arguments, reading.text(use.name), reading.text(use.toolUseId)),)
    if block.toolResult is not None:
        return _result(reading.mapping(block.toolResult))
    if block.reasoningContent is not None:
        return _reasoning(reading.mapping(block.reasoningContent))
    said = _inner_text(block.guardContent) or _inner_text(block.citationsContent)
    if said:
        return (Part(PartKind.TEXT, said),)
    for name in _MEDIA:
        media = getattr(block, name)
        if media is not None:
            return (_media(name, reading.mapping(media)),)
    return () if block.cachePoint is not None else (Part(PartKind.OTHER, name="unknown"),)


def _inner_text(value: Any) -> str:
    """Of guarded text the text, of cited content its texts."""
    fields = reading.mapping(value)
    cited = [reading.text(reading.mapping(piece).get("text")) for piece in reading.sequence(fields.get("content"))]
    return reading.text(reading.mapping(fields.get("text")).get("text")) or "".join(cited)


def _reasoning(fields: dict[str, Any]) -> Iterable[Part]:
    if fields.get("redactedContent") is not None:
        return (Part(PartKind.THINKING, "[redacted]"),)
    thought = reading.text(reading.mapping(fields.get("reasoningText")).get("text"))
    return (Part(PartKind.THINKING, thought),) if thought else ()


def _media(name: str, fields: dict[str, Any]) -> Part:
    place = reading.mapping(reading.mapping(fields.get("source")).get("s3Location"))
    shown = (place.get("uri"), fields.get("name"), fields.get("format"))
    return Part(PartKind.MEDIA, next(filter(None, map(reading.text, shown)), ""), name)


def _result(fields: dict[str, Any]) -> Iterable[Part]:
    """The result's text as one part; pictures in it as parts behind it."""
    pieces = [reading.mapping(piece) for piece in reading.sequence(fields.get("content"))]
    texts = [
        reading.text(piece.get("text")) or (reading.written(piece["json"]) if "json" in piece else "")
        for piece in pieces
    ]
    media = (_media(name, reading.mapping(piece[name])) for piece in pieces for name in _MEDIA if name in piece)
    said = "\n".join(filter(None, texts))
    call = reading.text(fields.get("toolUseId"))
    return (Part(PartKind.TOOL_RESULT, said, "", call, fields.get("status") == "error"), *media)


# --- Converse: answers


class _Output(msgspec.Struct, gc=False):
    message: _Message | None = None


class _Reply(msgspec.Struct, gc=False):
    output: _Output | None = None
    stopReason: Any = None
    usage: Any = None
    serviceTier: Any = None
    inputTokens: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


def _usage(value: Any) -> Usage | None:
    """Bedrock's counts, None where there are none. As with Anthropic, what the cache holds is not in `inputTokens`."""
    fields = reading.mapping(value)
    if not fields:
        return None
    details = [reading.mapping(detail) for detail in reading.sequence(fields.get("cacheDetails"))]
    longer = sum(reading.count(detail.get("inputTokens")) for detail in details if detail.get("ttl") == "1h")
    written = sum(reading.count(detail.get("inputTokens")) for detail in details)
    if fields.get("cacheWriteInputTokens") is not None:
        written = reading.count(fields["cacheWriteInputTokens"])
    longer = min(longer, written)
    return Usage(
        input=reading.count(fields.get("inputTokens")),
        cache_read=reading.count(fields.get("cacheReadInputTokens")),
        cache_write_5m=written - longer,
        cache_write_1h=longer,
        output=reading.count(fields.get("outputTokens")),
    )


def answers(content: Content) -> tuple[Answer, ...]:
    """What came back. Never raises.

    The model is the one of the path, whose id says more than the name in the answer (the maker, the region, the
    version), unless that is only the ARN of an application's profile.
    """
    if content.kind == "messages":
        return (Answer(trouble="this API is not spoken over WebSocket"),)
    if content.status is None and not content.data:
        return ()
    model = model_of(content.path)
    told = _answers(content)
    if not model or model.startswith("arn:"):
        return told
    # An advisor's answer comes first and names another model.
    return (*told[:-1], replace(told[-1], model=model))


def _answers(content: Content) -> tuple[Answer, ...]:
    # What old logs cut into lines is no longer what its head says.
    framed = content.kind == "body" and content.media_type == eventstream.MEDIA_TYPE
    if framed or eventstream.begins(content.data):
        return _stream(content.data)
    if reading.streamed(content):
        return _pieces(content.data)
    reply = reading.read(_REPLY, content.data)
    if reply is not None and reply.output is not None:
        return (_converse_answer(reply),)
    if reply is not None and type(reply.inputTokens) is int:
        return (Answer(),)  # a count of tokens is no usage
    return anthropic.reply(content.data) or (_failure(content),)


def _converse_answer(reply: _Reply) -> Answer:
    message = reply.output.message if reply.output else None
    return Answer(
        message=Message("assistant", _parts(_blocks(message.content))) if message else None,
        usage=_usage(reply.usage),
        stop_reason=reading.text(reply.stopReason),
        service_tier=_tier(reply.serviceTier),
    )


def _failure(content: Content) -> Answer:
    kind, words = _exception(reading.mapping(reading.read_value(content.data)))
    if content.status is None or content.status < 400:
        return reading.failure(content)
    kind = kind or content.error_type
    return Answer(error=words, error_type=kind) if words else replace(reading.failure(content), error_type=kind)


def _exception(fields: dict[str, Any]) -> tuple[str, str]:
    """Type and words of one of Amazon's errors, which spell their fields in several ways."""
    kind = reading.text(fields.get("__type")).rpartition("#")[2]
    return kind, reading.text(fields.get("message")) or reading.text(fields.get("Message"))


# --- streams


def _stream(data: bytes) -> tuple[Answer, ...]:
    """Frames, which logs of old hold as they came."""
    decoder = eventstream.FrameDecoder()
    found = [*decoder.feed(data), *decoder.finish()]
    lines = [line for one in found if isinstance(one, eventstream.Frame) for line in frames.told(one)]
    why = next((one.why for one in found if isinstance(one, eventstream.Damaged)), "") if decoder.bad else ""
    return _pieces("".join(lines).encode(), why)


# Older logs hold what was inside the frames: one `data: {...}` after the other, with nothing between. No string in JSON
# can hold a bare quote, so this is always such a seam.
_SEAM = re.compile(rb'\}(?:\r?\n)*data: ?\{"')


def _pieces(data: bytes, trouble: str = "") -> tuple[Answer, ...]:
    stream = _Stream(trouble)
    for name, event in reading.named_events(_SEAM.sub(b'}\n\ndata: {"', data) + b"\n\n"):
        stream.feed(name, event)
    return stream.answers()


class _Metrics(msgspec.Struct, rename={"metrics": "amazon-bedrock-invocationMetrics"}):
    metrics: Any = None


_METRICS = msgspec.json.Decoder(_Metrics)


class _Stream:
    """Either kind of stream: a model's own events, or Converse's."""

    def __init__(self, trouble: str) -> None:
        self._invoked = anthropic.Stream()
        self._conversed = _Converse()
        self._metrics: Usage | None = None
        self._error = self._error_type = ""
        self._trouble = trouble

    def feed(self, name: str, event: bytes) -> None:
        """An event as `frames` tells it."""
        if name.startswith(frames.FAILURES):
            _, words = _exception(reading.mapping(reading.read_value(event)))
            self._error_type = name.partition(":")[2]
            self._error = words or self._error_type or "error"
        elif name == "chunk":
            self._trouble = self._trouble or "a frame holds no base64"
        elif name in _CONVERSE_EVENTS:
            self._conversed.feed(name, reading.read_value(event))
        else:
            self._chunk(event)

    def _chunk(self, event: bytes) -> None:
        """A model's own event."""
        if b"amazon-bedrock-invocationMetrics" in event:
            self._take_metrics(event)
        if event.startswith(b'{"type"') or not self._conversed.take(reading.mapping(reading.read_value(event))):
            self._invoked.feed(event)

    def _take_metrics(self, event: bytes) -> None:
        said = reading.read(_METRICS, event)
        fields = reading.mapping(said.metrics) if said else {}
        if fields:
            self._metrics = Usage(
                input=reading.count(fields.get("inputTokenCount")),
                cache_read=reading.count(fields.get("cacheReadInputTokenCount")),
                cache_write_5m=reading.count(fields.get("cacheWriteInputTokenCount")),
                output=reading.count(fields.get("outputTokenCount")),
            )

    def answers(self) -> tuple[Answer, ...]:
        told = (self._conversed.answer(),) if self._conversed.begun else self._invoked.answers()
        last = told[-1]
        return (
            *told[:-1],
            replace(
                last,
                usage=last.usage or self._metrics,
                partial=last.partial and self._metrics is None,
                error=self._error or last.error,
                error_type=self._error_type or last.error_type,
                trouble=self._trouble or last.trouble,
            ),
        )


class _Grown:
    """A block of Converse that is still growing."""

    __slots__ = ("id", "input", "name", "redacted", "text", "thought")

    def __init__(self) -> None:
        self.name = self.id = ""
        self.text: list[str] = []
        self.thought: list[str] = []
        self.input: list[str] = []
        self.redacted = False

    def parts(self) -> Iterable[Part]:
        if self.name or self.id:
            arguments = reading.canonical("".join(self.input) or "{}")
            yield Part(PartKind.TOOL_CALL, arguments, self.name, self.id)
        elif self.thought or self.redacted:
            yield Part(PartKind.THINKING, "".join(self.thought) or "[redacted]")
        elif self.text:
            yield Part(PartKind.TEXT, "".join(self.text))


class _Converse:
    """Converse's events."""

    def __init__(self) -> None:
        self.begun = False
        self._blocks: dict[int, _Grown] = {}
        self._stop_reason = self._tier = ""
        self._usage: Usage | None = None
        self._stopped = self._summed = False

    def take(self, fields: dict[str, Any]) -> bool:
        """An event that comes under its name, as Amazon's models send it through invoke. False where it is none."""
        named = [name for name in _CONVERSE_EVENTS if name in fields]
        for name in named:
            self.feed(name, fields[name])
        return bool(named)

    def feed(self, name: str, value: Any) -> None:
        fields = reading.mapping(value)
        if name in _CONVERSE_EVENTS:
            self.begun = True
        if name == "contentBlockStart":
            use = reading.mapping(reading.mapping(fields.get("start")).get("toolUse"))
            block = self._block(fields)
            block.name, block.id = reading.text(use.get("name")), reading.text(use.get("toolUseId"))
        elif name == "contentBlockDelta":
            self._grow(self._block(fields), reading.mapping(fields.get("delta")))
        elif name == "messageStop":
            self._stop_reason, self._stopped = reading.text(fields.get("stopReason")), True
        elif name == "metadata":
            self._usage, self._tier, self._summed = _usage(fields.get("usage")), _tier(fields.get("serviceTier")), True

    def _block(self, fields: dict[str, Any]) -> _Grown:
        return self._blocks.setdefault(reading.count(fields.get("contentBlockIndex")), _Grown())

    def _grow(self, block: _Grown, delta: dict[str, Any]) -> None:
        reasoning = reading.mapping(delta.get("reasoningContent"))
        block.text += filter(None, (reading.text(delta.get("text")),))
        block.thought += filter(None, (reading.text(reasoning.get("text")),))
        block.input += filter(None, (reading.text(reading.mapping(delta.get("toolUse")).get("input")),))
        block.redacted |= "redactedContent" in reasoning

    def answer(self) -> Answer:
        """Complete when it has stopped and its usage has come, which is the last event."""
        parts = tuple(part for block in self._blocks.values() for part in block.parts())
        return Answer(
            message=Message("assistant", parts),
            usage=self._usage,
            stop_reason=self._stop_reason,
            service_tier=self._tier,
            partial=not (self._stopped and self._summed),
        )


_CONVERSE_EVENTS = (
    "messageStart",
    "contentBlockStart",
    "contentBlockDelta",
    "contentBlockStop",
    "messageStop",
    "metadata",
)
