"""Whatever breaks, it breaks visibly: the client sees a reset or an error of ours, the journal the right ending."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from llm_proxy.journal.frames import Flag, Note
from llm_proxy.proxy.client import ClientConnection
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.upstream import UpstreamConnection
from llm_proxy.records.exchange import Ending
from tests.fakeprovider import FakeProvider
from tests.fakeprovider.certificate import CERTIFICATE, tls_context
from tests.rig import CONTINUE, OK, Message, Rig, StartRig, Wire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n"


def check_error(answer: Message, status: int, code: str) -> None:
    """An error answer of ours: JSON with a message, and the code in its own field."""
    assert (answer.status, answer.get(b"x-llm-proxy-error").decode()) == (status, code)
    body = json.loads(answer.payload)
    assert answer.complete and body["type"] == "error" and body["error"]["message"].startswith("llm-proxy: ")


# --- the upstream breaks ---------------------------------------------------------------------------------------------


BEFORE_HEAD = {
    "before anything": (b"", "upstream_reset"),
    "in the status line": (b"HTTP/1.1 2", "upstream_reset"),
    "in the head": (HEAD[:-2], "upstream_reset"),
    "after an interim head": (CONTINUE, "upstream_reset"),
    "no HTTP at all": (b"\x16\x03\x01 no HTTP\r\n\r\n", "bad_response"),
    "HTTP/2": (b"HTTP/2 200 OK\r\n\r\n", "bad_response"),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", "bad_response"),
    "length and chunked": (HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n", "bad_response"),
    "a head too long": (b"HTTP/1.1 200 OK\r\nX-Pad: " + b"p" * 70_000, "bad_response"),
}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(("sent", "code"), BEFORE_HEAD.values(), ids=BEFORE_HEAD.keys())
async def test_a_break_before_the_answer_is_answered_by_us(rig: Rig, sent: bytes, code: str, how: str) -> None:
    """Nothing of the answer is out yet: 502 with the reason, and the client's connection goes on."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream, b"{}")
    if sent:
        await server.send(sent)
        await rig.until(lambda: not rig.core.relays or next(iter(rig.core.relays)).first_byte_at)
    server.close() if how == "fin" else server.reset()
    answer = await client.message()
    check_error(answer, 502, code)
    await client.send(rig.request(fake="fixed"))
    assert (await client.message()).status == 200
    failed, _ = await rig.exchanges()
    assert failed.ending is Ending.UPSTREAM_FAILED and failed.end.answered == 502
    assert str(upstream.port) in failed.end.error and not failed.head


MID_BODY = {
    "length": (HEAD, b"abc"),
    "length, nothing yet": (HEAD, b""),
    "chunked, between chunks": (CHUNKED, b"3\r\nabc\r\n"),
    "chunked, in a chunk": (CHUNKED, b"a\r\nabc"),
    "chunked, in a size": (CHUNKED, b"3\r\nabc\r\n1"),
    "chunked, before the last line": (CHUNKED, b"3\r\nabc\r\n0\r\n"),
    "chunked, in the trailers": (CHUNKED, b"3\r\nabc\r\n0\r\nX-T: 1\r\n"),
}


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(("head", "body"), MID_BODY.values(), ids=MID_BODY.keys())
async def test_a_break_in_the_body_is_a_break_for_the_client(rig: Rig, head: bytes, body: bytes, how: str) -> None:
    """What has come arrives; then a reset, never a FIN that could be taken for the end."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream, b"{}")
    await server.send(head + body)
    await client.until(head + body)
    server.close() if how == "fin" else server.reset()
    await client.to_the_end()
    assert client.received == head + body and client.ended == "rst"
    recorded = await rig.recorded()
    assert recorded.ending is Ending.UPSTREAM_FAILED and recorded.end.answered == 0
    assert recorded.head + recorded.response == head + body
    assert recorded.end.response_size == (3 if b"abc" in body else 0) and "middle of its response" in recorded.end.error


async def test_an_answer_without_length_must_end_with_a_fin(rig: Rig) -> None:
    """Its only end is the close: a reset there is a break, for the client too."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(UNTIL_CLOSE + b"abc")
    await client.until(b"abc")
    server.reset()
    await client.to_the_end()
    assert client.ended == "rst" and (await rig.recorded()).ending is Ending.UPSTREAM_FAILED


BAD_CHUNKS = {
    "size is no number": b"3\r\nabc\r\nzz\r\n",
    "longer than its size": b"3\r\nabcd\r\n",
    "bare LF": b"3\nabc\n",
    "a length in the trailers": b"0\r\nContent-Length: 3\r\n\r\n",
    "an endless size line": b"3;" + b"x" * 5000,
}


@pytest.mark.parametrize("together", [True, False], ids=["with its head", "after its head"])
@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
async def test_malformed_chunks_are_not_passed_on_as_whole(rig: Rig, body: bytes, together: bool) -> None:
    """A body that breaks its own framing is told while no head is out, else reset; nobody uses that connection again."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    if together:
        await server.send(CHUNKED + body)
    else:
        await server.send(CHUNKED)
        await client.until(CHUNKED)
        await server.send(body)
    if together:
        check_error(await client.message(), 502, "bad_framing")
    else:
        await client.to_the_end()
        assert client.ended == "rst"
    await server.to_the_end()
    assert server.ended == "rst" and not len(rig.core.pool)
    recorded = await rig.recorded()
    assert recorded.ending is Ending.UPSTREAM_FAILED and recorded.head == CHUNKED


async def test_a_malformed_upload_is_refused(rig: Rig) -> None:
    """The client hears 400, the upstream a reset instead of a body with an end."""
    upstream = rig.upstream()
    client = rig.client()
    request = rig.request(method="POST", to=upstream.port, more="Transfer-Encoding: chunked\r\n")
    await client.send(request + b"3\r\nabc\r\n")
    server = await upstream.accept()
    await server.until(b"abc")
    await client.send(b"zz\r\n")
    check_error(await client.message(), 400, "bad_framing")
    await server.to_the_end()
    assert server.ended == "rst"
    await client.send(rig.request())
    await client.to_the_end()
    recorded = await rig.recorded()
    assert recorded.ending is Ending.REFUSED and recorded.end.answered == 400


@pytest.mark.parametrize("off", [5, -5])
async def test_a_wrong_length_is_believed(rig: Rig, off: int) -> None:
    """Too long: broken off. Too short: what is beyond it is not forwarded, noted, and the connection not reused."""
    answer = await rig.exchange(b"{}", fake=f"wrong-length={off}; bytes={b'0123456789'.hex()}")
    recorded = await rig.recorded()
    if off > 0:
        assert not answer.complete and recorded.ending is Ending.UPSTREAM_FAILED
    else:
        assert answer.complete and answer.payload == b"01234" and recorded.ending is Ending.COMPLETE
        assert recorded.end.notes & Note.EXTRA_BYTES or not recorded.end.notes
    assert not len(rig.core.pool)


OVER_TLS = {
    "whole": ("fixed=100", True, Ending.COMPLETE),
    "until close": ("close; bytes=0011", True, Ending.COMPLETE),
    "reset in the body": ("reset=5; bytes=00112233445566778899", False, Ending.UPSTREAM_FAILED),
    "cut in the body": ("cut=5; bytes=00112233445566778899", False, Ending.UPSTREAM_FAILED),
    "reset until close": ("close; reset=5; bytes=00112233445566778899", False, Ending.UPSTREAM_FAILED),
}


@pytest.mark.parametrize(("fake", "whole", "ending"), OVER_TLS.values(), ids=OVER_TLS.keys())
async def test_breaks_are_breaks_over_tls_too(
    rigs: StartRig, monkeypatch: pytest.MonkeyPatch, fake: str, whole: bool, ending: Ending
) -> None:
    """Encryption changes nothing: ends are ends, breaks are breaks."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    async with FakeProvider(tls=tls_context()) as provider:
        rig = await rigs(allow=(f"https://127.0.0.1:{provider.port}",))
        client = rig.client()
        await client.send(rig.request(b"{}", to=provider.port, fake=fake))
        answer = await client.message()
        recorded = await rig.recorded()
        assert (answer.status, answer.complete, recorded.ending) == (200, whole, ending)
        assert recorded.opening.route[1] == "https" and (whole or client.ended == "rst")


async def test_a_certificate_nobody_vouches_for_ends_it(rigs: StartRig) -> None:
    """502 with the reason; the request is not sent."""
    async with FakeProvider(tls=tls_context()) as provider:
        rig = await rigs(allow=(f"https://127.0.0.1:{provider.port}",))
        client = rig.client()
        await client.send(rig.request(b"{}", to=provider.port))
        check_error(await client.message(), 502, "tls_failed")
        assert not provider.requests and "certificate" in (await rig.recorded()).end.error


# --- the upstream cannot be reached, or is silent --------------------------------------------------------------------


async def test_a_refused_connection_is_said_so(rig: Rig, free_port: int) -> None:
    """502 with the address and the system's own words."""
    client = rig.client()
    await client.send(rig.request(b"{}", to=free_port))
    answer = await client.message()
    check_error(answer, 502, "connect_failed")
    assert f"127.0.0.1:{free_port}" in answer.payload.decode()
    recorded = await rig.recorded()
    assert recorded.ending is Ending.UPSTREAM_FAILED and "refused" in recorded.end.error.lower()
    assert recorded.request == b"{}"


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port where connecting neither succeeds nor fails: its queue is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()[1]


async def test_connecting_has_a_limit(rigs: StartRig) -> None:
    """504 once the connect timeout has passed, not the system's two minutes."""
    rig = await rigs(connect_timeout=0.2)
    with black_hole() as port:
        client = rig.client()
        await client.send(rig.request(b"{}", to=port))
        check_error(await client.message(), 504, "connect_timeout")
    assert (await rig.recorded()).ending is Ending.TIMED_OUT


async def test_a_name_without_address_is_said_so(rig: Rig) -> None:
    """A misspelt host is a 502 that names it."""
    client = rig.client()
    await client.send(b"GET /openai/no-such-host.invalid/v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = await client.message()
    check_error(answer, 502, "dns_failed")
    assert b"no-such-host.invalid" in answer.payload


@pytest.mark.parametrize(
    ("fake", "limits"),
    [
        ("hang=now", {"header_timeout": 0.5}),
        ("hang=head", {"idle_timeout": 0.5}),
    ],
)
async def test_silence_has_a_limit(rigs: StartRig, fake: str, limits: dict[str, float]) -> None:
    """Before the head a 504, after it a reset; both are recorded as timed out, and the upstream is let go."""
    rig = await rigs(**limits)
    client = rig.client()
    await client.send(rig.request(b"{}", fake=fake))
    answer = await client.message()
    if fake == "hang=now":
        check_error(answer, 504, "upstream_timeout")
    else:
        assert answer.status == 200 and not answer.complete and client.ended == "rst"
    recorded = await rig.recorded()
    assert recorded.ending is Ending.TIMED_OUT and recorded.end.answered == (504 if fake == "hang=now" else 0)
    await rig.fake.wait_for(lambda: rig.fake.connections[0].closed_by == "rst")


async def test_bytes_that_flow_have_no_limit(rigs: StartRig) -> None:
    """Only silence counts: a stream that lasts longer than both limits is whole."""
    rig = await rigs(header_timeout=0.4, idle_timeout=0.4)
    answer = await rig.exchange(b'{"stream": true}', fake="slow=150; words=8")
    assert answer.complete and (await rig.recorded()).ending is Ending.COMPLETE


async def test_an_upload_that_stalls_has_a_limit(rigs: StartRig) -> None:
    """An upstream that stops reading hides the client's departure; the idle limit ends that too."""
    rig = await rigs(idle_timeout=0.5)
    upstream = rig.upstream(receive_buffer=4096)
    client = rig.client()
    await client.send(rig.request(method="POST", to=upstream.port, more=f"Content-Length: {1 << 30}\r\n"))
    server = await upstream.accept()
    with pytest.raises((TimeoutError, ConnectionError)):
        async with asyncio.timeout(5):
            while True:
                await client.send(bytes(1 << 16))
    client.close()
    assert (await rig.recorded()).ending is Ending.TIMED_OUT
    await server.to_the_end()
    assert server.ended == "rst"


# --- the client leaves -----------------------------------------------------------------------------------------------


def _fin(client: Wire) -> None:
    client.close()


def _rst(client: Wire) -> None:
    client.reset()


def _half(client: Wire) -> None:
    client.half_close()


LEAVING = {"fin": _fin, "rst": _rst, "half-close": _half}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING.keys())
@pytest.mark.parametrize("phase", ["upload", "waiting", "head", "body", "interim"])
async def test_a_client_that_leaves_stops_the_upstream(rig: Rig, phase: str, leave: Callable[[Wire], None]) -> None:
    """The upstream's connection is reset, so that it stops working; the record says who left."""
    upstream = rig.upstream()
    client = rig.client()
    await client.send(rig.request(b"0123456789", to=upstream.port)[: -5 if phase == "upload" else None])
    server = await upstream.accept()
    await server.until(b"01234")
    sent = {"head": HEAD, "body": HEAD + b"abc", "interim": CONTINUE}.get(phase, b"")
    if sent:
        await server.send(sent)
        await client.until(sent)
    left = time.monotonic()
    leave(client)
    await server.to_the_end()
    assert server.ended == "rst" and time.monotonic() - left < 10  # a wide guard: measured are milliseconds
    recorded = await rig.recorded()
    assert recorded.ending is Ending.CLIENT_GONE and not rig.core.relays
    assert recorded.end.request_size == (5 if phase == "upload" else 10)
    assert recorded.response == (b"abc" if phase == "body" else b"")


async def test_a_client_that_leaves_while_we_connect_leaves_nothing_behind(rigs: StartRig) -> None:
    """The exchange is over at once; the connection that comes about later is nobody's."""
    rig = await rigs(connect_timeout=0.3)
    with black_hole() as port:
        client = rig.client()
        await client.send(rig.request(b"{}", to=port))
        await rig.until(lambda: rig.core.relays)
        client.close()
        recorded = await rig.recorded()
    assert recorded.ending is Ending.CLIENT_GONE and recorded.end.answered == 0


async def test_what_a_client_pipelined_before_it_left_is_not_carried(rig: Rig) -> None:
    """Its next request is dropped with it, though the answer before it comes in the same turn of the loop."""
    upstream = rig.upstream()
    client = rig.client()
    await client.send(rig.request(to=upstream.port) * 2)
    server = await upstream.accept()
    await server.message()
    client.reset()
    server.socket.send(OK)
    await rig.until(lambda: not rig.core.clients)
    await asyncio.sleep(0)
    assert not rig.core.relays and len(await rig.exchanges()) == 1
    assert (await rig.exchange(b"{}", fake="fixed")).status == 200


async def test_stopping_meets_a_client_that_was_just_lost(rig: Rig) -> None:
    """It has closed, and our answer draws a reset at once: the stop goes on, and the exchange has its ending."""
    upstream = rig.upstream()
    client = rig.client()
    await client.send(rig.request(b"0123456789", to=upstream.port)[:-5])
    server = await upstream.accept()
    await server.until(b"01234")
    client.close()
    await rig.proxy.close()
    await server.to_the_end()
    assert (await rig.recorded()).ending is Ending.INTERRUPTED and not rig.core.metrics.faults


async def test_a_client_that_leaves_after_its_answer_costs_nothing(rig: Rig) -> None:
    """The exchange stays complete and the upstream connection is kept."""
    assert (await rig.exchange(b"{}", fake="fixed")).status == 200
    client = rig.client()
    await client.send(rig.request(b"{}", fake="fixed"))
    await client.message()
    client.reset()
    await rig.until(lambda: len(rig.core.clients) == 1)
    assert [one.ending for one in await rig.exchanges()] == [Ending.COMPLETE] * 2
    assert len(rig.core.pool) == 1


async def test_many_streams_dropped_at_once_disturb_nobody(rig: Rig) -> None:
    """Fifty clients leave together: every upstream is told, others are served meanwhile."""
    clients = []
    for _ in range(50):
        client = rig.client()
        await client.send(rig.request(b'{"stream": true}', fake="endless; slow=5"))
        await client.until(b"data:")
        clients.append(client)
    for client in clients:
        client.close()
    began = time.monotonic()
    assert (await rig.exchange(b"{}", fake="fixed")).status == 200
    assert time.monotonic() - began < 10
    await rig.fake.wait_for(lambda: sum(one.closed_by == "rst" for one in rig.fake.connections) == 50, 20)
    endings = [one.ending for one in await rig.exchanges()]
    assert endings.count(Ending.CLIENT_GONE) == 50 and endings.count(Ending.COMPLETE) == 1


# --- slow and fast ---------------------------------------------------------------------------------------------------


async def test_a_client_that_does_not_read_holds_up_its_upstream(rigs: StartRig) -> None:
    """100 MB for a reader that sleeps: the upstream is paused, memory stays, and later every byte arrives."""
    rig = await rigs()
    size = 100 << 20
    client = rig.client(receive_buffer=65536)
    await rig.exchange(b"{}", fake="huge=3000000")
    before = psutil.Process().memory_info().rss
    await client.send(rig.request(b"{}", fake=f"huge={size}"))
    (relay,) = await rig.until(lambda: rig.core.relays)
    await rig.until(lambda: relay.upstream is not None and relay.upstream.gate.reasons)
    sent = -1
    while sent != rig.fake.counts.sent_bytes:  # until the kernel's buffers are full too
        sent = rig.fake.counts.sent_bytes
        await asyncio.sleep(0.1)
    assert sent < 40 << 20 and client.ended == "open"
    assert relay.client.transport.get_write_buffer_size() < 1 << 20
    assert psutil.Process().memory_info().rss - before < 24 << 20
    assert (await rig.exchange(b"{}", fake="fixed")).status == 200
    digest, taken = hashlib.sha256(), 0
    await client.until(b"\r\n\r\n")
    start = client.received.index(b"\r\n\r\n") + 4
    while True:
        digest.update(client.received[start:])
        taken += len(client.received) - start
        client.received.clear()
        start = 0
        if taken >= size:
            break
        assert await client.receive()
    recorded = (await rig.exchanges())[1]
    assert recorded.ending is Ending.COMPLETE and recorded.end.response_size == size
    assert recorded.end.response_sha256 == digest.digest()


async def test_an_upstream_that_does_not_read_holds_up_the_client(rig: Rig) -> None:
    """An upload is paused as well, with little of it in our memory."""
    upstream = rig.upstream(receive_buffer=4096)
    client = rig.client()
    size = 30 << 20
    sending = asyncio.create_task(
        client.send(rig.request(method="POST", to=upstream.port, more=f"Content-Length: {size}\r\n") + bytes(size))
    )
    server = await upstream.accept()
    (relay,) = await rig.until(lambda: rig.core.relays)
    await rig.until(lambda: relay.upstream is not None and relay.client.gate.reasons)
    assert relay.upstream.transport.get_write_buffer_size() < 1 << 20 and not sending.done()
    got = 0
    while got < size:
        got += len(await server.receive())
    await sending
    await server.send(OK)
    assert (await client.message()).status == 200
    assert (await rig.recorded()).end.request_size == size


async def test_every_byte_goes_on_at_once(rig: Rig) -> None:
    """A drip is forwarded as a drip: no byte waits for the next."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(UNTIL_CLOSE)
    await client.until(UNTIL_CLOSE)
    for byte in b"drip by drip":
        await server.send(bytes([byte]))
        assert await client.receive() == bytes([byte])
    server.close()
    await client.to_the_end()
    recorded = await rig.recorded()
    assert [frame.payload for frame in recorded.frames[2:-1]] == [bytes([byte]) for byte in b"drip by drip"]


@pytest.mark.parametrize("direction", ["answer", "upload"])
async def test_a_flood_of_tiny_chunks_lets_others_pass(rig: Rig, direction: str) -> None:
    """One-byte chunks by the hundred thousand: another exchange gets its turn between every few thousand."""
    flood = b"1\r\na\r\n" * 400_000 + b"0\r\n\r\n"
    upstream = rig.upstream()
    client = rig.client()
    if direction == "answer":
        await client.send(rig.request(to=upstream.port))
    else:
        await client.send(rig.request(method="POST", to=upstream.port, more="Transfer-Encoding: chunked\r\n"))
    server = await upstream.accept()
    await server.until(b"\r\n\r\n")
    source, sink = (server, client) if direction == "answer" else (client, server)
    start = len(sink.received)
    (relay,) = rig.core.relays

    def carried() -> int:
        framing = relay.response_framing if direction == "answer" else relay.request_framing
        return framing.payload if framing is not None else 0

    async def flooding() -> None:
        await source.send((CHUNKED if direction == "answer" else b"") + flood)

    async def sinking() -> None:
        await sink.until(b"0\r\n\r\n")

    work = asyncio.gather(flooding(), sinking())
    steps, before = [], 0
    while not work.done():
        steps.append(carried() - before)
        before = carried()
        if len(steps) == 20:
            assert (await rig.exchange(b"{}", fake="fixed")).status == 200 and not work.done()
        await asyncio.sleep(0)
    await work
    assert max(steps[:20] + steps[21:]) <= 10_000
    assert bytes(sink.received[start:]).endswith(flood)


# --- our own defects -------------------------------------------------------------------------------------------------


class Defect(Exception):
    """Thrown where the code under test must not be trusted."""


CALLBACKS: dict[str, tuple[type, str]] = {
    "client data": (Relay, "start"),
    "client's later data": (Relay, "request_data"),
    "upstream data": (Relay, "response_data"),
    "upstream's head": (Relay, "_final_head"),
    "dialled": (Relay, "_dialled"),
    "client lost": (Relay, "client_lost"),
    "upstream lost": (Relay, "upstream_lost"),
    "exchange done": (ClientConnection, "exchange_done"),
    "released": (UpstreamConnection, "release"),
    "timed out": (Relay, "_fail"),
}


@pytest.mark.parametrize("name", CALLBACKS)
async def test_a_defect_ends_its_exchange_and_no_other(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """An exception in any callback: both its connections are broken off, it is counted once, others go on."""
    kind, method = CALLBACKS[name]
    upstream, healthy = rig.upstream(), rig.upstream()
    client = rig.client()
    bystander, beside, _ = await rig.meet(healthy)
    await beside.send(HEAD + b"01234")
    await bystander.until(b"01234")
    real = getattr(kind, method)

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        relay = self if kind is Relay else self.relay
        if relay is not None and relay.route.authority.port == upstream.port:
            raise Defect
        return real(self, *args, **kwargs)

    monkeypatch.setattr(kind, method, broken)
    await client.send(rig.request(b"0123456789", to=upstream.port)[:-5])
    server: Wire | None = None
    if name not in ("client data", "dialled"):
        server = await upstream.accept()
        await server.until(b"01234")
        if name == "client lost":
            client.close()
        elif name == "upstream lost":
            server.close()
        elif name == "timed out":
            for relay in rig.core.relays:
                if relay.route.authority.port == upstream.port:
                    relay.at -= 10**13
        else:
            await client.send(b"56789")
            if name != "client's later data":
                await server.message()
                await server.send(OK)
    if name != "client lost":
        await client.to_the_end()
        assert client.ended == "rst" and (client.received == b"" or OK.startswith(client.received))
    if server is not None and name not in ("upstream lost", "exchange done"):
        await server.to_the_end()
        assert server.ended == "rst"
    await beside.send(b"56789")
    assert (await bystander.message()).payload == b"0123456789"
    await rig.until(lambda: not rig.core.relays)
    assert rig.core.metrics.faults == 1 and "Defect" in caplog.text
    endings = [one.ending for one in await rig.exchanges()]
    assert endings[0] is Ending.COMPLETE
    if name in ("exchange done", "released"):
        assert endings[1:] == [Ending.COMPLETE]  # the record had its END before the defect
    elif name != "client data":
        assert endings[1:] == [Ending.UPSTREAM_FAILED]


@pytest.mark.parametrize("side", [ClientConnection, UpstreamConnection])
@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_a_defect_in_flow_control_is_seen_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, side: type, method: str
) -> None:
    """The loops would only log it; the exchange would hang for ever."""
    from llm_proxy.proxy import gate

    upstream = rig.upstream(receive_buffer=4096)
    client = rig.client(receive_buffer=4096)
    size = 30 << 20
    upload = side is UpstreamConnection
    await client.send(rig.request(method="POST", to=upstream.port, more=f"Content-Length: {size if upload else 0}\r\n"))
    server = await upstream.accept()
    await server.until(b"\r\n\r\n")
    source, sink = (client, server) if upload else (server, client)

    def broken(self: Any, reason: int) -> None:
        raise Defect

    if method == "pause_writing":
        monkeypatch.setattr(gate.Gate, "shut", broken)
    head = b"" if upload else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size

    async def pour() -> None:
        with contextlib.suppress(ConnectionError):
            await source.send(head + bytes(size))

    pouring = asyncio.create_task(pour())
    if method == "resume_writing":
        (relay,) = rig.core.relays
        await rig.until(lambda: (relay.client if upload else relay.upstream).gate.reasons)
        monkeypatch.setattr(gate.Gate, "open", broken)
    else:
        await rig.until(lambda: rig.core.metrics.faults)
    await sink.to_the_end()
    await pouring
    assert sink.ended == "rst" and rig.core.metrics.faults >= 1
    monkeypatch.undo()
    assert (await rig.recorded()).ending is Ending.UPSTREAM_FAILED


# --- the record of what is too long ----------------------------------------------------------------------------------


async def test_bodies_beyond_the_limit_are_carried_whole_and_proved_by_digest(rigs: StartRig) -> None:
    """The record keeps the first bytes, the sizes and the SHA-256 of everything; both ways, both framings."""
    rig = await rigs(record_limit=1000)
    body = bytes(range(256)) * 40
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 999]), body[at : at + 999]) for at in range(0, 10240, 999))
    chunked += b"0\r\n\r\n"
    upstream = rig.upstream()
    for framing, wire in ((f"Content-Length: {len(body)}", body), ("Transfer-Encoding: chunked", chunked)):
        client = rig.client()
        await client.send(rig.request(method="POST", to=upstream.port, more=framing + "\r\n") + wire)
        server = upstream.wires[0] if upstream.wires else await upstream.accept()
        assert (await server.message()).wire == wire
        await server.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + wire)
        assert (await client.message()).wire == wire
    for recorded, wire in zip(await rig.exchanges(), (body, chunked), strict=True):
        assert recorded.request == recorded.response == wire[:1000]
        assert recorded.end.request_size == recorded.end.response_size == len(body)
        assert recorded.end.request_sha256 == recorded.end.response_sha256 == hashlib.sha256(body).digest()
        assert recorded.flags & Flag.OVER_LIMIT and recorded.ending is Ending.COMPLETE


async def test_a_full_ring_never_delays_traffic(rigs: StartRig) -> None:
    """Where the journal cannot follow, bodies are dropped and said to be; the traffic and the END are not."""
    rig = await rigs(ring_size=64 << 10)
    answer = await rig.exchange(b"{}", fake="huge=5000000")
    assert answer.complete and len(answer.payload) == 5_000_000
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE and recorded.end.response_size == 5_000_000
    assert recorded.flags & Flag.LOSSY and len(recorded.response) < 5_000_000 and rig.proxy.tee.losses.frames
