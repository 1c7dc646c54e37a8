"""The audit log, for administrators: a page of acts, newest first, by person, kind and time. Leaves out writing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from llm_proxy.gateway.manage import asked
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.screens.page import Answer, Html, Page, Visit

KINDS: Final = {
    "alias": "Aliases",
    "provider_key": "Provider keys",
    "key": "API keys",
    "user": "Users",
    "team": "Teams",
    "invitation": "Invitations",
    "session": "Sessions",
    "limit": "Limits",
    "privacy": "Privacy",
    "conversations": "Deletions",
    "machine": "Machines",
}
_FILTERS: Final = ("action", "user", "from", "to")
_PAGE: Final = "50"


@dataclass(frozen=True, slots=True)
class View:
    """`older` is the query of the page that follows, "" where there is none. `given` are the filters that are set."""

    acts: tuple[Any, ...]  # manage.audit.Act
    older: str
    given: Mapping[str, str]
    people: Mapping[int, str]


async def view(desk: Desk, query: Mapping[str, str]) -> View:
    """Raises Refusal."""
    asked.known(query, (*_FILTERS, "before", "said"))
    given = {name: query[name] for name in _FILTERS if query.get(name)}
    told = given | {"limit": _PAGE} | ({"before": query["before"]} if query.get("before") else {})
    page = await desk.ask("GET", "/manage/audit", query=told)
    people = {one.id: one.email for one in await desk.ask("GET", "/manage/users")}
    older = "?" + urlencode(given | {"before": str(page.next)}) if page.next is not None else ""
    return View(tuple(page.acts), older, given, people)


def named(object: str, people: Mapping[int, str]) -> str:
    """A user by the e-mail address; anything else as it is."""
    kind, _, number = object.partition(":")
    return people.get(int(number), object) if kind == "user" and number.isdecimal() and len(number) < 19 else object


def said(detail: Mapping[str, Any], people: Mapping[int, str]) -> str:
    """What an act's detail tells, on one line."""
    told = {name: named(f"user:{value}", people) if name == "user" else _plain(value) for name, value in detail.items()}
    return ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in told.items())


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


# --- the page


async def _show(visit: Visit) -> Answer:
    return Html("audit", {"view": await view(visit.desk, visit.query), "kinds": KINDS, "said": said, "named": named})


PAGES: Final = (Page("/audit", Access.ADMIN, "Audit log", _show, nav="Audit", order=90),)
