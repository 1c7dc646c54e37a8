"""Who a call to a provider is for, told to the proxy in header fields that it records and takes away.

Leaves out the proxy's side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import quote

PREFIX: Final = "X-LLM-Proxy-Gateway-"
_PLAIN: Final = "@:/+-_.~"  # beside letters and digits


@dataclass(frozen=True, slots=True)
class Attribution:
    """`attempt` counts the tries of one request from 1; `user` is an address, `key` and `team` are names. "": none."""

    request_id: str
    attempt: int = 1
    user: str = ""
    key: str = ""
    alias: str = ""
    team: str = ""

    def headers(self) -> Iterator[tuple[str, str]]:
        """The fields, percent-encoded ASCII; none for what is empty."""
        yield PREFIX + "Request", _encoded(self.request_id)
        yield PREFIX + "Attempt", str(self.attempt)
        if self.user:
            yield PREFIX + "User", _encoded(self.user)
        if self.key:
            yield PREFIX + "Key", _encoded(self.key)
        if self.alias:
            yield PREFIX + "Alias", _encoded(self.alias)
        if self.team:
            yield PREFIX + "Team", _encoded(self.team)


@lru_cache(maxsize=1024)
def _encoded(text: str) -> str:
    return quote(text, safe=_PLAIN, errors="replace")
