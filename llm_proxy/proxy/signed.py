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
from typing import TYPE_CHECKING

from llm_proxy.journal.frames import Closing
from llm_proxy.proxy.requests import Request
from llm_proxy.proxy.whole import NOT_COPIED, WholeRelay
from llm_proxy.wire.head import RequestHead, ResponseHead
from llm_proxy.wire.sigv4 import Key, Scope, sign

if TYPE_CHECKING:
    from llm_proxy.proxy.bedrock import BedrockDoor
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.router import Route

KEY_PATIENCE = 10.0  # seconds a call waits for the first credentials
FRESH = 60.0  # seconds for which a signature is sent again as it is; AWS takes it for five minutes
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


class SignedRelay(WholeRelay):
    """Its head is empty until it is signed."""

    __slots__ = ("_digest", "_door", "_key", "_signed_at", "inside")

    def __init__(self, core: Core, client: ClientConnection, request: Request, door: BedrockDoor) -> None:
        super().__init__(core, client, request, max_body=door.max_body, limited_by="bedrock.max_body")
        self.inside = False  # has one of the door's places
        self._door = door
        self._digest = hashlib.sha256()
        self._key: Key | None = None
        self._signed_at = 0.0

    # -- request ------------------------------------------------------------------------------------------------

    def _take(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)

    def _arrived(self) -> None:
        if self._door.enter(self):
            self.admitted()

    def admitted(self) -> None:
        """There is a place for it. Now, or once there are credentials, it is signed and sent."""
        key = self._door.keys.current()
        if key is None:
            self.dialling = asyncio.get_running_loop().create_task(self._wait_for_key())
        else:
            self._sign(key)
            self._send()

    async def _wait_for_key(self) -> None:
        try:
            try:
                key = await self._door.keys.wait(KEY_PATIENCE)
            finally:
                self.dialling = None
            if self.ending is None:
                self._sign(key)
                self._send()
        except NoKey as error:
            if self.ending is None:
                self._refuse(503, "no_credentials", str(error))
        except Exception as error:
            self.fault(error)

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
        if field.role in NOT_COPIED or field.name in _LEFT_OUT or field.name in head.nominated:
            continue
        lines.append(field.line)
        if _SIGNED.fullmatch(field.name):
            signed.append((field.name, field.value))
    if length or head.method == b"POST":
        lines.append(b"Content-Length: %d" % length)
    proof = sign(key, scope, now, method=head.method, target=route.target, fields=signed, body_sha256=body_sha256)
    lines += [b"%b: %b" % field for field in proof.fields]
    return b"\r\n".join((*lines, b"\r\n"))
