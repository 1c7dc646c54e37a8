"""One connection to an upstream: turns transport callbacks into calls on the relay that is using it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from llm_proxy.proxy.gate import Gate, Reason
from llm_proxy.proxy.router import PoolKey
from llm_proxy.proxy.transport import break_off, prepare, unread

if TYPE_CHECKING:
    from llm_proxy.proxy.pool import Pool
    from llm_proxy.proxy.relay import Relay


class UpstreamConnection(asyncio.Protocol):
    """Belongs to one relay at a time, or to the pool."""

    __slots__ = ("full", "gate", "idle_since", "key", "pool", "relay", "reused", "transport", "unread")

    def __init__(self, key: PoolKey) -> None:
        self.key = key
        self.transport: asyncio.Transport | None = None
        self.gate: Gate
        self.relay: Relay | None = None
        self.pool: Pool | None = None
        self.reused = False
        self.full = False  # it takes no more for now
        self.idle_since = 0.0
        self.unread = b""  # where it broke: what had come before

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.gate = Gate(self.transport)
        prepare(self.transport)

    def data_received(self, data: bytes) -> None:
        relay = self.relay
        if relay is None:
            # Nobody asked: whatever it is, it must not be taken for the answer to the next request.
            if self.pool is not None:
                self.pool.drop(self)
            self.break_off()
            return
        try:
            relay.response_data(data)
        except Exception as error:
            relay.fault(error)

    def eof_received(self) -> None:
        """Nothing more comes. The loops would first send what is written, to a peer that may take nothing any more."""
        relay, transport = self.relay, self.transport
        if relay is None or transport is None or relay.spliced:
            return
        self.relay = None
        try:
            relay.upstream_lost(None, b"")
        except Exception as error:
            relay.fault(error)
        if self.full or transport.get_write_buffer_size():
            self.break_off()

    def connection_lost(self, exc: Exception | None) -> None:
        transport, self.transport = self.transport, None
        relay = self.relay
        if relay is not None:
            self.relay = None
            try:
                if isinstance(exc, ConnectionError) and transport is not None and self.key.scheme == "http":
                    self.unread = unread(transport)
                relay.upstream_lost(exc, self.unread)
            except Exception as error:
                relay.fault(error)
        elif self.pool is not None:
            self.pool.drop(self)

    def pause_writing(self) -> None:
        self.full = True
        relay = self.relay
        if relay is not None:
            try:
                relay.client.gate.shut(Reason.PEER_FULL)
            except Exception as error:
                relay.fault(error)

    def resume_writing(self) -> None:
        self.full = False
        relay = self.relay
        if relay is not None:
            try:
                relay.upstream_takes_more()
            except Exception as error:
                relay.fault(error)

    def send(self, data: bytes) -> None:
        """Write; nothing happens where the connection is lost, `connection_lost` tells the relay."""
        if self.transport is not None:
            self.transport.write(data)

    def release(self) -> None:
        """The relay is done with it, and it is fit for another: back to the pool."""
        self.relay = None
        self.reused = True
        self.gate.open(Reason.PEER_FULL | Reason.BUDGET)
        if self.transport is not None and not self.transport.is_closing() and self.pool is not None:
            self.pool.give(self)

    def close(self) -> None:
        """Close in good order; what was written still goes out."""
        self.relay = None
        if self.transport is not None:
            self.transport.close()

    def break_off(self) -> None:
        self.relay = None
        break_off(self.transport)
