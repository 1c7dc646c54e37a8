"""The gateway's own calls: they come over a Unix socket of their own, and are carried and recorded like all others.

Whom a call is made for is told in fields that stand in the record and in nothing that leaves. People whom the operator
does not know choose where such calls go, so this machine and its network are closed to them unless listed. Leaves out
the gateway itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_proxy.proxy.access import Access
from llm_proxy.proxy.core import Core
from llm_proxy.proxy.requests import Request, Requests, origin_form
from llm_proxy.proxy.router import PROVIDERS, NoRoute, Policy, Route, Router, authority_of, named_in
from llm_proxy.wire import attribution, aws_regions
from llm_proxy.wire.head import RequestHead, parse_request
from llm_proxy.wire.hop import Instead

if TYPE_CHECKING:
    from llm_proxy.proxy.authority import Allowed
    from llm_proxy.proxy.relay import Relay

_PROVIDERS = PROVIDERS | {"bedrock": "bedrock"}
_AWS = {host(region) for host in (aws_regions.runtime_host, aws_regions.control_host) for region in aws_regions.REGIONS}
_IDLE = 600.0  # seconds; only the gateway connects here, and lets go by itself
_INSTEAD = Instead(attribution.NAMES)


class CallRouter(Router):
    """Provider paths, as they are written, and nothing else."""

    known_hosts = Router.known_hosts | _AWS

    def __init__(self, allow: Allowed, policy: Policy) -> None:
        super().__init__(allow=allow, policy=policy)

    def _decide(self, head: RequestHead, target: bytes) -> Route:
        provider, host, path = named_in(target, _PROVIDERS)
        if provider is None:
            raise NoRoute(404, "no_route", "the gateway calls by /{provider}/{host}/{path}")
        authority = authority_of(host)
        if authority.is_loopback and self._allow.scheme(authority) is None:
            message = f'{authority} is a loopback address; allow = ["http://{authority}"] under [upstreams] opens it'
            raise NoRoute(403, "upstream_not_allowed", message, provider)
        # A signed head never comes again: remembering it would only push out those that do.
        return self._towards(
            provider, authority, path, attribution.WHY, instead=_INSTEAD, remembered=provider != "bedrock"
        )


class CallRequests(Requests):
    """Reads heads of the gateway's. What they say of a single call is put aside before a head is looked up."""

    def __init__(self, router: CallRouter) -> None:
        super().__init__(Access(), router)

    def known(self, raw: bytes) -> Request | None:
        rest, lines = attribution.cut(raw)
        request = super().known(rest)
        return None if request is None else _told(request, lines)

    def parse(self, raw: bytes) -> tuple[RequestHead, bytes]:
        head = parse_request(raw)
        return head, origin_form(head)

    def route(self, raw: bytes, head: RequestHead, target: bytes) -> Request:
        rest, lines = attribution.cut(raw)
        return _told(super().route(rest, head, target), lines)


def _told(request: Request, lines: bytes) -> Request:
    request.recorded = request.recorded[:-4] + lines + b"\r\n\r\n"
    return request


class CallCore(Core):
    """What the gateway's connections share: its heads are read in another way, all else is the proxy's."""

    def __init__(self, core: Core, router: CallRouter) -> None:
        super().__init__(
            requests=CallRequests(router),
            dialler=core.dialler,
            tee=core.tee,
            record_limit=core.record_limit,
            max_connections=core.max_connections,
            head_timeout=core.head_timeout,
            client_idle_timeout=_IDLE,
        )
        self.pool, self.metrics, self.relays = core.pool, core.metrics, core.relays
        self._core = core

    def finished(self, relay: Relay) -> None:
        self._core.finished(relay)

    def refused(self, why: str) -> None:
        self._core.refused(why)

    def fault(self, error: Exception) -> None:
        self._core.fault(error)
