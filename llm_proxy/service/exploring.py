"""The daemon's explorer: a process of its own, started by the first visit, ended when nobody looks any more.

Making a page of a 2 MB conversation takes a processor for a while; neither traffic nor the record waits for that.
Leaves out what it shows (`explorer`), how visits get to it (`proxy.explorer`) and the stand-alone one (`explore`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from llm_proxy import unix
from llm_proxy.explorer.options import Options, Shared
from llm_proxy.proxy.explorer import Explorer
from llm_proxy.service import passing
from llm_proxy.service.supervise import Supervisor

if TYPE_CHECKING:
    from llm_proxy.settings import Settings

log = logging.getLogger(__name__)

IDLE = 900.0  # seconds without a visit and without a live page, after which it is ended
STOPPING = 2.0  # seconds it has to end


class Visits(Protocol):
    """What the proxy knows of them: requests under way, and when the last began (monotonic seconds)."""

    @property
    def open(self) -> int: ...

    visited_at: float


class Exploring:
    """Owned by the event loop, except `wake`, which any thread may call."""

    def __init__(self, socket: str, options: Callable[[], Options]) -> None:
        """`socket` is the path to serve on, in the state folder; `options` are asked for at each start."""
        self._socket = socket
        self._options = options
        self._supervisor: Supervisor | None = None
        self._visits: Visits | None = None
        self._stopped = False
        try:
            self._address, self._folder = unix.address(socket)
        except (OSError, unix.PathTooLong) as error:
            self._address, self._folder = "", None
            self.explorer = Explorer(unavailable=f"the explorer cannot be served here: {error}; {ALONE}")
        else:
            self.explorer = Explorer(self._address, self.start)

    @property
    def pid(self) -> int | None:
        return self._supervisor.pid if self._supervisor is not None else None

    def start(self) -> None:
        """Where it does not run, start it; whether it then serves is seen at its socket."""
        if self._supervisor is None and not self._stopped:
            errors = f"{self._socket.removesuffix('.sock')}.err"
            told = self._options()
            command = ("llm_proxy.explorer", (told.to_json(),))
            self._supervisor = Supervisor(*command, errors=errors, variables=told.variables())
            self._supervisor.start()

    def wake(self) -> None:
        """The journal has grown: live pages want to know."""
        supervisor, visits = self._supervisor, self._visits
        if supervisor is not None and visits is not None and visits.open:
            supervisor.wake()

    async def watch(self, visits: Visits, idle: float = IDLE) -> None:
        """End it whenever nobody has looked for `idle` seconds."""
        self._visits = visits
        while True:
            await asyncio.sleep(idle / 20)
            if self._supervisor is not None and not visits.open and time.monotonic() - visits.visited_at > idle:
                await self._end()

    async def stop(self) -> None:
        """For good."""
        self._stopped = True
        await self._end()
        if self._address:
            with suppress(OSError):
                os.unlink(self._address)  # noqa: PTH108
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None

    async def _end(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            await supervisor.stop(STOPPING)


ALONE = "llm-proxy --explore-port 8081 serves one by itself"


def options(
    settings: Settings,
    *,
    index: str,
    state: str,
    journal: str,
    socket: str,
    version: str,
    gateway: tuple[str, ...] = (),
) -> Options:
    """`gateway`: the sockets of its processes, whose users come here too."""
    public = urlsplit(settings.gateway_public_url).hostname if gateway else None
    return Options(
        index=index,
        logs=settings.log_dir,
        state=state,
        journal=journal,
        version=version,
        socket=socket,
        hosts=(*settings.hosts, public) if public else settings.hosts,
        gateway=gateway,
        admin_sees=settings.gateway_admin_sees,
        redact=settings.redact,
        patterns=settings.patterns,
        gateway_privacy=settings.gateway_privacy_ceiling,
        metadata_only=settings.metadata_only,
        shared=_shared(settings) if socket else None,
    )


def _shared(settings: Settings) -> Shared | None:
    """What the daemon's explorer shows, where machines share a record; one that is started by hand shows its own."""
    if not settings.index_database_url:
        return None
    bucket = passing.bucket(settings) if settings.bodies_s3_bucket else {}
    return Shared(settings.index_database_url, passing.machine(settings), bucket)
