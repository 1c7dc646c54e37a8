"""How an answer goes out: framed, coded, paced and broken as the request's plan says, as a sequence of steps.

A step is bytes to send, a pause in seconds, or the end of the connection's peace (`End`). Pure; the server plays the
steps. Leaves out WebSocket messages (`websocket`).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import Enum, auto
from http import HTTPStatus
from typing import Protocol

from tests.fakeprovider.answers import Answer, Fields
from tests.fakeprovider.faults import Plan

BLOCK = b"0123456789abcdef" * 4096
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EVIL = b"HTTP/1.1 200 EVIL\r\nContent-Length: 4\r\n\r\nevil"
GARBAGE = b"\x16\x03\x01\x00\xfe this is no HTTP\r\n\r\n\x00\xff"
# Beyond this a coded document is sent in chunks, as it is made.
MAX_WHOLE = 1 << 20
INTERIM_FIELDS = {103: b"Link: </style.css>; rel=preload; as=style\r\n"}


class End(Enum):
    """How a sequence of steps can end, other than with a connection that goes on."""

    CLOSE = auto()  # FIN behind a whole answer
    FIN = auto()  # FIN in the middle
    RESET = auto()
    HANG = auto()  # nothing more, and the connection stays
    LINGER = auto()  # FIN behind a whole answer, nothing more is read, and after a while a reset


Step = bytes | float | End


def steps(answer: Answer, plan: Plan, *, only_head: bool = False, close: bool = False) -> Iterator[Step]:
    """Everything that goes out for one request. With `close` the connection ends behind it."""
    out = _steps(answer, plan, only_head, close)
    return _byte_by_byte(out) if "one-byte" in plan else out


def _steps(answer: Answer, plan: Plan, only_head: bool, close: bool) -> Iterator[Step]:
    if "delay" in plan:
        yield plan["delay"]
    for status in plan.get("interim", ()):
        yield _status_line(status) + INTERIM_FIELDS.get(status, b"") + b"\r\n"
    if plan.get("hang") == "now":
        yield End.HANG
    if plan.get("reset") == "head":
        yield End.RESET
    if "garbage" in plan:
        yield GARBAGE
        yield End.FIN
    answer = _coded(answer, plan)
    if "wrong-length" in plan and answer.length is None:
        pieces = tuple(answer.pieces)
        answer = replace(answer, pieces=pieces, length=sum(map(len, pieces)))
    http10 = "http10" in plan
    until_close = "close" in plan or (http10 and answer.length is None)
    chunked = not until_close and (
        answer.length is None or bool(plan.keys() & {"trailers", "chunk-truncated", "chunks"})
    )
    close = close or until_close or http10 or plan.get("wrong-length", 0) > 0
    no_body = answer.status in (204, 304)
    head = _head(answer, plan, chunked=chunked, until_close=until_close or no_body, close=close)
    if plan.get("hang") == "head":
        yield head
        yield End.HANG
    whole = itertools.chain([head], () if only_head or no_body else _body(answer, plan, chunked))
    yield from _with_extra(whole) if "extra" in plan else whole
    if close or plan.get("die-on-reuse") == "idle":
        yield End.FIN if plan.get("wrong-length", 0) > 0 else End.CLOSE


def _status_line(status: int, version: str = "HTTP/1.1") -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Overloaded" if status == 529 else "Fake"
    return f"{version} {status} {reason}\r\n".encode()


def _head(answer: Answer, plan: Plan, *, chunked: bool, until_close: bool, close: bool) -> bytes:
    fields = list(answer.fields)
    if "type" in plan:
        fields = [(name, plan["type"].encode() if name == b"Content-Type" else value) for name, value in fields]
    if chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif not until_close:
        fields.append((b"Content-Length", b"%d" % max(0, (answer.length or 0) + plan.get("wrong-length", 0))))
    if "trailers" in plan:
        fields.append((b"Trailer", b"X-Fake-Trailer, Server-Timing"))
    if close:
        fields.append((b"Connection", b"close"))
    fields += _more_fields(plan.get("head-fields", 0))
    head = _status_line(answer.status, "HTTP/1.0" if "http10" in plan else "HTTP/1.1")
    head += b"".join(b"%b: %b\r\n" % pair for pair in fields)
    missing = plan.get("head-size", 0) - len(head) - len(b"X-Pad: \r\n\r\n")
    if missing > 0:
        head += b"X-Pad: " + b"p" * missing + b"\r\n"
    return head + b"\r\n"


def _more_fields(count: int) -> Fields:
    return tuple((b"x-SAME" if number % 2 else b"X-Field-%d" % number, b"%d" % number) for number in range(count))


def _body(answer: Answer, plan: Plan, chunked: bool) -> Iterator[Step]:
    if "chunk-truncated" in plan:
        *before, last = answer.pieces
        for piece in before:
            yield from _paced(piece, plan, chunked)
        yield _chunk(last, b"")[: -2 - (len(last) + 1) // 2]
        yield End.FIN
        return
    for step in _broken_off(answer, plan):
        if isinstance(step, End):
            yield step
            return
        yield from _paced(step, plan, chunked)
    if chunked:
        trailers = b"X-Fake-Trailer: t1\r\nServer-Timing: total;dur=1\r\n" if "trailers" in plan else b""
        yield b"0\r\n" + trailers + b"\r\n"


def _paced(piece: bytes, plan: Plan, chunked: bool) -> Iterator[Step]:
    if "slow" in plan:
        yield plan["slow"]
    yield _chunk(piece, b';n="1;2"' if "chunks" in plan else b"") if chunked else piece


def _chunk(piece: bytes, extension: bytes) -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)


def _broken_off(answer: Answer, plan: Plan) -> Iterator[bytes | End]:
    """The body's pieces up to where the plan breaks it off, then how."""
    for name, end in (("cut", End.FIN), ("reset", End.RESET)):
        if name in plan:
            amount, unit = plan[name]
            in_bytes = unit == "bytes" or answer.length is not None
            yield from _first_bytes(answer.pieces, amount) if in_bytes else _first_pieces(answer.pieces, amount)
            yield end
            return
    yield from filter(None, answer.pieces)


def _first_bytes(pieces: Iterable[bytes], amount: int) -> Iterator[bytes]:
    for piece in pieces:
        if amount <= 0:
            return
        yield piece[:amount]
        amount -= len(piece)


def _first_pieces(pieces: Iterable[bytes], amount: int) -> Iterator[bytes]:
    for piece, _ in zip(pieces, range(amount), strict=False):
        yield piece


def _with_extra(whole: Iterator[Step]) -> Iterator[Step]:
    """Another response in one piece with the end of this one, so that both are likely to be read at once."""
    last = next(whole)
    for step in whole:
        yield last
        last = step
    yield last + EVIL if isinstance(last, bytes) else last


def _byte_by_byte(out: Iterator[Step]) -> Iterator[Step]:
    for step in out:
        if not isinstance(step, bytes):
            yield step
            continue
        for at in range(len(step)):
            yield step[at : at + 1]
            yield 0.0


class Coder(Protocol):
    """A compressor of `zlib`, `brotli` or `zstd` behind one face."""

    def piece(self, data: bytes) -> bytes:
        """`data` coded so that it can be decoded at once."""

    def end(self) -> bytes: ...


class _Zlib:
    def __init__(self, window: int) -> None:
        self._coder = zlib.compressobj(wbits=window)

    def piece(self, data: bytes) -> bytes:
        return self._coder.compress(data) + self._coder.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._coder.flush()


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._coder = brotli.Compressor(quality=5)

    def piece(self, data: bytes) -> bytes:
        return bytes(self._coder.process(data) + self._coder.flush())

    def end(self) -> bytes:
        return bytes(self._coder.finish())


class _Zstd:
    def __init__(self) -> None:
        from backports import zstd

        self._coder = zstd.ZstdCompressor()

    def piece(self, data: bytes) -> bytes:
        return bytes(self._coder.compress(data, self._coder.FLUSH_BLOCK))

    def end(self) -> bytes:
        return bytes(self._coder.flush())


class _Damaged(_Zlib):
    """Gzip of which every decoder knows that it is broken: a block of the reserved type (RFC 1951 3.2.3) amid each piece."""

    def piece(self, data: bytes) -> bytes:
        half = len(data) // 2
        return super().piece(data[:half]) + b"\x07" + super().piece(data[half:])


CODERS: dict[str, tuple[bytes, Callable[[], Coder]]] = {
    "gzip": (b"gzip", lambda: _Zlib(31)),
    "deflate": (b"deflate", lambda: _Zlib(15)),
    "br": (b"br", _Brotli),
    "zstd": (b"zstd", _Zstd),
    "bad-gzip": (b"gzip", lambda: _Damaged(31)),
}


def _coded(answer: Answer, plan: Plan) -> Answer:
    name = next((name for name in CODERS if name in plan), None)
    if name is None:
        return answer
    coding, make = CODERS[name]
    coder = make()

    def pieces() -> Iterator[bytes]:
        for piece in answer.pieces:
            yield coder.piece(piece)
        yield coder.end()

    fields = (*answer.fields, (b"Content-Encoding", coding))
    if answer.length is None or answer.length > MAX_WHOLE:
        return Answer(answer.status, fields, pieces(), None)
    whole = b"".join(pieces())
    return Answer(answer.status, fields, (whole,), len(whole))
