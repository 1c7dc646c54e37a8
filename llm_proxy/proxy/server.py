"""The proxy as a whole: listens, keeps time, answers for itself, and stops in good order.

Receives plain values; who reads settings, binds sockets and keeps the keeper alive is the service's business.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_proxy import unix
from llm_proxy.journal.writer import Journal
from llm_proxy.proxy.access import Access
from llm_proxy.proxy.authority import Allowed, Base
from llm_proxy.proxy.bedrock import Bedrock, BedrockDoor
from llm_proxy.proxy.client import ClientConnection
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.dialler import Dialler
from llm_proxy.proxy.explorer import Explorer, ExplorerDoor
from llm_proxy.proxy.gateway import Gateway, GatewayDoor
from llm_proxy.proxy.gateway_calls import CallCore, CallRouter
from llm_proxy.proxy.listener import Limits, Listener, descriptors, limits
from llm_proxy.proxy.models import Models, ModelsDoor
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.remote import Remote
from llm_proxy.proxy.report import Report
from llm_proxy.proxy.requests import Requests
from llm_proxy.proxy.router import Policy, Router
from llm_proxy.proxy.target import Target, TargetDoor
from llm_proxy.proxy.tee import Tee

log = logging.getLogger("llm_proxy.proxy")

_HEARING = 100  # milliseconds for a new connection's first request, where it may be the last


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Plain values. Times in seconds, sizes in bytes; `environment` is where HTTPS_PROXY and NO_PROXY are read."""

    instance: str = ""
    version: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    policy: str = "public"
    remote_routes: bool = True
    remote: Remote | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: float = 30.0
    header_timeout: float = 1800.0
    idle_timeout: float = 1800.0
    client_idle_timeout: float = 75.0
    head_timeout: float = 10.0
    max_connections: int = 4096
    record_limit: int = 32 << 20
    keeper_snapshot: Path | None = None
    lanes_snapshot: Path | None = None
    sinks: tuple[str, ...] = ()  # those with lanes
    disks: Mapping[str, str] = field(default_factory=dict)  # (name, folder) whose free space is told
    log_dir: str = ""
    bedrock: Bedrock | None = None
    target: Target | None = None
    models: Models | None = None
    tls: ssl.SSLContext | None = None  # of the listener
    bases: Mapping[str, Base] = field(default_factory=dict)
    explorer: Explorer | None = None
    gateway: Gateway | None = None  # takes no paths of a single target's
    gateway_socket: str = ""  # where the gateway's own calls come in
    unrecorded: str = "there is no journal"  # what is said where that is so


class Proxy:
    """One listener's worth of proxy. `listen`, then `drain` and `close`."""

    def __init__(self, config: ProxyConfig, journal: Journal | None) -> None:
        self.config = config
        self.tee = Tee(journal)
        self._bedrock = BedrockDoor(config.bedrock) if config.bedrock is not None else None
        models = ModelsDoor(config.models) if config.models is not None else None
        allow, policy = Allowed(config.allow), Policy(config.policy)
        router = Router(
            allow=allow,
            policy=policy,
            enabled=config.remote_routes,
            bedrock=self._bedrock,
            target=TargetDoor(config.target) if config.target is not None else None,
            models=models,
            bases=config.bases,
            remote=config.remote,
        )
        self.core = Core(
            requests=Requests(
                Access(config.hosts, config.origins), router, models.front if models else None, config.remote
            ),
            dialler=Dialler(connect_timeout=config.connect_timeout, environment=config.environment),
            tee=self.tee,
            record_limit=config.record_limit,
            max_connections=config.max_connections,
            head_timeout=config.head_timeout,
            client_idle_timeout=config.client_idle_timeout,
        )
        self.core.models = models
        self.explorer: ExplorerDoor | None = None
        if config.explorer is not None:
            self.explorer = router.explorer = ExplorerDoor(
                config.explorer,
                self.core,
                home=config.target is None,
                team=config.gateway is not None and config.target is None,
            )
        self.gateway: GatewayDoor | None = None
        self._calls: CallCore | None = None
        if config.gateway is not None and config.target is None:
            self.gateway = GatewayDoor(config.gateway, self.core, tls=config.tls is not None)
            router.gateway = self.core.requests.gateway = self.gateway
        if config.gateway_socket:
            bases = (f"{base.scheme}://{base.authority}" for base in config.bases.values())
            self._calls = CallCore(self.core, CallRouter(Allowed((*config.allow, *bases)), policy))
        self._report = Report(config, self.core, self._bedrock, self.gateway)
        self.core.own = self._report.answers()
        below = {b"/llm-proxy" + path: make for path, make in self.core.own.items()}
        self.core.own = below if config.target is not None else self.core.own | below  # all else is the target's
        self._limits = Limits(config.max_connections, config.max_connections, 0)
        self._listener: Listener | None = None
        self._calls_listener: Listener | None = None
        self._sweeper: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Serve bound and listening sockets. Raises OSError."""
        core, wanted, available = self.core, self.config.max_connections, descriptors()
        # A call of the gateway's takes twice as many: two for the way to it, two for its own way on.
        self._limits = limits(wanted, available if self._calls is None else available // 2)
        core.max_connections = self._limits.served
        if core.max_connections < wanted:
            log.warning(
                "a limit of %d open files leaves room for %d connections, not %d",
                available,
                core.max_connections,
                wanted,
            )
        core.dialler.own_ports = frozenset(sock.getsockname()[1] for sock in sockets)
        for sock in sockets:
            sock.setblocking(False)
        self._listener = Listener(
            sockets,
            lambda: ClientConnection(core),
            lambda: self._limits.open - len(core.clients),
            self.config.tls,
        )
        self._listen_for_calls()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_forever())
        self._report.disks.start()

    def _listen_for_calls(self) -> None:
        """Serve the gateway's own socket. Where that cannot be, all other traffic is served."""
        calls = self._calls
        if calls is None:
            return
        calls.max_connections = self._limits.served
        try:
            link = unix.bind(self.config.gateway_socket)
        except (OSError, unix.PathTooLong) as error:
            log.error("THE GATEWAY CANNOT CALL: its socket %s cannot be had: %s", self.config.gateway_socket, error)
            return
        self._calls_listener = Listener(
            [link], lambda: ClientConnection(calls), lambda: self._limits.open - len(calls.clients)
        )

    def end_connections(self) -> None:
        """From now on each answer is the last on its connection, and says so: who asks again connects anew."""
        self.core.draining = True

    async def drain(self, limit: float, *, serving: float = 0.0) -> int:
        """Let exchanges end for up to `limit` seconds, then cut them; returns how many were cut.

        For the first `serving` seconds, or until nothing is open, new ones are carried too.
        """
        now = time.monotonic()
        self.end_connections()
        await self._wait_for_exchanges(now + serving)
        self._stop_listening()
        await self._hear_out()
        self._turn_away()
        await self._wait_for_exchanges(now + limit)
        cut = self._under_way()
        for relay in cut:
            relay.interrupt("llm-proxy is stopping")
        return len(cut)

    async def close(self) -> None:
        """Let go of everything. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._report.disks.stop()
        self._turn_away()
        if self._calls_listener is not None:
            self._calls_listener.close()
        for relay in self._under_way():
            relay.interrupt("llm-proxy is stopping")
        if self.gateway is not None:
            self.gateway.workers.close()
        self.tee.settle()
        self.core.pool.close()
        self.core.dialler.close()
        deadline = time.monotonic() + 1
        while self.core.clients and time.monotonic() < deadline:  # answers on their way out
            await self.core.something_ended(deadline - time.monotonic())
        for client in self._clients():
            client.break_off()
        await asyncio.sleep(0)

    def _under_way(self) -> list[Relay]:
        """What a stop waits for: exchanges, and requests to the gateway, which may yet have to make calls for them."""
        return [*(self.gateway.workers.relays if self.gateway is not None else ()), *self.core.relays]

    def _clients(self) -> list[ClientConnection]:
        return [*self.core.clients, *(self._calls.clients if self._calls is not None else ())]

    def _stop_listening(self) -> None:
        self.end_connections()
        if self._listener is not None:
            self._listener.close()

    async def _hear_out(self) -> None:
        """Who has just connected is about to ask: closing at once would answer that with a reset."""
        for _ in range(_HEARING):
            await asyncio.sleep(0.001)
            new = time.monotonic() - _HEARING / 1000
            if not any(client.relay is None and client.since > new for client in self.core.clients):
                return

    def _turn_away(self) -> None:
        """Accept nothing more, and close the connections that have no exchange, or one with the explorer.

        The gateway's own stay: requests that it still serves take calls.
        """
        self._stop_listening()
        if self.explorer is not None:
            self.explorer.close()
        for client in list(self.core.clients):
            if client.relay is None:
                client.close()

    async def _wait_for_exchanges(self, deadline: float) -> None:
        while self._under_way() and (left := deadline - time.monotonic()) > 0:
            await self.core.something_ended(left)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(1)
            try:
                self._sweep()
            except Exception as error:
                self.core.fault(error)

    def _sweep(self) -> None:
        """One coarse look a second instead of a timer per connection."""
        config, now = self.config, time.monotonic()
        now_ns = time.monotonic_ns()
        for client in self._clients():
            client.sweep(now)
        for relay in self._under_way():
            quiet = (now_ns - relay.at) / 1e9
            waiting = relay.response_head is None and relay.request_done
            limit = relay.route.patience or (config.header_timeout if waiting else config.idle_timeout)
            if limit and quiet > limit:
                relay.timed_out(f"nothing came for {limit:g} s")
        self.core.pool.expire(now, self._limits.idle)
        if self.explorer is not None:
            self.explorer.sweep(now)
        if self.gateway is not None:
            self.gateway.workers.sweep(now, self._limits.idle)
        self.tee.settle()
