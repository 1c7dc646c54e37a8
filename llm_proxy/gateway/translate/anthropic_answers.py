"""Anthropic's Messages, answers both ways: whole, as streams, and their token counts.

Nothing here raises, whatever a provider sends. Leaves out blocks of tools that Anthropic runs itself: they are passed
over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.reading import count, mapping, read_value, sequence, text
from llm_proxy.gateway.translate.anthropic import write_part
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
from llm_proxy.gateway.translate.errors import kind_of, type_of
from llm_proxy.gateway.translate.fields import compact
from llm_proxy.gateway.translate.losses import Losses
from llm_proxy.gateway.translate.order import InOrder
from llm_proxy.gateway.translate.signatures import ANTHROPIC, carried, delivered, inward, outward

_STOPS = {
    "end_turn": Stop.END,
    "max_tokens": Stop.LENGTH,
    "model_context_window_exceeded": Stop.LENGTH,
    "stop_sequence": Stop.SEQUENCE,
    "tool_use": Stop.TOOL,
    "refusal": Stop.REFUSED,
    "pause_turn": Stop.PAUSED,
}
_STOP_NAMES = {stop: name for name, stop in reversed(_STOPS.items())} | {Stop.FILTERED: "refusal"}


def read_usage(told: Json) -> Usage:
    """Token counts of an answer: what the cache holds is counted beside the input."""
    fields = mapping(told)
    written = count(fields.get("cache_creation_input_tokens"))
    hour = min(written, count(mapping(fields.get("cache_creation")).get("ephemeral_1h_input_tokens")))
    output = count(fields.get("output_tokens"))
    return Usage(
        input=count(fields.get("input_tokens")),
        cache_read=count(fields.get("cache_read_input_tokens")),
        cache_write_5m=written - hour,
        cache_write_1h=hour,
        output=output,
        reasoning=min(output, count(mapping(fields.get("output_tokens_details")).get("thinking_tokens"))),
    )


def write_usage(usage: Usage) -> dict[str, Json]:
    """As an answer tells it."""
    written: dict[str, Json] = {
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
    }
    if usage.cache_write_1h:
        written["cache_creation"] = {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        }
    return written | ({"output_tokens_details": {"thinking_tokens": usage.reasoning}} if usage.reasoning else {})


# -- whole


def read_reply(body: Json, *, id: str = "", model: str = "") -> Reply:
    """What a whole answer says; `id` and `model` are for one that does not tell them."""
    fields = mapping(body)
    parts = [part for one in sequence(fields.get("content")) if (part := _read_block(mapping(one))) is not None]
    if why := _why_refused(fields):
        parts.append(Refusal(why))
    return Reply(
        id=text(fields.get("id")) or id,
        model=text(fields.get("model")) or model,
        parts=tuple(delivered(parts)),
        stop=_STOPS.get(text(fields.get("stop_reason")), Stop.END),
        sequence=text(fields.get("stop_sequence")),
        usage=read_usage(fields.get("usage")),
    )


def _read_block(block: dict[str, Json]) -> Part | None:
    read = _BLOCKS.get(text(block.get("type")))
    return read(block) if read else None


_BLOCKS: dict[str, Callable[[dict[str, Json]], Part]] = {
    "text": lambda block: Text(text(block.get("text"))),
    "thinking": lambda block: inward(text(block.get("thinking")), text(block.get("signature")), ANTHROPIC),
    "redacted_thinking": lambda block: Thinking("", sealed=text(block.get("data")), origin=ANTHROPIC),
    "tool_use": lambda block: ToolCall(
        text(block.get("id")), text(block.get("name")), compact(mapping(block.get("input")))
    ),
}


def _why_refused(fields: dict[str, Json]) -> str:
    return text(mapping(fields.get("stop_details")).get("explanation"))


def write_reply(reply: Reply, ask: Ask, created: int = 0) -> Json:
    """The body of a Message."""
    return {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [block for part in carried(reply.parts) if (block := _written(part)) is not None],
        "stop_reason": _STOP_NAMES[reply.stop],
        "stop_sequence": reply.sequence or None,
        "usage": write_usage(reply.usage),
    }


def _written(part: Part) -> Json | None:
    """Thinking of other models is told too, with what they signed it with."""
    if isinstance(part, Thinking) and part.origin != ANTHROPIC:
        return {"type": "thinking", "thinking": part.text, "signature": outward(part, ANTHROPIC)}
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": _object_in(part.arguments)}
    return write_part(part, Losses("", refuse=False))


def _object_in(arguments: str) -> Json:
    """What a model gave that is no object has to be one here."""
    value = read_value(arguments)
    return value if isinstance(value, dict) else {"input": arguments} if arguments else {}


# -- streams


class StreamReader:
    """Events of a Messages stream, as they come."""

    def __init__(self, *, id: str = "", model: str = "") -> None:
        self._id = id
        self._model = model
        self._usage: dict[str, Json] = {}
        self._kept: set[int] = set()
        self._count = 0

    def read(self, event: Json) -> Iterator[Event]:
        """What one event's data says."""
        fields = mapping(event)
        index = count(fields.get("index"))
        match fields.get("type"):
            case "message_start":
                message = mapping(fields.get("message"))
                self._usage = mapping(message.get("usage"))
                id, model = text(message.get("id")) or self._id, text(message.get("model")) or self._model
                yield Begin(id, model, read_usage(self._usage))
            case "content_block_start":
                yield from self._opened(index, _read_block(mapping(fields.get("content_block"))))
            case "content_block_delta" if index in self._kept:
                yield from _piece(index, mapping(fields.get("delta")))
            case "content_block_stop" if index in self._kept:
                yield PartEnd(index)
            case "message_delta":
                yield from self._end(fields)
            case "error":
                error = mapping(fields.get("error"))
                yield Failure(kind_of(text(error.get("type"))), text(error.get("message")))

    def finish(self) -> Iterator[Event]:
        """The stream is over. It has told its end itself."""
        yield from ()

    def _opened(self, index: int, part: Part | None) -> Iterator[Event]:
        if part is None:
            return
        self._kept.add(index)
        self._count = max(self._count, index + 1)
        match part:
            case ToolCall():
                yield PartBegin(index, replace(part, arguments=""))
                if part.arguments != "{}":
                    yield Piece(index, part.arguments)
            case Text() | Thinking() if part.text:
                yield PartBegin(index, replace(part, text=""))
                yield Piece(index, part.text)
            case _:
                yield PartBegin(index, part)

    def _end(self, fields: dict[str, Json]) -> Iterator[Event]:
        """Counts there replace those of the beginning; what they leave out stays."""
        delta = mapping(fields.get("delta"))
        if why := _why_refused(delta):
            yield PartBegin(self._count, Refusal(""))
            yield Piece(self._count, why)
            yield PartEnd(self._count)
        told = {name: value for name, value in mapping(fields.get("usage")).items() if value is not None}
        stop = _STOPS.get(text(delta.get("stop_reason")), Stop.END)
        yield End(stop, text(delta.get("stop_sequence")), read_usage(self._usage | told))


def _piece(index: int, delta: dict[str, Json]) -> Iterator[Event]:
    kind = text(delta.get("type"))
    if kind == "signature_delta":
        thought = inward("", text(delta.get("signature")), ANTHROPIC)
        yield Signed(index, thought.signature, thought.origin)
    elif kind in _SAID_IN:
        yield Piece(index, text(delta.get(_SAID_IN[kind])))


_SAID_IN = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


class StreamWriter:
    """Writes a Messages stream: blocks one after the other, as Anthropic's own clients want them."""

    def __init__(self, ask: Ask, created: int = 0) -> None:
        self._order = InOrder()
        self._kind = ""
        self._thought = Thinking("")

    def write(self, event: Event) -> Iterator[tuple[str, Json]]:
        """(event name, data)."""
        for one in self._order.events(event):
            for data in self._written(one):
                yield data["type"], data

    def _written(self, event: Event) -> Iterator[dict[str, Json]]:
        match event:
            case Begin():
                message = write_reply(Reply(event.id, event.model, (), usage=event.usage), Ask("", ()))
                yield {"type": "message_start", "message": message | {"stop_reason": None}}
            case PartBegin():
                yield {"type": "content_block_start", "index": event.index, "content_block": self._begun(event.part)}
            case Piece() if event.text:
                kind, field = _DELTAS[self._kind]
                yield _delta(event.index, {"type": kind, field: event.text})
            case Signed() if self._kind == "thinking":
                signed = replace(self._thought, signature=event.signature, origin=event.origin)
                yield _delta(event.index, {"type": "signature_delta", "signature": outward(signed, ANTHROPIC)})
            case PartEnd():
                yield {"type": "content_block_stop", "index": event.index}
            case End():
                delta = {"stop_reason": _STOP_NAMES[event.stop], "stop_sequence": event.sequence or None}
                yield {"type": "message_delta", "delta": delta, "usage": write_usage(event.usage)}
                yield {"type": "message_stop"}
            case Failure():
                kind = type_of("anthropic", event.kind)
                yield {"type": "error", "error": {"type": kind, "message": event.message}}

    def _begun(self, part: Part) -> Json:
        """A block is empty at its start, where a whole one would be left out."""
        if isinstance(part, Thinking):
            self._thought = part
        block = _written(part) or {"type": "text", "text": ""}
        self._kind = block["type"]
        return block


def _delta(index: int, delta: Json) -> dict[str, Json]:
    return {"type": "content_block_delta", "index": index, "delta": delta}
