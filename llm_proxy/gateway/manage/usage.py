"""`/manage/usage`: who used what, and what it cost. Everybody sees his own; administrators see everybody's.

Every attempt is a request here, failed ones and those refused before any was made too. Leaves out how it comes into the
store (`llm_proxy.gateway.usage`), single attempts (`usage_calls`) and what is said of a time without any (`series`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Column, ColumnElement, Select, Text, and_, case, func, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway import tabular
from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Document, Route
from llm_proxy.gateway.store.schema import NANO, api_keys, request_logs, teams, users

MOST: Final = 10_000  # rows of an answer
_LOG: Final = request_logs.c


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group, which the first fields tell; those that are not grouped by are left out.

    `requests` are attempts at providers and requests that were refused before one; `failed` those of them that failed,
    `retries` those that were not a request's first. `cost` is in US dollars, without the `unpriced`, whose price is not
    known. `input_tokens` are all that went in, cached or not. The two times are means of whole answers, in seconds;
    null where there was none.
    """

    day: str | UnsetType = UNSET  # in UTC
    hour: str | UnsetType = UNSET  # its beginning, in UTC
    provider: str | UnsetType = UNSET  # "" where none was asked
    model: str | UnsetType = UNSET
    alias: str | UnsetType = UNSET  # what the caller asked for
    project: str | UnsetType = UNSET  # "" where he named none
    user_id: int | UnsetType = UNSET
    user: str | UnsetType | None = UNSET  # his address; null where he has been deleted
    team_id: int | UnsetType | None = UNSET
    team: str | UnsetType | None = UNSET
    key_id: int | UnsetType | None = UNSET  # null: by a session
    key: str | UnsetType | None = UNSET
    input_tokens: int
    output_tokens: int
    requests: int
    failed: int
    retries: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: float
    unpriced: int
    seconds: float | None
    first_token_seconds: float | None


class Group(NamedTuple):
    """`field` of the answer, from `column`; for `name` what stands in `names` under that id."""

    field: str
    column: ColumnElement[Any]
    name: str = ""
    names: Column[Any] | None = None


# SQLite keeps moments as texts in UTC, which begin with the day. PostgreSQL takes an expression in GROUP BY for the
# selected one only without parameters.
_TIMES: Final = {
    "sqlite": {
        "day": "substr(request_logs.created_at, 1, 10)",
        "hour": "substr(request_logs.created_at, 1, 10) || 'T' || substr(request_logs.created_at, 12, 2) || ':00:00Z'",
    },
    "postgresql": {
        "day": "to_char(timezone('UTC', request_logs.created_at), 'YYYY-MM-DD')",
        "hour": """to_char(timezone('UTC', request_logs.created_at), 'YYYY-MM-DD"T"HH24":00:00Z"')""",
    },
}
TIMES: Final = ("day", "hour")


def groups(dialect: str) -> Mapping[str, Group]:
    """What may be grouped by, times first."""
    return {name: Group(name, literal_column(words, Text)) for name, words in _TIMES[dialect].items()} | {
        "provider": Group("provider", _LOG.provider_used),
        "model": Group("model", _LOG.model_used),
        "alias": Group("alias", _LOG.alias_used),
        "project": Group("project", _LOG.project),
        "user": Group("user_id", _LOG.user_id, "user", users.c.email),
        "team": Group("team_id", _LOG.team_id, "team", teams.c.name),
        "key": Group("key_id", _LOG.api_key_id, "key", api_keys.c.name),
    }


GROUPS: Final = tuple(groups("sqlite"))
_DEFAULT: Final = ("provider", "alias")

# What is no answer of a model: our own refusals, providers' errors, silence. Who leaves is no failure.
FAILED: Final = or_(_LOG.ending.in_(("refused", "upstream_failed", "timed_out")), _LOG.status_code >= 400)
_WHOLE: Final = and_(_LOG.ending == "complete", _LOG.status_code < 400, _LOG.attempt > 0)
SUMS: Final = (
    *(
        func.coalesce(func.sum(_LOG[name]), 0).label(name)
        for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    ),
    func.count().label("requests"),
    func.coalesce(func.sum(case((FAILED, 1), else_=0)), 0).label("failed"),
    func.coalesce(func.sum(case((_LOG.attempt > 1, 1), else_=0)), 0).label("retries"),
    func.coalesce(func.sum(_LOG.cost), 0).label("cost"),
    func.coalesce(func.sum(case((_LOG.cost.is_(None), 1), else_=0)), 0).label("unpriced"),
)
_MEANS: Final = (
    func.avg(case((_WHOLE, _LOG.milliseconds))).label("seconds"),
    func.avg(case((_WHOLE, _LOG.first_token_milliseconds))).label("first_token_seconds"),
)


async def usage(ask: Ask) -> list[Usage] | Document:
    asked.known(ask.query, _QUERY)
    csv = tabular.wanted(ask.query, ask.accept)
    told = await sums(ask)
    if not csv:
        return told
    columns = [name for one in _grouped(ask) for name in (one.field, one.name) if name] + list(_SUMMED)
    return tabular.document("usage", columns, map(msgspec.structs.asdict, told))


async def sums(ask: Ask) -> list[Usage]:
    """By what the query says. Raises Refusal."""
    wanted = _grouped(ask)
    query = statement(wanted, where(ask))
    await ask.site.usage.flush()  # who has just called looks for it
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(query)).mappings().all()
        if len(rows) > MOST:
            raise too_many()
        named = {one.name: await names(connection, one, {row[one.field] for row in rows}) for one in wanted if one.name}
    return [_told(dict(row), wanted, named) for row in rows]


def too_many() -> Refusal:
    return Refusal(400, "too_many_rows", f"that makes more than {MOST} rows: group by less, or ask for less time")


def _grouped(ask: Ask) -> Sequence[Group]:
    known = groups(ask.site.store.dialect)
    return [known[word] for word in asked.words(ask.query, "group_by", GROUPS) or _DEFAULT]


def statement(groups: Collection[Group], where: Collection[ColumnElement[bool]]) -> Select[Any]:
    columns = [one.column.label(one.field) for one in groups]
    return select(*columns, *SUMS, *_MEANS).where(*where).group_by(*columns).order_by(*columns).limit(MOST + 1)


# What is asked of one column alone.
_SAME: Final = {
    "provider": _LOG.provider_used,
    "model": _LOG.model_used,
    "alias": _LOG.alias_used,
    "project": _LOG.project,
}


def where(ask: Ask) -> list[ColumnElement[bool]]:
    """Whose rows, of when, and which. Raises Refusal where they are not the caller's to see."""
    begin, end = asked.moment(ask.query, "from"), asked.moment(ask.query, "to", end=True)
    return [*whose(ask), *during(begin, end), *_which(ask)]


def whose(ask: Ask) -> list[ColumnElement[bool]]:
    caller, everybody, user = ask.caller, asked.yes(ask.query, "all"), asked.number(ask.query, "user")
    if everybody and not caller.is_admin:
        raise Refusal(403, "admin_needed", "everybody's usage is for administrators who have signed in", param="all")
    if user is not None and user != caller.user_id and not caller.is_admin:
        raise not_found(f"user {user}")
    if user is None and everybody:
        return []
    return [_LOG.user_id == (caller.user_id if user is None else user)]


def during(begin: datetime | None, end: datetime | None) -> list[ColumnElement[bool]]:
    after = [] if begin is None else [_LOG.created_at >= begin]
    return after + ([] if end is None else [_LOG.created_at < end])


def _which(ask: Ask) -> list[ColumnElement[bool]]:
    same = [column == asked.text(ask.query, name) for name, column in _SAME.items() if name in ask.query]
    team, key = asked.number(ask.query, "team"), asked.number(ask.query, "key")
    same += [] if team is None else [_LOG.team_id == team]
    same += [] if key is None else [_LOG.api_key_id == key]
    return same + ([FAILED] if asked.yes(ask.query, "failed") else [])


async def names(connection: AsyncConnection, group: Group, ids: Collection[Any]) -> Mapping[Any, str]:
    """Of those ids that are in the rows, and so are the caller's to see."""
    assert group.names is not None
    table = group.names.table
    found: dict[Any, str] = {}
    known = [id for id in ids if id is not None]
    for start in range(0, len(known), 500):
        some = table.c.id.in_(known[start : start + 500])
        for id, name in await connection.execute(select(table.c.id, group.names).where(some)):
            found[id] = name
    return found


def _told(row: dict[str, Any], groups: Collection[Group], names: Mapping[str, Mapping[Any, str]]) -> Usage:
    values = {name: int(value) if name in NUMBERS else value for name, value in row.items()}
    for one in groups:
        if one.name:
            values[one.name] = names[one.name].get(values[one.field])
    for name in ("seconds", "first_token_seconds"):
        values[name] = None if values[name] is None else round(float(values[name]) / 1000, 3)
    return Usage(**values | {"cost": values["cost"] / NANO})


NUMBERS: Final = frozenset(one.name for one in SUMS)  # PostgreSQL's sums are decimals
_SUMMED: Final = tuple(one.name for one in msgspec.structs.fields(Usage) if one.required)

FILTERS: Final = {
    "from": "Beginning: a day in UTC like 2026-01-31, or a moment like 2026-01-31T12:00:00Z.",
    "to": "End: that day included, or that moment excluded.",
    "all": "`true`: everybody's usage. For administrators.",
    "user": "That user's usage, by his id. For administrators.",
    **{name: f"Only what has this {name}." for name in _SAME},
    "team": "Only what counts for this team, by its id.",
    "key": "Only what came by this API key, by its id.",
    "failed": "`true`: only what failed.",
}
_QUERY: Final = FILTERS | {
    "group_by": f"Some of {', '.join(GROUPS)}, separated by commas; `provider,alias` where it is left out.",
    "format": tabular.FORMAT,
}

ROUTES: Final = (
    Route(
        "GET",
        "/manage/usage",
        Access.KEY,
        "Who used what, and what it cost: your own usage",
        handler=usage,
        scope=Scope.USAGE,
        gives=list[Usage],
        also="text/csv",
        query=_QUERY,
    ),
)
