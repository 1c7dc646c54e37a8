"""Users, teams and invitations, for administrators.

Leaves out limits (`limits`) and who may be what (`manage.users`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from llm_proxy.gateway.refusals import not_found
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens import fields
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.screens.limits import WARNED
from llm_proxy.gateway.screens.page import ROOT, Answer, Html, Lead, Page, Visit
from llm_proxy.gateway.screens.usage import money
from llm_proxy.gateway.store.schema import now
from llm_proxy.web import words

_USER: Final = {
    "role": ("Role", fields.text),
    "active": ("May sign in", fields.switch),
    "rate_limit_minute": ("Requests a minute", fields.number),
    "rate_limit_daily": ("Requests a day", fields.number),
}
_INVITATION: Final = {
    "email": ("E-mail address", fields.text),
    "role": ("Role", fields.text),
    "expires_in_days": ("Good for days", fields.number),
}
_TEAM: Final = {"name": ("Name", fields.text), "monthly_budget": ("Budget of a month", fields.dollars)}


@dataclass(frozen=True, slots=True)
class User:
    """`self`: its reader."""

    user: Any  # manage.users.User
    teams: tuple[str, ...]
    self: bool
    keys: tuple[Any, ...] = ()  # manage.auth.Key, on his own page


@dataclass(frozen=True, slots=True)
class Invited:
    """`state` is one of open, used, expired."""

    invitation: Any  # manage.invitations.Invitation
    state: str
    by: str


@dataclass(frozen=True, slots=True)
class Users:
    users: tuple[User, ...]
    invitations: tuple[Invited, ...]


@dataclass(frozen=True, slots=True)
class Team:
    """`others` are who is not in it; `spent` is of this month, in US dollars."""

    team: Any  # manage.teams.Team
    others: tuple[Any, ...]
    spent: float
    unpriced: int

    @property
    def share(self) -> float | None:
        """Of its budget; None without one."""
        budget = self.team.monthly_budget
        return None if budget is None else self.spent / budget if budget else 1.0

    @property
    def state(self) -> str:
        """As of a limit's meter."""
        share = self.share or 0
        return "err" if share >= 1 else "warn" if share >= WARNED else ""


async def users(desk: Desk, at: datetime) -> Users:
    found = await desk.ask("GET", "/manage/users")
    emails = {one.id: one.email for one in found}
    teams: dict[int, list[str]] = {}
    for team in await desk.ask("GET", "/manage/teams"):
        for member in team.members:
            teams.setdefault(member.id, []).append(team.name)
    invitations = await desk.ask("GET", "/manage/invitations")
    return Users(
        tuple(User(one, tuple(teams.get(one.id, ())), one.id == desk.caller.user_id) for one in found),
        tuple(
            Invited(one, _state(one, at), emails.get(one.created_by, "somebody who has been deleted"))
            for one in reversed(invitations)
        ),
    )


def _state(invitation: Any, at: datetime) -> str:
    if invitation.used_at is not None:
        return "used"
    return "open" if invitation.expires_at > at else "expired"


async def user(desk: Desk, id: int) -> User:
    """Raises Refusal 404."""
    found = await desk.ask("GET", "/manage/users")
    one = next((one for one in found if one.id == id), None)
    if one is None:
        raise not_found(f"user {id}")
    teams = await desk.ask("GET", "/manage/teams")
    return User(
        one,
        tuple(team.name for team in teams if any(member.id == id for member in team.members)),
        id == desk.caller.user_id,
        tuple(await desk.ask("GET", "/manage/users/{id}/keys", id=id)),
    )


async def change_user(desk: Desk, id: int, form: fields.Form) -> None:
    """Raises Refusal."""
    await desk.ask("PATCH", "/manage/users/{id}", fields.body(form, _USER), id=id)


async def revoke_key(desk: Desk, id: int, key_id: int) -> None:
    """Raises Refusal."""
    await desk.ask("DELETE", "/manage/users/{id}/keys/{key_id}", id=id, key_id=key_id)


async def remove_user(desk: Desk, id: int) -> None:
    """Raises Refusal."""
    await desk.ask("DELETE", "/manage/users/{id}", id=id)


async def invite(desk: Desk, form: fields.Form) -> Any:
    """The invitation with its token, which is known this once. Raises Refusal."""
    body = {name: value for name, value in fields.body(form, _INVITATION).items() if value is not None}
    return await desk.ask("POST", "/manage/invitations", body)


async def withdraw(desk: Desk, id: int) -> None:
    """Raises Refusal."""
    await desk.ask("DELETE", "/manage/invitations/{id}", id=id)


# --- teams


async def teams(desk: Desk, at: datetime) -> tuple[Team, ...]:
    everybody = await desk.ask("GET", "/manage/users")
    month = {"group_by": "team", "all": "true", "from": f"{at:%Y-%m}-01"}
    spent = {one.team_id: one for one in await desk.ask("GET", "/manage/usage", query=month)}
    made = []
    for team in await desk.ask("GET", "/manage/teams"):
        inside = {member.id for member in team.members}
        sums = spent.get(team.id)
        made.append(
            Team(
                team,
                tuple(one for one in everybody if one.id not in inside),
                sums.cost if sums else 0,
                sums.unpriced if sums else 0,
            )
        )
    return tuple(made)


async def team(desk: Desk, id: int, at: datetime) -> Team:
    """Raises Refusal 404."""
    for one in await teams(desk, at):
        if one.team.id == id:
            return one
    raise not_found(f"team {id}")


async def make_team(desk: Desk, form: fields.Form) -> None:
    """Raises Refusal."""
    await desk.ask("POST", "/manage/teams", fields.body(form, _TEAM))


async def change_team(desk: Desk, id: int, form: fields.Form) -> None:
    """Raises Refusal."""
    await desk.ask("PATCH", "/manage/teams/{id}", fields.body(form, _TEAM), id=id)


async def remove_team(desk: Desk, id: int) -> None:
    """Raises Refusal."""
    await desk.ask("DELETE", "/manage/teams/{id}", id=id)


async def put_member(desk: Desk, id: int, user_id: int, *, inside: bool) -> None:
    """Raises Refusal."""
    path = "/manage/teams/{id}/members/{user_id}"
    await desk.ask("PUT" if inside else "DELETE", path, id=id, user_id=user_id)


# --- the pages


async def _users(visit: Visit) -> Answer:
    return Html("users", {"view": await users(visit.desk, now()), "link": "", "invited": None, "words": words})


async def _invite(visit: Visit) -> Answer:
    """Shows the link, this once."""
    made = await invite(visit.desk, visit.form)
    link = f"{visit.url}{ROOT}/sign-up?" + urlencode({"invitation": made.token})
    return Html("users", {"view": await users(visit.desk, now()), "link": link, "invited": made, "words": words})


async def _withdraw(visit: Visit) -> Answer:
    await withdraw(visit.desk, fields.identity("invitation", visit.form.get("id")))
    return Lead("/users", "withdrawn")


async def _user(visit: Visit) -> Answer:
    return Html("user", {"one": await user(visit.desk, _id(visit, "user")), "now": now()})


async def _change_user(visit: Visit) -> Answer:
    await change_user(visit.desk, _id(visit, "user"), visit.form)
    return Lead("/users", "changed")


async def _revoke_key(visit: Visit) -> Answer:
    id = _id(visit, "user")
    await revoke_key(visit.desk, id, fields.identity("API key", visit.form.get("key")))
    return Lead(f"/users/{id}", "revoked")


async def _remove_user(visit: Visit) -> Answer:
    await remove_user(visit.desk, _id(visit, "user"))
    return Lead("/users", "deleted")


async def _teams(visit: Visit) -> Answer:
    return Html("teams", {"teams": await teams(visit.desk, now()), "money": money, "words": words})


async def _make_team(visit: Visit) -> Answer:
    await make_team(visit.desk, visit.form)
    return Lead("/teams", "made")


async def _team(visit: Visit) -> Answer:
    return Html("team", {"one": await team(visit.desk, _id(visit, "team"), now()), "money": money, "words": words})


async def _change_team(visit: Visit) -> Answer:
    await change_team(visit.desk, _id(visit, "team"), visit.form)
    return Lead("/teams", "changed")


async def _put_member(visit: Visit) -> Answer:
    id, member = _id(visit, "team"), fields.identity("user", visit.form.get("user"))
    inside = visit.form.get("do") == "join"
    await put_member(visit.desk, id, member, inside=inside)
    return Lead(f"/teams/{id}", "joined" if inside else "left")


async def _remove_team(visit: Visit) -> Answer:
    await remove_team(visit.desk, _id(visit, "team"))
    return Lead("/teams", "deleted")


def _id(visit: Visit, what: str) -> int:
    return fields.identity(what, visit.params["id"])


_USERS: Final = {
    "changed": "The account is changed.",
    "deleted": "The account is deleted.",
    "withdrawn": "The invitation is withdrawn.",
}
_TEAMS: Final = {"made": "The team is there.", "changed": "The team is changed.", "deleted": "The team is deleted."}
_MEMBERS: Final = {"joined": "Is in the team from the next call on.", "left": "Is no longer in the team."}

PAGES: Final = (
    Page("/users", Access.ADMIN, "Users", _users, {"invite": _invite, "withdraw": _withdraw}, "Users", 70, _USERS),
    Page(
        "/users/{id}",
        Access.ADMIN,
        "Change an account",
        _user,
        {"save": _change_user, "revoke": _revoke_key, "delete": _remove_user},
        said={"revoked": "The key is revoked: it opens nothing any more."},
    ),
    Page("/teams", Access.ADMIN, "Teams", _teams, {"make": _make_team}, "Teams", 75, _TEAMS),
    Page(
        "/teams/{id}",
        Access.ADMIN,
        "Change a team",
        _team,
        {"save": _change_team, "join": _put_member, "leave": _put_member, "delete": _remove_team},
        said=_MEMBERS,
    ),
)
