"""Usage: what was called, what came of it and what it cost, over time and by model, alias, person or project.

All from `/manage/usage`, so everybody sees his own and administrators see everybody's. Leaves out its markup.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlencode

from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens.charts import Chart, Series, chart
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.screens.page import Answer, File, Html, Page, Visit
from llm_proxy.gateway.screens.steps import steps
from llm_proxy.gateway.store.schema import now
from llm_proxy.web import words

RANGES: Final = {"24h": "24 h", "7d": "7 days", "30d": "30 days", "90d": "90 days", "12m": "12 months"}
BY: Final = {
    "model": "Model",
    "alias": "Alias",
    "provider": "Provider",
    "project": "Project",
    "key": "API key",
    "user": "User",
    "team": "Team",
}
_DAYS: Final = {"7d": 7, "30d": 30, "90d": 90, "12m": 365}
_ADMINS: Final = frozenset({"user", "team"})  # of these a member has one only
_QUERY: Final = ("range", "by", "of", "from", "to", "before", "said")
_LONGEST: Final = 3660  # days
_MOST_HOURS: Final = 2  # days, whose hours have a bar each
_MOST_DAYS: Final = 92  # that have a bar each; of more, months have
_RECENT: Final = "20"  # calls
_COLOURS: Final = ("c1", "c2", "c3")  # of the dearest; the others are one, c4
_NONE: Final = {"key": "by a session", "team": "no team", "project": "no project", "model": "none was asked"}
_SUMMED: Final = (
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"),
    *("requests", "failed", "retries", "cost", "unpriced"),
)


@dataclass(frozen=True, slots=True)
class Sums:
    """As `manage.usage.Usage` has them. `requests` are attempts; what callers sent is `sent`."""

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
    def answered(self) -> int:
        return self.requests - self.failed

    @property
    def money(self) -> str:
        """`unpriced` where no price is known of any that cost something."""
        return money(None if self.unpriced and not self.cost else self.cost)


@dataclass(frozen=True, slots=True)
class Row:
    """`seconds` and `first_token` are means of whole answers, None where there was none."""

    label: str
    sums: Sums
    seconds: float | None = None
    first_token: float | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A bar's time: `times` are the days or hours in it, as the API names them."""

    label: str
    times: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Time:
    """`unit` is hour or day; `since` and `until` are in the API's words; `dated`: they were asked for by days.

    `running`: the last span has not ended.
    """

    unit: str
    since: str
    until: str
    spans: tuple[Span, ...]
    dated: bool
    running: bool

    @property
    def step(self) -> str:
        """What a bar stands for: hour, day or month."""
        return self.unit if all(len(span.times) == 1 for span in self.spans) else "month"


@dataclass(frozen=True, slots=True)
class Person:
    id: int
    email: str


@dataclass(frozen=True, slots=True)
class View:
    """`of` is whose: "me", "all", or a user's id. `before` is the cursor of these calls, `older` of those behind them,
    "" where there are none.
    """

    range: str
    by: str
    of: str
    time: Time
    totals: Row
    spans: tuple[Row, ...]
    charts: tuple[Chart, ...]
    rows: tuple[Row, ...]
    calls: tuple[Any, ...]  # manage.usage_calls.Attempt
    before: str
    older: str
    people: tuple[Person, ...]
    choices: Mapping[str, str]

    def link(self, **change: str) -> str:
        """This page's query with some of it changed; "" takes a parameter away, a range the dates."""
        now = {"range": self.range, "by": self.by, "of": self.of}
        if self.time.dated and "range" not in change:
            now |= {"range": "", "from": self.time.since, "to": self.time.until}
        return "?" + urlencode({name: value for name, value in (now | change).items() if value})


async def view(desk: Desk, query: Mapping[str, str], at: datetime) -> View:
    """Raises Refusal: what is wrong in the query, or not for the caller."""
    by, of, time, told = _asked(desk, query, at)
    before = query.get("before", "")
    found = await desk.ask("GET", "/manage/usage", query={**told, "group_by": f"{time.unit},{by}"})
    rows = _rows(await desk.ask("GET", "/manage/usage", query={**told, "group_by": by}), by)
    calls = await desk.ask("GET", "/manage/usage/calls", query={**told, "limit": _RECENT, "before": before})
    people = [Person(user.id, user.email) for user in await desk.ask("GET", "/manage/users")] if desk.admin else []
    return View(
        range=_range(query),
        by=by,
        of=of,
        time=time,
        totals=_total(rows),
        spans=tuple(Row(span.label, _sum(_during(found, time, span.times))) for span in time.spans),
        charts=tuple(_charts(found, by, rows, time)),
        rows=tuple(rows),
        calls=tuple(calls.calls),
        before=before,
        older=calls.next or "",
        people=tuple(people),
        choices=_choices(desk),
    )


async def csv(desk: Desk, query: Mapping[str, str], at: datetime) -> bytes:
    """What the page shows, by time and group. Raises Refusal."""
    by, _, time, told = _asked(desk, query, at)
    told = {**told, "group_by": f"{time.unit},{by}", "format": "csv"}
    return bytes((await desk.ask("GET", "/manage/usage", query=told)).body)


# --- what is asked


def _asked(desk: Desk, query: Mapping[str, str], at: datetime) -> tuple[str, str, Time, Mapping[str, str]]:
    """By what, whose, of when, and the last two in the API's words. Raises Refusal."""
    asked.known(query, _QUERY)
    by = _choice(query, "by", _choices(desk), "model")
    of = query.get("of", "") or ("all" if desk.admin else "me")
    time = _time(query, at.astimezone(UTC))
    return by, of, time, {"from": time.since, "to": time.until, **_whose(of)}


def _choices(desk: Desk) -> Mapping[str, str]:
    return {name: title for name, title in BY.items() if desk.admin or name not in _ADMINS}


def _choice(query: Mapping[str, str], name: str, choices: Collection[str], default: str) -> str:
    text = query.get(name, "") or default
    if text not in choices:
        raise asked.wrong(name, f"must be one of {', '.join(choices)}, got {text[:40]!r}")
    return text


def _range(query: Mapping[str, str]) -> str:
    return _choice(query, "range", RANGES, "30d")


def _whose(of: str) -> Mapping[str, str]:
    """In the API's words, whose rule it is who may ask for it. Raises Refusal."""
    if of == "me":
        return {}
    if of == "all":
        return {"all": "true"}
    asked.number({"of": of}, "of")
    return {"user": of}


def _time(query: Mapping[str, str], at: datetime) -> Time:
    """Raises Refusal."""
    first, last = _day(query, "from"), _day(query, "to")
    named, dated = _range(query), first is not None or last is not None
    if not dated and named == "24h":
        end = at.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        since = end - timedelta(hours=24)
        return Time("hour", _moment(since), _moment(end), _hours(since, end), dated, running=True)
    last = last or at.date()
    first = first or last - timedelta(days=_DAYS.get(named, 30) - 1)
    if first > last:
        raise asked.wrong("from", f"must not be after 'to', {last}")
    number = (last - first).days + 1
    if number > _LONGEST:
        raise asked.wrong("from", f"must be less than {_LONGEST} days before 'to'")
    if number <= _MOST_HOURS:
        midnight = datetime(first.year, first.month, first.day, tzinfo=UTC)
        spans, unit = _hours(midnight, midnight + timedelta(days=number)), "hour"
    else:
        spans, unit = _days([first + timedelta(days=one) for one in range(number)]), "day"
    return Time(unit, first.isoformat(), last.isoformat(), spans, dated, running=last == at.date() and unit == "day")


def _day(query: Mapping[str, str], name: str) -> date | None:
    text = query.get(name, "")
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise asked.wrong(name, f"must be a day like 2026-01-31, got {text[:40]!r}") from None


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _hours(since: datetime, until: datetime) -> tuple[Span, ...]:
    hours = [since + timedelta(hours=one) for one in range(int((until - since).total_seconds()) // 3600)]
    return tuple(Span(f"{at:%H}:00" if at.hour else f"{at.day} {at:%b}", (_moment(at),)) for at in hours)


def _days(days: Sequence[date]) -> tuple[Span, ...]:
    """Each, or their months where there are too many."""
    if len(days) <= _MOST_DAYS:
        return tuple(Span(f"{day.day} {day:%b}", (day.isoformat(),)) for day in days)
    months: dict[str, list[str]] = {}
    for day in days:
        months.setdefault(f"{day:%b %Y}", []).append(day.isoformat())
    return tuple(Span(label, tuple(some)) for label, some in months.items())


# --- sums


def _during(found: Iterable[Any], time: Time, times: Collection[str]) -> list[Any]:
    return [one for one in found if getattr(one, time.unit) in times]


def _sum(found: Iterable[Any]) -> Sums:
    sums: dict[str, Any] = dict.fromkeys(_SUMMED, 0)
    for one in found:
        for name in _SUMMED:
            sums[name] += getattr(one, name)
    return Sums(**sums)


def _rows(found: Iterable[Any], by: str) -> list[Row]:
    """By what they cost, then by their tokens."""
    rows = [Row(_label(one, by), _sum([one]), one.seconds, one.first_token_seconds) for one in found]
    return sorted(rows, key=lambda row: (-row.sums.cost, -row.sums.input_tokens - row.sums.output_tokens, row.label))


def _label(one: Any, by: str) -> str:
    """Of two that have one name, as API keys may, each has its number too."""
    name, number = getattr(one, by), getattr(one, f"{by}_id", None)
    if name:
        return f"{name} ({number})" if by == "key" else str(name)
    return f"deleted {by} {number}" if number is not None else _NONE.get(by, "none")


def _total(rows: Sequence[Row]) -> Row:
    return Row("", _sum(row.sums for row in rows), _mean(rows, "seconds"), _mean(rows, "first_token"))


def _mean(rows: Sequence[Row], field: str) -> float | None:
    """Of all rows' answers."""
    known = [(getattr(row, field), row.sums.answered) for row in rows if getattr(row, field) is not None]
    count = sum(answered for _, answered in known)
    return sum(value * answered for value, answered in known) / count if count else None


# --- charts


def _charts(found: Sequence[Any], by: str, rows: Sequence[Row], time: Time) -> Iterable[Chart]:
    labels = [span.label for span in time.spans]
    places = {at: place for place, span in enumerate(time.spans) for at in span.times}

    def values(field: str, some: Iterable[Any]) -> tuple[float, ...]:
        sums = [0.0] * len(labels)
        for one in some:
            sums[places[getattr(one, time.unit)]] += getattr(one, field)
        return tuple(sums)

    own = {row.label: colour for row, colour in zip(rows, _COLOURS, strict=False)}
    groups = {label: [one for one in found if _label(one, by) == label] for label in own}
    rest = [one for one in found if _label(one, by) not in own]
    costs = [Series(label, own[label], values("cost", some)) for label, some in groups.items()]
    costs.append(Series(f"{len(rows) - len(own)} more", "c4", values("cost", rest)))
    yield chart("cost", f"Cost by {BY[by].lower()}", "usd", labels, costs)
    read, write = values("cache_read_tokens", found), values("cache_write_tokens", found)
    tokens = (
        Series("cache read", "read", read),
        Series("cache write", "write", write),
        Series("fresh input", "fresh", tuple(map(_left, values("input_tokens", found), read, write))),
        Series("output", "out", values("output_tokens", found)),
    )
    yield chart("tokens", "Tokens", "tokens", labels, tokens)
    failed = values("failed", found)
    well = tuple(map(_left, values("requests", found), failed))
    yield chart(
        "requests", "Requests", "count", labels, (Series("answered", "edge", well), Series("failed", "err", failed))
    )


def _left(whole: float, *parts: float) -> float:
    return max(0.0, whole - sum(parts))


# --- the pages


def money(amount: float | None) -> str:
    """US dollars as the pages write them; None is unpriced."""
    return words.money(None if amount is None else Decimal(f"{amount:.9f}"))


def figure(unit: str, value: float) -> str:
    if unit == "usd":
        return money(value)
    return words.tokens(round(value)) if unit == "tokens" else words.exact(round(value))


async def _show(visit: Visit) -> Answer:
    found = await view(visit.desk, visit.query, now())
    first = () if found.totals.sums.requests else await steps(visit.desk)
    values = {"view": found, "ranges": RANGES, "by": BY, "words": words, "money": money, "figure": figure}
    return Html("usage", {**values, "steps": first})


async def _csv(visit: Visit) -> Answer:
    return File(await csv(visit.desk, visit.query, now()), "text/csv; charset=utf-8", "usage.csv")


PAGES: Final = (
    Page("/usage", Access.SESSION, "Usage", _show, nav="Usage", order=10),
    Page("/usage.csv", Access.SESSION, "Usage as CSV", _csv, machine=True),
)
