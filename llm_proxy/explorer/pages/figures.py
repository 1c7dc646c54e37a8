"""Figures: what was spent, how much was said, how quick and how sound it was, over time and by model or project."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from aiohttp import web

from llm_proxy.dialects.digest import Usage
from llm_proxy.explorer.asking import Asked, BadValue, choice, day
from llm_proxy.explorer.page import Extra, Page
from llm_proxy.explorer.pages import home
from llm_proxy.index import browse, figures
from llm_proxy.index.browse import NONE, Totals
from llm_proxy.index.figures import Group, Pace
from llm_proxy.index.queries import Cost
from llm_proxy.index.record import Record
from llm_proxy.index.sums import QUARTER

MODELS = 3  # that have a colour of their own; the others are one
_SLOT = QUARTER // 10**9  # seconds
Unit = Literal["usd", "tokens", "ms", "share", "count"]
Number = float | int | Decimal | None


@dataclass(frozen=True, slots=True)
class Span:
    """An hour, a day or a month. `running`: it is not over."""

    label: str
    since_ns: int
    until_ns: int
    running: bool


@dataclass(frozen=True, slots=True)
class Series:
    """One value per span, None where there was nothing to measure. `colour` names one of the page's."""

    name: str
    colour: str
    values: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart and its table. `said` is its sum in words; `stacked` series add up."""

    name: str
    title: str
    said: str
    unit: Unit
    stacked: bool
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Sums:
    """Over all spans; `before` are those of a time as long before."""

    totals: Totals
    before: Totals
    first_token: Pace
    latency: Pace


@dataclass(frozen=True, slots=True)
class Figures:
    """`groups` are the rows of the last table: of `by`, at most 50 of `group_count`; by day it is made of the spans."""

    spans: tuple[Span, ...]
    sums: Sums
    panels: tuple[Panel, ...]
    by: str
    groups: tuple[Group, ...]
    group_count: int
    filters: tuple[home.Filtered, ...]
    users: bool  # whether there are several users of a gateway to group by


def view(record: Record, asked: Asked) -> Figures:
    index, spans = record.index, _spans(asked)
    edges = [one.since_ns // QUARTER for one in spans] + [spans[-1].until_ns // QUARTER]
    wanted = home.wanted(asked)
    by_model = figures.sums(index, edges, wanted)
    of_span = [_sum(one.values()) for one in by_model]
    paces, (first_token, latency) = figures.paces(index, edges, wanted)
    (before,) = figures.sums(index, [2 * edges[0] - edges[-1], edges[0]], wanted)
    sums = Sums(_sum(of_span), _sum(before.values()), first_token, latency)
    if asked["by"] == "day":
        groups = [
            Group(span.label, span.label, one, first)
            for span, one, (first, _) in reversed(list(zip(spans, of_span, paces, strict=True)))
            if one.calls
        ]
        count = len(groups)
    else:
        groups, count = figures.groups(index, edges, wanted, asked["by"])
    return Figures(
        spans=tuple(spans),
        sums=sums,
        panels=tuple(_panels(by_model, of_span, paces, sums)),
        by=asked["by"],
        groups=tuple(groups),
        group_count=count,
        filters=tuple(one for one in home.filtered(asked) if one.name not in ("from", "to")),
        users=browse.tells_users(index),
    )


# --- spans of time


def _spans(asked: Asked) -> list[Span]:
    """Whole hours, days or months, the last one that of now or of the day given. Raises BadValue."""
    now = asked.now.astimezone(asked.zone)
    today = datetime(now.year, now.month, now.day)
    if asked["from"] is not None or asked["to"] is not None:
        last = datetime.combine(asked["to"] or today.date(), datetime.min.time())
        first = datetime.combine(asked["from"] or last.date() - timedelta(days=29), datetime.min.time())
        if first > last:
            raise BadValue("to", "a day not before from", str(asked["to"]))
        number = (last - first).days + 1
        if number > 3660:
            raise BadValue("from", "at most ten years before to", str(asked["from"]))
        unit = "hour" if number <= 2 else "day" if number <= 92 else "month"
        behind = last + timedelta(days=1)
    else:
        unit, number = {"24h": ("hour", 1), "7d": ("day", 7), "30d": ("day", 30), "12m": ("month", 365)}[asked["range"]]
        behind = today + timedelta(days=1)
        first = behind - timedelta(days=number)
    return [
        Span(label, since * 10**9, until * 10**9, since <= asked.now.timestamp() < until)
        for label, since, until in _cut(unit, first, behind, asked)
    ]


def _cut(unit: str, first: datetime, behind: datetime, asked: Asked) -> list[tuple[str, int, int]]:
    if unit == "hour":
        since, until = _seconds(first, asked), _seconds(behind, asked)
        if asked["range"] == "24h" and asked["from"] is None and asked["to"] is None:
            until = int(asked.now.timestamp()) // 3600 * 3600 + 3600
            since = until - 24 * 3600
        return [
            (f"{datetime.fromtimestamp(at, UTC).astimezone(asked.zone):%H:%M}", at, at + 3600)
            for at in range(since, until, 3600)
        ]
    moments = [first]
    while moments[-1] < behind:
        at = moments[-1]
        moments.append(at + timedelta(days=1) if unit == "day" else _next_month(at))
    labels = [f"{at.day} {at:%b}" if unit == "day" else f"{at:%b %Y}" for at in moments]
    edges = [_seconds(at, asked) for at in moments]
    return [(label, since, until) for label, (since, until) in zip(labels, pairwise(edges), strict=False)]


def _next_month(at: datetime) -> datetime:
    return datetime(at.year + at.month // 12, at.month % 12 + 1, 1)


def _seconds(at: datetime, asked: Asked) -> int:
    """Of a local time. Every time zone is whole quarters of an hour away from the next."""
    moment = at.replace(tzinfo=UTC) if asked.zone is not None else at.astimezone()
    return int(moment.timestamp()) // _SLOT * _SLOT


# --- sums and panels


def _sum(some: Iterable[Totals]) -> Totals:
    calls = errors = open_ = cut = unpriced = 0
    usage, usd, equivalent = Usage(), Decimal(0), Decimal(0)
    for one in some:
        calls, errors, open_, cut = calls + one.calls, errors + one.errors, open_ + one.open, cut + one.cut
        usage += one.usage
        usd, equivalent = usd + one.cost.usd, equivalent + one.cost.equivalent
        unpriced += one.cost.unpriced
    return Totals(calls, errors, open_, cut, usage, Cost(usd, equivalent, unpriced))


def _panels(
    by_model: Sequence[dict[str, Totals]],
    of_span: Sequence[Totals],
    paces: Sequence[tuple[Pace, Pace]],
    sums: Sums,
) -> Iterable[Panel]:
    totals = sums.totals
    if totals.cost.usd or not totals.cost.equivalent:
        yield Panel("spend", "Spend", "by model", "usd", True, _by_model(by_model, lambda one: one.cost.usd))
    if totals.cost.equivalent:
        series = _by_model(by_model, lambda one: one.cost.equivalent)
        yield Panel("equivalent", "API-equivalent", "by model", "usd", True, series)
    yield Panel("tokens", "Tokens", "by class", "tokens", True, _over(of_span, _TOKENS))
    yield Panel("requests", "Calls", "by whether there was an error", "count", True, _over(of_span, _CALLS))
    yield Panel("first_token", "Time to first token", "p50, p95, p99", "ms", False, _paced([one for one, _ in paces]))
    yield Panel("latency", "Time to the end", "p50, p95, p99", "ms", False, _paced([one for _, one in paces]))
    yield Panel("cache", "Cache hit rate", "of what went in", "share", False, _over(of_span, _CACHE))
    yield Panel("errors", "Errors", "of all calls", "share", False, _over(of_span, _ERRORS))


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


_Measure = Callable[[Totals], Number]
_TOKENS: tuple[tuple[str, str, _Measure], ...] = (
    ("cache read", "tk-read", lambda one: one.usage.cache_read),
    ("cache write", "tk-write", lambda one: one.usage.cache_write_5m + one.usage.cache_write_1h),
    ("fresh input", "tk-fresh", lambda one: one.usage.input),
    ("output", "tk-out", lambda one: one.usage.output - one.usage.reasoning),
    ("reasoning", "tk-reason", lambda one: one.usage.reasoning),
)
_CALLS: tuple[tuple[str, str, _Measure], ...] = (
    ("without an error", "c4", lambda one: one.calls - one.errors),
    ("with an error", "err", lambda one: one.errors),
)
_CACHE: tuple[tuple[str, str, _Measure], ...] = (
    ("hit rate", "c1", lambda one: _ratio(one.usage.cache_read, one.usage.prompt)),
)
_ERRORS: tuple[tuple[str, str, _Measure], ...] = (("errors", "c1", lambda one: _ratio(one.errors, one.calls)),)


def _over(of_span: Sequence[Totals], measures: Sequence[tuple[str, str, _Measure]]) -> tuple[Series, ...]:
    return tuple(
        Series(name, colour, tuple(measure(one) if one.calls else None for one in of_span))
        for name, colour, measure in measures
    )


def _by_model(by_model: Sequence[dict[str, Totals]], measure: Callable[[Totals], Decimal]) -> tuple[Series, ...]:
    """The dearest models, the others together."""
    worth: dict[str, Decimal] = {}
    for one in by_model:
        for model, some in one.items():
            worth[model] = worth.get(model, Decimal(0)) + measure(some)
    names = [model for model, usd in sorted(worth.items(), key=lambda pair: (-pair[1], pair[0])) if usd]
    named = names[: MODELS + 1] if len(names) == MODELS + 1 else names[:MODELS]
    series = [
        Series(
            model or NONE,
            f"c{place}",
            tuple((measure(one[model]) if model in one else Decimal(0)) if one else None for one in by_model),
        )
        for place, model in enumerate(named, start=1)
    ]
    if len(names) > len(named):
        rest = set(names) - set(named)
        values = tuple(
            sum((measure(one[model]) for model in rest if model in one), Decimal(0)) if one else None
            for one in by_model
        )
        series.append(Series(f"{len(rest)} others", "c4", values))
    return tuple(series)


def _paced(paces: Sequence[Pace]) -> tuple[Series, ...]:
    return tuple(
        Series(name, colour, tuple(getattr(one, name) for one in paces))
        for name, colour in (("p50", "c1"), ("p95", "c2"), ("p99", "c3"))
    )


# --- CSV


async def figures_csv(request: web.Request) -> web.StreamResponse:
    """A panel's table, or that of the groups, in plain numbers: US dollars, milliseconds, shares from 0 to 1."""
    from llm_proxy.explorer.site import SITE, asked_of

    asked = asked_of(request, "/figures.csv", PARAMS)
    found = await request.app[SITE].ask(asked.viewer, lambda record: view(record, asked), LIMIT)
    panel = next((one for one in found.panels if one.name == asked["of"]), None)
    rows = _panel_rows(found, panel) if panel is not None else _group_rows(found)
    name = panel.name if panel is not None else found.by
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return web.Response(body=home.table(rows), content_type="text/csv", charset="utf-8", headers=headers)


def _panel_rows(found: Figures, panel: Panel) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [("since", *(one.name for one in panel.series))]
    for place, span in enumerate(found.spans):
        since = datetime.fromtimestamp(span.since_ns // 10**9, UTC).isoformat().replace("+00:00", "Z")
        rows.append((since, *("" if (value := one.values[place]) is None else value for one in panel.series)))
    return rows


def _group_rows(found: Figures) -> list[Sequence[object]]:
    head = ("calls", "errors", "input", "cache_read", "cache_write", "output", "ttft_p50_ms", "usd")
    rows: list[Sequence[object]] = [(found.by, *head, "subscription_equivalent_usd", "unpriced_calls")]
    for one in found.groups:
        sums, usage, cost = one.sums, one.sums.usage, one.sums.cost
        write = usage.cache_write_5m + usage.cache_write_1h
        tokens = (usage.input, usage.cache_read, write, usage.output)
        money = (f"{cost.usd:f}", f"{cost.equivalent:f}", cost.unpriced)
        rows.append((one.key, sums.calls, sums.errors, *tokens, one.first_token.p50, *money))
    return rows


LIMIT = 5.0
_PANELS = ("spend", "equivalent", "tokens", "requests", "first_token", "latency", "cache", "errors", "groups")
_GATEWAYS = ("user", "team", "gateway_project")
_FILTERS = tuple(one for one in home.FILTERS if one.name not in ("from", "to"))
PARAMS = (
    choice("range", "The last hours, days or months.", "24h", "7d", "30d", "12m", default="30d"),
    day("from", "The first day, instead of a range."),
    day("to", "The last day, instead of a range."),
    choice("by", "The rows of the last table.", "day", "model", "project", "session", *_GATEWAYS),
    *_FILTERS,
    choice("tab", "`table` shows the figures of `of` instead of its chart.", "chart", "table"),
    choice("of", "The panel that is meant.", *_PANELS, default=""),
)
PAGES = (Page("/figures", "figures", "Spend, tokens, times, cache and errors over time.", PARAMS, view, limit=LIMIT),)
EXTRAS: tuple[Extra, ...] = (Extra("/figures.csv", figures_csv, "One panel's figures as CSV.", PARAMS),)
