"""The accounts, as administrators see and change them. There is always one administrator left.

Leaves out how accounts begin (`manage.auth`, `manage.invitations`) and what API keys are (`manage.auth`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway.facts import Role
from llm_proxy.gateway.manage import asked, auth, deletions
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.schema import model_aliases, now, provider_keys, sessions, users

Limit = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class User(msgspec.Struct):
    """A limit of null is the default of all, 0 none at all."""

    id: int
    email: str
    role: Role
    active: bool
    rate_limit_minute: int | None
    rate_limit_daily: int | None
    created_at: datetime


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays."""

    role: Role | UnsetType = UNSET
    active: bool | UnsetType = UNSET
    rate_limit_minute: Limit | UnsetType | None = UNSET
    rate_limit_daily: Limit | UnsetType | None = UNSET


async def list_users(ask: Ask) -> list[User]:
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(select(users).order_by(users.c.id))).all()
    return [_told(row) for row in rows]


async def change_user(ask: Ask) -> User:
    user_id = ask.number("id")
    values = {name: value for name, value in msgspec.structs.asdict(ask.body).items() if value is not UNSET}
    async with ask.site.store.writing() as connection:
        row = await _one(ask, connection, user_id)
        if values:
            row = (
                await connection.execute(update(users).where(users.c.id == user_id).values(values).returning(users))
            ).one()
            await ask.site.store.changed(connection)
            await note(connection, ask, "user.change", f"user:{user_id}", **values)
        if not row.active:
            await connection.execute(
                update(sessions)
                .where(sessions.c.user_id == user_id, sessions.c.revoked_at.is_(None))
                .values(revoked_at=now())
            )
        await _refuse_without_admin(connection)
    return _told(row)


async def remove_user(ask: Ask) -> None:
    """With his keys, provider keys and aliases; what he used stays, and what was said unless it is asked for."""
    user_id = ask.number("id")
    asked.known(ask.query, ("conversations",))
    async with ask.site.store.writing() as connection:
        await _one(ask, connection, user_id)
        if asked.yes(ask.query, "conversations"):
            await deletions.order(ask, connection, user_id)
        await _refuse_relied_on(connection, user_id)
        gone = await connection.execute(delete(users).where(users.c.id == user_id).returning(users.c.email))
        await ask.site.store.changed(connection)
        await note(connection, ask, "user.delete", f"user:{user_id}", email=gone.scalar_one())
        await _refuse_without_admin(connection)


async def list_keys(ask: Ask) -> list[auth.Key]:
    user_id = ask.number("id")
    async with ask.site.store.reading() as connection:
        if await connection.scalar(select(users.c.id).where(users.c.id == user_id)) is None:
            raise not_found(f"user {user_id}")
    return await auth.keys_of(ask, user_id)


async def revoke_key(ask: Ask) -> None:
    await auth.revoke(ask, ask.number("key_id"), ask.number("id"))


async def _one(ask: Ask, connection: AsyncConnection, user_id: int) -> Any:
    """His row, which nobody else changes meanwhile. Raises Refusal 404."""
    await ask.site.store.alone(connection, "users")
    row = (await connection.execute(select(users).where(users.c.id == user_id))).one_or_none()
    if row is None:
        raise not_found(f"user {user_id}")
    return row


async def _refuse_without_admin(connection: AsyncConnection) -> None:
    """Undoes the transaction after which nobody could manage the gateway. Raises Refusal 409."""
    admins = select(func.count()).select_from(users).where(users.c.role == Role.ADMIN, users.c.active)
    if not await connection.scalar(admins):
        raise Refusal(409, "last_admin", "this is the last administrator; make somebody else one first")


async def _refuse_relied_on(connection: AsyncConnection, user_id: int) -> None:
    """Others' aliases may lead to provider keys that he shared. Raises Refusal 409."""
    using = (
        select(model_aliases.c.alias)
        .join(provider_keys)
        .where(provider_keys.c.user_id == user_id, model_aliases.c.user_id != user_id)
        .distinct()
        .order_by(model_aliases.c.alias)
        .limit(10)
    )
    names = (await connection.scalars(using)).all()
    if names:
        words = f"aliases of others use provider keys of this user: {', '.join(names)}; change or delete these first"
        raise Refusal(409, "in_use", words)


def _told(row: Any) -> User:
    return User(**{name: getattr(row, name) for name in User.__struct_fields__})


ROUTES = (
    Route("GET", "/manage/users", Access.ADMIN, "All accounts", list_users, gives=list[User]),
    Route("PATCH", "/manage/users/{id}", Access.ADMIN, "Change an account", change_user, takes=Change, gives=User),
    Route(
        "DELETE",
        "/manage/users/{id}",
        Access.ADMIN,
        "Remove an account",
        remove_user,
        query={"conversations": "true: what is recorded of its conversations is deleted too, on every machine"},
    ),
    Route("GET", "/manage/users/{id}/keys", Access.ADMIN, "An account's API keys", list_keys, gives=list[auth.Key]),
    Route("DELETE", "/manage/users/{id}/keys/{key_id}", Access.ADMIN, "Revoke an account's API key", revoke_key),
)
