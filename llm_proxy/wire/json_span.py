"""Where in a JSON object, coming piece by piece, the value of the top-level `model` stands. No JSON is parsed.

Strings are told from structure by neutralising escapes, which keeps every offset; what lies below the top level is
passed over a block at a time, by its brackets alone. The work is linear in the bytes, whatever they are. Leaves out
whether the rest is good JSON: that is for whom the body is meant.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate
from typing import Final, NamedTuple

DEEPEST = 10_000  # levels; parsers of JSON give up long before
MOST = 10_000  # members of the object itself
LONGEST = 1024  # bytes of a model's name as it is written

_KEY = "model"
_LONGEST_KEY = 6 * len(_KEY)  # with every letter as \u006d
_SPACE = re.compile(rb"[ \t\r\n]*+")
_PLAIN = re.compile(rb'[^ \t\r\n"\[\]{}:,]++')  # a number, true, false, null
_STRUCTURE = re.compile(rb'["\[\]{}]')
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "/": "/"}

_QUOTE, _COLON, _COMMA = b'":,'
_OPENS, _CLOSES = b"{[", b"}]"
_REST = bytes(byte for byte in range(256) if byte not in b'"{[}]')  # what `_below` need not see
_STEPS = bytes.maketrans(_OPENS + _CLOSES, b"\x01\x01\xff\xff")  # one level down or up, as signed bytes
_FIRST_BLOCK, _LAST_BLOCK = 256, 16_384  # bytes; a block is looked at twice where a level ends in it


class NotAnObject(ValueError):
    """What came cannot be a JSON object, or no one would read it; the message says why."""


class Span(NamedTuple):
    """`start` and `end` are the offsets of the value, its quotes included; `name` is the string."""

    start: int
    end: int
    name: str


class _At:
    """What is to come at the top level."""

    START: Final = 0  # the object itself
    KEY: Final = 1
    COLON: Final = 2
    VALUE: Final = 3
    NEXT: Final = 4  # a comma, or the end of the object
    OVER: Final = 5


class ModelSpan:
    """`feed` the body in pieces, then ask `found`. Of several keys `model` the last counts, as for parsers of JSON."""

    __slots__ = (
        "_at",
        "_block",
        "_depth",
        "_escaped",
        "_keeps",
        "_kept",
        "_members",
        "_model",
        "_offset",
        "_quoted",
        "_span",
        "_start",
    )

    def __init__(self) -> None:
        self._at = _At.START
        self._depth = 0
        self._block = _FIRST_BLOCK
        self._members = 1
        self._offset = 0  # of the piece within the body
        self._quoted = False  # within a string
        self._escaped = False  # the last byte was a backslash that escapes the next
        self._keeps = 0  # bytes of the string that are kept, 0: none of it matters
        self._kept = b""
        self._model = False  # the key was `model`
        self._start = 0
        self._span: Span | None = None

    def feed(self, piece: bytes) -> None:
        """The next bytes of the body. Raises NotAnObject."""
        clean = self._without_escapes(piece) if b"\\" in piece or self._escaped else piece
        position, size = 0, len(piece)
        while position < size:
            if self._depth > 1:
                position = self._below(clean, position)
            elif self._quoted:
                position = self._string(piece, clean, position)
            else:
                position = self._top(clean, position)
        self._offset += size

    def found(self) -> Span | None:
        """Once all has come: where the model's name stands; None where none is named. Raises NotAnObject."""
        if self._at != _At.OVER:
            raise NotAnObject("it ends too early" if self._at != _At.START else "it is empty")
        return self._span

    def _without_escapes(self, piece: bytes) -> bytes:
        """The same length, and every quotation mark left in it is one that begins or ends a string."""
        if self._escaped:
            piece = b"_" + piece[1:]
        clean = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        self._escaped = clean.endswith(b"\\")
        return clean

    def _string(self, piece: bytes, clean: bytes, position: int) -> int:
        end = clean.find(b'"', position)
        stop = len(piece) if end < 0 else end
        if self._keeps:
            self._kept += piece[position : min(stop, position + self._keeps + 1 - len(self._kept))]
        if end < 0:
            return stop
        self._quoted = False
        self._string_over(self._offset + end + 1)
        return end + 1

    def _string_over(self, end: int) -> None:
        if self._at == _At.KEY:
            self._model = len(self._kept) <= _LONGEST_KEY and _unescaped(self._kept) == _KEY
            self._at = _At.COLON
            return
        if self._model:
            cut = "…" if len(self._kept) > LONGEST else ""
            self._span = Span(self._start, end, _unescaped(self._kept[:LONGEST]) + cut)
        self._at = _At.NEXT

    def _below(self, clean: bytes, position: int) -> int:
        """A block of what lies below the top level, or as much of it as leads back there."""
        end = min(position + self._block, len(clean))
        seen = clean[position:end].translate(None, _REST).replace(b'""', b"")  # that keeps what is within quotes there
        quoted = self._quoted
        if b'"' in seen:
            parts = seen.split(b'"')
            seen = b"".join(parts[quoted::2])
            quoted ^= not len(parts) % 2
        elif quoted:
            seen = b""
        levels = list(accumulate(array("b", seen.translate(_STEPS)))) or [0]
        if self._depth + min(levels) <= 1:
            return self._to_the_top(clean, position)
        if self._depth + max(levels) > DEEPEST:
            raise NotAnObject(f"it is nested more than {DEEPEST} levels deep")
        self._depth += levels[-1]
        self._quoted = quoted
        self._block = min(2 * self._block, _LAST_BLOCK)
        return end

    def _to_the_top(self, clean: bytes, position: int) -> int:
        """The same where it is known to lead back there, step by step."""
        while self._depth > 1:
            if self._quoted:
                position = clean.index(b'"', position) + 1
                self._quoted = False
                continue
            match = _STRUCTURE.search(clean, position)
            assert match is not None
            position = match.end()
            byte = clean[position - 1]
            self._quoted = byte == _QUOTE
            self._depth += (byte in _OPENS) - (byte in _CLOSES)
        self._at = _At.NEXT
        return position

    def _top(self, clean: bytes, position: int) -> int:
        match = _SPACE.match(clean, position)
        assert match is not None
        position = match.end()
        if position == len(clean):
            return position
        byte = clean[position]
        at = self._at
        if at == _At.VALUE:
            return self._value(clean, position, byte)
        if at == _At.KEY and byte == _QUOTE:
            self._begin_string(_LONGEST_KEY)
        elif at == _At.COLON and byte == _COLON:
            self._at = _At.VALUE
        elif at == _At.NEXT and byte == _COMMA:
            self._members += 1
            if self._members > MOST:
                raise NotAnObject(f"it has more than {MOST} members")
            self._at = _At.KEY
        elif at == _At.START and byte == _OPENS[0]:
            self._depth, self._at = 1, _At.KEY
        elif at in (_At.KEY, _At.NEXT) and byte == _CLOSES[0]:
            self._depth, self._at = 0, _At.OVER
        elif at == _At.NEXT and _PLAIN.match(clean, position):  # the rest of a number that came in two pieces
            return self._plain(clean, position)
        else:
            raise NotAnObject(f"byte {self._offset + position} is not what belongs there")
        return position + 1

    def _value(self, clean: bytes, position: int, byte: int) -> int:
        if self._model:
            self._span = None  # until it has turned out to be a string
        if byte == _QUOTE:
            self._start = self._offset + position
            self._begin_string(LONGEST if self._model else 0)
        elif byte in _OPENS:
            self._depth, self._block = 2, _FIRST_BLOCK
        else:
            return self._plain(clean, position)
        return position + 1

    def _plain(self, clean: bytes, position: int) -> int:
        match = _PLAIN.match(clean, position)
        if match is None:
            raise NotAnObject(f"byte {self._offset + position} is not what belongs there")
        self._at = _At.NEXT
        return match.end()

    def _begin_string(self, keeps: int) -> None:
        self._quoted, self._keeps, self._kept = True, keeps, b""


def _unescaped(text: bytes) -> str:
    """What a string of JSON says. Bytes that are no UTF-8 and halves of characters become U+FFFD."""

    def said(match: re.Match[str]) -> str:
        return chr(int(match[1], 16)) if match[1] else _ESCAPED.get(match[2], match[0])

    told = _ESCAPE.sub(said, text.decode("utf-8", "replace"))
    return told.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
