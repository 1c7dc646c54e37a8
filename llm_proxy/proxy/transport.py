"""The few things done to sockets, in the one place where asyncio and uvloop differ."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

# Ours to set: uvloop's low mark is 16 bytes otherwise. Memory per direction is the high mark plus one read.
HIGH, LOW = 65_536, 16_384
_READ = 1 << 18
_RESET = struct.pack("ii", 1, 0)
# A peer that stopped answering: probes after a minute, given up after about two more.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 180_000}


def prepare(transport: asyncio.Transport) -> None:
    """Marks and keep-alive for a fresh connection."""
    transport.set_write_buffer_limits(HIGH, LOW)
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:  # gone already; connection_lost will say so
        pass


def local_port(transport: asyncio.BaseTransport) -> int:
    """The peer's TCP port where the peer is on this machine, else 0."""
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if not isinstance(peer, tuple) or not isinstance(own, tuple):  # gone already, or no TCP
        return 0
    host = peer[0].removeprefix("::ffff:")  # RFC 4291 §2.5.5.2: IPv4 through a socket of both families
    return int(peer[1]) if host.startswith("127.") or host == "::1" or peer[0] == own[0] else 0


def unread(transport: asyncio.BaseTransport) -> bytes:
    """What came before a connection broke and was not read; from within `connection_lost` only, and not over TLS.

    Both loops stop reading when a write fails. The kernel keeps what it has received; after a break (ConnectionError)
    nothing is added to it.
    """
    sock = transport.get_extra_info("socket")
    pieces: list[bytes] = []
    try:
        while sock is not None and (piece := os.read(sock.fileno(), _READ)):
            pieces.append(piece)
    except OSError:  # the break itself, after what came before it
        pass
    return b"".join(pieces)


def break_off(transport: asyncio.BaseTransport | None) -> None:
    """End a connection so that the peer cannot take it for a proper end.

    `abort()` alone sends FIN; linger 0 makes it a reset.
    """
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass
    assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "abort")
    transport.abort()
