"""The journal's vocabulary: what one frame holds and how it lies in bytes.

A frame is a 24-byte header and a payload. The ring and the segments hold the same bytes, so draining one into the
other copies and never translates. Pure: no files, no clock. Leaves out where frames are kept (`ring`, `segments`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from uuid import UUID

HEADER = struct.Struct("<IBBHQq")  # payload length, kind, flags, client port, exchange serial, monotonic ns
HEADER_SIZE = HEADER.size

_OPEN = struct.Struct("<16sqH")  # exchange id, wall clock ns since 1970, length of the route facts
_END = struct.Struct("<BBHqqqqH")  # ending, wire notes, status answered by us, four counters, length of the error
_OPEN_FRAME = struct.Struct(HEADER.format + _OPEN.format[1:])
_ROUTE = struct.Struct("<H")  # length of the route facts
_DIGESTS = struct.Struct("<BB")  # lengths of the two SHA-256 digests (0 or 32) that follow the error
_CONNECTED = struct.Struct("<q")  # behind the digests, where there is one


class Kind:
    """What a frame describes. Values are on disk: never renumber.

    Plain integers here and below: these are touched for every piece, and an enum's operators are not free.
    """

    PAD: Final = 0  # the rest of the ring up to its end; skipped
    OPEN: Final = 1  # an exchange begins: ids, route, masked request head
    REQUEST: Final = 2  # request body as it crossed the wire (chunk framing included); after a 101, client to upstream
    INTERIM: Final = 3  # a 1xx head, masked
    HEAD: Final = 4  # the final response head (or 101), masked
    RESPONSE: Final = 5  # response body as it crossed the wire; after a 101, upstream to client
    END: Final = 6  # the exchange is over
    GAP: Final = 7  # frames of whole exchanges were lost: the disk was stalled or full
    ROUTE: Final = 8  # where the exchange goes after all, told by its request's body; the request is complete with it


class Flag:
    """Bits of a frame header's flags."""

    NONE: Final = 0
    LAST: Final = 1  # OPEN, HEAD: no body follows; REQUEST, RESPONSE: this piece ends the body
    LOSSY: Final = 2  # END: some body frames of this exchange were dropped (disk stalled or full)
    OVER_LIMIT: Final = 4  # END: a body went beyond the recording limit and is kept only up to it


class Frame(NamedTuple):
    """One frame as read back.

    `serial` numbers the exchanges of one proxy run; `at` is nanoseconds on that run's monotonic clock;
    `segment` and `offset` say where the payload lies, so that a large body can be fetched later; `port` is the client's
    TCP port, of an OPEN whose client is on this machine, else 0.
    """

    kind: int
    flags: int
    serial: int
    at: int
    payload: bytes
    segment: int
    offset: int
    port: int = 0


@dataclass(frozen=True, slots=True)
class Opening:
    """Payload of OPEN.

    `route` is (provider, scheme, authority, why); `head` the masked request head, its target as sent upstream, or
    where the request is signed as the client sent it.
    """

    exchange_id: UUID
    wall_ns: int
    route: tuple[str, str, str, str]
    head: bytes


class Closing(NamedTuple):
    """Payload of END.

    `ending` is the value of `records.exchange.Ending`; `answered` the status this proxy answered itself (0: none);
    sizes are payload bytes (chunk framing taken off), counted even where nothing was kept; digests are SHA-256 of the
    whole payload where the body went beyond the recording limit, else empty; `wall_ns` is the wall clock at the end;
    `connected_at` is when a connection made for this exchange was ready, on the run's monotonic clock (0: none was).
    """

    ending: int
    notes: int
    answered: int
    request_size: int
    response_size: int
    wall_ns: int
    first_byte_at: int
    error: str
    request_sha256: bytes = b""
    response_sha256: bytes = b""
    connected_at: int = 0


class Note:
    """How the wire behaved: bits of `Closing.notes`."""

    NONE: Final = 0
    ENDED_BY_CLOSE: Final = 1  # the response had no length: its end is the upstream's close, not proven complete
    EXTRA_BYTES: Final = 2  # the upstream sent bytes after the end of its response; not forwarded
    RETRIED: Final = 4  # a reused connection had died; sent once more on a fresh one
    REUSED: Final = 8  # carried over a pooled connection
    WEBSOCKET: Final = 16  # the connection was upgraded
    EARLY: Final = 32  # the response came before the request was complete


def route_facts(provider: str, scheme: str, authority: str, why: str) -> bytes:
    """The route's part of OPEN, to be made once per route."""
    return "\0".join((provider, scheme, authority, why)).encode()


def pack_open(exchange_id: bytes, wall_ns: int, facts: bytes, head: bytes) -> bytes:
    """Payload of OPEN; `facts` come from `route_facts`."""
    return _OPEN.pack(exchange_id, wall_ns, len(facts)) + facts + head


def open_frame(
    flags: int, port: int, serial: int, at: int, exchange_id: bytes, wall_ns: int, facts: int, rest: bytes
) -> bytes:
    """A whole OPEN frame; `rest` is the route's facts, `facts` bytes long, and the masked head behind them."""
    length = _OPEN.size + len(rest)
    return _OPEN_FRAME.pack(length, Kind.OPEN, flags, port, serial, at, exchange_id, wall_ns, facts) + rest


def unpack_open(payload: bytes) -> Opening:
    raw_id, wall_ns, length = _OPEN.unpack_from(payload)
    start = _OPEN.size
    provider, scheme, authority, why = payload[start : start + length].decode().split("\0")
    return Opening(UUID(bytes=raw_id), wall_ns, (provider, scheme, authority, why), payload[start + length :])


def pack_route(facts: bytes, head: bytes) -> bytes:
    """Payload of ROUTE; both take the place of those in OPEN."""
    return _ROUTE.pack(len(facts)) + facts + head


def rerouted(opening: Opening, payload: bytes) -> Opening:
    """What OPEN would have been, had the ROUTE been known."""
    (length,) = _ROUTE.unpack_from(payload)
    start = _ROUTE.size
    provider, scheme, authority, why = payload[start : start + length].decode().split("\0")
    return replace(opening, route=(provider, scheme, authority, why), head=payload[start + length :])


def pack_end(closing: Closing) -> bytes:
    """Payload of END; an error text beyond 4,096 bytes is cut."""
    ending, notes, answered, request_size, response_size, wall_ns, first, text, ours, theirs, connected = closing
    error = text.encode("utf-8", "backslashreplace")[:4096] if text else b""
    fixed = _END.pack(ending, notes, answered, request_size, response_size, wall_ns, first, len(error))
    if not ours and not theirs and not connected:
        return fixed + error
    rest = _DIGESTS.pack(len(ours), len(theirs)) + ours + theirs
    return fixed + error + rest + (_CONNECTED.pack(connected) if connected else b"")


def unpack_end(payload: bytes) -> Closing:
    ending, notes, answered, request_size, response_size, wall_ns, first, length = _END.unpack_from(payload)
    start = _END.size + length
    error = payload[_END.size : start].decode("utf-8", "replace")
    digests, connected = (b"", b""), 0
    if len(payload) > start:
        ours, theirs = _DIGESTS.unpack_from(payload, start)
        start += _DIGESTS.size
        digests = payload[start : start + ours], payload[start + ours : start + ours + theirs]
        start += ours + theirs
        if len(payload) > start:
            (connected,) = _CONNECTED.unpack_from(payload, start)
    return Closing(ending, notes, answered, request_size, response_size, wall_ns, first, error, *digests, connected)


def pack(kind: int, flags: int, serial: int, at: int, payload: bytes) -> bytes:
    """A whole frame as bytes."""
    return HEADER.pack(len(payload), kind, flags, 0, serial, at) + payload


def pack_header(kind: int, flags: int, serial: int, at: int, length: int) -> bytes:
    """A frame's header alone; `length` bytes of payload are to follow it."""
    return HEADER.pack(length, kind, flags, 0, serial, at)


def scan(block: bytes, segment: int = 0, offset: int = 0) -> Iterator[Frame]:
    """The frames of a block of whole frames. `offset` is where the block starts in its segment."""
    position, size = 0, len(block)
    while position + HEADER_SIZE <= size:
        length, kind, flags, port, serial, at = HEADER.unpack_from(block, position)
        start = position + HEADER_SIZE
        position = start + length
        if kind != Kind.PAD:
            yield Frame(kind, flags, serial, at, block[start:position], segment, offset + start, port)
