"""An exchange whose request is taken whole before it is sent, because what goes out depends on all of it.

It is journalled as it comes; its answer passes like any other. Leaves out what is made of the request (`signed`,
`named`).
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from llm_proxy.journal.frames import Kind, Note
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.requests import Request
from llm_proxy.records.exchange import Ending
from llm_proxy.wire.framing import BadFraming
from llm_proxy.wire.head import ResponseHead, Role

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.upstream import UpstreamConnection

# A body that is too long is read to its end all the same, or the 413 may be lost in a reset; up to this many
# times the limit.
_SWALLOWED = 10

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Of a client's head: what is the connection's own, or told anew for a message of known length.
NOT_COPIED = frozenset(
    {Role.HOST, Role.CONTENT_LENGTH, Role.TRANSFER_ENCODING, Role.CONNECTION, Role.UPGRADE, Role.HOP, Role.TRAILER}
)


class WholeRelay(Relay):
    """`held` is the outgoing message: its head, empty until it is made, then the body's pieces.

    Who derives from it takes the body's pieces (`_take`) and goes on when all of it is there (`_arrived`), in the end
    with `_send`. `max_body` is bytes, `limited_by` the setting that says so.
    """

    __slots__ = ("_complete_at", "_limited_by", "_max_body", "_unsent")

    def __init__(
        self, core: Core, client: ClientConnection, request: Request, *, max_body: int, limited_by: str
    ) -> None:
        super().__init__(core, client, request)
        self.held = [b""]
        self._max_body = max_body
        self._limited_by = limited_by
        self._complete_at = 0  # when the request's last byte came; monotonic ns
        self._unsent: deque[bytes] = deque()  # while there is some, the upstream is full

    def _take(self, pieces: list[bytes]) -> None:
        """More of the body's payload."""

    def _arrived(self) -> None:
        """All of the request is there."""
        raise NotImplementedError

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
        self._take(pieces)
        self.held += pieces
        return end

    @property
    def _too_long(self) -> bool:
        return max(self.request.length, self.request_framing.payload) > self._max_body

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
        last = self.request_framing.done and self.route_known
        self._journal(Kind.REQUEST, self.long_request, data[:end], last)
        self._go_on()
        return end

    def _go_on(self, *, give_up: bool = False) -> None:
        """Send it, if that is all of it."""
        if self._too_long:
            limit = self._max_body
            if give_up or self.request_framing.done or self.request_framing.payload > _SWALLOWED * limit:
                message = f"the request's body is larger than {limit} bytes ({self._limited_by})"
                self._refuse(413, "body_too_large", message)
        elif self.request_framing.done:
            self._complete_at = self.at
            self._arrived()

    def _send(self) -> None:
        """The head is made: to a connection that is there, or to a new one."""
        connection = self.core.pool.take(self.route.key, sure=False)
        if connection is None:
            self._dial()
            return
        assert self.held is not None
        self._attach(connection)
        self.notes |= Note.REUSED
        self._deliver(connection, self.held)
        self.core.metrics.request_out(time.monotonic_ns() - self._complete_at)

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

    # -- response -----------------------------------------------------------------------------------------------

    def _upgraded(self, head: ResponseHead, rest: bytes) -> None:
        self._fail(Ending.UPSTREAM_FAILED, 502, "bad_response", f"{self.route.authority}: a 101 nobody asked for")
