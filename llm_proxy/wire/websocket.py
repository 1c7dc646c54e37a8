"""WebSocket messages of recorded traffic (RFC 6455), a parser for each direction, permessage-deflate (RFC 7692) undone.

Reads along and never takes part: nothing is answered, UTF-8 is not judged. Garbage ends the reading with a reason.
Messages are kept up to a limit; what they inflate to and their number are bounded as well.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from llm_proxy.wire.codings import MAX_MEMBERS, SLICE, Inflate

MESSAGE_LIMIT = 16 * 1024 * 1024  # bytes kept of one message
INFLATED_LIMIT = 256 * 1024 * 1024  # bytes that all compressed messages of one direction may inflate to
MAX_MESSAGES = 200_000  # of one direction, control frames included: empty ones cost two bytes each

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_CONTROL = frozenset({CLOSE, PING, PONG})
_OPCODES = frozenset({CONTINUATION, TEXT, BINARY}) | _CONTROL

_FIN, _RSV1, _RSV23, _MASK = 0x80, 0x40, 0x30, 0x80
_EXTENDED = {126: 2, 127: 8}  # bytes of length that follow (RFC 6455 §5.2)
_FLUSHED = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.2: left off the end of every compressed message


class Message(NamedTuple):
    """One message or control frame. `at` is when its last byte came; `size` counts also what was not kept."""

    at: int
    opcode: int
    payload: bytes
    truncated: bool
    size: int


# --- what the two heads agreed on


@dataclass(frozen=True, slots=True)
class Deflate:
    """permessage-deflate is on. Window sizes do not matter for reading: the largest window reads them all."""

    client_takeover: bool
    server_takeover: bool


_NAME = "permessage-deflate"
_BITS = frozenset(str(bits) for bits in range(8, 16))
_NOTHING = frozenset({""})
# RFC 7692 §7.1: the parameters an answer may have, with their values.
_PARAMETERS = {
    "client_no_context_takeover": _NOTHING,
    "server_no_context_takeover": _NOTHING,
    "client_max_window_bits": _BITS,
    "server_max_window_bits": _BITS,
}


def negotiated(request_extensions: str, response_extensions: str) -> Deflate | None:
    """What the values of Sec-WebSocket-Extensions in both heads agree on; None for no compression or a bad answer."""
    offered = any(name == _NAME for name, _ in _extensions(request_extensions))
    answers = [parameters for name, parameters in _extensions(response_extensions) if name == _NAME]
    if not offered or len(answers) != 1:
        return None
    named = dict(answers[0])
    if len(named) != len(answers[0]) or any(value not in _PARAMETERS.get(name, ()) for name, value in named.items()):
        return None
    return Deflate("client_no_context_takeover" not in named, "server_no_context_takeover" not in named)


def _extensions(value: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for extension in value.split(","):
        name, *parameters = extension.split(";")
        pairs = (parameter.partition("=") for parameter in parameters)
        yield name.strip().lower(), [(left.strip().lower(), right.strip().strip('"')) for left, _, right in pairs]


# --- frames


class _Garbage(Exception):
    """Not WebSocket traffic as the two heads agreed on it."""


class _Unfinished:
    """A message whose last frame has not ended."""

    __slots__ = ("compressed", "kept", "opcode", "size")

    def __init__(self, opcode: int, compressed: bool) -> None:
        self.opcode = opcode
        self.compressed = compressed
        self.kept = bytearray()
        self.size = 0

    def add(self, data: bytes, limit: int) -> None:
        self.kept += data[: limit - len(self.kept)]
        self.size += len(data)

    def message(self, at: int, *, whole: bool = True) -> Message:
        return Message(at, self.opcode, bytes(self.kept), not whole or self.size > len(self.kept), self.size)


class _Frame:
    """The frame being read."""

    __slots__ = ("final", "left", "mask", "message", "offset")

    def __init__(self, final: bool, left: int, mask: bytes, message: _Unfinished) -> None:
        self.final = final
        self.left = left
        self.mask = mask
        self.message = message
        self.offset = 0


class Parser:
    """One direction. `masked`: from the client, whose frames are (RFC 6455 §5.1). Never raises.

    `broken` says why reading has ended, "" while it goes on: what comes later is ignored.
    """

    def __init__(self, masked: bool, deflate: Deflate | None, limit: int = MESSAGE_LIMIT) -> None:
        self.broken = ""
        self._masked = masked
        self._compression = deflate is not None
        self._takeover = deflate is not None and (deflate.client_takeover if masked else deflate.server_takeover)
        self._limit = limit
        self._inflatable = INFLATED_LIMIT
        self._messages = MAX_MESSAGES
        self._head = b""
        self._frame: _Frame | None = None
        self._message: _Unfinished | None = None  # data, perhaps interrupted by control frames
        self._inflate: Inflate | None = None
        self._streams = 0  # ended by a final block
        self._closed = False

    def feed(self, data: bytes, at: int) -> list[Message]:
        """The messages that `data`, which came at time `at`, completes."""
        messages: list[Message] = []
        if self.broken:
            return messages
        try:
            self._read(data, at, messages)
        except _Garbage as exc:
            self.broken = str(exc)
        except zlib.error as exc:
            self.broken = f"undecodable message: {exc}"
        return messages

    def unfinished(self, at: int) -> Message | None:
        """What there is of a message whose end never came, marked as truncated."""
        return None if self._message is None else self._message.message(at, whole=False)

    def _read(self, data: bytes, at: int, messages: list[Message]) -> None:
        position = 0
        while True:
            if self._frame is None:
                position = self._read_head(data, position)
            frame = self._frame
            if frame is None:
                return
            piece = data[position : position + min(frame.left, SLICE)]
            position += len(piece)
            self._read_payload(frame, piece)
            if frame.left:
                if position == len(data):
                    return
                continue
            self._frame = None
            if frame.final:
                messages.append(self._complete(frame.message, at))

    def _read_head(self, data: bytes, position: int) -> int:
        """Take what the frame's head still needs. Returns the position behind it; the frame is set once it is whole."""
        while position < len(data):
            needed = self._head_size() - len(self._head)
            self._head += data[position : position + needed]
            position = min(position + needed, len(data))
            if len(self._head) >= 2 and len(self._head) == self._head_size():
                self._frame = self._begin(self._head)
                self._head = b""
                break
        return position

    def _head_size(self) -> int:
        if len(self._head) < 2:
            return 2
        return 2 + _EXTENDED.get(self._head[1] & 0x7F, 0) + (4 if self._head[1] & _MASK else 0)

    def _begin(self, head: bytes) -> _Frame:
        first, second = head[0], head[1]
        opcode, final, masked = first & 0x0F, bool(first & _FIN), bool(second & _MASK)
        mask = head[-4:] if masked else b""
        length = int.from_bytes(head[2 : len(head) - len(mask)], "big") if second & 0x7F > 125 else second & 0x7F
        if self._closed:
            raise _Garbage("bytes after the close frame")
        if opcode not in _OPCODES:
            raise _Garbage(f"unknown opcode {opcode}")
        if masked is not self._masked:
            raise _Garbage("masked frame from the server" if masked else "unmasked frame from the client")
        if length >> 63:
            raise _Garbage("frame length beyond 63 bits")
        compressed = bool(first & _RSV1)
        may_compress = self._compression and opcode in (TEXT, BINARY)
        if first & _RSV23 or (compressed and not may_compress):
            raise _Garbage("reserved bits set")
        if opcode in _CONTROL:
            if not final or length > 125:
                raise _Garbage("control frame fragmented or longer than 125 bytes")
            return _Frame(final, length, mask, _Unfinished(opcode, False))
        if (opcode == CONTINUATION) is (self._message is None):
            raise _Garbage("continuation of nothing" if self._message is None else "message begun inside another")
        self._message = self._message or _Unfinished(opcode, compressed)
        return _Frame(final, length, mask, self._message)

    def _read_payload(self, frame: _Frame, piece: bytes) -> None:
        if frame.mask:
            piece = _unmasked(piece, frame.mask, frame.offset)
        frame.offset += len(piece)
        frame.left -= len(piece)
        self._add(frame.message, piece)

    def _add(self, message: _Unfinished, data: bytes) -> None:
        if not message.compressed:
            message.add(data, self._limit)
            return
        while data:
            inflate = self._inflate = self._inflate or Inflate(-zlib.MAX_WBITS)
            for piece in inflate.pieces(data):
                message.add(piece, self._limit)
                self._inflatable -= len(piece)
                if self._inflatable < 0:
                    raise _Garbage(f"messages inflate to more than {INFLATED_LIMIT} bytes")
            data = b""
            if inflate.ended:  # RFC 7692 §7.2.3.4: a final block may end in the middle of a message
                self._inflate, data = None, inflate.unused
                self._streams += 1
                if self._streams > MAX_MEMBERS:
                    raise _Garbage(f"more than {MAX_MEMBERS} final blocks")

    def _complete(self, message: _Unfinished, at: int) -> Message:
        if message is self._message:
            if message.compressed:
                self._add(message, _FLUSHED)
                if not self._takeover:
                    self._inflate = None
            self._message = None
        self._closed = message.opcode == CLOSE
        self._messages -= 1
        if self._messages < 0:
            raise _Garbage(f"more than {MAX_MESSAGES} messages")
        return message.message(at)


def _unmasked(data: bytes, mask: bytes, offset: int) -> bytes:
    """XOR with the mask, which repeats from the frame's first byte on; as one long number, for speed."""
    size = len(data)
    turn = offset % 4
    key = ((mask[turn:] + mask[:turn]) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
