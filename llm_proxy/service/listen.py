"""Binding the addresses a daemon listens on.

The port on 127.0.0.1 and the same on [::1], since `localhost` may mean either. Leaves out accepting.
"""

from __future__ import annotations

import errno
import socket
import time
from typing import NamedTuple

from llm_proxy.errors import CannotListen

BACKLOG = 4096  # with 128 a burst of connections waits a second for its SYN to be repeated
_TRIES_FOR_A_PAIR = 20
_LOOPBACK_6 = "::1"


class Listeners(NamedTuple):
    """Sockets that listen, the port they share, and what is not as it should be."""

    sockets: tuple[socket.socket, ...]
    port: int
    warnings: tuple[str, ...]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address (an IP address in its shortest form)."""
    return host.startswith("127.") or host == _LOOPBACK_6


def listen(host: str, port: int) -> Listeners:
    """Listen on host:port, port 0 being any free one. Raises CannotListen."""
    if host != "127.0.0.1":
        only = _listen(host, port)
        return Listeners((only,), only.getsockname()[1], ())
    for attempt in range(_TRIES_FOR_A_PAIR):
        first = _listen(host, port)
        bound = first.getsockname()[1]
        try:
            return Listeners((first, _listen(_LOOPBACK_6, bound)), bound, ())
        except CannotListen as exc:
            taken = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE
            if port == 0 and taken and attempt + 1 < _TRIES_FOR_A_PAIR:
                first.close()
                continue
            return Listeners((first,), bound, (f"{exc}; clients must use http://127.0.0.1:{bound}",))
    raise AssertionError("unreachable")


def listen_again(host: str, port: int, patience: float) -> Listeners:
    """Listen on the port of last time, waiting up to `patience` seconds for it. Raises CannotListen."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return listen(host, port)
        except CannotListen:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)  # before the loop runs; the kernel tells nobody when a port is free


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shown = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    try:
        link = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise CannotListen(f"cannot listen on {shown}: {exc.strerror}") from exc
    try:
        link.setblocking(False)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        link.bind((host, port))
        link.listen(BACKLOG)  # at once: with SO_REUSEADDR a port is only taken once somebody listens
    except OSError as exc:
        link.close()
        raise CannotListen(f"cannot listen on {shown}: {exc.strerror}") from exc
    return link
