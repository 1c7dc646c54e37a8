"""Conversations deleted for good, wherever they are recorded: asked for here, done by every machine, told by each.

Leaves out how a machine does it (`machine`, the keeper). What was used stays, without the words of errors.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import exists, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway.facts import Caller, Role
from llm_proxy.gateway.machine import BEAT
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.schema import deletion_reports, deletions, machines, now, request_logs, users
from llm_proxy.gateway.store.wordless import wordless

MOST: Final = 1000  # that are listed, the latest
AWAY: Final = timedelta(seconds=3 * BEAT)


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """Only what was begun before this moment, which says its zone; all until now where it is left out."""

    before: datetime | None = None


class Part(msgspec.Struct):
    """One machine's. `away` has not been heard of lately, and deletes when it is back. `left` is what it cannot delete.

    `conversations` and `done_at` are null until it is done. `name` is "" unless an administrator asks.
    """

    machine: str
    name: str
    state: Literal["done", "waiting", "away"]
    done_at: datetime | None
    conversations: int | None
    left: str


class Deletion(msgspec.Struct):
    id: int
    user_id: int
    requested_by: int
    requested_at: datetime
    before: datetime
    done: bool
    machines: list[Part]


async def delete_mine(ask: Ask) -> Deletion:
    async with ask.site.store.writing() as connection:
        number = await order(ask, connection, ask.caller.user_id, ask.body.before)
        return _seen(await _one(connection, number), ask.caller)


async def delete_of(ask: Ask) -> Deletion:
    user_id = ask.number("id")
    async with ask.site.store.writing() as connection:
        # Whoever is gone may have left conversations.
        known = or_(exists().where(users.c.id == user_id), exists().where(request_logs.c.user_id == user_id))
        if not await connection.scalar(select(known)):
            raise not_found(f"user {user_id}")
        return await _one(connection, await order(ask, connection, user_id, ask.body.before))


async def order(ask: Ask, connection: AsyncConnection, user_id: int, before: datetime | None = None) -> int:
    """Have all machines delete what this user's calls have left; the deletion's id. Raises Refusal 400."""
    if before is not None and before.tzinfo is None:
        raise Refusal(400, "invalid_request", "before: must say its zone, as in 2026-01-31T12:00:00Z", param="before")
    moment = await _clock(connection)
    until = min(before or moment, moment)
    made = insert(deletions).values(
        account=ask.site.store.account(user_id),
        user_id=user_id,
        requested_by=ask.caller.user_id,
        requested_at=moment,
        before=until,
    )
    number = await connection.scalar(made.returning(deletions.c.id))
    assert number is not None
    await connection.execute(wordless(request_logs.c.user_id == user_id))
    await ask.site.store.changed(connection)
    await note(connection, ask, "conversations.delete", f"user:{user_id}", deletion=number, before=until.isoformat())
    return int(number)


async def _clock(connection: AsyncConnection) -> datetime:
    """Now, by the one clock that all machines can ask."""
    if connection.dialect.name != "postgresql":
        return now()
    moment: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return moment


async def list_deletions(ask: Ask) -> list[Deletion]:
    """An administrator's are everybody's."""
    wanted = select(deletions).order_by(deletions.c.id.desc()).limit(MOST)
    if ask.caller.role is not Role.ADMIN:
        wanted = wanted.where(deletions.c.user_id == ask.caller.user_id)
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(wanted)).all()
        return [_seen(one, ask.caller) for one in await _told(connection, rows)]


def _seen(told: Deletion, caller: Caller) -> Deletion:
    """How machines are called is for administrators."""
    if caller.role is not Role.ADMIN:
        for part in told.machines:
            part.name = ""
    return told


async def _one(connection: AsyncConnection, number: int) -> Deletion:
    rows = (await connection.execute(select(deletions).where(deletions.c.id == number))).all()
    return (await _told(connection, rows))[0]


async def _told(connection: AsyncConnection, rows: Any) -> list[Deletion]:
    if not rows:
        return []
    ids = [row.id for row in rows]
    reports: dict[int, dict[str, Any]] = {number: {} for number in ids}
    query = select(deletion_reports).where(deletion_reports.c.deletion_id.in_(ids))
    for report in (await connection.execute(query)).all():
        reports[report.deletion_id][report.machine] = report
    known = {one.id: one for one in (await connection.execute(select(machines).order_by(machines.c.id))).all()}
    return [_deletion(row, reports[row.id], known) for row in rows]


def _deletion(row: Any, reports: dict[str, Any], known: dict[str, Any]) -> Deletion:
    parts = [_part(id, known.get(id), reports.get(id)) for id in sorted({*known, *reports})]
    done = bool(parts) and all(part.state == "done" for part in parts)
    return Deletion(row.id, row.user_id, row.requested_by, row.requested_at, row.before, done, parts)


def _part(id: str, machine: Any, report: Any) -> Part:
    name = machine.name if machine is not None else ""
    if report is not None:
        return Part(id, name, "done", report.done_at, report.conversations, report.left)
    return Part(id, name, "away" if now() - machine.seen_at > AWAY else "waiting", None, None, "")


ROUTES = (
    Route(
        "DELETE",
        "/manage/me/conversations",
        Access.SESSION,
        "Delete what is recorded of one's own conversations, on every machine",
        delete_mine,
        takes=Wanted,
        gives=Deletion,
        status=202,
    ),
    Route(
        "DELETE",
        "/manage/users/{id}/conversations",
        Access.ADMIN,
        "Delete what is recorded of a user's conversations, on every machine",
        delete_of,
        takes=Wanted,
        gives=Deletion,
        status=202,
    ),
    Route(
        "GET",
        "/manage/deletions",
        Access.SESSION,
        "What was asked to be deleted, and how far each machine is; administrators see everybody's",
        list_deletions,
        gives=list[Deletion],
    ),
)
