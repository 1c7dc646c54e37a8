"""Conversations, answers and streams that every API can say, made by hypothesis; and what makes two of them equal.

Leaves out what only one API has: its own test has that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway.translate.apis import Api
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Begin,
    Choice,
    Effort,
    End,
    Event,
    Given,
    Media,
    Option,
    Part,
    PartBegin,
    PartEnd,
    Piece,
    Reply,
    Role,
    Shape,
    Signed,
    Stop,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from llm_proxy.gateway.translate.fields import compact

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=30).filter(str.strip)
names = st.from_regex(r"[a-z][a-z_]{2,12}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(names, values, max_size=3).map(compact)
schemas = st.dictionaries(names, st.sampled_from(("string", "integer", "boolean")), max_size=3).map(
    lambda kinds: {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in kinds.items()},
        "required": list(kinds),
        "additionalProperties": False,
    }
)
texts = st.builds(Text, words)
pictures = st.just(Media("image", "image/png", PIXEL))


@st.composite
def turns(draw: st.DrawFn) -> tuple[Turn, ...]:
    """A system's word, then a user and a model by turns; calls at once, each with its result."""
    said = [Turn(Role.SYSTEM, (draw(texts),))] if draw(st.booleans()) else []
    number = 0
    answers: list[Part] = []
    for _ in range(draw(st.integers(1, 3))):
        said.append(Turn(Role.USER, (*answers, *draw(st.lists(texts | pictures, min_size=1, max_size=3)))))
        calls = draw(st.lists(st.tuples(names, arguments), max_size=3))
        spoken = draw(st.lists(texts, min_size=0 if calls else 1, max_size=2))
        made = [ToolCall(f"call_{number + at}", name, given) for at, (name, given) in enumerate(calls)]
        answers = [ToolResult(call.id, tuple(draw(st.lists(texts, max_size=1))), call.name) for call in made]
        number += len(made)
        said.append(Turn(Role.ASSISTANT, (*spoken, *made)))
    said.append(Turn(Role.USER, (*answers, draw(texts))))
    return tuple(said)


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    """What all APIs can ask. Thinking is left to each API's own tests: no two say it alike."""
    tools = draw(st.lists(st.builds(Tool, names, words, schemas), max_size=3, unique_by=lambda tool: tool.name))
    modes = [None, Choice("auto"), Choice("any"), *(Choice("one", tool.name) for tool in tools)] if tools else [None]
    options = {Option.MAX_TOKENS: Given(draw(st.integers(1, 4096)))}
    for name, value in (
        (Option.TEMPERATURE, st.sampled_from((0, 0.5, 1))),
        (Option.TOP_P, st.sampled_from((0.1, 0.9))),
    ):
        if draw(st.booleans()):
            options[name] = Given(draw(value))
    return Ask(
        "model-1",
        draw(turns()),
        tuple(tools),
        draw(st.sampled_from(modes)),
        draw(st.none() | st.builds(Shape, schemas, strict=st.just(True))),
        options=options,
        usage=True,
    )


usages = st.builds(
    Usage,
    input=st.integers(0, 10**6),
    cache_read=st.integers(0, 10**6),
    output=st.integers(0, 10**6),
)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """An answer: thoughts, words, calls at once."""
    thoughts: list[Part] = draw(st.lists(st.builds(Thinking, words), max_size=1))
    said: list[Part] = draw(st.lists(texts, max_size=1))
    calls = draw(st.lists(st.tuples(names, arguments), min_size=0 if said else 1, max_size=3))
    made = [ToolCall(f"call_{at}", name, given) for at, (name, given) in enumerate(calls)]
    stop = Stop.TOOL if made else draw(st.sampled_from((Stop.END, Stop.LENGTH)))
    return Reply("id-1", "model-1", (*thoughts, *said, *made), stop, usage=draw(usages))


def cut(draw: st.DrawFn, text: str) -> Iterator[str]:
    """The text in pieces, cut anywhere."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        if text[start:end]:
            yield text[start:end]


@st.composite
def streams(draw: st.DrawFn, interleaved: bool = False) -> list[Event]:
    """A reply as events; its calls' arguments one after the other, or as they come."""
    reply = draw(replies())
    begin = Begin(reply.id, reply.model)
    each = [_of_part(draw, index, part) for index, part in enumerate(reply.parts)]
    calls = [events for events, part in zip(each, reply.parts, strict=True) if isinstance(part, ToolCall)]
    others = [event for events in each if events not in calls for event in events]
    if interleaved:
        return [begin, *others, *_shuffled(draw, calls), End(reply.stop, usage=reply.usage)]
    return [begin, *others, *(event for events in calls for event in events), End(reply.stop, usage=reply.usage)]


def _of_part(draw: st.DrawFn, index: int, part: Part) -> list[Event]:
    match part:
        case ToolCall():
            begin: Part = replace(part, arguments="")
            said = part.arguments
        case Text() | Thinking():
            begin, said = replace(part, text=""), part.text
    return [PartBegin(index, begin), *(Piece(index, piece) for piece in cut(draw, said)), PartEnd(index)]


def _shuffled(draw: st.DrawFn, calls: list[list[Event]]) -> Iterator[Event]:
    waiting = [list(events) for events in calls]
    for events in waiting:
        yield events.pop(0)  # calls begin in their order
    while waiting := [events for events in waiting if events]:
        yield draw(st.sampled_from(waiting)).pop(0)


# -- what is equal


def plainly(ask: Ask) -> Ask:
    """The same request with one turn where several say nothing else: by one speaker, results first."""
    merged: list[Turn] = []
    for turn in ask.turns:
        if merged and merged[-1].role is turn.role:
            merged[-1] = replace(merged[-1], parts=merged[-1].parts + turn.parts)
        else:
            merged.append(turn)
    shape = replace(ask.shape, name="", strict=None) if ask.shape else None
    tools = tuple(replace(tool, strict=tool.strict or None) for tool in ask.tools)
    return replace(ask, turns=tuple(merged), shape=shape, tools=tools, usage=True, model="", effort=_plain(ask.effort))


def _plain(effort: Effort | None) -> Effort | None:
    return replace(effort, told=None, brief="") if effort else None


def whole(events: Iterable[Event]) -> list[Any]:
    """The parts that a stream's events tell, in the order of their begin, then how it ended."""
    parts: dict[int, Any] = {}
    last: list[Any] = []
    for event in events:
        match event:
            case PartBegin():
                assert event.index not in parts
                parts[event.index] = event.part
            case Piece():
                part = parts[event.index]
                field = "arguments" if isinstance(part, ToolCall) else "text"
                parts[event.index] = replace(part, **{field: getattr(part, field) + event.text})
            case Signed():
                parts[event.index] = replace(parts[event.index], signature=event.signature, origin=event.origin)
            case End():
                last = [event.stop, event.usage]
    return [replace(part, origin="", id="") if _unsigned(part) else part for part in parts.values()] + last


def _unsigned(part: Part) -> bool:
    return isinstance(part, Thinking) and not part.signature and not part.sealed


def told(api: Api, events: Iterable[Event], ask: Ask | None = None) -> list[tuple[str, Any]]:
    """The stream that the API writes of the events, each piece as it goes over the wire."""
    writer = api.writer(ask or Ask("model-1", (), usage=True), created=1)
    return [(name, json.loads(json.dumps(data))) for event in events for name, data in writer.write(event)]


def understood(api: Api, pieces: Sequence[tuple[str, Any]], bedrock: bool = False) -> list[Event]:
    """The events that the API reads in the stream; Bedrock's pieces are known by their frames' names."""
    reader = api.reader(id="id-1", model="model-1")
    read = [event for name, data in pieces for event in reader.read({name: data} if bedrock else data)]
    return [*read, *reader.finish()]
