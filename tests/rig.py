"""A real proxy between a raw client and an upstream, on real sockets, with its journal in the test's folder.

Everything shows bytes: `Wire` is one TCP connection without a buffer of its own, `Upstream` a listener whose
connections the test plays itself, `Rig.exchanges` what the journal holds. Nothing here reads HTTP with the code under
test.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest_asyncio

from llm_proxy.journal.frames import Closing, Frame, Kind, Opening, rerouted, unpack_end, unpack_open
from llm_proxy.journal.reader import Reader
from llm_proxy.journal.writer import Journal
from llm_proxy.proxy.server import Proxy, ProxyConfig
from llm_proxy.records.exchange import Ending
from tests.fakeprovider import FakeProvider
from tests.fakeprovider.http1 import Chunked, Sized, fields

TIMEOUT = 10.0
END_OF_HEAD = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class Message:
    """One message as it came: `head` with its blank line, `wire` the body as on the wire, `payload` without framing.

    `interim` are the 1xx heads before it. `complete` is False where the connection ended first.
    """

    head: bytes
    wire: bytes
    payload: bytes
    interim: list[bytes]
    complete: bool

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def get(self, name: bytes) -> bytes:
        """The first field of that lower-case name, empty where there is none."""
        found = fields(self.head[: -len(END_OF_HEAD)].split(b"\r\n")[1:])
        return next((value for key, value in found if key.lower() == name), b"")


class Wire:
    """One TCP connection. `ended` is how the peer ended it: "open" (not yet), "fin" or "rst"."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.received = bytearray()
        self.read = 0  # how much of it `message` has taken
        self.ended = "open"
        self._loop = asyncio.get_running_loop()

    @classmethod
    def to(cls, port: int, *, receive_buffer: int = 0) -> Wire:
        """A connection to a port of this machine."""
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock)

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self._loop.sock_sendall(self.socket, data)

    async def receive(self) -> bytes:
        """Whatever comes next; empty when the connection has ended."""
        try:
            async with asyncio.timeout(TIMEOUT):
                data = await self._loop.sock_recv(self.socket, 1 << 20)
        except (ConnectionResetError, BrokenPipeError):
            self.ended = "rst"
            return b""
        self.received += data
        if not data:
            self.ended = "fin"
        return data

    async def until(self, marker: bytes) -> bytearray:
        """Everything received so far, once `marker` is in it."""
        while marker not in self.received:
            assert await self.receive(), f"{marker!r} did not come, but {self.received[-500:]!r}, then {self.ended}"
        return self.received

    async def to_the_end(self) -> bytearray:
        """Everything received, once the connection has ended."""
        while self.ended == "open":
            await self.receive()
        return self.received

    async def message(self, *, to_head: bool = False) -> Message:
        """The next message; with `to_head` it is the answer to a HEAD request."""
        interim: list[bytes] = []
        while True:
            while (end := self.received.find(END_OF_HEAD, self.read)) < 0:
                if not await self.receive():
                    return Message(bytes(self.received[self.read :]), b"", b"", interim, False)
            head, self.read = bytes(self.received[self.read : end + 4]), end + 4
            if not head.startswith(b"HTTP/1.1 1") or head[9:12] == b"101":
                break
            interim.append(head)
        return await self._body(head, interim, to_head)

    async def _body(self, head: bytes, interim: list[bytes], to_head: bool) -> Message:
        lines = {name.lower(): value for name, value in fields(head[:-4].split(b"\r\n")[1:])}
        is_answer = head.startswith(b"HTTP/")
        bodiless = to_head or (is_answer and head[9:12] in (b"204", b"304", b"101"))
        body: Sized | Chunked | None = None
        if bodiless:
            body = Sized(0)
        elif b"chunked" in lines.get(b"transfer-encoding", b"").lower():
            body = Chunked()
        elif b"content-length" in lines or not is_answer:
            body = Sized(int(lines.get(b"content-length", b"0")))
        start, payload = self.read, []
        while body is None or not body.done:
            if self.read == len(self.received) and not await self.receive():
                break
            data, self.read = bytes(self.received[self.read :]), len(self.received)
            piece, taken = (data, len(data)) if body is None else body.feed(data)
            self.read -= len(data) - taken
            payload.append(piece)
        complete = body.done if body is not None else self.ended == "fin"
        return Message(head, bytes(self.received[start : self.read]), b"".join(payload), interim, complete)

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


class Upstream:
    """A listener whose connections the test plays itself."""

    def __init__(self, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(128)
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self.wires: list[Wire] = []

    async def accept(self) -> Wire:
        """The proxy's next connection."""
        async with asyncio.timeout(TIMEOUT):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wires.append(Wire(sock))
        return self.wires[-1]

    def close(self) -> None:
        self.socket.close()
        for wire in self.wires:
            wire.close()


@dataclass(slots=True)
class Recorded:
    """What the journal holds of one exchange. `request` and `response` are body bytes as they crossed the wire."""

    opening: Opening
    request: bytes = b""
    response: bytes = b""
    interim: list[bytes] = field(default_factory=list)
    head: bytes = b""
    flags: int = 0
    closing: Closing | None = None
    frames: list[Frame] = field(default_factory=list)

    @property
    def end(self) -> Closing:
        assert self.closing is not None, "the exchange is still open"
        return self.closing

    @property
    def ending(self) -> Ending:
        return Ending(self.end.ending)

    def take(self, frame: Frame) -> None:
        assert self.closing is None, "a frame behind the END"
        self.frames.append(frame)
        if frame.kind == Kind.REQUEST:
            self.request += frame.payload
        elif frame.kind == Kind.RESPONSE:
            self.response += frame.payload
        elif frame.kind == Kind.INTERIM:
            self.interim.append(frame.payload)
        elif frame.kind == Kind.HEAD:
            assert not self.head, "two final heads"
            self.head = frame.payload
        elif frame.kind == Kind.ROUTE:
            self.opening = rerouted(self.opening, frame.payload)
        elif frame.kind == Kind.END:
            self.flags = frame.flags
            self.closing = unpack_end(frame.payload)


class Rig:
    """A proxy on a free port in front of `fake` (and of whatever `upstream` opens)."""

    def __init__(self, folder: Path, fake: FakeProvider, ring_size: int, config: dict[str, Any]) -> None:
        self.fake = fake
        self.journal = Journal.open(folder, ring_size=ring_size, cap=1 << 30)
        self.proxy = Proxy(ProxyConfig(**config), self.journal)
        self.port = 0
        self._reader = Reader(folder)
        self._recorded: dict[int, Recorded] = {}
        self._open: list[Wire | Upstream] = []

    @property
    def core(self) -> Any:
        return self.proxy.core

    async def __aenter__(self) -> Rig:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        await self.proxy.listen([listener])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._open:
            one.close()
        await self.proxy.close()
        self._reader.close()
        self.journal.close()

    def client(self, *, receive_buffer: int = 0) -> Wire:
        """A fresh connection to the proxy."""
        wire = Wire.to(self.port, receive_buffer=receive_buffer)
        self._open.append(wire)
        return wire

    def upstream(self, *, receive_buffer: int = 0) -> Upstream:
        upstream = Upstream(receive_buffer=receive_buffer)
        self._open.append(upstream)
        return upstream

    def request(
        self,
        body: bytes = b"",
        *,
        method: str = "",
        target: str = "/v1/messages",
        more: str = "",
        fake: str = "",
        to: int = 0,
        version: str = "1.1",
    ) -> bytes:
        """A request through the proxy to the fake provider, or to port `to`; POST where it has a body."""
        method = method or ("POST" if body else "GET")
        lines = [
            f"{method} /anthropic/127.0.0.1:{to or self.fake.port}{target} HTTP/{version}",
            "Host: 127.0.0.1:1",
            *([f"Content-Length: {len(body)}"] if body else []),
            *([f"X-Fake: {fake}"] if fake else []),
        ]
        return ("\r\n".join(lines) + "\r\n" + more + "\r\n").encode("latin-1") + body

    async def exchange(self, *args: Any, **kwargs: Any) -> Message:
        """One request over a connection of its own, and its answer."""
        client = self.client()
        await client.send(self.request(*args, **kwargs))
        return await client.message(to_head=kwargs.get("method") == "HEAD")

    async def meet(self, upstream: Upstream, *args: Any, **kwargs: Any) -> tuple[Wire, Wire, Message]:
        """A request from a fresh client to an upstream: both connections, and the request as it arrived."""
        client = self.client()
        await client.send(self.request(*args, to=upstream.port, **kwargs))
        server = await upstream.accept()
        return client, server, await server.message()

    async def exchanges(self, count: int = 0) -> list[Recorded]:
        """What the journal holds, in the order exchanges began, once `count` of them (0: all begun) have their END."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT):
            while True:
                drained = asyncio.Event()
                self.journal.on_drained = lambda event=drained: loop.call_soon_threadsafe(event.set)
                self.journal.wake()
                self._read()
                ended = sum(one.closing is not None for one in self._recorded.values())
                if not self.journal.ring.backlog and not (self.core.relays if not count else ended < count):
                    self._read()
                    self.journal.on_drained = None
                    return list(self._recorded.values())
                try:
                    async with asyncio.timeout(0.05):  # an exchange may end without a frame of its own to wait for
                        await drained.wait()
                except TimeoutError:
                    pass

    def _read(self) -> None:
        while batch := self._reader.read():
            for frame in batch.frames:
                if frame.kind == Kind.OPEN:
                    self._recorded[frame.serial] = Recorded(unpack_open(frame.payload), frames=[frame])
                elif frame.serial:
                    self._recorded[frame.serial].take(frame)

    async def recorded(self) -> Recorded:
        """The only exchange there is, once it is over."""
        (one,) = await self.exchanges(1)
        return one

    async def until(self, condition: Callable[[], Any], timeout: float = 30.0) -> Any:
        """What `condition()` of the proxy's own state gives, once it is true; the loop goes on meanwhile."""
        async with asyncio.timeout(timeout):
            while not (found := condition()):
                await asyncio.sleep(0.002)
            return found


StartRig = Callable[..., Awaitable[Rig]]


@pytest_asyncio.fixture
async def rigs(tmp_path: Path) -> AsyncIterator[StartRig]:
    """Start a rig with `ProxyConfig` values of the test's own; all are closed behind the test."""
    started: list[Rig] = []
    numbers = itertools.count()
    async with FakeProvider() as fake:

        async def start(*, ring_size: int = 16 << 20, **config: Any) -> Rig:
            rig = Rig(tmp_path / f"journal-{next(numbers)}", fake, ring_size, config)
            started.append(await rig.__aenter__())
            return rig

        yield start
        for rig in reversed(started):
            await rig.__aexit__(None, None, None)


@pytest_asyncio.fixture
async def rig(rigs: StartRig) -> Rig:
    """A proxy with the settings it has by default."""
    return await rigs()
