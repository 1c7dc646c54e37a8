"""From an answer's bytes to what they say: JSON events of streams, whether the model speaks yet, its end, token counts.

`Events` decodes all, for `translate`'s readers. `Watch` is for streams that pass as they are: it decodes until the
model speaks, and then only what its last events say. `Retelling` gives Anthropic's events in Amazon's envelopes as
Anthropic itself sends them. All are fed pieces, cut anywhere, in bounded memory. Leaves out what conversations are made
of (`translate`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from llm_proxy.dialects.digest import Usage
from llm_proxy.dialects.frames import carried
from llm_proxy.dialects.reading import mapping, read, read_value, sequence, text
from llm_proxy.gateway.sending.client import Broken
from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import Failure, Json
from llm_proxy.gateway.translate.errors import Kind, kind_of, type_of
from llm_proxy.wire import eventstream, sse

LINE_LIMIT: Final = 8 << 20  # bytes of an event that is looked at in a stream that passes
_TAIL: Final = 1 << 16  # bytes of such a stream that are kept

_DONE: Final = b"[DONE]"  # OpenAI's last event


# --- events


class _Decoder(Protocol):
    def feed(self, piece: bytes) -> list[Json]: ...

    def finish(self) -> list[Json]: ...


class Events:
    """The events of one stream of `api`, as JSON; an error in a stream is one of them, in the API's own shape."""

    def __init__(self, api: str) -> None:
        self._decoder: _Decoder = _Frames() if api == "bedrock" else _ServerSent()

    def feed(self, piece: bytes) -> list[Json]:
        """What `piece` completes. Raises Broken for what is no event: nothing may be left out unseen."""
        return self._decoder.feed(piece)

    def finish(self) -> list[Json]:
        """The stream is over. Raises Broken where that is in the middle of an event."""
        return self._decoder.finish()


class _ServerSent:
    def __init__(self) -> None:
        self._decoder = sse.EventDecoder()
        self._between = False  # what came up to now ended with an event's end

    def feed(self, piece: bytes) -> list[Json]:
        told = _plainly(piece) if self._between else None
        if told is None:
            told = [_told(event) for event in self._decoder.feed(piece)]
            self._between = piece.endswith(b"\n\n")
        return [value for value in told if value is not None]

    def finish(self) -> list[Json]:
        return [value for event in _last(self._decoder) if (value := _told(event)) is not None]


def _plainly(piece: bytes) -> list[Json | None] | None:
    """The events of a piece; None where one is not as nearly all are: whole, perhaps named, its data on one line."""
    if b"\r" in piece:
        return None
    found, at = [], 0
    while at < len(piece):
        name = b""
        if piece.startswith(b"event: ", at):
            end = piece.find(b"\n", at)
            if end < 0:
                return None
            name, at = piece[at + 7 : end], end + 1
        end = piece.find(b"\n", at)
        if not piece.startswith(b"data: ", at) or not piece.startswith(b"\n\n", end):
            return None
        found.append((piece[at + 6 : end], name))
        at = end + 2
    return [_said(data, failed=name == b"error") for data, name in found]


def _last(decoder: sse.EventDecoder) -> list[sse.Event]:
    """A stream may end without the last blank line."""
    return [*decoder.finish(), *decoder.feed(b"\n\n")]


def _told(event: sse.Event) -> Json | None:
    if event.truncated:
        raise Broken("bad_event", "an event of the stream is too large")
    return _said(event.data.encode(), failed=event.event == "error")


def _said(data: bytes, *, failed: bool) -> Json | None:
    """None for what says nothing; `failed`: its name is error. Raises Broken."""
    if data == _DONE or not data.strip():
        return None
    value = read_value(data)
    if not isinstance(value, dict):
        if failed:
            words = text(value) or data[:1000].decode("utf-8", "replace")
            return {"type": "error", "error": {"type": "api_error", "message": words}}
        raise Broken("bad_event", f"an event of the stream is no JSON object: {data[:80]!r}")
    if failed and "error" not in value and "type" not in value:
        return {"type": "error", "error": value}
    return value


class _Frames:
    """Amazon's, as `{event type: payload}`."""

    def __init__(self) -> None:
        self._frames = eventstream.FrameDecoder()

    def feed(self, piece: bytes) -> list[Json]:
        return [_amazon(frame) for frame in map(_whole, self._frames.feed(piece))]

    def finish(self) -> list[Json]:
        for one in self._frames.finish():
            _whole(one)
        return []


def _whole(frame: eventstream.Frame | eventstream.Damaged) -> eventstream.Frame:
    if isinstance(frame, eventstream.Damaged):
        raise Broken("bad_event", f"the event stream is damaged: {frame.why}")
    return frame


def _amazon(frame: eventstream.Frame) -> Json:
    failure = _failure(frame)
    if failure is not None:
        name, message = failure
        return {name[:1].lower() + name[1:]: {"message": message}}
    return {frame.text(":event-type"): _payload(frame.payload)}


def _failure(frame: eventstream.Frame) -> tuple[str, str] | None:
    """The name, which ends in Exception, and the words of what broke the stream."""
    kind = frame.text(":message-type")
    if kind == "error":
        name, said = frame.text(":error-code"), frame.text(":error-message")
    elif kind == "exception":
        told = mapping(read_value(frame.payload))
        name = frame.text(":exception-type")
        said = text(told.get("message")) or text(told.get("Message")) or text(told.get("originalMessage"))
    else:
        return None
    return (name or "InternalServer").removesuffix("Exception") + "Exception", said


def _payload(data: bytes) -> Json:
    value = read_value(data)
    if not isinstance(value, dict):
        raise Broken("bad_event", f"an event of the stream is no JSON object: {data[:80]!r}")
    return value


class Retelling:
    """Anthropic's events in Amazon's frames, as server-sent events: the model's own bytes, framed anew."""

    def __init__(self) -> None:
        self._frames = eventstream.FrameDecoder()

    def feed(self, piece: bytes) -> bytes:
        """Raises Broken."""
        return b"".join(map(_server_sent, map(_whole, self._frames.feed(piece))))

    def finish(self) -> None:
        """The stream is over. Raises Broken where that is in the middle of a frame."""
        for one in self._frames.finish():
            _whole(one)


_INNER_LINE_END = re.compile(rb"\r\n|\r|\n")  # between tokens only: strings of JSON have none


def _server_sent(frame: eventstream.Frame) -> bytes:
    failure = _failure(frame)
    if failure is not None:
        name, message = failure
        kind = kind_of(name[:1].upper() + name[1:])
        event = msgspec.json.encode(
            {"type": "error", "error": {"type": type_of("anthropic", kind), "message": message}}
        )
    else:
        event = carried(frame) or frame.payload
    return b"event: %b\ndata: %b\n\n" % (_type_of(event), _INNER_LINE_END.sub(b" ", event))


class _Named(msgspec.Struct):
    type: str = "message"


_NAMED = msgspec.json.Decoder(_Named)
_NAME = re.compile(r"[a-z_]{1,64}")


def _type_of(event: bytes) -> bytes:
    told = read(_NAMED, event)
    if told is None or _NAME.fullmatch(told.type) is None:
        raise Broken("bad_event", f"an event of the stream is no JSON object: {event[:80]!r}")
    return told.type.encode()


# --- whether the model speaks yet


def begins(api: str, event: Json) -> bool:
    """Whether an event holds output of the model, or ends the answer: from here on there is no going elsewhere."""
    return _BEGINS[api](mapping(event))


def _chat_begins(event: dict[str, Json]) -> bool:
    for choice in map(mapping, sequence(event.get("choices"))):
        said = mapping(choice.get("delta"))
        if choice.get("finish_reason") or choice.get("text") or any(said[name] for name in said if name != "role"):
            return True
    return False


# Pieces of a part or its end are output whatever they hold; its beginning may be an empty shell.
_ANTHROPIC_OUTPUT: Final = ("content_block_delta", "content_block_stop", "message_delta", "message_stop")
_SHELLS: Final = ("text", "thinking")


def _anthropic_begins(event: dict[str, Json]) -> bool:
    kind = event.get("type")
    if kind == "content_block_start":
        block = mapping(event.get("content_block"))
        return block.get("type") not in _SHELLS or bool(block.get("text") or block.get("thinking"))
    return kind in _ANTHROPIC_OUTPUT


_RESPONSES_WAIT: Final = ("response.created", "response.in_progress", "response.queued", "error", "response.failed")


def _responses_begins(event: dict[str, Json]) -> bool:
    kind = text(event.get("type"))
    return kind.startswith("response.") and kind not in _RESPONSES_WAIT


def _gemini_begins(event: dict[str, Json]) -> bool:
    if mapping(event.get("promptFeedback")).get("blockReason"):
        return True
    candidates = map(mapping, sequence(event.get("candidates")))
    return any(one.get("finishReason") or _holds(one) for one in candidates)


def _holds(candidate: dict[str, Json]) -> bool:
    parts = map(mapping, sequence(mapping(candidate.get("content")).get("parts")))
    return any(value for part in parts for name, value in part.items() if name != "thought")


_BEDROCK_OUTPUT: Final = ("contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop")


def _bedrock_begins(event: dict[str, Json]) -> bool:
    return any(name in event for name in _BEDROCK_OUTPUT)


_BEGINS: Final[dict[str, Callable[[dict[str, Json]], bool]]] = {
    "chat": _chat_begins,
    "completions": _chat_begins,
    "responses": _responses_begins,
    "anthropic": _anthropic_begins,
    "gemini": _gemini_begins,
    "bedrock": _bedrock_begins,
}


# --- streams and answers that pass as they are


class _Inner(msgspec.Struct, gc=False):
    usage: Any = None


class _Outer(msgspec.Struct, gc=False):
    """Where chat, responses and Anthropic's API have their counts, in bodies and in events."""

    type: Any = None
    error: Any = None
    usage: Any = None
    response: _Inner | None = None
    message: Any = None


_OUTER = msgspec.json.Decoder(_Outer)
_BODY = msgspec.json.Decoder(_Inner)


@dataclass(frozen=True, slots=True)
class _Passing:
    """What to look for. `marks`: events with none of them are passed over; `last`: the types that end an answer."""

    reader: str
    marks: tuple[bytes, ...]
    last: frozenset[str] = frozenset()


_USAGE_MARKS: Final = (b'"usage":{', b'"usage": {')  # most chunks have `"usage":null`
_CHAT: Final = _Passing("chat", (*_USAGE_MARKS, b"[DONE]", b'"error"'))
_PASSING: Final = {
    "chat": _CHAT,
    "completions": _CHAT,
    "responses": _Passing(
        "responses",
        (b"response.completed", b"response.incomplete", b"response.failed", b'"error"'),
        frozenset({"response.completed", "response.incomplete"}),
    ),
    "anthropic": _Passing("anthropic", (b'"usage"', b"message_stop", b'"error"'), frozenset({"message_stop"})),
}
_COUNTED: Final = {name: one.reader for name, one in _PASSING.items()} | {"embeddings": "chat"}
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')  # for hosts that leave [DONE] out
_CUT: Final = Failure(Kind.BAD_GATEWAY, "the provider's answer ended before it was whole")


def answered(api: str, body: bytes) -> Usage:
    """The token counts of a whole answer, none where it has none; nothing else in it is decoded."""
    if b'"usage"' not in body or api not in _COUNTED:
        return Usage()
    told = read(_BODY, body)
    return Usage() if told is None or not told.usage else APIS[_COUNTED[api]].read_usage(told.usage)


class Watch:
    """One stream of server-sent events of `api` that passes as it is, as its pieces go by.

    `begun`: the model has spoken; `failure`: the stream told that it broke off, or ended before it was whole; what
    breaks behind the first word is known once the stream has come to its end. `over`: the answer told its end. `usage`:
    its token counts. These are in its first and last events, so that of those between no more is kept than they pass.
    """

    def __init__(self, api: str) -> None:
        self.begun = False
        self.failure: Failure | None = None
        self._api = api
        self._passing = _PASSING[api]
        self._events: sse.EventDecoder | None = sse.EventDecoder()  # until it has begun
        self._told: dict[str, Json] = {}
        self._over = False
        self._tail: deque[bytes] = deque()
        self._size = 0

    @property
    def over(self) -> bool:
        self._look()
        return self._over

    @property
    def usage(self) -> Usage:
        self._look()
        return APIS[self._passing.reader].read_usage(self._told) if self._told else Usage()

    def feed(self, piece: bytes) -> None:
        """The next bytes, cut anywhere. Raises Broken, before the model speaks only."""
        if self._size > _TAIL:
            self._trim()
        self._tail.append(piece)
        self._size += len(piece)
        if self._events is not None:
            self._hear(self._events.feed(piece))

    def finish(self) -> None:
        """The stream is over. Raises Broken, where the model has not spoken only."""
        if self._events is not None:
            self._hear(_last(self._events))
        self._look()
        if self._passing is _CHAT and _FINISHED.search(b"".join(self._tail)) is not None:
            self._over = self.failure is None
        if not self._over and self.failure is None:
            self.failure = _CUT

    def _hear(self, events: list[sse.Event]) -> None:
        for event in events:
            told = _told(event)
            if told is not None and begins(self._api, told):
                self.begun = True
                self._events = None
                break
        self._look()

    def _trim(self) -> None:
        """An event that is not over stays whole, as long as it is not endless; those that are over were looked at."""
        if self._size > LINE_LIMIT:
            self._tail.clear()
            self._size = 0
        elif self._tail[-1].endswith(b"\n"):
            self._look()
            while self._size > _TAIL // 2:
                self._size -= len(self._tail.popleft())

    def _look(self) -> None:
        """At what is kept."""
        marks = self._passing.marks
        for line in b"".join(self._tail).splitlines():
            if line.startswith(b"data:") and any(mark in line for mark in marks):
                self._take(line[5:])

    def _take(self, data: bytes) -> None:
        if data.strip() == _DONE:
            self._over = self.failure is None
            return
        event = read(_OUTER, data)
        if event is None:
            return
        for usage in (event.usage, mapping(event.message).get("usage"), event.response and event.response.usage):
            if told := mapping(usage):
                # Anthropic's last counts leave out what the first ones said.
                kept = self._told if self._api == "anthropic" else {}
                self._told = kept | {name: value for name, value in told.items() if value is not None}
        if event.type in self._passing.last:
            self._over = True
        elif event.error or event.type in ("error", "response.failed"):
            said = APIS[self._passing.reader].reader().read(read_value(data))
            self.failure = next((one for one in said if isinstance(one, Failure)), self.failure)
