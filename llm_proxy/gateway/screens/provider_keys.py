"""Provider keys: those there are, and the forms that keep, test, change and delete them. A key is never shown.

Leaves out what a key may be and where it may be sent: that is `manage.providers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from llm_proxy.gateway.facts import Provider
from llm_proxy.gateway.refusals import not_found
from llm_proxy.gateway.screens import fields
from llm_proxy.gateway.screens.desk import Desk

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


async def add(desk: Desk, form: Mapping[str, str]) -> Any:
    """Raises Refusal."""
    body = fields.body(form, _FIELDS) | {"provider": form.get("provider", "")}
    return await desk.ask("POST", "/manage/providers", body)


async def change(desk: Desk, card: Card, form: Mapping[str, str]) -> None:
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
