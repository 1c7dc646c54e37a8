"""From the bytes of a request head to everything that follows from them: gate, route, outgoing head, masked head.

A client's heads are alike from one request to the next but for the digits of Content-Length. So what a head leads to
is remembered by its bytes without those digits, and a repeated head costs one look-up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_proxy.proxy.access import Access
from llm_proxy.proxy.front import Front
from llm_proxy.proxy.router import Route, Router
from llm_proxy.wire import hop
from llm_proxy.wire.head import BadHead, RequestHead, parse_request

if TYPE_CHECKING:
    from llm_proxy.proxy.gateway import GatewayDoor
    from llm_proxy.proxy.remote import Remote

REMEMBERED = 64
REMEMBERED_LENGTH = 8192  # bytes of a head; longer ones are parsed each time

_LENGTH_LINE = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ?([0-9]{1,18})\r\n")
_SCHEME = re.compile(rb"[Hh][Tt][Tt][Pp]://([^/?#]*)(.*)", re.DOTALL)


class Forbidden(Exception):
    """The gate turned the request away; the message says why."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A routed request head. The outgoing and the recorded head are in two parts: Content-Length's digits go between.

    `recorded` begins with the route's facts, as the journal's OPEN has them, followed by the masked head.
    `head.length` is that of the first request that looked like this: `Request.length` is what counts.
    """

    head: RequestHead
    route: Route
    websocket: bool
    outgoing: tuple[bytes, bytes]
    recorded: tuple[bytes, bytes]


class Request:
    """One request: what was prepared for its like, its own length in bytes, and its heads with that length in them."""

    __slots__ = ("length", "outgoing", "prepared", "recorded")

    def __init__(self, prepared: Prepared, digits: bytes, length: int) -> None:
        self.prepared = prepared
        self.length = length
        before, after = prepared.outgoing
        self.outgoing = before + digits + after
        before, after = prepared.recorded
        self.recorded = before + digits + after


def origin_form(head: RequestHead) -> bytes:
    """The target as a path. An absolute form names the host instead of Host (RFC 9112 §3.2.2). Raises BadHead."""
    target = head.target
    if target.startswith(b"/"):
        return target
    match = _SCHEME.fullmatch(target)
    if match is None:
        raise BadHead("request target is neither a path nor an http:// URL")
    head.host = match[1]
    return match[2] if match[2].startswith(b"/") else b"/" + match[2]


class Requests:
    """Reads heads. `front`: who has its token need not be judged by Host and Origin. `remote`: by Host."""

    def __init__(
        self, access: Access, router: Router, front: Front | None = None, remote: Remote | None = None
    ) -> None:
        self._access = access
        self._router = router
        self._front = front
        self._remote = remote
        self.gateway: GatewayDoor | None = None
        self._known: dict[bytes, Prepared] = {}

    def known(self, raw: bytes) -> Request | None:
        """The request, where its like has been routed before."""
        match = _LENGTH_LINE.search(raw)
        if match is None:
            prepared = self._known.get(raw)
            # A head whose Content-Length has no digits reads like the key of one that had some: not the same.
            return None if prepared is None or prepared.head.length is not None else Request(prepared, b"", 0)
        start, end = match.span(1)
        prepared = self._known.get(raw[:start] + raw[end:])
        return None if prepared is None else Request(prepared, match[1], int(match[1]))

    def parse(self, raw: bytes) -> tuple[RequestHead, bytes]:
        """Head and origin-form target of a request that may be served. Raises BadHead, Forbidden."""
        head = parse_request(raw)
        target = origin_form(head)
        if self._front is not None and self._front.decides(head, target):
            return head, target
        remote = self._remote
        if self.gateway is not None and self.gateway.takes(head, target):
            refusal = self.gateway.refusal_of_page(self._access, head, target)
        elif self.gateway is not None and self.gateway.leads_people(target):
            refusal = self._access.refusal(head, any_host=True)
        elif remote is None:
            refusal = self._access.refusal(head)
        else:
            refusal = self._access.refusal(head, trusted=remote.is_brought(head, target))
            refusal = refusal or remote.refusal_of_own(head, target)
        if refusal is not None:
            raise Forbidden(refusal)
        return head, target

    def route(self, raw: bytes, head: RequestHead, target: bytes) -> Request:
        """Route a parsed head, and remember what came of it. Raises NoRoute."""
        route = self._router.route(head, target)
        websocket = head.wants_websocket
        instead = route.instead
        if self._front is not None and (token := self._front.keys(head)):  # it is meant for us alone
            instead = (instead or hop.Instead(frozenset()))._replace(
                names=token | (instead.names if instead else token)
            )
        outgoing = hop.request(head, route.target, route.host, upgrade=websocket, instead=instead)
        recorded = head.masked(b"%b %b HTTP/1.%d" % (head.method, route.masked, head.minor))
        if instead is not None:
            recorded = hop.recorded(recorded, instead)
        recorded = route.facts + recorded
        match = _LENGTH_LINE.search(raw)
        digits = match[1] if match is not None else b""
        if match is None and head.length:  # spelled in a way that is not looked for above: this once only
            return Request(Prepared(head, route, websocket, (outgoing, b""), (recorded, b"")), b"", head.length)
        prepared = Prepared(head, route, websocket, _cut(outgoing), _cut(recorded))
        # An upgrade depends on more than the bytes compared, and its like does not come again.
        if len(raw) <= REMEMBERED_LENGTH and not head.upgrade and route.remembered:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            key = raw if match is None else raw[: match.start(1)] + raw[match.end(1) :]
            self._known[key] = prepared
        return Request(prepared, digits, head.length or 0)


def _cut(head: bytes) -> tuple[bytes, bytes]:
    """A head without Content-Length's digits, in two parts."""
    match = _LENGTH_LINE.search(head)
    return (head, b"") if match is None else (head[: match.start(1)], head[match.end(1) :])
