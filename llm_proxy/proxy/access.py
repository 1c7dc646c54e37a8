"""Who may use the proxy at all: rules on Host, Origin and Sec-Fetch-Site that keep web pages out. Pure.

A page in the user's browser can reach a loopback port. DNS rebinding shows in Host alone, cross-site requests in
Origin or Sec-Fetch-Site. Sec-Fetch-Mode decides nothing: Node's fetch sends it too.
"""

from __future__ import annotations

from collections.abc import Iterable

from llm_proxy.proxy.authority import BadAuthority, parse_authority
from llm_proxy.wire.head import RequestHead, Role

_REMEMBERED = 256


class Access:
    """The gate in front of every route. `hosts` and `origins` are what the operator accepts besides loopback."""

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower() for origin in origins)
        self._good_hosts: set[bytes] = set()

    def refusal(self, head: RequestHead, *, trusted: bool = False, any_host: bool = False) -> str | None:
        """Why a request is not served, in words for whoever sent it; None: it is.

        `trusted`: it brings a token, which no page has that re-points its own name at us; then any Host is good.
        `any_host`: so it is for programs, but a page must not be of that name.
        """
        good = trusted or head.host in self._good_hosts or self.is_good_host(head.host)
        if not good and not any_host:
            return (
                f"Host {head.host.decode('latin-1')!r} is neither a loopback name nor listed in [listen] hosts; "
                "requests of web pages for other names are not served"
            )
        across: bytes | None = None
        listed = False
        for _, field in head.special:
            if field.role == Role.ORIGIN:
                origin = field.value.lower()
                if origin.decode("latin-1") in self._origins:
                    listed = True  # another site by nature, and so its Sec-Fetch-Site says
                # `null`, other ports of this machine, and names that somebody points at us: other sites
                elif not good or origin != b"http://" + head.host.lower():
                    return (
                        f"Origin {field.value.decode('latin-1')!r} is another site's page; list it in [listen] origins "
                        "if it is yours"
                    )
            elif field.role == Role.FETCH_SITE and field.value not in (b"none", b"same-origin"):
                across = field.value
        if across is not None and not listed:
            return f"Sec-Fetch-Site {across.decode('latin-1')!r}: requests across sites are not served"
        return None

    def is_good_host(self, value: bytes) -> bool:
        """Any loopback name with any port, or a configured host."""
        try:
            authority = parse_authority(value.decode("ascii"))
        except (BadAuthority, UnicodeDecodeError):
            return False
        if not authority.is_loopback and authority.host not in self._hosts and str(authority) not in self._hosts:
            return False
        if len(self._good_hosts) < _REMEMBERED:
            self._good_hosts.add(value)
        return True
