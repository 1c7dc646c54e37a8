"""Heads and framing against llhttp: whatever we accept it accepts, with the same names, values and body."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.wire import hop
from llm_proxy.wire.framing import CHUNKS_PER_FEED, BadFraming, Chunked, UntilClose, for_request, for_response
from llm_proxy.wire.head import MAX_HEAD, BadHead, parse_request, parse_response

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"


class Seen:
    """What llhttp makes of a message."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False
        self.url = b""
        self.in_head = True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.in_head = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def llhttp(message: bytes) -> Seen:
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(message)
    except httptools.HttpParserUpgrade:
        pass
    return seen


REFUSED = {
    "obs-fold": GET + b"X: a\r\n b\r\n\r\n",
    "bare LF in head": b"GET / HTTP/1.1\nHost: h\r\n\r\n",
    "LF line end inside": GET + b"X: a\nY: b\r\n\r\n",
    "bare CR": GET + b"X: a\rb\r\n\r\n",
    "NUL in value": GET + b"X: a\0b\r\n\r\n",
    "control in value": GET + b"X: a\x01b\r\n\r\n",
    "space before colon": GET + b"X : a\r\n\r\n",
    "empty name": GET + b": a\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "two lengths": GET + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "two equal lengths": GET + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "length list": GET + b"Content-Length: 3, 3\r\n\r\n",
    "signed length": GET + b"Content-Length: +3\r\n\r\n",
    "hex length": GET + b"Content-Length: 0x3\r\n\r\n",
    "empty length": GET + b"Content-Length:\r\n\r\n",
    "huge length": GET + b"Content-Length: 9999999999999999999\r\n\r\n",
    "CL then TE": GET + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "TE then CL": GET + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "TE twice": GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "TE list": GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "TE not chunked": GET + b"Transfer-Encoding: xchunked\r\n\r\n",
    "TE chunked first": GET + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
    "TE identity": GET + b"Transfer-Encoding: identity\r\n\r\n",
    "TE with vertical tab": GET + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "TE in 1.0": b"GET / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: h\r\n\r\n",
    "lower-case version": b"GET / http/1.1\r\nHost: h\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
    "tab in request line": b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "two Hosts": GET + b"Host: h\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: h\r\n\r\n",
    "Connection names the length": GET + b"Connection: content-length\r\nContent-Length: 3\r\n\r\n",
    "Connection names Host": GET + b"Connection: close, host\r\n\r\n",
    "leading blank": b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_smuggling_shapes_are_refused(name: str) -> None:
    """Two parsers must never be able to disagree about a request that we forward."""
    with pytest.raises(BadHead) as caught:
        parse_request(REFUSED[name])
    assert caught.value.status in (400, 405)


ACCEPTED = {
    "plain": (GET + b"\r\n", b""),
    "length": (GET + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "length with spaces": (GET + b"Content-Length:  3 \r\n\r\nabc", b"abc"),
    "zero length": (GET + b"Content-Length: 0\r\n\r\n", b""),
    "odd names and values": (GET + b"X-A:3\r\nX-A:  1 \r\nx-a: \r\nx-A:a:b,c\r\n\r\n", b""),
    "high bytes": (GET + b"X: caf\xe9 \xff\r\n\r\n", b""),
    "chunked": (GET + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "chunk extensions": (GET + b'Transfer-Encoding: chunked\r\n\r\n03;a=b;c="d"\r\nabc\r\n000;x=y\r\n\r\n', b"abc"),
    "hex sizes": (GET + b"Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
    "trailers": (GET + b"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\na\r\n0\r\nX-T: v\r\nx-u:w\r\n\r\n", b"a"),
    "escapes": (b"GET /a%2Fb/%3f?x=1&y=%20&z HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "bare question mark": (b"GET /a? HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "dot segments": (b"GET /a/../b//c/%2e%2e HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "absolute form": (b"GET http://h/a HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "star": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", b""),
    "1.0": (b"POST / HTTP/1.0\r\nHost: h\r\nContent-Length: 1\r\n\r\na", b"a"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("behind", [b"", b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"])
def test_what_we_accept_llhttp_reads_the_same(name: str, behind: bytes) -> None:
    """Names, values, target and body agree with llhttp, and the end offset is exact whatever follows."""
    message, body = ACCEPTED[name]
    cut = message.index(b"\r\n\r\n") + 4
    head = parse_request(message[:cut])
    seen = llhttp(message)
    assert seen.complete
    assert [(field.line.partition(b":")[0], field.value) for field in head.fields] == [
        (name, value.strip(b" \t")) for name, value in seen.headers
    ]
    assert head.target == seen.url
    framing = for_request(head)
    sink: list[bytes] = []
    assert framing.feed(message + behind, cut, sink) == len(message)
    assert framing.done
    assert b"".join(sink) == body == seen.body


@pytest.mark.parametrize("name", [name for name, (message, _) in ACCEPTED.items() if b"hunked" in message])
def test_chunked_bodies_end_the_same_wherever_they_are_cut(name: str) -> None:
    """One byte at a time, and in two parts cut at every byte."""
    message, body = ACCEPTED[name]
    wire = message[message.index(b"\r\n\r\n") + 4 :]
    cuts = [[wire[:cut], wire[cut:]] for cut in range(len(wire))] + [[wire[i : i + 1] for i in range(len(wire))]]
    for pieces in cuts:
        framing, sink, taken = Chunked(), [], 0
        for piece in pieces:
            taken += framing.feed(piece, 0, sink)
        assert framing.done and taken == len(wire) and b"".join(sink) == body


@pytest.mark.parametrize(
    "wire",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nab\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
        b"3 \r\nabc\r\n",
        b"\r\nabc",
        b"g\r\n",
        b"3;a\nb\r\nabc\r\n",
        b"ffffffffffffffff\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\nX: y\n\r\n",
        b"0;" + b"x" * 5000 + b"\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 4000 + b"\r\n",
        b"1" * 5000,
    ],
)
def test_malformed_chunks_are_refused_wherever_they_are_cut(wire: bytes) -> None:
    """A chunked body that breaks its framing is never taken for a shorter or longer one."""
    for step in (1, 7, len(wire)):
        framing = Chunked()
        with pytest.raises(BadFraming):
            for start in range(0, len(wire), step):
                framing.feed(wire[start : start + step])
                assert not framing.done


def test_a_flood_of_tiny_chunks_is_taken_in_portions() -> None:
    """No call looks at more than its budget, so one client cannot hold up the loop; nothing is lost."""
    wire = b"1;x\r\na\r\n" * (CHUNKS_PER_FEED * 2 + 1) + b"0\r\n\r\n"
    framing, position, calls, sink = Chunked(), 0, 0, []
    while not framing.done:
        position = framing.feed(wire, position, sink)
        calls += 1
    assert calls == 3 and position == len(wire) and len(sink) == CHUNKS_PER_FEED * 2 + 1


@pytest.mark.parametrize(
    ("method", "head", "kind", "done"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "NoBody", True),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "NoBody", True),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "NoBody", True),
        (b"GET", b"HTTP/1.1 103 Early Hints\r\n\r\n", "NoBody", True),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "Chunked", False),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "ByLength", False),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "NoBody", True),
        (b"GET", b"HTTP/1.0 200 OK\r\n\r\n", "UntilClose", False),
        (b"GET", b"HTTP/1.1 529 \r\n\r\n", "UntilClose", False),
        (b"GET", b"HTTP/1.1 200\r\n\r\n", "UntilClose", False),
    ],
)
def test_response_framing_follows_rfc_9112(method: bytes, head: bytes, kind: str, done: bool) -> None:
    """The framer comes from method, status and fields together."""
    framing = for_response(parse_response(head), method)
    assert type(framing).__name__ == kind
    assert framing.done is done


def test_a_head_has_limits() -> None:
    """Too large or too many is 431, not memory."""
    for fields in (b"X: " + b"y" * MAX_HEAD + b"\r\n", b"X: y\r\n" * 300):
        with pytest.raises(BadHead) as caught:
            parse_request(GET + fields + b"\r\n")
        assert caught.value.status == 431


def test_outgoing_heads_change_hop_by_hop_lines_and_host_only() -> None:
    """Order, case, duplicates and odd spacing survive; nothing is added."""
    head = parse_request(
        b"POST /anthropic/h/v1 HTTP/1.0\r\nX-B:1\r\nHOST:  me:1 \r\nconnection: close, x-Hop\r\nX-Hop: gone\r\n"
        b"Keep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic x\r\nx-b: 2\r\nX-B:1\r\nContent-Length: 3\r\n\r\n"
    )
    assert hop.request(head, b"/v1", b"api.example") == (
        b"POST /v1 HTTP/1.1\r\nX-B:1\r\nHOST: api.example\r\nx-b: 2\r\nX-B:1\r\nContent-Length: 3\r\n\r\n"
    )


def test_connection_cannot_take_away_end_to_end_fields() -> None:
    """A nomination of a credential or content field is ignored, so the upstream sees what the client wrote."""
    head = parse_request(
        GET + b"Connection: authorization, x-api-key, x-mine\r\nAuthorization: a\r\nX-API-Key: b\r\nX-Mine: c\r\n\r\n"
    )
    assert hop.request(head, b"/", b"h") == b"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: a\r\nX-API-Key: b\r\n\r\n"


FIELD = st.tuples(
    st.from_regex(rb"\A[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}\Z"),
    st.binary(max_size=20),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(FIELD, max_size=6), st.binary(max_size=12))
def test_llhttp_accepts_whatever_we_accept(fields: list[tuple[bytes, bytes]], target: bytes) -> None:
    """Random bytes everywhere: we refuse, or llhttp reads the same. (Exception, on purpose: bytes above 0x7F in a target.)"""
    if any(byte > 0x7F for byte in target):
        return
    lines = b"".join(name + b":" + value + b"\r\n" for name, value in fields)
    message = b"GET /" + target + b" HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n"
    cut = message.index(b"\r\n\r\n") + 4
    try:
        head = parse_request(message[:cut])
    except BadHead:
        return
    if head.length or head.chunked:
        return
    seen = llhttp(message[:cut])
    assert [(field.name, field.value) for field in head.fields] == [
        (name.lower(), value.strip(b" \t")) for name, value in seen.headers
    ]
    assert seen.url == head.target


def test_a_body_until_close_takes_everything() -> None:
    """Such a response ends with its connection, never before."""
    framing, sink = UntilClose(), []
    assert framing.feed(b"abc", 1, sink) == 3 and sink == [b"bc"] and not framing.done and framing.ends_by_close()
