"""OpenAI's Responses, answers both ways: whole, as streams, and their token counts.

Nothing here raises, whatever a provider sends. Leaves out items of tools that OpenAI runs itself: they are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.openai import usage_of
from llm_proxy.dialects.reading import count, mapping, sequence, text
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Begin,
    End,
    Event,
    Failure,
    Given,
    Json,
    Option,
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
from llm_proxy.gateway.translate.errors import Kind, code_of, kind_of
from llm_proxy.gateway.translate.losses import Losses
from llm_proxy.gateway.translate.order import InOrder
from llm_proxy.gateway.translate.responses import write_choice, write_effort, write_shape, write_tool
from llm_proxy.gateway.translate.signatures import OPENAI, carried, delivered, inward, outward

_WHY_INCOMPLETE = {"max_output_tokens": Stop.LENGTH, "content_filter": Stop.FILTERED}
_INCOMPLETE = {stop: why for why, stop in _WHY_INCOMPLETE.items()}


def read_usage(told: Json) -> Usage:
    """Token counts: what was cached lies within the input there."""
    return usage_of(told) or Usage()


def write_usage(usage: Usage) -> Json:
    """As an answer tells it."""
    written = usage.cache_write_5m + usage.cache_write_1h
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": written},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }


# -- whole


def read_reply(body: Json, *, id: str = "", model: str = "") -> Reply:
    """What a whole answer says; `id` and `model` are for one that does not tell them."""
    fields = mapping(body)
    items = [mapping(item) for item in sequence(fields.get("output"))]
    parts = tuple(delivered(part for item in items for part in _read_item(item)))
    logprobs = [one for item in items for piece in sequence(item.get("content")) for one in _logprobs_in(piece)]
    return Reply(
        id=text(fields.get("id")) or id,
        model=text(fields.get("model")) or model,
        parts=parts,
        stop=_stop(fields, {type(part) for part in parts}),
        usage=read_usage(fields.get("usage")),
        created=_seconds(fields.get("created_at")),
        logprobs=_as_chat(logprobs),
        tier=text(fields.get("service_tier")),
        failure=_failure(fields) if fields.get("status") == "failed" else None,
    )


def _seconds(value: Json) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _read_item(item: dict[str, Json]) -> Iterator[Part]:
    match item.get("type"):
        case "message":
            for piece in map(mapping, sequence(item.get("content"))):
                yield _said(piece)
        case "reasoning":
            given = sequence(item.get("summary")) or sequence(item.get("content"))
            said = "\n\n".join(text(mapping(one).get("text")) for one in given)
            yield inward(said, text(item.get("encrypted_content")), OPENAI, text(item.get("id")))
        case "function_call" | "custom_tool_call":
            yield _call(item)


def _said(piece: dict[str, Json]) -> Text | Refusal:
    return Refusal(text(piece.get("refusal"))) if piece.get("type") == "refusal" else Text(text(piece.get("text")))


def _call(item: dict[str, Json]) -> ToolCall:
    free = item.get("type") == "custom_tool_call"
    given = text(item.get("input") if free else item.get("arguments"))
    return ToolCall(text(item.get("call_id")), text(item.get("name")), given, free)


def _logprobs_in(piece: Json) -> list[Json]:
    return sequence(mapping(piece).get("logprobs"))


def _as_chat(logprobs: list[Json]) -> Json:
    return {"content": logprobs, "refusal": None} if logprobs else None


def _stop(response: dict[str, Json], kinds: set[type[Part]]) -> Stop:
    if response.get("status") == "incomplete":
        return _WHY_INCOMPLETE.get(text(mapping(response.get("incomplete_details")).get("reason")), Stop.LENGTH)
    if ToolCall in kinds:
        return Stop.TOOL
    return Stop.REFUSED if Refusal in kinds else Stop.END


def _failure(fields: dict[str, Json]) -> Failure:
    error = mapping(fields.get("error"))
    return Failure(kind_of(text(error.get("code")) or text(error.get("type"))), text(error.get("message")))


def write_reply(reply: Reply, ask: Ask, created: int = 0) -> Json:
    """The body of a response. `created` is seconds since 1970, for a reply that does not tell."""
    begin = Begin(reply.id, reply.model, created=reply.created, tier=reply.tier)
    items = [_Item(reply.id, index, part) for index, part in enumerate(carried(reply.parts))]
    if reply.logprobs:
        texts = [item for item in items if isinstance(item.begun, Text)]
        for item in texts[:1]:
            item.logprobs = sequence(mapping(reply.logprobs).get("content"))
    output = [item.whole("completed") for item in items]
    return _ended(_response(begin, ask, created), output, reply.stop, reply.usage)


def _response(begin: Begin, ask: Ask, created: int) -> dict[str, Json]:
    """A response with nothing in it. It repeats what was asked for."""
    losses = Losses("", refuse=False)

    def given(name: str) -> Json:
        return ask.options.get(name, Given(None)).value

    effort = write_effort(ask.effort) if ask.effort else {}
    parallel = given(Option.PARALLEL_TOOLS)
    return {
        "id": begin.id,
        "object": "response",
        "created_at": begin.created or created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": given(Option.MAX_TOKENS),
        "metadata": given(Option.METADATA) or {},
        "model": begin.model,
        "output": [],
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "prompt_cache_key": given(Option.CACHE_KEY),
        "reasoning": {"effort": effort.get("effort"), "summary": effort.get("summary")},
        "service_tier": begin.tier or None,
        "store": False,
        "temperature": given(Option.TEMPERATURE),
        "text": {"format": write_shape(ask.shape) if ask.shape else {"type": "text"}},
        "tool_choice": write_choice(ask.choice, ask.tools) if ask.choice else "auto",
        "tools": [write_tool(tool, losses) for tool in ask.tools],
        "top_p": given(Option.TOP_P),
        "truncation": "disabled",
        "usage": None,
        "user": given(Option.USER),
    }


def _ended(response: dict[str, Json], output: list[Json], stop: Stop, usage: Usage) -> dict[str, Json]:
    why = _INCOMPLETE.get(stop)
    return response | {
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "output": output,
        "usage": write_usage(usage),
    }


@dataclass(slots=True)
class _Item:
    """One part as an item of the output, as it begins and with what is said of it from then on."""

    response: str
    index: int
    begun: Part
    said: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)

    @property
    def part(self) -> Part:
        """The part as far as it has come."""
        match self.begun:
            case ToolCall() as call:
                return replace(call, arguments=call.arguments + "".join(self.said))
            case Text() | Thinking() | Refusal() as told:
                return replace(told, text=told.text + "".join(self.said))
        return self.begun

    @property
    def id(self) -> str:
        begun = self.begun
        prefix = "ctc" if isinstance(begun, ToolCall) and begun.free else _PREFIXES.get(type(begun), "msg")
        own = begun.id if isinstance(begun, Thinking) and begun.origin == OPENAI else ""
        return own or f"{prefix}_{self.response}_{self.index}"

    def whole(self, status: str) -> dict[str, Json]:
        """The item as far as it has come."""
        match self.part:
            case Thinking() as part:
                summary = [{"type": "summary_text", "text": part.text}] if part.text else []
                item = {"id": self.id, "type": "reasoning", "summary": summary}
                sealed = outward(part, OPENAI)
                return item | ({"encrypted_content": sealed} if sealed else {})
            case ToolCall() as part:
                kind, name = ("custom_tool_call", "input") if part.free else ("function_call", "arguments")
                call = {"id": self.id, "type": kind, "call_id": part.id, "name": part.name, name: part.arguments}
                return call | ({} if part.free else {"status": status})
        item = {"id": self.id, "type": "message", "status": status, "role": "assistant"}
        return item | {"content": [self.piece()] if status == "completed" else []}

    def piece(self) -> dict[str, Json]:
        """What a message's item holds."""
        match self.part:
            case Refusal(text=said):
                return {"type": "refusal", "refusal": said}
            case Text(text=said):
                return {"type": "output_text", "text": said, "annotations": [], "logprobs": self.logprobs}
        return {}


_PREFIXES: dict[type[Part], str] = {Thinking: "rs", ToolCall: "fc"}


# -- streams: read


_DELTAS: dict[str, Callable[[dict[str, Json]], Part]] = {
    "response.output_text.delta": lambda event: Text(""),
    "response.refusal.delta": lambda event: Refusal(""),
    "response.reasoning_summary_text.delta": lambda event: Thinking("", origin=OPENAI, id=text(event.get("item_id"))),
    "response.reasoning_text.delta": lambda event: Thinking("", origin=OPENAI, id=text(event.get("item_id"))),
    "response.function_call_arguments.delta": lambda event: ToolCall("", "", ""),
    "response.custom_tool_call_input.delta": lambda event: ToolCall("", "", "", free=True),
}
_MESSAGE_DELTAS = ("response.output_text.delta", "response.refusal.delta")


class StreamReader:
    """Events of a response's stream, as they come."""

    def __init__(self, *, id: str = "", model: str = "") -> None:
        self._id = id
        self._model = model
        self._open: dict[tuple[int, int], int] = {}  # an item's place and its piece's (-1: the item itself) -> part
        self._filled: set[int] = set()
        self._count = 0
        self._begun = False
        self._kinds: set[type[Part]] = set()

    def read(self, event: Json) -> Iterator[Event]:
        """What one event's data says."""
        fields = mapping(event)
        place = count(fields.get("output_index"))
        item = mapping(fields.get("item"))
        match fields.get("type"):
            case "response.created" | "response.in_progress":
                yield from self._begin(mapping(fields.get("response")))
            case "response.output_item.added":
                for part in _begun(item):
                    yield from self._opened((place, -1), part)
            case "response.content_part.added":
                piece = _said(mapping(fields.get("part")))
                yield from self._opened((place, count(fields.get("content_index"))), replace(piece, text=""))
            case "response.reasoning_summary_part.added" if count(fields.get("summary_index")):
                yield from self._piece((place, -1), Thinking(""), "\n\n")
            case str(kind) if kind in _DELTAS:
                index = count(fields.get("content_index")) if kind in _MESSAGE_DELTAS else -1
                logprobs = _as_chat(_logprobs_in(fields))
                yield from self._piece((place, index), _DELTAS[kind](fields), text(fields.get("delta")), logprobs)
            case "response.content_part.done":
                yield from self._closed((place, count(fields.get("content_index"))))
            case "response.output_item.done":
                yield from self._done(place, item)
            case "response.completed" | "response.incomplete":
                yield from self._end(mapping(fields.get("response")))
            case "response.failed":
                yield _failure(mapping(fields.get("response")))
            case "error":
                yield _failure(fields if fields.get("error") else {"error": fields})

    def finish(self) -> Iterator[Event]:
        """The stream is over. It has told its end itself."""
        yield from ()

    def _begin(self, response: dict[str, Json]) -> Iterator[Event]:
        if self._begun:
            return
        self._begun = True
        yield Begin(
            text(response.get("id")) or self._id,
            text(response.get("model")) or self._model,
            created=_seconds(response.get("created_at")),
            tier=text(response.get("service_tier")),
        )

    def _opened(self, key: tuple[int, int], part: Part) -> Iterator[Event]:
        if key in self._open:
            return
        self._open[key] = self._count
        self._kinds.add(type(part))
        yield PartBegin(self._count, part)
        self._count += 1

    def _piece(self, key: tuple[int, int], part: Part, said: str, logprobs: Json = None) -> Iterator[Event]:
        """`part` is for one whose begin went missing."""
        yield from self._opened(key, part)
        self._filled.add(self._open[key])
        yield Piece(self._open[key], said, logprobs)

    def _closed(self, key: tuple[int, int]) -> Iterator[Event]:
        if key in self._open:
            yield PartEnd(self._open.pop(key))

    def _done(self, place: int, item: dict[str, Json]) -> Iterator[Event]:
        """The whole item: what of it has not come in pieces comes now."""
        key = (place, -1)
        for part in _read_item(item) if item.get("type") != "message" else ():
            yield from self._opened(key, next(_begun(item)))
            index = self._open[key]
            said = part.arguments if isinstance(part, ToolCall) else getattr(part, "text", "")
            if said and index not in self._filled:
                yield Piece(index, said)
            if isinstance(part, Thinking) and part.signature:
                yield Signed(index, part.signature, part.origin)
        for open_key in [one for one in self._open if one[0] == place]:
            yield from self._closed(open_key)

    def _end(self, response: dict[str, Json]) -> Iterator[Event]:
        yield from self._begin(response)
        for key in list(self._open):
            yield from self._closed(key)
        yield End(_stop(response, self._kinds), usage=read_usage(response.get("usage")))


def _begun(item: dict[str, Json]) -> Iterator[Part]:
    """What is known of an item that is one part, when it begins."""
    match item.get("type"):
        case "reasoning":
            yield Thinking("", origin=OPENAI, id=text(item.get("id")))
        case "function_call" | "custom_tool_call":
            yield replace(_call(item), arguments="")


# -- streams: write


class StreamWriter:
    """Writes a response's stream: items one after the other, with all that OpenAI tells of them."""

    def __init__(self, ask: Ask, created: int = 0) -> None:
        self._ask = ask
        self._created = created
        self._order = InOrder()
        self._number = 0
        self._response: dict[str, Json] = {}
        self._item = _Item("", 0, Text(""))
        self._output: list[Json] = []

    def write(self, event: Event) -> Iterator[tuple[str, Json]]:
        """(event name, data)."""
        for one in self._order.events(event):
            for kind, told in self._written(one):
                yield kind, {"type": kind, "sequence_number": self._number} | told
                self._number += 1

    def _written(self, event: Event) -> Iterator[tuple[str, dict[str, Json]]]:
        match event:
            case Begin():
                self._response = _response(event, self._ask, self._created)
                yield "response.created", {"response": self._response}
                yield "response.in_progress", {"response": self._response}
            case PartBegin():
                yield from self._opened(event)
            case Piece():
                yield from self._piece(event)
            case Signed() if isinstance(self._item.begun, Thinking):
                self._item.begun = replace(self._item.begun, signature=event.signature, origin=event.origin)
            case PartEnd():
                yield from self._closed()
            case End():
                ended = _ended(self._response, self._output, event.stop, event.usage)
                yield f"response.{ended['status']}", {"response": ended}
            case Failure():
                yield self._failed(event)

    def _opened(self, event: PartBegin) -> Iterator[tuple[str, dict[str, Json]]]:
        self._item = _Item(self._response.get("id", ""), event.index, event.part)
        at = {"output_index": event.index}
        yield "response.output_item.added", at | {"item": self._item.whole("in_progress")}
        if isinstance(event.part, Text | Refusal):
            yield "response.content_part.added", self._at(content_index=0) | {"part": self._item.piece()}

    def _at(self, **within: int) -> dict[str, Json]:
        return {"item_id": self._item.id, "output_index": self._item.index} | within

    def _piece(self, event: Piece) -> Iterator[tuple[str, dict[str, Json]]]:
        item = self._item
        logprobs = sequence(mapping(event.logprobs).get("content"))
        first = not item.said
        item.said.append(event.text)
        item.logprobs += logprobs
        delta: dict[str, Json] = {"delta": event.text}
        match item.begun:
            case Thinking():
                if first:
                    part = {"type": "summary_text", "text": ""}
                    yield "response.reasoning_summary_part.added", self._at(summary_index=0) | {"part": part}
                yield "response.reasoning_summary_text.delta", self._at(summary_index=0) | delta
            case ToolCall(free=free):
                name = "custom_tool_call_input" if free else "function_call_arguments"
                yield f"response.{name}.delta", self._at() | delta
            case Refusal():
                yield "response.refusal.delta", self._at(content_index=0) | delta
            case _:
                yield "response.output_text.delta", self._at(content_index=0) | delta | {"logprobs": logprobs}

    def _closed(self) -> Iterator[tuple[str, dict[str, Json]]]:
        item = self._item
        match item.part:
            case Thinking(text=said) if said:
                at = self._at(summary_index=0)
                yield "response.reasoning_summary_text.done", at | {"text": said}
                yield "response.reasoning_summary_part.done", at | {"part": {"type": "summary_text", "text": said}}
            case ToolCall(free=True, arguments=given):
                yield "response.custom_tool_call_input.done", self._at() | {"input": given}
            case ToolCall(arguments=given, name=name):
                yield "response.function_call_arguments.done", self._at() | {"arguments": given, "name": name}
            case Refusal(text=said):
                yield "response.refusal.done", self._at(content_index=0) | {"refusal": said}
            case Text(text=said):
                told = {"text": said, "logprobs": item.logprobs}
                yield "response.output_text.done", self._at(content_index=0) | told
        if isinstance(item.begun, Text | Refusal):
            yield "response.content_part.done", self._at(content_index=0) | {"part": item.piece()}
        done = item.whole("completed")
        self._output.append(done)
        yield "response.output_item.done", {"output_index": item.index, "item": done}

    def _failed(self, event: Failure) -> tuple[str, dict[str, Json]]:
        if not self._response:
            code = code_of(event.kind) or "server_error"
            return "error", {"code": code, "message": event.message, "param": None}
        code = "rate_limit_exceeded" if event.kind == Kind.LIMITED else "server_error"  # no other one fits
        error = {"code": code, "message": event.message}
        return "response.failed", {"response": self._response | {"status": "failed", "error": error}}
