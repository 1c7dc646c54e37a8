"""Provider keys: those there are, and the forms that keep, test, change and delete them. A key is never shown.

Leaves out what a key may be and where it may be sent: that is `manage.providers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from llm_proxy.gateway.facts import Provider
from llm_proxy.gateway.refusals import not_found
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens import fields
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.screens.page import Answer, Html, Lead, Page, Visit
from llm_proxy.gateway.screens.steps import steps
from llm_proxy.web import words
from llm_proxy.wire.aws_regions import REGIONS

PROVIDERS: Final = {
    Provider.OPENAI: "OpenAI",
    Provider.ANTHROPIC: "Anthropic",
    Provider.GEMINI: "Gemini",
    Provider.BEDROCK: "Amazon Bedrock",
    Provider.COMPATIBLE: "OpenAI-compatible host",
}
_FIELDS: Final = {
    "label": ("Label", fields.text),
    "api_key": ("API key", fields.secret),
    "base_url": ("Base URL", fields.perhaps),
    "region": ("Region", fields.perhaps),
    "shared": ("Shared", fields.switch),
    "test": ("Test", fields.switch),
}


@dataclass(frozen=True, slots=True)
class Card:
    """`models` is how many it is known to open; `aliases` those of its reader's that lead to it."""

    key: Any  # manage.providers.Shown
    models: int
    aliases: tuple[str, ...]
    change: bool

    @property
    def name(self) -> str:
        return self.key.label or f"{PROVIDERS[Provider(self.key.provider)]} {self.key.id}"


async def cards(desk: Desk) -> tuple[Card, ...]:
    return tuple([await _card(desk, key, aliases) for key, aliases in await _keys(desk)])


async def one(desk: Desk, id: int) -> Card:
    """Raises Refusal 404."""
    for key, aliases in await _keys(desk):
        if key.id == id:
            return await _card(desk, key, aliases)
    raise not_found(f"provider key {id}")


async def _keys(desk: Desk) -> list[tuple[Any, tuple[str, ...]]]:
    aliases = await desk.ask("GET", "/manage/aliases")
    return [
        (key, tuple(one.alias for one in aliases if _leads(one, key.id)))
        for key in await desk.ask("GET", "/manage/providers")
    ]


def _leads(alias: Any, id: int) -> bool:
    return alias.provider_key_id == id or any(step.provider_key_id == id for step in alias.chain)


async def _card(desk: Desk, key: Any, aliases: tuple[str, ...]) -> Card:
    models = await desk.ask("GET", "/manage/providers/{id}/models", id=key.id)
    return Card(key, len(models), aliases, not key.shared or desk.admin)


async def add(desk: Desk, form: fields.Form) -> Any:
    """Raises Refusal."""
    body = fields.body(form, _FIELDS) | {"provider": form.get("provider", "")}
    return await desk.ask("POST", "/manage/providers", body)


async def change(desk: Desk, card: Card, form: fields.Form) -> None:
    """An empty field of the key leaves it as it is. Raises Refusal."""
    body = fields.body(form, _FIELDS)
    body = {name: value for name, value in body.items() if name != "api_key" or value}
    if (body["base_url"] or "") == card.key.base_url:
        del body["base_url"]
    await desk.ask("PATCH", "/manage/providers/{id}", body, id=card.key.id)


async def test(desk: Desk, id: int) -> None:
    """The provider is asked for its models by it. Raises Refusal, with the provider's words."""
    key = (await one(desk, id)).key
    await desk.ask("PATCH", "/manage/providers/{id}", {"label": key.label, "test": True}, id=id)


async def remove(desk: Desk, id: int, *, force: bool) -> None:
    """With `force` the aliases that lead to it go too. Raises Refusal 409 where there are some."""
    await desk.ask("DELETE", "/manage/providers/{id}", query={"force": "true"} if force else {}, id=id)


# --- the pages


async def _all(visit: Visit) -> Answer:
    values = {"cards": await cards(visit.desk), "providers": PROVIDERS, "words": words}
    return Html("provider_keys", {**values, "steps": await steps(visit.desk)})


async def _new(visit: Visit) -> Answer:
    return Html("provider_key", {"card": None, "providers": PROVIDERS, "regions": sorted(REGIONS)})


async def _add(visit: Visit) -> Answer:
    await add(visit.desk, visit.form)
    return Lead("/providers", "kept")


async def _edit(visit: Visit) -> Answer:
    card = await one(visit.desk, _id(visit))
    return Html("provider_key", {"card": card, "providers": PROVIDERS, "regions": sorted(REGIONS)})


async def _change(visit: Visit) -> Answer:
    await change(visit.desk, await one(visit.desk, _id(visit)), visit.form)
    return Lead("/providers", "changed")


async def _test(visit: Visit) -> Answer:
    await test(visit.desk, fields.identity("provider key", visit.form.get("id")))
    return Lead("/providers", "tested")


async def _remove(visit: Visit) -> Answer:
    await remove(visit.desk, _id(visit), force=bool(visit.form.get("force")))
    return Lead("/providers", "deleted")


def _id(visit: Visit) -> int:
    return fields.identity("provider key", visit.params["id"])


_SAID: Final = {
    "kept": "The key is kept, encrypted. Its provider is being asked for its models.",
    "changed": "The provider key is changed.",
    "tested": "The provider takes this key.",
    "deleted": "The provider key is deleted.",
}

PAGES: Final = (
    Page("/providers", Access.SESSION, "Provider keys", _all, {"test": _test}, "Provider keys", 20, _SAID),
    Page("/providers/new", Access.SESSION, "New provider key", _new, {"add": _add}),
    Page("/providers/{id}", Access.SESSION, "Change a provider key", _edit, {"save": _change, "delete": _remove}),
)
