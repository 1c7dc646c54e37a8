"""A provider key's own base URL: how it must be written, and where it may lead. Pure.

`https` to any public host; what else the operator has listed, with the scheme that is listed. A host's addresses are
judged once more by the proxy when it connects, since a name tells nothing of them. Leaves out requests.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from llm_proxy.gateway.facts import Provider
from llm_proxy.wire import aws_regions

LONGEST = 2048  # characters
HOSTS: Final = {
    Provider.OPENAI: "api.openai.com",
    Provider.ANTHROPIC: "api.anthropic.com",
    Provider.GEMINI: "generativelanguage.googleapis.com",
}
# What SDKs' base URLs end in, and our paths begin with.
_API_ENDS: Final = {
    Provider.OPENAI: ("/v1",),
    Provider.ANTHROPIC: ("/v1",),
    Provider.GEMINI: ("/v1beta/openai", "/v1beta"),
}
_PORTS: Final = {"https": 443, "http": 80}
_SHAPE = re.compile(r"(https?)://([^/?#\\]+)(/[^?#]*)?", re.ASCII | re.IGNORECASE)
_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # some resolvers would read it as an address
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_SEGMENTS = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)*")  # RFC 3986 section 3.3, none empty
_DOTS = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)
# RFC 6761, RFC 6762, RFC 8375, and ICANN's name for private use: never on the internet.
_PRIVATE_NAMES: Final = ("localhost", "local", "internal", "home.arpa")


class BadBaseUrl(Exception):
    """It is not written as it must be, or leads where nobody may go. The message is for whoever gave it."""


class Base(NamedTuple):
    """`authority` is `host[:port]` in lower case; `prefix` comes before API paths: "" or `/…`, no slash at its end."""

    scheme: str
    authority: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


@lru_cache(maxsize=1024)
def parse(url: str) -> Base:
    """One strict reading, no second anywhere. Raises BadBaseUrl."""
    if len(url) > LONGEST:
        raise BadBaseUrl(f"a base URL has at most {LONGEST} characters, not {len(url)}")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise BadBaseUrl("a base URL is printable ASCII without spaces")
    for sign, what in (("?", "query"), ("#", "fragment")):
        if sign in url:
            raise BadBaseUrl(f"a base URL has no {what}: {sign!r} is not allowed in it")
    match = _SHAPE.fullmatch(url)
    if match is None:
        raise BadBaseUrl("a base URL is written https://host[:port][/path]")
    scheme, authority, path = match[1].lower(), match[2].lower(), (match[3] or "").rstrip("/")
    if "@" in authority:
        raise BadBaseUrl("a base URL has no user or password: '@' is not allowed before its path")
    if _SEGMENTS.fullmatch(path) is None or any(_DOTS.fullmatch(part) for part in path.split("/")):
        raise BadBaseUrl("the path of a base URL has plain segments: none empty, none '.' or '..', well encoded")
    return Base(scheme, _authority(authority), path)


def _authority(text: str) -> str:
    host, port = _split(text)
    if port is not None and (_PORT.fullmatch(port) is None or int(port) > 65535):
        raise BadBaseUrl(f"the port of a base URL is 1 to 65535, not {port[:20]!r}")
    if host.startswith("["):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise BadBaseUrl(f"{host[:60]} is no IPv6 address") from None
        if address.scope_id is not None:
            raise BadBaseUrl("the address of a base URL has no zone")
    elif _NAME.fullmatch(host) is None or (_NUMBER.fullmatch(host) is not None and _v4(host) is None):
        raise BadBaseUrl(f"{host[:60]!r} is neither the name of a host nor an address in plain form")
    return text


def _split(authority: str) -> tuple[str, str | None]:
    """The host, an IPv6 address in brackets, and the port's digits."""
    if authority.startswith("["):
        inner, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadBaseUrl("an IPv6 address stands in brackets, with at most a port behind them")
        return inner + bracket, rest[1:] if rest else None
    host, colon, port = authority.partition(":")
    return host, port if colon else None


def _v4(host: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        return None


# --- where it may lead


def checked(url: str, provider: Provider, *, allow: Iterable[str], ourselves: str = "") -> Base:
    """A base URL as it is kept for a key: read, judged, and without the API's own part of the path. Raises BadBaseUrl.

    `allow` is the operator's list of `scheme://host[:port]`, `ourselves` the URL that clients reach the gateway at.
    """
    base = parse(url)
    judge(base, allow, ourselves)
    return without_api(base, provider)


def judge(base: Base, allow: Iterable[str], ourselves: str = "") -> None:
    """Raises BadBaseUrl."""
    if ourselves and _effective(base) == _effective(parse(ourselves)):
        raise BadBaseUrl(f"{base.authority} is this gateway itself")
    listed = {authority: scheme for scheme, authority in map(_listed, allow)}.get(base.authority)
    if listed is not None:
        if listed != base.scheme:
            raise BadBaseUrl(f"{base.authority} is allowed by {listed} only; write {listed}://{base.authority}")
        return
    remedy = f"the operator may list it: {to_allow(base)}"
    if not _is_public(base.authority):
        raise BadBaseUrl(f"{base.authority} is no host on the public internet; {remedy}")
    if base.scheme != "https":
        raise BadBaseUrl(f"a base URL is https, so that the key is not sent in clear; {remedy}")


def to_allow(base: Base) -> str:
    """What an operator does so that a base URL may be called."""
    origin = f"{base.scheme}://{base.authority}"
    return (
        f'allow = ["{origin}"] under [upstreams] in ~/.config/llm-proxy/config.toml, '
        f"or LLM_PROXY_UPSTREAMS_ALLOW={origin} in the gateway's environment, and a restart of the gateway"
    )


def without_api(base: Base, provider: Provider) -> Base:
    """`https://host/v1` is what SDKs are given; our paths have the `/v1` themselves."""
    for end in _API_ENDS.get(provider, ()):
        if base.prefix.endswith(end):
            return base._replace(prefix=base.prefix.removesuffix(end))
    return base


def base_of(provider: Provider, base_url: str, region: str, bases: Iterable[tuple[str, str]]) -> Base:
    """Where calls of a key go: its own base URL, else what the operator has set for its provider, else its host.

    Raises BadBaseUrl; KeyError for a region of Bedrock that AWS is not known to have.
    """
    url = base_url or dict(bases).get(provider, "")
    if url:
        return without_api(parse(url), provider)
    return Base("https", aws_regions.runtime_host(region) if provider is Provider.BEDROCK else HOSTS[provider])


def _listed(entry: str) -> tuple[str, str]:
    scheme, _, authority = entry.rpartition("://")
    return scheme or "https", authority.rstrip("/").lower()


def _effective(base: Base) -> tuple[str, int]:
    host, port = _split(base.authority)
    return host, int(port or _PORTS[base.scheme])


def _is_public(authority: str) -> bool:
    """By what is written. A name must have a dot, and an end that the internet has."""
    host, _ = _split(authority)
    if host.startswith("["):
        # Only 2000::/3 is the internet's, and not what is translated or tunnelled into it.
        six = ipaddress.IPv6Address(host[1:-1])
        return six.is_global and int(six) >> 125 == 1 and not (six.sixtofour or six.teredo)
    four = _v4(host)
    if four is not None:
        return four.is_global and not four.is_multicast
    return "." in host and not any(host == name or host.endswith(f".{name}") for name in _PRIVATE_NAMES)
