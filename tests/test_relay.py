"""One exchange's life, from the client's first byte to the journal's END, on both loops."""

from __future__ import annotations

import asyncio
import socket

import pytest

from llm_proxy.journal.frames import Note
from llm_proxy.proxy import relay as relay_module
from llm_proxy.records.exchange import Ending
from tests.rig import CONTINUE, OK, Rig, StartRig, Wire

REPLAY_LIMIT = relay_module.REPLAY_LIMIT
UPGRADE = (
    "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


async def test_an_exchange_is_carried_and_recorded(rig: Rig) -> None:
    """Bytes pass both ways, and the journal holds them with the ending."""
    upstream = rig.upstream()
    client, server, request = await rig.meet(upstream, b"hello", more="X-A: 1\r\n")
    assert request.payload == b"hello" and request.get(b"x-a") == b"1"
    await server.send(OK)
    answer = await client.message()
    assert (answer.status, answer.payload, client.ended) == (200, b"ok", "open")
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE
    assert (recorded.request, recorded.response, recorded.head) == (b"hello", b"ok", answer.head)
    assert (recorded.end.request_size, recorded.end.response_size, recorded.end.notes) == (5, 2, 0)


# --- heads -----------------------------------------------------------------------------------------------------------


async def test_a_head_split_anywhere_is_the_same_head(rig: Rig) -> None:
    """Every cut of a request in two packets reaches the upstream as the same bytes."""
    request = rig.request(b"body", fake="fixed", more="X-Odd:  two \r\n")
    client = rig.client()
    for cut in range(1, len(request)):
        await client.send(request[:cut])
        await asyncio.sleep(0)  # the proxy reads what there is
        await client.send(request[cut:])
        assert (await client.message()).status == 200
    seen = {(one.raw_head, one.body) for one in rig.fake.requests}
    assert len(seen) == 1 and len(rig.fake.requests) == len(request) - 1


async def test_an_answer_that_comes_byte_by_byte_is_the_same_answer(rig: Rig) -> None:
    """The response's head may be cut anywhere too; each byte of it is journalled once."""
    answer = await rig.exchange(b"{}", fake="one-byte; interim=103; trailers; bytes=00ff")
    sent = rig.fake.responses[0].raw
    assert b"".join(answer.interim) + answer.head + answer.wire == sent
    recorded = await rig.recorded()
    assert recorded.head + recorded.response == sent[len(answer.interim[0]) :]


HEAD_SIZES = {"64 KiB": (65_536, 200), "one byte more": (65_537, 431)}


@pytest.mark.parametrize(("size", "status"), HEAD_SIZES.values(), ids=HEAD_SIZES.keys())
async def test_a_head_has_a_limit(rig: Rig, size: int, status: int) -> None:
    """64 KiB pass, one byte more is answered 431 and the connection is over."""
    bare = rig.request(fake="fixed", more="X-Pad: \r\n")
    request = rig.request(fake="fixed", more=f"X-Pad: {'p' * (size - len(bare))}\r\n")
    assert len(request) == size
    client = rig.client()
    await client.send(request)
    assert (await client.message()).status == status
    if status != 200:
        await client.to_the_end()
        assert not rig.fake.requests and client.ended == "fin"


async def test_a_head_without_end_is_refused_at_the_limit(rig: Rig) -> None:
    """Whoever sends header bytes for ever gets 431, not our memory."""
    client = rig.client()
    await client.send(b"GET / HTTP/1.1\r\nX-Pad: " + b"p" * 65_536)
    assert (await client.message()).status == 431


async def test_a_head_that_takes_too_long_is_given_up(rigs: StartRig) -> None:
    """A dripped head is answered 408 at its deadline, though bytes keep coming."""
    rig = await rigs(head_timeout=0.2)
    client = rig.client()
    for byte in b"GET / HTTP/1.1":
        await client.send(bytes([byte]))
    assert (await client.message()).status == 408


REFUSED = {
    "length and chunked": "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "chunked and length": "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "two lengths": "Content-Length: 3\r\nContent-Length: 3\r\n",
    "a list of lengths": "Content-Length: 3, 3\r\n",
    "signed length": "Content-Length: +3\r\n",
    "chunked twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "gzip and chunked": "Transfer-Encoding: gzip, chunked\r\n",
    "space before colon": "Content-Length : 3\r\n",
    "folded line": "X-A: 1\r\n 2\r\n",
    "bare LF": "X-A: 1\nX-B: 2\r\n",
    "bare CR": "X-A: 1\rX-B: 2\r\n",
    "NUL": "X-A: \0\r\n",
    "two hosts": "Host: 127.0.0.1:1\r\n",
    "connection names the length": "Connection: content-length\r\nContent-Length: 3\r\n",
}


@pytest.mark.parametrize("more", REFUSED.values(), ids=REFUSED.keys())
async def test_an_ambiguous_head_is_carried_nowhere(rig: Rig, more: str) -> None:
    """What two readers could understand differently is answered 400, and what is behind it is not read as a request."""
    client = rig.client()
    await client.send(rig.request(more=more) + b"abc" + rig.request())
    answer = await client.message()
    assert answer.status == 400 and answer.get(b"x-llm-proxy-error")
    await client.to_the_end()
    assert client.read == len(client.received) and not rig.fake.requests


async def test_an_absolute_target_is_taken_apart(rig: Rig) -> None:
    """A client that takes us for a forward proxy is served: host from the target, path to the upstream."""
    path = f"/anthropic/127.0.0.1:{rig.fake.port}/v1/a%2Fb?x=/y?"
    client = rig.client()
    await client.send(f"GET http://127.0.0.1:{rig.port}{path} HTTP/1.1\r\nHost: x\r\nX-Fake: fixed\r\n\r\n".encode())
    assert (await client.message()).status == 200
    assert rig.fake.requests[0].target == "/v1/a%2Fb?x=/y?"
    await client.send(f"GET http://evil.example{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert (await client.message()).status == 403


# --- several requests on one connection ------------------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    """Three in one packet: one at a time upstream, three answers, none mixed with another."""
    upstream = rig.upstream()
    client = rig.client()
    await client.send(b"".join(rig.request(body, to=upstream.port) for body in (b"one", b"two", b"three")))
    server = await upstream.accept()
    for body in (b"one", b"two", b"three"):
        assert (await server.message()).payload == body
        assert server.read == len(server.received), "the next request came before this one was answered"
        await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert (await client.message()).payload == body
    assert [one.response for one in await rig.exchanges()] == [b"one", b"two", b"three"]


async def test_what_is_pipelined_waits_while_a_request_is_under_way(rig: Rig) -> None:
    """More than we hold of later requests stays with the client; nothing of it is lost or reordered."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    requests = b"".join(rig.request(b"%05d" % number * 2000, to=upstream.port) for number in range(40))
    sending = asyncio.create_task(client.send(requests))
    await server.send(OK)
    for number in range(40):
        assert (await server.message()).payload == b"%05d" % number * 2000
        await server.send(OK)
    await sending
    for _ in range(41):
        assert (await client.message()).payload == b"ok"


async def test_answers_nobody_reads_are_not_gathered(rig: Rig) -> None:
    """A client that pipelines without reading holds up itself: the next request waits until the answer is out."""
    client = rig.client(receive_buffer=4096)
    requests = 200
    sending = asyncio.create_task(client.send(rig.request(fake="huge=60000") * requests))
    (connection,) = await rig.until(lambda: rig.core.clients)
    await rig.until(lambda: connection._full)
    before = rig.fake.counts.requests
    for _ in range(50):
        await asyncio.sleep(0.002)
    assert rig.fake.counts.requests <= before + 1 and connection.transport.get_write_buffer_size() < 200_000
    for _ in range(requests):
        assert len((await client.message()).payload) == 60_000
    await sending


async def test_a_connection_is_used_again(rig: Rig) -> None:
    """One upstream connection serves one client after the other, and the record says so."""
    for _ in range(3):
        assert (await rig.exchange(b"{}", fake="fixed")).status == 200
    assert len(rig.fake.connections) == 1
    assert [one.end.notes & Note.REUSED for one in await rig.exchanges()] == [0, Note.REUSED, Note.REUSED]


@pytest.mark.parametrize("fake", ["status=500; close", "bytes=00; http10", "bytes=00; extra", "bytes=00; close"])
async def test_a_connection_that_may_not_be_reused_is_not(rig: Rig, fake: str) -> None:
    """After close, HTTP/1.0, or bytes that belong to nobody, the next exchange has a connection of its own."""
    await rig.exchange(b"{}", fake=fake)
    assert (await rig.exchange(b"{}", fake="fixed")).status == 200
    assert len(rig.fake.connections) == 2


async def test_connection_close_of_one_side_is_not_the_others(rig: Rig) -> None:
    """`Connection: close` is for one hop: the client's does not reach the upstream, nor the upstream's the client."""
    upstream = rig.upstream()
    client, server, request = await rig.meet(upstream, more="Connection: close, x-gone\r\nX-Gone: 1\r\n")
    assert not request.get(b"connection") and not request.get(b"x-gone")
    await server.send(OK)
    await client.to_the_end()
    assert client.ended == "fin"
    again, same, _ = client, server, await client.message()
    again = rig.client()
    await again.send(rig.request(to=upstream.port))
    await same.message()
    await same.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nKeep-Alive: timeout=5\r\n\r\n"))
    answer = await again.message()
    assert not answer.get(b"connection") and not answer.get(b"keep-alive")
    await again.send(rig.request(fake="fixed"))
    assert (await again.message()).status == 200


async def test_bytes_behind_the_end_are_nobodys(rig: Rig) -> None:
    """A second response behind the first never reaches the client, and the record tells of it."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(OK + b"HTTP/1.1 200 EVIL\r\nContent-Length: 4\r\n\r\nevil")
    assert (await client.message()).payload == b"ok"
    await client.send(rig.request(fake="fixed=3"))
    assert (await client.message()).status == 200
    assert b"EVIL" not in client.received
    assert (await server.to_the_end()) and server.ended in ("fin", "rst")
    first, _ = await rig.exchanges()
    assert first.end.notes == Note.EXTRA_BYTES and first.response == b"ok"


async def test_bytes_on_an_idle_connection_end_it(rig: Rig) -> None:
    """An answer that nobody asked for is not kept for the next request."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(OK)
    await client.message()
    await server.send(b"HTTP/1.1 200 EVIL\r\nContent-Length: 4\r\n\r\nevil")
    await server.to_the_end()
    assert server.ended == "rst" and not len(rig.core.pool)
    await client.send(rig.request(to=upstream.port))
    fresh = await upstream.accept()
    await fresh.message()
    await fresh.send(OK)
    assert (await client.message()).payload == b"ok" and b"EVIL" not in client.received


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("death", ["reset", "fin"])
async def test_a_request_on_a_dead_connection_is_sent_again(rig: Rig, method: str, death: str) -> None:
    """A reused connection that dies before any answer costs nothing but a note, whatever the method."""
    await rig.exchange(b"{}", fake=f"fixed; die-on-reuse={death}")
    answer = await rig.exchange(b"{}", method=method, fake="fixed")
    assert answer.status == 200
    assert [one.raw_body for one in rig.fake.requests] == [b"{}", b"{}"]
    _, again = await rig.exchanges()
    assert again.end.notes == Note.RETRIED and again.request == b"{}" and again.ending is Ending.COMPLETE
    assert rig.core.metrics.retries == 1


@pytest.mark.parametrize("size", [REPLAY_LIMIT // 2, REPLAY_LIMIT * 2])
async def test_only_a_body_still_held_is_sent_again(rig: Rig, size: int) -> None:
    """Below the replay limit the second try has every byte; above it the client hears of the loss."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(OK)
    await client.message()
    body = bytes(range(256)) * (size // 256)
    await client.send(rig.request(body, to=upstream.port))
    assert (await server.message()).payload == body
    server.reset()
    if size <= REPLAY_LIMIT:
        fresh = await upstream.accept()
        assert (await fresh.message()).payload == body
        await fresh.send(OK)
        assert (await client.message()).status == 200
    else:
        answer = await client.message()
        assert answer.status == 502 and answer.get(b"x-llm-proxy-error") == b"upstream_reset"
    _, again = await rig.exchanges()
    assert again.ending is (Ending.COMPLETE if size <= REPLAY_LIMIT else Ending.UPSTREAM_FAILED)
    assert bool(again.end.notes & Note.RETRIED) is (size <= REPLAY_LIMIT)
    assert again.request == body


async def test_a_second_death_is_not_tried_again(rig: Rig) -> None:
    """One retry, on a fresh connection; if that dies too the client hears it."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(OK)
    await client.message()
    await client.send(rig.request(b"x", to=upstream.port))
    await server.message()
    server.reset()
    fresh = await upstream.accept()
    await fresh.message()
    fresh.reset()
    assert (await client.message()).status == 502
    assert rig.core.metrics.connects == 2


async def test_no_retry_once_a_byte_has_come(rig: Rig) -> None:
    """An upstream that began to answer has the request; sending it again would be a second order."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(OK)
    await client.message()
    await client.send(rig.request(b"x", to=upstream.port))
    await server.message()
    await server.send(CONTINUE)
    await client.until(CONTINUE)
    server.reset()
    answer = await client.message()
    assert answer.status == 502 and rig.core.metrics.connects == 1


async def test_an_upload_held_up_by_a_dead_connection_goes_on(rig: Rig) -> None:
    """The connection dies while it takes no more: the client is read again for the second try."""
    upstream = rig.upstream(receive_buffer=4096)
    client, server, _ = await rig.meet(upstream)
    (relay,) = rig.core.relays
    relay.upstream.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    await server.send(OK)
    await client.message()
    body = b"u" * 900_000
    request = rig.request(body, to=upstream.port)
    await client.send(request[:300_000])
    await server.receive()
    (relay,) = rig.core.relays
    sending = asyncio.create_task(client.send(request[300_000:]))
    await rig.until(lambda: relay.client.gate.reasons)
    server.reset()
    fresh = await upstream.accept()
    assert (await fresh.message()).payload == body
    await sending
    await fresh.send(OK)
    assert (await client.message()).status == 200


# --- bodies that are not there ---------------------------------------------------------------------------------------


BODILESS = {
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
    "HEAD, chunked": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 700\r\n\r\n"),
}


@pytest.mark.parametrize(("method", "head"), BODILESS.values(), ids=BODILESS.keys())
async def test_a_length_without_a_body_swallows_nothing(rig: Rig, method: str, head: bytes) -> None:
    """HEAD, 204 and 304 name a length and have no body: the next answer on both connections is read as one."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream, method=method)
    await server.send(head)
    assert (await client.message(to_head=True)).head == head
    await client.send(rig.request(to=upstream.port))
    await server.message()
    await server.send(OK)
    assert (await client.message()).payload == b"ok"


async def test_our_own_answer_to_head_has_no_body(rig: Rig, free_port: int) -> None:
    """An error of ours keeps the connection, so it too must follow HEAD's rule."""
    client = rig.client()
    await client.send(rig.request(method="HEAD", to=free_port))
    answer = await client.message(to_head=True)
    assert answer.status == 502
    await client.send(rig.request(fake="fixed=3"))
    assert (await client.message()).status == 200


# --- interim answers -------------------------------------------------------------------------------------------------


async def test_expect_continue_is_the_upstreams_to_answer(rig: Rig) -> None:
    """The field goes up, the upstream's 100 comes down, then the body, then the answer."""
    upstream = rig.upstream()
    client = rig.client()
    request = rig.request(b"hello", to=upstream.port, more="Expect: 100-continue\r\n")
    await client.send(request[:-5])
    server = await upstream.accept()
    await server.until(b"\r\n\r\n")
    assert b"Expect: 100-continue" in server.received and not client.received
    await server.send(CONTINUE)
    assert await client.until(CONTINUE) == CONTINUE
    await client.send(b"hello")
    assert (await server.message()).payload == b"hello"
    await server.send(OK)
    answer = await client.message()
    assert answer.status == 200 and answer.interim == [CONTINUE]
    assert (await rig.recorded()).interim == [CONTINUE]


async def test_expect_may_be_refused_before_the_body(rig: Rig) -> None:
    """A straight 4xx reaches the client without its body being asked for."""
    answer = await rig.exchange(b"x" * 100, fake="no-continue=401", more="Expect: 100-continue\r\n")
    assert answer.status == 401 and not answer.interim
    assert not rig.fake.requests[0].size


async def test_a_client_may_give_up_waiting_for_100(rig: Rig) -> None:
    """With a silent upstream the body is sent after all; nobody deadlocks."""
    upstream = rig.upstream()
    client = rig.client()
    await client.send(rig.request(b"hello", to=upstream.port, more="Expect: 100-continue\r\n")[:-5])
    server = await upstream.accept()
    await server.until(b"\r\n\r\n")
    await client.send(b"hello")
    assert (await server.message()).payload == b"hello"
    await server.send(OK)
    assert (await client.message()).status == 200


async def test_a_close_behind_100_is_a_failure(rig: Rig) -> None:
    """100 is no answer: the client gets an error, not silence and not a retry."""
    client = rig.client()
    await client.send(rig.request(b"hello", fake="close-after-continue", more="Expect: 100-continue\r\n")[:-5])
    answer = await client.message()
    assert answer.interim == [CONTINUE] and answer.status == 502
    recorded = await rig.recorded()
    assert recorded.ending is Ending.UPSTREAM_FAILED and recorded.end.answered == 502


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_interim_answers_pass_but_not_to_old_clients(rig: Rig, version: str) -> None:
    """100 and 103 are forwarded as they are; HTTP/1.0 does not know them. Both are recorded."""
    answer = await rig.exchange(b"{}", fake="fixed; interim=100,103,103", version=version)
    plain = await rig.exchange(b"{}", fake="bytes=00; interim=100,103,103", version=version)
    assert answer.status == plain.status == 200
    assert [head[9:12] for head in plain.interim] == ([b"100", b"103", b"103"] if version == "1.1" else [])
    _, recorded = await rig.exchanges()
    assert len(recorded.interim) == 3


# --- framings --------------------------------------------------------------------------------------------------------


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\nX-B: 1\r\n\r\n"
    b'3;ext="a;b"\r\nabc\r\n0A\r\n0123456789\r\n0;last\r\nX-T: 1\r\n\r\n'
)


async def test_chunks_and_trailers_pass_as_they_are(rig: Rig) -> None:
    """Sizes, extensions and trailers are the upstream's; the connection is used again."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(CHUNKED + b"")
    answer = await client.message()
    assert answer.head + answer.wire == CHUNKED and client.ended == "open"
    recorded = await rig.recorded()
    assert recorded.head + recorded.response == CHUNKED and recorded.end.response_size == 13
    assert len(rig.core.pool) == 1


async def test_an_old_client_gets_the_payload_alone(rig: Rig) -> None:
    """HTTP/1.0 has no chunks: they are taken off, with the fields that speak of them, and the close is the end."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream, version="1.0", more="Connection: keep-alive\r\n")
    for start in range(0, len(CHUNKED), 7):
        await server.send(CHUNKED[start : start + 7])
    await client.to_the_end()
    assert client.received == b"HTTP/1.1 200 OK\r\nX-B: 1\r\n\r\nabc0123456789" and client.ended == "fin"
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE and recorded.head + recorded.response == CHUNKED


async def test_an_old_client_sees_a_break_in_chunks(rig: Rig) -> None:
    """Without chunks only a reset can tell it that the rest is missing."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream, version="1.0")
    await server.send(CHUNKED[:100])
    await client.until(b"\r\n\r\n")
    server.close()
    await client.to_the_end()
    assert client.ended == "rst"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_old_upstream_ends_by_close(rig: Rig, version: str) -> None:
    """An answer without length lasts until the upstream's FIN, and so does the client's connection."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream, version=version)
    await server.send(b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nbody")
    await client.until(b"body")
    server.close()
    await client.to_the_end()
    assert client.received == b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nbody" and client.ended == "fin"
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE and recorded.end.notes == Note.ENDED_BY_CLOSE


async def test_a_redirect_is_the_clients_business(rig: Rig) -> None:
    """3xx passes with its Location; nobody follows it here."""
    for status in (301, 302, 303, 307, 308):
        answer = await rig.exchange(b"{}", fake=f"redirect={status}")
        assert answer.status == status and answer.get(b"location") == b"/v1/elsewhere?from=fake"
    assert len(rig.fake.requests) == 5


# --- early answers ---------------------------------------------------------------------------------------------------


async def test_an_answer_may_come_before_the_upload_is_over(rig: Rig) -> None:
    """413 during a 50 MB upload: the client reads all of it, and the upstream connection is not used again."""
    client = rig.client()
    request = rig.request(b"", method="POST", fake="early=413", more=f"Content-Length: {50 << 20}\r\n")
    await client.send(request)

    async def upload() -> None:
        block = bytes(1 << 16)
        try:
            for _ in range(50 << 4):
                await client.send(block)
        except OSError:  # it may be told to stop
            pass

    sending = asyncio.create_task(upload())
    answer = await client.message()
    await sending
    assert answer.status == 413 and answer.complete
    assert answer.head + answer.wire == rig.fake.responses[0].raw.replace(b"Connection: close\r\n", b"")
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE and recorded.end.notes & Note.EARLY
    assert not len(rig.core.pool)


async def test_an_early_answer_does_not_stop_the_upload_by_itself(rig: Rig) -> None:
    """As long as the answer goes on, so does the upload: some servers answer while they read."""
    upstream = rig.upstream()
    client = rig.client()
    await client.send(rig.request(b"0123456789", to=upstream.port)[:-5])
    server = await upstream.accept()
    await server.until(b"01234")
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    await client.until(b"ab")
    await client.send(b"56789")
    await server.until(b"0123456789")
    await server.send(b"cd")
    assert (await client.message()).payload == b"abcd"
    recorded = await rig.recorded()
    assert recorded.end.request_size == 10 and not recorded.end.notes & Note.EARLY
    await client.send(rig.request(fake="fixed"))
    assert (await client.message()).status == 200


# --- upgrades --------------------------------------------------------------------------------------------------------


async def _upgraded(rig: Rig, *, first: bytes = b"") -> tuple[Wire, Wire]:
    upstream = rig.upstream()
    client, server, request = await rig.meet(upstream, more=UPGRADE)
    assert request.get(b"upgrade") == b"websocket" and request.get(b"connection") == b"keep-alive, Upgrade"
    await server.send(SWITCHING + first)
    assert (await client.message()).head == SWITCHING
    return client, server


async def test_an_upgraded_connection_carries_raw_bytes_both_ways(rig: Rig) -> None:
    """After 101 nothing is read as HTTP, not even what looks like it; bytes behind the head go along."""
    client, server = await _upgraded(rig, first=b"\x81\x02hi")
    await client.until(b"\x81\x02hi")
    looks = rig.request(b"no") + OK
    await client.send(looks)
    await server.until(looks)
    await server.send(OK * 2)
    await client.until(OK * 2)
    client.close()
    await server.to_the_end()
    assert server.ended == "fin"
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE and recorded.end.notes & Note.WEBSOCKET
    assert (recorded.request, recorded.response) == (looks, b"\x81\x02hi" + OK * 2)
    assert (recorded.end.request_size, recorded.end.response_size) == (len(looks), len(recorded.response))


async def test_bytes_behind_the_request_for_an_upgrade_keep_their_place(rig: Rig) -> None:
    """What the client sends before it has the 101 goes up after it, before anything later."""
    upstream = rig.upstream()
    client = rig.client()
    await client.send(rig.request(to=upstream.port, more=UPGRADE) + b"early,")
    server = await upstream.accept()
    await server.until(b"\r\n\r\n")
    # Both in one go, so that the proxy finds the 101 and the later bytes in the same turn of its loop.
    server.socket.send(SWITCHING)
    client.socket.send(b"late")
    await server.until(b"late")
    assert server.received.endswith(b"\r\n\r\nearly,late")
    await client.until(SWITCHING)
    client.close()
    await server.to_the_end()
    assert (await rig.recorded()).request == b"early,late"


async def test_an_upstream_closing_an_upgraded_connection_closes_the_client(rig: Rig) -> None:
    """Its last words arrive, then a FIN; a reset stays a reset."""
    client, server = await _upgraded(rig)
    await server.send(b"\x88\x00")
    server.close()
    await client.to_the_end()
    assert client.received.endswith(b"\x88\x00") and client.ended == "fin"
    client, server = await _upgraded(rig)
    server.reset()
    await client.to_the_end()
    assert client.ended == "rst"
    assert [one.ending for one in await rig.exchanges()] == [Ending.COMPLETE, Ending.UPSTREAM_FAILED]


async def test_a_websocket_client_and_server_talk_through_us(rig: Rig) -> None:
    """A real WebSocket library on one side, the fake provider's on the other, compression and a clean close."""
    import websockets

    address = f"ws://127.0.0.1:{rig.port}/openai/127.0.0.1:{rig.fake.port}/v1/responses?fake=echo"
    async with websockets.connect(address, proxy=None) as socket:
        for text in ("hi", "ü" * 5000, "x" * 200_000):
            await socket.send(text)
            assert await socket.recv() == text
    assert socket.close_code == 1000
    await rig.fake.wait_for(lambda: rig.fake.connections[0].closed)
    recorded = await rig.recorded()
    assert recorded.ending is Ending.COMPLETE and rig.fake.requests[0].messages == ["hi", "ü" * 5000, "x" * 200_000]


async def test_an_upgrade_to_something_else_is_no_upgrade(rig: Rig) -> None:
    """`Upgrade: h2c` on a POST is dropped, its body is a body, and the next request is a request."""
    client = rig.client()
    more = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    for number in range(2):
        await client.send(rig.request(b"body%d" % number, fake="fixed", more=more))
        assert (await client.message()).status == 200
    assert [one.body for one in rig.fake.requests] == [b"body0", b"body1"]
    assert not any(name.lower() in (b"upgrade", b"http2-settings") for name, _ in rig.fake.requests[0].headers)


async def test_a_refused_upgrade_is_an_ordinary_answer(rig: Rig) -> None:
    """A 403 to an upgrade keeps the connection for the next request."""
    client = rig.client()
    await client.send(rig.request(fake="status=403", more=UPGRADE))
    assert (await client.message()).status == 403
    await client.send(rig.request(fake="fixed"))
    assert (await client.message()).status == 200


@pytest.mark.parametrize("body", [b"", b"x"])
async def test_a_101_that_nobody_asked_for_is_an_error(rig: Rig, body: bytes) -> None:
    """An upstream cannot turn a plain exchange into a tunnel."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream, body, more=UPGRADE if body else "")
    await server.send(SWITCHING + b"tunnel")
    answer = await client.message()
    assert answer.status == 502 and b"tunnel" not in client.received and not answer.interim
    await server.to_the_end()
    assert server.ended == "rst"


async def test_an_upgrade_request_with_a_body_is_no_upgrade_either(rig: Rig) -> None:
    """Also when the same head without a body came before."""
    upstream = rig.upstream()
    more = UPGRADE + "Content-Length: %d\r\n"
    client, server, _ = await rig.meet(upstream, more=more % 0)
    await server.send(OK)
    assert (await client.message()).status == 200
    await client.send(rig.request(to=upstream.port, more=more % 4) + b"body")
    request = await server.message()
    assert request.payload == b"body" and not request.get(b"upgrade")


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_draining_lets_a_stream_finish(rig: Rig) -> None:
    """On a stop, idle connections close at once, a stream gets its end, and nobody new is served."""
    upstream = rig.upstream()
    idle = rig.client()
    await idle.send(rig.request(fake="fixed"))
    await idle.message()
    client, server, _ = await rig.meet(upstream)
    await server.send(CHUNKED[:100])
    await client.until(b"abc")
    draining = asyncio.create_task(rig.proxy.drain(5))
    await idle.to_the_end()
    with pytest.raises(ConnectionRefusedError):
        rig.client()
    await server.send(CHUNKED[100:])
    assert await draining == 0
    answer = await client.message()
    assert answer.complete and answer.head + answer.wire == CHUNKED
    await client.to_the_end()
    assert client.ended == "fin"


async def test_what_does_not_finish_in_time_is_cut_and_says_so(rig: Rig) -> None:
    """At the drain's limit a stream is reset and a waiting client answered; both endings are `interrupted`."""
    upstream = rig.upstream()
    client, server, _ = await rig.meet(upstream)
    await server.send(CHUNKED[:100])
    await client.until(b"abc")
    waiting, silent, _ = await rig.meet(upstream)
    assert await rig.proxy.drain(0.05) == 2
    await client.to_the_end()
    assert client.ended == "rst"
    answer = await waiting.message()
    assert answer.status == 503 and answer.get(b"x-llm-proxy-error") == b"stopping"
    for peer in (server, silent):
        await peer.to_the_end()
        assert peer.ended == "rst"
    assert [one.ending for one in await rig.exchanges(2)] == [Ending.INTERRUPTED] * 2
