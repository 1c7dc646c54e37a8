"""Many event streams held open by one process, and how long each event was on its way."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench_suite.client import SESSIONS, head
from bench_suite.contestants import Contestant

_SENT = re.compile(rb'"sent":(\d+)')
_ROOM = 1 << 16


class Streams:
    """Open streams of one contestant."""

    def __init__(self, links: dict[int, socket.socket]) -> None:
        self._links = links
        self._poll = select.epoll()
        for fd in links:
            self._poll.register(fd, select.EPOLLIN)

    def delays(self, seconds: float) -> list[int]:
        """For each event that comes within that time: ns from the source to here. Raises ConnectionError."""
        found = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for fd, _ in self._poll.poll(left):
                data = self._links[fd].recv(_ROOM)
                now = time.monotonic_ns()
                if not data:
                    raise ConnectionError("a stream ended")
                found += [now - int(sent) for sent in _SENT.findall(data)]
        return found

    def close(self) -> None:
        self._poll.close()
        for link in self._links.values():
            link.close()


@contextmanager
def open_streams(to: Contestant, number: int, path: str = "/v1/messages") -> Iterator[Streams]:
    links = {}
    for serial in range(number):
        link = socket.create_connection(("127.0.0.1", to.port), timeout=30)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(head(to, 2, session=serial % SESSIONS, path=path) + b"{}")
        links[link.fileno()] = link
    streams = Streams(links)
    try:
        yield streams
    finally:
        streams.close()
