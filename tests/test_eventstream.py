"""Amazon's event streams: frames as they were sent however they come, damage found, memory bounded."""

from __future__ import annotations

import struct
import tracemalloc
from zlib import crc32

import pytest
from botocore.eventstream import EventStreamBuffer, ParserError
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.wire.eventstream import HEADERS_LIMIT, PAYLOAD_LIMIT, Damaged, Frame, FrameDecoder, begins
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


def read(*pieces: bytes) -> tuple[list[Frame | Damaged], str, int]:
    decoder = FrameDecoder()
    frames = [one for piece in pieces for one in decoder.feed(piece)]
    return frames, decoder.broken, decoder.pending


def told(*pieces: bytes) -> tuple[list[Frame | Damaged], int]:
    """Everything of a stream that is over, and how many frames were bad."""
    decoder = FrameDecoder()
    found = [one for piece in pieces for one in decoder.feed(piece)]
    return found + decoder.finish(), decoder.bad


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
        found, broken, pending = read(data[:at])
        assert found == frames[: len(found)] and not broken
        assert (pending == 0) == (at == 0 or begins(data[at:]))


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_is_found(bit):
    """The frame is damaged and kept as it came. The next one is good, unless nobody can tell where it begins."""
    first, second = frame(b"one", event_type="a"), frame(b"two", event_type="b")
    good = Frame({":event-type": "a"}, b"one")
    for at in range(len(second)):
        damaged = bytearray(second)
        damaged[at] ^= 1 << bit
        found, bad = told(first + damaged + first)
        assert bad == 1 and found[0] == good
        if at < 12:  # the lengths, or their checksum
            assert found[1:] == [Damaged(bytes(damaged) + first, "the checksum of a frame's lengths is wrong")]
        else:
            assert found[1:] == [Damaged(bytes(damaged), "the checksum of a frame is wrong"), good]


def test_two_flipped_bits_are_found():
    """Wherever they are in one frame: no such frame is believed."""
    whole = frame(b"payload", event_type="b")
    for one in range(len(whole)):
        for other in range(one):
            damaged = bytearray(whole)
            damaged[one] ^= 16
            damaged[other] ^= 1
            found, bad = told(bytes(damaged))
            assert bad == 1 and all(isinstance(part, Damaged) for part in found)


def test_nothing_is_lost():
    """Whatever is cut, damaged or put between: frames and the bytes that are none are the stream."""
    stream = golden("converse-stream").answer
    for spoiled in (
        stream[:100] + b"?" + stream[100:],
        stream[50:],
        stream[:-1],
        stream[:300] + b"\0" * 16 + stream[316:],
    ):
        for pieces in ([spoiled], [spoiled[at : at + 7] for at in range(0, len(spoiled), 7)]):
            assert b"".join(one.raw for one in told(*pieces)[0]) == spoiled


def test_what_is_unfinished_is_given_back_at_the_end():
    """It is no bad frame: its rest may only not have come."""
    whole = frame(b"one", event_type="a")
    for at in range(1, len(whole)):
        found, bad = told(whole + whole[:at])
        assert found[1:] == [Damaged(whole[:at], "the stream ends within a frame")] and bad == 0


FRAMES = st.builds(
    lambda headers, payload: sealed(b"".join(headers.values()), payload),
    st.dictionaries(
        st.integers(0, 99),
        st.one_of(
            st.builds(
                lambda text: b"\x01a\x07" + struct.pack(">H", len(text)) + text, st.text(max_size=9).map(str.encode)
            ),
            st.builds(lambda raw: b"\x01b\x06" + struct.pack(">H", len(raw)) + raw, st.binary(max_size=9)),
            st.builds(lambda number: b"\x02cc\x04" + struct.pack(">i", number), st.integers(-(1 << 31), (1 << 31) - 1)),
            st.just(b"\x01d\x00"),
        ),
        max_size=3,
    ).filter(lambda headers: len({value[1:3] for value in headers.values()}) == len(headers)),
    st.binary(max_size=50),
)

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
def test_what_is_no_frame_is_given_back(data, why):
    """It is said why, and everything given back; where the lengths are good the next frame is read."""
    found, bad = told(data, VECTORS[0][0])
    assert why in found[0].why and bad == 1
    if why in ("unreadable headers", "a header of type 10"):
        assert found[1:] == [Frame({}, b"")]
    assert b"".join(one.raw for one in found) == data + VECTORS[0][0]


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
    """No exception, whatever comes, and nothing lost; in other pieces it is the same."""
    found, bad = told(*pieces)
    assert b"".join(one.raw for one in found) == b"".join(pieces)
    whole, again = told(b"".join(pieces))
    assert again == bad and b"".join(one.raw for one in whole) == b"".join(pieces)
    assert [one for one in found if isinstance(one, Frame)] == [one for one in whole if isinstance(one, Frame)]


@settings(deadline=None)
@given(st.data())
def test_a_frame_as_amazons_library_reads_it(data):
    """The same headers and payload from any frame, the same refusal of any damage."""
    stream = b"".join(data.draw(st.lists(FRAMES, min_size=1, max_size=4)))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream = stream[:at] + bytes([stream[at] ^ data.draw(st.integers(1, 255))]) + stream[at + 1 :]
    theirs = []
    buffer = EventStreamBuffer()
    buffer.add_data(stream)
    try:
        theirs += ((message.headers, message.payload) for message in buffer)
    except ParserError:
        pass
    ours = []
    for one in told(stream)[0]:
        if isinstance(one, Damaged):
            break
        ours.append((one.headers, one.payload))
    assert ours == theirs
