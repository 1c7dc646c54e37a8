"""The gateway's processes: which of them serves a request, and which of them answer at all.

Each has a core of its own, so connections and what is open are counted by process. A request goes to the least busy
one that answers, and on to another while nothing of it has been read. Leaves out which requests those are (`gateway`)
and who starts the processes (the service).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import struct
import termios
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llm_proxy.proxy import aside
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.dialler import DialFailed
from llm_proxy.proxy.metrics import Metrics
from llm_proxy.proxy.relay import REPLAY_LIMIT, Relay

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.requests import Request
    from llm_proxy.proxy.router import Route
    from llm_proxy.proxy.upstream import UpstreamConnection

log = logging.getLogger("llm_proxy.proxy")

ANSWER_PATIENCE = 1.0  # seconds in which a process says that it lives, before requests pass it over
_ALIVE = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"


class Worker(aside.Aside):
    """One process, at its socket's address."""

    def __init__(self, core: Core, address: str, number: int, metrics: Metrics) -> None:
        self.line = aside.SocketDialler(address, down)
        super().__init__(core, self.line)
        self.metrics = metrics
        self.number = number
        self.answers = True
        self._has_answered = False
        self._address = address

    async def look(self) -> None:
        """Whether it answers, now."""
        answers = await self._is_alive()
        if answers != self.answers and self._has_answered:
            words = "answers again" if answers else "does not answer: requests go to the others"
            log.warning("the gateway's process %d %s", self.number, words)
        self.answers = answers
        self._has_answered |= answers

    async def _is_alive(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._address)
                try:
                    writer.write(_ALIVE)
                    return (await reader.readline()).startswith(b"HTTP/1.1 200 ")
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return False


class Workers:
    """All of a gateway's. Its state is what is open at each, and a look at each that may be under way."""

    def __init__(self, core: Core, addresses: Sequence[str], patience: float) -> None:
        """`patience`: seconds that a request waits for any of them, which may be starting."""
        self.metrics = Metrics()
        self._patience = patience
        self._all = [Worker(core, address, number, self.metrics) for number, address in enumerate(addresses, 1)]
        self._looks: dict[int, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._all)

    @property
    def relays(self) -> list[Relay]:
        return [relay for worker in self._all for relay in worker.relays]

    @property
    def are_several(self) -> bool:
        return len(self._all) > 1

    def least_busy(self) -> Worker:
        return min(self._all, key=_turn) if self.are_several else self._all[0]

    async def dial(self, first: Core, route: Route) -> tuple[Worker, UpstreamConnection]:
        """A connection to `first`, or else to another one. Raises DialFailed."""
        began = time.monotonic()
        while True:
            patience = self._patience
            for worker in sorted(self._all, key=lambda one: (not one.answers, one is not first, len(one.relays))):
                try:
                    return worker, await worker.line.connect(route.key)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        patience = max(patience, aside.QUEUE_PATIENCE)
            if time.monotonic() - began >= patience:
                raise down()
            await asyncio.sleep(aside.LOOK_EVERY)  # nobody is told when a process has come so far

    def sweep(self, now: float, idle: int) -> None:
        """Called every second; `idle` is how many idle connections may be kept."""
        for worker in self._all:
            worker.pool.expire(now, max(1, idle // len(self._all)))
        if self.are_several:
            for worker in self._all:
                if worker.number not in self._looks:
                    self._looks[worker.number] = asyncio.get_running_loop().create_task(self._look(worker))

    async def _look(self, worker: Worker) -> None:
        try:
            await worker.look()
        finally:
            del self._looks[worker.number]
        if not worker.answers and any(other.answers for other in self._all):
            for relay in list(worker.relays):
                if isinstance(relay, WorkerRelay):
                    relay.move()

    def close(self) -> None:
        """End everything that is open. Idempotent."""
        for task in list(self._looks.values()):
            task.cancel()
        for worker in self._all:
            worker.close()


class WorkerRelay(Relay):
    """A request to one of the processes."""

    __slots__ = ("_workers",)

    def __init__(self, workers: Workers, client: ClientConnection, request: Request) -> None:
        super().__init__(workers.least_busy(), client, request)
        self._workers = workers

    async def _reach(self) -> UpstreamConnection:
        worker, connection = await self._workers.dial(self.core, self.route)
        if worker is not self.core and self.ending is None:
            self.core.relays.discard(self)
            worker.relays.add(self)
        self.core = worker
        return connection

    def _dialled(self, connection: UpstreamConnection) -> None:
        held = self.held
        super()._dialled(connection)
        if self.upstream is connection and self._workers.are_several and self.held_size <= REPLAY_LIMIT:
            self.held = held  # until an answer begins, for `move`

    def move(self) -> None:
        """Its process answers nobody: on to another one, unless this request has been read to its end."""
        upstream = self.upstream
        if self.ending is not None or self.held is None or upstream is None or not _is_unread(upstream):
            return
        self.upstream = None
        upstream.break_off()
        self._dial()


def down() -> DialFailed:
    return DialFailed("gateway_down", "the gateway is not running; it is started again")


def _turn(worker: Worker) -> tuple[bool, int]:
    return (not worker.answers, len(worker.relays))


def _is_unread(connection: UpstreamConnection) -> bool:
    """Whether the other process has yet to read something of what was written. False where this cannot be told."""
    if connection.transport is None:
        return False
    if connection.transport.get_write_buffer_size():
        return True
    try:
        waiting = fcntl.ioctl(connection.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except OSError:
        return False
    return bool(struct.unpack("i", waiting)[0])
