"""Aliases: the cards of those there are, and the form that makes or changes one.

The form's chain is rows that can be added, moved and taken away by buttons which send it and get it back, so that it
takes no script. Leaves out which aliases there may be: that is `manage.aliases`, in whose words refusals are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from llm_proxy.gateway.manage.aliases import LONGEST_CHAIN
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens import fields
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.screens.page import Answer, Html, Lead, Page, Visit
from llm_proxy.gateway.screens.steps import steps
from llm_proxy.web import words

_FIELDS: Final = {
    "alias": ("Name", fields.text),
    "target_model": ("Model", fields.text),
    "provider_key_id": ("Provider key", fields.number),
    "weight": ("Weight", fields.number),
    "fallback_alias_id": ("Fallback alias", fields.number),
    "use_light_model": ("Use a light model", fields.switch),
    "light_model": ("Light model", fields.perhaps),
    "light_model_threshold": ("Light model below", fields.number),
    "long_model": ("Long model", fields.perhaps),
    "long_model_threshold": ("Long model from", fields.number),
    "parameters": ("Parameters", fields.json_object),
    "shared": ("Shared", fields.switch),
}
_DEFAULTS: Final = {"weight": 1, "light_model_threshold": 100, "provider_key_id": 0}  # of what may be left empty
_LONGEST: Final = 20_000  # characters of a field that is shown again
_STEP: Final = ("key", "model", "rank", "weight")


@dataclass(frozen=True, slots=True)
class Key:
    """A provider key that may be chosen. `models` are those it is known to open."""

    id: int
    label: str
    provider: str
    shared: bool
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A model at a provider key, as a card tells it. `rank` is the turn it is tried in."""

    key: str
    model: str
    rank: int
    weight: int


@dataclass(frozen=True, slots=True)
class Card:
    """`change`: whether its reader may change it."""

    alias: Any  # manage.aliases.Shown
    key: str
    places: tuple[Place, ...]
    fallbacks: tuple[str, ...]  # the aliases that follow, in their order
    followers: tuple[str, ...]  # those whose fallback it is
    change: bool


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the form's chain, as it was written."""

    key: str = ""
    model: str = ""
    rank: str = ""
    weight: str = "1"


@dataclass(frozen=True, slots=True)
class Form:
    """`name` is the alias that is changed, "" for a new one; `values` are texts as they stand in the fields."""

    name: str
    values: Mapping[str, str]
    chain: tuple[Step, ...]
    keys: tuple[Key, ...]
    others: tuple[Any, ...]  # aliases that may follow


async def cards(desk: Desk) -> tuple[Card, ...]:
    found = await desk.ask("GET", "/manage/aliases")
    keys = {key.id: _named(key) for key in await desk.ask("GET", "/manage/providers")}
    by_id = {one.id: one for one in found}
    seen: set[str] = set()
    made = []
    for one in found:  # one's own come first, and stand before shared ones of their name
        change = (not one.shared or desk.admin) and one.alias not in seen
        seen.add(one.alias)
        followers = tuple(other.alias for other in found if other.fallback_alias_id == one.id)
        key, places = _key(keys, one.provider_key_id), _places(one, keys)
        made.append(Card(one, key, places, _fallbacks(one, by_id), followers, change))
    return tuple(made)


def _places(alias: Any, keys: Mapping[int, str]) -> tuple[Place, ...]:
    """The chain behind the target, in the order it is tried."""
    steps = sorted(alias.chain, key=lambda step: step.rank)
    return tuple(Place(_key(keys, step.provider_key_id), step.model, step.rank, step.weight) for step in steps)


def _fallbacks(alias: Any, by_id: Mapping[int, Any]) -> tuple[str, ...]:
    names: list[str] = []
    seen = {alias.id}
    while (alias := by_id.get(alias.fallback_alias_id)) is not None and alias.id not in seen:
        seen.add(alias.id)
        names.append(alias.alias)
    return tuple(names)


def _named(key: Any) -> str:
    """By its label, and its provider where that does not say it."""
    if not key.label:
        return f"{key.provider} {key.id}"
    return key.label if key.provider in key.label.lower() else f"{key.label} ({key.provider})"


def _key(keys: Mapping[int, str], id: int) -> str:
    return keys.get(id, f"key {id}, which is not yours")


# --- the form


async def blank(desk: Desk) -> Form:
    keys = await _keys(desk)
    values = {"weight": "1", "light_model_threshold": "100", "provider_key_id": str(keys[0].id) if keys else ""}
    return Form("", values, (), keys, await _others(desk, ""))


async def filled(desk: Desk, name: str) -> Form:
    """That of an alias there is. Raises Refusal 404."""
    found = next((one for one in await desk.ask("GET", "/manage/aliases") if one.alias == name), None)
    if found is None:
        raise not_found(f"alias {name[:60]!r}")
    values = {field: _written(getattr(found, field)) for field in _FIELDS}
    plain = [one.rank for one in found.chain] == list(range(1, len(found.chain) + 1))  # one after the other
    chain = tuple(
        Step(str(one.provider_key_id), one.model, "" if plain else str(one.rank), str(one.weight))
        for one in found.chain
    )
    return Form(name, values, chain, await _keys(desk), await _others(desk, name))


async def returned(desk: Desk, name: str, form: fields.Form) -> Form:
    """As it was sent, with what its button does to the chain."""
    chain = _moved(_chain(form), form.get("do"))
    values = {field: form.get(field, "")[:_LONGEST] for field in _FIELDS}
    return Form(name, values, chain, await _keys(desk), await _others(desk, name))


async def save(desk: Desk, name: str, form: fields.Form) -> str:
    """Makes the alias, or changes the one of that `name`; gives its name. Raises Refusal."""
    body: dict[str, Any] = fields.body(form, _FIELDS)
    body = {field: _DEFAULTS.get(field) if value is None else value for field, value in body.items()}
    body["chain"] = [_step(number, step) for number, step in enumerate(_chain(form), 1) if step.key or step.model]
    if name:
        made = await desk.ask("PATCH", "/manage/aliases/{alias}", body, alias=name)
        return str(made.alias)
    if any(one.alias == body["alias"] and one.own for one in await desk.ask("GET", "/manage/aliases")):
        words = f"there is an alias {body['alias'][:60]!r} of yours already: change that one"
        raise Refusal(409, "name_taken", words, param="alias")
    made = await desk.ask("POST", "/manage/aliases", body)
    return str(made.alias)


async def remove(desk: Desk, name: str) -> None:
    """Raises Refusal."""
    await desk.ask("DELETE", "/manage/aliases/{alias}", alias=name)


async def _keys(desk: Desk) -> tuple[Key, ...]:
    keys = await desk.ask("GET", "/manage/providers")
    return tuple(
        [
            Key(
                key.id,
                _named(key),
                key.provider,
                key.shared,
                tuple(await desk.ask("GET", "/manage/providers/{id}/models", id=key.id)),
            )
            for key in keys
        ]
    )


async def _others(desk: Desk, name: str) -> tuple[Any, ...]:
    return tuple(one for one in await desk.ask("GET", "/manage/aliases") if one.alias != name)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else ""
    if isinstance(value, Mapping):
        return msgspec.json.encode(value).decode() if value else ""
    return "" if value is None else str(value)


def _chain(form: fields.Form) -> tuple[Step, ...]:
    """The rows in their order. A row without one of its fields is none."""
    columns: Iterable[Sequence[str]] = (form.all(f"step_{field}") for field in _STEP)
    return tuple(Step(*row) for row in zip(*columns, strict=False))[: LONGEST_CHAIN + 1]


def _moved(chain: tuple[Step, ...], do: str) -> tuple[Step, ...]:
    """After one of `add`, `drop:2`, `up:2`, `down:2`; rows count from 0. Anything else changes nothing."""
    act, _, at = do.partition(":")
    if act == "add":
        return (*chain, Step())
    if not at.isascii() or not at.isdigit() or len(at) > 3 or int(at) >= len(chain):
        return chain
    rows, place = list(chain), int(at)
    row = rows.pop(place)
    if act == "drop":
        return tuple(rows)
    if act not in ("up", "down"):
        return chain
    rows.insert(max(0, place + (1 if act == "down" else -1)), row)
    return tuple(replace(row, rank=was.rank) for row, was in zip(rows, chain, strict=True))  # turns stay where they are


def _step(number: int, step: Step) -> Mapping[str, Any]:
    """Raises Refusal."""
    name = f"Step {number}"
    told: dict[str, Any] = {
        "provider_key_id": fields.number(f"{name}, provider key", step.key) or 0,
        "model": fields.text(name, step.model),
    }
    if (rank := fields.number(f"{name}, turn", step.rank)) is not None:
        told["rank"] = rank
    if (weight := fields.number(f"{name}, weight", step.weight)) is not None:
        told["weight"] = weight
    return told


# --- the pages


async def _all(visit: Visit) -> Answer:
    return Html("aliases", {"cards": await cards(visit.desk), "words": words, "steps": await steps(visit.desk)})


async def _new(visit: Visit) -> Answer:
    again = visit.trouble is not None
    return Html("alias", {"form": await (returned(visit.desk, "", visit.form) if again else blank(visit.desk))})


async def _edit(visit: Visit) -> Answer:
    name, again = visit.query.get("alias", ""), visit.trouble is not None
    form = await filled(visit.desk, name)  # there is none where this is refused
    return Html("alias", {"form": await returned(visit.desk, name, visit.form) if again else form})


async def _rows(visit: Visit) -> Answer:
    return Html("alias", {"form": await returned(visit.desk, visit.query.get("alias", ""), visit.form)})


async def _save(visit: Visit) -> Answer:
    name = visit.query.get("alias", "")
    await save(visit.desk, name, visit.form)
    return Lead("/aliases", "changed" if name else "made")


async def _remove(visit: Visit) -> Answer:
    await remove(visit.desk, visit.form.get("alias"))
    return Lead("/aliases", "deleted")


_MOVES: Final = ("add", *(f"{act}:{row}" for act in ("up", "down", "drop") for row in range(LONGEST_CHAIN + 1)))
_FORM: Final = {"save": _save, **dict.fromkeys(_MOVES, _rows)}
_SAID: Final = {
    "made": "The alias is there: calls may name it.",
    "changed": "The alias is changed, for the next call on.",
    "deleted": "The alias is deleted.",
}

PAGES: Final = (
    Page("/aliases", Access.SESSION, "Aliases", _all, {"delete": _remove}, "Aliases", 30, _SAID),
    Page("/aliases/new", Access.SESSION, "New alias", _new, _FORM),
    Page("/aliases/edit", Access.SESSION, "Change an alias", _edit, _FORM),
)
