"""`/manage/usage/calls`: single attempts, newest first. Leaves out sums (`usage`) and what was said (the record)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from sqlalchemy import ColumnElement, and_, or_, select

from llm_proxy.gateway import tabular
from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.manage.usage import FAILED, FILTERS, where
from llm_proxy.gateway.privacy import Level, level
from llm_proxy.gateway.routes import Access, Ask, Document, Route
from llm_proxy.gateway.store.schema import NANO, api_keys, request_logs, teams, users
from llm_proxy.gateway.translate.errors import Kind

PATH: Final = "/manage/usage/calls"
_PAGE: Final = 100
_MOST: Final = 1000
_LOG: Final = request_logs.c
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KINDS: Final = frozenset(map(str, Kind))
_CODE: Final = re.compile(r"[a-z]+(?:_[a-z]+)+", re.ASCII)  # of a refusal
_CURSOR: Final = re.compile(r"(\d{1,17})_([\w.-]{1,48})", re.ASCII)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One call to a provider, or a request that was refused before one (`attempt` 0, `provider` "").

    `request_id` is told to the caller too, and to the record. `status` is null where nothing was answered. Names are
    null where there is none, or what had it has been deleted; `cost` (US dollars) where no price is known. Seconds.
    `error` of other users' calls is a code, or "", unless administrators see all that is recorded.
    """

    at: datetime
    request_id: str
    attempt: int
    user_id: int
    user: str | None
    team_id: int | None
    team: str | None
    key_id: int | None
    key: str | None
    project: str
    api: str
    alias: str
    provider: str
    model: str
    provider_key_id: int | None
    stream: bool
    status: int | None
    ending: str
    failed: bool
    error: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: float | None
    seconds: float
    first_token_seconds: float | None


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first. `next` is the `before` of the page that follows; null: there is none."""

    calls: list[Attempt]
    next: str | None


_COLUMNS: Final = (
    _LOG.created_at.label("at"),
    *(_LOG[name] for name in ("request_id", "attempt", "user_id", "team_id", "project", "api", "provider_key_id")),
    users.c.email.label("user"),
    teams.c.name.label("team"),
    _LOG.api_key_id.label("key_id"),
    api_keys.c.name.label("key"),
    _LOG.alias_used.label("alias"),
    _LOG.provider_used.label("provider"),
    _LOG.model_used.label("model"),
    *(_LOG[name] for name in ("stream", "ending", "error", "input_tokens", "output_tokens", "cache_read_tokens")),
    *(_LOG[name] for name in ("cache_write_tokens", "reasoning_tokens", "cost")),
    _LOG.status_code.label("status"),
    FAILED.label("failed"),
    _LOG.milliseconds.label("seconds"),
    _LOG.first_token_milliseconds.label("first_token_seconds"),
)


async def calls(ask: Ask) -> Attempts | Document:
    asked.known(ask.query, _QUERY)
    csv = tabular.wanted(ask.query, ask.accept)
    told = await page(ask)
    if not csv:
        return told
    after = f"{PATH}?{urlencode({**ask.query, 'before': told.next})}" if told.next else ""
    return tabular.document("calls", Attempt.__struct_fields__, map(msgspec.structs.asdict, told.calls), after)


async def page(ask: Ask) -> Attempts:
    """By what the query says. Raises Refusal."""
    limit = asked.number(ask.query, "limit", default=_PAGE, most=_MOST) or _PAGE
    joined = (
        request_logs.outerjoin(users, users.c.id == _LOG.user_id)
        .outerjoin(teams, teams.c.id == _LOG.team_id)
        .outerjoin(api_keys, api_keys.c.id == _LOG.api_key_id)
    )
    query = (
        select(_LOG.id, *_COLUMNS)
        .select_from(joined)
        .where(*where(ask), *_before(ask))
        .order_by(_LOG.created_at.desc(), _LOG.id.desc())
        .limit(limit + 1)
    )
    await ask.site.usage.flush()  # who has just called looks for it
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(query)).mappings().all()
    last = rows[limit - 1] if len(rows) > limit else None
    told = [_told(row | {"error": _error(ask, row)}) for row in map(dict, rows[:limit])]
    return Attempts(calls=told, next=_cursor(last) if last else None)


def _error(ask: Ask, row: Mapping[str, Any]) -> str:
    """A provider's words may repeat what was asked: of others' calls they are not for every administrator."""
    words: str = row["error"]
    if row["user_id"] == ask.caller.user_id or level(ask.site.options.admin_sees) is Level.FULL:
        return words
    return words if words in _KINDS or _CODE.fullmatch(words) else ""


def _before(ask: Ask) -> list[ColumnElement[bool]]:
    """Behind the row that a cursor names, which may be gone meanwhile. Raises Refusal."""
    text = ask.query.get("before", "")
    if not text:
        return []
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise asked.wrong("before", f"must be the `next` of another page, got {text[:40]!r}")
    at = _EPOCH + timedelta(microseconds=int(found[1]))
    return [_LOG.created_at <= at, or_(_LOG.created_at < at, and_(_LOG.created_at == at, _LOG.id < found[2]))]


def _cursor(row: Any) -> str:
    return f"{(row['at'] - _EPOCH) // timedelta(microseconds=1)}_{row['id']}"


def _told(row: dict[str, Any]) -> Attempt:
    del row["id"]
    first, cost = row["first_token_seconds"], row["cost"]
    row["failed"] = bool(row["failed"])  # null where there is no status
    row["seconds"] /= 1000
    row["first_token_seconds"] = None if first is None else first / 1000
    row["cost"] = None if cost is None else cost / NANO
    return Attempt(**row)


_QUERY: Final = FILTERS | {
    "before": "What comes behind a page: its `next`.",
    "limit": f"Calls of a page, 1 to {_MOST}; {_PAGE} where it is left out.",
    "format": tabular.FORMAT,
}

ROUTES: Final = (
    Route(
        "GET",
        PATH,
        Access.KEY,
        "The last calls, one by one: your own",
        handler=calls,
        scope=Scope.USAGE,
        gives=Attempts,
        also="text/csv",
        query=_QUERY,
    ),
)
