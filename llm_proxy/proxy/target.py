"""The door of a single target: every path goes to one upstream, with fields added that its configuration names.

Leaves out who may not call at all (`access`), reading the configuration (the service does) and the exchange (`relay`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from llm_proxy.proxy.authority import Base
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.router import CONFIDENTIAL, HOSTS, SECRET_PATH, Route, bare_provider
from llm_proxy.wire.head import RequestHead
from llm_proxy.wire.hop import Instead
from llm_proxy.wire.masking import masked_credential

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.requests import Request

_BY_HOST = {host: provider for provider, host in HOSTS.items()}


@dataclass(frozen=True, slots=True)
class Target:
    """What is configured. `headers` are (name, value); with them the target spends the user's credentials, and `guard`
    is asked who may do so. Where it requires a secret it is asked without them too.
    """

    base: Base
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    guard: Guard = field(default_factory=Guard, repr=False)


class TargetDoor:
    """One for a proxy; it has no state."""

    def __init__(self, config: Target) -> None:
        self._base = config.base
        self._guard = config.guard
        self._guarded = bool(config.headers) or config.guard.required
        fields = [(name.encode("ascii"), value.encode("latin-1")) for name, value in config.headers]
        self._instead = Instead(
            frozenset(name.lower() for name, _ in fields),
            tuple(b"%b: %b" % one for one in fields),
            tuple(b"%b: %b" % (name, masked_credential(value)) for name, value in fields),
        )

    def route(self, head: RequestHead, target: bytes) -> Route:
        """The route of any request."""
        secret, instead = b"", self._instead
        if self._guard.secrets:
            opened = SECRET_PATH.fullmatch(target)
            if opened is not None and (self._guarded or self._guard.opened_by_path(unquote_to_bytes(opened[1]))):
                secret, target = unquote_to_bytes(opened[1]), opened[2]
            instead = instead._replace(names=instead.names | self._guard.keys(head))
        base = self._base
        provider = _BY_HOST.get(base.authority.host) or bare_provider(head, target) or "openai"
        target = base.prefix + target
        return Route.at(
            base,
            target,
            provider=provider,
            why="single target",
            confidential=CONFIDENTIAL.fullmatch(target) is not None,
            door=self if self._guarded else None,
            secret=secret,
            instead=instead if instead.names else None,
        )

    def refusal(self, client: ClientConnection, request: Request) -> str:
        """Why this caller is not served; empty where it is."""
        return self._guard.refusal(request.prepared.head, request.prepared.route.secret, client.caller)

    def relay(self, core: Core, client: ClientConnection, request: Request) -> Relay:
        return Relay(core, client, request)
