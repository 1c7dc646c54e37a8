"""Google's Gemini, answers both ways: whole, as streams of partial ones, and their token counts.

Nothing here raises, whatever a provider sends. Leaves out candidates but the first, and what Google's own tools did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

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
from llm_proxy.gateway.translate.errors import Kind, kind_of, status_of, type_of
from llm_proxy.gateway.translate.fields import compact
from llm_proxy.gateway.translate.order import InOrder
from llm_proxy.gateway.translate.signatures import GEMINI

_STOPS = {
    "STOP": Stop.END,
    "MAX_TOKENS": Stop.LENGTH,
    "SAFETY": Stop.FILTERED,
    "RECITATION": Stop.FILTERED,
    "LANGUAGE": Stop.FILTERED,
    "BLOCKLIST": Stop.FILTERED,
    "PROHIBITED_CONTENT": Stop.FILTERED,
    "SPII": Stop.FILTERED,
    "MODEL_ARMOR": Stop.FILTERED,
    "IMAGE_SAFETY": Stop.FILTERED,
    "IMAGE_PROHIBITED_CONTENT": Stop.FILTERED,
    "IMAGE_RECITATION": Stop.FILTERED,
}
# The model broke its own rules: there is no answer, and another try may have one.
_BROKEN = frozenset(
    {
        "MALFORMED_FUNCTION_CALL",
        "MALFORMED_RESPONSE",
        "MISSING_THOUGHT_SIGNATURE",
        "TOO_MANY_TOOL_CALLS",
        "UNEXPECTED_TOOL_CALL",
    }
)
_STOP_NAMES = {Stop.LENGTH: "MAX_TOKENS", Stop.FILTERED: "SAFETY", Stop.REFUSED: "SAFETY"}


def read_usage(told: Json) -> Usage:
    """Token counts: what was cached lies within the prompt there, what was thought beside the answer."""
    fields = mapping(told)
    cached, thought = count(fields.get("cachedContentTokenCount")), count(fields.get("thoughtsTokenCount"))
    prompt = count(fields.get("promptTokenCount")) + count(fields.get("toolUsePromptTokenCount"))
    return Usage(
        input=max(0, prompt - cached),
        cache_read=cached,
        output=count(fields.get("candidatesTokenCount")) + thought,
        reasoning=thought,
    )


def write_usage(usage: Usage) -> Json:
    """As an answer tells it."""
    return {
        "promptTokenCount": usage.prompt,
        "cachedContentTokenCount": usage.cache_read,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.total,
    }


# -- read


def read_reply(body: Json, *, id: str = "", model: str = "") -> Reply:
    """What the first candidate says; `id` and `model` are for an answer that does not tell them."""
    reader = StreamReader(id=id, model=model)
    events = [*reader.read(body), *reader.finish()]
    begin = next((event for event in events if isinstance(event, Begin)), Begin(id, model))
    end = next((event for event in events if isinstance(event, End)), End(Stop.END))
    return Reply(
        begin.id,
        begin.model,
        tuple(_whole(events)),
        end.stop,
        usage=end.usage,
        logprobs=next((event.logprobs for event in events if isinstance(event, Piece) and event.logprobs), None),
        failure=next((event for event in events if isinstance(event, Failure)), None),
    )


def _whole(events: Iterable[Event]) -> Iterator[Part]:
    """The parts that a stream's events build up."""
    part: Part | None = None
    for event in events:
        match event:
            case PartBegin():
                part = event.part
            case Piece() if isinstance(part, ToolCall):
                part = replace(part, arguments=part.arguments + event.text)
            case Piece() if isinstance(part, Text | Thinking | Refusal):
                part = replace(part, text=part.text + event.text)
            case Signed() if isinstance(part, Thinking):
                part = replace(part, signature=event.signature, origin=event.origin)
            case PartEnd() if part is not None:
                yield part


class StreamReader:
    """Partial answers, as they come. Texts go on from one to the next, calls come whole."""

    def __init__(self, *, id: str = "", model: str = "") -> None:
        self._id = id
        self._model = model
        self._begun = False
        self._open: type[Part] | None = None
        self._count = 0
        self._calls = 0
        self._stop: Stop | None = None
        self._usage = Usage()
        self._failed = False

    def read(self, event: Json) -> Iterator[Event]:
        """What one partial answer says."""
        fields = mapping(event)
        if error := mapping(fields.get("error")):
            self._failed = True
            yield Failure(kind_of(text(error.get("status")), count(error.get("code"))), text(error.get("message")))
            return
        if not self._begun:
            self._begun = True
            self._id = text(fields.get("responseId")) or self._id
            yield Begin(self._id, text(fields.get("modelVersion")) or self._model)
        if fields.get("usageMetadata"):
            self._usage = read_usage(fields["usageMetadata"])
        yield from self._blocked(mapping(fields.get("promptFeedback")))
        for candidate in map(mapping, sequence(fields.get("candidates"))):
            if not count(candidate.get("index")):
                yield from self._candidate(candidate)

    def finish(self) -> Iterator[Event]:
        """The stream is over. Counts grow until then."""
        if self._failed:
            return
        yield from self._close()
        if self._stop is not None:
            stop = Stop.TOOL if self._calls and self._stop is Stop.END else self._stop
            yield End(stop, usage=self._usage)

    def _blocked(self, feedback: dict[str, Json]) -> Iterator[Event]:
        """A prompt that was blocked has no answer but that."""
        if reason := text(feedback.get("blockReason")):
            self._stop = Stop.FILTERED
            yield from self._said(Refusal(""), text(feedback.get("blockReasonMessage")) or reason)

    def _candidate(self, candidate: dict[str, Json]) -> Iterator[Event]:
        for part in map(mapping, sequence(mapping(candidate.get("content")).get("parts"))):
            yield from self._part(part)
        logprobs = _logprobs(mapping(candidate.get("logprobsResult")))
        if logprobs and self._open is Text:
            yield Piece(self._count - 1, "", logprobs)
        reason = text(candidate.get("finishReason"))
        if reason in _BROKEN:
            self._failed = True
            yield Failure(Kind.BAD_GATEWAY, text(candidate.get("finishMessage")) or f"the model ended with {reason}")
        elif reason:
            self._stop = _STOPS.get(reason, Stop.END)

    def _part(self, part: dict[str, Json]) -> Iterator[Event]:
        signature = text(part.get("thoughtSignature"))
        if call := mapping(part.get("functionCall")):
            yield from self._call(call, signature)
        elif part.get("thought") is True:
            yield from self._said(Thinking(""), text(part.get("text")))
            if signature:
                yield Signed(self._count - 1, signature, GEMINI)
        elif said := text(part.get("text")):
            yield from self._said(Text(""), said)

    def _said(self, part: Part, said: str) -> Iterator[Event]:
        if self._open is not type(part):
            yield from self._close()
            yield PartBegin(self._count, part)
            self._open = type(part)
            self._count += 1
        if said:
            yield Piece(self._count - 1, said)

    def _call(self, call: dict[str, Json], signature: str) -> Iterator[Event]:
        yield from self._close()
        given, name = compact(mapping(call.get("args"))), text(call.get("name"))
        id = text(call.get("id")) or _made_id(self._id, self._calls, name, given)
        yield PartBegin(self._count, ToolCall(id, name, "", signature=signature, origin=GEMINI if signature else ""))
        yield Piece(self._count, given)
        yield PartEnd(self._count)
        self._count += 1
        self._calls += 1

    def _close(self) -> Iterator[Event]:
        if self._open is not None:
            yield PartEnd(self._count - 1)
        self._open = None


def _made_id(*facts: object) -> str:
    """Not every model gives its calls ids; callers of all other APIs need them."""
    return f"call_{hashlib.blake2b(repr(facts).encode('utf-8', 'replace'), digest_size=12).hexdigest()}"


def _logprobs(result: dict[str, Json]) -> Json:
    """As OpenAI's chat has them."""
    tops = [mapping(one) for one in sequence(result.get("topCandidates"))]
    chosen = [mapping(one) for one in sequence(result.get("chosenCandidates"))]
    content = []
    for number, one in enumerate(chosen):
        others = sequence(tops[number].get("candidates")) if number < len(tops) else []
        content.append(_logprob(one) | {"top_logprobs": [_logprob(mapping(other)) for other in others]})
    return {"content": content, "refusal": None} if content else None


def _logprob(one: dict[str, Json]) -> dict[str, Json]:
    token = text(one.get("token"))
    known = one.get("logProbability")
    value = float(known) if isinstance(known, int | float) else 0.0
    return {"token": token, "logprob": value, "bytes": list(token.encode("utf-8", "replace"))}


# -- write


def write_reply(reply: Reply, ask: Ask, created: int = 0) -> Json:
    """The body of an answer."""
    parts = [written for part in reply.parts if (written := _written(part)) is not None]
    return _answer(reply.id, reply.model, parts) | _ended(reply.stop, reply.usage, parts)


def _answer(id: str, model: str, parts: list[Json]) -> dict[str, Json]:
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
    return {"candidates": [candidate], "modelVersion": model, "responseId": id}


def _ended(stop: Stop, usage: Usage, parts: list[Json]) -> dict[str, Json]:
    content = {"role": "model", "parts": parts}
    candidate = {"content": content, "index": 0, "finishReason": _STOP_NAMES.get(stop, "STOP")}
    return {"candidates": [candidate], "usageMetadata": write_usage(usage)}


def _written(part: Part) -> dict[str, Json] | None:
    match part:
        case Text() | Refusal():
            return {"text": part.text}
        case Thinking():
            thought: dict[str, Json] = {"text": part.text, "thought": True}
            return thought | _signed(part)
        case ToolCall():
            given = mapping(read_value(part.arguments))
            return {"functionCall": {"id": part.id, "name": part.name, "args": given}} | _signed(part)
    return None


def _signed(part: Thinking | ToolCall) -> dict[str, Json]:
    return {"thoughtSignature": part.signature} if part.signature and part.origin == GEMINI else {}


class StreamWriter:
    """Writes partial answers. Calls are held until they are whole."""

    def __init__(self, ask: Ask, created: int = 0) -> None:
        self._order = InOrder(calls_signed=True)
        self._begin = Begin("", "")
        self._part: Part = Text("")

    def write(self, event: Event) -> Iterator[tuple[str, Json]]:
        """("", partial answer)."""
        for one in self._order.events(event):
            for answer in self._written(one):
                yield "", answer

    def _written(self, event: Event) -> Iterator[Json]:
        match event:
            case Begin():
                self._begin = event
            case PartBegin():
                self._part = event.part
            case Piece() if isinstance(self._part, ToolCall):
                self._part = replace(self._part, arguments=self._part.arguments + event.text)
            case Piece() if isinstance(self._part, Text | Thinking | Refusal):
                yield self._answer(_written(replace(self._part, text=event.text)))
            case Signed() if isinstance(self._part, Thinking):
                signed = replace(self._part, text="", signature=event.signature, origin=event.origin)
                yield self._answer(_written(signed))
            case PartEnd() if isinstance(self._part, ToolCall):
                yield self._answer(_written(self._part))
            case End():
                yield self._answer() | _ended(event.stop, event.usage, [])
            case Failure():
                status = {"code": status_of(event.kind), "status": type_of("gemini", event.kind)}
                yield {"error": status | {"message": event.message}}

    def _answer(self, *parts: Json) -> dict[str, Json]:
        return _answer(self._begin.id, self._begin.model, list(parts))
