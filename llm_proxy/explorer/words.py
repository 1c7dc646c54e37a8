"""How the explorer writes figures: money, tokens, durations, times, shares. Pure; the same on every page.

Unknown is never 0. Leaves out markup (`render`).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal

from llm_proxy.dialects.digest import Usage
from llm_proxy.web.words import duration, exact, money, share, size, tokens

__all__ = [
    "about",
    "cached_share",
    "client",
    "clock",
    "date_heading",
    "day",
    "duration",
    "exact",
    "full",
    "iso",
    "moment",
    "money",
    "share",
    "short_id",
    "size",
    "speed",
    "tokens",
]


def about(amount: Decimal | None) -> str:
    """An API-equivalent: what a subscription's calls would have cost."""
    return "unpriced" if amount is None else "≈" + money(amount)


def cached_share(usage: Usage | None) -> float | None:
    """Cache read of all that went in, 0 to 1; None where nothing went in."""
    return usage.cache_read / usage.prompt if usage is not None and usage.prompt else None


def speed(usage: Usage | None, ttfb_ms: int | None, total_ms: int | None) -> str:
    """`116 tok/s`: output tokens by the time after the first; "" where that is not known."""
    if usage is None or ttfb_ms is None or total_ms is None or total_ms - ttfb_ms < 1 or not usage.output:
        return ""
    return f"{usage.output * 1000 / (total_ms - ttfb_ms):,.0f} tok/s"


def moment(ns: int | None, zone: tzinfo | None = None) -> datetime | None:
    """Nanoseconds since 1970 as a time of `zone`, None being this machine's."""
    return (
        None
        if ns is None
        else datetime.fromtimestamp(ns // 10**9, UTC).replace(microsecond=ns % 10**9 // 1000).astimezone(zone)
    )


def clock(ns: int | None, zone: tzinfo | None = None, *, seconds: bool = False) -> str:
    """`14:02`, `14:18:04`."""
    told = moment(ns, zone)
    return "" if told is None else told.strftime("%H:%M:%S" if seconds else "%H:%M")


def full(ns: int | None, zone: tzinfo | None = None) -> str:
    """`Fri 20 Nov 2026 14:18:04.217`."""
    told = moment(ns, zone)
    return "" if told is None else f"{told:%a} {told.day} {told:%b %Y %H:%M:%S}.{told.microsecond // 1000:03}"


def iso(ns: int | None) -> str:
    """UTC, to the millisecond, for `<time datetime>` and the API."""
    told = moment(ns, UTC)
    return "" if told is None else told.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def date_heading(ns: int, now: datetime, zone: tzinfo | None = None) -> str:
    """`Today`, `Yesterday`, `Fri 20 Nov`, with the year where it is another."""
    told = moment(ns, zone)
    assert told is not None
    day, today = told.date(), now.astimezone(zone).date()
    if (today - day).days in (0, 1):
        return ("Today", "Yesterday")[(today - day).days]
    return f"{told:%a} {told.day} {told:%b}" + (f" {told:%Y}" if day.year != today.year else "")


def day(iso: str) -> str:
    """`Fri 20 Nov` of `2026-11-20`."""
    told = date.fromisoformat(iso)
    return f"{told:%a} {told.day} {told:%b}"


def short_id(whole: str) -> str:
    """Its first 13 characters."""
    return whole[:13]


_CLIENTS = {"claude": "Claude Code", "codex": "Codex", "gemini": "Gemini CLI", "opencode": "opencode"}


def client(program: str) -> str:
    """`Claude Code` of the program `claude`; other programs by their own names."""
    return _CLIENTS.get(program, program)
