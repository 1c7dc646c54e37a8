"""A provider of event streams whose events are spread out: every stream at its own jittered pace, about one a second.

Every event carries the time it was sent (CLOCK_MONOTONIC, ns), which is the same clock for every process of a machine.
`python -m bench_suite.source` prints `PORT n` and serves until SIGTERM; with `--frames` its events are frames of
Bedrock's ConverseStream.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from typing import cast

import uvloop

from tests.fakebedrock import frames

PAUSE = (0.5, 1.5)  # seconds between two events of a stream
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b"event: content_block_delta\ndata: %b\n\n"
_DATA = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" words"},"sent":%d}'


class Stream(asyncio.Protocol):
    """Answers whatever comes first with a stream that goes on until the client leaves."""

    head = _HEAD % b"text/event-stream; charset=utf-8"

    @staticmethod
    def event(now: int) -> bytes:
        return _EVENT % (_DATA % now)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._transport.write(self.head)
            self._plan(random.uniform(0, PAUSE[1]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self, pause: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(pause, self._send)

    def _send(self) -> None:
        event = self.event(time.monotonic_ns())
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._plan(random.uniform(*PAUSE))


class Frames(Stream):
    """The same in Amazon's frames."""

    head = _HEAD % b"application/vnd.amazon.eventstream"

    @staticmethod
    def event(now: int) -> bytes:
        return frames.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": " words"}, "sent": now})


async def serve(kind: type[Stream]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(kind, "127.0.0.1", 0, backlog=4096)
    print(f"PORT {server.sockets[0].getsockname()[1]}", flush=True)
    await stopped.wait()


if __name__ == "__main__":
    uvloop.run(serve(Frames if "--frames" in sys.argv else Stream))
