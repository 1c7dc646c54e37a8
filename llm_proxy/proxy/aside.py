"""Paths of our own port that another process of ours serves, carried there over a Unix socket.

For the data plane such a process is one more upstream, with a core of its own: nothing of it is recorded here or
counted as an exchange. Leaves out which paths those are, who may ask for them (`explorer`, `gateway`), and who starts
the process (the service).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from llm_proxy.proxy.authority import Authority
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.dialler import DialFailed, Dialler
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.router import Door, PoolKey, Route
from llm_proxy.proxy.tee import Tee
from llm_proxy.proxy.upstream import UpstreamConnection
from llm_proxy.wire.hop import Instead

LOOK_EVERY = 0.03
QUEUE_PATIENCE = 5.0  # seconds for a place in the process' queue of connections, where it lives
_EVERYTHING = 1 << 62  # of bodies is "recorded": none is, and so none is hashed either


class Aside(Core):
    """A core of its own: no journal, no share in the counters, nothing that a stop waits for by itself."""

    def __init__(self, core: Core, dialler: Dialler) -> None:
        super().__init__(
            requests=core.requests,
            dialler=dialler,
            tee=Tee(None),
            record_limit=_EVERYTHING,
            max_connections=0,
            head_timeout=core.head_timeout,
            client_idle_timeout=core.client_idle_timeout,
        )
        self._core = core

    def finished(self, relay: Relay) -> None:
        super().finished(relay)
        self._core.tell()

    def fault(self, error: Exception) -> None:
        self._core.fault(error)

    def close(self) -> None:
        """End everything that is open. Idempotent."""
        for relay in list(self.relays):
            relay.interrupt("llm-proxy is stopping")
        self.pool.close()
        self.dialler.close()


class SocketDialler(Dialler):
    """Connects to the process' socket. `failed` makes what is said where nobody serves it."""

    def __init__(
        self,
        address: str,
        failed: Callable[[], DialFailed],
        *,
        start: Callable[[], None] | None = None,
        patience: float = 0.0,
    ) -> None:
        """`start` has the process started where it does not run; it then has `patience` seconds to serve."""
        super().__init__(connect_timeout=patience, environment={})
        self._address = address
        self._failed = failed
        self._start = start
        self._patience = patience

    async def dial(self, route: Route) -> UpstreamConnection:
        began = time.monotonic()
        if self._start is not None:
            self._start()
        while True:
            try:
                return await self.connect(route.key)
            except OSError as error:
                patience = QUEUE_PATIENCE if isinstance(error, BlockingIOError) else self._patience
                if time.monotonic() - began >= patience:
                    raise self._failed() from error
            await asyncio.sleep(LOOK_EVERY)  # nobody is told when the process has come so far

    async def connect(self, key: PoolKey) -> UpstreamConnection:
        """Raises OSError; BlockingIOError where the process' queue is full, which no event loop waits for rightly."""
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.setblocking(False)
            link.connect(self._address)
            connection = UpstreamConnection(key)
            await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=link)
        except BaseException:
            link.close()
            raise
        return connection


def route(
    name: str,
    target: bytes,
    host: bytes,
    *,
    provider: str,
    door: Door,
    remembered: bool,
    instead: Instead | None = None,
) -> Route:
    """The route to the process of that name, whose target and Host stay as they came."""
    return Route(
        provider=provider,
        scheme="http",
        authority=Authority(f"the-{name}", None, None),
        target=target,
        masked=b"",
        host=host,
        key=PoolKey("unix", name, 0),
        listed=True,
        confidential=False,
        why=name,
        facts=b"",
        door=door,
        remembered=remembered,
        instead=instead,
    )
