"""The proxy as a whole: listens, keeps time, answers for itself, and stops in good order.

Receives plain values; who reads settings, binds sockets and keeps the keeper alive is the service's business.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_proxy.journal.writer import Journal, JournalState
from llm_proxy.proxy import answers
from llm_proxy.proxy.access import Access
from llm_proxy.proxy.authority import Allowed, Base
from llm_proxy.proxy.bedrock import Bedrock, BedrockDoor
from llm_proxy.proxy.client import ClientConnection
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.dialler import Dialler
from llm_proxy.proxy.explorer import Explorer, ExplorerDoor
from llm_proxy.proxy.listener import Limits, Listener, descriptors, limits
from llm_proxy.proxy.metrics import Sample
from llm_proxy.proxy.requests import Requests
from llm_proxy.proxy.router import Policy, Router
from llm_proxy.proxy.target import Target, TargetDoor
from llm_proxy.proxy.tee import Tee

log = logging.getLogger("llm_proxy.proxy")

_HEARING = 50  # milliseconds for a new connection's first request, where it may be the last

# The keeper's numbers that `/metrics` passes on: name in its snapshot, name here, help.
_KEEPER_METRICS = (
    ("exchanges", "llm_proxy_keeper_exchanges_total", "Exchanges written to the log files."),
    ("interrupted", "llm_proxy_keeper_interrupted_total", "Exchanges that ended because the proxy did."),
    ("errors", "llm_proxy_keeper_errors_total", "Failed attempts to write a log file."),
    ("damaged_blocks", "llm_proxy_keeper_damaged_blocks_total", "Journal blocks that could not be read."),
    ("truncated_exchanges", "llm_proxy_keeper_truncated_total", "Exchanges of which not everything was kept."),
    ("lag_bytes", "llm_proxy_keeper_lag_bytes", "Journal bytes not in the log files yet."),
)


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
    environment: Mapping[str, str] = field(default_factory=dict)
    connect_timeout: float = 30.0
    header_timeout: float = 1800.0
    idle_timeout: float = 1800.0
    client_idle_timeout: float = 75.0
    head_timeout: float = 10.0
    max_connections: int = 4096
    record_limit: int = 32 << 20
    keeper_snapshot: Path | None = None
    log_dir: str = ""
    bedrock: Bedrock | None = None
    target: Target | None = None
    bases: Mapping[str, Base] = field(default_factory=dict)
    explorer: Explorer | None = None
    unrecorded: str = "there is no journal"  # what is said where that is so


class Proxy:
    """One listener's worth of proxy. `listen`, then `drain` and `close`."""

    def __init__(self, config: ProxyConfig, journal: Journal | None) -> None:
        self.config = config
        self.tee = Tee(journal)
        self._bedrock = BedrockDoor(config.bedrock) if config.bedrock is not None else None
        router = Router(
            allow=Allowed(config.allow),
            policy=Policy(config.policy),
            enabled=config.remote_routes,
            bedrock=self._bedrock,
            target=TargetDoor(config.target) if config.target is not None else None,
            bases=config.bases,
        )
        self.core = Core(
            requests=Requests(Access(config.hosts, config.origins), router),
            dialler=Dialler(connect_timeout=config.connect_timeout, environment=config.environment),
            tee=self.tee,
            record_limit=config.record_limit,
            max_connections=config.max_connections,
            head_timeout=config.head_timeout,
            client_idle_timeout=config.client_idle_timeout,
        )
        self.explorer: ExplorerDoor | None = None
        if config.explorer is not None:
            self.explorer = router.explorer = ExplorerDoor(config.explorer, self.core, home=config.target is None)
        self.core.own = {
            b"/health": self._health,
            b"/health/bedrock": self._health_bedrock,
            b"/health/sinks": self._health_sinks,
            b"/metrics": self._metrics,
        }
        below = {b"/llm-proxy" + path: make for path, make in self.core.own.items()}
        self.core.own = below if config.target is not None else self.core.own | below  # all else is the target's
        self._limits = Limits(config.max_connections, config.max_connections, 0)
        self._listener: Listener | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._started = time.monotonic()

    # -- life ---------------------------------------------------------------------------------------------------

    async def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Serve bound and listening sockets. Raises OSError."""
        core, wanted, available = self.core, self.config.max_connections, descriptors()
        self._limits = limits(wanted, available)
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
            sockets, lambda: ClientConnection(core), lambda: self._limits.open - len(core.clients)
        )
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_forever())

    async def drain(self, limit: float, *, serving: float = 0.0) -> int:
        """Let exchanges end for up to `limit` seconds, then cut them; returns how many were cut.

        For the first `serving` seconds, or until nothing is open, new ones are carried too.
        """
        core, now = self.core, time.monotonic()
        core.draining = True
        await self._wait_for_exchanges(now + serving)
        self._stop_listening()
        if serving:
            await self._hear_out()
        self._turn_away()
        await self._wait_for_exchanges(now + limit)
        cut = list(core.relays)
        for relay in cut:
            relay.interrupt("llm-proxy is stopping")
        return len(cut)

    async def close(self) -> None:
        """Let go of everything. Idempotent."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._turn_away()
        for relay in list(self.core.relays):
            relay.interrupt("llm-proxy is stopping")
        self.tee.settle()
        self.core.pool.close()
        self.core.dialler.close()
        deadline = time.monotonic() + 1
        while self.core.clients and time.monotonic() < deadline:  # answers on their way out
            await self.core.something_ended(deadline - time.monotonic())
        for client in list(self.core.clients):
            client.break_off()
        await asyncio.sleep(0)

    def _stop_listening(self) -> None:
        self.core.draining = True
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
        """Accept nothing more, and close the connections that have no exchange, or one with the explorer."""
        self._stop_listening()
        if self.explorer is not None:
            self.explorer.close()
        for client in list(self.core.clients):
            if client.relay is None:
                client.close()

    async def _wait_for_exchanges(self, deadline: float) -> None:
        while self.core.relays and (left := deadline - time.monotonic()) > 0:
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
        for client in list(self.core.clients):
            client.sweep(now)
        for relay in list(self.core.relays):
            quiet = (now_ns - relay.at) / 1e9
            waiting = relay.response_head is None and relay.request_done
            limit = config.header_timeout if waiting else config.idle_timeout
            if limit and quiet > limit:
                relay.timed_out(f"nothing came for {limit:g} s")
        self.core.pool.expire(now, self._limits.idle)
        if self.explorer is not None:
            self.explorer.sweep(now)
        self.tee.settle()

    # -- answers ------------------------------------------------------------------------------------------------

    def recording(self) -> tuple[str, str]:
        """How the record stands: ok, degraded or stopped, and why."""
        journal = self.tee.journal
        if journal is None:
            return "stopped", self.config.unrecorded
        state: JournalState = journal.state()
        if state.recording != "ok":
            return state.recording, state.reason
        keeper = self._keeper()
        if not keeper:
            return "degraded", "the keeper is not running; the journal keeps everything until it is"
        if keeper.get("state") != "ok":
            return "degraded", str(keeper.get("last_error") or "the keeper reports trouble")
        return "ok", ""

    def _keeper(self) -> dict[str, object]:
        """The keeper's last snapshot; empty where it does not run."""
        path = self.config.keeper_snapshot
        if path is None:
            return {}
        try:
            snapshot: dict[str, object] = json.loads(path.read_bytes())
            pid, state = snapshot["pid"], snapshot["state"]
            if type(pid) is not int or pid <= 0 or state == "stopped":  # 0 and below are groups, which always live
                return {}
            os.kill(pid, 0)
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            return {}
        return snapshot

    def _health(self) -> bytes:
        recording, reason = self.recording()
        config = self.config
        body = {
            "status": "ok",
            "app": "llm-proxy",
            "version": config.version,
            "instance": config.instance,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 3),
            "recording": recording,
            "reason": reason,
            "log_dir": config.log_dir,
            "open": len(self.core.relays),
        }
        return answers.answer(200, json.dumps(body).encode())

    def _health_sinks(self) -> bytes:
        recording, reason = self.recording()
        body = {"recording": recording, "reason": reason, "keeper": self._keeper()}
        return answers.answer(200 if recording == "ok" else 503, json.dumps(body).encode())

    def _health_bedrock(self) -> bytes:
        """Decode errors are the keeper's: a client gets its bytes whatever they mean."""
        troubles = self._keeper().get("troubles")
        bad = troubles.get("decode", 0) if isinstance(troubles, dict) else 0
        body: dict[str, object] = {"status": "disabled" if self._bedrock is None else "ok"}
        if self._bedrock is not None:
            body |= self._bedrock.health()
        return answers.answer(200, json.dumps(body | {"decode_errors": bad}).encode())

    def _metrics(self) -> bytes:
        core, losses, keeper = self.core, self.tee.losses, self._keeper()
        journal = self.tee.journal
        state = journal.state() if journal is not None else None
        recording, _ = self.recording()
        gauges: dict[str, tuple[str, Iterable[Sample]]] = {
            "llm_proxy_build_info": ("Always 1.", [Sample({"version": self.config.version}, 1)]),
            "llm_proxy_connections_open": ("Client connections open now.", [Sample({}, len(core.clients))]),
            "llm_proxy_exchanges_open": ("Exchanges under way now.", [Sample({}, len(core.relays))]),
            "llm_proxy_upstream_idle": ("Upstream connections kept for reuse.", [Sample({}, len(core.pool))]),
            "llm_proxy_recording_ok": ("1 while everything is recorded.", [Sample({}, int(recording == "ok"))]),
            "llm_proxy_journal_backlog_bytes": ("In the ring.", [Sample({}, state.backlog if state else 0)]),
            "llm_proxy_journal_segment_bytes": ("In segment files.", [Sample({}, state.segments if state else 0)]),
            "llm_proxy_record_lost_exchanges_total": ("Exchanges not recorded at all.", [Sample({}, losses.exchanges)]),
            "llm_proxy_record_dropped_frames_total": ("Body pieces not recorded.", [Sample({}, losses.frames)]),
            "llm_proxy_record_dropped_bytes_total": ("Bytes of these.", [Sample({}, losses.octets)]),
            "llm_proxy_keeper_up": ("1 while the keeper runs.", [Sample({}, int(bool(keeper)))]),
        }
        for key, name, text in _KEEPER_METRICS:
            value = keeper.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                gauges[name] = (text, [Sample({}, value)])
        text = core.metrics.text(gauges)
        return answers.answer(200, text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")
