"""`/manage/aliases`: short names of models, in TokenTracer's shape and with what ours can do beside it.

Everybody writes his own by their names; shared ones all see, and admins change. An alias leads only to what its owner
may use, and a shared one only to what is shared. Leaves out what a call for a name becomes (`planning`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import delete, func, insert, or_, select, update

from llm_proxy.gateway.catalog import Catalog, alias_of, read
from llm_proxy.gateway.facts import Alias, Scope, Step
from llm_proxy.gateway.planning import DEEP
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store import audit
from llm_proxy.gateway.store.schema import model_aliases

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Row
    from sqlalchemy.ext.asyncio import AsyncConnection

MOST = 1_000  # aliases of a user
LONGEST_CHAIN = 20
_LONGEST_NAME = 255
_MOST_TOKENS = 100_000_000
_MOST_WEIGHT = 1_000
_MOST_RANK = 100
_MOST_PARAMETERS = 32
_PARAMETERS_SIZE = 16_384  # bytes of JSON

_NUMBER: Final = (int, float)
_TEXT_OR_OBJECT: Final = (str, dict)
# What is known of a request's parameters: their kind, and between what numbers lie. Others pass as they are, since
# providers have their own.
_KNOWN: Final[Mapping[str, tuple[type | tuple[type, ...], str, float, float]]] = {
    "temperature": (_NUMBER, "a number from 0 to 2", 0, 2),
    "top_p": (_NUMBER, "a number from 0 to 1", 0, 1),
    "top_k": (int, "a whole number, 0 or more", 0, _MOST_TOKENS),
    "max_tokens": (int, "a whole number, 1 or more", 1, _MOST_TOKENS),
    "max_completion_tokens": (int, "a whole number, 1 or more", 1, _MOST_TOKENS),
    "max_output_tokens": (int, "a whole number, 1 or more", 1, _MOST_TOKENS),
    "frequency_penalty": (_NUMBER, "a number from -2 to 2", -2, 2),
    "presence_penalty": (_NUMBER, "a number from -2 to 2", -2, 2),
    "seed": (int, "a whole number", -(2**63), 2**63 - 1),
    "stop": ((str, list), "a text or a list of texts", 0, 0),
    "reasoning_effort": (str, "a text", 0, 0),
    "reasoning": (dict, "an object", 0, 0),
    "thinking": (dict, "an object", 0, 0),
    "verbosity": (str, "a text", 0, 0),
    "service_tier": (str, "a text", 0, 0),
    "response_format": (dict, "an object", 0, 0),
    "tool_choice": (_TEXT_OR_OBJECT, "a text or an object", 0, 0),
    "parallel_tool_calls": (bool, "true or false", 0, 0),
    "logprobs": (bool, "true or false", 0, 0),
    "user": (str, "a text", 0, 0),
    "metadata": (dict, "an object", 0, 0),
}
# What makes a request what it is, for its caller alone to say.
_CALLERS_OWN: Final = frozenset(
    {
        *("model", "messages", "input", "prompt", "contents", "system", "instructions", "stream", "stream_options"),
        *("tools", "functions", "n", "background", "store", "previous_response_id", "conversation"),
    }
)
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class NewStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without a `rank` it comes behind the steps before it. Of one rank `weight` shares calls out."""

    provider_key_id: int
    model: str
    rank: int | None = None
    weight: int = 1


class New(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole alias: what is left out has its default, also where one of that name is overwritten. `id` is ignored."""

    alias: str = ""
    target_model: str = ""
    provider_key_id: int = 0
    fallback_alias_id: int | None = None
    use_light_model: bool = False
    light_model_threshold: int = 100
    light_model: str | None = None
    long_model: str | None = None
    long_model_threshold: int | None = None
    weight: int = 1
    chain: tuple[NewStep, ...] = ()
    parameters: dict[str, Any] = {}
    shared: bool = False
    id: int | None = None


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays. `id` is ignored."""

    alias: str | UnsetType = UNSET
    target_model: str | UnsetType = UNSET
    provider_key_id: int | UnsetType = UNSET
    fallback_alias_id: int | UnsetType | None = UNSET
    use_light_model: bool | UnsetType = UNSET
    light_model_threshold: int | UnsetType = UNSET
    light_model: str | UnsetType | None = UNSET
    long_model: str | UnsetType | None = UNSET
    long_model_threshold: int | UnsetType | None = UNSET
    weight: int | UnsetType = UNSET
    chain: tuple[NewStep, ...] | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    shared: bool | UnsetType = UNSET
    id: int | None = None


class ShownStep(msgspec.Struct, frozen=True):
    provider_key_id: int
    model: str
    rank: int
    weight: int


class Shown(msgspec.Struct, frozen=True):
    """`own`: the caller's."""

    id: int
    alias: str
    target_model: str
    provider_key_id: int
    fallback_alias_id: int | None
    use_light_model: bool
    light_model_threshold: int
    light_model: str | None
    long_model: str | None
    long_model_threshold: int | None
    weight: int
    chain: tuple[ShownStep, ...]
    parameters: dict[str, Any]
    shared: bool
    own: bool
    created_at: datetime


# --- routes


async def _put(ask: Ask) -> Shown:
    """Make it, or overwrite the caller's own of that name."""
    user = ask.caller.user_id
    _text("alias", ask.body.alias)
    async with ask.site.store.writing() as connection:
        await _in_turn(ask, connection)
        own = model_aliases.c.user_id == user
        row = await _row(connection, own, model_aliases.c.alias == ask.body.alias)
        if row is None and (await connection.scalar(select(func.count()).where(own)) or 0) >= MOST:
            raise Refusal(409, "too_many", f"a user has at most {MOST} aliases; delete one first")
        values = _values(ask, ask.body, await read(connection, user), row)
        if row is None:
            made = insert(model_aliases).values(user_id=user, **values)
            return await _written(ask, connection, made.returning(model_aliases), "alias.create")
        changed = update(model_aliases).where(model_aliases.c.id == row.id).values(values)
        return await _written(ask, connection, changed.returning(model_aliases), "alias.change")


async def _list(ask: Ask) -> list[Shown]:
    query = select(model_aliases).where(_visible(ask)).order_by(model_aliases.c.alias, model_aliases.c.id)
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(query)).all()
    return sorted((_shown(ask, row) for row in rows), key=lambda shown: not shown.own)


async def _change(ask: Ask) -> Shown:
    given = {name: value for name in Change.__struct_fields__ if (value := getattr(ask.body, name)) is not UNSET}
    given.pop("id")
    async with ask.site.store.writing() as connection:
        await _in_turn(ask, connection)
        row = await _changeable(ask, connection)
        if not given:
            raise Refusal(400, "nothing_to_change", "the body names no field of an alias")
        name = given.get("alias", row.alias)
        _text("alias", name)
        if name != row.alias and await _row(
            connection, model_aliases.c.user_id == row.user_id, model_aliases.c.alias == name
        ):
            raise Refusal(409, "name_taken", f"there is an alias {_cut(name)!r} already", param="alias")
        wanted = msgspec.structs.replace(_as_new(alias_of(row)), **given)
        values = _values(ask, wanted, await read(connection, row.user_id), row)
        changed = update(model_aliases).where(model_aliases.c.id == row.id).values(values)
        return await _written(ask, connection, changed.returning(model_aliases), "alias.change", fields=sorted(given))


async def _delete(ask: Ask) -> None:
    """Those that fall back on it do so no longer."""
    async with ask.site.store.writing() as connection:
        row = await _changeable(ask, connection)
        await connection.execute(delete(model_aliases).where(model_aliases.c.id == row.id))
        await audit.note(connection, ask, "alias.delete", f"alias:{row.id}", alias=row.alias)
        await ask.site.store.changed(connection)


ROUTES: Final = (
    Route(
        "POST",
        "/manage/aliases",
        Access.KEY,
        "Make an alias, or overwrite your own of that name",
        handler=_put,
        scope=Scope.MANAGE,
        takes=New,
        gives=Shown,
    ),
    Route(
        "GET",
        "/manage/aliases",
        Access.KEY,
        "Your aliases, then those that are shared",
        handler=_list,
        scope=Scope.MANAGE,
        gives=list[Shown],
    ),
    Route(
        "PATCH",
        "/manage/aliases/{alias:[^/]+}",
        Access.KEY,
        "Change some fields of an alias, its name too",
        handler=_change,
        scope=Scope.MANAGE,
        takes=Change,
        gives=Shown,
    ),
    Route(
        "DELETE",
        "/manage/aliases/{alias:[^/]+}",
        Access.KEY,
        "Delete an alias",
        handler=_delete,
        scope=Scope.MANAGE,
        status=204,
    ),
)


# --- whose it is


async def _in_turn(ask: Ask, connection: AsyncConnection) -> None:
    """One after the other, because two that are right alone could close a loop together."""
    await ask.site.store.alone(connection, "aliases")


def _visible(ask: Ask) -> ColumnElement[bool]:
    return or_(model_aliases.c.user_id == ask.caller.user_id, model_aliases.c.shared.is_(True))


async def _row(connection: AsyncConnection, *where: ColumnElement[bool]) -> Row[Any] | None:
    found = select(model_aliases).where(*where).order_by(model_aliases.c.id).limit(1)
    return (await connection.execute(found)).one_or_none()


async def _changeable(ask: Ask, connection: AsyncConnection) -> Row[Any]:
    """The caller's own of that name, else the shared one. Raises Refusal."""
    name = ask.params["alias"]
    row = None
    if name.isprintable():  # others are nobody's, and PostgreSQL takes no NUL
        named = model_aliases.c.alias == name
        row = await _row(connection, named, model_aliases.c.user_id == ask.caller.user_id)
        row = row or await _row(connection, named, model_aliases.c.shared.is_(True))
    if row is None:
        raise not_found(f"alias {_cut(name)!r}")
    if row.shared:
        _admin(ask, f"the alias {_cut(row.alias)!r} is shared, so only an admin may change it")
    return row


def _admin(ask: Ask, words: str) -> None:
    if not ask.caller.is_admin:
        raise Refusal(403, "admin_needed", f"{words}, signed in with a session")


# --- what is given


def _values(ask: Ask, given: New, catalog: Catalog, row: Row[Any] | None) -> dict[str, Any]:
    """The columns' values of an alias that its owner, whose `catalog` it is, may have. Raises Refusal."""
    if given.shared:
        _admin(ask, "only an admin may share an alias")
    _text("target_model", given.target_model)
    if given.provider_key_id <= 0:
        raise _wrong("provider_key_id", "is required: the id of a provider key")
    _key("provider_key_id", given.provider_key_id, catalog, given.shared)
    chain = _chain(given, catalog)
    _choices(given)
    _parameters(given.parameters)
    fallback = given.fallback_alias_id if (given.fallback_alias_id or 0) > 0 else None
    if fallback is not None:
        _fallback(given, fallback, catalog, row.id if row is not None else None)
    return {
        "alias": given.alias,
        "target_model": given.target_model,
        "provider_key_id": given.provider_key_id,
        "fallback_alias_id": fallback,
        "use_light_model": given.use_light_model,
        "light_model_threshold": given.light_model_threshold,
        "light_model": given.light_model or "",
        "long_model": given.long_model or "",
        "long_model_threshold": given.long_model_threshold,
        "weight": given.weight,
        "chain": [asdict(step) for step in chain],
        "parameters": given.parameters,
        "shared": given.shared,
    }


def _wrong(param: str, words: str) -> Refusal:
    return Refusal(400, "invalid_request", f"{param}: {words}", param=param)


def _text(param: str, text: str) -> None:
    if not text.strip():
        raise _wrong(param, "is required")
    if len(text) > _LONGEST_NAME:
        raise _wrong(param, f"at most {_LONGEST_NAME} characters, not {len(text)}")
    if not text.isprintable() or text != text.strip():
        raise _wrong(param, "no control characters or line breaks, and no blanks at its ends")


def _within(param: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise _wrong(param, f"a whole number from {least} to {most}, not {_cut(str(number))}")


def _key(param: str, id: int, catalog: Catalog, shared: bool) -> None:
    key = catalog.keys.get(id)
    if key is None:
        raise Refusal(404, "not_found", f"{param}: there is no provider key {_cut(str(id))}", param=param)
    if shared and not key.shared:
        raise _wrong(param, f"a shared alias takes shared provider keys only, and {id} is not")


def _chain(given: New, catalog: Catalog) -> tuple[Step, ...]:
    if len(given.chain) > LONGEST_CHAIN:
        raise _wrong("chain", f"at most {LONGEST_CHAIN} steps, not {len(given.chain)}")
    _within("weight", given.weight, 0, _MOST_WEIGHT)
    weights = {0: [given.weight]}
    chain = []
    for number, step in enumerate(given.chain):
        at = f"chain[{number}]"
        _key(f"{at}.provider_key_id", step.provider_key_id, catalog, given.shared)
        _text(f"{at}.model", step.model)
        rank = max(weights) + 1 if step.rank is None else step.rank
        _within(f"{at}.rank", rank, 0, _MOST_RANK)
        _within(f"{at}.weight", step.weight, 0, _MOST_WEIGHT)
        weights.setdefault(rank, []).append(step.weight)
        chain.append(Step(step.provider_key_id, step.model, rank, step.weight))
    for rank, each in weights.items():
        if not any(each):
            raise _wrong("weight" if rank == 0 else "chain", f"one weight of rank {rank} must be above 0")
    return tuple(chain)


def _choices(given: New) -> None:
    """By the length of the prompt."""
    _within("light_model_threshold", given.light_model_threshold, 0, _MOST_TOKENS)
    if given.light_model:
        _text("light_model", given.light_model)
    elif given.use_light_model:
        raise _wrong("light_model", "use_light_model takes the light_model that is to be used")
    if given.long_model:
        _text("long_model", given.long_model)
    if bool(given.long_model) != (given.long_model_threshold is not None):
        raise _wrong("long_model", "long_model and long_model_threshold go together")
    if given.long_model_threshold is None:
        return
    _within("long_model_threshold", given.long_model_threshold, 1, _MOST_TOKENS)
    if given.use_light_model and given.long_model_threshold < given.light_model_threshold:
        raise _wrong("long_model_threshold", "must not be below light_model_threshold")


def _parameters(given: Mapping[str, Any]) -> None:
    if len(given) > _MOST_PARAMETERS:
        raise _wrong("parameters", f"at most {_MOST_PARAMETERS} of them, not {len(given)}")
    for name, value in given.items():
        at = f"parameters.{_cut(name)}"
        if not _PARAMETER.fullmatch(name):
            raise _wrong(at, "no name of a parameter: letters, digits, underscores, at most 64")
        if name in _CALLERS_OWN:
            raise _wrong(at, "is the caller's own to say")
        if value is not None and name in _KNOWN and not _is_of(value, *_KNOWN[name]):
            raise _wrong(at, f"must be {_KNOWN[name][1]}, or null, which takes the caller's away")
    if len(msgspec.json.encode(given)) > _PARAMETERS_SIZE:
        raise _wrong("parameters", f"at most {_PARAMETERS_SIZE} bytes of JSON")


def _is_of(value: Any, kind: type | tuple[type, ...], words: str, least: float, most: float) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(value, kind):
        return False
    if isinstance(value, list):
        return all(isinstance(one, str) for one in value)
    return least <= value <= most if isinstance(value, _NUMBER) else True


def _fallback(given: New, fallback: int, catalog: Catalog, own: int | None) -> None:
    """Raises Refusal for one that is not there, and for loops, which it names."""
    alias = catalog.by_id.get(fallback)
    if alias is None:
        words = f"fallback_alias_id: there is no alias {_cut(str(fallback))}"
        raise Refusal(404, "not_found", words, param="fallback_alias_id")
    if given.shared and not alias.shared:
        raise _wrong("fallback_alias_id", f"a shared alias takes shared ones only, and {_cut(alias.alias)!r} is not")
    way = [given.alias]
    seen: set[int] = set()
    left: Alias | None = alias
    while left is not None and left.id not in seen:
        if left.id == own:
            circle = " -> ".join(_cut(name) for name in (*way, given.alias))
            words = f"fallback_alias_id: the fallbacks would go in a circle: {circle}"
            raise Refusal(400, "alias_loop", words, param="fallback_alias_id")
        seen.add(left.id)
        way.append(left.alias)
        left = catalog.by_id.get(left.fallback_alias_id or 0)
    if len(way) > DEEP:
        raise _wrong("fallback_alias_id", f"at most {DEEP} aliases fall back on one another, these would be {len(way)}")


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- what is written and shown


def _as_new(alias: Alias) -> New:
    known: Sequence[str] = New.__struct_fields__
    values = {name: getattr(alias, name) for name in known if name not in ("chain", "parameters", "id")}
    chain = tuple(NewStep(**asdict(step)) for step in alias.chain)
    return New(**values, chain=chain, parameters=dict(alias.parameters))


async def _written(ask: Ask, connection: AsyncConnection, statement: Any, action: str, **detail: Any) -> Shown:
    row = (await connection.execute(statement)).one()
    await audit.note(connection, ask, action, f"alias:{row.id}", alias=row.alias, shared=row.shared, **detail)
    await ask.site.store.changed(connection)
    return _shown(ask, row)


def _shown(ask: Ask, row: Row[Any]) -> Shown:
    alias = alias_of(row)
    return Shown(
        id=alias.id,
        alias=alias.alias,
        target_model=alias.target_model,
        provider_key_id=alias.provider_key_id,
        fallback_alias_id=alias.fallback_alias_id,
        use_light_model=alias.use_light_model,
        light_model_threshold=alias.light_model_threshold,
        light_model=alias.light_model or None,
        long_model=alias.long_model or None,
        long_model_threshold=alias.long_model_threshold,
        weight=alias.weight,
        chain=tuple(ShownStep(**asdict(step)) for step in alias.chain),
        parameters=dict(alias.parameters),
        shared=alias.shared,
        own=alias.user_id == ask.caller.user_id,
        created_at=row.created_at,
    )
