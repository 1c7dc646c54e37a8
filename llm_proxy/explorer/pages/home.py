"""Home: all sessions, newest first, and what is in them: today's figures, filters with counts, a page at a time."""

from __future__ import annotations

import csv
import io
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from typing import TypeVar

from aiohttp import web

from llm_proxy.explorer import words
from llm_proxy.explorer.asking import Asked, BadValue, Param, choice, day, text, whole
from llm_proxy.explorer.cache_miss import Lost, lost
from llm_proxy.explorer.page import Extra, Page
from llm_proxy.explorer.rates import listed
from llm_proxy.index import browse
from llm_proxy.index.browse import Day, Listed, Totals, Value, Wanted
from llm_proxy.index.queries import Filter, Index, TookTooLong
from llm_proxy.index.record import Record
from llm_proxy.index.sums import ORDERS, QUARTER

SHOWN = 5  # values of a facet; the rest has a page of its own
HISTOGRAM, SPARK = 30, 14  # days
FACETS_TAKE = 1.0  # seconds at most: without counts the page is still of use
MOST_LOOKED_AT = 1000  # calls of today that are looked at one by one
_BATCH = 200  # sessions of a CSV that are read at once

T = TypeVar("T")

FILTERS = (
    *(
        text(name, f"Only sessions with this {name}; repeat it for another one.", many=True)
        for name in ("provider", "model", "project", "branch", "client")
    ),
    text("user", "Only sessions with calls of this user of the gateway; repeat it for another one.", many=True),
    choice("status", "Only sessions that are so; repeat it for another one.", *browse.STATUSES, many=True),
    day("from", "Only sessions used on this day or later."),
    day("to", "Only sessions used last on this day or earlier."),
)
_SORT = (
    choice("sort", "By what sessions are put in order.", *ORDERS),
    choice("dir", "Largest first, or smallest.", "desc", "asc"),
)
PARAMS = (
    *FILTERS,
    *_SORT,
    text("before", "Where the page before ended: `next` of its JSON."),
    whole("n", "Sessions at a time.", 1, 200, 50),
)


@dataclass(frozen=True, slots=True)
class Facet:
    """A field's most frequent values among the sessions that the other filters leave; None: it took too long."""

    name: str
    values: tuple[Value, ...] | None
    more: int  # values that are not among them


@dataclass(frozen=True, slots=True)
class Group:
    """Sessions under one date; not grouped, `day` is None. Its sums are of all sessions of the day that fit."""

    day: Day | None
    heading: str
    sessions: tuple[Listed, ...]


@dataclass(frozen=True, slots=True)
class Filtered:
    """A filter that is on, and how many sessions there would be without it (counted only where there are none)."""

    name: str
    value: str
    without: int | None = None


@dataclass(frozen=True, slots=True)
class Home:
    """`today` and `days` are of all calls by the time they began; everything else is of the sessions that fit."""

    today: Totals
    days: tuple[Day, ...]  # the last 14, those without calls too
    count: int
    total: int
    filters: tuple[Filtered, ...]
    histogram: tuple[Value, ...]  # sessions by their last day, of the last 30
    facets: tuple[Facet, ...]
    groups: tuple[Group, ...]
    next: str  # what `before` is for the next page; "" at the end
    lost: Lost | None  # today, to misses of the prompt cache; None: too many calls, or no time, to look at each


@dataclass(frozen=True, slots=True)
class AllValues:
    """All values of one facet."""

    facet: Facet
    count: int
    filters: tuple[Filtered, ...]


def wanted(asked: Asked) -> Wanted:
    """The sessions that a page's filters choose."""
    given = {name: asked[name] for name in ("provider", "model", "project", "branch", "client", "status", "user")}
    return Wanted(**given, since_ns=asked.moment("from"), until_ns=asked.moment("to", end=True))


def filtered(asked: Asked) -> tuple[Filtered, ...]:
    names = [one.name for one in FILTERS]
    return tuple(Filtered(name, value) for name, value in dict.fromkeys(asked.given) if name in names)


def view(record: Record, asked: Asked) -> Home:
    index, chosen = record.index, wanted(asked)
    ascending = asked["dir"] == "asc"
    try:
        sessions, after = browse.page(
            index, chosen, asked["sort"], ascending=ascending, before=asked["before"], limit=asked["n"]
        )
    except ValueError:
        raise BadValue("before", "what the page before gave", asked["before"]) from None
    count = browse.count(index, chosen)
    total = browse.count(index, Wanted()) if chosen != Wanted() else count
    groups = _groups(index, chosen, asked, sessions)
    days = [
        Day(one.isoformat(), 0, browse.calls_between(index, *bounds(asked, one, one)))
        for one in last_days(asked, SPARK)
    ]
    filters = filtered(asked)
    if not count:
        filters = _without(index, chosen, filters)
    users = (browse.USER,) if chosen.user or browse.tells_users(index) else ()
    index.stop_at(time.monotonic() + FACETS_TAKE)
    return Home(
        today=days[-1].sums,
        days=tuple(days),
        count=count,
        total=total,
        filters=filters,
        histogram=_histogram(index, chosen, asked),
        facets=tuple(_facet(index, chosen, name) for name in (*browse.FACETS, *users)),
        groups=groups,
        next=after,
        lost=_lost(index, asked, days[-1].sums.calls),
    )


def _lost(index: Index, asked: Asked, calls: int) -> Lost | None:
    """Today's misses; the calls of the days before tell them of what went on over midnight, so they are not counted."""
    if calls > MOST_LOOKED_AT:
        return None
    since, until = bounds(asked, *last_days(asked, 1) * 2)
    try:
        return lost(index.calls(Filter(since_ns=since, until_ns=until)), listed)
    except TookTooLong:
        return None


def day_of(asked: Asked, first: date, last: date) -> Callable[[int], date]:
    """The day of a slot, where the asker is; of slots from the one day to the other."""
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    begins = [_midnight(asked, one) // QUARTER for one in days]
    return lambda slot: days[max(0, bisect_right(begins, slot) - 1)]


def _moment(ns: int, asked: Asked) -> datetime:
    return datetime.fromtimestamp(ns // 10**9, UTC).astimezone(asked.zone)


def last_days(asked: Asked, number: int) -> list[date]:
    today = asked.now.astimezone(asked.zone).date()
    return [today - timedelta(days=back) for back in range(number - 1, -1, -1)]


def bounds(asked: Asked, first: date, last: date) -> tuple[int, int]:
    """From the beginning of one day to the end of another, in nanoseconds since 1970."""
    return _midnight(asked, first), _midnight(asked, last + timedelta(days=1))


def _midnight(asked: Asked, given: date) -> int:
    midnight = datetime.combine(given, clock())
    return int((midnight.replace(tzinfo=UTC) if asked.zone else midnight.astimezone()).timestamp()) * 10**9


def _groups(index: Index, chosen: Wanted, asked: Asked, sessions: Sequence[Listed]) -> tuple[Group, ...]:
    if asked["sort"] != "when" or not sessions:
        return (Group(None, "", tuple(sessions)),) if sessions else ()
    by_day: dict[date, list[Listed]] = {}
    for one in sessions:
        by_day.setdefault(_moment(one.last_ns, asked).date(), []).append(one)
    since, until = bounds(asked, min(by_day), max(by_day))
    span = replace(
        chosen,
        since_ns=max(since, chosen.since_ns if chosen.since_ns is not None else since),
        until_ns=min(until, chosen.until_ns if chosen.until_ns is not None else until),
    )
    sums = {one.day: one for one in browse.days_of_sessions(index, span, day_of(asked, min(by_day), max(by_day)))}
    return tuple(
        Group(sums.get(one.isoformat()), words.date_heading(some[0].last_ns, asked.now, asked.zone), tuple(some))
        for one, some in by_day.items()
    )


def _without(index: Index, chosen: Wanted, filters: Sequence[Filtered]) -> tuple[Filtered, ...]:
    counts = dict(browse.without(index, chosen))
    counts |= {"from": counts.get("since_ns", 0), "to": counts.get("since_ns", 0)}
    return tuple(replace(one, without=counts.get(one.name, 0)) for one in filters)


def _histogram(index: Index, chosen: Wanted, asked: Asked) -> tuple[Value, ...]:
    days = last_days(asked, HISTOGRAM)
    since, until = bounds(asked, days[0], days[-1])
    try:
        counts = browse.last_days_of_sessions(
            index, replace(chosen, since_ns=since, until_ns=until), day_of(asked, days[0], days[-1])
        )
    except TookTooLong:
        return ()
    return tuple(Value(one.isoformat(), counts.get(one.isoformat(), 0)) for one in days)


def _facet(index: Index, chosen: Wanted, name: str, shown: int = SHOWN) -> Facet:
    try:
        values = browse.facet(index, chosen, name)
    except TookTooLong:
        return Facet(name, None, 0)
    on = getattr(chosen, name)
    first = [one for one in values if one.value in on]
    known = {one.value for one in first}
    first += [Value(value, 0) for value in on if value not in known]  # so that it can be taken away here too
    rest = [one for one in values if one.value not in known]
    room = max(0, shown - len(first))
    return Facet(name, tuple(first + rest[:room]), len(rest[room:]))


def facet_view(record: Record, asked: Asked) -> AllValues:
    chosen = wanted(asked)
    return AllValues(
        _facet(record.index, chosen, asked["of"], shown=10_000), browse.count(record.index, chosen), filtered(asked)
    )


# --- CSV

_CSV = (
    *("id", "title", "project", "branch", "client", "provider", "models", "started", "last", "took_ms", "calls"),
    *("errors", "cut", "open", "input", "cache_read", "cache_write", "output", "reasoning"),
    *("usd", "subscription_equivalent_usd", "unpriced_calls", "users"),
)


def cell(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and value else value


async def sessions_csv(request: web.Request) -> web.StreamResponse:
    """All sessions that fit, read a page at a time, so that none of it has to be held."""
    from llm_proxy.explorer.site import SITE, asked_of

    site = request.app[SITE]
    asked = asked_of(request, "/sessions.csv", (*FILTERS, *_SORT))
    answer = web.StreamResponse()
    answer.content_type, answer.charset = "text/csv", "utf-8"
    answer.headers["Content-Disposition"] = 'attachment; filename="sessions.csv"'
    cursor, head = "", True
    while head or cursor:
        before = cursor

        def some(record: Record, before: str = before) -> tuple[list[Listed], str]:
            ascending = asked["dir"] == "asc"
            return browse.page(
                record.index, wanted(asked), asked["sort"], ascending=ascending, before=before, limit=_BATCH
            )

        sessions, cursor = await site.ask(asked.viewer, some)
        if head:
            await answer.prepare(request)
        await answer.write(table([_CSV] * head + [_cells(one) for one in sessions]))
        head = False
    await answer.write_eof()
    return answer


def table(rows: Sequence[Sequence[object]]) -> bytes:
    """As RFC 4180 has it."""
    file = io.StringIO()
    csv.writer(file).writerows([cell(value) for value in row] for row in rows)
    return file.getvalue().encode()


def _cells(one: Listed) -> tuple[object, ...]:
    sums, usage = one.sums, one.sums.usage
    return (
        *(one.id, one.title, one.project, one.branch, one.client, one.provider, " ".join(one.models)),
        *(words.iso(one.started_ns), words.iso(one.last_ns), one.took_ms, sums.calls, sums.errors, sums.cut, sums.open),
        *(usage.input, usage.cache_read, usage.cache_write_5m + usage.cache_write_1h, usage.output, usage.reasoning),
        *(f"{sums.cost.usd:f}", f"{sums.cost.equivalent:f}", sums.cost.unpriced, " ".join(one.users)),
    )


_OF: Param = choice("of", "The facet.", *browse.FACETS, browse.USER)
PAGES = (
    Page("/", "home", "Sessions, newest first, with what they come to, and what there is to filter by.", PARAMS, view),
    Page("/values", "values", "All values of one field, with the number of sessions.", (_OF, *FILTERS), facet_view),
)
EXTRAS: tuple[Extra, ...] = (
    Extra("/sessions.csv", sessions_csv, "All sessions that fit, as CSV.", (*FILTERS, *_SORT)),
)
