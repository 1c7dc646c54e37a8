"""My account: who I am, my password, how much is kept of my conversations, and their deletion.

Leaves out their rules (`manage.auth`, `manage.privacy`, `manage.deletions`).
"""

from __future__ import annotations

from typing import Any, Final

from llm_proxy.gateway.privacy import Level, of_user
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens.page import Answer, Html, Lead, Page, Visit

_SHOWN: Final = 5  # deletions, the latest
_LEVELS: Final = {
    Level.NONE: ("Nothing", "Not even that there was a call. What it cost still counts towards usage."),
    Level.METADATA: ("Figures only", "When, which model, how many tokens, what it cost; no word of what was said."),
    Level.REDACTED: ("Masked", "What was said, with keys, addresses and the like masked."),
    Level.FULL: ("Everything", "What was said, as it was."),
}


async def show(visit: Visit) -> Answer:
    desk = visit.desk
    privacy = await desk.ask("GET", "/manage/privacy")
    mine = [one for one in await desk.ask("GET", "/manage/deletions") if one.user_id == visit.caller.user_id]
    values: dict[str, Any] = {
        "me": await desk.ask("GET", "/auth/me"),
        "deletions": mine[:_SHOWN],
        "privacy": privacy,
        "levels": _LEVELS,
        "choices": [("", f"As the operator says ({_LEVELS[_usual(visit)][0].lower()})")]
        + [(level, _LEVELS[level][0]) for level in privacy.choices],
    }
    return Html("account", values)


def _usual(visit: Visit) -> Level:
    return of_user("", visit.site.options)


async def change_password(visit: Visit) -> Answer:
    if visit.form.get("new") != visit.form.get("again"):
        raise Refusal(400, "passwords_differ", "the two new passwords are not the same", param="again")
    await visit.desk.ask(
        "POST",
        "/auth/password",
        {"current_password": visit.form.get("current"), "new_password": visit.form.get("new")},
    )
    return Lead("/account", "password")


async def choose_privacy(visit: Visit) -> Answer:
    await visit.desk.ask("PUT", "/manage/privacy", {"level": visit.form.get("level") or None})
    return Lead("/account", "privacy")


async def delete_conversations(visit: Visit) -> Answer:
    await visit.desk.ask("DELETE", "/manage/me/conversations")
    return Lead("/account", "deleted")


PAGES: Final = (
    Page(
        "/account",
        Access.SESSION,
        "My account",
        show,
        {"password": change_password, "privacy": choose_privacy, "delete": delete_conversations},
        nav="Account",
        order=60,
        said={
            "password": "The password is changed, and every other browser of yours signed out.",
            "privacy": "Saved. It holds from the next call on.",
            "deleted": "Your conversations so far are being deleted, on every machine that has some.",
        },
    ),
)
