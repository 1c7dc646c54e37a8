"""WebSocket traffic is read along: every message as it was sent, however it was cut, and garbage ends in a reason."""

from __future__ import annotations

import random
import re
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from llm_proxy.wire.websocket import MAX_MESSAGES, Deflate, Message, Parser, negotiated

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEEP, RESET = Deflate(True, True), Deflate(False, False)


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=b"", length=None, form=0):
    """One frame; `form` forces the 16-bit (126) or 64-bit (127) length."""
    size = len(payload) if length is None else length
    form = form or (size if size < 126 else 126 if size < 65536 else 127)
    head = bytes([fin << 7 | rsv << 4 | opcode, bool(mask) << 7 | form])
    head += size.to_bytes({126: 2, 127: 8}[form], "big") if form > 125 else b""
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else head + payload


def deflated(payload, mode=zlib.Z_SYNC_FLUSH):
    stream = zlib.compressobj(wbits=-15)
    return (stream.compress(payload) + stream.flush(mode)).removesuffix(b"\0\0\xff\xff")


def parse(pieces, *, masked=False, deflate=None, limit=1 << 20):
    """All messages as (opcode, payload), and the parser."""
    parser = Parser(masked, deflate, limit)
    found = [message for at, piece in enumerate(pieces) for message in parser.feed(piece, at)]
    return found, parser


def cuts(stream):
    """The stream whole, byte by byte, and in two at every byte."""
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    for at in range(len(stream) + 1):
        yield [stream[:at], b"", stream[at:]]


HELLO = deflated(b"Hello")
KEY = b"\x37\xfa\x21\x3d"

GOOD = {
    "nothing": (b"", None, []),
    "text": (frame(TEXT, b"Hello"), None, [(TEXT, b"Hello")]),
    "RFC 6455 §5.7, masked": (bytes.fromhex("818537fa213d7f9f4d5158"), None, [(TEXT, b"Hello")]),
    "masked by zero": (frame(TEXT, b"Hello", mask=b"\0\0\0\0"), None, [(TEXT, b"Hello")]),
    "empty": (frame(TEXT) + frame(BINARY), None, [(TEXT, b""), (BINARY, b"")]),
    "binary": (frame(BINARY, bytes(range(256))), None, [(BINARY, bytes(range(256)))]),
    "fragments": (
        frame(TEXT, b"Hel", fin=False) + frame(0, b"", fin=False) + frame(0, b"lo"),
        None,
        [(TEXT, b"Hello")],
    ),
    "control between fragments": (
        frame(TEXT, b"Hel", fin=False) + frame(PING, b"p") + frame(PONG) + frame(0, b"lo"),
        None,
        [(PING, b"p"), (PONG, b""), (TEXT, b"Hello")],
    ),
    "close with code": (frame(CLOSE, b"\x03\xe8bye"), None, [(CLOSE, b"\x03\xe8bye")]),
    "close without": (frame(TEXT, b"a") + frame(CLOSE), None, [(TEXT, b"a"), (CLOSE, b"")]),
    "longest short": (frame(BINARY, b"x" * 125), None, [(BINARY, b"x" * 125)]),
    "shortest 16-bit": (frame(BINARY, b"x" * 126), None, [(BINARY, b"x" * 126)]),
    "16-bit": (frame(BINARY, b"x" * 300), None, [(BINARY, b"x" * 300)]),
    "64-bit": (frame(BINARY, b"x" * 30, form=127), None, [(BINARY, b"x" * 30)]),
    "longest control": (frame(PING, b"x" * 125), None, [(PING, b"x" * 125)]),
    "not UTF-8": (frame(TEXT, b"\xff"), None, [(TEXT, b"\xff")]),
    # RFC 7692 §7.2.3: its own examples.
    "compressed": (bytes.fromhex("c107f248cdc9c90700"), KEEP, [(TEXT, b"Hello")]),
    "compressed, fragments": (bytes.fromhex("4103f248cd8004c9c90700"), KEEP, [(TEXT, b"Hello")]),
    "compressed, window shared": (
        bytes.fromhex("c107f248cdc9c90700c105f200110000"),
        KEEP,
        [(TEXT, b"Hello"), (TEXT, b"Hello")],
    ),
    "compressed, window not shared": (bytes.fromhex("c107f248cdc9c90700") * 2, RESET, [(TEXT, b"Hello")] * 2),
    "compressed, no compression": (bytes.fromhex("c10b000500faff48656c6c6f00"), KEEP, [(TEXT, b"Hello")]),
    "compressed, final block": (bytes.fromhex("c108f348cdc9c9070000") * 2, KEEP, [(TEXT, b"Hello")] * 2),
    "compressed, two blocks": (bytes.fromhex("c10df24805000000ffffcac9c90700"), KEEP, [(TEXT, b"Hello")]),
    "compressed, empty": (frame(TEXT, b"\0", rsv=4) + frame(TEXT, b"", rsv=4), KEEP, [(TEXT, b"")] * 2),
    "plain beside compressed": (
        frame(TEXT, b"a") + frame(TEXT, HELLO, rsv=4) + frame(TEXT, b"b"),
        KEEP,
        [(TEXT, b"a"), (TEXT, b"Hello"), (TEXT, b"b")],
    ),
    "control between compressed fragments": (
        frame(BINARY, HELLO[:3], rsv=4, fin=False) + frame(PING, b"p") + frame(0, HELLO[3:]),
        RESET,
        [(PING, b"p"), (BINARY, b"Hello")],
    ),
    "compressed, masked": (frame(TEXT, HELLO, rsv=4, mask=KEY) * 2, RESET, [(TEXT, b"Hello")] * 2),
}


@pytest.mark.parametrize("name", GOOD)
def test_messages_come_out_as_they_were_sent_wherever_the_stream_is_cut(name):
    """Each vector whole, byte by byte, and cut in two at every byte."""
    stream, deflate, expected = GOOD[name]
    masked = len(stream) > 1 and bool(stream[1] & 0x80)
    for pieces in cuts(stream):
        found, parser = parse(pieces, masked=masked, deflate=deflate)
        assert [(message.opcode, message.payload) for message in found] == expected
        assert all(not message.truncated and message.size == len(message.payload) for message in found)
        assert parser.broken == "" and parser.unfinished(0) is None


A = frame(TEXT, b"a")
BAD = {
    "reserved opcode": (frame(3, b""), None, "unknown opcode 3"),
    "reserved control opcode": (frame(11, b""), None, "unknown opcode 11"),
    "RSV1 without compression": (frame(TEXT, b"", rsv=4), None, "reserved bits"),
    "RSV2": (frame(TEXT, b"", rsv=2), KEEP, "reserved bits"),
    "RSV3": (frame(TEXT, b"", rsv=1), KEEP, "reserved bits"),
    "RSV1 on control": (frame(PING, b"", rsv=4), KEEP, "reserved bits"),
    "RSV1 on continuation": (
        frame(TEXT, HELLO[:2], rsv=4, fin=False) + frame(0, HELLO[2:], rsv=4),
        KEEP,
        "reserved bits",
    ),
    "masked from the server": (frame(TEXT, b"x", mask=KEY), None, "masked frame from the server"),
    "continuation of nothing": (frame(0, b"x"), None, "continuation of nothing"),
    "message in message": (frame(TEXT, b"x", fin=False) + A, None, "message begun inside another"),
    "fragmented control": (frame(PING, b"", fin=False), None, "control frame"),
    "long control": (frame(PING, b"x" * 126), None, "control frame"),
    "length beyond 63 bits": (frame(TEXT, b"", length=1 << 63, form=127), None, "63 bits"),
    "data after close": (frame(CLOSE) + A, None, "after the close frame"),
    "not deflate": (frame(TEXT, b"\xff\xff\xff", rsv=4), KEEP, "undecodable"),
    "reference beyond the window": (bytes.fromhex("c105f200110000"), KEEP, "undecodable"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", None, "reserved bits|mask"),
}


@pytest.mark.parametrize("name", BAD)
def test_garbage_ends_the_reading_with_a_reason(name):
    """What came before it stays, nothing is raised, what follows is ignored; cut or not."""
    stream, deflate, reason = BAD[name]
    for pieces in cuts(A + stream):
        found, parser = parse([*pieces, A], deflate=deflate)
        assert [message[1:3] for message in found if message.opcode == TEXT] == [(TEXT, b"a")]
        assert re.search(reason, parser.broken)


def test_an_unmasked_client_is_garbage():
    """The direction decides whether frames are masked."""
    assert parse([A], masked=True)[1].broken == "unmasked frame from the client"


def test_a_reset_window_is_not_used_again():
    """What refers to it is as unreadable here as it is for the receiver."""
    shared = bytes.fromhex("c107f248cdc9c90700c105f200110000")
    assert parse([shared], deflate=KEEP)[1].broken == ""
    assert "undecodable" in parse([shared], deflate=Deflate(True, False))[1].broken
    assert parse([shared], deflate=Deflate(False, True))[1].broken == ""
    ours = frame(TEXT, shared[2:9], rsv=4, mask=KEY) + frame(TEXT, shared[11:], rsv=4, mask=KEY)
    assert parse([ours], masked=True, deflate=Deflate(True, False))[1].broken == ""
    assert "undecodable" in parse([ours], masked=True, deflate=Deflate(False, True))[1].broken


def test_a_message_carries_the_time_of_its_last_byte():
    """Also with a control frame in its middle."""
    parser = Parser(False, None)
    assert parser.feed(frame(TEXT, b"ab", fin=False) + frame(PING)[:1], 5) == []
    assert parser.feed(frame(PING)[1:], 6) == [Message(6, PING, b"", False, 0)]
    assert parser.unfinished(7) == Message(7, TEXT, b"ab", True, 2)
    assert parser.feed(frame(0, b"c"), 8) == [Message(8, TEXT, b"abc", False, 3)]
    assert parser.unfinished(9) is None


@pytest.mark.parametrize("deflate", [None, KEEP, RESET])
def test_a_message_beyond_the_limit_is_kept_up_to_it_and_counted_whole(deflate):
    """Fragmented or not, compressed or not; the next message is whole again, its window intact."""
    text = bytes(random.Random(5).choices(b"abcd", k=500))
    stream = zlib.compressobj(wbits=-15)
    frames = []
    for payload in (text, text[:50]):
        if deflate:
            data = (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
            stream = stream if deflate.server_takeover else zlib.compressobj(wbits=-15)
        else:
            data = payload
        rsv = 4 if deflate else 0
        frames.append(frame(TEXT, data[:9], fin=False, rsv=rsv) + frame(0, data[9:]))
    for pieces in cuts(b"".join(frames)):
        found, parser = parse(pieces, deflate=deflate, limit=100)
        assert [message[1:] for message in found] == [(TEXT, text[:100], True, 500), (TEXT, text[:50], False, 50)]
        assert not parser.broken


def test_a_gigabyte_announced_is_not_reserved():
    """The length of a frame is a claim."""
    parser = Parser(False, None)
    assert parser.feed(frame(BINARY, b"abc", length=1 << 40, form=127), 0) == []
    assert parser.unfinished(0) == Message(0, BINARY, b"abc", True, 3)


def test_a_bomb_ends_the_reading():
    """300 kB that inflate to 300 MB: counted, not kept, and soon over."""
    bomb = deflated(bytes(30 << 20))
    parser = Parser(False, RESET, limit=1000)
    started = time.process_time()
    found = [message for _ in range(10) for message in parser.feed(frame(TEXT, bomb, rsv=4), 0)]
    assert "inflate to more than" in parser.broken
    assert len(found) == 8 and all(message[2:] == (bytes(1000), True, 30 << 20) for message in found)
    assert time.process_time() - started < 4


def test_many_final_blocks_end_the_reading():
    """Each would start a decoder anew and hand the rest back."""
    parser = Parser(False, KEEP)
    started = time.process_time()
    parser.feed(frame(TEXT, b"\x03\x00" * 1_000_000, rsv=4), 0)
    assert "final blocks" in parser.broken
    assert time.process_time() - started < 1


def test_many_empty_messages_end_the_reading():
    """Two bytes each on the wire, far more as objects."""
    found, parser = parse([frame(PING) * (MAX_MESSAGES + 1)])
    assert len(found) == MAX_MESSAGES and "messages" in parser.broken


def test_a_large_masked_message_takes_linear_time():
    """16 MB in one piece and in many."""
    data = random.Random(4).randbytes(16 << 20)
    stream = b"\x82\xff" + len(data).to_bytes(8, "big") + b"\0\0\0\0" + data
    for size in (len(stream), 1000):
        started = time.process_time()
        found, _ = parse([stream[at : at + size] for at in range(0, len(stream), size)], masked=True, limit=16 << 20)
        assert found[0].payload == data
        assert time.process_time() - started < 3


AGREED = [
    ("", "", None),
    ("permessage-deflate", "", None),
    ("", "permessage-deflate", None),
    ("permessage-deflate", "permessage-deflate", KEEP),
    ("permessage-deflate; client_max_window_bits", "permessage-deflate", KEEP),
    ("x, Permessage-Deflate; client_max_window_bits", "PERMESSAGE-DEFLATE ;client_max_window_bits = 10", KEEP),
    ("permessage-deflate", "permessage-deflate; server_no_context_takeover", Deflate(True, False)),
    ("permessage-deflate", "permessage-deflate; client_no_context_takeover", Deflate(False, True)),
    (
        "permessage-deflate",
        'permessage-deflate; client_no_context_takeover; server_no_context_takeover; server_max_window_bits="15"',
        RESET,
    ),
    ("permessage-deflate", "x-other; a=b, permessage-deflate", KEEP),
    ("permessage-deflate", "permessage-deflate, permessage-deflate", None),
    ("permessage-deflate", "permessage-deflate; server_max_window_bits=7", None),
    ("permessage-deflate", "permessage-deflate; server_max_window_bits=16", None),
    ("permessage-deflate", "permessage-deflate; server_max_window_bits", None),
    ("permessage-deflate", "permessage-deflate; server_max_window_bits=010", None),
    ("permessage-deflate", "permessage-deflate; server_no_context_takeover=1", None),
    ("permessage-deflate", "permessage-deflate; unknown", None),
    ("permessage-deflate", "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", None),
    ("permessage-deflate", "permessage-deflate;", None),
]


@pytest.mark.parametrize(("offer", "answer", "expected"), AGREED)
def test_compression_is_what_both_heads_agree_on(offer, answer, expected):
    """An answer that the client must refuse agrees on nothing."""
    assert negotiated(offer, answer) == expected


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_header_can_be_read(offer, answer):
    """Never raises."""
    negotiated(offer, answer)
    negotiated("permessage-deflate", "permessage-deflate" + answer)


@st.composite
def conversations(draw):
    """Messages of one direction and the bytes an independent implementation makes of them."""
    masked, deflate = draw(st.booleans()), draw(st.sampled_from([None, KEEP, RESET]))
    reset = deflate is RESET
    bits = draw(st.integers(9, 15))
    extensions = [PerMessageDeflate(reset, reset, bits, bits)] if deflate else []
    stream, sent = b"", []
    for payload in draw(st.lists(st.binary(max_size=200) | st.just(b"ab" * 500), max_size=5)):
        opcode = draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
        marks = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in zip([0, *marks], [*marks, len(payload)], strict=True)]
        for index, part in enumerate(parts):
            kind, last = (Opcode.CONT if index else opcode), index == len(parts) - 1
            stream += Frame(kind, part, fin=last).serialize(mask=masked, extensions=extensions)
            if draw(st.booleans()):
                stream += Frame(Opcode.PING, part[:9]).serialize(mask=masked, extensions=extensions)
                sent += [(PING, part[:9])] if not last else []
                ping_after = [(PING, part[:9])] if last else []
            else:
                ping_after = []
        sent += [(int(opcode), payload), *ping_after]
    marks = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *marks], [*marks, len(stream)], strict=True)]
    return masked, deflate, pieces, sent


@given(conversations())
def test_what_another_implementation_writes_is_read_back(conversation):
    """Masks, fragments, pings, compression with and without a shared window, in any pieces."""
    masked, deflate, pieces, sent = conversation
    found, parser = parse(pieces, masked=masked, deflate=deflate)
    assert [(message.opcode, message.payload) for message in found] == sent
    assert not parser.broken


@given(st.lists(st.binary(max_size=40), max_size=5), st.booleans(), st.sampled_from([None, KEEP, RESET]))
def test_any_bytes_can_be_fed(pieces, masked, deflate):
    """Never raises, and gives the same messages and the same verdict in one piece."""
    found, parser = parse(pieces, masked=masked, deflate=deflate)
    again, whole = parse([b"".join(pieces)], masked=masked, deflate=deflate)
    assert [message[1:] for message in found] == [message[1:] for message in again]
    assert parser.broken == whole.broken
