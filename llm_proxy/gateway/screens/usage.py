"""Usage: what was called, what came of it and what it cost, by day and by model, alias, person or project.

All from one answer of `/manage/usage`. Leaves out its markup, and limits (`limits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.screens.charts import Chart, Series, chart
from llm_proxy.gateway.screens.desk import Desk

RANGES: Final = {"7d": ("7 days", 7), "30d": ("30 days", 30), "90d": ("90 days", 90), "12m": ("12 months", 365)}
BY: Final = {
    "model": "Model",
    "alias": "Alias",
    "provider": "Provider",
    "project": "Project",
    "key": "API key",
    "user": "User",
    "team": "Team",
}
_ADMINS: Final = frozenset({"user", "team"})  # of these a member has one only
_QUERY: Final = ("range", "by", "of", "from", "to")
_LONGEST: Final = 3660  # days
_DAYS: Final = 92  # that have a bar each; of more, months have
_COLOURS: Final = ("c1", "c2", "c3")  # of the dearest; the others are one, c4
_NONE: Final = {"key": "by a session", "team": "no team", "project": "no project", "model": "none was asked"}
_SUMMED: Final = (
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"),
    *("requests", "failed", "retries", "cost", "unpriced"),
)
_Span = tuple[str, str, str]  # of a bar: its label, its first and its last day


@dataclass(frozen=True, slots=True)
class Sums:
    """As `manage.usage.Usage` has them. `requests` are attempts too; what callers sent is `sent`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    failed: int = 0
    retries: int = 0
    cost: float = 0
    unpriced: int = 0

    @property
    def sent(self) -> int:
        return self.requests - self.retries

    @property
    def fresh_tokens(self) -> int:
        return max(0, self.input_tokens - self.cache_read_tokens - self.cache_write_tokens)

    @property
    def priced(self) -> bool:
        """Whether the cost tells anything."""
        return self.unpriced < self.requests or not self.requests


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Person:
    id: int
    email: str


@dataclass(frozen=True, slots=True)
class View:
    """`of` is whose: "me", "all", or a user's id. `since` and `until` are the first and the last day, in UTC."""

    range: str
    by: str
    of: str
    dated: bool
    since: date
    until: date
    totals: Sums
    spans: tuple[Row, ...]
    charts: tuple[Chart, ...]
    rows: tuple[Row, ...]
    people: tuple[Person, ...]
    choices: Mapping[str, str]

    def link(self, **change: str) -> str:
        """This page's query with some of it changed; "" takes a parameter away."""
        now = {"range": "" if self.dated else self.range, "by": self.by, "of": self.of}
        if self.dated:
            now |= {"from": self.since.isoformat(), "to": self.until.isoformat()}
        if change.get("range"):
            now |= {"from": "", "to": ""}
        return "?" + urlencode({name: value for name, value in (now | change).items() if value})


async def view(desk: Desk, query: Mapping[str, str], now: datetime) -> View:
    """Raises Refusal: what is wrong in the query, or not for the caller."""
    asked.known(query, _QUERY)
    shown = {name: title for name, title in BY.items() if desk.admin or name not in _ADMINS}
    by = _choice(query, "by", shown, "model")
    of = query.get("of", "") or ("all" if desk.admin else "me")
    since, until, dated = _time(query, now.date())
    told = {"group_by": f"day,{by}", "from": since.isoformat(), "to": until.isoformat(), **_whose(of)}
    found = await desk.ask("GET", "/manage/usage", query=told)
    spans = _spans(since, until)
    rows = _rows(found, by)
    people = [Person(user.id, user.email) for user in await desk.ask("GET", "/manage/users")] if desk.admin else []
    return View(
        range=_choice(query, "range", RANGES, "30d"),
        by=by,
        of=of,
        dated=dated,
        since=since,
        until=until,
        totals=_sum(found),
        spans=tuple(Row(label, _sum(one for one in found if first <= one.day <= last)) for label, first, last in spans),
        charts=tuple(_charts(found, by, rows, spans)),
        rows=tuple(rows),
        people=tuple(people),
        choices=shown,
    )


def _choice(query: Mapping[str, str], name: str, choices: Iterable[str], default: str) -> str:
    text = query.get(name, "") or default
    if text not in choices:
        raise asked.wrong(name, f"must be one of {', '.join(choices)}, got {text[:40]!r}")
    return text


def _whose(of: str) -> Mapping[str, str]:
    """In the API's words, whose rule it is who may ask for it. Raises Refusal."""
    if of == "me":
        return {}
    if of == "all":
        return {"all": "true"}
    asked.number({"of": of}, "of")
    return {"user": of}


def _time(query: Mapping[str, str], today: date) -> tuple[date, date, bool]:
    """The first and the last day, and whether they were said. Raises Refusal."""
    first, last = _day(query, "from"), _day(query, "to")
    if first is None and last is None:
        _, days = RANGES[_choice(query, "range", RANGES, "30d")]
        return today - timedelta(days=days - 1), today, False
    last = last or today
    first = first or last - timedelta(days=29)
    if first > last:
        raise asked.wrong("from", f"must not be after 'to', {last}")
    if (last - first).days >= _LONGEST:
        raise asked.wrong("from", f"must be at most {_LONGEST} days before 'to'")
    return first, last, True


def _day(query: Mapping[str, str], name: str) -> date | None:
    text = query.get(name, "")
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise asked.wrong(name, f"must be a day like 2026-01-31, got {text[:40]!r}") from None


def _spans(since: date, until: date) -> Sequence[_Span]:
    """Days, or months where there are too many."""
    days = [since + timedelta(days=number) for number in range((until - since).days + 1)]
    if len(days) <= _DAYS:
        return [(f"{day.day} {day:%b}", day.isoformat(), day.isoformat()) for day in days]
    months: dict[str, list[date]] = {}
    for day in days:
        months.setdefault(f"{day:%b %Y}", []).append(day)
    return [(label, some[0].isoformat(), some[-1].isoformat()) for label, some in months.items()]


def _sum(found: Iterable[Any]) -> Sums:
    sums = dict.fromkeys(_SUMMED, 0)
    for one in found:
        for name in _SUMMED:
            sums[name] += getattr(one, name)
    return Sums(**sums)


def _rows(found: Iterable[Any], by: str) -> list[Row]:
    """By what they cost, then by their tokens."""
    groups: dict[str, list[Any]] = {}
    for one in found:
        groups.setdefault(_label(one, by), []).append(one)
    rows = [Row(label, _sum(some)) for label, some in groups.items()]
    return sorted(rows, key=lambda row: (-row.sums.cost, -row.sums.input_tokens - row.sums.output_tokens, row.label))


def _label(one: Any, by: str) -> str:
    name = getattr(one, by)
    if name:
        return str(name)
    id = getattr(one, f"{by}_id", None)
    if id is not None:
        return f"deleted {by} {id}"
    return _NONE.get(by, "none")


def _charts(found: Sequence[Any], by: str, rows: Sequence[Row], spans: Sequence[_Span]) -> Iterable[Chart]:
    labels = [label for label, _, _ in spans]
    places = {day: place for place, (_, first, last) in enumerate(spans) for day in _between(first, last)}

    def series(name: str, colour: str, field: str, some: Iterable[Any]) -> Series:
        values = [0.0] * len(spans)
        for one in some:
            values[places[one.day]] += getattr(one, field)
        return Series(name, colour, tuple(values))

    told = [(row.label, [one for one in found if _label(one, by) == row.label]) for row in rows[: len(_COLOURS)]]
    named = {label for label, _ in told}
    rest = [one for one in found if _label(one, by) not in named]
    groups = [(label, colour, some) for (label, some), colour in zip(told, _COLOURS, strict=False)]
    groups += [(f"{len(rows) - len(told)} others", "c4", rest)] if rest else []
    costs = [series(name, colour, "cost", some) for name, colour, some in groups]
    yield chart("cost", f"Cost by {BY[by].lower()}", "usd", labels, costs)
    read, write = (series("", "", f"cache_{kind}_tokens", found) for kind in ("read", "write"))
    fresh = tuple(map(_left, series("", "", "input_tokens", found).values, read.values, write.values))
    tokens = (
        Series("cache read", "read", read.values),
        Series("cache write", "write", write.values),
        Series("fresh input", "fresh", fresh),
        series("output", "out", "output_tokens", found),
    )
    yield chart("tokens", "Tokens", "tokens", labels, tokens)
    failed = series("failed", "err", "failed", found)
    well = tuple(map(_left, series("", "", "requests", found).values, failed.values))
    yield chart("requests", "Requests", "count", labels, (Series("answered", "edge", well), failed))


def _left(whole: float, *parts: float) -> float:
    return max(0.0, whole - sum(parts))


def _between(first: str, last: str) -> Iterable[str]:
    day, end = date.fromisoformat(first), date.fromisoformat(last)
    while day <= end:
        yield day.isoformat()
        day += timedelta(days=1)
