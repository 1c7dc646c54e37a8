"""Limits: what everybody together, a team, a user, an API key or an alias may use, and how much of it is used.

Leaves out which of them hold for a call (`limiting.rules`) and counting (`limiting`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from sqlalchemy import ColumnElement, Table, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.limiting.limiter import Usage
from llm_proxy.gateway.limiting.meters import KINDS, Span, Subject, What
from llm_proxy.gateway.refusals import not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.schema import NANO, api_keys, limits, model_aliases, now, teams, users

Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Dollars = Annotated[float, msgspec.Meta(ge=0, le=1e9)]

_NAMED: Final[Mapping[Subject, tuple[Table, ColumnElement[Any]]]] = {
    Subject.TEAM: (teams, teams.c.name),
    Subject.USER: (users, users.c.email),
    Subject.KEY: (api_keys, api_keys.c.name),
    Subject.ALIAS: (model_aliases, model_aliases.c.alias),
}


class Most(msgspec.Struct, forbid_unknown_fields=True):
    """What may be used at most; null, or left out: as much as one likes; 0: nothing. Spending is in US dollars."""

    requests_minute: Count | None = None
    requests_day: Count | None = None
    tokens_minute: Count | None = None
    tokens_day: Count | None = None
    streams: Count | None = None
    spend_day: Dollars | None = None
    spend_month: Dollars | None = None


class Limit(msgspec.Struct):
    """`name` is null where the subject is gone, and "" for everybody."""

    subject: str
    subject_id: int
    name: str | None
    requests_minute: int | None
    requests_day: int | None
    tokens_minute: int | None
    tokens_day: int | None
    streams: int | None
    spend_day: float | None
    spend_month: float | None
    created_at: datetime


class Used(msgspec.Struct):
    """`used` has ended, `held` is what calls under way may use; tokens and requests by number, spending in US dollars.

    `reset_seconds`: until nothing of it counts any more; of streams it is 0.
    """

    subject: str
    subject_id: int
    name: str
    limit: str
    span: str
    most: float
    used: float
    held: float
    reset_seconds: int


async def list_limits(ask: Ask) -> list[Limit]:
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(select(limits).order_by(limits.c.id))).mappings().all()
        names = {subject: await _names(connection, subject, rows) for subject in _NAMED}
    return [_told(dict(row), names.get(row["subject"], {}).get(row["subject_id"])) for row in rows]


async def set_limit(ask: Ask) -> Limit:
    """What is left out is no limit."""
    subject, id = _subject(ask)
    values = _values(ask.body)
    store = ask.site.store
    async with store.writing() as connection:
        name = await _name(connection, subject, id)
        new = store.insert(limits).values(subject=subject, subject_id=id, created_at=now(), **values)
        new = new.on_conflict_do_update(index_elements=["subject", "subject_id"], set_=values)
        row = (await connection.execute(new.returning(limits))).mappings().one()
        await store.changed(connection)
        given = {kind: most for kind, most in msgspec.structs.asdict(ask.body).items() if most is not None}
        await note(connection, ask, "limit.set", f"{subject}:{id}", **given)
    return _told(dict(row), name)


async def remove_limit(ask: Ask) -> None:
    subject, id = _subject(ask)
    which = (limits.c.subject == subject, limits.c.subject_id == id)
    async with ask.site.store.writing() as connection:
        if not (await connection.execute(delete(limits).where(*which))).rowcount:
            raise not_found(f"limit of {subject} {id}")
        await ask.site.store.changed(connection)
        await note(connection, ask, "limit.delete", f"{subject}:{id}")


async def my_limits(ask: Ask) -> list[Used]:
    """All that may hold for a call of his: by any of his keys that are good, or by the one he comes with, and by any
    alias that he can use.
    """
    caller = ask.caller
    keys = [(caller.key_id, caller.key_name)] if caller.key_id is not None else await _keys(ask)
    catalog = await ask.site.catalogs.of(caller.user_id)
    team = [(team_id, "") for team_id in caller.team_ids[:1]]
    subjects = [
        (Subject.EVERYBODY, 0, ""),
        *((Subject.TEAM, id, name) for id, name in team),
        (Subject.USER, caller.user_id, ""),
        *((Subject.KEY, id, name) for id, name in keys),
        *((Subject.ALIAS, alias.id, name) for name, alias in sorted(catalog.aliases.items())),
    ]
    limiter = ask.site.limiter
    await limiter.rules.of(caller)  # they are read
    meters = [meter for one in subjects for meter in limiter.rules.meters(*one, caller)]
    return [_used(one) for one in await limiter.look(meters)]


async def _keys(ask: Ask) -> list[tuple[int, str]]:
    good = or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now())
    query = select(api_keys.c.id, api_keys.c.name).where(
        api_keys.c.user_id == ask.caller.user_id, api_keys.c.revoked_at.is_(None), good
    )
    async with ask.site.store.reading() as connection:
        return [(row.id, row.name) for row in await connection.execute(query.order_by(api_keys.c.id))]


def _subject(ask: Ask) -> tuple[Subject, int]:
    """Raises Refusal 404."""
    name = ask.params["subject"]
    if name not in tuple(Subject):
        raise not_found(f"subject {name[:40]!r}: there are {', '.join(Subject)}")
    subject, id = Subject(name), ask.number("id")
    if subject is Subject.EVERYBODY and id != 0:
        raise not_found(f"everybody {id}: everybody is 0")
    return subject, id


async def _name(connection: AsyncConnection, subject: Subject, id: int) -> str:
    """Whose limit it is, who is there until it is written. Raises Refusal 404."""
    if subject is Subject.EVERYBODY:
        return ""
    table, column = _NAMED[subject]
    name = await connection.scalar(select(column).where(table.c.id == id).with_for_update())
    if name is None:
        raise not_found(f"{subject} {id}")
    return str(name)


async def _names(connection: AsyncConnection, subject: Subject, rows: Any) -> dict[int, str]:
    table, column = _NAMED[subject]
    if not any(row["subject"] == subject for row in rows):
        return {}
    has_one = select(limits.c.subject_id).where(limits.c.subject == subject)
    found = await connection.execute(select(table.c.id, column).where(table.c.id.in_(has_one)))
    return {id: str(name) for id, name in found}


def _values(body: Most) -> dict[str, int | None]:
    given = msgspec.structs.asdict(body)
    return {
        kind.name: None
        if given[kind.name] is None
        else round(given[kind.name] * (NANO if kind.what is What.SPEND else 1))
        for kind in KINDS
    }


def _told(row: Mapping[str, Any], name: str | None) -> Limit:
    most = {
        kind.name: row[kind.name] / NANO if kind.what is What.SPEND and row[kind.name] is not None else row[kind.name]
        for kind in KINDS
    }
    name = "" if row["subject"] == Subject.EVERYBODY else name
    return Limit(subject=row["subject"], subject_id=row["subject_id"], name=name, created_at=row["created_at"], **most)


def _used(told: Usage) -> Used:
    meter, kind = told.meter, told.meter.kind

    def shown(number: int) -> float:
        return number / NANO if kind.what is What.SPEND else number

    return Used(
        subject=meter.subject,
        subject_id=meter.id,
        name=meter.name,
        limit=kind.name,
        span="" if kind.span is Span.NOW else kind.span,
        most=shown(meter.most),
        used=shown(max(told.used, 0)),
        held=shown(max(told.held, 0)),
        reset_seconds=round(told.reset),
    )


_PATH: Final = "/manage/limits/{subject}/{id}"
ROUTES = (
    Route("GET", "/manage/limits", Access.ADMIN, "All limits", list_limits, gives=list[Limit]),
    Route(
        "GET",
        "/manage/limits/mine",
        Access.KEY,
        "The limits that hold for oneself, and how much of them is used",
        my_limits,
        scope=Scope.USAGE,
        gives=list[Used],
    ),
    Route("PUT", _PATH, Access.ADMIN, "Set the limits of one subject", set_limit, takes=Most, gives=Limit),
    Route("DELETE", _PATH, Access.ADMIN, "Remove the limits of one subject", remove_limit),
)
