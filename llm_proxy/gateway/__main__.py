"""`python -m llm_proxy.gateway JSON`: serves the gateway on its Unix socket until told to stop, by the daemon.

stdin ends with the daemon, and so do we. What people should know goes to stderr, which the daemon keeps in a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable

from aiohttp import web

from llm_proxy.gateway.app import application
from llm_proxy.gateway.options import Options, Secrets, options, secrets
from llm_proxy.gateway.sealing import WrongKey
from llm_proxy.gateway.site import Site, live, site
from llm_proxy.gateway.store.database import StoreAway, StoreUnusable
from llm_proxy.gateway.table import table
from llm_proxy.unix import PathTooLong, bind

log = logging.getLogger("llm_proxy.gateway")

STOPPING = 25.0  # seconds that calls under way have; the daemon's drain is as long
_LONGEST_LINE = 65_536  # bytes of a request head's line; the proxy's own limits come first
_MADE = 10_000  # objects between two looks for garbage: calls leave next to none that counting does not free
_AGAIN = 2.0  # seconds until a store that is away at the start is tried again


def main() -> int:
    given, secret = options(sys.argv[1]), secrets()
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=_loop()) as runner:
        return runner.run(_live(given, secret))


def _loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _live(given: Options, secret: Secrets) -> int:
    stop, draining = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        draining.set()
        loop.call_later(given.drain_delay, stop.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    _listen_to(0, draining, stop)
    made = await _made(given, secret, stop)
    if isinstance(made, int):
        return made
    made.draining = draining
    async with live(made):
        try:
            link = bind(given.socket)
        except (OSError, PathTooLong) as error:
            log.error("the gateway cannot listen on %s: %s", given.socket, error)
            return 1
        runner = web.AppRunner(
            application(made, table()),
            access_log=None,  # the record is the log
            handler_cancellation=True,
            shutdown_timeout=STOPPING,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
            auto_decompress=True,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, link, backlog=1024).start()
            gc.collect()
            gc.freeze()  # modules and tables stay: there is no point in looking through them again
            gc.set_threshold(_MADE)
            await stop.wait()
        finally:
            await runner.cleanup()
    return 0


async def _made(given: Options, secret: Secrets, stop: asyncio.Event) -> Site | int:
    """The parts, once the store can be reached; or the exit status."""
    told = False
    while not stop.is_set():
        try:
            return await site(given, secret)
        except StoreAway as error:
            if not told:
                log.warning("the gateway waits for its store: %s", error)
                told = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    await stop.wait()
        except (StoreUnusable, WrongKey) as error:
            log.error("the gateway cannot serve: %s", error)
            return 1
    return 0


def _listen_to(fd: int, draining: asyncio.Event, stop: asyncio.Event) -> None:
    """Stop at the end of the daemon's pipe; what comes through it means that the end is near."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            more = os.read(fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        draining.set()
        if not more:
            loop.remove_reader(fd)
            stop.set()

    os.set_blocking(fd, False)
    loop.add_reader(fd, read)


if __name__ == "__main__":
    sys.exit(main())
