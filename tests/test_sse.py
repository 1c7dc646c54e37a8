"""Event streams: every line as it was sent, every event by the standard, wherever the stream is cut."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.wire.sse import Event, EventDecoder, LineSplitter


def lines(pieces, limit=1 << 20):
    splitter = LineSplitter(limit)
    return [line for piece in pieces for line in splitter.feed(piece)] + splitter.finish()


def events(pieces, limit=1 << 20):
    decoder = EventDecoder(limit)
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.finish()


def cuts(stream):
    """The stream whole, byte by byte, and in two at every byte."""
    yield [stream]
    yield [stream[at : at + 1] for at in range(len(stream))]
    for at in range(len(stream) + 1):
        yield [stream[:at], b"", stream[at:]]


def message(data, name="message", id=""):
    return Event(name, data, id)


LINES = [
    (b"", []),
    (b"\n", [b"\n"]),
    (b"a", [b"a"]),
    (b"a\nb", [b"a\n", b"b"]),
    (b"a\r\nb\r\n", [b"a\r\n", b"b\r\n"]),
    (b"a\rb\r", [b"a\r", b"b\r"]),
    (b"a\n\rb\r\r\n\n", [b"a\n", b"\r", b"b\r", b"\r\n", b"\n"]),
    (b"\r\r\r", [b"\r", b"\r", b"\r"]),
    (b"\xef\xbb\xbfa\n", [b"\xef\xbb\xbfa\n"]),
    # What str.splitlines would cut at.
    (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n\n".encode(),
        ["data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n".encode(), b"\n"],
    ),
    (b"data: \x85\xff\x00\n", [b"data: \x85\xff\x00\n"]),
]


@pytest.mark.parametrize(("stream", "expected"), LINES)
def test_lines_keep_their_ends(stream, expected):
    """Cut at \\n, \\r\\n and \\r only; a line end is never split by where the stream was cut."""
    for pieces in cuts(stream):
        assert lines(pieces) == expected


def test_a_line_comes_out_as_soon_as_it_is_complete():
    """Its time in the record is when it came; only a \\r waits for what may follow."""
    splitter = LineSplitter()
    assert splitter.feed(b"data: 1") == []
    assert splitter.feed(b"\n") == [b"data: 1\n"]
    assert splitter.feed(b"a\r") == []
    assert splitter.feed(b"\n\r\nb") == [b"a\r\n", b"\r\n"]
    assert splitter.finish() == [b"b"]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"abc\n", [b"abc\n"]),
        (b"abcd\n", [b"abcd\n"]),
        (b"abcde\n", [b"abcd", b"e\n"]),
        (b"abcdefgh\r\nx", [b"abcd", b"efgh\r\n", b"x"]),
        (b"abcdefghi", [b"abcd", b"efgh", b"i"]),
    ],
)
def test_a_line_beyond_the_limit_comes_in_pieces(stream, expected):
    """The same pieces however the stream is cut, and never a piece that looks like an empty line."""
    for pieces in cuts(stream):
        assert lines(pieces, limit=4) == expected


# After the web platform's tests of the same names.
EVENTS = {
    "one": (b"data: x\n\n", [message("x")]),
    "no space": (b"data:x\n\n", [message("x")]),
    "only one space is taken": (b"data:  x\n\n", [message(" x")]),
    "tab stays": (b"data:\tx\n\n", [message("\tx")]),
    "lines are joined": (b"data: a\ndata: b\ndata:\n\n", [message("a\nb\n")]),
    "data field empty": (b"data:\n\ndata\ndata\n\ndata:test\n\n", [message(""), message("\n"), message("test")]),
    "no data no event": (b"event: ping\n\nid: 3\n\n: c\n\n", []),
    "name is for one event": (b"event: a\ndata: 1\n\ndata: 2\n\n", [message("1", "a"), message("2")]),
    "name without data is dropped": (b"event: a\n\ndata: 2\n\n", [message("2")]),
    "last name wins": (b"event: a\nevent: b\ndata: 1\n\n", [message("1", "b")]),
    "empty name": (b"event: a\nevent:\ndata: 1\n\n", [message("1")]),
    "id stays": (
        b"id: 7\ndata: 1\n\ndata: 2\n\nid\ndata: 3\n\n",
        [message("1", id="7"), message("2", id="7"), message("3")],
    ),
    "id with NUL is ignored": (b"id: 7\nid: 8\0\ndata: 1\n\n", [message("1", id="7")]),
    "comments": (b": x\ndata: 1\n:\n:data: 2\n\n", [message("1")]),
    "unknown fields": (b"retry: 10\nDATA: 0\n data: 0\ndata: 1\ndataset: 0\nnonsense\n\n", [message("1")]),
    "mixed line ends": (b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\r", [message("a\nb\nc"), message("d")]),
    "CR LF is one end": (b"data: a\r\n\r\ndata: b\r\n\r\n", [message("a"), message("b")]),
    "BOM": (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\ndata: c\n\n", [message("a"), message("c")]),
    "two BOMs": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [message("b")]),
    "no blank line, no event": (b"data: a\n\ndata: b\n", [message("a")]),
    "unfinished line": (b"data: a\n\ndata: b", [message("a")]),
    "UTF-8": ("data: ok\u2026\u2028\x85\U0001f600\n\n".encode(), [message("ok\u2026\u2028\x85\U0001f600")]),
    "not UTF-8": (b"data: \xff\xc3(\n\n", [message("\ufffd\ufffd(")]),
    "NUL in data": (b"data: \0\n\n", [message("\0")]),
    "line break in JSON": (b'data: {"a":\ndata: 1}\n\n', [message('{"a":\n1}')]),
    "after DONE": (b"data: [DONE]\n\ndata: x\n\n", [message("[DONE]"), message("x")]),
    "leading space": (b" data: x\n\n", []),
    "many blank lines": (b"\n\n\ndata: x\n\n\n\n", [message("x")]),
    "colon in value": (b"data: a: b\n\n", [message("a: b")]),
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_follow_the_standard_wherever_the_stream_is_cut(name):
    """Each vector whole, byte by byte, and cut in two at every byte."""
    stream, expected = EVENTS[name]
    for pieces in cuts(stream):
        assert events(pieces) == expected


def test_an_event_beyond_the_limit_is_kept_up_to_it():
    """And says so; the next one is whole again."""
    stream = b"data: 12345\ndata: 678\n\ndata: 1234567\n\n"
    for pieces in cuts(stream):
        assert events(pieces, limit=7) == [Event("message", "12345\n6", "", True), message("1234567")]


def test_a_line_longer_than_the_splitters_limit_is_still_one_value():
    """A 20 MB image in one data line; the same length of comment or unknown field adds nothing."""
    image = b"x" * (20 << 20)
    stream = b":" + image + b"\nfoo: " + image + b"\ndata: " + image + b"\ndata: y\n\n"
    (event,) = events([stream], limit=64 << 20)
    assert event == message(image.decode() + "\ny")


def test_a_megabyte_byte_by_byte_takes_linear_time():
    """One line, as the slowest sender would send it."""
    stream = b"data: " + b"x" * 1_000_000 + b"\n\n"
    started = time.process_time()
    (event,) = events(stream[at : at + 1] for at in range(len(stream)))
    assert len(event.data) == 1_000_000
    assert time.process_time() - started < 5


def test_an_event_of_empty_lines_takes_bounded_memory():
    """Ten million bytes of `data` lines cost their limit, not an object each."""
    decoder = EventDecoder(1000)
    piece = b"data\n" * 20_000
    tracemalloc.start()
    try:
        for _ in range(5):
            assert decoder.feed(piece) == []
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    (event,) = decoder.feed(b"\n")
    assert event.truncated and event.data == "\n" * 1000


def naive(stream):
    """The standard's algorithm, on a whole stream."""
    found, data, name, last = [], None, "", ""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for line in text.split("\n")[:-1]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data is not None:
                found.append(Event(name or "message", "\n".join(data), last))
            data, name = None, ""
        elif field == "data":
            data = [*(data or ()), value]
        elif field == "event":
            name = value
        elif field == "id" and "\0" not in value:
            last = value
    return found


TOKENS = [
    b"data",
    b"event",
    b"id",
    b":",
    b" ",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"x",
    b"\xc3",
    b"\xa9",
    b"\0",
    b"\xef\xbb\xbf",
]
STREAM = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), max_size=40).map(b"".join)


@st.composite
def pieces_of(draw, streams=STREAM):
    stream = draw(streams)
    marks = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    return stream, [stream[a:b] for a, b in zip([0, *marks], [*marks, len(stream)], strict=True)]


@given(pieces_of())
def test_any_stream_in_any_pieces_gives_the_standards_events(cut):
    """Against the algorithm written down naively."""
    stream, pieces = cut
    assert events(pieces) == naive(stream)


@given(pieces_of(), st.integers(1, 20))
def test_lines_joined_are_the_stream_again(cut, limit):
    """Nothing is lost, added or reordered, and no line is longer than the limit and its end."""
    stream, pieces = cut
    found = lines(pieces, limit)
    assert b"".join(found) == stream
    assert found == lines([stream], limit)
    assert all(0 < len(line.rstrip(b"\r\n")) <= limit or line in (b"\n", b"\r", b"\r\n") for line in found)
