"""One exchange on its way: request bytes to the upstream, response bytes to the client, every piece journalled first.

Two columns, as in RFC 9112's grammar: the request goes HEAD, BODY, DONE, the response WAITING, BODY, DONE, or both
become one raw splice after a 101. The ending is set once, by the first of: response done, client lost, upstream lost,
refused, timed out. Knows neither sockets (`client`, `upstream`) nor how to dial.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from llm_proxy.journal.frames import Closing, Flag, Kind, Note
from llm_proxy.proxy import answers
from llm_proxy.proxy.dialler import DialFailed
from llm_proxy.proxy.gate import Reason
from llm_proxy.proxy.long_body import LongBody
from llm_proxy.proxy.requests import Request
from llm_proxy.records.exchange import Ending
from llm_proxy.wire import hop
from llm_proxy.wire.framing import BadFraming, Framing, UntilClose, for_response, request_framing
from llm_proxy.wire.head import MAX_HEAD, BadHead, ResponseHead, parse_response

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.upstream import UpstreamConnection

# What is kept to send once more where a reused connection turns out dead.
REPLAY_LIMIT = 1 << 20

_REUSED, _RETRIED, _WEBSOCKET, _EARLY = Note.REUSED, Note.RETRIED, Note.WEBSOCKET, Note.EARLY
_LOSSY, _OVER_LIMIT = Flag.LOSSY, Flag.OVER_LIMIT


class Relay:
    """Carries one exchange. Made by the client connection once head and route are known; `start` sets it off.

    `route_known` is False where the route is told by the request's body only.
    """

    route_known = True

    __slots__ = (
        "answered",
        "at",
        "client",
        "connected_at",
        "core",
        "dechunk",
        "dialling",
        "ending",
        "first_byte_at",
        "flags",
        "head",
        "held",
        "held_size",
        "keep_client",
        "limit",
        "long_request",
        "long_response",
        "notes",
        "request",
        "request_framing",
        "response_buffer",
        "response_framing",
        "response_head",
        "rest",
        "route",
        "serial",
        "spliced",
        "started",
        "upstream",
    )

    def __init__(self, core: Core, client: ClientConnection, request: Request) -> None:
        self.core = core
        self.client = client
        prepared = request.prepared
        self.request = request
        self.head = head = prepared.head
        self.route = prepared.route
        self.request_framing = request_framing(head.chunked, request.length)
        self.limit = 0 if self.route.confidential else core.record_limit
        self.long_request: LongBody | None = None
        if head.chunked or request.length > self.limit:
            self.long_request = LongBody(self.limit)
        self.response_framing: Framing | None = None
        self.long_response: LongBody | None = None
        self.response_head: ResponseHead | None = None
        self.response_buffer = b""
        self.rest = b""  # of a flood of tiny chunks, waiting for its turn
        self.upstream: UpstreamConnection | None = None
        self.dialling: asyncio.Task[None] | None = None
        self.held: list[bytes] | None = []
        self.held_size = 0
        self.ending: Ending | None = None
        self.answered = 0
        self.first_byte_at = 0
        self.flags = 0
        self.notes = 0
        self.spliced = False
        self.dechunk = False
        self.keep_client = head.minor == 1 and not head.close
        self.serial = 0
        self.started = self.at = client.arrived
        self.connected_at = 0

    # -- request ------------------------------------------------------------------------------------------------

    def start(self, data: bytes, position: int) -> int:
        """Open the exchange with the head and what has come of the body; returns how far `data` was taken."""
        framing, request, core, facts = self.request_framing, self.request, self.core, len(self.route.facts)
        try:
            end = self._feed_request(data, position)
        except BadFraming as error:
            core.relays.add(self)
            self.serial, _ = core.tee.open(
                request.recorded, facts, self.at, b"", bodiless=False, last=False, port=self.client.port
            )
            self._refuse(400, "bad_framing", str(error))
            return len(data)
        piece = data[position:end]
        done = framing.done
        kept, long = piece, self.long_request
        if long is not None:
            kept = self._cut(long, piece)
        self.serial, whole = core.tee.open(
            request.recorded,
            facts,
            self.at,
            kept,
            bodiless=done and not piece,
            last=done and self.route_known,
            port=self.client.port,
        )
        if not whole:
            self.flags |= _LOSSY
        self._set_off(piece)
        return end

    def _set_off(self, piece: bytes) -> None:
        """Send the head and a first piece of the body: both are in the journal."""
        core = self.core
        message = self.request.outgoing + piece
        sure = not self.request_framing.done or len(message) > REPLAY_LIMIT
        connection = core.pool.take(self.route.key, sure=sure)
        if connection is None:
            core.relays.add(self)
            self._hold(message)
            self._dial()
            return
        self.upstream = connection
        connection.relay = self
        connection.send(message)
        core.metrics.request_out(time.monotonic_ns() - self.started)
        core.relays.add(self)
        self.notes = _REUSED
        self._hold(message)

    def request_data(self, data: bytes) -> int:
        """More of the request body (or, after a 101, of the client's side); returns how far `data` was taken."""
        self.at = time.monotonic_ns()
        if self.spliced:
            self._splice(Kind.REQUEST, self.long_request, data)
            if self.upstream is not None:
                self.upstream.send(data)
            return len(data)
        try:
            end = self._feed_request(data, 0)
        except BadFraming as error:
            self._refuse(400, "bad_framing", str(error))
            return len(data)
        piece = data if end == len(data) else data[:end]
        self._journal(Kind.REQUEST, self.long_request, piece, self.request_framing.done)
        if self.held is not None:
            self._hold(piece)
        if self.upstream is not None:
            self.upstream.send(piece)
        elif self.held_size > REPLAY_LIMIT // 4:
            self.client.gate.shut(Reason.DIALLING)
        return end

    @property
    def request_done(self) -> bool:
        return self.request_framing.done and not self.spliced

    @property
    def is_streaming(self) -> bool:
        """Whether a response is coming in whose length nobody has said."""
        framing = self.response_framing
        return self.spliced or (framing is not None and framing.length is None)

    def _feed_request(self, data: bytes, position: int) -> int:
        """Find where the request's bytes end, or one call's budget of chunks does. Raises BadFraming."""
        framing, long = self.request_framing, self.long_request
        return framing.feed(data, position, None if long is None else long.sink)

    def _hold(self, piece: bytes) -> None:
        """Keep a piece while it may have to be sent again, or for the first time."""
        assert self.held is not None
        self.held_size += len(piece)
        if self.held_size > REPLAY_LIMIT and self.upstream is not None:
            self.held = None
        else:
            self.held.append(piece)

    def _cut(self, long: LongBody, piece: bytes) -> bytes:
        """What of a piece is recorded."""
        long.note()
        piece = long.cut(piece)
        if long.over:
            self.flags |= _OVER_LIMIT
        return piece

    def _journal(self, kind: int, long: LongBody | None, piece: bytes, last: bool) -> None:
        if long is not None:
            piece = self._cut(long, piece)
        if piece and not self.core.tee.body(kind, self.serial, self.at, piece, last=last):
            self.flags |= _LOSSY

    def _splice(self, kind: int, long: LongBody | None, data: bytes) -> None:
        """Journal bytes of an upgraded connection."""
        assert long is not None
        long.taken += len(data)
        long.sink.append(data)
        self._journal(kind, long, data, False)

    # -- finding an upstream ------------------------------------------------------------------------------------

    def _dial(self) -> None:
        self.dialling = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            try:
                connection = await self._reach()
            finally:
                self.dialling = None
            self._dialled(connection)
        except DialFailed as error:
            self.dial_failed(error)
        except Exception as error:
            self.fault(error)

    async def _reach(self) -> UpstreamConnection:
        """A fresh connection. Raises DialFailed."""
        return await self.core.dialler.dial(self.route)

    def _dialled(self, connection: UpstreamConnection) -> None:
        self.core.metrics.connects += 1
        connection.pool = self.core.pool
        if connection.transport is None or connection.transport.is_closing():
            self.dial_failed(DialFailed("connect_failed", f"{self.route.authority} closed the connection at once"))
        elif self.ending is not None:
            connection.release()  # the client has left meanwhile; the connection is as good as new
        else:
            self._attach(connection)
            held = self.held
            assert held is not None
            self.held = None  # a fresh connection is not tried twice
            self.at = self.connected_at = time.monotonic_ns()
            # A connection that died full did not say that the client may go on.
            self.client.gate.open(Reason.DIALLING | Reason.PEER_FULL)
            self._deliver(connection, held)

    def _deliver(self, connection: UpstreamConnection, held: list[bytes]) -> None:
        """Write what has come of the request to a connection that is ours."""
        connection.send(b"".join(held))

    def upstream_takes_more(self) -> None:
        """What was written to the upstream is out."""
        self.client.gate.open(Reason.PEER_FULL)

    def _attach(self, connection: UpstreamConnection) -> None:
        self.upstream = connection
        connection.relay = self

    def dial_failed(self, error: DialFailed) -> None:
        if self.ending is not None:
            return
        if error.refused:
            self._refuse(403, error.code, error.message)
        elif error.timed_out:
            self._fail(Ending.TIMED_OUT, 504, error.code, error.message)
        else:
            self._fail(Ending.UPSTREAM_FAILED, 502, error.code, error.message)

    # -- response -----------------------------------------------------------------------------------------------

    def response_data(self, data: bytes) -> None:
        """Bytes from the upstream."""
        self.at = time.monotonic_ns()
        if self.response_framing is not None:
            self._response_body(b"", data, 0, None)
            return
        if self.spliced:
            self._splice(Kind.RESPONSE, self.long_response, data)
            self.client.send(data)
            return
        self.held = None
        if not self.first_byte_at:
            self.first_byte_at = self.at
        self._response_head(self.response_buffer + data if self.response_buffer else data)

    def _response_head(self, data: bytes) -> None:
        """Heads until the final one; what follows it is the body."""
        while True:
            end = data.find(b"\r\n\r\n", max(0, len(self.response_buffer) - 3))
            self.response_buffer = b""
            if end < 0:
                if len(data) > MAX_HEAD:
                    message = f"{self.route.authority}: head larger than {MAX_HEAD} bytes"
                    self._fail(Ending.UPSTREAM_FAILED, 502, "bad_response", message)
                self.response_buffer = data
                return
            end += 4
            try:
                head = parse_response(data[:end])
            except BadHead as error:
                self._fail(Ending.UPSTREAM_FAILED, 502, "bad_response", f"{self.route.authority}: {error.reason}")
                return
            if head.status == 101:
                self._upgraded(head, data[end:])
                return
            if head.status >= 200:
                self._final_head(head, data, end)
                return
            self.core.tee.interim(self.serial, self.at, head.masked())
            if self.head.minor:  # RFC 9110 §15.2: not to HTTP/1.0 clients
                self.client.send(hop.response(head))
            data = data[end:]
            if not data:
                return

    def _final_head(self, head: ResponseHead, data: bytes, position: int) -> None:
        """The final head, and what has come of its body: journalled, forwarded, then booked."""
        self.response_head = head
        self.response_framing = framing = for_response(head, self.head.method)
        self.dechunk = head.chunked and self.head.minor == 0 and not framing.done
        if head.minor == 0 or self.dechunk:
            self.keep_client = False
        if framing.length is None:
            self.long_response = LongBody(self.limit)
            if type(framing) is UntilClose:
                self.notes |= Note.ENDED_BY_CLOSE
                self.keep_client = False
        elif framing.length > self.limit:
            self.long_response = LongBody(self.limit)
        last = self.keep_client and self.client.is_ending
        self._response_body(self._dressed(hop.response(head, dechunk=self.dechunk, last=last)), data, position, head)

    def _dressed(self, answer: bytes) -> bytes:
        """What a door adds to a final head, or to an answer of ours."""
        return answer

    def _response_body(self, outgoing: bytes, data: bytes, position: int, head: ResponseHead | None) -> None:
        """Forward what belongs to the response; `outgoing` goes before it in one write, `head` into the journal."""
        framing, long = self.response_framing, self.long_response
        assert framing is not None
        start, size = position, len(data)
        if position < size and not framing.done:
            sink: list[bytes] | None = None if long is None else long.sink
            try:
                position = framing.feed(data, position, sink)
            except BadFraming as error:
                if head is not None:  # nothing of it is out yet: the client can still be told
                    self.core.tee.head(self.serial, self.at, head.masked(), b"", None, 0)
                    self.response_head = None
                self._fail(Ending.UPSTREAM_FAILED, 502, "bad_framing", f"{self.route.authority}: {error}")
                return
            piece = data if not start and position == size else data[start:position]
            # Chunked to an HTTP/1.0 client: the payload alone. (`sink` is there: a chunked body may be long.)
            outgoing += b"".join(sink) if self.dechunk and sink is not None else piece
            if long is not None:
                piece = self._cut(long, piece)
        else:
            piece = b""
        done = framing.done
        closing = None
        if done:
            if position < size:
                self.notes |= Note.EXTRA_BYTES
            closing = self._closing(Ending.COMPLETE, "")
        self._journal_response(head, piece, closing)
        self.client.send(outgoing)
        if head is not None:
            self.core.metrics.head_out(self.first_byte_at - self.started, time.monotonic_ns() - self.at)
        if closing is not None:
            self._book(closing)
            self._complete(reusable=position == size)
        elif position < size:
            self._continue_later(data[position:])

    def _journal_response(self, head: ResponseHead | None, piece: bytes, closing: Closing | None) -> None:
        """What goes out now, in as few frames as it takes; `closing` where it is the last of it."""
        tee = self.core.tee
        if head is not None:
            kept = tee.head(self.serial, self.at, head.masked(), piece, closing, self.flags)
        elif piece:
            last = closing is not None
            kept = tee.body(Kind.RESPONSE, self.serial, self.at, piece, last=last, closing=closing, flags=self.flags)
        else:
            kept = True
            if closing is not None:
                tee.end(self.serial, self.at, self.flags, closing)
        if not kept:
            self.flags |= _LOSSY

    def _continue_later(self, rest: bytes) -> None:
        """A flood of tiny chunks: the others first, then on with this."""
        self.rest = rest
        upstream = self.upstream
        if upstream is None:  # it has ended; `upstream_lost` goes on at once
            return
        upstream.gate.shut(Reason.BUDGET)

        def go_on() -> None:
            rest, self.rest = self.rest, b""
            if rest and self.ending is None:
                upstream.gate.open(Reason.BUDGET)
                try:
                    self.response_data(rest)
                except Exception as error:
                    self.fault(error)

        asyncio.get_running_loop().call_soon(go_on)

    def _complete(self, *, reusable: bool) -> None:
        """The response is out: both connections go on to their next exchange, or end."""
        upstream, head = self.upstream, self.response_head
        assert head is not None
        early = not self.request_framing.done
        if upstream is not None:
            if (
                reusable
                and head.minor
                and not head.close
                and not early
                and not upstream.full
                and type(self.response_framing) is not UntilClose
            ):
                upstream.release()
            elif early or upstream.full:  # it may never take the rest
                upstream.break_off()
            else:
                upstream.close()
            self.upstream = None
        self.client.exchange_done(keep=self.keep_client and not early, linger=early)

    def _upgraded(self, head: ResponseHead, rest: bytes) -> None:
        """101: from here on both directions are one raw stream each."""
        if not self.request.prepared.websocket:
            self._fail(Ending.UPSTREAM_FAILED, 502, "bad_response", f"{self.route.authority}: a 101 nobody asked for")
            return
        self.spliced = True
        self.notes |= _WEBSOCKET
        self.response_head = head
        self.long_request = LongBody(self.limit)
        self.long_response = LongBody(self.limit)
        self.core.tee.head(self.serial, self.at, head.masked(), b"", None, 0)
        outgoing = hop.response(head, upgrade=True)
        if rest:
            self._splice(Kind.RESPONSE, self.long_response, rest)
        self.client.send(outgoing + rest)
        # What came behind the request goes up now: in a later turn of the loop something newer could overtake it.
        early, self.client.buffer = self.client.buffer, b""
        self.client.gate.open(Reason.PIPELINE)
        if early:
            self.request_data(early)

    # -- endings ------------------------------------------------------------------------------------------------

    def upstream_lost(self, exc: Exception | None, unread: bytes) -> None:
        """The upstream's connection has ended; `unread` is what had come before, as when a write met the break."""
        upstream, self.upstream = self.upstream, None
        self.rest += unread
        while self.rest and self.ending is None:  # over TLS an end is told although reading is paused
            rest, self.rest = self.rest, b""
            self.response_data(rest)
        if self.ending is not None:
            return
        self.at = time.monotonic_ns()
        if self.spliced:
            failed = exc is not None
            self._finish(Ending.UPSTREAM_FAILED if failed else Ending.COMPLETE, str(exc or ""))
            self.client.close() if not failed else self.client.break_off()
            return
        if self.response_framing is not None:
            if exc is None and self.response_framing.ends_by_close():
                self._finish(Ending.COMPLETE, "")
                self.client.exchange_done(keep=False, linger=not self.request_framing.done)
                return
            self._fail(
                Ending.UPSTREAM_FAILED, 502, "upstream_truncated", self._how(exc, "in the middle of its response")
            )
            return
        if upstream is not None and upstream.reused and self.held is not None:
            self.notes = self.notes & ~_REUSED | _RETRIED
            self.core.metrics.retries += 1
            self._dial()
            return
        self._fail(Ending.UPSTREAM_FAILED, 502, "upstream_reset", self._how(exc, "before it answered"))

    def _how(self, exc: Exception | None, when: str) -> str:
        how = "closed the connection" if exc is None else f"broke the connection off ({exc})"
        return f"{self.route.authority} {how} {when}"

    def client_lost(self, exc: Exception | None) -> None:
        """The client has left: nobody waits for the answer any more, so the upstream is told at once."""
        if self.ending is not None:
            return
        self.at = time.monotonic_ns()
        upstream, self.upstream = self.upstream, None
        if self.spliced and exc is None:
            self._finish(Ending.COMPLETE, "")
            if upstream is not None:
                upstream.close()
            return
        self._finish(Ending.CLIENT_GONE, str(exc or "the client closed the connection"))
        if upstream is not None:
            upstream.break_off()

    def timed_out(self, message: str) -> None:
        """An idle limit of ours has passed."""
        self._end(Ending.TIMED_OUT, 504, "upstream_timeout", message)

    def interrupt(self, reason: str) -> None:
        """This process stops."""
        self._end(Ending.INTERRUPTED, 503, "stopping", reason)

    def _end(self, ending: Ending, status: int, code: str, message: str) -> None:
        """Our own decision, so that no callback's guard stands around it."""
        try:
            self._fail(ending, status, code, message)
        except Exception as error:
            self.fault(error)

    def fault(self, error: Exception) -> None:
        """A defect of ours. The exchange ends visibly; everybody else goes on."""
        self.core.fault(error)
        if self.ending is None:
            self._finish(Ending.UPSTREAM_FAILED, f"internal error: {type(error).__name__}")
        else:
            self.core.finished(self)
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.break_off()
        self.client.break_off()

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._fail(Ending.REFUSED, status, code, message)

    def _fail(self, ending: Ending, status: int, code: str, message: str) -> None:
        """End it as failed: with an answer of ours where no head went out yet, else by breaking off."""
        if self.ending is not None:
            return
        upstream, self.upstream = self.upstream, None
        head_is_out = self.response_head is not None
        self.answered = 0 if head_is_out else status
        self.at = time.monotonic_ns()
        self._finish(ending, message)
        if self.dialling is not None and ending is not Ending.UPSTREAM_FAILED:
            self.dialling.cancel()
            self.dialling = None
        if upstream is not None:
            upstream.break_off()
        if head_is_out:
            self.client.break_off()
            return
        self.core.metrics.count_answer(code)
        keep = self.keep_client and self.request_framing.done and not self.client.is_ending
        answer = self._dressed(answers.error(status, code, message, provider=self.route.provider, close=not keep))
        self.client.send(answers.without_body(answer) if self.head.method == b"HEAD" else answer)
        self.client.exchange_done(keep=keep, linger=not self.request_framing.done)

    def _finish(self, ending: Ending, error: str) -> None:
        """Set the ending and journal it before anybody else hears of it."""
        closing = self._closing(ending, error)
        self.core.tee.end(self.serial, self.at, self.flags, closing)
        self._book(closing)

    def _closing(self, ending: Ending, error: str) -> Closing:
        """Set the ending, once, and put it into words for the journal."""
        assert self.ending is None, "an exchange ends once"
        self.ending = ending
        ours, theirs = self.long_request, self.long_response
        if self.spliced:
            assert ours is not None and theirs is not None
            request_size, response_size = ours.taken, theirs.taken
        else:
            request_size = self.request_framing.payload
            response_size = self.response_framing.payload if self.response_framing is not None else 0
            if not self.request_framing.done and self.response_head is not None:
                self.notes |= _EARLY
        return Closing(
            ending,
            self.notes,
            self.answered,
            request_size,
            response_size,
            time.time_ns(),
            self.first_byte_at,
            error,
            b"" if ours is None else ours.sha256,
            b"" if theirs is None else theirs.sha256,
            self.connected_at,
        )

    def _book(self, closing: Closing) -> None:
        """Count it; it is no longer open."""
        self.core.finished(self)
        self.core.metrics.count_exchange(
            self.route.provider,
            closing.ending,
            self.response_head,
            self.at - self.started,
            closing.request_size,
            closing.response_size,
        )
