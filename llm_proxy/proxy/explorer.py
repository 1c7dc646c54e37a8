"""The way to the explorer: `/llm-proxy/…` on our own port, carried to another process over a Unix socket.

Its streams may be silent for ever, and nobody waits for them when this process stops. Leaves out who starts the
process (the service hands that in) and who may look (the explorer's own guard does that).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_proxy.proxy import answers, aside
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.dialler import DialFailed
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.router import NoRoute, Route
from llm_proxy.records.exchange import Ending
from llm_proxy.wire.head import RequestHead

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.requests import Request

ROOT = b"/llm-proxy"
START_PATIENCE = 5.0  # seconds a visit waits for the process to start, before it is told to try again
ANSWER_PATIENCE = 60.0  # seconds for an answer to begin; its own limits are far below
_MOST_IDLE = 8
# What the explorer takes as "may not come in as whoever runs this"; who sends it himself only loses by it.
_STRANGER_LINE = b"X-LLM-Proxy-Stranger: %d\r\n\r\n"
# Below the same path, and answered by the proxy itself.
_NOT_PAGES = frozenset({ROOT + b"/metrics", ROOT + b"/health"})


@dataclass(frozen=True, slots=True)
class Explorer:
    """What is configured: the address of its socket, and how it is started where it does not run.

    `unavailable` says why there is none; then the rest means nothing.
    """

    address: str = ""
    start: Callable[[], None] = lambda: None
    unavailable: str = ""


def is_meant(target: bytes) -> bool:
    """Whether a target in origin form is the explorer's."""
    return target.startswith(ROOT) and target[len(ROOT) : len(ROOT) + 1] in (b"", b"/", b"?")


def is_page(target: bytes) -> bool:
    """Whether the explorer's process is asked, which judges by itself under which name it may be."""
    return is_meant(target) and target.partition(b"?")[0] not in _NOT_PAGES


class ExplorerDoor:
    """One for a proxy. Its state is what is open, and when it was last visited (monotonic seconds)."""

    def __init__(self, config: Explorer, core: Core, *, home: bool = True, team: bool = False) -> None:
        """`home`: whether `/` is ours too; `team`: whether a gateway's users come here."""
        self._home = home
        self._team = team
        self.visited_at = time.monotonic()
        self._config = config
        dialler = aside.SocketDialler(config.address, _starting, start=config.start, patience=START_PATIENCE)
        self._aside = aside.Aside(core, dialler)

    @property
    def open(self) -> int:
        """Requests under way; a live page holds one."""
        return len(self._aside.relays)

    def takes(self, head: RequestHead, target: bytes) -> bool:
        """`/` too, where a browser asks for it: it is led to the explorer's home."""
        return is_meant(target) or (self._home and target == b"/" and head.method == b"GET" and _is_browser(head))

    def route(self, head: RequestHead, target: bytes) -> Route:
        """Raises NoRoute."""
        provider = "" if target.startswith(ROOT + b"/api") else answers.EXPLORER
        if self._config.unavailable:
            raise NoRoute(503, "explorer_off", self._config.unavailable, provider)
        if head.method not in (b"GET", b"HEAD"):
            raise NoRoute(405, "read_only", "nothing can be changed here: use GET or HEAD", provider)
        return aside.route("explorer", target, head.host, provider=provider, door=self, remembered=False)

    def refusal(self, client: ClientConnection, request: Request) -> str:
        """Another user of this machine may have come by a session: a cookie for 127.0.0.1 goes to all of its ports.

        A load balancer is another user too, so where a team comes such programs are only marked.
        """
        uid = _stranger(client)
        if uid is None or self._team:
            return ""
        return f"this is the record of user {os.geteuid()}, and a program of user {uid} asks for it"

    def relay(self, core: Core, client: ClientConnection, request: Request) -> Relay:
        self.visited_at = time.monotonic()
        if self._team and (uid := _stranger(client)) is not None:
            request.outgoing = request.outgoing[:-2] + _STRANGER_LINE % uid
        return _ExplorerRelay(self._aside, client, request)

    def sweep(self, now: float) -> None:
        """Called every second."""
        now_ns = time.monotonic_ns()
        for relay in list(self._aside.relays):
            if relay.response_head is None and now_ns - relay.at > ANSWER_PATIENCE * 1e9:
                relay.timed_out(f"the explorer did not answer within {ANSWER_PATIENCE:g} s")
        self._aside.pool.expire(now, _MOST_IDLE)

    def close(self) -> None:
        """End everything that is open; a live page connects again, to whoever serves it next. Idempotent."""
        self._aside.close()


def _stranger(client: ClientConnection) -> int | None:
    """Whose program has asked, where that is another user's than ours and root's, and can be seen."""
    uid = client.caller.uid if sys.platform == "linux" else None
    return None if uid in (None, 0, os.geteuid()) else uid


class _ExplorerRelay(Relay):
    __slots__ = ()

    def dial_failed(self, error: DialFailed) -> None:
        self._fail(Ending.UPSTREAM_FAILED, 503, error.code, error.message)


def _starting() -> DialFailed:
    return DialFailed("explorer_starting", "the explorer is starting")


def _is_browser(head: RequestHead) -> bool:
    return b"text/html" in (head.get(b"accept") or b"")
