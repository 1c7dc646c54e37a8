"""An upstream answers before the request is whole and resets the connection: its answer still reaches the client."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from llm_proxy.journal.frames import Note
from llm_proxy.proxy.upstream import UpstreamConnection
from llm_proxy.records.exchange import Ending
from tests.fakeprovider.certificate import CERTIFICATE, tls_context
from tests.rig import CONTINUE, OK, TIMEOUT, Rig, StartRig, Wire

BODY = 100_000_000  # bytes that are announced; no test sends all of them
PIECE = bytes(20_000)
JSON = b'{"type":"error","error":{"type":"request_too_large"}}'


class Hasty:
    """A server on blocking sockets that reads a request's head, and only that, and answers when it is told to."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self.scheme = "http" if tls is None else "https"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT)
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []

    async def accept(self) -> None:
        await asyncio.to_thread(self._accept)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_side=True)
        self.connections.append(sock)
        self.read_head()

    def read_head(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.connections[-1].recv(1)
            assert byte
            head += byte

    def has_unread(self) -> bool:
        return bool(select.select([self.connections[-1]], [], [], 0)[0])

    def send(self, data: bytes) -> None:
        self.connections[-1].sendall(data)

    def answer(self, data: bytes) -> None:
        """Send, and close with bytes unread: the kernel makes that a reset."""
        assert self.has_unread()
        self.send(data)
        self.connections[-1].close()

    def end(self) -> None:
        """Say that nothing more comes, and take nothing more either."""
        connection = self.connections[-1]
        if isinstance(connection, ssl.SSLSocket):
            with contextlib.suppress(ssl.SSLError, OSError):
                connection.settimeout(0)
                connection.unwrap()  # sends close_notify; the answer to it is not waited for
        connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture(params=["http", "https"])
def hasty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hasty]:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with contextlib.closing(Hasty(tls_context() if request.param == "https" else None)) as server:
        yield server


async def start(rigs: StartRig, server: Hasty) -> Rig:
    return await rigs(allow=(f"{server.scheme}://127.0.0.1:{server.port}",))


async def uploading(rigs: StartRig, server: Hasty, *, receive_buffer: int = 0) -> tuple[Rig, Wire]:
    """A client in the middle of its upload; what the server has been sent behind the head lies unread in its kernel."""
    rig = await start(rigs, server)
    client = rig.client(receive_buffer=receive_buffer)
    await client.send(rig.request(method="POST", to=server.port, more=f"Content-Length: {BODY}\r\n"))
    await server.accept()
    await client.send(PIECE)
    await rig.until(server.has_unread)
    return rig, client


def before_the_next_write(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Let the server act after the proxy has looked at what is readable and before it writes."""
    write = UpstreamConnection.send

    def send(self: UpstreamConnection, data: bytes) -> None:
        monkeypatch.setattr(UpstreamConnection, "send", write)
        action()
        write(self, data)

    monkeypatch.setattr(UpstreamConnection, "send", send)


def sized(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)


CHUNKED = b"HTTP/1.1 413 Content Too Large\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "short": (413, sized(b"413 Content Too Large", JSON), JSON),
    "after an interim head": (429, CONTINUE + sized(b"429 Too Many Requests", JSON), JSON),
    "without a body": (401, sized(b"401 Unauthorized", b""), b""),
    "40 kB": (413, sized(b"413 Content Too Large", bytes(40_000)), bytes(40_000)),
    "many chunks": (413, CHUNKED + b"1\r\na\r\n" * 5_000 + b"0\r\n\r\n", b"a" * 5_000),
}


@pytest.mark.parametrize("when", ["same turn", "before the write"])
@pytest.mark.parametrize(("status", "answer", "payload"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_an_answer_that_is_there_is_read_before_its_connection_counts_as_lost(
    rigs: StartRig, monkeypatch: pytest.MonkeyPatch, hasty: Hasty, status: int, answer: bytes, payload: bytes, when: str
) -> None:
    """A write fails although the answer lies in the socket's buffer: the client gets it, and the record says so."""
    rig, client = await uploading(rigs, hasty)
    if when == "same turn":
        client.socket.send(PIECE)
        hasty.answer(answer)
    else:
        before_the_next_write(monkeypatch, partial(hasty.answer, answer))
        await client.send(PIECE)
    got = await client.message()
    assert (got.status, got.payload, got.complete) == (status, payload, True)
    await client.to_the_end()
    assert client.ended == "fin"
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE and recorded.end.notes & Note.EARLY
    assert recorded.end.response_size == len(payload) and not len(rig.core.pool)


async def test_an_early_answer_is_no_reason_to_ask_again(
    rigs: StartRig, monkeypatch: pytest.MonkeyPatch, hasty: Hasty
) -> None:
    """A connection used before breaks with an answer in its buffer: that is the answer, nothing is sent twice."""
    rig = await start(rigs, hasty)
    client = rig.client()
    await client.send(rig.request(to=hasty.port))
    await hasty.accept()
    hasty.send(OK)
    assert (await client.message()).status == 200
    await client.send(rig.request(method="POST", to=hasty.port, more=f"Content-Length: {BODY}\r\n"))
    await asyncio.to_thread(hasty.read_head)
    await client.send(PIECE)
    await rig.until(hasty.has_unread)
    before_the_next_write(monkeypatch, partial(hasty.answer, sized(b"429 Too Many Requests", JSON)))
    await client.send(PIECE)
    assert (await client.message()).status == 429
    _, second = await rig.exchanges(2)
    assert second.end.notes & Note.REUSED and not second.end.notes & Note.RETRIED


async def test_the_rest_of_an_answer_is_read_too(rigs: StartRig, monkeypatch: pytest.MonkeyPatch, hasty: Hasty) -> None:
    """Part of the answer is out when the connection breaks: the other part follows it."""
    rig, client = await uploading(rigs, hasty)
    answer = sized(b"413 Content Too Large", bytes(200_000) + JSON)
    hasty.send(answer[:160_000])
    while len(client.received) < 150_000:
        await client.receive()
    before_the_next_write(monkeypatch, partial(hasty.answer, answer[160_000:]))
    await client.send(PIECE)
    got = await client.message()
    assert got.complete and got.payload.endswith(JSON)
    assert (await rig.recorded()).ending is Ending.COMPLETE


async def test_what_a_break_leaves_incomplete_stays_a_break(
    rigs: StartRig, monkeypatch: pytest.MonkeyPatch, hasty: Hasty
) -> None:
    """An answer without a length that ends in a reset is passed on and broken off: nobody knows what is missing."""
    rig, client = await uploading(rigs, hasty)
    answer = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n" + JSON
    before_the_next_write(monkeypatch, partial(hasty.answer, answer))
    await client.send(PIECE)
    got = await client.message()
    assert (got.status, got.payload, client.ended) == (413, JSON, "rst")
    recorded = await rig.recorded()
    assert recorded.ending is Ending.UPSTREAM_FAILED and recorded.response == JSON


@pytest.mark.parametrize("left", ["in the socket", "in the loop"])
async def test_an_answer_is_read_although_the_client_takes_nothing(
    rigs: StartRig, monkeypatch: pytest.MonkeyPatch, hasty: Hasty, left: str
) -> None:
    """The upstream's reader is paused when the connection breaks: what had come goes out all the same."""
    rig, client = await uploading(rigs, hasty, receive_buffer=4096)
    (relay,) = rig.core.relays
    hasty.send(CHUNKED)
    chunks, piece = 0, b"2000\r\n" + bytes(0x2000) + b"\r\n"
    while not relay.upstream.gate.reasons:
        hasty.send(piece)
        chunks += 1
        await asyncio.sleep(0)
    hasty.send(piece)
    last = b"0\r\n\r\n"
    if left == "in the loop":  # over TLS it reads on for a while, and keeps what it does not deliver
        hasty.send(last)
        last = b""
        for _ in range(10):
            await asyncio.sleep(0)
    before_the_next_write(monkeypatch, partial(hasty.answer, last))
    await client.send(PIECE)
    got = await client.message()
    assert got.complete and len(got.payload) == (chunks + 1) * 0x2000
    assert (await rig.recorded()).ending is Ending.COMPLETE


async def test_an_answer_ends_where_its_sender_ends_it(rigs: StartRig, hasty: Hasty) -> None:
    """Without a length, its end is the upstream's FIN; what the upstream never took is not kept for it."""
    rig, client = await uploading(rigs, hasty)
    (relay,) = rig.core.relays
    connection, block = relay.upstream, bytes(1 << 16)
    while not connection.full:
        await client.send(block)
        await asyncio.sleep(0)
    hasty.send(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n" + JSON)
    hasty.end()
    got = await client.message()
    assert (got.status, got.payload, client.ended) == (413, JSON, "fin")
    await rig.until(lambda: connection.transport is None)
    assert (await rig.recorded()).ending is Ending.COMPLETE
