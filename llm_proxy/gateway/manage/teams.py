"""Teams: who belongs to which, and what it may spend in a month. Leaves out counting that."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway import accounts
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.schema import NANO, now, team_members, teams, users

LARGEST: Final = 1e9  # dollars

Dollars = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]


class NewTeam(msgspec.Struct, forbid_unknown_fields=True):
    """`monthly_budget` in US dollars; null is none."""

    name: str
    monthly_budget: Dollars | None = None


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What is left out stays."""

    name: str | UnsetType = UNSET
    monthly_budget: Dollars | UnsetType | None = UNSET


class Member(msgspec.Struct):
    id: int
    email: str


class Team(msgspec.Struct):
    id: int
    name: str
    monthly_budget: float | None
    created_at: datetime
    members: list[Member]


async def make_team(ask: Ask) -> Team:
    body: NewTeam = ask.body
    name = accounts.name_of(body.name, "a team")
    values = {"name": name, "monthly_budget": _nano(body.monthly_budget), "created_at": now()}
    async with ask.site.store.writing() as connection:
        new = ask.site.store.insert(teams).values(values).on_conflict_do_nothing().returning(teams)
        row = (await connection.execute(new)).one_or_none()
        if row is None:
            raise _taken(name)
        await note(connection, ask, "team.create", f"team:{row.id}", name=name, monthly_budget=body.monthly_budget)
    return _told(row, [])


async def list_teams(ask: Ask) -> list[Team]:
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(select(teams).order_by(teams.c.id))).all()
        members = await _members(connection)
    return [_told(row, members.get(row.id, [])) for row in rows]


async def change_team(ask: Ask) -> Team:
    team_id, body = ask.number("id"), ask.body
    values: dict[str, Any] = {}
    if body.name is not UNSET:
        values["name"] = accounts.name_of(body.name, "a team")
    if body.monthly_budget is not UNSET:
        values["monthly_budget"] = _nano(body.monthly_budget)
    async with ask.site.store.writing() as connection:
        await _refuse_missing(connection, team_id)
        if values:
            try:
                await connection.execute(update(teams).where(teams.c.id == team_id).values(values))
            except IntegrityError:
                raise _taken(values["name"]) from None
            await ask.site.store.changed(connection)
            await note(connection, ask, "team.change", f"team:{team_id}", **_given(body))
        row = (await connection.execute(select(teams).where(teams.c.id == team_id))).one()
        members = await _members(connection)
    return _told(row, members.get(team_id, []))


async def remove_team(ask: Ask) -> None:
    """Its members stay."""
    team_id = ask.number("id")
    async with ask.site.store.writing() as connection:
        gone = await connection.scalar(delete(teams).where(teams.c.id == team_id).returning(teams.c.name))
        if gone is None:
            raise not_found(f"team {team_id}")
        await ask.site.store.changed(connection)
        await note(connection, ask, "team.delete", f"team:{team_id}", name=gone)


async def add_member(ask: Ask) -> None:
    team_id, user_id = ask.number("id"), ask.number("user_id")
    async with ask.site.store.writing() as connection:
        await _refuse_missing(connection, team_id)
        if await connection.scalar(select(users.c.id).where(users.c.id == user_id).with_for_update()) is None:
            raise not_found(f"user {user_id}")
        new = ask.site.store.insert(team_members).values(team_id=team_id, user_id=user_id)
        done = await connection.execute(new.on_conflict_do_nothing())
        if done.rowcount:
            await ask.site.store.changed(connection)
            await note(connection, ask, "team.add", f"team:{team_id}", user=user_id)


async def remove_member(ask: Ask) -> None:
    team_id, user_id = ask.number("id"), ask.number("user_id")
    which = (team_members.c.team_id == team_id, team_members.c.user_id == user_id)
    async with ask.site.store.writing() as connection:
        gone = await connection.execute(delete(team_members).where(*which))
        if not gone.rowcount:
            raise not_found(f"user {user_id} in team {team_id}")
        await ask.site.store.changed(connection)
        await note(connection, ask, "team.remove", f"team:{team_id}", user=user_id)


async def _refuse_missing(connection: AsyncConnection, team_id: int) -> None:
    """Nobody else removes it meanwhile. Raises Refusal 404."""
    if await connection.scalar(select(teams.c.id).where(teams.c.id == team_id).with_for_update()) is None:
        raise not_found(f"team {team_id}")


async def _members(connection: AsyncConnection) -> dict[int, list[Member]]:
    query = select(team_members.c.team_id, users.c.id, users.c.email).join(users).order_by(users.c.id)
    found: dict[int, list[Member]] = {}
    for row in await connection.execute(query):
        found.setdefault(row.team_id, []).append(Member(row.id, row.email))
    return found


def _taken(name: str) -> Refusal:
    return Refusal(409, "name_taken", f"there is a team {name!r} already", param="name")


def _nano(dollars: float | None) -> int | None:
    return None if dollars is None else round(dollars * NANO)


def _given(body: Change) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET}


def _told(row: Any, members: list[Member]) -> Team:
    budget = None if row.monthly_budget is None else row.monthly_budget / NANO
    return Team(row.id, row.name, budget, row.created_at, members)


ROUTES = (
    Route("POST", "/manage/teams", Access.ADMIN, "Make a team", make_team, takes=NewTeam, gives=Team, status=201),
    Route("GET", "/manage/teams", Access.ADMIN, "All teams", list_teams, gives=list[Team]),
    Route("PATCH", "/manage/teams/{id}", Access.ADMIN, "Change a team", change_team, takes=Change, gives=Team),
    Route("DELETE", "/manage/teams/{id}", Access.ADMIN, "Remove a team", remove_team),
    Route("PUT", "/manage/teams/{id}/members/{user_id}", Access.ADMIN, "Add somebody to a team", add_member),
    Route("DELETE", "/manage/teams/{id}/members/{user_id}", Access.ADMIN, "Take somebody out of a team", remove_member),
)
