"""The fake provider itself: a listening socket, one `asyncio.Protocol` per connection, and the book of what it saw.

Steps are played by callbacks, with no task per request: it is also the upstream that latency is measured against.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import cast

from tests.fakeprovider import messages, replies, websocket
from tests.fakeprovider.answers import document
from tests.fakeprovider.delivery import CONTINUE, End, Step, steps
from tests.fakeprovider.faults import Plan, UnknownFault, plan_of
from tests.fakeprovider.http1 import END_OF_HEAD, MAX_HEAD, BadRequest, Chunked, Head, Sized, body_of, parse_head
from tests.fakeprovider.routes import NOWHERE, Route, route_for
from tests.fakeprovider.seen import Counts, SeenConnection, SeenRequest, SeenResponse

KEPT = 16 << 20  # bytes of each message, by default
LINGER_S = 1.0  # how long a connection that is no longer read stays open
FLUSH_S = 0.001  # how often to look whether all is out before a reset
STEPS_AT_ONCE = 64  # so that an endless answer leaves room for other connections
COUNTS_PATH = "/fake/counts"


@lru_cache(maxsize=512)
def understood(raw: bytes) -> tuple[Head, Plan, Route]:
    """A head with its plan and route; the same head comes thousands of times. Raises BadRequest, UnknownFault."""
    head = parse_head(raw)
    return head, plan_of(head), route_for(head)


@lru_cache(maxsize=16)
def fixed_response(size: int) -> bytes:
    """A whole response with a message of `size` bytes."""
    body = messages.fixed(size)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nrequest-id: req_fixed\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


class FakeProvider:
    """A provider on a free port of `host`; use it with `async with`.

    With `keep` off only `counts` is kept. `limit` is how many bytes of each message are kept. With `tls` the server
    speaks TLS. `requests`, `responses` and `connections` grow in the order in which heads arrived.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        keep: bool = True,
        limit: int = KEPT,
    ) -> None:
        self.host, self.port, self.keep, self.limit = host, port, keep, limit
        self.requests: list[SeenRequest] = []
        self.responses: list[SeenResponse] = []
        self.connections: list[SeenConnection] = []
        self.counts = Counts()
        self._tls = tls
        self._open: set[Connection] = set()
        self._waiting: list[tuple[Callable[[], object], asyncio.Future[None]]] = []
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    async def __aenter__(self) -> FakeProvider:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), self.host, self.port, ssl=self._tls, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in tuple(self._open):
            connection.abort()
        await self.wait_for(lambda: not self._open)
        await self._server.wait_closed()

    async def wait_for(self, condition: Callable[[], object], timeout: float = 30.0) -> None:
        """Until `condition()` is true; it is looked at whenever something arrives, leaves or closes. Raises TimeoutError."""
        if condition():
            return
        entry = condition, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout):
                await entry[1]
        finally:
            self._waiting.remove(entry)

    def changed(self) -> None:
        for condition, future in self._waiting:
            if future.done():
                continue
            try:
                if condition():
                    future.set_result(None)
            except Exception as exc:  # the test's own code: its error belongs to the test, not to a connection
                future.set_exception(exc)

    def opened(self, connection: Connection) -> SeenConnection:
        self.counts.connections += 1
        self.counts.open_connections += 1
        self._open.add(connection)
        seen = SeenConnection(self.counts.connections, asyncio.get_running_loop().time())
        if self.keep:
            self.connections.append(seen)
        return seen

    def closed(self, connection: Connection) -> None:
        self.counts.open_connections -= 1
        self._open.discard(connection)

    def begun(self, request: SeenRequest, response: SeenResponse) -> None:
        self.counts.requests += 1
        if self.keep:
            self.requests.append(request)
            self.responses.append(response)


class Connection(asyncio.Protocol):
    """One connection: reads requests one after the other and plays the steps of their answers."""

    def __init__(self, fake: FakeProvider) -> None:
        self._fake = fake
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._seen: SeenConnection
        self._held = b""  # arrived, not yet read
        self._head: Head | None = None  # of the request at hand
        self._plan: Plan = {}
        self._route = NOWHERE
        self._body: Sized | Chunked | None = None
        self._request: SeenRequest | None = None
        self._response: SeenResponse | None = None
        self._steps: list[Iterator[Step]] = []  # to play, in order; the answer of the request at hand
        self._timer: asyncio.Handle | None = None
        self._paused = False  # the transport's buffer is full
        self._ours = False  # we closed it
        self._left = False  # the client sent FIN
        self._doomed = ""  # what the next request meets
        self._websocket: websocket.Session | None = None

    # --- the connection -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._seen = self._fake.opened(self)
        self._fake.changed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_steps()
        self._seen.closed = self._loop.time()
        if self._ours and not self._left:
            self._seen.closed_by = "ours"
        else:
            self._seen.closed_by = "rst" if exc or not self._left else "fin"
        self._fake.closed(self)
        self._fake.changed()

    def eof_received(self) -> bool:
        # A client that shuts its side has left, as most servers see it; what is in the buffer still goes out.
        self._left = True
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._steps and not self._timer:
            self._advance()

    def abort(self) -> None:
        self._ours = True
        self._transport.abort()

    # --- requests -------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._doomed:
            self._end(End.RESET if self._doomed == "reset" else End.FIN)
            return
        if self._websocket:
            self._upgraded_data(data)
        else:
            self._held = self._held + data if self._held else data
            self._read()
        self._fake.changed()

    def _read(self) -> None:
        try:
            while self._held and not self._steps and not self._transport.is_closing():
                if self._head is None and not self._read_head():
                    return
                if self._body is not None:
                    self._read_body(self._body)
                if self._websocket:
                    return
        except (BadRequest, UnknownFault) as exc:
            self._held = b""
            self._play(steps(replies.error(400, self._route, str(exc)), {}, close=True))

    def _read_head(self) -> bool:
        """Whether a head was there and its body may be read."""
        end = self._held.find(END_OF_HEAD)
        if end < 0:
            if len(self._held) > MAX_HEAD:
                raise BadRequest("the head has no end")
            return False
        raw, self._held = self._held[: end + 4], self._held[end + 4 :]
        self._seen.requests += 1
        # Kept before it is understood: a test must see also what could not be read.
        fake, number = self._fake, self._seen.number
        request = SeenRequest(raw, "", "", [], number, {}, fake.limit)
        self._request, self._response = request, SeenResponse(request, number, fake.limit)
        fake.begun(request, self._response)
        head, plan, self._route = understood(raw)
        request.method, request.target, request.plan = head.method, head.target, plan
        request.headers.extend(head.headers)
        self._head, self._plan, self._body = head, plan, body_of(head)
        if "upload-sink" in plan:
            request.hash_payload()
        return self._before_body(head, plan)

    def _before_body(self, head: Head, plan: Plan) -> bool:
        """Play what comes before the body is read; whether it is read at all."""
        refusal = plan.get("early") or (plan.get("no-continue") if head.expects_continue else 0)
        if refusal:
            self._transport.pause_reading()
            self._play(_then(steps(replies.error(refusal, self._route), plan, close=True), End.LINGER))
            return False
        if "close-after-continue" in plan:
            self._play(iter([CONTINUE, End.FIN]))
            return False
        if head.expects_continue or "continue" in plan:
            self._write(CONTINUE)
        if self._body is not None and self._body.done:
            self._complete()
        return True

    def _read_body(self, body: Sized | Chunked) -> None:
        if body.done:
            return
        assert self._request is not None
        payload, taken = body.feed(self._held)
        if taken == len(self._held):
            wire, self._held = self._held, b""
        else:
            wire, self._held = self._held[:taken], self._held[taken:]
        self._fake.counts.payload_bytes += len(payload)
        if self._fake.keep or "fixed" not in self._plan:
            self._request.add(payload, wire)
        if body.done:
            self._request.trailers.extend(body.trailers)
            self._complete()

    def _complete(self) -> None:
        """The request is there: answer it."""
        head, request, plan = self._head, self._request, self._plan
        assert head is not None
        assert request is not None
        request.complete = True
        if "fixed" in plan:
            self._write(fixed_response(plan["fixed"]))
            self._next()
            return
        refused = "status" in plan or "hang" in plan or plan.get("reset") == "head"
        if head.upgrade == "websocket" and not refused:
            self._upgrade(head, request)
            return
        if head.path == COUNTS_PATH:
            answer = document(dataclasses.asdict(self._fake.counts))
        else:
            answer = replies.answer_for(head, request, plan, self._route)
        self._play(steps(answer, plan, only_head=head.method == "HEAD", close=not head.keep_alive))

    def _upgrade(self, head: Head, request: SeenRequest) -> None:
        deflate = websocket.agree(head.get(b"sec-websocket-extensions"))
        self._websocket = websocket.Session(head, request, self._plan, deflate)
        self._write(websocket.handshake(head, deflate))
        held, self._held = self._held, b""
        if held:
            self._upgraded_data(held)

    def _upgraded_data(self, data: bytes) -> None:
        assert self._websocket is not None
        assert self._request is not None
        self._request.add(b"", data)
        for answer in self._websocket.feed(data):
            if self._websocket.closing:
                self._answered()
                self._drop_steps()
            self._play(answer)

    # --- answers --------------------------------------------------------------------------------------------------

    def _play(self, more: Iterator[Step]) -> None:
        self._steps.append(more)
        if len(self._steps) == 1:
            self._advance()

    def _drop_steps(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._steps.clear()

    def _advance(self) -> None:
        """Play steps until one has to wait: for a pause, for the transport, or for other connections' turn."""
        self._timer = None
        for _ in range(STEPS_AT_ONCE):
            if not self._steps or self._transport.is_closing():
                return
            step = next(self._steps[0], None)
            if step is None:
                del self._steps[0]
                if not self._steps and not self._websocket:
                    self._next()
                    return
            elif isinstance(step, End):
                self._end(step)
                return
            elif isinstance(step, float):
                self._timer = self._loop.call_later(step, self._advance)
                return
            else:
                self._write(step)
                if self._paused:
                    return
        self._timer = self._loop.call_soon(self._advance)

    def _next(self) -> None:
        """The answer is out and the connection goes on."""
        self._answered()
        self._doomed = self._plan.get("die-on-reuse", "")
        self._head = self._body = None
        self._fake.changed()
        if self._held:
            self._loop.call_soon(self._read)

    def _answered(self) -> None:
        assert self._response is not None
        self._response.complete = True
        self._fake.counts.responses += 1

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._fake.counts.sent_bytes += len(data)
        if self._response is not None and self._fake.keep:
            self._response.add(data)
            self._fake.changed()

    def _end(self, end: End) -> None:
        if end in (End.CLOSE, End.LINGER):
            self._answered()
        self._fake.changed()
        if end is End.HANG:  # the steps stay, so the connection is never free for another request
            return
        self._ours = True
        if end in (End.FIN, End.CLOSE):
            self._transport.close()
        elif end is End.RESET:
            self._reset()
        else:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._timer = self._loop.call_later(LINGER_S, self._transport.abort)

    def _reset(self) -> None:
        """Close with RST, once everything written has left this process."""
        if self._transport.get_write_buffer_size():
            self._timer = self._loop.call_later(FLUSH_S, self._reset)
            return
        handle = os.dup(self._transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=handle) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _then(first: Iterator[Step], end: End) -> Iterator[Step]:
    """`first` with another end."""
    for step in first:
        if isinstance(step, End):
            break
        yield step
    yield end
