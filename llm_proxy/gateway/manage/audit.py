"""`/manage/audit`: what was done to accounts, keys and aliases, and by whom. Leaves out writing it (`store.audit`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, or_, select

from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.schema import audit_log, users

_PAGE: Final = 100
_MOST: Final = 1000
_LOG: Final = audit_log.c


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """`action` is like `alias.delete`, `object` like `alias:17`. `user_id` is null for the operator's own commands, and
    `user` for somebody who has been deleted."""

    id: int
    at: datetime
    user_id: int | None
    user: str | None
    action: str
    object: str
    detail: dict[str, Any]
    address: str


class Acts(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first. `next` is the `before` of the page that follows; null: there is none."""

    acts: list[Act]
    next: int | None


async def acts(ask: Ask) -> Acts:
    asked.known(ask.query, _QUERY)
    limit = asked.number(ask.query, "limit", default=_PAGE, most=_MOST) or _PAGE
    query = (
        select(_LOG.id, _LOG.at, _LOG.user_id, users.c.email.label("user"), _LOG.action, _LOG.object)
        .add_columns(_LOG.detail, _LOG.address)
        .select_from(audit_log.outerjoin(users, users.c.id == _LOG.user_id))
        .where(*_where(ask))
        .order_by(_LOG.id.desc())
        .limit(limit + 1)
    )
    async with ask.site.store.reading() as connection:
        found = [Act(**row) for row in (await connection.execute(query)).mappings()]
    return Acts(acts=found[:limit], next=found[limit - 1].id if len(found) > limit else None)


def _where(ask: Ask) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if before := asked.number(ask.query, "before"):
        where.append(_LOG.id < before)
    if user := asked.number(ask.query, "user"):
        where.append(_LOG.user_id == user)
    if action := asked.text(ask.query, "action"):
        where.append(or_(_LOG.action == action, _LOG.action.startswith(f"{action}.", autoescape=True)))
    if begin := asked.moment(ask.query, "from"):
        where.append(_LOG.at >= begin)
    if end := asked.moment(ask.query, "to", end=True):
        where.append(_LOG.at < end)
    return where


_QUERY: Final = {
    "before": "Acts with smaller ids only: `next` of the page before.",
    "limit": f"Acts of a page, 1 to {_MOST}; {_PAGE} where it is left out.",
    "action": "One action, like `alias.delete`, or all of a kind, like `alias`.",
    "user": "Acts of that user, by his id.",
    "from": "Beginning: a day in UTC like 2026-01-31, or a moment like 2026-01-31T12:00:00Z.",
    "to": "End: that day included, or that moment excluded.",
}

ROUTES: Final = (
    Route(
        "GET",
        "/manage/audit",
        Access.ADMIN,
        "What was done to accounts, keys and aliases, and by whom",
        handler=acts,
        gives=Acts,
        query=_QUERY,
    ),
)
