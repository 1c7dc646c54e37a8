"""Content codings of recorded bodies (RFC 9110 §8.4.1) undone: gzip, deflate, br, zstd, and lists of two of them.

Incremental, and bounded whatever the body claims: output, the output of each layer, zstd's window and the number of
members have limits. For the record only: carried bytes are never decoded. Leaves out transfer codings (`framing`).
`brotli` and `zstd` are imported when first met.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Protocol

LIMIT = 64 * 1024 * 1024  # bytes of output
MAX_LAYERS = 2
MAX_MEMBERS = 1000  # of a gzip file or zstd frames: empty ones cost time and yield nothing
ZSTD_WINDOW_LOG = 23  # RFC 9659 §3: 8 MiB is the largest window of the content coding

SLICE = 64 * 1024  # input given to a codec at once: what it hands back unread is copied
_PIECE = 1024 * 1024  # output asked of a codec at once


class CodingError(Exception):
    """The body is not what its Content-Encoding says, or of a coding not known here. The raw bytes are untouched."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Codec(Protocol):
    """One stream of one coding. `pieces` yields bounded output; input behind the stream's end is left in `unused`."""

    ended: bool
    unused: bytes

    def pieces(self, data: bytes) -> Iterator[bytes]: ...


class Inflate:
    """gzip member, zlib stream or bare deflate stream, as `wbits` says. Feed slices: what is left over is copied."""

    def __init__(self, wbits: int) -> None:
        self._stream = zlib.decompressobj(wbits)
        self.ended = False
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        stream = self._stream
        while not stream.eof:
            piece = stream.decompress(data, _PIECE)
            yield piece
            data = stream.unconsumed_tail
            # zlib can hold the end of a long match back when a piece is full.
            if not data and len(piece) < _PIECE:
                break
        self.ended, self.unused = stream.eof, stream.unused_data


class _Deflate:
    """RFC 9110 §8.4.1.2 says zlib, some servers send the bare deflate stream. The first two bytes tell."""

    def __init__(self) -> None:
        self._start = b""
        self._stream: Inflate | None = None
        self.ended = False
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._stream is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return
            has_header = data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0  # RFC 1950 §2.2
            self._stream = Inflate(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)
        yield from self._stream.pieces(data)
        self.ended, self.unused = self._stream.ended, self._stream.unused


class _Brotli:
    def __init__(self) -> None:
        self._stream = _module("brotli").Decompressor()
        self.ended = False
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        stream = self._stream
        while True:
            yield stream.process(data, output_buffer_limit=_PIECE)
            data = b""
            if stream.is_finished() or stream.can_accept_more_data():
                break
        self.ended = stream.is_finished()


class _Zstd:
    def __init__(self) -> None:
        zstd = _module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
        self._stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})
        self.ended = False
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        stream = self._stream
        while not stream.eof:
            yield stream.decompress(data, _PIECE)
            data = b""
            if stream.needs_input:
                break
        self.ended, self.unused = stream.eof, stream.unused_data


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as exc:
        raise CodingError(f"no decoder installed: {name}") from exc


class _Identity:
    """No coding: every slice is a stream of its own."""

    def __init__(self) -> None:
        self.ended = True
        self.unused = b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data


# Name -> how a stream begins, how many may follow each other, what may lie behind the last one.
_CODINGS: dict[str, tuple[Callable[[], _Codec], int, bytes]] = {
    "gzip": (lambda: Inflate(16 + zlib.MAX_WBITS), MAX_MEMBERS, b"\0"),
    "x-gzip": (lambda: Inflate(16 + zlib.MAX_WBITS), MAX_MEMBERS, b"\0"),
    "deflate": (_Deflate, 1, b""),
    "br": (_Brotli, 1, b""),
    "zstd": (_Zstd, MAX_MEMBERS, b""),
    "identity": (_Identity, sys.maxsize, b""),
}


class _Full(Exception):
    """A layer has reached its limit."""


class _Layer:
    """One coding of the list: its streams counted, its output limited."""

    def __init__(self, name: str, limit: int) -> None:
        self._new, self._most, self._padding = _CODINGS[name]
        self._name = name
        self._room = limit
        self._begun = 0
        self._codec: _Codec | None = None

    def feed(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            for start in range(0, len(block), SLICE):
                yield from self._slice(block[start : start + SLICE])

    def _slice(self, rest: bytes) -> Iterator[bytes]:
        while rest:
            if self._codec is None:
                if self._begun and not rest.strip(self._padding):
                    return
                self._codec = self._next()
            codec = self._codec
            for piece in codec.pieces(rest):
                yield piece[: self._room]
                self._room -= len(piece)
                if self._room < 0:
                    raise _Full
            rest = b""
            if codec.ended:
                self._codec, rest = None, codec.unused

    def _next(self) -> _Codec:
        if self._begun == self._most:
            raise CodingError(f"{self._name}: more than {self._most} streams in one body")
        self._begun += 1
        return self._new()

    @property
    def unfinished(self) -> bool:
        return self._codec is not None


class Decoder:
    """Decodes one body. After an error it is of no further use.

    `limit` bounds the output in bytes, and about that of each layer: beyond it decoding stops and `truncated` is true.
    Raises CodingError at once for a coding that is not known or for more than two of them.
    """

    def __init__(self, content_encoding: str, limit: int = LIMIT) -> None:
        names = [name.strip(" \t").lower() for name in content_encoding.split(",")]
        names = [name for name in names if name not in ("", "identity")] or ["identity"]
        if len(names) > MAX_LAYERS:
            raise CodingError(f"more than {MAX_LAYERS} content codings")
        for name in names:
            if name not in _CODINGS:
                raise CodingError(f"unknown content coding {name[:40]!r}")
        self.truncated = False
        # The last one named was applied last. What hardly shrinks is a little larger between two layers.
        *between, last = reversed(names)
        self._layers = [*(_Layer(name, limit + _PIECE) for name in between), _Layer(last, limit)]

    def feed(self, data: bytes) -> bytes:
        """What `data` adds to the decoded body. Raises CodingError."""
        if self.truncated:
            return b""
        flow: Iterable[bytes] = (data,)
        for layer in self._layers:
            flow = layer.feed(flow)
        decoded = []
        try:
            for piece in flow:
                decoded.append(piece)
        except _Full:
            self.truncated = True
        except CodingError:
            raise
        except Exception as exc:  # each decoder library has an error class of its own
            raise CodingError(f"undecodable body: {exc}") from exc
        return b"".join(decoded)

    def finish(self) -> bytes:
        """The body is over: nothing more comes out. Raises CodingError where it ended inside a stream."""
        if not self.truncated and any(layer.unfinished for layer in self._layers):
            raise CodingError("body ends early")
        return b""
