"""Amazon's event streams: frames as they were sent however they come, damage found, memory bounded."""

from __future__ import annotations

import struct
import tracemalloc
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.wire.eventstream import HEADERS_LIMIT, PAYLOAD_LIMIT, Frame, FrameDecoder, begins
from tests.goldens import golden
from tests.make_golden import frame


def sealed(headers: bytes, payload: bytes) -> bytes:
    """A frame with good checksums, whatever its headers are."""
    prelude = struct.pack(">II", len(headers) + len(payload) + 16, len(headers))
    body = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return body + struct.pack(">I", crc32(body))


def prelude(total: int, headers: int) -> bytes:
    lengths = struct.pack(">II", total, headers)
    return lengths + struct.pack(">I", crc32(lengths))


def read(*pieces: bytes) -> tuple[list[Frame], str, int]:
    decoder = FrameDecoder()
    frames = [one for piece in pieces for one in decoder.feed(piece)]
    return frames, decoder.broken, decoder.pending


# Packed by hand from the format's description. The empty message is the smallest frame there is.
VECTORS = [
    (bytes.fromhex("00000010 00000000 05c248eb 7d98c8ff"), {}, b""),
    (sealed(b"\x01t\x00\x01f\x01", b""), {"t": True, "f": False}, b""),
    (sealed(b"\x01b\x02\xff\x01s\x03\xff\xfe", b"x"), {"b": -1, "s": -2}, b"x"),
    (sealed(b"\x01i\x04\xff\xff\xff\xfd", b""), {"i": -3}, b""),
    (sealed(b"\x01l\x05" + b"\xff" * 7 + b"\xfc", b""), {"l": -4}, b""),
    (sealed(b"\x02at\x08\x00\x00\x01\x9a\x00\x00\x00\x00", b""), {"at": 0x19A00000000}, b""),
    (sealed(b"\x01r\x06\x00\x02\x00\xff", b""), {"r": b"\x00\xff"}, b""),
    (sealed(b"\x01u\x07\x00\x03\xe2\x82\xac", b""), {"u": "€"}, b""),
    (sealed(b"\x01u\x07\x00\x00", b"\x00"), {"u": ""}, b"\x00"),
    (sealed(b"\x02id\x09" + bytes(range(16)), b""), {"id": bytes(range(16))}, b""),
    (frame(b"{}", event_type="chunk"), {":event-type": "chunk"}, b"{}"),
]


@pytest.mark.parametrize(("data", "headers", "payload"), VECTORS)
def test_every_type_of_header_is_read(data, headers, payload):
    """A frame is its headers by name and its payload."""
    assert read(data) == ([Frame(headers, payload)], "", 0)
    assert begins(data)


def test_frames_are_the_same_in_any_pieces():
    """Cut in two at every byte, and byte by byte."""
    data = golden("converse-stream").answer
    frames, broken, pending = whole = read(data)
    assert (len(frames), broken, pending) == (14, "", 0)
    assert read(*(data[at : at + 1] for at in range(len(data)))) == whole
    for at in range(len(data) + 1):
        assert read(data[:at], data[at:]) == whole


def test_a_cut_stream_gives_its_whole_frames():
    """What is not whole waits, and is counted."""
    data = golden("converse-stream").answer
    frames = read(data)[0]
    for at in range(len(data)):
        told, broken, pending = read(data[:at])
        assert told == frames[: len(told)] and not broken
        assert (pending == 0) == (at == 0 or begins(data[at:]))


def test_a_flipped_bit_is_found():
    """The frames before the damage are good, nothing behind it is believed."""
    first, second = frame(b"one", event_type="a"), frame(b"two", event_type="b")
    for at in range(len(second)):
        damaged = bytearray(second)
        damaged[at] ^= 4
        told, broken, _ = read(first + damaged + first)
        assert told == [Frame({":event-type": "a"}, b"one")]
        assert "checksum" in broken


DAMAGED = [
    (prelude(15, 0), "a frame of 15 bytes"),
    (prelude(16, 1), "1 bytes of headers"),
    (prelude(HEADERS_LIMIT + 17, HEADERS_LIMIT + 1), "bytes of headers"),
    (prelude(PAYLOAD_LIMIT + 17, 0), "a frame of"),
    (prelude(0xFFFFFFFF, 0xFFFFFFFF), "a frame of"),
    (sealed(b"\x05a", b""), "unreadable headers"),
    (sealed(b"\x01a\x07\x00\x05abc", b""), "unreadable headers"),
    (sealed(b"\x01a\x07\x00", b""), "unreadable headers"),
    (sealed(b"\x01a\x05\x00", b""), "unreadable headers"),
    (sealed(b"\x01a\x09\x00", b""), "unreadable headers"),
    (sealed(b"\x01\xff\x00", b""), "unreadable headers"),
    (sealed(b"\x01a\x07\x00\x01\xff", b""), "unreadable headers"),
    (sealed(b"\x01a\x0a", b""), "a header of type 10"),
    (b"HTTP/1.1 502 Bad Gateway", "checksum"),
]


@pytest.mark.parametrize(("data", "why"), DAMAGED)
def test_what_is_no_frame_ends_the_stream(data, why):
    """It is said why, and nothing is kept."""
    told, broken, pending = read(data, b"more")
    assert (told, pending) == ([], 0)
    assert why in broken


def test_a_claimed_size_costs_no_memory():
    """Lengths are checked before anything is waited for; what is kept is what came."""
    decoder = FrameDecoder()
    tracemalloc.start()
    assert decoder.feed(prelude(PAYLOAD_LIMIT, 0) + b"x" * 1000) == []
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoder.pending == 1012 and most < 100_000


@given(st.lists(st.binary(max_size=40) | st.sampled_from([data for data, _, _ in VECTORS]), max_size=6))
def test_any_bytes_are_survived(pieces):
    """No exception, whatever comes."""
    frames, broken, pending = read(*pieces)
    assert len(frames) <= sum(map(len, pieces)) and (not broken or not pending)
