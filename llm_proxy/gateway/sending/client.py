"""HTTP/1.1 over one Unix socket, the proxy's: as little as a call to a provider needs, and no byte of it changed.

Connections are kept and used again. Bodies go out and come in as they are, chunk framing taken off; a slow reader
holds the sender up, so no more than `HIGH` bytes and one read wait in memory. What ends early is never a clean end.
There is no limit on a whole call: only on connecting, on the time until it is answered, and on silence.

Leaves out providers, and TLS, names and proxies on the way to them, which are the proxy's business.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final, cast

import msgspec

from llm_proxy import unix
from llm_proxy.wire.framing import BadFraming, Framing, for_response
from llm_proxy.wire.head import MAX_HEAD, BadHead, ResponseHead, parse_response

HIGH: Final = 1 << 18  # bytes of an answer that wait to be taken
CONNECT_TIMEOUT: Final = 10.0  # seconds, as all that follow
IDLE_TIMEOUT: Final = 600.0
IDLE_LIMIT: Final = 55.0  # of a connection without a call: below what the proxy closes at
MAX_IDLE: Final = 256  # connections
_SLICE: Final = 1 << 17  # bytes of a request that are handed to the loop at once
_WRITTEN_HIGH: Final = 1 << 16
_CROWDED: Final = 0.005  # until the next try where the listener's queue is full
_SWEEP: Final = 1.0
_REMEMBERED: Final = 256  # bytes of a header line; whoever answers could fill the memory with longer ones

_FULL, _BUDGET = 1, 2  # why reading is paused: nobody takes it; others get a turn
_UNFIT = re.compile(r"[^\t\x20-\x7e]")


class Unreachable(Exception):
    """Nobody answered: nothing of a model's output has come. `code` is stable: the proxy's, where it told one."""

    def __init__(self, code: str, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.timed_out = timed_out


class Broken(Exception):
    """An answer that had begun cannot be had to its end. What came before was handed out."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Stale(Exception):
    """A connection that had been kept was closed before anything of an answer came: another try is safe."""


def _field(line: bytes) -> tuple[str, str]:
    """Name in lower case, and value."""
    return _common_field(line) if len(line) <= _REMEMBERED else _read_field(line)


def _read_field(line: bytes) -> tuple[str, str]:
    name, _, value = line.decode("latin-1").partition(":")
    return name.lower(), value.strip(" \t")


_common_field = lru_cache(maxsize=1024)(_read_field)  # most come with every answer


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


class Answer:
    """One answer, as it comes: `status` and `headers` are there, the body is taken by `read` or by `pieces`, once.

    Whoever has it reads it to its end or calls `close`.
    """

    __slots__ = (
        "_connection",
        "_failure",
        "_head",
        "_headers",
        "_over",
        "_pieces",
        "_size",
        "_unmeasured",
        "_waiter",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self._head: ResponseHead | None = None
        self._headers: Mapping[str, str] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._over = False
        self._unmeasured = False  # its end was that of the connection, and over this socket resets look the same
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._connection: _Connection | None = None  # while the call is under way

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name; of several of one name the last counts."""
        if self._headers is None:
            assert self._head is not None
            self._headers = dict(map(_field, self._head.lines[1:]))
        return self._headers

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises Broken, also where it has more than `limit` bytes."""
        pieces: list[bytes] = []
        size = 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                self.close()
                raise Broken("too_large", f"the answer has more than {limit} bytes")
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._unmeasured and "json" in self.headers.get("content-type", "") and not _is_json(body):
            raise Broken("upstream_truncated", "the answer told no length, and ended in the middle")
        return body

    def pieces(self) -> Answer:
        """The body, as it comes, for `async for`; never an empty piece. Raises Broken."""
        return self

    def close(self) -> None:
        """No more of it is wanted: where it is under way, the provider is told at once. Idempotent."""
        connection = self._connection
        self._pieces.clear()
        if connection is not None:
            self.fail(Broken("closed", "the answer was closed"))
            connection.abandon()

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._failure is not None:
                raise self._failure
            if self._over:
                raise StopAsyncIteration
            await self.change()
        pieces = self._pieces
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        if self._size > HIGH and self._connection is not None:
            self._connection.resume(_FULL)
        self._size = 0
        return piece

    # -- for the connection

    async def begun(self) -> Answer:
        """Itself, once its head has come. Raises Unreachable, _Stale."""
        while self._head is None:
            if self._failure is not None:
                raise self._failure
            await self.change()
        return self

    async def change(self) -> None:
        """Until something comes. Who is cancelled meanwhile wants no more of it."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    def attach(self, connection: _Connection) -> None:
        self._connection = connection

    def begin(self, head: ResponseHead) -> None:
        self._head = head
        self.status = head.status
        self._wake()

    def add(self, pieces: list[bytes]) -> bool:
        """Whether that is enough for now."""
        self._pieces += pieces
        self._size += sum(map(len, pieces))
        self._wake()
        return self._size > HIGH

    def finish(self, *, measured: bool = True) -> None:
        self._over = True
        self._unmeasured = not measured
        self._connection = None
        self._wake()

    def fail(self, error: Exception) -> None:
        self._failure = error
        self._connection = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """Belongs to one call at a time, or to the pool."""

    __slots__ = (
        "_client",
        "_framing",
        "_full",
        "_held",
        "_keeps",
        "_late",
        "_method",
        "_paused",
        "_rest",
        "_transport",
        "_unsent",
        "answer",
        "at",
        "heard",
        "reused",
    )

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._method = b""
        self._held = b""  # of a head that is not whole
        self._rest = b""  # of a body, for the next turn
        self._unsent = memoryview(b"")
        self._framing: Framing | None = None
        self._keeps = False
        self._full = False  # it takes no more for now
        self._paused = 0
        self._late: asyncio.TimerHandle | None = None
        self.answer: Answer | None = None
        self.at = 0.0  # when something last came, or it was given back
        self.reused = False
        self.heard = False  # something of an answer has come

    # -- the call

    def ask(self, method: str, wire: bytes, body: bytes, deadline: float) -> Answer:
        """Send a request. `deadline` by the loop's clock, 0: none."""
        transport, loop = self._transport, self._client.loop
        assert transport is not None
        self.answer = answer = Answer()
        answer.attach(self)
        self._method = method.encode()
        self._framing = None
        self.heard = False
        self.at = loop.time()
        self._late = loop.call_at(deadline, self._timed_out) if deadline else None
        if len(body) <= _SLICE:
            transport.write(wire + body if body else wire)
        else:
            self._unsent = memoryview(body)
            transport.write(wire)
            self._pump()
        return answer

    def _pump(self) -> None:
        while self._unsent and not self._full and self._transport is not None:
            piece, self._unsent = self._unsent[:_SLICE], self._unsent[_SLICE:]
            self._transport.write(piece)

    def abandon(self) -> None:
        """Its call is over before its end."""
        self._settle()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def sweep(self, now: float, limit: float) -> None:
        """An answer that has begun and is waited for may not be silent for longer than `limit`."""
        if self.answer is not None and self._framing is not None and not self._paused and now - self.at > limit:
            self._broken("idle_timeout", f"nothing came for {limit:g} s in the middle of an answer")

    def resume(self, why: int) -> None:
        if not self._paused:
            return
        self._paused &= ~why
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self.at = self._client.loop.time()  # that nobody read was no silence of the other side
            self._transport.resume_reading()

    def _pause(self, why: int) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._paused |= why

    def _timed_out(self) -> None:
        self._late = None
        self._fail(Unreachable("first_token_timeout", "no answer came in time", timed_out=True))

    def _broken(self, code: str, message: str) -> None:
        self._fail(Broken(code, message) if self._framing is not None else Unreachable(code, message))

    def _fail(self, error: Exception) -> None:
        answer = self.answer
        self.abandon()
        if answer is not None:
            answer.fail(error)

    def _settle(self) -> None:
        self.answer = None
        self._held = self._rest = b""
        self._unsent = memoryview(b"")
        if self._late is not None:
            self._late.cancel()
            self._late = None

    # -- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_WRITTEN_HIGH, _WRITTEN_HIGH // 4)

    def data_received(self, data: bytes) -> None:
        self.at = self._client.loop.time()
        if self.answer is None:  # nobody asked: it must not be taken for the answer to the next request
            self.abandon()
        elif self._framing is None:
            self.heard = True
            self._read_head(self._held + data if self._held else data)
        else:
            self._read_body(data, 0)

    def eof_received(self) -> None:
        """Nothing more comes, so neither is more of a request taken."""
        if self._unsent or (self._transport is not None and self._transport.get_write_buffer_size()):
            self._lost(None)
            self.abandon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._client.lost(self)
        self._lost(exc)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pump()

    # -- reading

    def _read_head(self, data: bytes) -> None:
        """Heads until the final one; what follows it is the body."""
        start = 0
        while True:
            end = data.find(b"\r\n\r\n", start) + 4
            if end < 4:
                self._held = data[start:]
                if len(self._held) > MAX_HEAD:
                    self._broken("bad_response", f"a head of more than {MAX_HEAD} bytes")
                return
            try:
                head = parse_response(data[start:end])
            except BadHead as error:
                self._broken("bad_response", f"the answer is not HTTP/1.1: {error.reason}")
                return
            start = end
            if head.status >= 200:
                break
            if head.status == 101:
                self._broken("bad_response", "a 101 nobody asked for")
                return
        answer = self.answer
        assert answer is not None
        self._held = b""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self._framing = for_response(head, self._method)
        self._keeps = not head.close and head.minor == 1
        answer.begin(head)
        self._read_body(data, start)

    def _read_body(self, data: bytes, start: int) -> None:
        framing, answer = self._framing, self.answer
        assert framing is not None and answer is not None
        pieces: list[bytes] = []
        try:
            end = framing.feed(data, start, pieces)
        except BadFraming as error:
            answer.add(pieces)
            self._broken("bad_framing", str(error))
            return
        if pieces and answer.add(pieces):
            self._pause(_FULL)
        if framing.done:
            self._complete(end == len(data))
        elif end < len(data):  # a flood of tiny chunks
            self._rest = data[end:]
            self._pause(_BUDGET)
            self._client.loop.call_soon(self._go_on, answer)

    def _go_on(self, answer: Answer) -> None:
        if self.answer is not answer:
            return
        rest, self._rest = self._rest, b""
        if rest:
            self._read_body(rest, 0)
        if not self._rest:
            self.resume(_BUDGET)

    def _complete(self, exact: bool) -> None:
        answer, transport = self.answer, self._transport
        whole = not self._unsent and transport is not None and not transport.get_write_buffer_size()
        self._settle()
        assert answer is not None
        answer.finish()
        if exact and whole and self._keeps and transport is not None and not transport.is_closing():
            self.resume(_FULL | _BUDGET)
            self._client.give(self)
        elif transport is not None:
            transport.abort()

    def _lost(self, exc: Exception | None) -> None:
        while self._rest and self.answer is not None:
            rest, self._rest = self._rest, b""
            self._read_body(rest, 0)
        answer, framing = self.answer, self._framing
        if answer is None:
            return
        self._settle()
        how = "closed" if exc is None else f"broken off ({exc})"
        if framing is None:
            message = f"the connection was {how} before an answer came"
            answer.fail(_Stale() if self.reused and not self.heard else Unreachable("upstream_reset", message))
        elif exc is None and framing.ends_by_close():
            answer.finish(measured=False)
        else:
            answer.fail(Broken("upstream_truncated", f"the connection was {how} in the middle of the answer"))


class Client:
    """Calls over the socket at `path`. Belongs to one event loop."""

    def __init__(self, path: str, *, idle_timeout: float = IDLE_TIMEOUT) -> None:
        self.path = path
        self.loop: asyncio.AbstractEventLoop
        self._idle_timeout = idle_timeout
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, first_byte_timeout: float
    ) -> Answer:
        """Send a request; its answer once that has a head. `first_byte_timeout` in seconds, 0 for none.

        Raises Unreachable, and ValueError for what no head can hold. Cancelling closes the connection at once.
        """
        wire = _head(method, target, headers, len(body))
        self.loop = loop = asyncio.get_running_loop()
        deadline = loop.time() + first_byte_timeout if first_byte_timeout else 0.0
        if self._idle:
            connection = self._idle.pop()
            connection.reused = True
            with suppress(_Stale):
                return await connection.ask(method, wire, body, deadline).begun()
        connection = await self._connected(deadline)
        return await connection.ask(method, wire, body, deadline).begun()

    @property
    def connections(self) -> int:
        """How many are open, in use or not."""
        return len(self._open)

    def close(self) -> None:
        """End all that is under way, and keep nothing. Idempotent."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._open):
            if connection.answer is not None:
                connection.answer.close()
            else:
                connection.close()
        self._idle.clear()

    async def _connected(self, deadline: float) -> _Connection:
        if self._closed:
            raise Unreachable("stopping", "the gateway is stopping")
        limit = self.loop.time() + CONNECT_TIMEOUT
        try:
            async with asyncio.timeout_at(min(limit, deadline) if deadline else limit):
                sock = await self._socket()
                _, connection = await self.loop.create_unix_connection(lambda: _Connection(self), sock=sock)
        except TimeoutError:
            raise Unreachable(
                "connect_timeout", "the proxy did not take a connection in time", timed_out=True
            ) from None
        except (OSError, unix.PathTooLong) as error:
            raise Unreachable("proxy_gone", f"the proxy cannot be reached: {error}") from error
        self._open.add(connection)
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(_SWEEP, self._sweep)
        return connection

    async def _socket(self) -> socket.socket:
        """Connected. Where the listener's queue is full, asyncio takes the refusal for a connection that is made."""
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.setblocking(False)
                where, folder = unix.address(self.path)
                try:
                    sock.connect(where)
                finally:
                    if folder is not None:
                        os.close(folder)
                return sock
            except BlockingIOError:
                sock.close()
                await asyncio.sleep(_CROWDED)
            except BaseException:
                sock.close()
                raise

    def give(self, connection: _Connection) -> None:
        """Its call is over; it may be used again."""
        if self._closed:
            connection.close()
            return
        if len(self._idle) >= MAX_IDLE:
            self._idle.popleft().close()
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """One coarse look a second instead of a timer for each piece."""
        now = self.loop.time()
        while self._idle and now - self._idle[0].at > IDLE_LIMIT:
            self._idle.popleft().close()
        for connection in list(self._open):
            connection.sweep(now, self._idle_timeout)
        self._sweeping = self.loop.call_later(_SWEEP, self._sweep) if self._open else None


def _head(method: str, target: str, headers: Sequence[tuple[str, str]], length: int) -> bytes:
    """Raises ValueError: a line that could be read as two would be another request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length or method == "POST":
        lines.append(f"Content-Length: {length}")
    told = " ".join(lines)
    if " " in target or (not (told.isascii() and told.isprintable()) and _UNFIT.search(told) is not None):
        raise ValueError("a request's target or one of its header fields has characters that do not belong there")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
