"""The gateway's machines, and conversations that they delete, for administrators.

Leaves out who is away and what a deletion is (`manage.machines`, `manage.deletions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.screens.page import Answer, Html, Lead, Page, Visit
from llm_proxy.web import words

_SHOWN: Final = 50  # deletions, the latest


@dataclass(frozen=True, slots=True)
class Machine:
    """`waiting` deletions it has not done."""

    machine: Any  # manage.machines.Machine
    waiting: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """`state` is one of done, waiting, away: the last waits for a machine that has not been heard of lately.

    `by` is who asked for it, "" where it is his own.
    """

    deletion: Any  # manage.deletions.Deletion
    state: str
    whose: str
    by: str


@dataclass(frozen=True, slots=True)
class View:
    """`older` deletions are not among those shown."""

    machines: tuple[Machine, ...]
    deletions: tuple[Deletion, ...]
    older: int


async def view(desk: Desk) -> View:
    people = {one.id: one.email for one in await desk.ask("GET", "/manage/users")}
    found = await desk.ask("GET", "/manage/deletions")
    waiting = Counter(part.machine for one in found for part in one.machines if part.state != "done")
    return View(
        tuple(Machine(one, waiting[one.id]) for one in await desk.ask("GET", "/manage/machines")),
        tuple(_deletion(one, people) for one in found[:_SHOWN]),
        max(0, len(found) - _SHOWN),
    )


def _deletion(one: Any, people: Mapping[int, str]) -> Deletion:
    whose, by = (people.get(id, f"deleted user {id}") for id in (one.user_id, one.requested_by))
    away = any(part.state == "away" for part in one.machines)
    state = "done" if one.done else "away" if away else "waiting"
    return Deletion(one, state, whose, "" if one.user_id == one.requested_by else by)


# --- the page


async def _show(visit: Visit) -> Answer:
    return Html("machines", {"view": await view(visit.desk), "words": words})


async def _forget(visit: Visit) -> Answer:
    """Raises Refusal 404, 409 for one that serves."""
    await visit.desk.ask("DELETE", "/manage/machines/{id}", id=visit.form.get("id"))
    return Lead("/machines", "forgotten")


_SAID: Final = {"forgotten": "The machine is forgotten: no deletion waits for it any more."}

PAGES: Final = (Page("/machines", Access.ADMIN, "Machines", _show, {"forget": _forget}, "Machines", 85, _SAID),)
