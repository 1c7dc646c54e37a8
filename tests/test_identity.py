"""Byte for byte: what one side sends is what the other gets and the journal holds, hop-by-hop fields and Host apart."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import brotli
import pytest
from backports import zstd

from llm_proxy.journal.frames import Flag
from llm_proxy.records.exchange import Ending
from tests.rig import OK, Rig, StartRig, Upstream, Wire

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW")


def _gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _damaged(data: bytes) -> bytes:
    whole = _gzipped(data)
    return whole[:20] + bytes(byte ^ 0xFF for byte in whole[20:])


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": lambda data: data,
    "gzip": _gzipped,
    "deflate": zlib.compress,
    "br": lambda data: bytes(brotli.compress(data, quality=1)),
    "zstd": lambda data: bytes(zstd.compress(data)),
    "bad-gzip": _damaged,
}
SIZES = (0, 1, 2_000, 65_535, 65_536, 65_537, 300_000)
REQUEST_FRAMINGS = ("none", "length", "chunked", "trailers", "HTTP/1.0")
RESPONSE_FRAMINGS = ("length", "chunked", "trailers", "close", "HTTP/1.0")

# Field lines that pass as they are, whatever a reader makes of them.
ODDITIES = {
    "none": [],
    "case and order": [b"x-lower: 1", b"X-UPPER: 2", b"X-Mixed-cAsE: 3", b"x-lower: 4", b"A: 5"],
    "duplicates": [b"Set-Cookie: a=1", b"X-Same: 1", b"Set-Cookie: b=2", b"X-Same: 1", b"x-same: 2"],
    "empty values": [b"X-Empty:", b"X-Blank: ", b"X-Tab:\t", b"X-Next: 1"],
    "high bytes": [b"X-High: " + bytes(range(0x80, 0x100)), "X-Utf8: Grüße, 世界".encode()],
    "spacing": [b"X-None:3", b"X-Two:  1  ", b"X-Tab:\t1\t", b"X-Inside: a  b\t c"],
    "signs": [b'X-!#$%&\'*+-.^_`|~9: "q\\"";a=b, (c), <d>', b"X-Colons: a:b:c"],
    "200 fields": [b"X-Field-%d: %d" % (number, number) for number in range(200)],
    "60 kB": [b"X-Long: " + b"l" * 30_000, b"X-Longer: " + b"m" * 30_000],
}


class Case(NamedTuple):
    """One exchange."""

    method: str
    request_framing: str
    request_coding: str
    request_size: int
    request_fields: str
    response_framing: str
    response_coding: str
    response_size: int
    response_fields: str


_AXES: tuple[tuple[Any, ...], ...] = (
    METHODS,
    REQUEST_FRAMINGS,
    tuple(CODINGS),
    SIZES,
    tuple(ODDITIES),
    RESPONSE_FRAMINGS,
    tuple(CODINGS),
    SIZES,
    tuple(ODDITIES),
)


def pairwise() -> list[Case]:
    """Cases in which every value of every axis meets every value of every other, chosen greedily; always the same."""
    dice = random.Random(1)
    missing = {
        (one, a, other, b)
        for one, other in itertools.combinations(range(len(_AXES)), 2)
        for a in _AXES[one]
        for b in _AXES[other]
    }
    cases = []
    while missing:
        one, a, other, b = min(missing, key=str)
        best: tuple[Any, ...] = ()
        gain: set[Any] = set()
        for _ in range(30):
            row = [dice.choice(axis) for axis in _AXES]
            row[one], row[other] = a, b
            covered = {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)} & missing
            if len(covered) > len(gain):
                best, gain = tuple(row), covered
        missing -= gain
        cases.append(Case(*best))
    return cases


CASES = pairwise()
BATCHES = 12
TARGET = "/v1/x%2F%41/./../b//c;d=%zz?q=%20+&&=?/"


def content(size: int, seed: int) -> bytes:
    """Half text, half noise, so that codings change its size."""
    dice = random.Random(size * 31 + seed)
    return (dice.randbytes(size // 2) + b'{"role":"user","text":"Hello"}' * (size // 30 + 1))[:size]


def chunked(body: bytes, trailers: bytes) -> bytes:
    """In chunks of uneven sizes, with extensions and sizes spelled in several ways."""
    spelled = itertools.cycle((b"%x", b"%X", b"00%x", b"%x;ext", b'%x;name="va;lue";b=1'))
    sizes = itertools.cycle((1, 7, 1000, 16_384, 70_000))
    out, at = b"", 0
    while at < len(body):
        piece = body[at : at + next(sizes)]
        out += next(spelled) % len(piece) + b"\r\n" + piece + b"\r\n"
        at += len(piece)
    return out + b"0;last\r\n" + trailers + b"\r\n"


TRAILERS = b"X-Checksum: abc\r\nServer-Timing: total;dur=1\r\nX-High: \xe9\r\n"


def framed(framing: str, body: bytes) -> tuple[list[bytes], bytes]:
    """The field lines that frame a body, and its bytes on the wire."""
    if framing == "chunked":
        return [b"transfer-encoding: chunked"], chunked(body, b"")
    if framing == "trailers":
        return [b"Trailer: X-Checksum", b"Transfer-Encoding:  Chunked"], chunked(body, TRAILERS)
    if framing in ("close", "none"):
        return [], body
    return [b"CONTENT-LENGTH: %d" % len(body)] if len(body) % 2 else [b"Content-Length: %d" % len(body)], body


def lines_of(coding: str, oddity: str, framing: list[bytes]) -> list[bytes]:
    """Field lines, the framing among the others."""
    lines = list(ODDITIES[oddity])
    if coding != "identity":
        lines.append(b"Content-Encoding: " + coding.removeprefix("bad-").encode())
    middle = len(lines) // 2
    return lines[:middle] + framing + lines[middle:]


class Played(NamedTuple):
    """What crossed the wire as bodies, both ways, and whether both connections go on."""

    request: bytes
    response: bytes
    goes_on: bool


async def play(client: Wire, upstream: Upstream, server: Wire | None, case: Case) -> tuple[Wire, Played]:
    """One exchange, compared byte for byte; gives the upstream's connection too, a new one where there was none."""
    old = case.request_framing == "HTTP/1.0"
    payload = b"" if case.request_framing == "none" else CODINGS[case.request_coding](content(case.request_size, 1))
    framing, sent = framed(case.request_framing, payload)
    lines = lines_of(case.request_coding, case.request_fields, framing)
    start = f"{case.method} /openai/127.0.0.1:{upstream.port}{TARGET} HTTP/1.{0 if old else 1}".encode()
    await client.send(b"\r\n".join([start, b"hOsT:  127.0.0.1:1 ", b"Connection: keep-alive", *lines, b"", b""]) + sent)
    server = server or await upstream.accept()
    request = await server.message()
    start = f"{case.method} {TARGET} HTTP/1.1".encode()
    assert request.head == b"\r\n".join([start, b"hOsT: 127.0.0.1:%d" % upstream.port, *lines, b"", b""])
    assert request.wire == sent and request.payload == payload

    to_head = case.method == "HEAD"
    payload = b"" if to_head else CODINGS[case.response_coding](content(case.response_size, 2))
    framing, came = framed(case.response_framing, payload)
    came = b"" if to_head else came
    lines = lines_of(case.response_coding, case.response_fields, framing)
    start = (b"HTTP/1.0" if case.response_framing == "HTTP/1.0" else b"HTTP/1.1") + b" 207 Odd \xe9 Reason"
    await server.send(
        b"\r\n".join([start, *lines, b"Keep-Alive: timeout=5", b"Connection: keep-alive", b"", b""]) + came
    )
    if case.response_framing == "close":
        server.half_close()
    answer = await client.message(to_head=to_head)
    if old and not to_head and case.response_framing in ("chunked", "trailers"):  # HTTP/1.0 has no chunks
        lines = [line for line in lines if line not in framing]
        assert answer.wire == payload
    else:
        assert answer.wire == came
    assert answer.head == b"\r\n".join([start, *lines, b"", b""]) and answer.complete
    goes_on = not old and case.response_framing not in ("HTTP/1.0", "close")
    if not goes_on:
        client.half_close() if to_head else await client.to_the_end()
        assert client.ended != "rst" and client.read == len(client.received)
    return server, Played(sent, came, goes_on)


@pytest.mark.parametrize("number", range(BATCHES))
async def test_every_byte_passes(rigs: StartRig, number: int) -> None:
    """Every pair of methods, codings, framings, header oddities and sizes, each twice, on connections used again."""
    rig = await rigs(ring_size=64 << 20)
    upstream = rig.upstream()
    client, server = rig.client(), None
    cases = [case for case in CASES[number::BATCHES] for _ in range(2)]
    played = []
    for case in cases:
        server, one = await play(client, upstream, server, case)
        played.append(one)
        if not one.goes_on:
            client = rig.client()
            await rig.until(lambda: len(rig.core.clients) == 1)
            server = server if len(rig.core.pool) else None
    for case, one, recorded in zip(cases, played, await rig.exchanges(), strict=True):
        assert (recorded.request, recorded.response) == (one.request, one.response), case
        assert recorded.ending is Ending.COMPLETE and not recorded.flags & Flag.LOSSY
        assert recorded.opening.head.startswith(f"{case.method} {TARGET} HTTP/1.".encode())


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_large_bodies_pass(rigs: StartRig, framing: str) -> None:
    """5 MB each way, and each byte of it in the journal."""
    rig = await rigs(ring_size=64 << 20)
    upstream = rig.upstream()
    client = rig.client()
    lines, sent = framed(framing, content(5 << 20, 1))
    head = b"\r\n".join(
        [b"POST /openai/127.0.0.1:%d/v1/x HTTP/1.1" % upstream.port, b"Host: localhost", *lines, b"", b""]
    )
    sending = asyncio.create_task(client.send(head + sent))
    server = await upstream.accept()
    assert (await server.message()).wire == sent
    await sending
    lines, came = framed(framing, content(5 << 20, 2))
    sending = asyncio.create_task(server.send(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b""]) + came))
    assert (await client.message()).wire == came
    await sending
    recorded = await rig.recorded()
    assert (recorded.request, recorded.response) == (sent, came)
    assert recorded.end.request_size == recorded.end.response_size == 5 << 20


TARGETS = (
    "/",
    "/?",
    "/v1/messages?",
    "/v1/messages??",
    "/v1/messages?beta=true&x=%3A%2f",
    "//double//slash/",
    "/a/../b/./c/%2e%2e/d",
    "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A%3Ax/invoke",
    "/v1beta/models/gemini:streamGenerateContent?alt=sse",
    "/%41%zz%",
    "/[]{}|\\^`\"<>'",
    "/;param=1;x",
    "/ünïcode/世界",
    "/q?http://x/?a=b#".rstrip("#"),
    "/" + "long" * 2000,
)


async def test_targets_pass_as_sent(rig: Rig) -> None:
    """Escapes, dots, slashes and question marks are the client's spelling; nobody tidies them up."""
    upstream = rig.upstream()
    client, server = rig.client(), None
    for target in TARGETS:
        raw = target.encode()
        await client.send(b"GET /openai/127.0.0.1:%d%b HTTP/1.1\r\nHost: localhost:1\r\n\r\n" % (upstream.port, raw))
        server = server or await upstream.accept()
        request = await server.message()
        assert request.head.split(b"\r\n")[0] == b"GET " + raw + b" HTTP/1.1"
        await server.send(OK)
        assert (await client.message()).status == 200
    heads = [one.opening.head.split(b"\r\n")[0] for one in await rig.exchanges()]
    assert heads == [b"GET " + target.encode() + b" HTTP/1.1" for target in TARGETS]


HOP_BY_HOP = [
    b"Connection: keep-alive, X-Mine",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"TE: trailers",
    b"Proxy-Authorization: Basic eDp5",
    b"Upgrade: h2c",
    b"x-mine: 1",
    b"X-MINE: 2",
]
END_TO_END = [b"X-A: 1", b"Authorization: Bearer sk-x", b"Cache-Control: no-store", b"X-Mine-Too: 1", b"Via: 1.0 x"]


async def test_only_hop_by_hop_fields_stay_behind(rig: Rig) -> None:
    """The fixed set and what Connection names, in both directions; nothing else, and nothing is added."""
    upstream = rig.upstream()
    client = rig.client()
    mixed = [line for pair in itertools.zip_longest(HOP_BY_HOP, END_TO_END) for line in pair if line is not None]
    start = b"GET /openai/127.0.0.1:%d/v1/x HTTP/1.1" % upstream.port
    await client.send(b"\r\n".join([start, *mixed, b"Host: localhost", b"", b""]))
    server = await upstream.accept()
    request = await server.message()
    host = b"Host: 127.0.0.1:%d" % upstream.port
    assert request.head == b"\r\n".join([b"GET /v1/x HTTP/1.1", *END_TO_END, host, b"", b""])
    await server.send(b"\r\n".join([b"HTTP/1.1 200", *mixed, b"Content-Length: 0", b"", b""]))
    answer = await client.message()
    assert answer.head == b"\r\n".join([b"HTTP/1.1 200", *END_TO_END, b"Content-Length: 0", b"", b""])


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "content-type", "cache-control", "anthropic-version"])
async def test_connection_cannot_take_away_what_matters(rig: Rig, name: str) -> None:
    """Naming a credential or a description of the body in Connection does not remove it."""
    upstream = rig.upstream()
    _, _, request = await rig.meet(upstream, b"x", more=f"Connection: {name}\r\n{name}: v\r\n")
    assert request.get(name.encode()) == b"v"
