"""Frames become exchanges: whole ones as they were, damaged ones with what is missing said."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.journal.frames import HEADER_SIZE, Flag, Kind, Note, pack, pack_open, route_facts, scan
from llm_proxy.journal.reader import Batch, Position, Reader
from llm_proxy.keeper.assemble import HELD, Assembler, Call, Gap
from llm_proxy.records.exchange import Ending, Exchange
from tests import journals
from tests.journals import MS, Journal

START = Position(1, 48)


def batch(*frames: bytes, run: str = "r", offset: int = 48) -> Batch:
    block = b"".join(frames)
    return Batch(run, Position(1, offset), list(scan(block, 1, offset)), Position(1, offset + len(block)))


def no_fetch(segment: int, offset: int, length: int) -> bytes:
    raise FileNotFoundError


def told(*frames: bytes, fetch: Callable[[int, int, int], bytes] = no_fetch) -> Exchange:
    """The one exchange these frames make, interrupted where there is no end."""
    assembler = Assembler((), START)
    over = assembler.take(batch(*frames)) or assembler.interrupt()
    (call,) = over
    assert isinstance(call, Call)
    return call.exchange(fetch)


def test_a_whole_call() -> None:
    """Every fact of the frames is a fact of the exchange, times counted from its beginning."""
    call = journals.Call(
        1,
        request_headers=["X-Two: a", "x-two:  b "],
        target="/v1/messages?beta=true",
        notes=Note.RETRIED | Note.ENDED_BY_CLOSE | Note.EXTRA_BYTES,
        pieces=[(120, b"one"), (150, b"two")],
        headers=["Content-Type: text/plain"],
        error="so so",
    )
    exchange = told(*call.frames)
    assert exchange.id == call.id and exchange.opened == journals.WALL
    assert (exchange.provider, exchange.scheme, exchange.upstream) == ("anthropic", "https", "api.anthropic.com")
    assert (exchange.method, exchange.path, exchange.query) == ("POST", "/v1/messages", "beta=true")
    assert exchange.request_headers[1:3] == (("X-Two", "a"), ("x-two", "b"))
    assert exchange.request.data == b'{"model":"m"}' and exchange.request.pieces[0][0] == MS
    assert (exchange.status, exchange.reason) == (200, "OK")
    assert exchange.response.pieces == ((120 * MS, b"one"), (150 * MS, b"two"))
    assert (exchange.first_byte, exchange.ended) == (100 * MS, 200 * MS)
    assert exchange.ending is Ending.COMPLETE and exchange.error == "so so"
    assert exchange.retried and exchange.ended_by_close and exchange.extra_bytes and not exchange.websocket
    assert (exchange.request.truncated, exchange.response.truncated) == ("", "")


CHUNKED = b"3\r\none\r\n4;x=y\r\ntwo!\r\n0\r\nX-Sum: 1\r\nX-Api-Token: tok-secret-123456\r\n\r\n"


@pytest.mark.parametrize("cut", range(len(CHUNKED) + 1))
def test_chunk_framing_comes_off_wherever_frames_were_cut(cut: int) -> None:
    """The payload is the same, each part with the time it came; credentials in trailers are masked."""
    call = journals.Call(
        1,
        headers=["Transfer-Encoding: chunked"],
        pieces=[(110, CHUNKED[:cut]), (130, CHUNKED[cut:])],
        sizes=(13, 7),
        request_headers=["Transfer-Encoding: chunked"],
        request=CHUNKED,
    )
    exchange = told(*call.frames)
    assert exchange.response.data == b"onetwo!" == exchange.request.data
    assert exchange.response.size == 7 and not exchange.response.truncated
    assert {at for at, _ in exchange.response.pieces} <= {110 * MS, 130 * MS}
    assert exchange.trailers[0] == ("X-Sum", "1") and "secret" not in exchange.trailers[1][1]


def test_a_head_request_has_no_body_to_miss() -> None:
    """The length in its answer is of a body that is not sent."""
    call = journals.Call(1, method="HEAD", request=b"", answer=b"", headers=["Content-Length: 5000"])
    exchange = told(*call.frames)
    assert exchange.response.data == b"" and not exchange.response.truncated


def test_an_upgraded_call_is_bytes_both_ways() -> None:
    """After a 101 nothing is framing any more."""
    call = journals.Call(
        1, method="GET", request=b"", status="101 Switching Protocols", pieces=[(120, b"0\r\n\r\n")], sizes=(4, 5)
    )
    ours = call.frame(Kind.REQUEST, 130 * MS, b"\x81\x02hi")
    exchange = told(call.open, call.head, *call.response, ours, call.end)
    assert exchange.websocket and exchange.status == 101
    assert exchange.response.data == b"0\r\n\r\n" and exchange.request.pieces == ((130 * MS, b"\x81\x02hi"),)


def test_interim_heads_are_counted_up() -> None:
    """Early hints and continues, in order."""
    call = journals.Call(1)
    interim = [call.frame(Kind.INTERIM, MS, f"HTTP/1.1 {code} X\r\n\r\n".encode()) for code in (100, 103)]
    exchange = told(call.open, call.request, *interim, *call.frames[2:])
    assert exchange.interim == (100, 103) and exchange.status == 200


# --- what is missing ------------------------------------------------------------------------------------------------


def test_dropped_pieces_are_said() -> None:
    """The disk was stalled: the size is that of the whole, what is kept is what there is."""
    call = journals.Call(1, request=b"x" * 100, pieces=[(1, b"a" * 10), (2, b"b" * 10)], flags=Flag.LOSSY)
    exchange = told(call.open, call.head, call.response[1], call.end)
    assert (exchange.request.data, exchange.request.size, exchange.request.truncated) == (b"", 100, "dropped")
    assert (exchange.response.data, exchange.response.size, exchange.response.truncated) == (b"b" * 10, 20, "dropped")


def test_a_hole_in_chunk_framing_ends_the_body_there() -> None:
    """What follows a dropped piece cannot be told from framing."""
    pieces = [(1, b"5\r\nhello\r\n5\r\nwo"), (2, b"rld\r\n5\r\nagain"), (3, b"\r\n0\r\n\r\n")]
    call = journals.Call(1, headers=["Transfer-Encoding: chunked"], pieces=pieces, sizes=(13, 15), flags=Flag.LOSSY)
    exchange = told(call.open, call.request, call.head, call.response[0], call.response[2], call.end)
    assert exchange.response.data.startswith(b"hellowo") and exchange.response.truncated == "dropped"
    assert exchange.response.size == 15


def test_a_body_beyond_the_limit_has_its_size_and_digest() -> None:
    """Only its beginning is kept."""
    whole = b"z" * 5000
    digest = hashlib.sha256(whole).digest()
    call = journals.Call(
        1,
        headers=["Content-Length: 5000"],
        pieces=[(1, whole[:100])],
        sizes=(13, 5000),
        digests=(b"", digest),
        flags=Flag.OVER_LIMIT,
    )
    body = told(*call.frames).response
    assert (len(body.data), body.size, body.truncated, body.sha256) == (100, 5000, "limit", digest.hex())


def test_without_a_head_or_an_end() -> None:
    """The parts that are there are told; a call without its end was interrupted when its run died."""
    call = journals.Call(1)
    exchange = told(call.open, call.request, call.end)
    assert exchange.status is None and exchange.first_byte == 0 and exchange.ending is Ending.COMPLETE
    exchange = told(call.open, call.request, call.head, *call.response)
    assert exchange.ending is Ending.INTERRUPTED and exchange.response.data == b'{"ok":true}'
    assert exchange.ended == 101 * MS
    exchange = told(call.open)
    assert exchange.ending is Ending.INTERRUPTED and exchange.request.data == b""


def test_frames_nobody_opened_are_passed_over() -> None:
    """A damaged block may have held the beginning."""
    call = journals.Call(1)
    assembler = Assembler((), START)
    assert assembler.take(batch(*call.frames[1:])) == []
    assert assembler.interrupt() == []


def test_a_large_body_is_fetched_from_the_journal(tmp_path: Path) -> None:
    """It is not held; where the journal is gone meanwhile, the exchange says so."""
    pieces = [(n, bytes([n]) * 50_000) for n in range(1, 12)]
    assert sum(len(data) for _, data in pieces) > HELD
    call = journals.Call(1, pieces=pieces)
    journal = Journal(tmp_path / "j")
    journal.add(*call.frames[:5])
    journal.add(*call.frames[5:])
    journal.close()
    reader = Reader(tmp_path / "j")
    assembler = Assembler((), START)
    found = reader.read(1 << 30)
    assert found is not None
    (done,) = assembler.take(found)
    del found
    assert isinstance(done, Call)
    assert sum(len(piece.payload) for piece in done._answer._pieces) == 0
    exchange = done.exchange(reader.fetch)
    assert exchange.response.data == b"".join(data for _, data in pieces) and not exchange.response.truncated
    body = done.exchange(no_fetch).response
    assert (body.data, body.truncated, body.size) == (b"", "dropped", 550_000)
    reader.close()


frame = st.builds(
    pack,
    st.integers(0, 9),
    st.integers(0, 255),
    st.integers(0, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.one_of(
        st.binary(max_size=80),
        st.sampled_from([part[HEADER_SIZE:] for part in journals.Call(1).frames]),
        st.just(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.lists(frame, max_size=12), max_size=4))
def test_no_frames_whatever_raise(batches: list[list[bytes]]) -> None:
    """Hostile or damaged frames make odd exchanges, never an error."""
    assembler = Assembler((), START)
    over: list[Call | Gap] = []
    for number, frames in enumerate(batches):
        over += assembler.take(batch(*frames, run=str(number // 2)))
        for call in assembler.requested():
            call.request_arrived(no_fetch)
    over += assembler.interrupt()
    for one in over:
        if isinstance(one, Call):
            assert one.exchange(no_fetch).id == one.id


# --- where reading begins again -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_replay_from_the_checkpoint_gives_exactly_the_rest(data: st.DataObject) -> None:
    """However calls overlap and wherever the reader died: nothing is given twice, nothing is missing."""
    calls = [journals.Call(serial) for serial in range(1, data.draw(st.integers(1, 6)) + 1)]
    left = {call.serial: call.frames for call in calls}
    frames = []
    while left:
        serial = data.draw(st.sampled_from(sorted(left)))
        frames.append(left[serial].pop(0))
        if not left[serial]:
            del left[serial]
    offsets = [48]
    for one in frames:
        offsets.append(offsets[-1] + len(one))
    cut = data.draw(st.integers(0, len(frames)))
    assembler = Assembler((), START)
    first = assembler.take(batch(*frames[:cut]))
    settled = first[: data.draw(st.integers(0, len(first)))]
    run, position = assembler.checkpoint(settled)
    assembler.forget(settled)
    assert (run, position) == assembler.checkpoint()
    start = offsets.index(position.offset)
    beyond = {one.id for one in settled if one.position >= position}
    again = Assembler(beyond, position).take(batch(*frames[start:], offset=position.offset))
    assert sorted([one.id for one in [*settled, *again]]) == sorted(call.id for call in calls)


def test_the_next_run_interrupts_the_last() -> None:
    """Serials begin at 1 again in each run; the checkpoint waits for what is not settled."""
    assembler = Assembler((), START)
    old, new = journals.Call(1), journals.Call(1)
    assert assembler.take(batch(old.open, old.request)) == []
    over = assembler.take(batch(*new.frames, run="next", offset=5000))
    assert [one.id for one in over] == [old.id, new.id]
    assert assembler.checkpoint() == ("r", START)
    assert assembler.checkpoint(over[:1]) == ("next", Position(1, 5000))
    assembler.forget(over)
    assert assembler.checkpoint()[1] == assembler.end


def test_only_complete_requests_are_announced() -> None:
    """An open call is told early only when its request is there to the last byte, and once."""
    calls = [journals.Call(1), journals.Call(2), journals.Call(3, request=b""), journals.Call(4)]
    short = pack(Kind.REQUEST, Flag.LAST, 4, 0, b"{")
    assembler = Assembler((), START)
    assembler.take(batch(calls[0].open, calls[0].request, calls[1].open, calls[2].open, calls[3].open, short))
    announced = assembler.requested()
    assert [call.id for call in announced] == [calls[0].id, calls[2].id, calls[3].id]
    arrived = [call.request_arrived(no_fetch) for call in announced]
    assert arrived[0] is not None and arrived[0].request.data == b'{"model":"m"}'
    assert arrived[1] is not None and arrived[2] is None
    assert assembler.requested() == []


@pytest.mark.parametrize("framing", ["Content-Length: 8", "Transfer-Encoding: chunked"])
def test_a_masked_query_does_not_hide_the_framing(framing: str) -> None:
    """What stands for a key holds spaces; the body is cut out of its framing all the same, and announced in time."""
    head = f"POST /v1?key=[masked sha256:0123abcd len:39] HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode()
    wire = b'{"a": 1}' if "Length" in framing else b'8\r\n{"a": 1}\r\n0\r\n\r\n'
    opening = pack_open(b"i" * 16, 1, route_facts("gemini", "https", "h", "bare path"), head)
    assembler = Assembler((), START)
    assembler.take(batch(pack(Kind.OPEN, 0, 1, 0, opening), pack(Kind.REQUEST, Flag.LAST, 1, 1, wire)))
    (call,) = assembler.requested()
    exchange = call.request_arrived(no_fetch)
    assert exchange is not None and exchange.request.data == b'{"a": 1}'
    assert exchange.target == "/v1?key=[masked sha256:0123abcd len:39]"
