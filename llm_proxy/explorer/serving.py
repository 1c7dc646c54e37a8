"""Serves the application on sockets until it is told to stop. Leaves out the pages (`site`) and who starts it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence

from aiohttp import web

STOPPING = 0.5  # seconds that answers under way have
# One page is made in a thread while event streams go on in the loop: neither holds the other for long.
SWITCH_INTERVAL = 0.0005


async def serve(app: web.Application, sockets: Sequence[socket.socket], stop: asyncio.Event) -> None:
    """Until `stop` is set, or SIGTERM or SIGINT comes."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # No access log: it would be long, and nobody's business. Who leaves ends what is made for him, streams too.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=STOPPING)
    await runner.setup()
    try:
        for link in sockets:
            await web.SockSite(runner, link, backlog=64).start()
        await stop.wait()
    finally:
        await runner.cleanup()
