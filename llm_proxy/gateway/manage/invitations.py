"""Invitations: whoever brings one may sign up, once, as what it says. Leaves out signing up (`manage.auth`)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from sqlalchemy import delete, insert, select

from llm_proxy.gateway import accounts, apikeys
from llm_proxy.gateway.facts import Role
from llm_proxy.gateway.refusals import not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.schema import invitations, now

KEPT: Final = timedelta(days=90)  # how long those past use are still listed


class NewInvitation(msgspec.Struct, forbid_unknown_fields=True):
    """Without `email` it is for whoever brings it."""

    email: str = ""
    role: Role = Role.MEMBER
    expires_in_days: Annotated[int, msgspec.Meta(ge=1, le=90)] = 7


class Invitation(msgspec.Struct):
    id: int
    email: str
    role: Role
    created_by: int | None
    created_at: datetime
    expires_at: datetime
    used_by: int | None
    used_at: datetime | None


class MadeInvitation(Invitation):
    """`token` is shown this once."""

    token: str = ""


async def invite(ask: Ask) -> MadeInvitation:
    body: NewInvitation = ask.body
    at, token = now(), apikeys.new(apikeys.INVITATION)
    values = {
        "token_hash": apikeys.digest(token),
        "email": accounts.email_of(body.email) if body.email else "",
        "role": body.role,
        "created_by": ask.caller.user_id,
        "created_at": at,
        "expires_at": at + timedelta(days=body.expires_in_days),
    }
    async with ask.site.store.writing() as connection:
        await connection.execute(delete(invitations).where(invitations.c.expires_at < at - KEPT))
        made = (await connection.execute(insert(invitations).values(values).returning(invitations))).one()
        await note(connection, ask, "invitation.create", f"invitation:{made.id}", email=made.email, role=made.role)
    return MadeInvitation(**_told(made), token=token)


async def list_invitations(ask: Ask) -> list[Invitation]:
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(select(invitations).order_by(invitations.c.id))).all()
    return [Invitation(**_told(row)) for row in rows]


async def withdraw(ask: Ask) -> None:
    """A used one only leaves the list."""
    number = ask.number("id")
    async with ask.site.store.writing() as connection:
        gone = await connection.execute(delete(invitations).where(invitations.c.id == number))
        if not gone.rowcount:
            raise not_found(f"invitation {number}")
        await note(connection, ask, "invitation.delete", f"invitation:{number}")


def _told(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Invitation.__struct_fields__}


ROUTES = (
    Route(
        *("POST", "/manage/invitations", Access.ADMIN, "Invite somebody", invite),
        takes=NewInvitation,
        gives=MadeInvitation,
        status=201,
    ),
    Route("GET", "/manage/invitations", Access.ADMIN, "All invitations", list_invitations, gives=list[Invitation]),
    Route("DELETE", "/manage/invitations/{id}", Access.ADMIN, "Withdraw an invitation", withdraw),
)
