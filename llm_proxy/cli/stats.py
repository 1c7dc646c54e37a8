"""`llm-proxy stats [--by day|model|project|session|provider]`: requests, errors, latency, tokens and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_proxy.cli import filters, show, usage
from llm_proxy.formats.markdown import counted
from llm_proxy.index.queries import StatRow
from llm_proxy.service.ask import record

# With how soon they are left out where there is no room.
_NUMBERS = (
    *(("CALLS", 0), ("ERRORS", 0), ("P50", 2), ("P95", 1), ("P99", 6), ("TTFT", 5)),
    *(("INPUT", 0), ("CACHED", 3), ("WRITTEN", 4), ("OUTPUT", 0), ("COST", 0)),
)


def stats(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble."""
    if usage.has(arguments, "--recordings"):
        from llm_proxy.cli import recordings

        return recordings.stats(arguments)
    given = usage.parse("stats", arguments)
    wanted = filters.filter_from(given)
    with record(filters.places_from(given)) as opened:
        rows = opened.index.stats(wanted, given.by, utc=given.utc)
        total = rows if given.by == "total" else opened.index.stats(wanted, "total", utc=given.utc)
    if given.json:
        groups = [_object(row, utc=given.utc) for row in rows] if given.by != "total" else []
        whole = _object(total[0], utc=given.utc) if total else None
        show.print_json({"by": given.by, "total": whole, "groups": groups})
    elif not total or not total[0].calls:
        print("no call is recorded that fits")
    elif given.by == "total":
        _print_total(total[0], utc=given.utc)
    else:
        columns = [
            show.Column(given.by.upper()),
            *(show.Column(title, right=True, spare=spare) for title, spare in _NUMBERS),
        ]
        show.table(columns, [_cells(row) for row in rows] + [_cells(total[0], "total")])
    return 0


def _object(row: StatRow, *, utc: bool) -> dict[str, Any]:
    return {
        "key": row.key,
        "calls": row.calls,
        "errors": row.errors,
        "error_rate": round(row.errors / row.calls, 4) if row.calls else 0.0,
        "open": row.open,
        "first": show.iso(row.first_ns, utc=utc),
        "last": show.iso(row.last_ns, utc=utc),
        "latency_ms": {"p50": row.p50_ms, "p95": row.p95_ms, "p99": row.p99_ms},
        "ttft_ms": {"p50": row.ttfb_p50_ms, "p95": row.ttfb_p95_ms},
        "usage": show.usage_object(row.usage),
        "cost": show.cost_object(row.cost),
    }


def _cells(row: StatRow, key: str = "") -> tuple[str, ...]:
    used = row.usage
    tokens = (used.input, used.cache_read, used.cache_write_5m + used.cache_write_1h, used.output)
    return (
        key or row.key or "-",
        str(row.calls),
        str(row.errors) if row.errors else "",
        show.duration(row.p50_ms),
        show.duration(row.p95_ms),
        show.duration(row.p99_ms),
        show.duration(row.ttfb_p50_ms),
        *(show.count(number) if number else "" for number in tokens),
        show.cost(row.cost),
    )


_TOKENS = (
    ("input", "input"),
    ("cache_read", "read from cache"),
    ("cache_write_5m", "written to cache (5 minutes)"),
    ("cache_write_1h", "written to cache (1 hour)"),
    ("output", "output"),
    ("reasoning", "of it reasoning"),
    ("input_audio", "audio in input"),
    ("output_audio", "audio in output"),
)


def _print_total(row: StatRow, *, utc: bool) -> None:
    rows = [
        ("Calls", str(row.calls) + (f", {row.open} open" if row.open else "")),
        ("Errors", f"{row.errors} ({row.errors / row.calls:.1%})"),
        ("From", show.when(row.first_ns, utc=utc)),
        ("To", show.when(row.last_ns, utc=utc)),
        ("Latency", _spread(p50=row.p50_ms, p95=row.p95_ms, p99=row.p99_ms)),
        ("First token", _spread(p50=row.ttfb_p50_ms, p95=row.ttfb_p95_ms)),
    ]
    told = [(getattr(row.usage, name), words) for name, words in _TOKENS if getattr(row.usage, name)]
    rows += [("Tokens" if not place else "", f"{number:>13,} {words}") for place, (number, words) in enumerate(told)]
    rows += [("Tools", f"{name}: {uses}") for name, uses in row.usage.server_tools]
    rows.append(("Cost", f"${row.cost.usd:,.4f}"))
    if row.cost.equivalent:
        rows.append(("", f"${row.cost.equivalent:,.4f} at API prices was covered by subscriptions"))
    if row.cost.unpriced:
        rows.append(("", f"without {counted(row.cost.unpriced, 'call')} of no known price"))
    for title, value in rows:
        print(f"{title:<11} {show.line(value) if title != 'Tokens' and title else value}")


def _spread(**percentiles: int | None) -> str:
    return "  ".join(f"{name} {show.duration(value)}" for name, value in percentiles.items() if value is not None)
