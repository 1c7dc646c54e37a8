"""Figures over time: sums and percentiles of the calls that began in each of some spans, by model, project, session.

Reads only. Spans are given as edges in slots (quarters of an hour since 1970, see `sums`), so a day has the length that
it has. Sums of all calls, or of some models', come from those that are kept; those of some sessions' from the calls.
Leaves out what days are (`explorer`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import msgspec

from llm_proxy.index import browse
from llm_proxy.index.browse import Totals, Wanted, totals
from llm_proxy.index.queries import Index
from llm_proxy.index.sums import QUARTER, SUMS

By = Literal["model", "project", "session", "user", "team", "gateway_project"]
_KEYS: dict[By, str] = {
    "model": "calls.model",
    "project": "sessions.project",
    "session": "sessions.id",
    "user": "calls.gateway_user",
    "team": "calls.gateway_team",
    "gateway_project": "calls.gateway_project",
}
MOST_GROUPS = 50
_SUMMED = ", ".join(f"sum({name})" for name in SUMS)
_ADDED = ", ".join(f"coalesce(sum({of.format('calls')}), 0)" for of in SUMS.values())


@dataclass(frozen=True, slots=True)
class Pace:
    """Milliseconds: `p50`, `p95` and `p99` are the smallest that so many percent of all do not exceed; None of none."""

    p50: int | None = None
    p95: int | None = None
    p99: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """What the calls of one key come to; `label` is a session's title, else the key."""

    key: str
    label: str
    sums: Totals
    first_token: Pace


def sums(index: Index, edges: Sequence[int], wanted: Wanted) -> list[dict[str, Totals]]:
    """Of each span the sums by model; `edges` are one more than spans. Without calls: an empty one."""
    found: list[dict[str, list[int]]] = [{} for _ in edges[1:]]
    for place, model, *numbers in _sums(index, edges, wanted):
        known = found[place].get(model)
        found[place][model] = [a + b for a, b in zip(known, numbers, strict=True)] if known else numbers
    return [{model: totals(numbers) for model, numbers in one.items()} for one in found]


def _sums(index: Index, edges: Sequence[int], wanted: Wanted) -> Iterator[tuple[Any, ...]]:
    """(span, model, sums)."""
    where, values = browse.conditions(_of_sessions(wanted))
    models = _models("slots" if not where else "calls", wanted, values)
    if not where:
        yield from index.rows(
            f"""
            WITH spans (number, first, behind) AS (VALUES {_spans(edges)})
            SELECT number, model, {_SUMMED} FROM spans CROSS JOIN slots ON slot >= first AND slot < behind
            WHERE {models} GROUP BY 1, 2
            """,
            values,
        )
        return
    query = f"""
        SELECT calls.started / {QUARTER}, coalesce(calls.model, ''), {_ADDED} {_CALLS_OF_SESSIONS}
        WHERE {_between(edges)} AND {models} AND {" AND ".join(where)} GROUP BY 1, 2
    """
    for slot, *rest in index.rows(query, values):
        yield (bisect_right(edges, slot) - 1, *rest)


def paces(index: Index, edges: Sequence[int], wanted: Wanted) -> tuple[list[tuple[Pace, Pace]], tuple[Pace, Pace]]:
    """(to the first byte, to the end) of each span, and over all of them."""
    where, values = browse.conditions(_of_sessions(wanted))
    models = _models("calls", wanted, values)
    times = "json_group_array(calls.ttfb) FILTER (WHERE calls.ttfb IS NOT NULL)"
    times += ", json_group_array(calls.total) FILTER (WHERE calls.total IS NOT NULL)"
    if where:
        query = f"""
            SELECT calls.started / {QUARTER}, {times} {_CALLS_OF_SESSIONS}
            WHERE {_between(edges)} AND {models} AND {" AND ".join(where)} GROUP BY 1
        """
    else:
        query = f"""
            WITH spans (number, first, behind) AS (VALUES {_spans(edges)})
            SELECT first, {times} FROM spans CROSS JOIN calls
            ON calls.started >= first * {QUARTER} AND calls.started < behind * {QUARTER} WHERE {models} GROUP BY 1
        """
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in edges[1:]]
    for slot, *both in index.rows(query, values):
        for known, more in zip(found[bisect_right(edges, slot) - 1], both, strict=True):
            known += msgspec.json.decode(more)
    for one in found:
        for some in one:
            some.sort()
    # Sorting what is sorted in runs is quick.
    every = tuple(_pace(sorted(chain.from_iterable(one[which] for one in found))) for which in (0, 1))
    return [(_pace(first), _pace(whole)) for first, whole in found], (every[0], every[1])


def groups(index: Index, edges: Sequence[int], wanted: Wanted, by: By) -> tuple[list[Group], int]:
    """The dearest MOST_GROUPS of all spans together, and how many there are."""
    where, values = browse.conditions(_of_sessions(wanted))
    models = _models("calls", wanted, values)
    key = _KEYS[by]
    between = f"{_between(edges)} AND {models}"
    if by == "model" and not where:
        (found,) = sums(index, [edges[0], edges[-1]], wanted)
        rows = [(name, "", one) for name, one in found.items()]
    else:
        kept = key.startswith("sessions.") and not wanted.model
        source = _mostly_kept(key, edges, where) if kept else _of_calls(key, between, where)
        summed = ", ".join(f"sum({name})" for name in SUMS)
        query = f"SELECT name, max(title), {summed} FROM ({source}) AS found GROUP BY 1"
        rows = [(name, title, totals(numbers)) for name, title, *numbers in index.rows(query, values)]
    rows.sort(key=lambda row: (-row[2].cost.usd - row[2].cost.equivalent, -row[2].calls, row[0]))
    first = rows[:MOST_GROUPS]
    paces_of = _first_tokens(index, key, [name for name, _, _ in first], between, where, values)
    return [
        Group(
            name,
            (title or name) if by == "session" else name or browse.NONE,
            one,
            paces_of.get(name, Pace()),
        )
        for name, title, one in first
    ], len(rows)


def _mostly_kept(key: str, edges: Sequence[int], where: Sequence[str]) -> str:
    """Sums of sessions that lie within the spans as they are kept, of those that reach beyond from their calls.

    So do sessions with a call of which nobody knows when it began.
    """
    first, behind = edges[0] * QUARTER, edges[-1] * QUARTER
    odd = "sessions.key IN (SELECT session FROM calls WHERE started IS NULL)"
    within = f"coalesce(sessions.started, 0) >= {first} AND coalesce(sessions.last, 0) < {behind} AND NOT {odd}"
    touching = f"coalesce(sessions.started, 0) < {behind} AND coalesce(sessions.last, 0) >= {first}"
    kept = ", ".join(f"sessions.{name} AS {name}" for name in SUMS)
    return f"""
        SELECT coalesce({key}, '') AS name, title, {kept} FROM sessions
        WHERE {" AND ".join([within, "sessions.calls > 0", *where])}
        UNION ALL {_of_calls(key, _between(edges), [f"(({touching} AND NOT ({within})) OR {odd})", *where])}
    """


def _of_calls(key: str, between: str, where: Sequence[str]) -> str:
    # In order of time where all sessions count, else session by session.
    tables = _CALLS_OF_SESSIONS if where else "FROM calls CROSS JOIN sessions ON sessions.key = calls.session"
    added = ", ".join(f"sum({of.format('calls')}) AS {name}" for name, of in SUMS.items())
    conditions = " AND ".join([between, *where])
    columns = f"coalesce({key}, '') AS name, max(sessions.title) AS title, {added}"
    return f"SELECT {columns} {tables} WHERE {conditions} GROUP BY 1"


def _first_tokens(
    index: Index, key: str, names: Sequence[str], between: str, where: Sequence[str], values: dict[str, Any]
) -> dict[str, Pace]:
    tables = "FROM calls" if key == "calls.model" and not where else _CALLS_OF_SESSIONS
    if not where and key == "sessions.project":
        tables = "FROM calls CROSS JOIN sessions ON sessions.key = calls.session"
    chosen = {f"name{number}": name for number, name in enumerate(names)}
    query = f"""
        SELECT coalesce({key}, ''), json_group_array(calls.ttfb) {tables}
        WHERE {" AND ".join([between, "calls.ttfb IS NOT NULL", *where])}
        AND {key if key == "sessions.id" else f"coalesce({key}, '')"} IN ({", ".join(f":{one}" for one in chosen)})
        GROUP BY 1
    """
    return {name: _pace(sorted(msgspec.json.decode(times))) for name, times in index.rows(query, values | chosen)}


_CALLS_OF_SESSIONS = "FROM sessions CROSS JOIN calls ON calls.session = sessions.key"


def _of_sessions(wanted: Wanted) -> Wanted:
    return replace(wanted, model=(), since_ns=None, until_ns=None)


def _models(table: str, wanted: Wanted, values: dict[str, Any]) -> str:
    """The condition on models; its values are put into `values`."""
    if not wanted.model:
        return "true"
    names = {f"figure{number}": "" if one == browse.NONE else one for number, one in enumerate(wanted.model)}
    values |= names
    return f"coalesce({table}.model, '') IN ({', '.join(f':{name}' for name in names)})"


def _spans(edges: Sequence[int]) -> str:
    return ", ".join(f"({place}, {first}, {edges[place + 1]})" for place, first in enumerate(edges[:-1]))


def _between(edges: Sequence[int]) -> str:
    return f"calls.started >= {edges[0] * QUARTER} AND calls.started < {edges[-1] * QUARTER}"


def _pace(ordered: Sequence[int]) -> Pace:
    if not ordered:
        return Pace()
    return Pace(*(ordered[-(-len(ordered) * share // 100) - 1] for share in (50, 95, 99)))
