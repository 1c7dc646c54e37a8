"""Limits and budgets: what holds for oneself and how much of it is used; for administrators all there are, and a form.

Leaves out counting (`limiting`) and which limits hold (`limiting.rules`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llm_proxy.gateway.refusals import not_found
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens import fields
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.screens.page import Answer, Html, Lead, Page, Visit
from llm_proxy.gateway.screens.usage import money
from llm_proxy.web import words

KINDS: Final = {
    "requests_minute": "Requests a minute",
    "requests_day": "Requests a day",
    "tokens_minute": "Tokens a minute",
    "tokens_day": "Tokens a day",
    "streams": "Streams at a time",
    "spend_day": "Spending a day",
    "spend_month": "Spending a month",
}
_MONEY: Final = ("spend_day", "spend_month")
_FIELDS: Final = {name: (label, fields.dollars if name in _MONEY else fields.number) for name, label in KINDS.items()}
_MOST: Final = {  # what stands behind a figure
    "requests_minute": "requests a minute",
    "requests_day": "requests a day",
    "tokens_minute": "tokens a minute",
    "tokens_day": "tokens a day",
    "streams": "streams at a time",
    "spend_day": "a day",
    "spend_month": "a month",
}
WARNED: Final = 0.8  # of a limit
_URGENT: Final = ("err", "warn", "")  # in the order they are shown
_YOURS: Final = {"everybody": "Everybody together", "user": "You"}
_SUBJECTS: Final = {"everybody": "Everybody", "team": "Team", "user": "User", "key": "API key", "alias": "Alias"}


@dataclass(frozen=True, slots=True)
class Meter:
    """`share` of the limit is used or held by calls under way, at most 1; `state` is "", warn or err."""

    whose: str
    kind: str
    said: str
    share: float
    state: str
    reset: str


@dataclass(frozen=True, slots=True)
class Row:
    """`of` is like `user:7`; `most` what is limited, as it is shown."""

    of: str
    whose: str
    gone: bool
    most: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class View:
    """`rows` and `choices` (groups of (of, name)) are empty for members."""

    meters: tuple[Meter, ...]
    rows: tuple[Row, ...]
    choices: Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Form:
    of: str
    whose: str
    values: Mapping[str, str]
    there: bool


async def view(desk: Desk) -> View:
    teams = {team.id: team.name for team in (await desk.ask("GET", "/auth/me")).teams}
    meters = [_meter(one, teams) for one in await desk.ask("GET", "/manage/limits/mine")]
    meters.sort(key=lambda one: _URGENT.index(one.state))
    if not desk.admin:
        return View(tuple(meters), (), {})
    rows = tuple(_row(one) for one in await desk.ask("GET", "/manage/limits"))
    return View(tuple(meters), rows, await _choices(desk))


def _meter(one: Any, teams: Mapping[int, str]) -> Meter:
    taken = one.used + one.held
    share = min(1.0, taken / one.most) if one.most else 1.0
    name = teams.get(one.subject_id, "") if one.subject == "team" else one.name
    return Meter(
        whose=_YOURS.get(one.subject) or f"{_SUBJECTS[one.subject]} {name}",
        kind=KINDS[one.limit],
        said=f"{figure(one.limit, taken)} of {figure(one.limit, one.most)}",
        share=share,
        state="err" if share >= 1 else "warn" if share >= WARNED else "",
        reset=words.duration(one.reset_seconds * 1000) if one.reset_seconds and taken else "",
    )


def figure(kind: str, value: float) -> str:
    return money(value) if kind in _MONEY else words.exact(round(value))


def _row(one: Any) -> Row:
    most = {name: figure(name, value) for name in KINDS if (value := getattr(one, name)) is not None}
    return Row(f"{one.subject}:{one.subject_id}", _whose(one.subject, one.subject_id, one.name), one.name is None, most)


def _whose(subject: str, id: int, name: str | None) -> str:
    if subject == "everybody":
        return "Everybody together"
    return f"{_SUBJECTS[subject]} {name}" if name else f"{_SUBJECTS[subject]} {id}, which is gone"


async def _choices(desk: Desk) -> Mapping[str, Sequence[tuple[str, str]]]:
    """Who may be given limits. Others' API keys are chosen on their pages; others' own aliases are not listed."""
    return {
        "All": [("everybody:0", "everybody together")],
        "Teams": [(f"team:{one.id}", one.name) for one in await desk.ask("GET", "/manage/teams")],
        "Users": [(f"user:{one.id}", one.email) for one in await desk.ask("GET", "/manage/users")],
        "Aliases": [(f"alias:{one.id}", one.alias) for one in await desk.ask("GET", "/manage/aliases")],
        "My API keys": [(f"key:{one.id}", one.name) for one in await desk.ask("GET", "/auth/key")],
    }


async def form(desk: Desk, of: str) -> Form:
    """Raises Refusal 404."""
    subject, id = _subject(of)
    for one in await desk.ask("GET", "/manage/limits"):
        if (one.subject, one.subject_id) == (subject, id):
            values = {name: _written(getattr(one, name)) for name in KINDS}
            return Form(of, _whose(subject, id, one.name), values, there=True)
    names = {known: name for group in (await _choices(desk)).values() for known, name in group}
    if subject == "key" and of not in names:
        names |= await _keys(desk)
    whose = _whose(subject, id, names.get(of, str(id)))
    return Form(of, whose, {}, there=False)


async def _keys(desk: Desk) -> Mapping[str, str]:
    """Everybody's API keys."""
    return {
        f"key:{key.id}": f"{key.name} of {user.email}"
        for user in await desk.ask("GET", "/manage/users")
        for key in await desk.ask("GET", "/manage/users/{id}/keys", id=user.id)
    }


def _subject(of: str) -> tuple[str, int]:
    """Raises Refusal 404."""
    subject, _, id = of.partition(":")
    if subject not in _SUBJECTS:
        raise not_found(f"subject {subject[:40]!r} of limits")
    return subject, fields.identity(subject, id)


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:.12g}"


async def put(desk: Desk, of: str, sent: fields.Form) -> None:
    """Raises Refusal."""
    subject, id = _subject(of)
    await desk.ask("PUT", "/manage/limits/{subject}/{id}", fields.body(sent, _FIELDS), subject=subject, id=id)


async def remove(desk: Desk, of: str) -> None:
    """Raises Refusal."""
    subject, id = _subject(of)
    await desk.ask("DELETE", "/manage/limits/{subject}/{id}", subject=subject, id=id)


# --- the pages


async def _show(visit: Visit) -> Answer:
    return Html("limits", {"view": await view(visit.desk), "most": _MOST})


async def _edit(visit: Visit) -> Answer:
    return Html("limit", {"form": await form(visit.desk, _of(visit)), "kinds": KINDS, "money": _MONEY})


async def _put(visit: Visit) -> Answer:
    await put(visit.desk, _of(visit), visit.form)
    return Lead("/limits", "set")


async def _remove(visit: Visit) -> Answer:
    await remove(visit.desk, _of(visit))
    return Lead("/limits", "removed")


def _of(visit: Visit) -> str:
    """Whom the page is about."""
    return visit.query.get("of", "")


_SAID: Final = {"set": "The limits hold from the next call on.", "removed": "These limits hold no longer."}

PAGES: Final = (
    Page("/limits", Access.SESSION, "Limits", _show, nav="Limits", order=50, said=_SAID),
    Page("/limits/edit", Access.ADMIN, "Set limits", _edit, {"save": _put, "delete": _remove}),
)
