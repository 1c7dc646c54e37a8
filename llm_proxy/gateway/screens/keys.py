"""My API keys: made here and shown once, listed, revoked. Leaves out their rules (`manage.auth`)."""

from __future__ import annotations

from typing import Any, Final

from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens.page import Answer, Html, Lead, Page, Visit
from llm_proxy.gateway.screens.steps import steps
from llm_proxy.gateway.store.schema import now

_SCOPES: Final = (
    (Scope.MODELS, "Call models", "what clients need"),
    (Scope.USAGE, "Read usage", "your own"),
    (Scope.MANAGE, "Manage", "your provider keys and aliases"),
    (Scope.CONVERSATIONS, "Conversations", "read what you said and were told, in the explorer"),
)
_EXPIRES: Final = (("7", "in 7 days"), ("30", "in 30 days"), ("90", "in 90 days"), ("365", "in a year"), ("", "never"))


async def show(visit: Visit) -> Answer:
    return Html("keys", await _values(visit))


async def _values(visit: Visit) -> dict[str, Any]:
    chosen = visit.form.all("scope") if visit.trouble is not None else [Scope.MODELS]
    keys = await visit.desk.ask("GET", "/auth/key")
    return {
        "keys": keys,
        "scopes": _SCOPES,
        "chosen": chosen,
        "expires": _EXPIRES,
        "now": now(),
        "made": None,
        "steps": await steps(visit.desk),
    }


async def make(visit: Visit) -> Answer:
    """Shows the key at once, since nobody can later."""
    body: dict[str, Any] = {"name": visit.form.get("name").strip(), "scopes": visit.form.all("scope")}
    days = visit.form.get("expires")
    if days:
        if not days.isascii() or not days.isdigit():
            raise Refusal(400, "invalid_request", "when the key expires is a number of days", param="expires")
        body["expires_in_days"] = int(days)
    made = await visit.desk.ask("POST", "/auth/key", body)
    return Html("keys", {**await _values(visit), "made": made})


async def revoke(visit: Visit) -> Answer:
    await visit.desk.ask("DELETE", "/auth/key/{id}", id=visit.form.get("id"))
    return Lead("/keys", "revoked")


PAGES: Final = (
    Page(
        "/keys",
        Access.SESSION,
        "API keys",
        show,
        {"make": make, "revoke": revoke},
        nav="API keys",
        order=40,
        said={"revoked": "The key is revoked: it opens nothing any more."},
    ),
)
