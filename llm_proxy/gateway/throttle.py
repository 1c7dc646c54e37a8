"""How often passwords may be guessed: slower and slower by account, by address, and by the two together.

Each is a bucket that fills with attempts and drains with time; a full one says how long to wait. An attempt is charged
before it is judged, so a thousand at once are no way around, and given back if it was none. Nobody can lock another
out: who has signed in from an address before is, there, held only to what that address does to this account. Kept in
memory, bounded, by each process for itself. Leaves out what is behind it.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from ipaddress import IPv6Address, ip_address
from typing import Final

from llm_proxy.gateway.refusals import Refusal

# (attempts at once, seconds until one more)
PAIR: Final = (8, 30.0)  # of one address at one account
ADDRESS: Final = (40, 10.0)  # of one address, at whichever account
ACCOUNT: Final = (100, 36.0)  # at one account, by strangers of whichever address
SIGNUPS: Final = (50, 20.0)  # of one address
MOST: Final = 20_000  # buckets of each kind; the one longest untouched goes first


class Buckets:
    """Of one kind, by name. A full bucket drains one attempt in `every` seconds."""

    def __init__(self, rule: tuple[int, float], clock: Callable[[], float]) -> None:
        self._at_once, self._every = rule
        self._clock = clock
        self._empty_at: OrderedDict[Hashable, float] = OrderedDict()  # when the bucket will have drained

    def __len__(self) -> int:
        return len(self._empty_at)

    def wait(self, name: Hashable) -> float:
        """Seconds until there is room for one more."""
        fill = max(0.0, self._empty_at.get(name, 0.0) - self._clock())
        return max(0.0, fill - (self._at_once - 1) * self._every)

    def charge(self, name: Hashable) -> None:
        self._empty_at[name] = max(self._empty_at.get(name, 0.0), self._clock()) + self._every
        self._empty_at.move_to_end(name)
        if len(self._empty_at) > MOST:
            self._empty_at.popitem(last=False)

    def give_back(self, name: Hashable) -> None:
        if name in self._empty_at:
            self._empty_at[name] -= self._every

    def empty(self, name: Hashable) -> None:
        self._empty_at.pop(name, None)


class Throttle:
    """For those who give a password, and for those who sign up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pairs = Buckets(PAIR, clock)
        self._addresses = Buckets(ADDRESS, clock)
        self._accounts = Buckets(ACCOUNT, clock)
        self._signups = Buckets(SIGNUPS, clock)
        self._at_home: OrderedDict[tuple[str, str], None] = OrderedDict()  # who has signed in from where

    def enter(self, account: str, address: str) -> None:
        """Charges one attempt. Raises Refusal 429, which says how long to wait."""
        place = network(address)
        pair = (account, place)
        wait = self._pairs.wait(pair)
        if pair not in self._at_home:
            wait = max(wait, self._addresses.wait(place), self._accounts.wait(account))
        _refuse(wait)
        self._pairs.charge(pair)
        self._addresses.charge(place)
        self._accounts.charge(account)

    def give_back(self, account: str, address: str) -> None:
        """The attempt told its maker nothing."""
        place = network(address)
        self._pairs.give_back((account, place))
        self._addresses.give_back(place)
        self._accounts.give_back(account)

    def succeeded(self, account: str, address: str) -> None:
        """The attempt was the right password."""
        self.give_back(account, address)
        pair = (account, network(address))
        self._pairs.empty(pair)
        self._at_home[pair] = None
        self._at_home.move_to_end(pair)
        if len(self._at_home) > MOST:
            self._at_home.popitem(last=False)

    def sign_up(self, address: str) -> None:
        """Charges one sign-up. Raises Refusal 429."""
        place = network(address)
        _refuse(self._signups.wait(place))
        self._signups.charge(place)


def network(address: str) -> str:
    """What one person has of addresses: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        number = ip_address(address)
    except ValueError:
        return address
    if isinstance(number, IPv6Address):
        mapped = number.ipv4_mapped
        return str(mapped) if mapped else f"{IPv6Address(int(number) >> 64 << 64)}/64"
    return str(number)


def _refuse(wait: float) -> None:
    if wait > 0:
        seconds = math.ceil(wait)
        words = f"too many attempts; try again in {seconds} s"
        raise Refusal(429, "too_many_attempts", words, headers={"Retry-After": str(seconds)})
