"""Amazon's event stream framing (`application/vnd.amazon.eventstream`): frames with typed headers, both CRCs checked.

Incremental and bounded. Leaves out what an event says (`dialects`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from zlib import crc32

MEDIA_TYPE = "application/vnd.amazon.eventstream"

# What Amazon's own SDKs accept.
HEADERS_LIMIT = 128 * 1024
PAYLOAD_LIMIT = 24 * 1024 * 1024

_PRELUDE = struct.Struct(">II")  # length of the frame, length of its headers; a CRC of both follows
_CRC = struct.Struct(">I")
_OVERHEAD = _PRELUDE.size + 2 * _CRC.size

Value = bool | int | bytes | str

# Type of a header's value -> how it is packed. Types 0 and 1 are true and false, 6 and 7 have a length, 9 is a UUID.
_NUMBERS = {2: struct.Struct(">b"), 3: struct.Struct(">h"), 4: struct.Struct(">i"), 5: struct.Struct(">q")}
_NUMBERS[8] = _NUMBERS[5]  # milliseconds since 1970
_LENGTH = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. A UUID is 16 bytes, a timestamp milliseconds since 1970. `raw` is the frame as it came."""

    headers: dict[str, Value]
    payload: bytes
    raw: bytes = field(default=b"", compare=False, repr=False)

    def text(self, name: str) -> str:
        """A header's value where it is a string."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Damaged:
    """Bytes that are no readable frame, and why not."""

    raw: bytes
    why: str


class FrameError(Exception):
    """A frame is not what the format says."""


class FrameDecoder:
    """Frames of one stream, in order, and the bytes between them that are none.

    A frame whose checksum or headers are wrong is `Damaged`, and the next one is read. Where its lengths are wrong
    nobody can tell where the next one begins: all that comes then is `Damaged`, at once, and `broken` says why. `bad`
    counts the frames that could not be read; `pending` is how many bytes wait for more.
    """

    __slots__ = ("_data", "bad", "broken")

    def __init__(self) -> None:
        self._data = bytearray()
        self.bad = 0
        self.broken = ""

    @property
    def pending(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> list[Frame | Damaged]:
        """What `data` completes."""
        if self.broken:
            return [Damaged(data, self.broken)] if data else []
        self._data += data
        found: list[Frame | Damaged] = []
        start = 0
        try:
            while end := _end(self._data, start):
                found.append(self._read(bytes(self._data[start:end])))
                start = end
        except FrameError as error:
            self.bad += 1
            self.broken = str(error)
            found.append(Damaged(bytes(self._data[start:]), self.broken))
            start = len(self._data)
        del self._data[:start]
        return found

    def finish(self) -> list[Damaged]:
        """The stream is over: what has begun and not ended."""
        rest = bytes(self._data)
        self._data.clear()
        return [Damaged(rest, "the stream ends within a frame")] if rest else []

    def _read(self, data: bytes) -> Frame | Damaged:
        try:
            return _frame(data)
        except FrameError as error:
            self.bad += 1
            return Damaged(data, str(error))


def begins(data: bytes) -> bool:
    """Whether `data` starts with the prelude of a frame."""
    try:
        return len(data) >= _OVERHEAD - _CRC.size and _lengths(data, 0) is not None
    except FrameError:
        return False


def cut(data: bytes) -> tuple[list[bytes], bytes]:
    """The frames of a stream as they are, and what is behind them: an unfinished one, or none."""
    frames: list[bytes] = []
    stream, start = bytearray(data), 0
    try:
        while end := _end(stream, start):
            frames.append(data[start:end])
            start = end
    except FrameError:
        pass
    return frames, data[start:]


def payload(frame: bytes) -> bytes:
    """Of a whole frame."""
    return frame[_payload_at(frame) : -_CRC.size]


def with_payload(frame: bytes, payload: bytes) -> bytes:
    """The frame with another payload, and the lengths and checksums that this makes."""
    headers = frame[_PRELUDE.size + _CRC.size : _payload_at(frame)]
    prelude = _PRELUDE.pack(_OVERHEAD + len(headers) + len(payload), len(headers))
    whole = prelude + _CRC.pack(crc32(prelude)) + headers + payload
    return whole + _CRC.pack(crc32(whole))


def _payload_at(frame: bytes) -> int:
    return int(_PRELUDE.size + _CRC.size + _PRELUDE.unpack_from(frame)[1])


def _lengths(data: bytes | bytearray, start: int) -> tuple[int, int]:
    """Of a whole prelude: length of the frame and of its headers. Raises FrameError."""
    total, headers = _PRELUDE.unpack_from(data, start)
    middle = start + _PRELUDE.size
    if crc32(data[start:middle]) != _CRC.unpack_from(data, middle)[0]:
        raise FrameError("the checksum of a frame's lengths is wrong")
    if headers > HEADERS_LIMIT or not 0 <= total - headers - _OVERHEAD <= PAYLOAD_LIMIT:
        raise FrameError(f"a frame of {total} bytes with {headers} bytes of headers")
    return total, headers


def _end(data: bytearray, start: int) -> int:
    """Where the frame at `start` ends, 0 while it is not whole. Raises FrameError."""
    if len(data) - start < _OVERHEAD - _CRC.size:
        return 0
    total, _ = _lengths(data, start)
    return start + total if len(data) - start >= total else 0


def _frame(data: bytes) -> Frame:
    body = len(data) - _CRC.size
    if crc32(data[:body]) != _CRC.unpack_from(data, body)[0]:
        raise FrameError("the checksum of a frame is wrong")
    _, length = _PRELUDE.unpack_from(data)
    start = _PRELUDE.size + _CRC.size
    try:
        headers = _headers(data[start : start + length])
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise FrameError(f"unreadable headers: {error}") from error
    return Frame(headers, data[start + length : body], data)


def _headers(data: bytes) -> dict[str, Value]:
    headers: dict[str, Value] = {}
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        name, kind = data[at + 1 : end].decode(), data[end]
        headers[name], at = _value(data, end + 1, kind)
    return headers


def _value(data: bytes, at: int, kind: int) -> tuple[Value, int]:
    """A header's value and where it ends."""
    if kind in (0, 1):
        return kind == 0, at
    if kind in _NUMBERS:
        number = _NUMBERS[kind]
        return number.unpack_from(data, at)[0], at + number.size
    if kind == 9:
        return _cut(data, at, 16), at + 16
    if kind not in (6, 7):
        raise FrameError(f"a header of type {kind}")
    (length,) = _LENGTH.unpack_from(data, at)
    at += _LENGTH.size
    raw = _cut(data, at, length)
    return (raw.decode() if kind == 7 else raw), at + length


def _cut(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise IndexError("a value goes beyond the headers")
    return data[at : at + length]
