"""`/manage/providers` and `/manage/models`: people's own provider keys, and those that all may use.

A key comes in and is never shown again, in no answer, error or log. Everybody sees and changes his own; shared ones all
see, and admins change. Leaves out encryption (`sealing`), where keys may be sent (`base_urls`) and asking providers for
their models (`model_lists`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Text, cast, delete, func, insert, null, or_, select, update

from llm_proxy.gateway import model_lists
from llm_proxy.gateway.facts import ProviderKey, Scope
from llm_proxy.gateway.manage import provider_fields as fields
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Handler, Route
from llm_proxy.gateway.sealing import OURS, Sealed, Unreadable, WrongKey, hold
from llm_proxy.gateway.sending.client import Unreachable
from llm_proxy.gateway.sending.sender import Rejected
from llm_proxy.gateway.store import audit
from llm_proxy.gateway.store.schema import model_aliases, now, provider_keys, provider_models

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Row
    from sqlalchemy.ext.asyncio import AsyncConnection

MOST = 200  # keys of a user
_NAMED = 20  # aliases in a refusal
_NOTED = 100  # and in the audit log
_NO_LIST = (404, 405, 501)
_NOT_NOW = (408, 425, 429)


class New(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`test`: the provider is asked for its models first, and a key that it refuses is not kept."""

    provider: str
    api_key: str | fields.Aws
    label: str | None = None
    base_url: str | None = None
    region: str | None = None
    shared: bool = False
    test: bool = False


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays. A new `base_url` takes the `api_key` too: no key that is there is sent elsewhere."""

    label: str | msgspec.UnsetType = msgspec.UNSET
    api_key: str | fields.Aws | msgspec.UnsetType = msgspec.UNSET
    base_url: str | msgspec.UnsetType | None = msgspec.UNSET
    region: str | msgspec.UnsetType | None = msgspec.UNSET
    shared: bool | msgspec.UnsetType = msgspec.UNSET
    test: bool = False


class Shown(msgspec.Struct, frozen=True):
    """`own`: the caller's. `key_hint`: how the key ends, of one's own long ones. `readable`: the key can be used."""

    id: int
    provider: str
    label: str
    base_url: str
    region: str
    shared: bool
    own: bool
    created_at: datetime
    tested_at: datetime | None
    key_hint: str
    readable: bool


# --- routes


async def _create(ask: Ask) -> Shown:
    body: New = ask.body
    provider = fields.provider(body.provider)
    base_url = fields.base_url(ask.site.options, provider, body.base_url or "")
    region = fields.region(provider, body.region or "", base_url)
    text = fields.key(provider, body.api_key, base_url)
    label = fields.label(body.label or "")
    if body.shared:
        _admin(ask, "only an admin may share a provider key")
    key = ProviderKey(0, ask.caller.user_id, provider, label, "", base_url=base_url, region=region, shared=body.shared)
    tested = now() if body.test else None
    if body.test:
        await _test(ask, key, text)
    store = ask.site.store
    async with store.writing() as connection:
        await _hold(ask, connection)
        own = provider_keys.c.user_id == ask.caller.user_id
        if (await connection.scalar(select(func.count()).where(own)) or 0) >= MOST:
            raise Refusal(409, "too_many", f"a user has at most {MOST} provider keys; delete one first")
        values = {
            "user_id": ask.caller.user_id,
            "provider": str(provider),
            "label": label,
            "base_url": base_url,
            "region": region,
            "shared": body.shared,
            "tested_at": tested,
            "encrypted_key": "",
            "key_version": OURS,
        }
        key_id = await connection.scalar(insert(provider_keys).values(values).returning(provider_keys.c.id))
        assert key_id is not None
        await _put(connection, key_id, _columns(ask.site.sealer.seal(text, row=key_id, user=ask.caller.user_id)))
        await model_lists.forget(connection, key_id)
        await audit.note(
            connection, ask, "provider_key.create", _object(key_id), provider=str(provider), shared=body.shared
        )
        await store.changed(connection)
        return _shown(ask, await _row(connection, provider_keys.c.id == key_id))


async def _list(ask: Ask) -> list[Shown]:
    query = select(provider_keys).where(_visible(ask)).order_by(provider_keys.c.id)
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(query)).all()
    return sorted((_shown(ask, row) for row in rows), key=lambda shown: not shown.own)


async def _change(ask: Ask) -> Shown:
    body: Change = ask.body
    key_id = ask.number("id")
    store = ask.site.store
    async with store.reading() as connection:
        before = await _changeable(ask, connection, key_id)
    changes, text = _changes(ask, before, body)
    if body.test:
        await _test_again(ask, before, changes, text)
        changes["tested_at"] = now()
    elif {"base_url", "region"} & changes.keys() or text is not None:
        changes["tested_at"] = null()
    async with store.writing() as connection:
        row = await _changeable(ask, connection, key_id, lock=True)
        if _where(row) != _where(before):
            raise Refusal(409, "changed_meanwhile", "this provider key was changed at the same time; try again")
        if text is not None:
            await _hold(ask, connection)
            changes |= _columns(ask.site.sealer.seal(text, row=row.id, user=row.user_id))
        if not changes:
            raise Refusal(400, "nothing_to_change", "label, api_key, base_url, region or shared: none is given")
        await _put(connection, key_id, changes)
        if {"base_url", "region", "encrypted_key"} & changes.keys():
            await model_lists.forget(connection, key_id)
        named = sorted(name for name in ("label", "base_url", "region", "shared", "encrypted_key") if name in changes)
        await audit.note(connection, ask, "provider_key.change", _object(key_id), fields=named)
        await store.changed(connection)
        return _shown(ask, await _row(connection, provider_keys.c.id == key_id))


async def _delete(ask: Ask) -> None:
    """409 while aliases need it; with `?force=true` these go too, and its steps in other aliases' chains."""
    key_id = ask.number("id")
    force = _flag(ask, "force")
    store = ask.site.store
    async with store.writing() as connection:
        await _changeable(ask, connection, key_id, lock=True)
        users = await _users_of(connection, key_id)
        if users and not force:
            raise Refusal(409, "in_use", f"{_in_use(ask, users)}; ?force=true removes it from them")
        gone = [row.id for row in users if row.provider_key_id == key_id]
        await connection.execute(delete(model_aliases).where(model_aliases.c.id.in_(gone)))
        for row in (row for row in users if row.provider_key_id != key_id):
            chain = [step for step in row.chain if step.get("provider_key_id") != key_id]
            await connection.execute(update(model_aliases).where(model_aliases.c.id == row.id).values(chain=chain))
        await connection.execute(delete(provider_keys).where(provider_keys.c.id == key_id))
        await model_lists.forget(connection, key_id)
        await audit.note(
            connection, ask, "provider_key.delete", _object(key_id), aliases=[row.alias for row in users[:_NOTED]]
        )
        await store.changed(connection)


async def _models_of(ask: Ask) -> list[str]:
    key_id = ask.number("id")
    ids = select(provider_models.c.model_id).where(provider_models.c.provider_key_id == key_id)
    async with ask.site.store.reading() as connection:
        await _found(ask, connection, key_id)
        return sorted(await connection.scalars(ids))


async def _models(ask: Ask) -> dict[str, list[str]]:
    query = (
        select(provider_keys.c.provider, provider_models.c.model_id)
        .outerjoin(provider_models, provider_models.c.provider_key_id == provider_keys.c.id)
        .where(_visible(ask))
        .distinct()
    )
    found: dict[str, list[str]] = {}
    async with ask.site.store.reading() as connection:
        for provider, model in await connection.execute(query):
            found.setdefault(provider, []).extend([model] if model is not None else [])
    return {provider: sorted(found[provider]) for provider in sorted(found)}


# --- whose it is


def _visible(ask: Ask) -> ColumnElement[bool]:
    return or_(provider_keys.c.user_id == ask.caller.user_id, provider_keys.c.shared.is_(True))


async def _found(ask: Ask, connection: AsyncConnection, key_id: int, *, lock: bool = False) -> Row[Any]:
    """Raises Refusal."""
    query = select(provider_keys).where(provider_keys.c.id == key_id, _visible(ask))
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        raise not_found(f"provider key {key_id}")
    return row


async def _changeable(ask: Ask, connection: AsyncConnection, key_id: int, *, lock: bool = False) -> Row[Any]:
    """Raises Refusal."""
    row = await _found(ask, connection, key_id, lock=lock)
    if row.shared:
        _admin(ask, f"provider key {key_id} is shared, so only an admin may change it")
    return row


def _admin(ask: Ask, words: str) -> None:
    if not ask.caller.is_admin:
        raise Refusal(403, "admin_needed", f"{words}, signed in with a session")


async def _row(connection: AsyncConnection, where: ColumnElement[bool]) -> Row[Any]:
    return (await connection.execute(select(provider_keys).where(where))).one()


async def _put(connection: AsyncConnection, key_id: int, values: dict[str, Any]) -> None:
    await connection.execute(update(provider_keys).where(provider_keys.c.id == key_id).values(values))


async def _hold(ask: Ask, connection: AsyncConnection) -> None:
    try:
        await hold(connection, ask.site.sealer)
    except WrongKey:
        words = (
            "the encryption key was replaced while this gateway ran; its operator must start it anew with the new one"
        )
        raise Refusal(503, "encryption_key_replaced", words, headers={"Retry-After": "60"}) from None


def _columns(sealed: Sealed) -> dict[str, Any]:
    return {"encrypted_key": sealed.text, "key_version": sealed.version, "key_id": sealed.key_id}


def _object(key_id: int) -> str:
    return f"provider_key:{key_id}"


def _shown(ask: Ask, row: Row[Any]) -> Shown:
    own = row.user_id == ask.caller.user_id
    hint, readable = "", True
    try:
        opened = ask.site.sealer.unsealed(row.encrypted_key, row=row.id, user=row.user_id, version=row.key_version)
        hint = fields.hint(opened) if own else ""
    except Unreadable:
        readable = False
    return Shown(
        id=row.id,
        provider=row.provider,
        label=row.label,
        base_url=row.base_url,
        region=row.region,
        shared=row.shared,
        own=own,
        created_at=row.created_at,
        tested_at=row.tested_at,
        key_hint=hint,
        readable=readable,
    )


def _flag(ask: Ask, name: str) -> bool:
    text = ask.query.get(name, "false")
    if text not in ("true", "false"):
        raise fields.wrong(name, f"true or false, not {text[:40]!r}")
    return text == "true"


# --- changes


def _changes(ask: Ask, row: Row[Any], body: Change) -> tuple[dict[str, Any], str | None]:
    """New values of columns, and the new key, if there is one. Raises Refusal."""
    changes: dict[str, Any] = {}
    provider = fields.provider(row.provider)
    base_url, region = row.base_url, row.region
    if body.label is not msgspec.UNSET:
        changes["label"] = fields.label(body.label)
    if body.shared is not msgspec.UNSET:
        if body.shared:
            _admin(ask, "only an admin may share a provider key")
        changes["shared"] = body.shared
    if body.base_url is not msgspec.UNSET:
        base_url = fields.base_url(ask.site.options, provider, body.base_url or "")
        if base_url != row.base_url:
            if body.api_key is msgspec.UNSET:
                raise fields.wrong(
                    "base_url", "a new one takes the api_key too, since the one that is kept stays where it is"
                )
            changes["base_url"] = base_url
    if body.region is not msgspec.UNSET or "base_url" in changes:
        region = fields.region(provider, region if body.region is msgspec.UNSET else body.region or "", base_url)
        if region != row.region:
            changes["region"] = region
    text = None if body.api_key is msgspec.UNSET else fields.key(provider, body.api_key, base_url)
    return changes, text


def _where(row: Row[Any]) -> tuple[Any, ...]:
    """Whose it is and where it is sent: what a change was judged by."""
    return row.provider, row.base_url, row.region, row.shared, row.user_id


# --- testing


async def _test_again(ask: Ask, row: Row[Any], changes: dict[str, Any], text: str | None) -> None:
    if text is None:
        try:
            text = ask.site.sealer.unsealed(row.encrypted_key, row=row.id, user=row.user_id, version=row.key_version)
        except Unreadable:
            raise fields.wrong("test", "this provider key cannot be read any more; give its api_key anew") from None
    base_url, region = changes.get("base_url", row.base_url), changes.get("region", row.region)
    key = ProviderKey(0, row.user_id, fields.provider(row.provider), row.label, "", base_url=base_url, region=region)
    await _test(ask, key, text)


async def _test(ask: Ask, key: ProviderKey, text: str) -> None:
    """The provider lists its models for the key, which no row has yet. Raises Refusal, with the provider's words."""
    sealed = ask.site.sealer.seal(text, row=0, user=key.user_id)
    key = replace(key, sealed=sealed.text, key_version=sealed.version)
    try:
        await ask.site.sender.models(key)
    except Rejected as error:
        said = f"{key.provider} answered {error.status}: {fields.without_key(error.problem.message, text)}"
        if error.status in _NO_LIST:
            raise fields.wrong("test", f"this key cannot be tested, no models are listed there; {said}") from None
        if error.status in _NOT_NOW or error.status >= 500:
            raise Refusal(502, "test_failed", f"the key could not be tested, nothing was kept; {said}") from None
        raise Refusal(400, "key_refused", f"api_key: nothing was kept; {said}", param="api_key") from None
    except Unreachable as error:
        words = f"the key could not be tested, nothing was kept: {fields.without_key(error.message, text)}"
        raise Refusal(504 if error.timed_out else 502, "test_failed", words) from None


# --- aliases that lead to a key


async def _users_of(connection: AsyncConnection, key_id: int) -> list[Any]:
    """Aliases of anybody that name it, as target or in their chain."""
    columns = (model_aliases.c.id, model_aliases.c.user_id, model_aliases.c.alias, model_aliases.c.provider_key_id)
    query = select(*columns, model_aliases.c.chain).where(
        or_(model_aliases.c.provider_key_id == key_id, cast(model_aliases.c.chain, Text) != "[]")
    )
    rows = (await connection.execute(query.order_by(model_aliases.c.alias))).all()
    return [row for row in rows if row.provider_key_id == key_id or _in_chain(row, key_id)]


def _in_chain(row: Any, key_id: int) -> bool:
    return any(step.get("provider_key_id") == key_id for step in row.chain)


def _in_use(ask: Ask, rows: Iterable[Any]) -> str:
    """Other people's aliases are counted, not named."""
    own = [row.alias for row in rows if row.user_id == ask.caller.user_id]
    others = sum(row.user_id != ask.caller.user_id for row in rows)
    parts = [", ".join(own[:_NAMED]) + (f" and {len(own) - _NAMED} more" if len(own) > _NAMED else "")] if own else []
    parts += [f"{others} of other people"] if others else []
    return f"aliases use this provider key: {'; '.join(parts)}"


def _route(method: str, path: str, summary: str, handler: Handler, **more: Any) -> Route:
    return Route(method, path, Access.KEY, summary, handler=handler, scope=Scope.MANAGE, **more)


ROUTES = (
    _route("POST", "/manage/providers", "Keep a provider key.", _create, takes=New, gives=Shown, status=201),
    _route("GET", "/manage/providers", "One's own provider keys, then the shared ones.", _list, gives=list[Shown]),
    _route("PATCH", "/manage/providers/{id}", "Change a provider key.", _change, takes=Change, gives=Shown),
    _route(
        "DELETE",
        "/manage/providers/{id}",
        "Delete a provider key: 409 where aliases use it.",
        _delete,
        query={"force": "`true` deletes the aliases that lead to it, and its steps in the chains of others."},
    ),
    _route("GET", "/manage/providers/{id}/models", "The models that a key opens.", _models_of, gives=list[str]),
    _route(
        "GET",
        "/manage/models",
        "The models that all one's keys open, by provider.",
        _models,
        gives=dict[str, list[str]],
    ),
)
