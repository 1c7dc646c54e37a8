"""`/manage/usage`: who used what, and what it cost. Everybody sees his own; administrators see everybody's.

Every attempt is a request here, failed ones and those refused before any was made too. Leaves out how it comes into the
store (`llm_proxy.gateway.usage`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import Column, ColumnElement, Select, Text, case, func, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.schema import NANO, api_keys, request_logs, teams, users

MOST: Final = 10_000  # rows of an answer
_LOG: Final = request_logs.c


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group, which the first fields tell; those that are not grouped by are left out.

    `requests` are attempts at providers and requests that were refused before one; `failed` those of them that failed,
    `retries` those that were not a request's first. `cost` is in US dollars, without the `unpriced`, whose price is not
    known. `input_tokens` are all that went in, cached or not.
    """

    day: str | UnsetType = UNSET  # in UTC
    provider: str | UnsetType = UNSET  # "" where none was asked
    model: str | UnsetType = UNSET
    alias: str | UnsetType = UNSET  # what the caller asked for
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


class _Group(NamedTuple):
    """`field` of the answer, from `column`; for `name` what stands in `names` under that id."""

    field: str
    column: ColumnElement[Any]
    name: str = ""
    names: Column[Any] | None = None


def _groups(dialect: str) -> Mapping[str, _Group]:
    # SQLite keeps moments as texts in UTC, which begin with the day. PostgreSQL takes an expression in GROUP BY for the
    # selected one only without parameters.
    day = literal_column("substr(request_logs.created_at, 1, 10)", Text)
    if dialect != "sqlite":
        day = literal_column("to_char(timezone('UTC', request_logs.created_at), 'YYYY-MM-DD')", Text)
    return {
        "day": _Group("day", day),
        "provider": _Group("provider", _LOG.provider_used),
        "model": _Group("model", _LOG.model_used),
        "alias": _Group("alias", _LOG.alias_used),
        "user": _Group("user_id", _LOG.user_id, "user", users.c.email),
        "team": _Group("team_id", _LOG.team_id, "team", teams.c.name),
        "key": _Group("key_id", _LOG.api_key_id, "key", api_keys.c.name),
    }


GROUPS: Final = tuple(_groups("sqlite"))
_DEFAULT: Final = ("provider", "alias")

# What is no answer of a model: our own refusals, providers' errors, silence. Who leaves is no failure.
_FAILED: Final = or_(_LOG.ending.in_(("refused", "upstream_failed", "timed_out")), _LOG.status_code >= 400)
_SUMS: Final = (
    *(
        func.coalesce(func.sum(_LOG[name]), 0).label(name)
        for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    ),
    func.count().label("requests"),
    func.coalesce(func.sum(case((_FAILED, 1), else_=0)), 0).label("failed"),
    func.coalesce(func.sum(case((_LOG.attempt > 1, 1), else_=0)), 0).label("retries"),
    func.coalesce(func.sum(_LOG.cost), 0).label("cost"),
    func.coalesce(func.sum(case((_LOG.cost.is_(None), 1), else_=0)), 0).label("unpriced"),
)


async def usage(ask: Ask) -> list[Usage]:
    asked.known(ask.query, _QUERY)
    groups = _groups(ask.site.store.dialect)
    wanted = [groups[word] for word in asked.words(ask.query, "group_by", GROUPS) or _DEFAULT]
    query = statement(wanted, _where(ask))
    await ask.site.usage.flush()  # who has just called looks for it
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(query)).mappings().all()
        if len(rows) > MOST:
            raise Refusal(
                400, "too_many_rows", f"that makes more than {MOST} rows: group by less, or ask for less time"
            )
        names = {
            one.name: await _names(connection, one, {row[one.field] for row in rows}) for one in wanted if one.name
        }
    return [_told(dict(row), wanted, names) for row in rows]


def statement(groups: Collection[_Group], where: Collection[ColumnElement[bool]]) -> Select[Any]:
    columns = [one.column.label(one.field) for one in groups]
    return select(*columns, *_SUMS).where(*where).group_by(*columns).order_by(*columns).limit(MOST + 1)


def _where(ask: Ask) -> list[ColumnElement[bool]]:
    """Whose rows, and of when. Raises Refusal where they are not the caller's to see."""
    caller, everybody, user = ask.caller, asked.yes(ask.query, "all"), asked.number(ask.query, "user")
    if everybody and not caller.is_admin:
        raise Refusal(403, "admin_needed", "everybody's usage is for administrators who have signed in", param="all")
    if user is not None and user != caller.user_id and not caller.is_admin:
        raise not_found(f"user {user}")
    begin, end = asked.moment(ask.query, "from"), asked.moment(ask.query, "to", end=True)
    where: list[ColumnElement[bool]] = []
    if user is not None or not everybody:
        where.append(_LOG.user_id == (caller.user_id if user is None else user))
    if begin is not None:
        where.append(_LOG.created_at >= begin)
    if end is not None:
        where.append(_LOG.created_at < end)
    return where


async def _names(connection: AsyncConnection, group: _Group, ids: Collection[Any]) -> Mapping[Any, str]:
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


def _told(row: dict[str, Any], groups: Collection[_Group], names: Mapping[str, Mapping[Any, str]]) -> Usage:
    values = {name: int(value) if name in _NUMBERS else value for name, value in row.items()}
    for one in groups:
        if one.name:
            values[one.name] = names[one.name].get(values[one.field])
    return Usage(**values | {"cost": values["cost"] / NANO})


_NUMBERS: Final = frozenset(one.name for one in _SUMS)  # PostgreSQL's sums are decimals

_QUERY: Final = {
    "from": "Beginning: a day in UTC like 2026-01-31, or a moment like 2026-01-31T12:00:00Z.",
    "to": "End: that day included, or that moment excluded.",
    "group_by": f"Some of {', '.join(GROUPS)}, separated by commas; `provider,alias` where it is left out.",
    "all": "`true`: everybody's usage. For administrators.",
    "user": "That user's usage, by his id. For administrators.",
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
        query=_QUERY,
    ),
)
