"""A TCP relay that keeps what passes: put before a server it shows, whatever the client's library, the client's bytes.

Bytes, FIN and RST pass both ways. Leaves out any reading of them, but for cutting a client's bytes into requests.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import cast

from tests.fakeprovider.http1 import END_OF_HEAD, body_of, parse_head


@dataclass(slots=True, eq=False)
class Tapped:
    """One connection, both directions as they came."""

    from_client: bytearray = field(default_factory=bytearray)
    from_server: bytearray = field(default_factory=bytearray)

    def requests(self) -> list[tuple[bytes, bytes]]:
        """The client's requests, (head, body as on the wire); behind an upgrade everything is body."""
        found = []
        rest = bytes(self.from_client)
        while rest:
            head, _, rest = rest.partition(END_OF_HEAD)
            head += END_OF_HEAD
            parsed = parse_head(head)
            body = body_of(parsed)
            size = len(rest) if parsed.upgrade else 0 if body.done else body.feed(rest)[1]
            found.append((head, rest[:size]))
            rest = rest[size:]
        return found


class Wiretap:
    """Relays a port of its own to `port`; use it with `async with`. `connections` are in the order they were made."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self.port = 0
        self.connections: list[Tapped] = []
        self._transports: set[asyncio.Transport] = set()

    async def __aenter__(self) -> Wiretap:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Near(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for transport in tuple(self._transports):
            transport.abort()
        await self._server.wait_closed()
        while self._transports:
            await asyncio.sleep(0)

    async def connect(self, near: _Near) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Far(near), "127.0.0.1", self._behind)
        except OSError:
            near.break_off()

    def made(self, transport: asyncio.BaseTransport) -> asyncio.Transport:
        self._transports.add(cast(asyncio.Transport, transport))
        return cast(asyncio.Transport, transport)

    def lost(self, transport: asyncio.Transport) -> None:
        self._transports.discard(transport)


class _Side(asyncio.Protocol):
    """One end of a relayed connection."""

    tap: Wiretap
    kept: bytearray
    transport: asyncio.Transport | None = None
    other: _Side | None = None
    ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = self.tap.made(transport)

    def data_received(self, data: bytes) -> None:
        self.kept += data
        if self.other and self.other.transport:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other and self.other.transport:
            self.other.transport.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        assert self.transport is not None
        self.tap.lost(self.transport)
        if self.other:
            self.other.break_off() if error else self.other.close()

    def close(self) -> None:
        if self.transport:
            self.transport.close()

    def break_off(self) -> None:
        """End the connection with RST."""
        if self.transport and not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    def pause_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.resume_reading()


class _Near(_Side):
    """The client's end."""

    def __init__(self, tap: Wiretap) -> None:
        self.tap = tap
        self.tapped = Tapped()
        self.kept = self.tapped.from_client
        tap.connections.append(self.tapped)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._dialling = asyncio.ensure_future(self.tap.connect(self))


class _Far(_Side):
    """The server's end."""

    def __init__(self, near: _Near) -> None:
        self.tap, self.kept, self.other = near.tap, near.tapped.from_server, near
        near.other = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.other is not None
        assert self.other.transport is not None
        assert self.transport is not None
        if self.other.transport.is_closing():
            self.close()
            return
        self.transport.write(bytes(self.other.kept))  # what has come while there was nowhere to send it
        if self.other.ended:
            self.transport.write_eof()
