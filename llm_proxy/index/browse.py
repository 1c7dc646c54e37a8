"""Lists of sessions: chosen, counted, put in order and read a page at a time, from the sums that are kept (`sums`).

Reads only. A page begins behind a cursor, never at an offset, so the last one is as quick as the first. Leaves out how
parameters are read and shown (`explorer`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from decimal import Decimal
from typing import Any

from llm_proxy.dialects.digest import TOKEN_CLASSES, Usage
from llm_proxy.index import viewer
from llm_proxy.index.queries import Cost, Index
from llm_proxy.index.sums import ORDERS, QUARTER, SUMS

NONE = "(none)"  # the value of a field that is not known
_MOST_VALUES = 10_000  # of a facet

# The local day of a slot.
DayOf = Callable[[int], date]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions: values of one field are alternatives, the fields hold together. Times are those of a session's
    last moment, nanoseconds since 1970, `until_ns` excluded. `status`: ok, errors, cut, live, unpriced.
    """

    provider: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    project: tuple[str, ...] = ()
    branch: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    user: tuple[str, ...] = ()  # of the gateway, who made one of its calls
    since_ns: int | None = None
    until_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over some calls; `cut` ones are partial, or the client left."""

    calls: int
    errors: int
    open: int
    cut: int
    usage: Usage
    cost: Cost


@dataclass(frozen=True, slots=True)
class Listed:
    """A session as it stands in a list. `took_ms` is by the clock, from its first to its last moment."""

    id: str
    title: str
    project: str
    branch: str
    client: str
    provider: str
    models: tuple[str, ...]  # the most used first
    parent: str
    forked: bool
    agent: str
    children: int  # sub-agents and forks
    started_ns: int
    last_ns: int
    took_ms: int
    sums: Totals
    users: tuple[str, ...] = ()  # of the gateway, whose calls are in it; told whom it may be (`tells_users`)


@dataclass(frozen=True, slots=True)
class Value:
    """A value of a field, and how many of the sessions have it."""

    value: str
    count: int


@dataclass(frozen=True, slots=True)
class Day:
    """What a day comes to. `sessions` are those that it was the last day of."""

    day: str  # 2026-11-20
    sessions: int
    sums: Totals


STATUSES = {
    "ok": "sessions.failed = 0 AND sessions.cut = 0 AND sessions.open = 0",
    "errors": "sessions.failed > 0",
    "cut": "sessions.cut > 0",
    "live": "sessions.open > 0",
    "unpriced": "sessions.unpriced > 0",
}
_COLUMNS = {"provider": "provider", "project": "project", "branch": "branch", "client": "program"}
FACETS = ("project", "status", "model", "provider", "client", "branch")
USER = "user"  # a facet of a gateway's record


def page(
    index: Index, wanted: Wanted, order: str = "when", *, ascending: bool = False, before: str = "", limit: int = 50
) -> tuple[list[Listed], str]:
    """Sessions in one of the ORDERS behind the cursor `before`, and the cursor of the next ones; "" at the end.

    Raises ValueError where `before` is no cursor.
    """
    where, values = conditions(wanted)
    sign, way = (">", "ASC") if ascending else ("<", "DESC")
    if before:
        match = re.fullmatch(r"(-?\d{1,19})\.(.{1,200})", before, re.ASCII)
        if match is None:
            raise ValueError(before)
        where.append(f"({ORDERS[order]}, id) {sign} (:place, :id)")
        values |= {"place": max(-(1 << 63), min(int(match[1]), (1 << 63) - 1)), "id": match[2]}
    query = f"""
        SELECT key, {ORDERS[order]}, {_LISTED} FROM sessions WHERE {_all(where)}
        ORDER BY {ORDERS[order]} {way}, id {way} LIMIT :limit
    """
    rows = list(index.rows(query, values | {"limit": limit + 1}))
    shown = rows[:limit]
    cursor = f"{shown[-1][1]}.{shown[-1][2]}" if len(rows) > limit else ""
    return _listed(index, shown), cursor


def count(index: Index, wanted: Wanted) -> int:
    where, values = conditions(wanted)
    ((found,),) = index.rows(f"SELECT count(*) FROM sessions WHERE {_all(where)}", values)
    return int(found)


def tells_users(index: Index) -> bool:
    """Whether there are calls of a gateway's users, and the viewer sees those of several."""
    if not index.viewer.sees_everything and index.viewer.others == viewer.NONE:
        return False
    return any(index.rows("SELECT 1 FROM session_accounts LIMIT 1", {}))


def facet(index: Index, wanted: Wanted, name: str) -> list[Value]:
    """The values of one of the FACETS or of USER, the most frequent first, among sessions that are as wanted else."""
    rest: dict[str, Any] = {name: ()}
    where, values = conditions(replace(wanted, **rest))
    if name == "status":
        columns = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in STATUSES.values())
        (row,) = index.rows(f"SELECT {columns} FROM sessions WHERE {_all(where)}", values)
        return [Value(status, found) for status, found in zip(STATUSES, row, strict=True) if found]
    if name == USER:
        tables = "calls JOIN sessions ON sessions.key = calls.session" if where else "calls"
        query = f"""
            SELECT calls.gateway_user, count(DISTINCT calls.session) FROM {tables}
            WHERE {_all([*where, "calls.gateway_user IS NOT NULL"])} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :limit
        """
        return [Value(user, found) for user, found in index.rows(query, values | {"limit": _MOST_VALUES})]
    if name == "model":
        tables = "session_models JOIN sessions ON key = session" if where else "session_models"
        column = "session_models.model"
    else:
        tables, column = "sessions", f"coalesce({_COLUMNS[name]}, '')"
    query = f"SELECT {column}, count(*) FROM {tables} WHERE {_all(where)} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :limit"
    return [Value(value or NONE, found) for value, found in index.rows(query, values | {"limit": _MOST_VALUES})]


def without(index: Index, wanted: Wanted) -> list[tuple[str, int]]:
    """(field, sessions there would be if it did not matter) of each field that says something."""
    empty = Wanted()
    found = []
    for field in fields(Wanted):
        if getattr(wanted, field.name) != getattr(empty, field.name) and field.name != "until_ns":
            change: dict[str, Any] = {field.name: getattr(empty, field.name)}
            if field.name == "since_ns":
                change["until_ns"] = None
            found.append((field.name, count(index, replace(wanted, **change))))
    if wanted.until_ns is not None and wanted.since_ns is None:
        found.append(("since_ns", count(index, replace(wanted, until_ns=None))))
    return found


def days_of_sessions(index: Index, wanted: Wanted, day_of: DayOf) -> list[Day]:
    """Sums of the sessions by their last day, in order; days without any are left out."""
    where, values = conditions(wanted)
    query = f"SELECT coalesce(last, 0) / {QUARTER}, count(*), {_SUMMED} FROM sessions WHERE {_all(where)} GROUP BY 1"
    return _days(index.rows(query, values), day_of)


def last_days_of_sessions(index: Index, wanted: Wanted, day_of: DayOf) -> dict[str, int]:
    """How many sessions were used last on each day; days without any are left out."""
    where, values = conditions(wanted)
    query = f"SELECT coalesce(last, 0) / {QUARTER}, count(*) FROM sessions WHERE {_all(where)} GROUP BY 1"
    counts: dict[str, int] = {}
    for slot, found in index.rows(query, values):
        day = day_of(slot).isoformat()
        counts[day] = counts.get(day, 0) + found
    return counts


def calls_between(index: Index, since_ns: int, until_ns: int) -> Totals:
    """Sums of all calls that began in a span of whole quarters of an hour."""
    query = f"SELECT {_TOTALLED} FROM slots WHERE slot >= :since AND slot < :until"
    (numbers,) = index.rows(query, {"since": since_ns // QUARTER, "until": until_ns // QUARTER})
    return totals(numbers)


# --- conditions


def conditions(wanted: Wanted) -> tuple[list[str], dict[str, Any]]:
    """Conditions about `sessions`, and their values."""
    where: list[str] = []
    values: dict[str, Any] = {}

    def one_of(name: str, given: Iterable[str]) -> str:
        names = []
        for number, value in enumerate(given):
            values[f"{name}{number}"] = "" if value == NONE else value
            names.append(f":{name}{number}")
        return ", ".join(names)

    for name, column in _COLUMNS.items():
        if given := getattr(wanted, name):
            where.append(f"coalesce(sessions.{column}, '') IN ({one_of(name, given)})")
    if wanted.model:
        where.append(
            f"sessions.key IN (SELECT session FROM session_models WHERE model IN ({one_of('model', wanted.model)}))"
        )
    if wanted.user:
        users = f"calls.gateway_user IN ({one_of('user', (name.lower() for name in wanted.user))})"
        where.append(f"sessions.key IN (SELECT calls.session FROM calls WHERE {users})")
    if wanted.status:
        where.append("(" + " OR ".join(f"({STATUSES[status]})" for status in wanted.status) + ")")
    if wanted.since_ns is not None:
        where.append(f"{ORDERS['when']} >= :since")
        values["since"] = wanted.since_ns
    if wanted.until_ns is not None:
        where.append(f"{ORDERS['when']} < :until")
        values["until"] = wanted.until_ns
    return where, values


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions) or "true"


# --- rows

_TEXTS = ("id", "title", "project", "branch", "program", "provider", "parent", "agent")
_LISTED = ", ".join((*_TEXTS, "forked", "started", "last", *SUMS))
_SUMMED = ", ".join(f"sum({name})" for name in SUMS)
_TOTALLED = ", ".join(f"coalesce(sum({name}), 0)" for name in SUMS)


def _listed(index: Index, rows: Sequence[tuple[Any, ...]]) -> list[Listed]:
    keys = ", ".join(str(row[0]) for row in rows)
    models: dict[int, list[str]] = {}
    query = f"SELECT session, model FROM session_models WHERE session IN ({keys}) ORDER BY 1, calls DESC, 2"
    for session, model in index.rows(query, {}):
        models.setdefault(session, []).append(model)
    ids = {f"id{number}": row[2] for number, row in enumerate(rows)}
    query = f"SELECT parent, count(*) FROM sessions WHERE parent IN ({', '.join(f':{id}' for id in ids)}) GROUP BY 1"
    children: Mapping[str, int] = dict(index.rows(query, ids))
    users = _users(index, keys) if rows and tells_users(index) else {}
    return [_row(row, models.get(row[0], []), children.get(row[2], 0), users.get(row[0], [])) for row in rows]


def _users(index: Index, sessions: str) -> dict[int, list[str]]:
    """By session. An account has one address, which any of its calls tells."""
    query = f"""
        SELECT shares.session, (
            SELECT calls.gateway_user FROM calls WHERE calls.account = shares.account ORDER BY calls.started LIMIT 1
        ) FROM session_accounts AS shares WHERE shares.session IN ({sessions}) ORDER BY 1, 2
    """
    found: dict[int, list[str]] = {}
    for session, user in index.rows(query, {}):
        if user:
            found.setdefault(session, []).append(user)
    return found


def _row(row: tuple[Any, ...], models: Sequence[str], children: int, users: Sequence[str]) -> Listed:
    id, title, project, branch, client, provider, parent, agent = (value or "" for value in row[2:10])
    forked, started, last = row[10:13]
    return Listed(
        id=id,
        title=title,
        project=project,
        branch=branch,
        client=client,
        provider=provider,
        models=tuple(models),
        parent=parent,
        forked=bool(forked),
        agent=agent,
        children=children,
        started_ns=started or 0,
        last_ns=last or 0,
        took_ms=((last or 0) - (started or 0)) // 10**6,
        sums=totals(row[13:]),
        users=tuple(dict.fromkeys(users)),
    )


def totals(numbers: Sequence[int]) -> Totals:
    """Of values in the order of SUMS."""
    calls, errors, open_, cut, *rest = numbers
    counts: dict[str, Any] = dict(zip(TOKEN_CLASSES, rest, strict=False))
    usage = Usage(**counts)
    spent, spent_rest, covered, covered_rest, unpriced = rest[len(TOKEN_CLASSES) :]
    cost = Cost(dollars(spent, spent_rest), dollars(covered, covered_rest), unpriced)
    return Totals(calls, errors, open_, cut, usage, cost)


def dollars(micro: int, pico: int) -> Decimal:
    whole = micro * 10**6 + pico
    return Decimal(whole).scaleb(-12) if whole else Decimal(0)


def _days(rows: Iterator[tuple[Any, ...]], day_of: DayOf) -> list[Day]:
    sessions: dict[date, int] = {}
    sums: dict[date, list[int]] = {}
    for slot, found, *numbers in rows:
        day = day_of(slot)
        sessions[day] = sessions.get(day, 0) + found
        known = sums.get(day)
        sums[day] = numbers if known is None else [one + other for one, other in zip(known, numbers, strict=True)]
    return [Day(day.isoformat(), sessions[day], totals(sums[day])) for day in sorted(sums)]
