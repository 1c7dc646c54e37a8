"""Which models each provider key opens: asked of the provider in the background, kept in `provider_models`.

No start and no request waits for it, and a provider that hangs holds up no other. Of many machines one asks: whoever
moves the key's due time, which stands among the store's facts, has the turn. A failure leaves the old list. Leaves out
how providers are asked (`sending`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import String, cast, delete, exists, insert, literal, or_, select, update

from llm_proxy.gateway.catalog import key_of
from llm_proxy.gateway.sending.client import Unreachable
from llm_proxy.gateway.sending.sender import Rejected
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.gateway.store.schema import facts, now, provider_keys, provider_models

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from llm_proxy.gateway.site import Site

log = logging.getLogger("llm_proxy.gateway")

EVERY = timedelta(hours=12)
AGAIN = timedelta(minutes=30)  # after a failure
TURN = timedelta(minutes=5)  # whoever asks has so long, then another may
PATIENCE = 60.0  # seconds a provider has for its answer
AT_ONCE = 8  # providers asked at a time
LOOK = 60.0  # seconds between two looks for what is due; a change in the store is looked at at once
MOST = 10_000  # models of a key
_LONGEST = 255  # characters of a model's id

Clock = Callable[[], datetime]
_NAME: Final = "models."  # + the key's id: when its list is due
_due_of: Final = literal(_NAME) + cast(provider_keys.c.id, String)


async def forget(connection: AsyncConnection, key_id: int) -> None:
    """Within a change of a key: its list is due at once."""
    await connection.execute(delete(facts).where(facts.c.name == f"{_NAME}{key_id}"))


async def run(site: Site, clock: Clock = now) -> None:
    """Keeps all lists fresh. Never ends."""
    news = asyncio.Event()
    asking: dict[int, asyncio.Task[bool]] = {}
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(key_id: int) -> bool:
        async with places:
            return await refresh(site, key_id, clock)

    swept = False
    site.store.on_change(news.set)
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                news.clear()
                with suppress(StoreAway):
                    if not swept:
                        await _sweep(site)
                        swept = True
                    for key_id in await _due(site, clock()):
                        if key_id not in asking:
                            asking[key_id] = task = group.create_task(ask(key_id))
                            task.add_done_callback(lambda _, key_id=key_id: asking.pop(key_id))  # type: ignore[misc]
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await news.wait()
    finally:
        site.store.off_change(news.set)


async def refresh(site: Site, key_id: int, clock: Clock = now) -> bool:
    """Brings one key's list up to date if that is due, and nobody else is at it. Whether it has. Raises nothing."""
    try:
        turn = await _taken(site, key_id, clock())
        if turn is None:
            return False
        models = await _asked(site, turn)
        return await _kept(site, turn, models, clock())
    except StoreAway as error:
        log.warning("the models of provider key %d were not brought up to date: %s", key_id, error)
        return False


@dataclass(frozen=True, slots=True)
class _Turn:
    """Ours until `until`, as it stands in the store. `row` is the key's as it was then."""

    row: Row[Any]
    until: str


async def _due(site: Site, at: datetime) -> list[int]:
    query = (
        select(provider_keys.c.id)
        .outerjoin(facts, facts.c.name == _due_of)
        .where(or_(facts.c.value.is_(None), facts.c.value <= _said(at)))
        .order_by(provider_keys.c.id)
    )
    async with site.store.reading() as connection:
        return list(await connection.scalars(query))


async def _taken(site: Site, key_id: int, at: datetime) -> _Turn | None:
    until = _said(at + TURN)
    async with site.store.writing() as connection:
        row = (await connection.execute(select(provider_keys).where(provider_keys.c.id == key_id))).one_or_none()
        if row is None:
            return None
        claim = site.store.insert(facts).values(name=f"{_NAME}{key_id}", value=until)
        claim = claim.on_conflict_do_update(
            index_elements=[facts.c.name], set_={"value": until}, where=facts.c.value <= _said(at)
        )
        ours = await connection.scalar(claim.returning(facts.c.value))
    return _Turn(row, until) if ours is not None else None


async def _asked(site: Site, turn: _Turn) -> frozenset[str] | None:
    """None where the provider does not say. An empty list is none: hosts that have other troubles answer so."""
    try:
        async with asyncio.timeout(PATIENCE):
            models = plain(await site.sender.models(key_of(turn.row)))
    except Exception as error:  # a provider is foreign ground
        why = _why(error)
    else:
        if models:
            return models
        why = "its list is empty"
    log.warning("provider key %d (%s): the models it opens are not known anew: %s", turn.row.id, turn.row.provider, why)
    return None


def _why(error: Exception) -> str:
    """Without the provider's own words: they may repeat the key."""
    if isinstance(error, Rejected):
        return f"the provider answered {error.status}"
    return error.code if isinstance(error, Unreachable) else type(error).__name__


async def _kept(site: Site, turn: _Turn, models: frozenset[str] | None, at: datetime) -> bool:
    """Whether the list was written; a key that was changed meanwhile is due again already."""
    row, rest = turn.row, EVERY if models is not None else AGAIN
    due = _said(at + rest * random.uniform(0.9, 1.1))
    of_key = provider_models.c.provider_key_id == row.id
    async with site.store.writing() as connection:
        there = select(provider_keys.c.id).where(provider_keys.c.id == row.id).with_for_update(read=True)
        if await connection.scalar(there) is None:
            return False
        ours = (facts.c.name == f"{_NAME}{row.id}", facts.c.value == turn.until)
        settled = await connection.execute(update(facts).where(*ours).values(value=due))
        if models is None or settled.rowcount == 0:
            return False
        before = frozenset(await connection.scalars(select(provider_models.c.model_id).where(of_key)))
        if before == models:
            return True
        for gone in _batches(before - models):
            await connection.execute(delete(provider_models).where(of_key, provider_models.c.model_id.in_(gone)))
        new = [{"provider_key_id": row.id, "model_id": model} for model in sorted(models - before)]
        if new:
            await connection.execute(insert(provider_models), new)
        await site.store.changed(connection)
    return True


async def _sweep(site: Site) -> None:
    """Due times of keys that are gone, as they go with their users."""
    orphans = facts.c.name.startswith(_NAME, autoescape=True) & ~exists().where(_due_of == facts.c.name)
    async with site.store.writing() as connection:
        await connection.execute(delete(facts).where(orphans))


def plain(models: Iterable[str]) -> frozenset[str]:
    """The ids that can be kept and shown, at most `MOST` of them."""
    good = sorted({model for model in models if 0 < len(model) <= _LONGEST and model.isprintable()})
    return frozenset(good[:MOST])


def _batches(models: Iterable[str], size: int = 500) -> Iterable[list[str]]:
    names = sorted(models)
    return (names[start : start + size] for start in range(0, len(names), size))


def _said(at: datetime) -> str:
    """Such texts have the order of their times."""
    return at.isoformat(timespec="microseconds")
