"""Accepting connections: a few at a time, and only while there are file descriptors for them.

What does not fit waits in the kernel's queue instead of being dropped, and nobody is asked to try in a loop. Both
event loops accept without an end of their own: asyncio reports each failure thousands of times, uvloop drops the
connections. Leaves out binding (the service's business) and what a connection does.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

log = logging.getLogger("llm_proxy.proxy")

BATCH = 64  # connections accepted per turn of the loop; streams that are under way come in between
RESERVE = 128  # descriptors for files, pipes, look-ups, and the connections that only hear that they are too many
REFUSED = 64  # of these: connections above the cap that are open long enough to be told so
PAUSE = 0.1  # seconds until the next look when there is no room
WARN_EVERY = 10.0  # seconds


class Limits(NamedTuple):
    """Connections that are served, connections that are open at all, idle upstream connections that are kept."""

    served: int
    open: int
    idle: int


def limits(wanted: int, descriptors: int) -> Limits:
    """What a number of file descriptors allows: each client needs one, its upstream another, idle ones half of that."""
    served = max(1, min(wanted, (descriptors - RESERVE) * 2 // 5))
    return Limits(served, served + REFUSED, max(1, served // 2))


def descriptors() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class Listener:
    """Accepts on listening sockets, which are its own from now on. `room` says how many more may be open."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        protocol: Callable[[], asyncio.Protocol],
        room: Callable[[], int],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._sockets = list(sockets)
        self._protocol = protocol
        self._room = room
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[object]] = set()  # accepted, not yet told to their protocol
        self._resuming: asyncio.TimerHandle | None = None
        self._warned = -WARN_EVERY
        self._listen()

    def close(self) -> None:
        """Accept those who wait already, since closing would reset them, and no more. Idempotent."""
        for sock in self._sockets:
            while self._accept(sock):
                pass
        if self._resuming is not None:
            self._resuming.cancel()
        self._deafen()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def _listen(self) -> None:
        self._resuming = None
        for sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def _deafen(self) -> None:
        for sock in self._sockets:
            self._loop.remove_reader(sock)

    def _accept(self, listening: socket.socket) -> bool:
        """Whether more may be waiting."""
        for _ in range(BATCH):
            if len(self._arriving) >= self._room():
                self._pause("all connections that this process may have are open")
                return False
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:  # no descriptors or no memory; whatever it is, a loop of tries does not help
                self._pause(error.strerror or str(error))
                return False
            sock.setblocking(False)
            task: asyncio.Task[object] = self._loop.create_task(self._open(sock))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)
        return True

    async def _open(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, sock, ssl=self._tls)
        except OSError:  # it has left already, or does not speak TLS as it should
            sock.close()

    def _pause(self, why: str) -> None:
        self._deafen()
        if self._resuming is None:
            self._resuming = self._loop.call_later(PAUSE, self._listen)
        now = time.monotonic()
        if now - self._warned >= WARN_EVERY:
            self._warned = now
            log.warning("new connections have to wait: %s", why)
