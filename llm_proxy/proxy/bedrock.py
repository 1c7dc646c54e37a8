"""The door to Amazon Bedrock: which requests pass it, where they go, how many at a time, and with whose key.

Leaves out signing (`wire.sigv4`), the exchange itself (`signed`), and where keys come from: the service hands in a
`KeySource`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from calendar import timegm
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llm_proxy.proxy.authority import parse_base
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.router import NoRoute, Route
from llm_proxy.proxy.signed import SignedRelay
from llm_proxy.wire import bedrock_paths
from llm_proxy.wire.head import RequestHead
from llm_proxy.wire.sigv4 import Key, Scope

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.requests import Request

log = logging.getLogger("llm_proxy.proxy")

_TOLERATED = 120.0  # seconds; AWS refuses signatures that are off by five minutes
PROVIDER = SERVICE = "bedrock"


class KeySource(Protocol):
    """Credentials, fetched and renewed by somebody else."""

    def current(self) -> Key | None:
        """A key that is valid now, without waiting; None sets off fetching one."""

    async def wait(self, limit: float) -> Key:
        """A key, once there is one. Raises `signed.NoKey` where none can be had, or not within `limit` seconds."""

    def rejected(self, key: Key, why: str) -> None:
        """AWS does not take this key any more."""

    def state(self) -> Mapping[str, object]:
        """What `/health/bedrock` says of it."""


@dataclass(frozen=True, slots=True)
class Bedrock:
    """What is configured. Endpoints are `scheme://host[:port]`; `max_body` is bytes; `max_concurrent` 0 is no limit."""

    region: str
    runtime: str
    control: str
    keys: KeySource = field(repr=False)
    guard: Guard = field(repr=False)
    max_body: int
    max_concurrent: int = 0


class BedrockDoor:
    """One for a proxy. Its state is who is inside and who waits."""

    def __init__(self, config: Bedrock) -> None:
        self.keys = config.keys
        self.max_body = config.max_body
        self.scope = Scope(config.region, SERVICE)
        self._guard = config.guard
        self._limit = config.max_concurrent
        self._runtime = parse_base(config.runtime)
        self._control = parse_base(config.control)
        self._inside = 0
        self._waiting: deque[SignedRelay] = deque()
        self._said_at = 0.0
        self._skew = 0.0

    def route(self, head: RequestHead, target: bytes, secret: bytes) -> Route:
        """The route of a request, whose target had `secret` before it. Raises NoRoute."""
        try:
            wanted = bedrock_paths.read(head.method, target)
        except bedrock_paths.NotSigned as error:
            raise NoRoute(error.status, "not_signed", error.message, PROVIDER) from None
        base = self._control if wanted.control else self._runtime
        return Route.at(base, wanted.target, provider=PROVIDER, why="bedrock", asked=target, door=self, secret=secret)

    def clock(self) -> float:
        """The time by AWS's clock, as far as it is known to differ from ours."""
        return time.time() + self._skew

    def set_clock(self, date: bytes) -> bool:
        """A signature was refused at `date`. Whether that is because our clock is wrong; the next ones allow for it."""
        try:
            theirs = timegm(time.strptime(date.decode("ascii"), "%a, %d %b %Y %H:%M:%S GMT"))
        except ValueError:
            return False
        off = theirs - self.clock()
        if abs(off) < _TOLERATED:
            return False
        self._skew = theirs - time.time()
        log.warning("this machine's clock differs from AWS's by %.0f s; signatures allow for it", self._skew)
        return True

    def refusal(self, client: ClientConnection, request: Request) -> str:
        """Why this caller is not served; empty where it is."""
        return self._guard.refusal(request.prepared.head, request.prepared.route.secret, client.caller)

    def relay(self, core: Core, client: ClientConnection, request: Request) -> SignedRelay:
        return SignedRelay(core, client, request, self)

    # -- places -------------------------------------------------------------------------------------------------

    def enter(self, relay: SignedRelay) -> bool:
        """Whether there is a place now; else the relay's turn comes, first come, first served."""
        if self._limit and self._inside >= self._limit:
            self._waiting.append(relay)
            self._say_who_waits()
            return False
        self._inside += 1
        relay.inside = True
        return True

    def leave(self, relay: SignedRelay) -> None:
        """Its exchange has ended. Idempotent."""
        if not relay.inside:
            with suppress(ValueError):
                self._waiting.remove(relay)
            return
        relay.inside = False
        self._inside -= 1
        if self._waiting:
            following = self._waiting.popleft()
            self._inside += 1
            following.inside = True
            asyncio.get_running_loop().call_soon(_admit, following)

    def _say_who_waits(self) -> None:
        """At most once a minute."""
        now = time.monotonic()
        if not self._said_at or now - self._said_at > 60:
            self._said_at = now
            log.warning("Bedrock: all %d places are taken (bedrock.max_concurrent); calls wait for one", self._limit)

    def health(self) -> dict[str, object]:
        """For `/health/bedrock`."""
        return {
            "region": self.scope.region,
            "endpoint": str(self._runtime),
            "open": self._inside,
            "waiting": len(self._waiting),
            "max_concurrent": self._limit,
            "credentials": self.keys.state(),
        }


def _admit(relay: SignedRelay) -> None:
    if relay.ending is not None:
        return
    try:
        relay.admitted()
    except Exception as error:
        relay.fault(error)
