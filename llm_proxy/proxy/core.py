"""What all connections of one proxy share: services, limits, the sets of what is open, and the answers of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llm_proxy.proxy import answers
from llm_proxy.proxy.dialler import Dialler
from llm_proxy.proxy.metrics import Metrics
from llm_proxy.proxy.pool import Pool
from llm_proxy.proxy.requests import Requests
from llm_proxy.proxy.tee import Tee
from llm_proxy.wire.head import RequestHead

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.models import ModelsDoor
    from llm_proxy.proxy.relay import Relay

log = logging.getLogger("llm_proxy.proxy")

OwnAnswer = Callable[[], bytes]


class Core:
    """Shared by reference; the only state is what is open and what has been counted."""

    def __init__(
        self,
        *,
        requests: Requests,
        dialler: Dialler,
        tee: Tee,
        record_limit: int,
        max_connections: int,
        head_timeout: float,
        client_idle_timeout: float,
        close_timeout: float = 30.0,
    ) -> None:
        self.requests = requests
        self.dialler = dialler
        self.tee = tee
        self.record_limit = record_limit
        self.max_connections = max_connections
        self.head_timeout = head_timeout
        self.client_idle_timeout = client_idle_timeout
        self.close_timeout = close_timeout
        self.pool = Pool()
        self.metrics = Metrics()
        self.clients: set[ClientConnection] = set()
        self.relays: set[Relay] = set()
        self.own: dict[bytes, OwnAnswer] = {}
        self.models: ModelsDoor | None = None
        self.witness: Callable[[Relay], None] | None = None  # told of each exchange that is over
        self.draining = False
        self._ended: asyncio.Event | None = None
        self._refusals_said = 0.0
        self._faults_said = 0.0

    def admit(self, client: ClientConnection) -> bool:
        """Whether one more connection is served."""
        self.metrics.accepted += 1
        self.clients.add(client)
        if len(self.clients) <= self.max_connections:
            return True
        self.metrics.count_answer("too_many_connections")
        return False

    def leave(self, client: ClientConnection) -> None:
        self.clients.discard(client)
        self.tell()

    def finished(self, relay: Relay) -> None:
        """An exchange has its ending."""
        self.relays.discard(relay)
        if self.witness is not None:
            try:
                self.witness(relay)
            except Exception as error:  # whatever is told, the exchange goes on to its end
                self.fault(error)
        self.tell()

    def tell(self) -> None:
        """Something has ended."""
        if self._ended is not None:
            self._ended.set()

    async def something_ended(self, limit: float) -> None:
        """Wait until an exchange or a connection has ended, or for `limit` seconds."""
        self._ended = asyncio.Event()
        try:
            async with asyncio.timeout(limit):
                await self._ended.wait()
        except TimeoutError:
            pass
        finally:
            self._ended = None

    def own_answer(self, head: RequestHead, target: bytes) -> bytes | None:
        """The answer to a path that this process serves itself, else None."""
        if self.models is not None and (told := self.models.answer(head, target)) is not None:
            code, answer = told
            if code:
                self.metrics.count_answer(code)
            return answers.without_body(answer) if head.method == b"HEAD" else answer
        make = self.own.get(target.partition(b"?")[0])
        if make is None:
            return None
        answer = make()
        return answers.without_body(answer) if head.method == b"HEAD" else answer

    def refused(self, why: str) -> None:
        """A request that the gate turned away: counted always, said at most once a second."""
        self.metrics.count_answer("not_allowed")
        now = time.monotonic()
        if now - self._refusals_said > 1:
            self._refusals_said = now
            log.warning("refused a request: %s", why)

    def fault(self, error: Exception) -> None:
        """A defect of ours: counted always, told at most once a second."""
        self.metrics.faults += 1
        now = time.monotonic()
        if now - self._faults_said > 1:
            self._faults_said = now
            log.error("internal error", exc_info=error)
