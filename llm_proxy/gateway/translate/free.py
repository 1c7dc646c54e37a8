"""Tools that take any text, for APIs whose tools take objects only: the text goes into an object, and comes out again.

Leaves out APIs that have such tools themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from llm_proxy.gateway.translate.conversation import Event, Part, PartBegin, PartEnd, Piece, Reply, Tool, ToolCall
from llm_proxy.gateway.translate.fields import arguments_of
from llm_proxy.gateway.translate.losses import Losses

_SCHEMA: Final = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


def schema_of(tool: Tool) -> Mapping[str, Any]:
    """The JSON schema of any tool's arguments."""
    return _SCHEMA if tool.free else tool.schema or {"type": "object", "properties": {}}


def described(tool: Tool, losses: Losses) -> str:
    """A tool's description; a grammar, which nobody will enforce, becomes part of it."""
    if tool.grammar is None:
        return tool.description
    losses.loosen(f"{tool.at}.format")
    rule = f"The input follows this {tool.grammar.get('syntax')} grammar:\n{tool.grammar.get('definition')}"
    return f"{tool.description}\n\n{rule}" if tool.description else rule


def object_of(call: ToolCall) -> dict[str, Any]:
    """Any call's arguments as an object. Raises BadRequest where they are none."""
    return {"input": call.arguments} if call.free else arguments_of(call.arguments, call.at)


def _text_of(arguments: str) -> str:
    """What a model gave to such a tool; as it is where the model broke the rule."""
    try:
        given = json.loads(arguments)["input"]
    except (ValueError, TypeError, LookupError):
        return arguments
    return given if isinstance(given, str) else arguments


class Freed:
    """Answers to a caller who offered `tools`: calls of those that take text have their text again."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._names = {tool.name for tool in tools if tool.free}
        self._held: dict[int, list[str]] = {}

    def reply(self, reply: Reply) -> Reply:
        if not self._names:
            return reply
        return replace(reply, parts=tuple(self._freed(part) for part in reply.parts))

    def event(self, event: Event) -> Iterator[Event]:
        """The text comes in one piece: it cannot be told before its object is whole."""
        match event:
            case PartBegin(part=ToolCall() as call) if self._boxed(call):
                self._held[event.index] = []
                yield PartBegin(event.index, replace(call, free=True))
            case Piece() if event.index in self._held:
                self._held[event.index].append(event.text)
            case PartEnd() if event.index in self._held:
                yield Piece(event.index, _text_of("".join(self._held.pop(event.index))))
                yield event
            case _:
                yield event

    def _freed(self, part: Part) -> Part:
        if isinstance(part, ToolCall) and self._boxed(part):
            return replace(part, arguments=_text_of(part.arguments), free=True)
        return part

    def _boxed(self, call: ToolCall) -> bool:
        return not call.free and call.name in self._names
