"""What the door of named models asks of every request: a token, pages' origins (CORS), how many calls a minute.

Leaves out the rules that hold without it (`access`), whose program is calling (`callers`) and where calls go
(`models`).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable

from llm_proxy.proxy import answers
from llm_proxy.wire.head import RequestHead, Role

ANY = "*"

_METHODS = b"GET, POST, OPTIONS"
_HEADERS = b"Content-Type, Authorization, X-API-Key, X-Session-ID, Anthropic-Version, Anthropic-Beta"
_PREFLIGHT_HOLDS = 600  # seconds
_CORS_OF_UPSTREAM = b"access-control-"


class Front:
    """One for a proxy. Its state is how many calls are still free."""

    def __init__(
        self, *, token: str = "", header: str = "authorization", origins: Iterable[str] = (), rate: int = 0
    ) -> None:
        """`token`: what every request has to bring, in the field `header` or where SDKs put a key; empty: nothing.
        `origins`: pages that may call, "*" for any where there is a token. `rate`: calls a minute, 0 for any number.
        """
        self.token = token.encode("latin-1")
        self.header = header.lower().encode("ascii")
        self.shown = header
        listed = frozenset(origin.lower() for origin in origins)
        self._any = ANY in listed and bool(token)  # else any page could spend the user's credentials
        self.origins = listed if token else listed - {ANY}
        self._rate = rate
        self._free = float(rate)
        self._counted_at = time.monotonic()

    # -- the token ----------------------------------------------------------------------------------------------

    def decides(self, head: RequestHead, target: bytes) -> bool:
        """Whether the token, or a preflight's own rules, stand in the place of those on Host and Origin."""
        return is_preflight(head) or (bool(self.token) and not is_open(target))

    def keys(self, head: RequestHead) -> frozenset[bytes]:
        """The fields in which the token came: no upstream may see those."""
        if not self.token:
            return frozenset()
        return frozenset(name for name, value in self._presented(head) if hmac.compare_digest(value, self.token))

    def answer(self, head: RequestHead, target: bytes, provider: str) -> tuple[str, bytes] | None:
        """The answer to whoever may not pass, or only asks whether it may, and the code it counts under; else None."""
        if is_preflight(head):
            return "preflight", _preflight(head, self.cors(head))
        if not self.token or is_open(target) or self.keys(head):
            return None
        message = f"the token is asked for, in the field {self.shown} or as a bearer token"
        answer = answers.error(401, "unauthorized", message, provider=provider, close=True)
        return "unauthorized", dressed(answer, self.cors(head) + b"WWW-Authenticate: Bearer\r\n")

    def _presented(self, head: RequestHead) -> list[tuple[bytes, bytes]]:
        """Fields that may hold the token, and what they hold of it."""
        found = []
        for field in head.fields:
            if field.name in (self.header, b"authorization", b"x-api-key"):
                scheme, _, rest = field.value.partition(b" ")
                found.append((field.name, rest.strip(b" \t") if scheme.lower() == b"bearer" else field.value))
        return found

    # -- pages --------------------------------------------------------------------------------------------------

    def is_page(self, head: RequestHead) -> bool:
        """Whether it comes from a page that is listed."""
        return bool(self._origin(head))

    def cors(self, head: RequestHead) -> bytes:
        """Lines for the answer; a page that is not listed gets none, and so nothing to read."""
        if not self.origins:
            return b""
        origin = self._origin(head)
        return b"Access-Control-Allow-Origin: %b\r\nVary: Origin\r\n" % origin if origin else b"Vary: Origin\r\n"

    def _origin(self, head: RequestHead) -> bytes:
        for _, field in head.special:
            if field.role == Role.ORIGIN:
                listed = self._any or field.value.lower().decode("latin-1") in self.origins
                return field.value if listed else b""
        return b""

    # -- the rate -----------------------------------------------------------------------------------------------

    def wait(self) -> float:
        """0 where one more call may go on now, and then it counts; else the seconds until one may."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self._free = min(float(self._rate), self._free + (now - self._counted_at) * self._rate / 60)
        self._counted_at = now
        if self._free < 1:
            return (1 - self._free) * 60 / self._rate
        self._free -= 1
        return 0.0


def is_preflight(head: RequestHead) -> bool:
    return head.method == b"OPTIONS" and head.get(b"access-control-request-method") is not None


def dressed(answer: bytes, lines: bytes) -> bytes:
    """An answer, or its head, with lines of ours behind its status line; an upstream's own words on CORS give way."""
    if not lines:
        return answer
    end = answer.index(b"\r\n\r\n")
    start, *fields = answer[:end].split(b"\r\n")
    kept = [line + b"\r\n" for line in fields if not line.lower().startswith(_CORS_OF_UPSTREAM)]
    return b"".join((start, b"\r\n", lines, *kept, answer[end + 2 :]))


def _preflight(head: RequestHead, lines: bytes) -> bytes:
    if lines.startswith(b"Access-Control"):
        asked = head.get(b"access-control-request-headers") or _HEADERS
        lines += b"Access-Control-Allow-Methods: %b\r\nAccess-Control-Allow-Headers: %b\r\n" % (_METHODS, asked)
        lines += b"Access-Control-Max-Age: %d\r\n" % _PREFLIGHT_HOLDS
    return b"HTTP/1.1 204 No Content\r\n" + lines + b"\r\n"


def is_open(target: bytes) -> bool:
    """Answered to everybody: `/health`, and the explorer, which has a guard of its own."""
    path = target.partition(b"?")[0]
    if path == b"/llm-proxy/metrics":
        return False
    return path == b"/health" or path.startswith((b"/health/", b"/llm-proxy/")) or path == b"/llm-proxy"
