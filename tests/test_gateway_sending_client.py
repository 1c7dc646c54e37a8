"""The gateway's client of HTTP over a Unix socket, against servers that the tests play byte by byte."""

import asyncio
import contextlib
import os
import socket
import time

import pytest
import pytest_asyncio

from llm_proxy.gateway.sending import client as module
from llm_proxy.gateway.sending.client import Broken, Client, Unreachable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """One connection at the server's end."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.heads = []
        self.body = b""

    async def request(self):
        """The next request's head, its body in `body`; None where the client has left."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            assert not error.partial
            return None
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        self.body = await self.reader.readexactly(length)
        self.heads.append(head)
        return head

    async def left(self):
        """Once the client has closed."""
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(1 << 16):
                    pass

    def abort(self):
        self.writer.transport.abort()


class Server:
    """Plays `script(peer)` with every connection. `peers` grows as they come."""

    def __init__(self, path):
        self.path = path
        self.peers = []
        self.errors = []
        self.tasks = set()
        self.script = None
        self.server = None

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            await self.script(peer)
        except ConnectionError:
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            writer.close()

    async def start(self, script, backlog=100):
        self.script = script
        self.server = await asyncio.start_unix_server(self.serve, self.path, backlog=backlog, limit=1 << 20)

    async def stop(self):
        if self.server is not None:
            self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert not self.errors


@pytest_asyncio.fixture
async def server(tmp_path):
    one = Server(str(tmp_path / "s"))
    yield one
    await one.stop()


@pytest_asyncio.fixture
async def client(server):
    one = Client(server.path)
    yield one
    one.close()
    async with asyncio.timeout(30):
        while one.connections:
            await asyncio.sleep(0)


def always(answer):
    async def script(peer):
        while await peer.request():
            peer.writer.write(answer)

    return script


async def post(client, body=b"{}", timeout=5.0, headers=(), target="/openai/api.openai.com/v1/x"):
    return await client.request("POST", target, headers, body, timeout)


async def test_requests_go_out_as_they_are_given_over_one_connection(server, client):
    """A request is its line, Host, the caller's fields in order and its length; the next one uses the connection again."""
    await server.start(always(OK))
    for _ in range(3):
        answer = await post(client, b'{"a":1}', headers=[("X-B", "1"), ("x-a", "2")])
        assert (answer.status, await answer.read(10)) == (200, b"ok")
        assert answer.headers == {"content-length": "2"}
    (peer,) = server.peers
    expected = (
        b"POST /openai/api.openai.com/v1/x HTTP/1.1\r\nHost: localhost\r\nX-B: 1\r\nx-a: 2\r\nContent-Length: 7\r\n\r\n"
    )
    assert peer.heads == [expected] * 3
    assert peer.body == b'{"a":1}'


async def test_concurrent_requests_have_connections_of_their_own(server, client):
    """Sixteen calls at once use sixteen connections, and the next sixteen the same ones."""
    await server.start(always(OK))
    for _ in range(2):
        answers = await asyncio.gather(*(post(client) for _ in range(16)))
        assert [await answer.read(10) for answer in answers] == [b"ok"] * 16
    assert len(server.peers) == client.connections == 16


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/a b", []),
        ("/a\r\nX: y", []),
        ("/a", [("X-A", "1\r\nX-Api-Key: stolen")]),
        ("/a", [("X-A", "1\nGET / HTTP/1.1")]),
        ("/a", [("X-A\nB", "1")]),
        ("/a", [("X-A", "\x00")]),
        ("/a", [("X-A", "\x7f")]),
        ("/a", [("X-A", "é")]),
    ],
)
async def test_no_value_becomes_a_line_of_its_own(server, client, target, headers):
    """What could be read as another field or request is refused before a byte goes out."""
    await server.start(always(OK))
    with pytest.raises(ValueError, match="do not belong"):
        await post(client, target=target, headers=headers)
    assert not server.peers


async def test_a_stream_comes_as_it_is_sent(server, client):
    """Each piece is there as soon as it was sent, chunk framing taken off, and the end only once it was told."""
    go = asyncio.Semaphore(0)

    async def script(peer):
        await peer.request()
        peer.writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + STREAM)
        for piece in (b"data: one\n\n", b"data: two\n\n"):
            peer.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await go.acquire()
        peer.writer.write(b"0\r\n\r\n")
        await peer.request()

    await server.start(script)
    answer = await post(client)
    assert answer.headers["content-type"] == "text/event-stream"
    pieces = []
    async for piece in answer.pieces():
        pieces.append(piece)
        go.release()
    assert pieces == [b"data: one\n\n", b"data: two\n\n"]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_an_answer_may_be_cut_anywhere(server, client, size):
    """Head, chunk lines and bodies come in pieces of any size, and the connection is good for the next call."""
    whole = STREAM + b"5;x=y\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\nX-T: 1\r\n\r\n"

    async def script(peer):
        while await peer.request():
            for start in range(0, len(whole), size):
                peer.writer.write(whole[start : start + size])
                await asyncio.sleep(0)

    await server.start(script)
    for _ in range(2):
        assert await (await post(client)).read(100) == b"hello world"
    assert len(server.peers) == 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (STREAM + b"5\r\nhel", "upstream_truncated"),
        (STREAM + b"3\r\nhel\r\n", "upstream_truncated"),
        (STREAM + b"3\r\nhel\r\n0\r\n", "upstream_truncated"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel", "upstream_truncated"),
        (STREAM + b"3\r\nhel\r\nzz\r\n", "bad_framing"),
    ],
)
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_what_ends_early_is_no_clean_end(server, client, sent, code, how):
    """What came is handed out, then Broken is raised: by `pieces` and by `read`."""

    async def script(peer):
        await peer.request()
        peer.writer.write(sent)
        await peer.writer.drain()
        if code == "bad_framing":
            await peer.left()
        elif how == "abort":
            peer.abort()

    await server.start(script)
    answer = await post(client)
    pieces = []
    with pytest.raises(Broken) as caught:
        async for piece in answer.pieces():
            pieces.append(piece)
    assert caught.value.code == code
    assert b"".join(pieces) == b"hel"
    with pytest.raises(Broken):
        await (await post(client)).read(100)


async def test_a_body_without_length_ends_with_its_connection(server, client):
    """Where the connection's end is the body's, it is a clean one, and the connection is not used again."""
    seen = []

    async def script(peer):
        seen.append(await peer.request())
        peer.writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall")

    await server.start(script)
    for _ in range(2):
        assert await (await post(client)).read(100) == b"all"
    assert len(seen) == 2


@pytest.mark.parametrize(("body", "whole"), [(b'{"a": [1]} ', True), (b'{"a": [1', False), (b"", False)])
async def test_json_without_length_must_be_whole(server, client, body, whole):
    """A socket of this machine tells no break from an end, so that the body itself must show that it is all."""

    async def script(peer):
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + body)

    await server.start(script)
    answer = await post(client)
    if whole:
        assert await answer.read(100) == body
    else:
        with pytest.raises(Broken):
            await answer.read(100)


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX",
        b"",
    ],
)
async def test_no_answer_is_told_as_such(server, client, sent):
    """What is no HTTP, or no whole head, is Unreachable: the call may go elsewhere."""

    async def script(peer):
        await peer.request()
        peer.writer.write(sent)

    await server.start(script)
    with pytest.raises(Unreachable) as caught:
        await post(client)
    assert caught.value.code in ("bad_response", "upstream_reset")
    assert not caught.value.timed_out


async def test_a_kept_connection_that_died_is_no_failure(server, client):
    """One that the server has closed meanwhile is not used, or the request is sent again over a fresh one: once."""

    async def script(peer):
        await peer.request()
        peer.writer.write(OK)
        await peer.request()  # it takes the next one and says nothing

    await server.start(script)
    assert await (await post(client)).read(10) == b"ok"
    assert await (await post(client, b"second")).read(10) == b"ok"
    assert [peer.body for peer in server.peers] == [b"second", b"second"]
    assert await (await post(client, b"third")).read(10) == b"ok"


async def test_a_fresh_connection_that_dies_is_not_tried_again(server, client):
    """Nobody knows whether the provider has begun: only a stale connection is a reason to send twice."""

    async def script(peer):
        await peer.request()

    await server.start(script)
    with pytest.raises(Unreachable, match="before an answer came"):
        await post(client)
    assert len(server.peers) == 1


async def test_after_the_first_byte_of_an_answer_nothing_is_sent_again(server, client):
    """A kept connection that dies with half a head is a failure: the provider has begun to answer."""

    async def script(peer):
        await peer.request()
        peer.writer.write(OK)
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200")

    await server.start(script)
    await (await post(client)).read(10)
    with pytest.raises(Unreachable) as caught:
        await post(client)
    assert caught.value.code == "upstream_reset"
    assert len(server.peers) == 1


async def test_an_answer_nobody_asked_for_is_not_taken(server, client):
    """Bytes that come while a connection is idle, or behind an answer, never answer the next request."""

    async def script(peer):
        await peer.request()
        peer.writer.write(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        await peer.left()

    await server.start(script)
    for _ in range(2):
        assert await (await post(client)).read(10) == b"ok"
    assert len(server.peers) == 2


async def test_a_word_out_of_turn_ends_a_connection(server, client):
    """What comes while a connection waits for its next call closes it, and answers nothing."""
    said = asyncio.Event()

    async def script(peer):
        await peer.request()
        peer.writer.write(OK)
        await said.wait()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        await peer.left()

    await server.start(script)
    assert await (await post(client)).read(10) == b"ok"
    said.set()
    async with asyncio.timeout(30):
        while client.connections:
            await asyncio.sleep(0.001)
    assert await (await post(client)).read(10) == b"ok"


async def test_a_connection_that_is_to_be_closed_is_not_kept(server, client):
    """`Connection: close` counts, also where the server has not closed yet."""

    async def script(peer):
        await peer.request()
        peer.writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await peer.left()

    await server.start(script)
    for _ in range(2):
        assert await (await post(client)).read(10) == b"ok"
    assert len(server.peers) == 2


async def test_an_answer_that_filled_the_buffer_leaves_a_good_connection(server, client):
    """Reading that was held up by the last bytes of an answer goes on for the next one."""
    size = module.HIGH + 50_000
    await server.start(always(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size))
    for _ in range(3):
        answer = await post(client)
        await asyncio.sleep(0.05)  # all of it comes before any is taken
        async with asyncio.timeout(30):
            assert len(await answer.read(size)) == size
    assert len(server.peers) == 1


async def test_the_first_byte_has_a_limit_and_the_stream_has_none(server, client):
    """No head in time: Unreachable that says so, and the server sees the connection close. Later silence is no matter."""
    left = asyncio.Event()
    go = asyncio.Event()

    async def script(peer):
        if b"/slow" in await peer.request():
            await peer.left()
            left.set()
        else:
            peer.writer.write(STREAM)
            await go.wait()
            peer.writer.write(b"2\r\nok\r\n0\r\n\r\n")
            await peer.left()

    await server.start(script)
    begun = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        await post(client, timeout=0.1, target="/slow")
    assert caught.value.timed_out
    assert time.monotonic() - begun < 3
    async with asyncio.timeout(30):
        await left.wait()
    answer = await post(client, timeout=0.1)
    asyncio.get_running_loop().call_later(0.3, go.set)
    assert await answer.read(10) == b"ok"


async def test_silence_in_the_middle_ends_an_answer(server, monkeypatch):
    """An answer that stops coming is Broken once the idle limit is over; one that nobody takes is not silent."""
    monkeypatch.setattr(module, "_SWEEP", 0.02)
    client = Client(server.path, idle_timeout=0.1)

    async def script(peer):
        await peer.request()
        peer.writer.write(STREAM + b"2\r\nok\r\n")
        await peer.left()

    await server.start(script)
    answer = await post(client)
    with pytest.raises(Broken) as caught:
        await answer.read(10)
    assert caught.value.code == "idle_timeout"
    client.close()


@pytest.mark.parametrize("when", ["head", "body"])
async def test_who_is_cancelled_closes_at_once(server, client, when):
    """The server sees the connection end as soon as nobody waits any more, before its head and in its body."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(peer):
        await peer.request()
        if when == "body":
            peer.writer.write(STREAM)
        asked.set()
        await peer.left()
        left.set()

    await server.start(script)

    async def call():
        answer = await post(client, timeout=0)
        await answer.read(10)

    task = asyncio.create_task(call())
    await asked.wait()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(30):
        await left.wait()


async def test_closing_an_answer_closes_its_connection_only(server, client):
    """`close` in the middle of a stream is seen by the server; of an answer that is over, it harms no other call."""
    left = asyncio.Event()

    async def script(peer):
        while head := await peer.request():
            if b"/stream" in head:
                peer.writer.write(STREAM + b"2\r\nok\r\n")
                await peer.left()
                left.set()
                return
            peer.writer.write(OK)

    await server.start(script)
    first = await post(client)
    assert await first.read(10) == b"ok"
    second = await post(client, target="/stream")  # over the same connection
    first.close()
    assert await anext(second.pieces()) == b"ok"
    second.close()
    second.close()
    with pytest.raises(Broken):
        await anext(second.pieces())
    async with asyncio.timeout(30):
        await left.wait()
    assert len(server.peers) == 1


async def test_a_slow_reader_holds_the_server_up(server, client):
    """Of a stream without end little is in memory while nobody takes it, and all of it comes once it is taken."""
    size, piece = 64 << 20, b"x" * (1 << 16)
    sent = 0

    async def script(peer):
        nonlocal sent
        await peer.request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            peer.writer.write(piece)
            sent += len(piece)
            await peer.writer.drain()
        await peer.left()

    await server.start(script)
    answer = await post(client)
    before = -1
    while before < sent:  # until nothing moves any more
        before = sent
        await asyncio.sleep(0.05)
    assert sent < 4 << 20
    took = 0
    async for one in answer.pieces():
        assert len(one) <= module.HIGH + (1 << 20)
        took += len(one)
    assert took == size


async def test_a_large_request_is_sent_at_the_servers_pace(server, client):
    """A body larger than any buffer arrives byte for byte, and an answer before its end does not spoil the next call."""
    body = os.urandom(8 << 20)

    async def script(peer):
        head = await peer.reader.readuntil(b"\r\n\r\n")
        if b"/early" in head:
            peer.writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
            await peer.left()
            return
        peer.writer.transport.pause_reading()
        await asyncio.sleep(0.05)
        assert 0 < max(one._transport.get_write_buffer_size() for one in client._open) < 1 << 20
        peer.writer.transport.resume_reading()
        assert await peer.reader.readexactly(len(body)) == body
        peer.writer.write(OK)
        await peer.left()

    await server.start(script)
    answer = await post(client, body, target="/early")
    assert (answer.status, await answer.read(10)) == (413, b"big")
    assert await (await post(client, body)).read(10) == b"ok"
    assert len(server.peers) == 2


async def test_read_has_a_limit(server, client):
    """A body of more bytes than allowed is Broken, and its connection is closed."""
    await server.start(always(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100))
    assert len(await (await post(client)).read(100)) == 100
    with pytest.raises(Broken) as caught:
        await (await post(client)).read(99)
    assert caught.value.code == "too_large"


async def test_a_flood_of_tiny_chunks_lets_others_work(server, client):
    """A hundred thousand chunks of one byte arrive whole, and meanwhile other calls are answered."""
    count = 100_000

    async def script(peer):
        while head := await peer.request():
            if b"/flood" in head:
                peer.writer.write(STREAM + b"1\r\nx\r\n" * count + b"0\r\n\r\n")
            else:
                peer.writer.write(OK)

    await server.start(script)
    (await post(client)).close()
    flood = asyncio.create_task((await post(client, target="/flood")).read(count))
    assert await (await post(client)).read(10) == b"ok"
    assert await flood == b"x" * count


async def test_no_proxy_is_told_as_such(tmp_path):
    """Neither a missing socket nor one that nobody listens on is more than Unreachable."""
    missing = Client(str(tmp_path / "none"))
    with pytest.raises(Unreachable) as caught:
        await post(missing)
    assert caught.value.code == "proxy_gone"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "deaf"))
        with pytest.raises(Unreachable) as caught:
            await post(Client(str(tmp_path / "deaf")))
    assert caught.value.code == "proxy_gone"


async def test_a_full_queue_is_waited_for(tmp_path):
    """More connections at once than the listener's queue holds are made as it accepts them, not taken for made."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        client = Client(path)
        calls = [asyncio.create_task(post(client)) for _ in range(8)]
        await asyncio.sleep(0.05)
        listener.setblocking(False)
        loop, taken = asyncio.get_running_loop(), []
        for _ in calls:
            async with asyncio.timeout(30):
                link, _ = await loop.sock_accept(listener)
            taken.append(link)
            await loop.sock_recv(link, 1000)
            await loop.sock_sendall(link, OK)
        assert [(await call).status for call in calls] == [200] * 8
        client.close()
        for link in taken:
            link.close()


async def test_idle_connections_go_after_a_while(server, client, monkeypatch):
    """A connection that was not used for longer than the limit is closed, and nothing is left that ticks."""
    monkeypatch.setattr(module, "_SWEEP", 0.02)
    monkeypatch.setattr(module, "IDLE_LIMIT", 0.1)
    await server.start(always(OK))
    await (await post(client)).read(10)
    assert client.connections == 1
    async with asyncio.timeout(30):
        while client.connections:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert client._sweeping is None


async def test_a_closed_client_ends_what_is_under_way(server, client):
    """`close` breaks streams off, visibly, and takes no more calls."""

    async def script(peer):
        await peer.request()
        peer.writer.write(STREAM)
        await peer.left()

    await server.start(script)
    answer = await post(client)
    reading = asyncio.create_task(answer.read(10))
    await asyncio.sleep(0)
    client.close()
    with pytest.raises(Broken):
        await reading
    with pytest.raises(Unreachable):
        await post(client)
