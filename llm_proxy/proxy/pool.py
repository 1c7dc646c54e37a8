"""Idle upstream connections, newest first. Decides nothing about requests; a connection is in it or with a relay."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from llm_proxy.proxy.router import PoolKey

if TYPE_CHECKING:
    from llm_proxy.proxy.upstream import UpstreamConnection

IDLE_LIMIT = 55.0  # seconds; below what providers' edges and common servers close at (60 and more)
# A request that could not be sent again must not be the one that finds out that a connection is stale.
SURELY_ALIVE = 2.0
MAX_IDLE_PER_KEY = 256


class Pool:
    """Connections kept for reuse, by `PoolKey`."""

    def __init__(self) -> None:
        self._idle: defaultdict[PoolKey, deque[UpstreamConnection]] = defaultdict(deque)

    def take(self, key: PoolKey, *, sure: bool) -> UpstreamConnection | None:
        """The newest idle connection; with `sure` only one that was in use a moment ago."""
        idle = self._idle.get(key)
        if not idle:
            return None
        if sure and time.monotonic() - idle[-1].idle_since > SURELY_ALIVE:
            return None
        return idle.pop()

    def give(self, connection: UpstreamConnection) -> None:
        idle = self._idle[connection.key]
        if len(idle) >= MAX_IDLE_PER_KEY:
            idle.popleft().close()
        connection.idle_since = time.monotonic()
        idle.append(connection)

    def drop(self, connection: UpstreamConnection) -> None:
        """It is lost; forget it."""
        try:
            self._idle[connection.key].remove(connection)
        except ValueError:
            pass

    def expire(self, now: float, most: int) -> None:
        """Close what has been idle too long, and the oldest beyond `most`. `now` is `time.monotonic()`."""
        for _ in range(len(self) - most):
            min(filter(None, self._idle.values()), key=lambda idle: idle[0].idle_since).popleft().close()
        for key, idle in list(self._idle.items()):
            while idle and now - idle[0].idle_since > IDLE_LIMIT:
                idle.popleft().close()
            if not idle:
                del self._idle[key]

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def close(self) -> None:
        for idle in self._idle.values():
            while idle:
                idle.pop().close()
