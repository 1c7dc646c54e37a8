"""What providers say of their rate limits and plans, as gauges. Leaves out which header fields those are (`dialects`).

Names and values are an upstream's, so both are read strictly and their number is bounded. Once a limit has been reset,
all of it is there again, by what "reset" means to the providers; nobody need have called meanwhile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from llm_proxy.wire.exposition import Sample, family

MOST = 300
# What a field is called, where the names of limit and property stand in it.
_FIELDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"anthropic-ratelimit-(?P<quota>[a-z0-9-]{1,40}?)-(?P<what>limit|remaining|reset|utilization)",
        r"x-ratelimit-(?P<what>limit|remaining|reset)-(?P<quota>[a-z0-9-]{1,40})",
        r"x-(?P<quota>codex-(?:primary|secondary))-(?P<what>used-percent|reset-after-seconds|reset-at)",
    )
)
# Of a plan, whatever model is asked; other limits are a model's.
_OF_ACCOUNT = ("unified", "codex")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_DURATION = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?",
    re.ASCII,
)
_UNITS = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_EPOCHS = 1e9  # seconds; a smaller number is counted from now


class Key(NamedTuple):
    """`model` is empty where the limit is the account's."""

    provider: str
    model: str
    quota: str


@dataclass(slots=True)
class Quota:
    """The last that was said of one limit; None: nothing. `used` is a part of 1, `reset` seconds since 1970."""

    limit: float | None = None
    remaining: float | None = None
    used: float | None = None
    reset: float | None = None

    def at(self, now: float) -> Quota:
        """What is left of it at that time."""
        used = self.used
        if used is None and self.limit and self.remaining is not None:
            used = max(0.0, 1 - self.remaining / self.limit)
        if self.reset is None or now < self.reset:
            return Quota(self.limit, self.remaining, used, self.reset)
        full = self.limit if self.remaining is not None and self.limit is not None else None
        return Quota(self.limit, full, None if used is None else 0.0, self.reset)


class Quotas:
    """All limits that were heard of since this keeper started."""

    def __init__(self) -> None:
        self._known: dict[Key, Quota] = {}

    def take(self, provider: str, model: str, fields: Iterable[tuple[str, str]], at: float) -> None:
        """The rate-limit fields of one response: (lower-case name, value), and when it came."""
        said: dict[Key, Quota] = {}
        for name, value in fields:
            found = next((match for pattern in _FIELDS if (match := pattern.fullmatch(name))), None)
            if found is None:
                continue
            attribute, read = _PROPERTIES[found["what"]]
            number = read(value.strip(), at)
            if number is not None:
                of_account = found["quota"].startswith(_OF_ACCOUNT)
                key = Key(provider, "" if of_account else model, found["quota"])
                setattr(said.setdefault(key, Quota()), attribute, number)
        for key, quota in said.items():
            if key in self._known or len(self._known) < MOST:
                self._known[key] = quota

    def next_reset(self, now: float) -> float:
        """When the gauges change by themselves; infinity: they do not."""
        resets = (quota.reset for quota in self._known.values() if quota.reset is not None)
        return min((reset for reset in resets if reset > now), default=math.inf)

    def lines(self, now: float) -> Iterator[str]:
        known = [(key, quota.at(now)) for key, quota in sorted(self._known.items())]
        for name, text, value in _GAUGES:
            samples = (Sample(key._asdict(), told) for key, quota in known if (told := value(quota)) is not None)
            yield from family(name, "gauge", text, samples)


_GAUGES: tuple[tuple[str, str, Callable[[Quota], float | None]], ...] = (
    ("llm_proxy_quota_limit", "The provider's limit, in what it counts.", lambda quota: quota.limit),
    ("llm_proxy_quota_remaining", "What is left of it, as last told.", lambda quota: quota.remaining),
    ("llm_proxy_quota_used_ratio", "The part of it that is used up, 0 to 1.", lambda quota: quota.used),
    ("llm_proxy_quota_reset_timestamp_seconds", "When all of it is there again.", lambda quota: quota.reset),
)


def _number(text: str, at: float) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _percent(text: str, at: float) -> float | None:
    number = _number(text, at)
    return None if number is None else number / 100


def _after(text: str, at: float) -> float | None:
    number = _number(text, at)
    return None if number is None else at + number


def _reset(text: str, at: float) -> float | None:
    """A time (RFC 3339, or seconds since 1970), or a duration from now on: seconds, or as in `6m0.5s`."""
    number = _number(text, at)
    if number is not None:
        return number if number > _EPOCHS else at + number
    if text and (match := _DURATION.fullmatch(text)):
        return at + sum(unit * float(told) for unit, told in zip(_UNITS, match.groups(), strict=True) if told)
    try:
        moment = datetime.fromisoformat(text)
        return moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


# What is said of a limit: where it is kept, and how it is read.
_PROPERTIES: dict[str, tuple[str, Callable[[str, float], float | None]]] = {
    "limit": ("limit", _number),
    "remaining": ("remaining", _number),
    "utilization": ("used", _number),
    "used-percent": ("used", _percent),
    "reset": ("reset", _reset),
    "reset-at": ("reset", _reset),
    "reset-after-seconds": ("reset", _after),
}
