"""Recorded bodies are decoded to what was encoded, in any pieces, and no body can make that expensive."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import time
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.wire.codings import LIMIT, MAX_MEMBERS, CodingError, Decoder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
    "identity": bytes,
    "": bytes,
}
TEXT = b'event: message_start\ndata: {"type":"message_start"}\n\n' * 4 + bytes(range(256))


def decoded(encoding: str, data: bytes, cuts: int = 1 << 30, limit: int = LIMIT) -> bytes:
    decoder = Decoder(encoding, limit)
    pieces = [decoder.feed(data[start : start + cuts]) for start in range(0, len(data), cuts)]
    return b"".join((*pieces, decoder.finish()))


WHOLE = [
    *[(name, encode(TEXT)) for name, encode in ENCODERS.items()],
    ("deflate", raw_deflate(TEXT)),
    ("GZip", gzip.compress(TEXT)),
    ("gzip", gzip.compress(TEXT[:100]) + gzip.compress(b"") + gzip.compress(TEXT[100:])),
    ("gzip", gzip.compress(TEXT) + b"\0" * 20),
    ("zstd", zstd.compress(TEXT[:100]) + zstd.compress(b"") + zstd.compress(TEXT[100:])),
    ("zstd", b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstd.compress(TEXT)),
    ("gzip, br", brotli.compress(gzip.compress(TEXT))),
    ("br , zstd", zstd.compress(brotli.compress(TEXT))),
    ("gzip, gzip", gzip.compress(gzip.compress(TEXT))),
    ("identity, deflate, identity", zlib.compress(TEXT)),
]


@pytest.mark.parametrize(("encoding", "data"), WHOLE)
def test_every_coding_gives_back_what_was_encoded_wherever_it_is_cut(encoding, data):
    """Whole, byte by byte, and cut in two at every byte."""
    assert decoded(encoding, data) == TEXT
    assert decoded(encoding, data, cuts=1) == TEXT
    for cut in range(len(data) + 1):
        decoder = Decoder(encoding)
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) + decoder.finish() == TEXT


CODED = ["gzip", "deflate", "br", "zstd"]


@pytest.mark.parametrize("encoding", CODED)
def test_what_was_flushed_is_decoded_before_the_body_ends(encoding):
    """A stream that is cut shows everything its sender had flushed; its early end is said."""
    flushed = {
        "gzip": lambda: _flushed(zlib.compressobj(wbits=31), zlib.Z_SYNC_FLUSH),
        "deflate": lambda: _flushed(zlib.compressobj(), zlib.Z_SYNC_FLUSH),
        "br": _flushed_brotli,
        "zstd": lambda: _flushed(zstd.ZstdCompressor(), zstd.ZstdCompressor.FLUSH_BLOCK),
    }[encoding]()
    decoder = Decoder(encoding)
    assert decoder.feed(flushed) == TEXT
    with pytest.raises(CodingError, match="ends early"):
        decoder.finish()


def _flushed(stream, mode):
    return stream.compress(TEXT) + stream.flush(mode)


def _flushed_brotli():
    stream = brotli.Compressor()
    return stream.process(TEXT) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("gzip, gzip, gzip", "more than 2"),
        ("br, gzip, zstd, identity", "more than 2"),
        ("compress", "unknown content coding 'compress'"),
        ("gzip; q=1", "unknown content coding"),
        ("\xff" * 1000, "unknown content coding"),
    ],
)
def test_a_coding_not_served_is_refused_by_name(encoding, reason):
    """Before any byte is read."""
    with pytest.raises(CodingError, match=reason) as caught:
        Decoder(encoding)
    assert len(caught.value.reason) < 250


@pytest.mark.parametrize("encoding", CODED)
@pytest.mark.parametrize("body", [b'{"plain": "json"}', b"\0" * 40, b"\xff" * 40, b"<html>"], ids=repr)
def test_a_body_that_is_not_what_it_says_is_an_error(encoding, body):
    """Plain JSON under `Content-Encoding: gzip`, as real gateways send it."""
    with pytest.raises(CodingError):
        decoded(encoding, body)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TEXT) + b"tail"),
        ("gzip", gzip.compress(TEXT) + b"\0\0tail"),
        ("deflate", zlib.compress(TEXT) + b"tail"),
        ("deflate", zlib.compress(TEXT) + zlib.compress(TEXT)),
        ("br", brotli.compress(TEXT) + b"tail"),
        ("zstd", zstd.compress(TEXT) + b"tail"),
        ("gzip", gzip.compress(TEXT)[:-5] + b"WRONG"),  # checksum and length
        ("gzip, br", brotli.compress(TEXT)),
    ],
)
def test_bytes_behind_the_end_and_wrong_checksums_are_errors(encoding, body):
    """Nothing is passed over in silence: the record then keeps the raw bytes."""
    with pytest.raises(CodingError):
        decoded(encoding, body)


@pytest.mark.parametrize("encoding", [*CODED, "identity", "gzip, br"])
def test_no_body_decodes_to_nothing(encoding):
    """A 304 or a HEAD names a coding and has no body."""
    assert decoded(encoding, b"") == b""


SIZE = 200 * 1024 * 1024


def _zeros(stream, end):
    block = bytes(1 << 20)
    return b"".join([stream(block) for _ in range(SIZE >> 20)]) + end()


@pytest.fixture(scope="module")
def bombs():
    packer = zlib.compressobj(wbits=31)
    gz = _zeros(packer.compress, packer.flush)
    squeezer = brotli.Compressor(quality=5)
    frame = zstd.ZstdCompressor()
    return {
        "gzip": gz,
        "deflate": zlib.compress(zlib.decompress(gz, 31)),
        "br": _zeros(squeezer.process, squeezer.finish),
        "zstd": _zeros(frame.compress, frame.flush),
        "gzip, gzip": gzip.compress(gz),
        "gzip, br": brotli.compress(gz),
    }


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "gzip, br"])
@pytest.mark.parametrize("limit", [1, 1000, 8 << 20])
def test_a_bomb_stops_at_the_limit(bombs, encoding, limit):
    """200 MB of zeros give exactly the limit, in little time, and what comes after is not looked at."""
    bomb = bombs[encoding]
    decoder = Decoder(encoding, limit)
    started = time.process_time()
    assert decoder.feed(bomb) == bytes(limit)
    assert decoder.truncated
    assert decoder.feed(b"anything") == b"" == decoder.finish()
    assert time.process_time() - started < 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak from /proc")
def test_a_bomb_needs_no_memory_beyond_the_limit(bombs, tmp_path):
    """The output, its joined copy, one window and one piece: far from the 200 MB it claims."""
    script = (
        "import re, sys\n"
        "from llm_proxy.wire.codings import Decoder\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024\n"
        "Decoder('br').feed(b'x'), Decoder('zstd').feed(b'(')\n"
        "bomb, base = open(sys.argv[2], 'rb').read(), peak()\n"
        "print(len(Decoder(sys.argv[1], 32 << 20).feed(bomb)), peak() - base)\n"
    )
    for encoding, bomb in bombs.items():
        path = tmp_path / "bomb"
        path.write_bytes(bomb)
        run = [sys.executable, "-c", script, encoding, str(path)]
        size, grown = subprocess.run(run, capture_output=True, check=True, timeout=60, text=True).stdout.split()
        assert int(size) == 32 << 20
        assert 32 < int(grown) < 64 + 24, encoding


def test_output_of_exactly_the_limit_is_not_truncated():
    """One byte more is."""
    for encoding in ENCODERS:
        body = ENCODERS[encoding](TEXT)
        for limit, truncated in ((len(TEXT), False), (len(TEXT) - 1, True)):
            decoder = Decoder(encoding, limit)
            assert decoder.feed(body) == TEXT[:limit]
            assert decoder.truncated is truncated


def test_thousands_of_empty_members_are_refused_soon():
    """150,000 empty gzip members are 3 MB and cost a naive decoder many seconds."""
    for encoding, member in (("gzip", gzip.compress(b"")), ("zstd", zstd.compress(b""))):
        assert decoded(encoding, member * MAX_MEMBERS) == b""
        started = time.process_time()
        with pytest.raises(CodingError, match="more than 1000"):
            decoded(encoding, member * 150_000)
        assert time.process_time() - started < 1


def test_a_zstd_window_beyond_the_content_codings_maximum_is_refused():
    """What encoders choose by themselves up to level 19 passes."""
    data = random.Random(1).randbytes(1 << 20) * 10
    for window, ok in ((23, True), (24, False), (27, False)):
        options = {zstd.CompressionParameter.window_log: window, zstd.CompressionParameter.compression_level: 1}
        stream = zstd.ZstdCompressor(options=options)
        body = stream.compress(data) + stream.flush()
        if ok:
            assert decoded("zstd", body) == data
        else:
            with pytest.raises(CodingError):
                decoded("zstd", body)


def test_a_large_body_that_hardly_shrinks_is_decoded_in_linear_time():
    """What a codec hands back unread is copied: never more than a slice."""
    data = random.Random(2).randbytes(24 << 20)
    body = gzip.compress(data, 1)
    started = time.process_time()
    assert decoded("gzip", body) == data
    assert time.process_time() - started < 2


def test_many_members_before_a_large_one_cost_little():
    """Each member's end hands the rest of its slice back, not the rest of the body."""
    data = random.Random(3).randbytes(48 << 20)
    body = gzip.compress(b"") * (MAX_MEMBERS - 1) + gzip.compress(data, 0)
    started = time.process_time()
    assert decoded("gzip", body) == data
    assert time.process_time() - started < 1


@pytest.mark.parametrize("extra", range(1, 259, 3))
def test_a_match_across_a_full_piece_is_not_lost(extra):
    """zlib may have read all its input and still owe output: at most one match, 258 bytes."""
    data = bytes((1 << 20) + extra)
    assert decoded("deflate", raw_deflate(data)) == data


@given(st.sampled_from(CODED), st.binary(max_size=300), st.integers(1, 50))
def test_anything_can_be_fed_and_only_a_coding_error_comes_out(encoding, data, cuts):
    """Garbage, whole or in pieces."""
    try:
        decoded(encoding, data, cuts)
    except CodingError:
        pass


@given(st.sampled_from(WHOLE), st.data())
def test_damage_is_an_error_or_harmless(vector, data):
    """One changed byte never gives anything but a CodingError or some output."""
    encoding, body = vector
    at = data.draw(st.integers(0, len(body) - 1))
    damaged = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    try:
        decoded(encoding, damaged, cuts=7)
    except CodingError:
        pass


@given(st.sampled_from(CODED), st.sampled_from(CODED), st.binary(max_size=2000), st.integers(1, 500))
def test_two_layers_round_trip(first, second, data, cuts):
    """The list is in the order of application."""
    body = ENCODERS[second](ENCODERS[first](data))
    assert decoded(f"{first},{second}", body, cuts) == data


def test_decoders_are_imported_when_they_are_met():
    """A keeper that sees only plain bodies loads neither."""
    code = "import sys; from llm_proxy.wire.codings import Decoder; Decoder('gzip').feed(b''); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=30)
    assert not {"brotli", "backports.zstd", "compression.zstd"} & set(done.stdout.split())
