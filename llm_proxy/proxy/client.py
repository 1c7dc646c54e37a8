"""One client connection: cuts request heads, keeps what is pipelined behind them, one exchange at a time."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, cast

from llm_proxy.proxy import answers, explorer
from llm_proxy.proxy.callers import Caller
from llm_proxy.proxy.gate import Gate, Reason
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.requests import Forbidden, Request
from llm_proxy.proxy.router import NoRoute
from llm_proxy.proxy.transport import break_off, local_port, prepare
from llm_proxy.wire import bedrock_paths
from llm_proxy.wire.head import MAX_HEAD, BadHead, RequestHead

if TYPE_CHECKING:
    from llm_proxy.proxy.core import Core

# Read on while the answer is awaited, so that a client that leaves is noticed; more than this has to wait.
PIPELINE_LIMIT = 65_536
# After an early answer the rest of the upload is read and thrown away, so that the answer is not lost to a reset.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20

_BARE_LF = re.compile(rb"(?<!\r)\n")


class ClientConnection(asyncio.Protocol):
    """A listener's connection."""

    __slots__ = (
        "_caller",
        "_closing_at",
        "_core",
        "_full",
        "_lingering",
        "_scanned",
        "arrived",
        "buffer",
        "gate",
        "port",
        "relay",
        "since",
        "transport",
    )

    def __init__(self, core: Core) -> None:
        self._core = core
        self.transport: asyncio.Transport | None = None
        self.gate: Gate
        self._caller: Caller | None = None  # where a door has asked
        self.port = 0  # the client's, where it is on this machine: by it the keeper finds the process
        self.relay: Relay | None = None
        self.buffer = b""  # bytes of the next request(s), not looked at yet
        self.arrived = 0  # when the last bytes came that may begin an exchange; monotonic ns
        self.since = time.monotonic()  # when the wait for the current head, or for the next request, began
        self._scanned = 0
        self._lingering = 0
        self._full = False  # the client does not read what it has been sent
        self._closing_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.gate = Gate(self.transport)
        try:
            prepare(self.transport)
            self.port = local_port(self.transport)
            if not self._core.admit(self):
                self.refuse(503, "too_many_connections", "too many connections are open")
        except Exception as error:
            self._fault(error)

    @property
    def host(self) -> bytes:
        """Its address, empty where it has none."""
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        if not isinstance(peer, tuple):
            return b""
        # RFC 4291 §2.5.5.2: IPv4 through a socket of both families; RFC 4007 §11: a zone means nothing elsewhere
        return bytes(peer[0].removeprefix("::ffff:").partition("%")[0], "ascii")

    @property
    def caller(self) -> Caller:
        """Whose program this is; found out when a door asks for the first time."""
        if self._caller is None:
            assert self.transport is not None
            self._caller = Caller(self.transport)
        return self._caller

    def data_received(self, data: bytes) -> None:
        try:
            relay = self.relay
            if relay is None:
                self.arrived = time.monotonic_ns()
                end = -1 if self.buffer or self._lingering else data.find(b"\r\n\r\n")
                if end > 0:  # the usual case: a fresh request with its whole head
                    request = self._core.requests.known(data[: end + 4])
                    if request is not None:
                        self._carry(request, data, end + 4)
                        return
                if self._lingering:
                    self._throw_away(data)
                    return
                self.buffer = self.buffer + data if self.buffer else data
                self._requests()
            elif relay.request_done:
                self.buffer += data
                if len(self.buffer) > PIPELINE_LIMIT:
                    self.gate.shut(Reason.PIPELINE)
            else:
                end = relay.request_data(data)
                if end < len(data):
                    self._left_over(data[end:])
        except Exception as error:
            self._fault(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.buffer = b""  # nobody waits for these answers
        self._core.leave(self)
        relay, self.relay = self.relay, None
        if relay is not None:
            try:
                relay.client_lost(exc)
            except Exception as error:
                relay.fault(error)

    def pause_writing(self) -> None:
        try:
            self._full = True
            relay = self.relay
            if relay is not None and relay.upstream is not None:
                relay.upstream.gate.shut(Reason.PEER_FULL)
        except Exception as error:
            self._fault(error)

    def resume_writing(self) -> None:
        try:
            self._full = False
            relay = self.relay
            if relay is not None and relay.upstream is not None:
                relay.upstream.gate.open(Reason.PEER_FULL)
            if self.gate.reasons & Reason.UNREAD:
                self.go_on()
        except Exception as error:
            self._fault(error)

    def send(self, data: bytes) -> None:
        """Write; nothing happens where the client is gone, `connection_lost` tells the relay."""
        if self.transport is not None:
            self.transport.write(data)

    # -- requests -----------------------------------------------------------------------------------------------

    def _requests(self) -> None:
        """Serve what is in the buffer, until an exchange is under way or a head is not complete."""
        while self.relay is None and self.transport is not None and not self._lingering:
            if self._full:
                self.gate.shut(Reason.UNREAD)
                return
            if self.buffer[:2] == b"\r\n":  # RFC 9112 §2.2: an empty line before the request line is passed over
                self.buffer = self.buffer[2:]
                continue
            end = self.buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
            if end < 0:
                self._incomplete()
                return
            self._scanned = 0
            self._request(end + 4)

    def _incomplete(self) -> None:
        looked_at = self._scanned
        if not looked_at and self.buffer:
            self.since = time.monotonic()
        self._scanned = len(self.buffer)
        if self._scanned > MAX_HEAD:
            self.refuse(431, "bad_request", f"head larger than {MAX_HEAD} bytes")
        elif _BARE_LF.search(self.buffer, looked_at):
            self.refuse(400, "bad_request", "line ends must be CR LF")

    def _request(self, end: int) -> None:
        """One request, whose head is the first `end` bytes of the buffer."""
        data, core = self.buffer, self._core
        raw = data[:end]
        request = core.requests.known(raw) or self._new_request(raw, data[end:])
        if request is None:
            return
        self.buffer = b""
        self._carry(request, data, end)

    def _carry(self, request: Request, data: bytes, end: int) -> None:
        """An exchange begins; its head is the first `end` bytes of `data`."""
        door = request.prepared.route.door
        if door is None:
            self.relay = relay = Relay(self._core, self, request)
        elif refusal := door.refusal(self, request):
            self._core.refused(refusal)
            self.refuse(403, "not_allowed", refusal, request.prepared.route.provider)
            return
        else:
            self.relay = relay = door.relay(self._core, self, request)
        taken = relay.start(data, end)
        if taken < len(data):
            self._left_over(data[taken:])

    def _left_over(self, rest: bytes) -> None:
        """What a relay has not taken: the next request's, or the rest of a flood of tiny chunks. Others go first."""
        transport = self.transport
        if self.relay is None and (self._closing_at or transport is None or transport.is_closing()):
            return  # there is no next one
        self.buffer = rest + self.buffer
        if self.relay is None:  # it is over already, and has found nothing behind it
            self.go_on()
        elif not self.relay.request_done:
            self.gate.shut(Reason.BUDGET)
            asyncio.get_running_loop().call_soon(self._look_again)

    def _new_request(self, raw: bytes, rest: bytes) -> Request | None:
        """A head that is not like an earlier one; None where it has been answered here."""
        core = self._core
        try:
            head, target = core.requests.parse(raw)
            own = core.own_answer(head, target)
            if own is None:
                return core.requests.route(raw, head, target)
        except BadHead as error:
            core.metrics.count_answer("bad_request")
            self.refuse(error.status, "bad_request", error.reason)
            return None
        except Forbidden as error:
            core.refused(str(error))
            self.refuse(403, "not_allowed", str(error), _shape(raw.split(b" ", 2)[1]))
            return None
        except NoRoute as error:
            core.metrics.count_answer(error.code)
            self.refuse(error.status, error.code, error.message, error.provider)
            return None
        self._answer(head, own, rest)
        return None

    def _answer(self, head: RequestHead, own: bytes, rest: bytes) -> None:
        """Answer a path of our own; what such a request brings as a body is not read."""
        if head.length or head.chunked or head.close or not head.minor or self.is_ending:
            self._answer_and_end(own)
            return
        self.buffer = rest
        self.since = time.monotonic()
        self.send(own)

    @property
    def is_ending(self) -> bool:
        """Whether the answer under way is its last, because this process is about to stop."""
        return self._core.draining

    def exchange_done(self, *, keep: bool, linger: bool) -> None:
        """The relay has finished and its last byte is written: on to the next request, or close."""
        self.relay = None
        self.since = time.monotonic()
        if self.transport is None:
            return
        if linger:
            self._linger()
        elif not keep or self.is_ending:
            self.close()
        else:
            self.go_on()

    def go_on(self) -> None:
        """Look at what came while nobody could; not from within, so that a long pipeline is no deep recursion."""
        if self._full:  # one more answer would be kept for a client that reads none
            self.gate.shut(Reason.UNREAD)
            return
        self.gate.open(Reason.PIPELINE | Reason.PEER_FULL | Reason.DIALLING | Reason.UNREAD)
        if self.buffer:
            asyncio.get_running_loop().call_soon(self._look_again)

    def _look_again(self) -> None:
        self.gate.open(Reason.BUDGET)
        data, self.buffer = self.buffer, b""
        if data:
            self.data_received(data)

    # -- endings ------------------------------------------------------------------------------------------------

    def refuse(self, status: int, code: str, message: str, provider: str = "") -> None:
        """Answer a request that is not carried. What is behind it cannot be trusted to be where it seems."""
        self._answer_and_end(answers.error(status, code, message, provider=provider, close=True))

    def _answer_and_end(self, answer: bytes) -> None:
        self.buffer = b""
        self.send(answer)
        self._linger()

    def _linger(self) -> None:
        """Close so that the answer arrives: half-close, then read and discard for a moment."""
        transport = self.transport
        if transport is None:
            return
        self._lingering = 1
        self._closing_at = time.monotonic() + LINGER_SECONDS
        self.buffer = b""
        self.gate.open(Reason.PIPELINE | Reason.PEER_FULL | Reason.DIALLING | Reason.UNREAD)
        if not transport.can_write_eof() or transport.is_closing():
            self.close()
            return
        try:
            transport.write_eof()
        except OSError:  # reset by the client, and nobody has told us yet
            self.break_off()

    def _throw_away(self, data: bytes) -> None:
        self._lingering += len(data)
        if self._lingering > LINGER_BYTES:
            self.break_off()

    def close(self) -> None:
        """Close in good order; what was written still goes out, within a limit."""
        self.buffer = b""
        if self.transport is not None:
            self._closing_at = time.monotonic() + self._core.close_timeout
            self.transport.close()

    def break_off(self) -> None:
        self.relay = None
        self.buffer = b""
        break_off(self.transport)

    def _fault(self, error: Exception) -> None:
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.fault(error)
        else:
            self._core.fault(error)
            self.break_off()

    def sweep(self, now: float) -> None:
        """Called every second: limits on heads, idle connections and endings."""
        if self._closing_at:
            if now > self._closing_at:
                self.break_off()
        elif self.relay is None:
            waited = now - self.since
            awaited = self.buffer and not self._full
            if awaited and waited > self._core.head_timeout:
                self.refuse(408, "request_timeout", "the request's head did not arrive in time")
            elif not awaited and waited > self._core.client_idle_timeout:
                self.close()


def _shape(target: bytes) -> str:
    """In whose form a request that was not routed is refused."""
    if explorer.is_meant(target):
        return answers.EXPLORER
    return "bedrock" if bedrock_paths.begins_here(target) else ""
