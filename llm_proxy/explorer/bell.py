"""Tells event streams that the journal has grown: bytes on stdin, which the daemon writes while streams are open.

The end of stdin means that the daemon is gone. Stand-alone nothing rings. Leaves out what the streams then look at.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


class Bell:
    """Any number of streams wait for the next ring; none is kept for who did not wait."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def wait(self, limit: float) -> bool:
        """Until the next ring, True, or for `limit` seconds, False."""
        rung = asyncio.get_running_loop().create_future()
        self._waiting.add(rung)
        try:
            async with asyncio.timeout(limit):
                await rung
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(rung)
        return True

    def listen(self, fd: int, ended: Callable[[], None]) -> None:
        """Ring for whatever comes from a pipe; `ended` is called once, at its end."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self.ring()
            else:
                loop.remove_reader(fd)
                ended()

        os.set_blocking(fd, False)
        loop.add_reader(fd, read)
