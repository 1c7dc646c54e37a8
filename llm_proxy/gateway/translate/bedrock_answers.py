"""Amazon Bedrock's Converse, answers both ways: whole, as events of ConverseStream, and their token counts.

An event is an object with its name as its only field, as Amazon's SDKs give it. Nothing here raises, whatever a
provider sends. Leaves out the frames around events, and traces.
"""

from __future__ import annotations

from collections.abc import Iterator

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.reading import count, mapping, read_value, sequence, text
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
from llm_proxy.gateway.translate.errors import Kind, kind_of, type_of
from llm_proxy.gateway.translate.fields import compact
from llm_proxy.gateway.translate.order import InOrder
from llm_proxy.gateway.translate.signatures import ANTHROPIC, BEDROCK

_STOPS = {
    "end_turn": Stop.END,
    "tool_use": Stop.TOOL,
    "max_tokens": Stop.LENGTH,
    "model_context_window_exceeded": Stop.LENGTH,
    "stop_sequence": Stop.SEQUENCE,
    "guardrail_intervened": Stop.FILTERED,
    "content_filtered": Stop.FILTERED,
}
_STOP_NAMES = {stop: name for name, stop in reversed(_STOPS.items())} | {
    Stop.FILTERED: "content_filtered",
    Stop.REFUSED: "content_filtered",
    Stop.PAUSED: "end_turn",
}
# The model broke its own rules: there is no answer, and another try may have one.
_BROKEN = frozenset({"malformed_model_output", "malformed_tool_use"})


def read_usage(told: Json) -> Usage:
    """Token counts: what the cache holds is counted beside the input."""
    fields = mapping(told)
    written = count(fields.get("cacheWriteInputTokens"))
    details = map(mapping, sequence(fields.get("cacheDetails")))
    hour = sum(count(detail.get("inputTokens")) for detail in details if detail.get("ttl") == "1h")
    return Usage(
        input=count(fields.get("inputTokens")),
        cache_read=count(fields.get("cacheReadInputTokens")),
        cache_write_5m=written - min(hour, written),
        cache_write_1h=min(hour, written),
        output=count(fields.get("outputTokens")),
    )


def write_usage(usage: Usage) -> Json:
    """As an answer tells it."""
    written = {"5m": usage.cache_write_5m, "1h": usage.cache_write_1h}
    return {
        "inputTokens": usage.input,
        "outputTokens": usage.output,
        "totalTokens": usage.total,
        "cacheReadInputTokens": usage.cache_read,
        "cacheWriteInputTokens": sum(written.values()),
        "cacheDetails": [{"ttl": ttl, "inputTokens": tokens} for ttl, tokens in written.items() if tokens],
    }


# -- whole


def read_reply(body: Json, *, id: str = "", model: str = "") -> Reply:
    """What a whole answer says; it tells neither `id` nor `model`."""
    fields = mapping(body)
    message = mapping(mapping(fields.get("output")).get("message"))
    parts = (_read_block(mapping(block)) for block in sequence(message.get("content")))
    reason = text(fields.get("stopReason"))
    return Reply(
        id,
        model,
        tuple(part for part in parts if part is not None),
        _STOPS.get(reason, Stop.END),
        usage=read_usage(fields.get("usage")),
        tier=text(mapping(fields.get("serviceTier")).get("type")),
        failure=_broken(reason),
    )


def _broken(reason: str) -> Failure | None:
    return Failure(Kind.BAD_GATEWAY, f"the model ended with {reason}") if reason in _BROKEN else None


def _read_block(block: dict[str, Json]) -> Part | None:
    if call := mapping(block.get("toolUse")):
        return ToolCall(text(call.get("toolUseId")), text(call.get("name")), compact(mapping(call.get("input"))))
    if thought := mapping(block.get("reasoningContent")):
        if sealed := text(thought.get("redactedContent")):
            return Thinking("", sealed=sealed, origin=BEDROCK)
        told = mapping(thought.get("reasoningText"))
        signature = text(told.get("signature"))
        return Thinking(text(told.get("text")), signature, origin=ANTHROPIC if signature else "")
    if cited := mapping(block.get("citationsContent")):
        return Text("".join(text(mapping(one).get("text")) for one in sequence(cited.get("content"))))
    return Text(text(block["text"])) if "text" in block else None


def write_reply(reply: Reply, ask: Ask, created: int = 0) -> Json:
    """The body of an answer."""
    content = [block for part in reply.parts if (block := _written(part)) is not None]
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": _STOP_NAMES[reply.stop],
        "usage": write_usage(reply.usage),
        "metrics": {"latencyMs": 0},
    }


def _written(part: Part) -> Json | None:
    match part:
        case Text() | Refusal():
            return {"text": part.text}
        case Thinking(origin="bedrock", sealed=sealed) if sealed:
            return {"reasoningContent": {"redactedContent": sealed}}
        case Thinking():
            signature = {"signature": part.signature} if part.signature and part.origin == ANTHROPIC else {}
            return {"reasoningContent": {"reasoningText": {"text": part.text} | signature}}
        case ToolCall():
            given = mapping(read_value(part.arguments))
            return {"toolUse": {"toolUseId": part.id, "name": part.name, "input": given}}
    return None


# -- streams


class StreamReader:
    """Events of a ConverseStream, as they come. Texts and thoughts begin with their first piece."""

    def __init__(self, *, id: str = "", model: str = "") -> None:
        self._id = id
        self._model = model
        self._open: dict[int, int] = {}  # a block's index -> the part's
        self._count = 0
        self._stop: Stop | None = None

    def read(self, event: Json) -> Iterator[Event]:
        """What one event says."""
        for name, value in mapping(event).items():
            yield from self._event(name, mapping(value))

    def finish(self) -> Iterator[Event]:
        """The stream is over; its counts may be missing."""
        if self._stop is not None:
            yield End(self._stop)
            self._stop = None

    def _event(self, name: str, fields: dict[str, Json]) -> Iterator[Event]:
        block = count(fields.get("contentBlockIndex"))
        match name:
            case "messageStart":
                yield Begin(self._id, self._model)
            case "contentBlockStart":
                if call := mapping(mapping(fields.get("start")).get("toolUse")):
                    part = ToolCall(text(call.get("toolUseId")), text(call.get("name")), "")
                    yield from self._begun(block, part)
            case "contentBlockDelta":
                yield from self._delta(block, mapping(fields.get("delta")))
            case "contentBlockStop" if block in self._open:
                yield PartEnd(self._open.pop(block))
            case "messageStop":
                reason = text(fields.get("stopReason"))
                if failure := _broken(reason):
                    yield failure
                else:
                    self._stop = _STOPS.get(reason, Stop.END)
            case "metadata" if self._stop is not None:
                yield End(self._stop, usage=read_usage(fields.get("usage")))
                self._stop = None
            case _ if name.endswith("Exception"):
                said = text(fields.get("message")) or text(fields.get("originalMessage"))
                yield Failure(kind_of(name[:1].upper() + name[1:], count(fields.get("originalStatusCode"))), said)

    def _begun(self, block: int, part: Part) -> Iterator[Event]:
        if block not in self._open:
            self._open[block] = self._count
            yield PartBegin(self._count, part)
            self._count += 1

    def _delta(self, block: int, delta: dict[str, Json]) -> Iterator[Event]:
        thought = mapping(delta.get("reasoningContent"))
        if sealed := text(thought.get("redactedContent")):
            yield from self._begun(block, Thinking("", sealed=sealed, origin=BEDROCK))
        elif thought:
            yield from self._begun(block, Thinking(""))
            if said := text(thought.get("text")):
                yield Piece(self._open[block], said)
            if signature := text(thought.get("signature")):
                yield Signed(self._open[block], signature, ANTHROPIC)
        elif call := mapping(delta.get("toolUse")):
            yield from self._begun(block, ToolCall("", "", ""))
            yield Piece(self._open[block], text(call.get("input")))
        elif said := text(delta.get("text")):
            yield from self._begun(block, Text(""))
            yield Piece(self._open[block], said)


class StreamWriter:
    """Writes the events of a ConverseStream: blocks one after the other."""

    def __init__(self, ask: Ask, created: int = 0) -> None:
        self._order = InOrder()
        self._part: Part = Text("")

    def write(self, event: Event) -> Iterator[tuple[str, Json]]:
        """(event name, data): the name is that of the frame."""
        for one in self._order.events(event):
            yield from self._written(one)

    def _written(self, event: Event) -> Iterator[tuple[str, Json]]:
        match event:
            case Begin():
                yield "messageStart", {"role": "assistant"}
            case PartBegin():
                self._part = event.part
                yield from self._begun(event)
            case Piece() if event.text:
                yield _delta(event.index, self._piece(event.text))
            case Signed() if isinstance(self._part, Thinking) and event.origin == ANTHROPIC:
                yield _delta(event.index, {"reasoningContent": {"signature": event.signature}})
            case PartEnd():
                yield "contentBlockStop", {"contentBlockIndex": event.index}
            case End():
                yield "messageStop", {"stopReason": _STOP_NAMES[event.stop]}
                yield "metadata", {"usage": write_usage(event.usage), "metrics": {"latencyMs": 0}}
            case Failure():
                name = type_of("bedrock", event.kind)
                yield name[:1].lower() + name[1:], {"message": event.message}

    def _begun(self, event: PartBegin) -> Iterator[tuple[str, Json]]:
        match event.part:
            case ToolCall() as call:
                start = {"toolUse": {"toolUseId": call.id, "name": call.name}}
                yield "contentBlockStart", {"contentBlockIndex": event.index, "start": start}
            case Thinking(origin="bedrock", sealed=sealed) if sealed:
                yield _delta(event.index, {"reasoningContent": {"redactedContent": sealed}})

    def _piece(self, said: str) -> Json:
        if isinstance(self._part, ToolCall):
            return {"toolUse": {"input": said}}
        return {"reasoningContent": {"text": said}} if isinstance(self._part, Thinking) else {"text": said}


def _delta(index: int, delta: Json) -> tuple[str, Json]:
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": delta}
