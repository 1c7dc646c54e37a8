"""Whether an event stream has said that it is over: then a client that left afterwards has missed nothing.

Looks at whole events, never at text inside one: nothing a model or a user writes can look like an end.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llm_proxy.wire.sse import Event, EventDecoder

_MESSAGES = frozenset({"message_stop"})
_RESPONSES = frozenset({"response.completed", "response.failed", "response.incomplete"})
_DONE = frozenset({"[DONE]"})
# Bedrock's, as `frames` tells them: Converse's events, and the model's own, of which the last has the counts.
_METRICS = "amazon-bedrock-invocationMetrics"
_BEDROCK = _MESSAGES | {"messageStop", "metadata", _METRICS}

# By path, else by provider, else any of these ways.
_ENDS = (
    (re.compile(r".*/model/.+/(?:converse-stream|invoke-with-response-stream)/?", re.DOTALL), _BEDROCK),
    (re.compile(r".*/messages/?", re.DOTALL), _MESSAGES),
    (re.compile(r".*/responses/?", re.DOTALL), _RESPONSES | _DONE),
    (re.compile(r".*/completions/?", re.DOTALL), _DONE),
)
_ENDS_OF = {"anthropic": _MESSAGES}
_ANY = _MESSAGES | _RESPONSES | _DONE


class _Typed(msgspec.Struct):
    """What tells an event: its type, or the name under which it comes."""

    type: str = ""
    stopped: Any = msgspec.field(name="messageStop", default=None)
    summed: Any = msgspec.field(name="metadata", default=None)
    counted: Any = msgspec.field(name=_METRICS, default=None)


_TYPED = msgspec.json.Decoder(_Typed)


def _names(data: str | bytes) -> set[str]:
    try:
        event = _TYPED.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError):
        return set()
    under = (("messageStop", event.stopped), ("metadata", event.summed), (_METRICS, event.counted))
    return {event.type, *(name for name, value in under if value is not None)}


def _is_end(event: Event, ends: frozenset[str]) -> bool:
    return event.event in ends or event.data in ends or not ends.isdisjoint(_names(event.data))


def ends_complete(provider: str, path: str, tail: bytes) -> bool:
    """Whether `tail` holds a terminal event. Never raises.

    `tail` is the end of a decoded event stream, from anywhere in it; it must reach back to the start of the last
    event, which for Responses repeats the whole answer. Or one whole WebSocket message. `path` is without its query.
    """
    listed = (ends for pattern, ends in _ENDS if pattern.fullmatch(path))
    ends = next(listed, _ENDS_OF.get(provider, _ANY))
    if tail.startswith(b"{") and not ends.isdisjoint(_names(tail)):
        return True
    decoder = EventDecoder()
    return any(_is_end(event, ends) for event in decoder.feed(tail) + decoder.finish())
