"""`listen.token` before routes that pass a client's own credentials through, and before our own figures.

Where other machines can reach the port, nothing of that is for whoever comes by: without a token it would be a relay
into the world. The token is for us alone, so no upstream and no record sees it, also where it is not asked for. Leaves
out the doors that spend the user's credentials, which ask for themselves (`callers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.relay import Relay
from llm_proxy.proxy.router import SECRET_PATH
from llm_proxy.wire.hop import Instead

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.requests import Request
    from llm_proxy.wire.head import RequestHead

_FIGURES = frozenset({b"/metrics", b"/llm-proxy/metrics"})


class Remote:
    """One for a proxy; it has no state."""

    def __init__(self, token: str, *, asked: bool) -> None:
        """`asked`: who does not bring it is not served. An empty token nobody can bring."""
        self.asked = asked
        self._guard = Guard((token,) if token else (), required=True)

    def is_brought(self, head: RequestHead, target: bytes) -> bool:
        return self._guard.opened_by(head, _cut(target)[0])

    def refusal_of_own(self, head: RequestHead, target: bytes) -> str | None:
        """Why a page of ours is not shown; `/health` is for everybody, and the explorer has a guard of its own."""
        if not self.asked or target.partition(b"?")[0] not in _FIGURES or self.is_brought(head, target):
            return None
        return ASKED

    def without(self, head: RequestHead, target: bytes) -> tuple[bytes, bytes, Instead | None]:
        """What an upstream may see: the target, the secret that stood before it, and fields that it does not get."""
        secret, inner = _cut(target)
        if secret and not (self.asked or self._guard.opened_by_path(secret)):
            secret, inner = b"", target
        fields = self._guard.keys(head)
        return inner, secret, Instead(fields) if fields else None

    # -- as a door ----------------------------------------------------------------------------------------------

    def refusal(self, client: ClientConnection, request: Request) -> str:
        """Why this caller is not served; empty where it is."""
        prepared = request.prepared
        return "" if self._guard.opened_by(prepared.head, prepared.route.secret) else ASKED

    def relay(self, core: Core, client: ClientConnection, request: Request) -> Relay:
        return Relay(core, client, request)


ASKED = (
    "the token that listen.token names is asked for: as X-LLM-Proxy-Token, as /secret/{token} before the path, or, "
    "where they are free, as a bearer token or as x-api-key"
)


def _cut(target: bytes) -> tuple[bytes, bytes]:
    """The secret in a path, empty where there is none, and the target behind it."""
    opened = SECRET_PATH.fullmatch(target)
    return (b"", target) if opened is None else (unquote_to_bytes(opened[1]), opened[2])
