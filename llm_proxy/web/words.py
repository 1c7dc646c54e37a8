"""How pages write figures: money, tokens, durations, sizes, shares. Pure; the same on every page.

Unknown is never 0. Leaves out times of day and markup.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

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
