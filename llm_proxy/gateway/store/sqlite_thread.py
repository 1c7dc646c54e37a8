"""SQLite for an event loop, by a thread for each connection that ends before the loop does.

Leaves out the engine that connects by it, and every query (`database`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from functools import partial
from typing import Any

import aiosqlite

_ending: set[asyncio.Task[None]] = set()  # the loop alone would let go of them


class _Connection(aiosqlite.Connection):
    """aiosqlite's thread tells its end to the loop, and fails where that is closed meanwhile; where connecting fails or
    is cancelled it lets nobody wait for that end. A second order to end, behind the first, would be waited for in vain.
    """

    _ended: asyncio.Future[Any] | None = None

    def stop(self) -> asyncio.Future[Any] | None:
        if self._ended is None:
            self._ended = super().stop()
            if self._ended is None or not self._ended.get_loop().is_running():
                return self._ended
            task = asyncio.create_task(_outlast(self._ended))
            _ending.add(task)
            task.add_done_callback(_ending.discard)
        return asyncio.shield(self._ended)


async def _outlast(ended: asyncio.Future[Any]) -> None:
    """Whoever ends the loop cancels its tasks and waits for them: for this one until the thread has ended."""
    while not ended.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(ended)


def connection(path: str, **more: Any) -> aiosqlite.Connection:
    """What connects when it is awaited."""
    made = _Connection(partial(sqlite3.connect, path, **more), iter_chunk_size=64)
    made._thread.daemon = True  # as SQLAlchemy makes it: a process may end whose loop was left without closing
    return made
