"""Which host a request names, and whether it may be reached: one strict parser and one address policy. Pure.

The parsed value alone serves policy, TLS name, Host field, log folder and connection, so no second reading of the
same text can disagree with the first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
# A last label of digits or 0x… would be read as a number by some resolvers: only a canonical dotted quad is one.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


class BadAuthority(Exception):
    """A host[:port] that is not written the one accepted way; the message says what is wrong."""


class Denied(Exception):
    """The upstream policy forbids an address; the message says why and how to allow it."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A host, lower-case, and its port (None: the scheme's own). `address` is set where the host is a literal."""

    host: str
    port: int | None
    address: Address | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if isinstance(self.address, ipaddress.IPv6Address) else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is loopback by what is written, exactly: `localhost.evil.com` is not."""
        return self.host == "localhost" if self.address is None else is_loopback(self.address)


@lru_cache(maxsize=256)
def parse_authority(text: str) -> Authority:
    """Read `host`, `host:port`, `[v6]` or `[v6]:port`. Raises BadAuthority."""
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadAuthority(f"malformed IPv6 literal in {text!r}")
        host, port_text = inner, rest[1:] if rest else None
        address: Address | None = _canonical_v6(inner)
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else None
        host = host.lower()
        address = _canonical_v4(host)
    if port_text is None:
        return Authority(host.lower(), None, address)
    if _PORT.fullmatch(port_text) is None or int(port_text) > 65535:
        raise BadAuthority(f"port must be 1-65535, got {port_text!r}")
    return Authority(host.lower(), int(port_text), address)


def _canonical_v6(text: str) -> ipaddress.IPv6Address:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise BadAuthority(f"not an IPv6 address: {text!r}") from None
    if address.scope_id is not None:
        raise BadAuthority(f"zone ids are not accepted: {text!r}")
    return address


def _canonical_v4(host: str) -> ipaddress.IPv4Address | None:
    if len(host) > 253 or _NAME.fullmatch(host) is None:
        raise BadAuthority(f"not a host name: {host[:260]!r}")
    if _NUMERIC_END.fullmatch(host) is None:
        return None
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        raise BadAuthority(f"not a canonical IPv4 address: {host!r}") from None


_LOOPBACK_4, _LOOPBACK_6 = ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Address("::1")
# Ranges that lead inside somebody's network, or to another address than they say
# (RFC 6890, RFC 3056, RFC 4380, RFC 9637).
_INSIDE_V4 = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
    "192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
)
# IPv6 hosts on the internet are in 2000::/3; the rest holds loopback, private, link-local, mapped and translated ones.
_INSIDE_V6 = "::/3 4000::/2 8000::/1 2001::/23 2001:db8::/32 2002::/16 3fff::/20"
_INSIDE = [ipaddress.ip_network(text) for text in f"{_INSIDE_V4} {_INSIDE_V6}".split()]


def is_loopback(address: Address) -> bool:
    """127.0.0.0/8 or ::1. Not a mapped `::ffff:127.0.0.1`, whatever this Python's `ipaddress` says of it."""
    return address in _LOOPBACK_4 or address == _LOOPBACK_6


def is_public(address: Address) -> bool:
    """Whether an address is an ordinary host on the internet."""
    return not any(address in net for net in _INSIDE)


def check_address(address: Address, authority: Authority) -> None:
    """Policy for one resolved address of a host that is not listed. Raises Denied.

    Loopback is for hosts that are written as loopback: a public name that resolves to it is a trap.
    """
    if is_loopback(address):
        if authority.is_loopback:
            return
        what = "a loopback address"
    elif is_public(address):
        return
    else:
        what = "not a public address"
    resolved = "" if address == authority.address else f"{address}, "
    raise Denied(
        f"{authority} is {resolved}{what}; to allow it set allow = "
        f'["https://{authority}"] (or "http://{authority}") under [upstreams] in the configuration'
    )


@dataclass(frozen=True, slots=True)
class Base:
    """Where requests go that name no host: `prefix` stands before their paths, empty or `/…` without a last slash."""

    scheme: str
    authority: Authority
    prefix: bytes = b""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix.decode('ascii')}"

    @property
    def port(self) -> int:
        return self.authority.port or (443 if self.scheme == "https" else 80)


_BASE = re.compile(r"(https?)://([^/?#@\s]+)((?:/[!-~]*)?)", re.IGNORECASE)


def parse_base(url: str) -> Base:
    """Read `http://host[:port][/path]` or the same with https. Raises BadAuthority."""
    match = _BASE.fullmatch(url)
    if match is None or "?" in match[3] or "#" in match[3]:
        raise BadAuthority("a URL such as https://api.openai.com/v1 is wanted, with no query, fragment or password")
    return Base(match[1].lower(), parse_authority(match[2]), match[3].rstrip("/").encode())


class Allowed:
    """The operator's `[upstreams] allow` list: `scheme://host[:port]`, scheme optional (https)."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._schemes: dict[str, str] = {}
        for entry in entries:
            scheme, found, rest = entry.rpartition("://")
            if scheme not in ("", "http", "https") or (found and not scheme):
                raise BadAuthority(f"[upstreams] allow: scheme must be http or https, got {entry!r}")
            self._schemes[str(parse_authority(rest.rstrip("/")))] = scheme or "https"

    def scheme(self, authority: Authority) -> str | None:
        """The scheme to use where the host is listed; None where it is not."""
        return self._schemes.get(str(authority))
