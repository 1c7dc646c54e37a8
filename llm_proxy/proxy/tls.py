"""TLS towards an upstream, with what the event loops leave out: bytes that came before a break are still read.

A server may answer a request that it is still being sent, and reset the connection. Where a write meets that reset,
asyncio and uvloop alike give the connection up with the answer unread in the socket, and unread it can't be decrypted
any more. So one protocol more stands between the socket's transport and the loop's own TLS.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from typing import cast

from llm_proxy.proxy.upstream import UpstreamConnection

_READ = 1 << 18


async def start_tls(sock: socket.socket, connection: UpstreamConnection, context: ssl.SSLContext, host: str) -> None:
    """Handshake over a connected socket, which is the transport's from here on. Raises OSError (also ssl.SSLError)."""
    loop = asyncio.get_running_loop()
    raw, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
    try:
        transport = await loop.start_tls(raw, connection, context, server_hostname=host)
        if transport is None:  # lost in the very moment in which the handshake ended
            raise ConnectionResetError(errno.ECONNRESET, "connection reset")
    except BaseException:
        raw.abort()
        raise
    connection.connection_made(transport)
    raw.set_protocol(_Between(raw, transport, connection))


class _Between(asyncio.BufferedProtocol):
    """Passes everything on to the loop's TLS; at a break it first gives it what is left in the socket."""

    def __init__(self, raw: asyncio.Transport, transport: asyncio.Transport, connection: UpstreamConnection) -> None:
        self._raw = raw
        self._tls = cast(asyncio.BufferedProtocol, raw.get_protocol())
        self._transport = transport
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return cast(memoryview, self._tls.get_buffer(sizehint))

    def buffer_updated(self, nbytes: int) -> None:
        self._tls.buffer_updated(nbytes)

    def eof_received(self) -> bool | None:
        return self._tls.eof_received()

    def pause_writing(self) -> None:
        self._tls.pause_writing()

    def resume_writing(self) -> None:
        self._tls.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ConnectionError):
            self._read_what_is_left()
        self._tls.connection_lost(exc)

    def _read_what_is_left(self) -> None:
        """Collected, not delivered: the connection is in the midst of being lost, and its reader may be paused."""
        left = _Collector()
        self._transport.set_protocol(left)
        self._transport.resume_reading()
        sock = self._raw.get_extra_info("socket")
        size = _READ
        while size:
            try:
                size = os.readv(sock.fileno(), [self.get_buffer(_READ)])
            except OSError:  # the break itself, after what came before it
                size = 0
            self._tls.buffer_updated(size)  # with 0 too: while the reader was paused, bytes were kept undecrypted
        self._transport.set_protocol(self._connection)
        self._connection.unread = b"".join(left.pieces)


class _Collector(asyncio.Protocol):
    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
