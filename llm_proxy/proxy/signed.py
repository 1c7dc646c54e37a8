"""An exchange whose request is signed here: taken whole, signed, sent; its answer passes like any other.

A signature covers the body's digest and stands before the body, so the request has to be complete first. It is
journalled as it comes. The digest is taken piece by piece: 25 MB at once would hold up every stream. Leaves out which
requests may be signed and with what key (`bedrock`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import deque
from typing import TYPE_CHECKING

from llm_proxy.journal.frames import Closing, Kind, Note
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.requests import Request
from llm_proxy.records.exchange import Ending
from llm_proxy.wire.framing import BadFraming
from llm_proxy.wire.head import RequestHead, ResponseHead, Role
from llm_proxy.wire.sigv4 import Key, Scope, sign

if TYPE_CHECKING:
    from llm_proxy.proxy.bedrock import BedrockDoor
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.router import Route
    from llm_proxy.proxy.upstream import UpstreamConnection

KEY_PATIENCE = 10.0  # seconds a call waits for the first credentials
FRESH = 60.0  # seconds for which a signature is sent again as it is; AWS takes it for five minutes
# A body that is too long is read to its end all the same, or the 413 may be lost in a reset; up to this many
# times the limit.
_SWALLOWED = 10

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LEFT_OUT_ROLES = frozenset(
    {Role.HOST, Role.CONTENT_LENGTH, Role.TRANSFER_ENCODING, Role.CONNECTION, Role.UPGRADE, Role.HOP, Role.TRAILER}
)
# The client's own proofs of who it is, which mean nothing to AWS or would contradict ours.
_LEFT_OUT = frozenset(
    b"authorization x-api-key x-amz-date x-amz-security-token x-amz-content-sha256 expect cookie".split()
)
# AWS wants host, the content type and its own fields signed; of its own not the trace, which balancers rewrite.
_SIGNED = re.compile(rb"content-type|accept|(?!x-amzn-trace-id$)x-amzn?-.*|anthropic-.*")
_REJECTED_KEY = re.compile(
    rb"(?:ExpiredToken|UnrecognizedClient|InvalidClientTokenId|InvalidSignature|RequestExpired)\w*"
)


class NoKey(Exception):
    """No credentials can be had; the message says which source failed and what to do."""


class SignedRelay(Relay):
    """`held` is the outgoing message: its head, empty until it is signed, then the body's pieces."""

    __slots__ = ("_digest", "_door", "_key", "_signed_at", "_unsent", "inside")

    def __init__(self, core: Core, client: ClientConnection, request: Request, door: BedrockDoor) -> None:
        super().__init__(core, client, request)
        self.held = [b""]
        self.inside = False  # has one of the door's places
        self._door = door
        self._digest = hashlib.sha256()
        self._key: Key | None = None
        self._signed_at = 0.0
        self._unsent: deque[bytes] = deque()  # while there is some, the upstream is full

    # -- request ------------------------------------------------------------------------------------------------

    def _feed_request(self, data: bytes, position: int) -> int:
        pieces: list[bytes] = []
        end = self.request_framing.feed(data, position, pieces)
        if self.long_request is not None:
            self.long_request.sink += pieces
        assert self.held is not None
        if self._too_long:
            self.held = [b""]
            return end
        for piece in pieces:
            self._digest.update(piece)
        self.held += pieces
        return end

    @property
    def _too_long(self) -> bool:
        return max(self.request.length, self.request_framing.payload) > self._door.max_body

    def _set_off(self, piece: bytes) -> None:
        """The head and a first piece of the body are in the journal."""
        self.core.relays.add(self)
        waits = self.head.minor == 1 and self._expects_continue() and not self.request_framing.done
        if waits and not self._too_long:
            self.client.send(_CONTINUE)
        self._go_on(give_up=waits and self._too_long)

    def _expects_continue(self) -> bool:
        return (self.head.get(b"expect") or b"").lower() == b"100-continue"

    def request_data(self, data: bytes) -> int:
        self.at = time.monotonic_ns()
        try:
            end = self._feed_request(data, 0)
        except BadFraming as error:
            self._refuse(400, "bad_framing", str(error))
            return len(data)
        self._journal(Kind.REQUEST, self.long_request, data[:end], self.request_framing.done)
        self._go_on()
        return end

    def _go_on(self, *, give_up: bool = False) -> None:
        """Send it, if that is all of it."""
        if self._too_long:
            limit = self._door.max_body
            if give_up or self.request_framing.done or self.request_framing.payload > _SWALLOWED * limit:
                self._refuse(
                    413, "body_too_large", f"the request's body is larger than {limit} bytes (bedrock.max_body)"
                )
        elif self.request_framing.done and self._door.enter(self):
            self.admitted()

    def admitted(self) -> None:
        """There is a place for it. Now, or once there are credentials, it is signed and sent."""
        key = self._door.keys.current()
        if key is None:
            self.dialling = asyncio.get_running_loop().create_task(self._wait_for_key())
        else:
            self._send(key)

    async def _wait_for_key(self) -> None:
        try:
            try:
                key = await self._door.keys.wait(KEY_PATIENCE)
            finally:
                self.dialling = None
            if self.ending is None:
                self._send(key)
        except NoKey as error:
            if self.ending is None:
                self._refuse(503, "no_credentials", str(error))
        except Exception as error:
            self.fault(error)

    def _send(self, key: Key) -> None:
        self._sign(key)
        connection = self.core.pool.take(self.route.key, sure=False)
        if connection is None:
            self._dial()
            return
        assert self.held is not None
        self._attach(connection)
        self.notes |= Note.REUSED
        self._deliver(connection, self.held)

    def _deliver(self, connection: UpstreamConnection, held: list[bytes]) -> None:
        """The head and a first piece in one write; of the rest only what it takes: copies of 25 MB are felt."""
        connection.send(b"".join(held[:2]))
        self._unsent = deque(held[2:])
        self._deliver_more(connection)

    def _deliver_more(self, connection: UpstreamConnection) -> None:
        while self._unsent and not connection.full and connection.transport is not None:
            connection.send(self._unsent.popleft())

    def upstream_takes_more(self) -> None:
        super().upstream_takes_more()
        if self.upstream is not None:
            self._deliver_more(self.upstream)

    def _dial(self) -> None:
        if time.monotonic() - self._signed_at > FRESH:  # it waited long for an answer on a connection that then died
            key = self._door.keys.current() or self._key
            assert key is not None
            self._sign(key)
        super()._dial()

    def _sign(self, key: Key) -> None:
        assert self.held is not None
        length, digest = self.request_framing.payload, self._digest.hexdigest()
        self.held[0] = signed_head(self.head, self.route, length, digest, key, self._door.scope, self._door.clock())
        self._key = key
        self.at = time.monotonic_ns()
        self._signed_at = time.monotonic()

    # -- response -----------------------------------------------------------------------------------------------

    def _final_head(self, head: ResponseHead, data: bytes, position: int) -> None:
        refused = head.status in (400, 401, 403) and _REJECTED_KEY.match(head.get(b"x-amzn-errortype") or b"")
        if refused and self._key is not None and not self._door.set_clock(head.get(b"date") or b""):
            self._door.keys.rejected(self._key, f"AWS says {refused[0].decode()}")
        super()._final_head(head, data, position)

    def _upgraded(self, head: ResponseHead, rest: bytes) -> None:
        self._fail(Ending.UPSTREAM_FAILED, 502, "bad_response", f"{self.route.authority}: a 101 nobody asked for")

    # -- endings ------------------------------------------------------------------------------------------------

    def _book(self, closing: Closing) -> None:
        super()._book(closing)
        self._door.leave(self)

    def fault(self, error: Exception) -> None:
        super().fault(error)
        self._door.leave(self)


def signed_head(
    head: RequestHead, route: Route, length: int, body_sha256: str, key: Key, scope: Scope, now: float
) -> bytes:
    """The head to send: the client's fields without its own credentials, and our signature behind them."""
    lines = [b"%b %b HTTP/1.1" % (head.method, route.target), b"Host: " + route.host]
    signed = [(b"host", route.host)]
    for field in head.fields:
        if field.role in _LEFT_OUT_ROLES or field.name in _LEFT_OUT or field.name in head.nominated:
            continue
        lines.append(field.line)
        if _SIGNED.fullmatch(field.name):
            signed.append((field.name, field.value))
    if length or head.method == b"POST":
        lines.append(b"Content-Length: %d" % length)
    proof = sign(key, scope, now, method=head.method, target=route.target, fields=signed, body_sha256=body_sha256)
    lines += [b"%b: %b" % field for field in proof.fields]
    return b"\r\n".join((*lines, b"\r\n"))
