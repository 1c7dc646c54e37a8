"""Whether an event stream has said that it is over: then a client that left afterwards has missed nothing.

Looks at whole events, never at text inside one: nothing a model or a user writes can look like an end.
"""

from __future__ import annotations

import re

import msgspec

from llm_proxy.wire.sse import Event, EventDecoder

_MESSAGES = frozenset({"message_stop"})
_RESPONSES = frozenset({"response.completed", "response.failed", "response.incomplete"})
_DONE = frozenset({"[DONE]"})

# By path, else by provider, else any of these ways.
_ENDS = (
    (re.compile(r".*/messages/?", re.DOTALL), _MESSAGES),
    (re.compile(r".*/responses/?", re.DOTALL), _RESPONSES | _DONE),
    (re.compile(r".*/completions/?", re.DOTALL), _DONE),
)
_ENDS_OF = {"anthropic": _MESSAGES}
_ANY = _MESSAGES | _RESPONSES | _DONE


class _Typed(msgspec.Struct):
    type: str = ""


_TYPED = msgspec.json.Decoder(_Typed)


def _type(data: str | bytes) -> str:
    try:
        return _TYPED.decode(data).type
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError):
        return ""


def _is_end(event: Event, ends: frozenset[str]) -> bool:
    return event.event in ends or event.data in ends or _type(event.data) in ends


def ends_complete(provider: str, path: str, tail: bytes) -> bool:
    """Whether `tail` holds a terminal event. Never raises.

    `tail` is the end of a decoded event stream, from anywhere in it; it must reach back to the start of the last
    event, which for Responses repeats the whole answer. Or one whole WebSocket message. `path` is without its query.
    """
    listed = (ends for pattern, ends in _ENDS if pattern.fullmatch(path))
    ends = next(listed, _ENDS_OF.get(provider, _ANY))
    if tail.startswith(b"{") and _type(tail) in ends:
        return True
    decoder = EventDecoder()
    return any(_is_end(event, ends) for event in decoder.feed(tail) + decoder.finish())
