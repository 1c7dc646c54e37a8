"""Server-sent events, incrementally: lines with their line ends as they were sent, and events by the WHATWG rules.

Both cut at \\n, \\r\\n and \\r only, however the stream comes in pieces, in linear time and bounded memory. Leaves out
what an event says (`dialects`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE_LIMIT = 8 * 1024 * 1024  # bytes before the line end; images travel in one line
DATA_LIMIT = 64 * 1024 * 1024  # bytes of one event's data
NAME_LIMIT = 1024  # bytes of an event's name or id

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class LineSplitter:
    """Lines including their ends; joined they are the stream again.

    A line longer than `limit` bytes comes in pieces of `limit`, all but the last without a line end. A trailing \\r
    waits for the next byte: it may be half a line end.
    """

    __slots__ = ("_held", "_limit", "_unfinished")

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._unfinished = bytearray()
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes."""
        if self._held and data:
            data = self._held + data
            self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        return self._cut(data)

    def finish(self) -> list[bytes]:
        """The stream is over: what is left, perhaps without a line end."""
        held, self._held = self._held, b""
        lines = self._cut(held)
        if self._unfinished:
            lines.append(bytes(self._unfinished))
            self._unfinished.clear()
        return lines

    def _cut(self, data: bytes) -> list[bytes]:
        if not self._unfinished and len(data) <= self._limit:  # nearly always
            lines = data.splitlines(keepends=True)
            if lines and not lines[-1].endswith((b"\n", b"\r")):
                self._unfinished += lines.pop()
            return lines
        lines = []
        done = 0
        for end in _LINE_END.finditer(data):
            self._add(data[done : end.start()], lines)
            lines.append(bytes(self._unfinished) + end[0])
            self._unfinished.clear()
            done = end.end()
        self._add(data[done:], lines)
        return lines

    def _add(self, text: bytes, lines: list[bytes]) -> None:
        start, stop = 0, self._limit - len(self._unfinished)
        while stop < len(text):
            lines.append(bytes(self._unfinished) + text[start:stop])
            self._unfinished.clear()
            start, stop = stop, stop + self._limit
        self._unfinished += text[start:]


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event. `id` is the last one the stream has set; `truncated`: `data` is kept up to the limit."""

    event: str
    data: str
    id: str
    truncated: bool = False


class EventDecoder:
    """Events of one stream (HTML standard §9.2.6). An event without its blank line is never dispatched."""

    __slots__ = ("_cut", "_data", "_field", "_id", "_limit", "_name", "_room", "_splitter", "_started")

    def __init__(self, limit: int = DATA_LIMIT) -> None:
        self._limit = self._room = limit
        self._splitter = LineSplitter(LINE_LIMIT)
        self._started = False
        self._cut = False  # the last line was only a piece of one
        self._field = b""  # the field that line began
        self._data: bytearray | None = None  # None: no data line yet
        self._name = b""
        self._id = b""

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes."""
        events = []
        for line in self._splitter.feed(data):
            event = self._line(line)
            if event is not None:
                events.append(event)
        return events

    def finish(self) -> list[Event]:
        """The stream is over: a line end that was held back may complete one last event."""
        return [event for line in self._splitter.finish() if (event := self._line(line)) is not None]

    def _line(self, raw: bytes) -> Event | None:
        line = raw.rstrip(b"\r\n")
        continued, self._cut = self._cut, len(line) == len(raw)
        if continued:
            if self._field == b"data":
                self._extend(line)
            return None
        if not self._started:
            self._started = True
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        self._field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if self._field == b"data":
            if self._data is None:
                self._data = bytearray()
            else:
                self._extend(b"\n")
            self._extend(value)
        elif self._field == b"event":
            self._name = value[:NAME_LIMIT]
        elif self._field == b"id" and b"\0" not in value:
            self._id = value[:NAME_LIMIT]
        return None

    def _extend(self, value: bytes) -> None:
        assert self._data is not None
        self._data += value[: max(self._room, 0)]
        self._room -= len(value)

    def _dispatch(self) -> Event | None:
        data, name, truncated = self._data, self._name, self._room < 0
        self._data, self._name, self._room = None, b"", self._limit
        if data is None:
            return None
        return Event(_text(name) or "message", _text(data), _text(self._id), truncated)


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")
