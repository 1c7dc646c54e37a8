"""Who comes to a page, and from where: the session's cookie, and what keeps other sites' pages out.

The cookie (HttpOnly, SameSite=Strict) is a token of its own kind, good for pages alone: no route of the API takes it,
so no form of another site can ask one. A form is taken if its page was ours: by `Origin`, which every browser sends
with it, by `Sec-Fetch-Site` where the browser has it, and by a token that belongs to the session. Whoever has not
signed in has no session to abuse; the first two keep others from signing somebody in. What comes by a name that is not
ours is turned away, or a page elsewhere could make its own name lead to us (DNS rebinding). Leaves out passwords.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from llm_proxy.gateway.options import Options
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.session_tokens import SESSION

COOKIE: Final = "llm_proxy_team"
PLACE: Final = "/llm-proxy"  # the explorer, which is below it too, asks us who has the cookie
SCHEME: Final = "X-LLM-Proxy-Scheme"  # http or https: how it came to the proxy; nobody else can send it

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?", re.ASCII)
_TWO: Final = Refusal(
    400,
    "two_sessions",
    "your browser brings two sessions of this gateway, so another page at this host has set one: "
    "delete the cookies of this site, then sign in again",
)
_ELSEWHERE: Final = Refusal(403, "other_site", "this came from another site's page; open ours and try there")


def origins(request: web.Request, options: Options, *, trusted: bool) -> tuple[str, ...]:
    """Where the browser may have this page from; the first is where it is. `trusted`: a proxy of ours came before."""
    host = request.headers.get("Host", "").lower()
    public = urlsplit(options.public_url.lower())
    scheme = request.headers.get(SCHEME, "http")
    forwarded = request.headers.get("X-Forwarded-Proto", "")
    if trusted and forwarded in ("http", "https"):
        scheme = forwarded
    if host == public.netloc:
        scheme = public.scheme
    own = f"{scheme}://{host}"
    return (own, f"{public.scheme}://{public.netloc}") if public.netloc else (own,)


def refuse_name(request: web.Request, options: Options) -> None:
    """Raises Refusal 403 where the name in `Host` is neither this machine's, nor an address, nor configured."""
    host = request.headers.get("Host", "").lower()
    match = _HOST.fullmatch(host)
    name = match[1].strip("[]") if match is not None else ""
    listed = {urlsplit(options.public_url.lower()).hostname, *options.hosts}
    if name and (name == "localhost" or name in listed or host in listed or _is_address(name)):
        return
    raise Refusal(
        403,
        "unknown_host",
        f"{host[:100]!r} is not known as a name of this gateway: set public_url under [gateway] to its address, "
        "or list the name in hosts under [listen]",
    )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def came_across(request: web.Request) -> bool:
    """Whether another site's page leads a person here, by a link say: the browser then sends no cookie.

    Raises Refusal 403 for anything else that another site's page asks for.
    """
    sites = request.headers.getall("Sec-Fetch-Site", ())
    if all(site in ("none", "same-origin") for site in sites):
        return False
    led = request.headers.get("Sec-Fetch-Mode") == "navigate" and request.headers.get("Sec-Fetch-Dest") == "document"
    if request.method in ("GET", "HEAD") and led:
        return True
    raise _ELSEWHERE


def refuse_form(request: web.Request, ours: Iterable[str], expected: str, brought: str) -> None:
    """Raises Refusal 403 for a form that is not of a page of ours, or of another session's."""
    if request.headers.getall("Origin", ()) not in [[one] for one in ours]:
        raise _ELSEWHERE
    if not hmac.compare_digest(brought.encode("utf-8", "surrogateescape"), expected.encode()):
        raise Refusal(403, "stale_form", "this page is of another session than yours is now; load it anew")


class Forms:
    """Makes the token that forms of a session bring."""

    def __init__(self, secret: str) -> None:
        self._key = hmac.digest(secret.encode(), b"llm-proxy gateway forms", "sha256")

    def token(self, session_id: str | None) -> str:
        return hmac.new(self._key, (session_id or "").encode(), sha256).hexdigest()


def brought(request: web.Request) -> str:
    """The session's cookie, "" where there is none.

    Raises Refusal 400 for two that differ: a page at another port of this host has set one, and which is whose nobody
    can say.
    """
    pairs = (pair.strip().partition("=") for line in request.headers.getall("Cookie", ()) for pair in line.split(";"))
    found = {value for name, _, value in pairs if name == COOKIE and value}
    if len(found) > 1:
        raise _TWO
    return found.pop() if found else ""


def cookie(value: str, *, secure: bool) -> str:
    """The line that sets it; an empty value takes it away."""
    age = int(SESSION.total_seconds()) if value else 0
    return f"{COOKIE}={value}; Max-Age={age}; Path={PLACE}; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")
