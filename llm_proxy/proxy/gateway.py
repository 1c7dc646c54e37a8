"""The way to the gateway: the paths of its API on our own port, carried to another process over a Unix socket.

Who calls proves it to the gateway; here only web pages are kept from where people sign in and manage. Leaves out the
calls that the gateway makes in turn (`gateway_calls`) and who starts the process (the service).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_proxy.proxy import answers, aside
from llm_proxy.proxy.access import Access
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.dialler import DialFailed
from llm_proxy.proxy.explorer import is_page
from llm_proxy.proxy.front import dressed
from llm_proxy.proxy.gateway_workers import WorkerRelay, Workers
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.router import NoRoute, Route, brings_gateway_key
from llm_proxy.records.exchange import Ending
from llm_proxy.wire.exposition import Sample
from llm_proxy.wire.head import RequestHead
from llm_proxy.wire.hop import Instead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.requests import Request

_OURS = re.compile(
    rb"(?:(?:/v1)?/(?:chat/completions|completions|responses|embeddings|(?P<anthropic>messages(?:/count_tokens)?))"
    rb"|(?P<managing>/(?:auth|manage)(?:/[^?]*)?)|(?P<screens>/llm-proxy/team(?:/[^?]*)?)|/openapi\.json|/health/(?:gateway|live|ready))(?:\?.*)?",
    re.DOTALL,
)
# Behind the same path POST calls a model of Gemini's, and DELETE removes one of OpenAI's.
_MODELS = re.compile(rb"(?:/v1)?/models(?:/[^?]*)?(?:\?.*)?", re.DOTALL)
_LISTING = frozenset((b"GET", b"HEAD", b"OPTIONS"))

SCREENS = b"/llm-proxy/team"
PEER = "X-LLM-Proxy-Peer"  # the client's address
SCHEME = "X-LLM-Proxy-Scheme"  # http or https: how it came
_FIELDS = frozenset(name.lower().encode() for name in (PEER, SCHEME, "X-LLM-Proxy-Token"))
_PEER_LINE = PEER.encode() + b": %b\r\n\r\n"
START_PATIENCE = 5.0  # seconds a request waits for the process, which may be starting
_COME_AGAIN = b"Retry-After: 1\r\n"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What is configured: the address of its socket, or those of all its processes', and how long a request waits."""

    address: str
    patience: float = START_PATIENCE
    others: tuple[str, ...] = ()  # addresses of further processes that serve the same


class GatewayDoor:
    """One for a proxy. Its state is what is open, and what has been counted."""

    def __init__(self, config: Gateway, core: Core, *, tls: bool) -> None:
        """`tls`: whether clients come over it."""
        self.workers = Workers(core, (config.address, *config.others), config.patience)
        self._instead = Instead(_FIELDS, (f"{SCHEME}: {'https' if tls else 'http'}".encode(),))

    @property
    def open(self) -> int:
        """Requests under way."""
        return sum(len(worker.relays) for worker in self.workers)

    def takes(self, head: RequestHead, target: bytes) -> bool:
        if _OURS.fullmatch(target) is not None:
            return True
        return head.method in _LISTING and _MODELS.fullmatch(target) is not None

    def shows(self, target: bytes) -> bool:
        """Whether it is one of the pages for people, which lie among the explorer's."""
        match = _OURS.fullmatch(target) if target.startswith(SCREENS) else None
        return match is not None and match["screens"] is not None

    def leads_people(self, target: bytes) -> bool:
        """Whether it is a page of the explorer, which its users reach by the gateway's names."""
        return is_page(target)

    def refusal_of_page(self, access: Access, head: RequestHead, target: bytes) -> str | None:
        """Why a web page is not served. Calls bring a key that no page has by chance; people sign in and manage.

        Of our own pages' requests the gateway judges, which knows under which address people see them.
        """
        match = _OURS.fullmatch(target)
        return access.refusal(head, any_host=True) if match is not None and match["managing"] else None

    def route(self, head: RequestHead, target: bytes) -> Route | None:
        """The route to the gateway; None where the path is not its own. Raises NoRoute where its key is brought."""
        if self.takes(head, target):
            match = _OURS.fullmatch(target)
            is_anthropic = match["anthropic"] if match is not None else head.get(b"anthropic-version") is not None
            screens = self.shows(target)
            return aside.route(
                "gateway",
                target,
                head.host,
                provider=answers.EXPLORER if screens else "anthropic" if is_anthropic else "openai",
                door=self,
                remembered=not screens,
                instead=self._instead,
            )
        if brings_gateway_key(head, target):
            raise NoRoute(404, "not_served", "the gateway does not serve this path, and its keys open no other")
        return None

    # -- as a door ----------------------------------------------------------------------------------------------

    def refusal(self, client: ClientConnection, request: Request) -> str:
        """Never: whoever calls proves who it is to the gateway."""
        return ""

    def relay(self, core: Core, client: ClientConnection, request: Request) -> Relay:
        request.outgoing = request.outgoing[:-2] + _PEER_LINE % client.host
        return _GatewayRelay(self.workers, client, request)

    def gauges(self) -> dict[str, tuple[str, Iterable[Sample]]]:
        """For `/metrics`."""
        over = (
            Sample({"api": api, "ending": Ending(ending).label, "status": str(status)}, count)
            for (api, ending, status), count in sorted(self.workers.metrics.exchanges.items())
        )
        return {
            "llm_proxy_gateway_requests_total": ("Requests to the gateway that are over (status 0: no answer).", over),
            "llm_proxy_gateway_open": ("Requests to the gateway under way.", [Sample({}, self.open)]),
            "llm_proxy_gateway_worker_up": (
                "Whether a process of the gateway's answers; where there is one, it is not asked.",
                [Sample({"worker": str(worker.number)}, int(worker.answers)) for worker in self.workers],
            ),
        }


class _GatewayRelay(WorkerRelay):
    __slots__ = ("_lines",)

    def __init__(self, workers: Workers, client: ClientConnection, request: Request) -> None:
        super().__init__(workers, client, request)
        self._lines = b""  # that go with an answer of ours

    def dial_failed(self, error: DialFailed) -> None:
        self._lines = _COME_AGAIN
        self._fail(Ending.UPSTREAM_FAILED, 503, error.code, error.message)

    def _dressed(self, answer: bytes) -> bytes:
        return dressed(answer, self._lines)
