"""Search: one line with words and filters, hits by session, each with a link to the turn that holds it."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from datetime import timedelta

from llm_proxy.explorer.asking import Asked, BadValue, choice, text
from llm_proxy.explorer.page import Extra, Page
from llm_proxy.explorer.pages.home import bounds
from llm_proxy.index import search, syntax
from llm_proxy.index.browse import Value
from llm_proxy.index.record import Record

AT_ONCE = 10  # sessions
SHOWN = 6  # values of a facet
# Ages that are counted, in days with today: name, and the filter that chooses them.
AGES = ((1, "today", "since:today"), (7, "last 7 days", "since:7d"), (30, "last 30 days", "since:30d"))
OLDER = ("older", "until:30d")


@dataclass(frozen=True, slots=True)
class Choice:
    """A filter that can be put into the query, or taken out: `query` is the query then. `hits` are those it leaves."""

    label: str
    hits: int
    query: str
    on: bool


@dataclass(frozen=True, slots=True)
class Facet:
    name: str
    choices: tuple[Choice, ...]
    more: int


@dataclass(frozen=True, slots=True)
class Found:
    """What was found, and how long it took. `covers_ns`: the time ran out, only texts back to then were looked at."""

    query: str
    words: str  # without the filters
    wrong: str  # what of the query cannot be read, "" if all can
    sessions: tuple[search.Session, ...]
    hits: int | None  # None: not counted, the time ran out
    in_sessions: int | None
    covers_ns: int | None
    ranked: bool  # whether it may be put in order of rank
    facets: tuple[Facet, ...]
    took_ms: int
    command: str
    next: str


def view(record: Record, asked: Asked) -> Found:
    began = time.monotonic()
    typed = " ".join(asked["q"].split())
    try:
        query = syntax.parse(typed, asked.now.timestamp(), asked.zone)
    except syntax.BadQuery as error:
        return Found(typed, "", str(error), (), 0, 0, None, False, (), 0, "", "")
    today = asked.now.astimezone(asked.zone).date()
    ages = tuple(bounds(asked, today - timedelta(days=days - 1), today)[0] for days, _, _ in AGES)
    try:
        found = search.results(
            record.index,
            query,
            asked["sort"],
            ages,
            before=asked["before"],
            limit=AT_ONCE,
            seconds=float(asked["limit_s"]),
        )
    except ValueError:
        raise BadValue("before", "what the page before gave", asked["before"]) from None
    counts = found.counts
    return Found(
        query=typed,
        words=query.words,
        wrong="",
        sessions=found.sessions,
        hits=counts.hits if counts else None,
        in_sessions=counts.sessions if counts else None,
        covers_ns=found.covers_ns,
        ranked=record.index.viewer.sees_everything,
        facets=_facets(typed, counts) if counts else (),
        took_ms=round((time.monotonic() - began) * 1000),
        command=shlex.join(["llm-proxy", "search", typed]),
        next=found.next,
    )


def _facets(typed: str, counts: search.Counts) -> tuple[Facet, ...]:
    named = (("role", counts.roles), ("project", counts.projects), ("model", counts.models))
    facets = [_facet(typed, name, values) for name, values in named]
    facets.append(_dates(typed, {one.value: one.count for one in counts.dates}))
    return tuple(one for one in facets if one.choices)


def _facet(typed: str, name: str, values: tuple[Value, ...]) -> Facet:
    choices = tuple(
        Choice(
            one.value,
            one.count,
            syntax.with_filter(typed, name, one.value),
            syntax.has_filter(typed, name, one.value),
        )
        for one in values[:SHOWN]
    )
    return Facet(name, choices, len(values) - len(choices))


def _dates(typed: str, by_age: dict[str, int]) -> Facet:
    choices: list[Choice] = []
    hits = 0
    for number, (_, label, term) in enumerate((*AGES, (0, *OLDER))):
        of_age = by_age.get(str(number), 0)
        hits = hits + of_age if number < len(AGES) else of_age
        name, _, value = term.partition(":")
        on = syntax.has_filter(typed, name, value)
        if of_age or on:
            choices.append(Choice(label, hits, syntax.with_filter(typed, name, value), on))
    return Facet("date", tuple(choices), 0)


PARAMS = (
    text("q", "What to look for, with the syntax of `llm-proxy search`."),
    choice("sort", "The best first, or the newest.", "best", "newest"),
    text("before", "Where the page before ended: `next` of its JSON."),
    choice("limit_s", "Seconds that it may take.", "2", "10"),
)
PAGES = (Page("/search", "search", "Messages that hold some words, by session.", PARAMS, view, limit=15),)
EXTRAS: tuple[Extra, ...] = ()
