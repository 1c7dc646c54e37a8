"""Where a message body ends (RFC 9112 §6 and §7): framers that are fed wire bytes and say how far the message goes.

Every framer returns the exact end offset, so that what lies behind it is never forwarded as part of the message.
Bytes are not translated: a body is forwarded as it came; `sink` collects the payload for those who need it.
Leaves out content codings (`codings`).
"""

from __future__ import annotations

import re
from typing import Protocol

from llm_proxy.wire.head import RequestHead, ResponseHead

MAX_CHUNK_LINE = 4096  # bytes of one chunk-size line with its extensions
MAX_TRAILERS = 16_384  # bytes of the whole trailer section
# Chunks looked at in one call: some 0.8 µs each, so that 64 kB of one-byte chunks cannot hold up everybody else.
CHUNKS_PER_FEED = 2000

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*\r\n")
_SIZE, _CHUNK_END, _TRAILERS = range(3)  # which line a chunked body is at
# RFC 9110 §6.5.1: fields that frame or route a message mean nothing in a trailer section.
_NOT_IN_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host", b"connection", b"trailer", b"te"})


class BadFraming(Exception):
    """A body that does not follow its own framing; the connection it came on cannot be trusted any more."""


class Framing(Protocol):
    """What every framer offers.

    `done`: the message is complete; `length`: the payload's size where it is known beforehand; `payload`: bytes of
    payload taken so far (chunk framing is none).
    """

    done: bool
    trailers: bytes

    @property
    def length(self) -> int | None: ...

    @property
    def payload(self) -> int: ...

    def feed(self, data: bytes, start: int = 0, sink: list[bytes] | None = None) -> int:
        """Take `data[start:]`; payload slices go to `sink`. Returns the offset behind the last byte that was taken.

        It is less than `len(data)` when the message is done, or when the call's budget of chunks is used up: then
        call again with the rest. Raises BadFraming.
        """

    def ends_by_close(self) -> bool:
        """Whether the sender's close is this body's proper end."""


class NoBody:
    """HEAD, 204, 304, a request without length: nothing follows the head."""

    done = True
    trailers = b""
    length = payload = 0

    def feed(self, data: bytes, start: int = 0, sink: list[bytes] | None = None) -> int:
        return start

    def ends_by_close(self) -> bool:
        return True


NO_BODY = NoBody()


class ByLength:
    """Content-Length bytes."""

    __slots__ = ("done", "left", "length")
    trailers = b""

    def __init__(self, length: int) -> None:
        self.length = self.left = length
        self.done = not length

    @property
    def payload(self) -> int:
        return self.length - self.left

    def feed(self, data: bytes, start: int = 0, sink: list[bytes] | None = None) -> int:
        here = len(data) - start
        if here >= self.left:
            end = start + self.left
            self.left = 0
            self.done = True
        else:
            end = len(data)
            self.left -= here
        if sink is not None and end > start:
            sink.append(data[start:end])
        return end

    def ends_by_close(self) -> bool:
        return self.done


class UntilClose:
    """A response without length: it lasts until the connection ends."""

    __slots__ = ("payload",)
    done = False
    length = None
    trailers = b""

    def __init__(self) -> None:
        self.payload = 0

    def feed(self, data: bytes, start: int = 0, sink: list[bytes] | None = None) -> int:
        self.payload += len(data) - start
        if sink is not None and len(data) > start:
            sink.append(data[start:])
        return len(data)

    def ends_by_close(self) -> bool:
        return True


class Chunked:
    """The chunked transfer coding (RFC 9112 §7.1). Extensions and trailers are passed over, not understood."""

    __slots__ = ("_left", "_line", "_step", "done", "payload", "trailers")
    length = None

    def __init__(self) -> None:
        self.done = False
        self.payload = 0
        self.trailers = b""
        self._left = 0  # bytes of the current chunk still to come
        self._line = b""  # a line not yet complete
        self._step = _SIZE

    def feed(self, data: bytes, start: int = 0, sink: list[bytes] | None = None) -> int:
        position, size = start, len(data)
        budget = CHUNKS_PER_FEED
        while position < size:
            if self._left:
                end = min(position + self._left, size)
                if sink is not None:
                    sink.append(data[position:end])
                self._left -= end - position
                self.payload += end - position
                position = end
            elif self._step == _SIZE:
                budget -= 1
                if budget < 0:
                    break
                position = self._size_line(data, position)
            elif self._step == _CHUNK_END:
                position = self._chunk_end(data, position)
            else:
                position = self._trailer_line(data, position)
                if self.done:
                    break
        return position

    def ends_by_close(self) -> bool:
        return self.done

    def _take_line(self, data: bytes, position: int, most: int) -> int:
        """Move up to the next line end into `_line`; the line is complete when it ends with LF."""
        newline = data.find(b"\n", position)
        end = len(data) if newline < 0 else newline + 1
        self._line += data[position:end]
        if len(self._line) > most:
            raise BadFraming(f"line of more than {most} bytes in a chunked body")
        return end

    def _size_line(self, data: bytes, position: int) -> int:
        match = None if self._line else _CHUNK_LINE.match(data, position)
        if match is None:
            end = self._take_line(data, position, MAX_CHUNK_LINE)
            if not self._line.endswith(b"\n"):
                return end
            match = _CHUNK_LINE.fullmatch(self._line)
            if match is None:
                raise BadFraming("malformed chunk-size line")
            self._line = b""
        else:
            end = match.end()
            if end - position > MAX_CHUNK_LINE:
                raise BadFraming(f"line of more than {MAX_CHUNK_LINE} bytes in a chunked body")
        self._left = int(match[1], 16)
        self._step = _CHUNK_END if self._left else _TRAILERS
        return end

    def _chunk_end(self, data: bytes, position: int) -> int:
        end = min(position + 2 - len(self._line), len(data))
        self._line += data[position:end]
        if self._line == b"\r\n":
            self._line = b""
            self._step = _SIZE
        elif self._line != b"\r":
            raise BadFraming("chunk data longer than its size")
        return end

    def _trailer_line(self, data: bytes, position: int) -> int:
        end = self._take_line(data, position, MAX_TRAILERS - len(self.trailers))
        line = self._line
        if not line.endswith(b"\n"):
            return end
        self._line = b""
        if line == b"\r\n":
            self.done = True
            return end
        match = _TRAILER_LINE.fullmatch(line)
        if match is None or match[1].lower() in _NOT_IN_TRAILERS:
            raise BadFraming("malformed or forbidden trailer field")
        self.trailers += line
        return end


def request_framing(chunked: bool, length: int | None) -> Framing:
    """RFC 9112 §6.3 as far as it concerns requests; the head has refused the ambiguous ones already."""
    if chunked:
        return Chunked()
    return ByLength(length) if length else NO_BODY


def for_request(head: RequestHead) -> Framing:
    return request_framing(head.chunked, head.length)


def for_response(head: ResponseHead, method: bytes) -> Framing:
    """RFC 9112 §6.3, by number."""
    status = head.status
    if method == b"HEAD" or status in (204, 304) or status < 200:  # 1
        return NO_BODY
    if head.chunked:  # 4
        return Chunked()
    if head.length is not None:  # 6
        return ByLength(head.length) if head.length else NO_BODY
    return UntilClose()  # 8
