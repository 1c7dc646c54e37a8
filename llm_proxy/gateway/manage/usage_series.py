"""`/manage/usage/series`: usage over time for charts, without gaps. Leaves out what counts, and for whom (`usage`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import CTE, ColumnElement, Select, Text, func, literal_column, select

from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.manage.usage import (
    FILTERS,
    GROUPS,
    MOST,
    NUMBERS,
    SUMS,
    TIMES,
    Group,
    during,
    groups,
    names,
    where,
)
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.schema import NANO, now, request_logs

_LOG: Final = request_logs.c
_LINES: Final = 10
_MOST_LINES: Final = 50
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)


class _Time(NamedTuple):
    """How moments are written: so much of ISO 8601, and what follows. `usual` steps are told where nobody says."""

    step: timedelta
    written: int
    rest: str
    usual: int


_TIMES: Final = {"day": _Time(timedelta(days=1), 10, "", 30), "hour": _Time(timedelta(hours=1), 13, ":00:00Z", 48)}
_GROUPS: Final = tuple(name for name in GROUPS if name not in TIMES)


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One group's sums, as in usage, one for each of the moments; `group` is what it is grouped by, an id of users,
    teams and keys, whose `name` is null where it has been deleted. One line at the end may be all `others` together.
    """

    group: str | int | None
    name: str | None
    others: bool
    requests: list[int]
    failed: list[int]
    retries: list[int]
    input_tokens: list[int]
    output_tokens: list[int]
    cache_read_tokens: list[int]
    cache_write_tokens: list[int]
    reasoning_tokens: list[int]
    cost: list[float]
    unpriced: list[int]


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """`moments` are the beginnings of days or hours, in UTC, each of them, also those without any usage."""

    by: str
    moments: list[str]
    lines: list[Line]


async def series(ask: Ask) -> Series:
    """What cost the most comes first, then what was asked for the most. Raises Refusal."""
    asked.known(ask.query, _QUERY)
    by = _one(ask, "by", TIMES) or "day"
    word = _one(ask, "group_by", _GROUPS)
    count = asked.number(ask.query, "top", default=_LINES, most=_MOST_LINES) or _LINES
    known, begin, moments = groups(ask.site.store.dialect), *_moments(ask, by)
    if len(moments) * (count + 1) > MOST:
        words = f"that makes more than {MOST} numbers: ask for less time, or for fewer lines by 'top'"
        raise Refusal(400, "too_many_rows", words)
    conditions = [*where(ask), *during(begin, None)]
    await ask.site.usage.flush()  # who has just called looks for it
    async with ask.site.store.reading() as connection:
        query = _statement(known[by], known.get(word or ""), conditions, count)
        rows = (await connection.execute(query)).mappings().all()
        ids = {row["value"] for row in rows} - {None, 0}
        named = await names(connection, known[word], ids) if word and known[word].name else None
    return Series(by=by, moments=moments, lines=_lines(rows, moments, bool(word), named))


def _one(ask: Ask, name: str, choices: Sequence[str]) -> str | None:
    found = asked.words(ask.query, name, choices)
    if len(found) > 1:
        raise asked.wrong(name, f"must be one of {', '.join(choices)}")
    return found[0] if found else None


def _moments(ask: Ask, by: str) -> tuple[datetime, list[str]]:
    """When it begins, and what each step is called. Raises Refusal."""
    time = _TIMES[by]
    end = asked.moment(ask.query, "to", end=True) or now()
    begin = asked.moment(ask.query, "from")
    if begin is None:
        begin = _floor(end - timedelta(microseconds=1), time.step) if end > _FIRST else end
        begin -= min((time.usual - 1) * time.step, begin - _FIRST)
    first = _floor(begin, time.step)
    steps = max(-((first - end) // time.step), 0)
    if steps > MOST:
        raise Refusal(400, "too_many_rows", f"that makes more than {MOST} moments: ask for less time")
    told = (first + step * time.step for step in range(steps))
    return begin, [one.isoformat()[: time.written] + time.rest for one in told]


def _floor(moment: datetime, step: timedelta) -> datetime:
    return moment - (moment - _FIRST) % step


def _statement(time: Group, group: Group | None, conditions: Sequence[ColumnElement[bool]], count: int) -> Select[Any]:
    """Rows of (time, value, sums); `value` is null for all groups that are not among the first."""
    moment = time.column.label("moment")
    if group is None:
        return select(moment, literal_column("NULL", Text).label("value"), *SUMS).where(*conditions).group_by(moment)
    value = group.column if not group.name else func.coalesce(group.column, literal_column("0"))  # no id is 0
    top = _top(value, conditions, count)
    return (
        select(moment, top.c.value.label("value"), *SUMS)
        .select_from(request_logs.outerjoin(top, top.c.value == value))
        .where(*conditions)
        .group_by(moment, top.c.value)
    )


def _top(value: ColumnElement[Any], conditions: Sequence[ColumnElement[bool]], count: int) -> CTE:
    cost = func.coalesce(func.sum(_LOG.cost), 0)
    query = select(value.label("value")).where(*conditions).group_by(value)
    return query.order_by(cost.desc(), func.count().desc(), value).limit(count).cte("top")


def _lines(
    rows: Sequence[Mapping[str, Any]], moments: Sequence[str], grouped: bool, named: Mapping[Any, str] | None
) -> list[Line]:
    places = {moment: place for place, moment in enumerate(moments)}
    found: dict[Any, dict[str, list[Any]]] = {}
    for row in rows:
        if (place := places.get(row["moment"])) is None:
            continue
        sums = found.setdefault(row["value"], {name: [0] * len(moments) for name in NUMBERS})
        for name in NUMBERS:
            number = int(row[name])
            sums[name][place] = number / NANO if name == "cost" else number
    ranked = sorted(found, key=lambda value: (grouped and value is None, *_rank(found[value]), str(value)))
    return [_line(value, grouped, named, found[value]) for value in ranked]


def _rank(sums: Mapping[str, list[Any]]) -> tuple[float, int]:
    return -sum(sums["cost"]), -sum(sums["requests"])


def _line(value: Any, grouped: bool, named: Mapping[Any, str] | None, sums: dict[str, list[Any]]) -> Line:
    group = (value or None) if named is not None else value
    name = value if named is None else named.get(value)
    return Line(group=group, name=name, others=grouped and value is None, **sums)


_QUERY: Final = FILTERS | {
    "by": f"{' or '.join(TIMES)}; `day` where it is left out.",
    "group_by": f"One of {', '.join(_GROUPS)}: a line for each; one line for all where it is left out.",
    "top": f"How many lines at most, 1 to {_MOST_LINES}, before that of all others; {_LINES} where it is left out.",
    "from": "Beginning, as for usage; where it is left out 30 days, or 48 hours, before the end.",
    "to": "End, as for usage; now where it is left out.",
}

ROUTES: Final = (
    Route(
        "GET",
        "/manage/usage/series",
        Access.KEY,
        "Usage over time, for charts: your own",
        handler=series,
        scope=Scope.USAGE,
        gives=Series,
        query=_QUERY,
    ),
)
