"""Nobody can use up the proxy: slow heads, long heads, idle and too many connections, smuggled requests, unread answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import time

import psutil
import pytest

from llm_proxy.proxy.listener import limits
from tests.rig import Message, Rig, StartRig, Wire
from tests.test_framing import REFUSED

STATUS_LINE = re.compile(rb"HTTP/1\.1 [1-5][0-9][0-9] ")
SMUGGLED = b"GET /openai/127.0.0.1:%d/v1/smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def code(answer: Message) -> str:
    """What of ours an answer says."""
    assert answer.get(b"x-llm-proxy-error").decode() == json.loads(answer.payload)["error"]["code"]
    return answer.get(b"x-llm-proxy-error").decode()


# -- heads ---------------------------------------------------------------------------------------------------------


async def test_a_slow_head_is_given_up(rigs: StartRig) -> None:
    """Stalled or one byte at a time: 408 within the limit and a sweep, while others are served at once."""
    rig = await rigs(head_timeout=1.0)
    stalled, dripping = rig.client(), rig.client()
    began = time.monotonic()
    await stalled.send(b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n")

    async def drip() -> None:
        with contextlib.suppress(OSError):
            for byte in rig.request(more="X-Long: " + "a" * 1000):
                await dripping.send(bytes([byte]))
                await asyncio.sleep(0.05)

    slowly = asyncio.create_task(drip())
    for _ in range(10):
        before = time.monotonic()
        assert (await rig.exchange(b"{}", fake="fixed=100")).status == 200
        assert time.monotonic() - before < 0.5
    for wire in (stalled, dripping):
        answer = await wire.message()
        assert (answer.status, code(answer)) == (408, "request_timeout")
        assert await wire.to_the_end() and wire.ended in ("fin", "rst")
        assert 1.0 <= time.monotonic() - began < 4.0
    slowly.cancel()


async def test_the_wait_for_a_head_begins_with_its_first_byte(rigs: StartRig) -> None:
    """A kept connection may be idle for longer than a head may take."""
    rig = await rigs(head_timeout=0.5)
    wire = rig.client()
    for _ in range(2):
        await wire.send(rig.request(fake="fixed=10"))
        assert (await wire.message()).status == 200
        await asyncio.sleep(1.7)  # longer than the limit and a sweep: nothing must happen meanwhile
    assert wire.ended == "open"


async def test_an_idle_connection_is_closed(rigs: StartRig) -> None:
    """Fresh or used, with a FIN and nothing else; one that has an exchange is not idle."""
    rig = await rigs(client_idle_timeout=0.5)
    fresh, used, busy = rig.client(), rig.client(), rig.client()
    await busy.send(rig.request(fake="delay=2500"))
    await used.send(rig.request(fake="fixed=10"))
    assert (await used.message()).status == 200
    for wire in (fresh, used):
        before = len(wire.received)
        await wire.to_the_end()
        assert (wire.ended, len(wire.received)) == ("fin", before)
    assert (await busy.message()).status in (200, 404)


def padded(rig: Rig, size: int) -> bytes:
    """A request whose head has exactly `size` bytes."""
    short = rig.request(fake="fixed=10", more="X-Pad: \r\n")
    return short.replace(b"X-Pad: ", b"X-Pad: " + b"p" * (size - len(short)))


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_head_may_have_64_kib(rig: Rig, pieces: int) -> None:
    """To the byte: one more is 431, however it is cut."""
    for size, status in ((65_535, 200), (65_536, 200), (65_537, 431), (80_000, 431)):
        wire, data = rig.client(), padded(rig, size)
        assert len(data) == size
        for start in range(0, size, -(-size // pieces)):
            await wire.send(data[start : start + -(-size // pieces)])
            await asyncio.sleep(0.01)  # so that it arrives in pieces
        answer = await wire.message()
        assert answer.status == status, size
        if status == 431:
            await wire.to_the_end()
    assert rig.fake.counts.requests == 2


async def test_a_head_without_end_is_not_collected(rig: Rig) -> None:
    """What has no end is refused at the limit, and the proxy keeps none of it."""
    wire = rig.client()
    with contextlib.suppress(OSError):
        await wire.send(b"GET /" + b"a" * 300_000)
    assert (await wire.message()).status == 431


async def test_a_head_may_have_256_fields(rig: Rig) -> None:
    """One more is 431."""
    for more, status in ((253, 200), (254, 200), (255, 431), (5000, 431)):  # besides Host and X-Fake
        answer = await rig.exchange(fake="fixed=10", more="a:\r\n" * more)
        assert answer.status == status, more
    assert rig.fake.counts.requests == 2


# -- connections ---------------------------------------------------------------------------------------------------


async def test_a_connection_too_many_hears_so(rigs: StartRig) -> None:
    """503 for whoever comes after the cap; those within it go on, and a place that is free is taken."""
    rig = await rigs(max_connections=3)
    inside = [rig.client() for _ in range(3)]
    await rig.until(lambda: len(rig.core.clients) == 3)
    for _ in range(5):
        late = rig.client()
        with contextlib.suppress(OSError):
            await late.send(rig.request(fake="fixed=10"))
        answer = await late.message()
        assert (answer.status, code(answer)) == (503, "too_many_connections")
        assert answer.get(b"connection") == b"close"
        late.close()
    for wire in inside:
        await wire.send(rig.request(fake="fixed=10"))
        assert (await wire.message()).status == 200
    inside.pop().close()
    await rig.until(lambda: len(rig.core.clients) == 2)
    assert (await rig.exchange(fake="fixed=10")).status == 200
    assert rig.core.metrics.answers["too_many_connections"] == 5


@pytest.mark.parametrize(
    ("wanted", "files", "served"),
    [(4096, 1 << 20, 4096), (4096, 4096, 1587), (4096, 1024, 358), (100, 1024, 100), (4096, 64, 1)],
)
def test_the_cap_fits_the_limit_of_open_files(wanted: int, files: int, served: int) -> None:
    """Clients, their upstreams, idle upstream connections and those being refused together leave a reserve for files."""
    found = limits(wanted, files)
    assert found.served == served
    assert files < 300 or found.open + found.served + found.idle + 64 <= files


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_crowd_beyond_the_limit_of_open_files_is_survived(start, loop: str) -> None:  # type: ignore[no-untyped-def]
    """2,000 connections at 1,024 files: who is in is served on, the log stays short, nothing spins, and it ends with them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    daemon = start(
        "--port",
        "0",
        env={"LLM_PROXY_LOOP": loop},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)),
    )
    daemon.wait_for_recording()
    said = len(daemon.lines)
    address = ("127.0.0.1", daemon.port)
    ask = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    def served(link: socket.socket, within: float) -> bool:
        link.settimeout(within)
        link.sendall(ask)
        answer = link.recv(65_536)
        return answer.startswith(b"HTTP/1.1 200") and b'"recording": "ok"' in answer

    with contextlib.ExitStack() as stack:
        early = stack.enter_context(socket.create_connection(address, 5))
        assert served(early, 5)
        crowd = [stack.enter_context(socket.socket()) for _ in range(2000)]
        for link in crowd:
            link.setblocking(False)
            assert link.connect_ex(address) in (0, 115)
        process = psutil.Process(daemon.pid)
        before = process.cpu_times()
        began = time.monotonic()
        while time.monotonic() - began < 3:
            assert served(early, 1.0)
            assert process.num_fds() < 1000
            time.sleep(0.05)
        after = process.cpu_times()
        assert after.user + after.system - before.user - before.system < 1.5
        for link in crowd:
            link.close()
        with socket.create_connection(address, 2) as late:
            assert served(late, 2.0)
    assert daemon.process.poll() is None
    new = "".join(daemon.lines[said:])
    assert "new connections have to wait" in new and "Traceback" not in new and new.count("\n") < 10, new
    assert daemon.stop() == 0


# -- what is written to whoever does not read ----------------------------------------------------------------------


@pytest.mark.parametrize("ours", [True, False])
async def test_answers_are_not_piled_up_for_a_client_that_reads_none(rig: Rig, ours: bool) -> None:
    """Pipelined requests wait until the answers before them are taken; then all are answered, in order."""
    wire = rig.client(receive_buffer=16_384)
    if ours:
        request, count, most = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 3000, 200_000
    else:
        request, count, most = rig.request(fake="fixed=100000"), 80, 600_000
    sending = asyncio.create_task(wire.send(request * count))
    await rig.until(lambda: rig.core.clients)
    (client,) = rig.core.clients
    seen = 0
    for _ in range(100):
        await asyncio.sleep(0.005)
        seen = max(seen, client.transport.get_write_buffer_size())
    assert 0 < seen < most
    for _ in range(count):
        assert (await wire.message()).status == 200
    await sending
    assert wire.ended == "open" and rig.core.metrics.faults == 0


# -- smuggling -----------------------------------------------------------------------------------------------------


async def refused_and_closed(rig: Rig, data: bytes) -> Message:
    """The answer to a request that must end its connection; what it hides behind itself reaches nobody."""
    wire = rig.client()
    await wire.send(data + SMUGGLED % rig.fake.port)
    answer = await wire.message()
    assert answer.complete, (data, wire.received)
    await wire.to_the_end()
    assert len(STATUS_LINE.findall(wire.received)) == 1, wire.received
    assert rig.core.metrics.faults == 0
    return answer


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "leading blank"])  # passed over, as the RFC asks
async def test_a_head_that_can_be_read_two_ways_ends_the_connection(rig: Rig, name: str) -> None:
    """400, nothing forwarded, and what is pipelined behind it is not looked at."""
    target = b"GET /openai/127.0.0.1:%d/v1/x" % rig.fake.port
    vector = REFUSED[name].replace(b"GET /", target, 1).replace(b"Host: h", b"Host: 127.0.0.1")
    for data in (vector, vector.replace(b"GET ", b"POST ", 1)):
        answer = await refused_and_closed(rig, data)
        assert answer.status in (400, 405) and code(answer) == "bad_request", (name, answer)
    assert rig.fake.counts.requests == 0


BODIES = {
    "bare LF behind the size": b"3\nabc\r\n0\r\n\r\n",
    "bare LF behind the data": b"3\r\nabc\n0\r\n\r\n",
    "bare LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "too much data": b"3\r\nabcd\r\n0\r\n\r\n",
    "too little data": b"3\r\nab\r\n0\r\n\r\n",
    "signed size": b"+3\r\nabc\r\n0\r\n\r\n",
    "hex prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "space behind the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "size that overflows": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "framing field as trailer": b"0\r\nContent-Length: 9\r\n\r\n",
    "folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "bare LF in trailers": b"0\r\nX: a\n\r\n",
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_breaks_its_framing_ends_both_connections(rig: Rig, name: str, late: bool) -> None:
    """The upstream never gets a complete request out of it, nor the one hidden behind."""
    head = rig.request(method="POST", target="/v1/x", more="Transfer-Encoding: chunked\r\n")
    if not late:
        answer = await refused_and_closed(rig, head + BODIES[name])
    else:
        wire = rig.client()
        await wire.send(head + b"1\r\na\r\n")
        await rig.fake.wait_for(lambda: rig.fake.requests)
        await wire.send(BODIES[name] + SMUGGLED % rig.fake.port)
        answer = await wire.message()
        await wire.to_the_end()
        assert len(STATUS_LINE.findall(wire.received)) == 1
    assert (answer.status, code(answer)) == (400, "bad_framing")
    await rig.fake.wait_for(lambda: not rig.fake.counts.open_connections)
    assert rig.fake.counts.requests == late
    assert not any(request.complete for request in rig.fake.requests)


async def test_a_length_counts_even_if_the_body_looks_like_a_request(rig: Rig) -> None:
    """As many requests arrive as were sent, with the bodies that their lengths say."""
    hidden = SMUGGLED % rig.fake.port
    wire = rig.client()
    await wire.send(rig.request(hidden, target="/v1/x", fake="fixed=9") + rig.request(target="/v1/y", fake="fixed=9"))
    assert [(await wire.message()).status for _ in range(2)] == [200, 200]
    assert [(request.target, request.body) for request in rig.fake.requests] == [("/v1/x", hidden), ("/v1/y", b"")]
    assert rig.fake.counts.requests == 2


@pytest.mark.parametrize(
    "digits", [b"", b" ", b"+3", b"3,3", b"0x3", b"-1", b"\t", b"3\r\nContent-Length: 3", b"9" * 19]
)
async def test_a_head_like_an_earlier_one_is_not_trusted_for_its_length(rig: Rig, digits: bytes) -> None:
    """A remembered head differs in Content-Length's digits alone, and they are digits."""
    for number in range(3):
        body = b"x" * number
        head = rig.request(target="/v1/x", method="POST", fake="fixed=9", more="Content-Length: {}\r\n")
        wire = rig.client()
        await wire.send(head.replace(b"{}", b"%d" % number) + body)
        assert (await wire.message()).status == 200
    answer = await refused_and_closed(rig, head.replace(b"{}", digits) + b"xxx")
    assert answer.status == 400
    assert [request.body for request in rig.fake.requests] == [b"", b"x", b"xx"]


async def test_requests_cut_anywhere_are_as_many_as_were_sent(rig: Rig) -> None:
    """Three pipelined requests, cut in two at every byte: the provider sees these three, whole."""
    data = (
        rig.request(b"{}", target="/v1/a", fake="fixed=1")
        + b"\r\n"
        + rig.request(target="/v1/b", fake="fixed=1", method="POST", more="Transfer-Encoding: chunked\r\n")
        + b"2\r\nab\r\n0\r\n\r\n"
        + rig.request(target="/v1/c", fake="fixed=1")
    )
    for cut in range(1, len(data), 7):
        rig.fake.requests.clear()
        wire: Wire = rig.client()
        await wire.send(data[:cut])
        await asyncio.sleep(0)
        await wire.send(data[cut:])
        assert [(await wire.message()).status for _ in range(3)] == [200] * 3, cut
        assert [(one.target, one.body) for one in rig.fake.requests] == [
            ("/v1/a", b"{}"),
            ("/v1/b", b"ab"),
            ("/v1/c", b""),
        ]
        wire.close()


def test_the_process_is_still_itself() -> None:
    """This file opened thousands of connections and closed them again."""
    assert psutil.Process(os.getpid()).num_fds() < 500
