"""How the explorer writes figures: money, tokens, durations, times, shares. Pure; the same on every page.

Unknown is never 0. Leaves out markup (`render`).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, tzinfo
from decimal import ROUND_HALF_UP, Decimal

from llm_proxy.dialects.digest import Usage

_CENT = Decimal("0.01")


def money(amount: Decimal | None, *, exact: bool = False) -> str:
    """`$0.79`, `<$0.01`, `$0`, `$1,204`; `unpriced` for None; with `exact` four decimals."""
    if amount is None:
        return "unpriced"
    if amount < 0:
        return "-" + money(-amount, exact=exact)
    if exact:
        return f"${amount.quantize(Decimal('0.0001'), ROUND_HALF_UP):,}"
    if not amount:
        return "$0"
    if amount < _CENT:
        return "<$0.01"
    return f"${amount.quantize(Decimal(1) if amount >= 100 else _CENT, ROUND_HALF_UP):,}"


def about(amount: Decimal | None) -> str:
    """An API-equivalent: what a subscription's calls would have cost."""
    return "unpriced" if amount is None else "≈" + money(amount)


def tokens(count: int | None) -> str:
    """`412`, `9.2k`, `48k`, `1.21M`."""
    if count is None:
        return "unknown"
    for limit, unit, name in ((999_500_000, 10**9, "B"), (999_500, 10**6, "M"), (1000, 1000, "k")):
        if count >= limit:
            value = count / unit
            digits = 0 if value >= 99.5 else (2 if name != "k" and value < 9.995 else 1 if value < 99.5 else 0)
            if name == "k" and value >= 9.95:
                digits = 0
            return f"{value:.{digits}f}{name}"
    return str(count)


def exact(count: int | None) -> str:
    """`48,026`."""
    return "unknown" if count is None else f"{count:,}"


def duration(ms: float | None) -> str:
    """`39 ms`, `2.27 s`, `18.4 s`, `18m 03s`, `1h 04m`."""
    if ms is None:
        return "unknown"
    if ms < 0.995:
        return f"{ms:.2f} ms" if ms else "0 ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 9_995:
        return f"{ms / 1000:.2f} s"
    if ms < 59_950:
        return f"{ms / 1000:.1f} s"
    seconds = round(ms / 1000)
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02}s"
    minutes = round(ms / 60_000)
    if minutes < 48 * 60:
        return f"{minutes // 60}h {minutes % 60:02}m"
    return f"{minutes // 1440}d {minutes % 1440 // 60:02}h"


def size(octets: int | None) -> str:
    """`812 B`, `4.1 kB`, `2.0 MB`: powers of 1000."""
    if octets is None:
        return "unknown"
    if octets < 1000:
        return f"{octets} B"
    for unit, name in ((10**3, "kB"), (10**6, "MB"), (10**9, "GB")):
        if octets < unit * 999.5:
            return f"{octets / unit:.1f} {name}" if octets < unit * 99.5 else f"{octets / unit:.0f} {name}"
    return f"{octets / 10**12:.1f} TB"


def share(part: float, whole: float, *, decimals: int = 0) -> str:
    """`74 %`; "" of nothing."""
    return f"{100 * part / whole:.{decimals}f} %" if whole else ""


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
