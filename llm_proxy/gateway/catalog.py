"""What a user can call: his aliases and provider keys and the shared ones, and the models that are known of each key.

Read from the store once, then kept in memory until something there changes, or for a minute. Leaves out what a name
means (`planning`) and writing (`manage`).
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from sqlalchemy import Row, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway import tokens
from llm_proxy.gateway.facts import NOTHING, Alias, Provider, ProviderKey, Step, Target
from llm_proxy.gateway.store.database import Store, StoreAway
from llm_proxy.gateway.store.schema import model_aliases, provider_keys, provider_models

FRESH: Final = 60.0  # seconds
STALE: Final = 120.0  # seconds; so long what is remembered serves while the store is away
USERS: Final = 1_000  # whose catalogs are kept; then those who have not called for longest are forgotten
_PROVIDERS: Final = frozenset(Provider)


@dataclass(frozen=True, slots=True)
class Catalog:
    """One user's. What is his own comes before what is shared with him: of two aliases of one name his own is there.

    `models` are the ids that are known by key, empty where none are. `by_id` has every alias, for fallbacks. `planned`
    remembers the plans that neither chance nor prompts change.
    """

    user_id: int
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    keys: Mapping[int, ProviderKey] = field(default_factory=dict)
    models: Mapping[int, frozenset[str]] = field(default_factory=dict)
    by_id: Mapping[int, Alias] = field(default_factory=dict)
    planned: dict[str, tuple[Target, ...]] = field(default_factory=dict, repr=False, compare=False)


class Catalogs:
    """Every user's, by need. One load for all who wait for the same one.

    While the store is away, what is not older than `STALE` serves, unless something is known to have changed since.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[int, tuple[float, Catalog]] = OrderedDict()
        self._loading: dict[int, asyncio.Task[Catalog]] = {}
        self._models: WeakValueDictionary[int, frozenset[str]] = WeakValueDictionary()

    async def of(self, user_id: int) -> Catalog:
        """Raises StoreAway."""
        known = self._known.get(user_id)
        if known is not None and self._clock() - known[0] < FRESH:
            self._known.move_to_end(user_id)
            return known[1]
        loading = self._loading.get(user_id)
        if loading is None:
            loading = self._loading[user_id] = asyncio.create_task(self._load(user_id))
            loading.add_done_callback(_looked_at)
        try:
            return await asyncio.shield(loading)  # one caller who leaves takes it from nobody else
        except StoreAway:
            if known is not None and self._known.get(user_id) is known and self._clock() - known[0] < STALE:
                return known[1]
            raise

    def forget(self) -> None:
        """Something changed: what is being read now may be old already."""
        self._known.clear()
        self._loading.clear()

    async def _load(self, user_id: int) -> Catalog:
        task = asyncio.current_task()
        try:
            started = self._clock()
            async with self._store.reading() as connection:
                catalog = await read(connection, user_id, self._one_for_all)
            choosing = {alias.target_model for alias in catalog.by_id.values() if chooses(alias)}
            if choosing:
                await asyncio.to_thread(tokens.load, choosing)
            if self._loading.get(user_id) is task:
                self._known[user_id] = (started, catalog)
                self._known.move_to_end(user_id)
                while len(self._known) > USERS:
                    self._known.popitem(last=False)
            return catalog
        finally:
            if self._loading.get(user_id) is task:
                del self._loading[user_id]

    def _one_for_all(self, key_id: int, ids: frozenset[str]) -> frozenset[str]:
        """A shared key's list of models is in memory once, not once for each of its users."""
        known = self._models.get(key_id)
        if known == ids:
            return known
        self._models[key_id] = ids
        return ids


def _looked_at(loading: asyncio.Task[Catalog]) -> None:
    if not loading.cancelled():
        loading.exception()  # those who waited for it may all have left


async def read(
    connection: AsyncConnection,
    user_id: int,
    one_for_all: Callable[[int, frozenset[str]], frozenset[str]] = lambda _, ids: ids,
) -> Catalog:
    """A user's catalog as the store has it, in three queries. Raises StoreAway."""
    usable = or_(provider_keys.c.user_id == user_id, provider_keys.c.shared)
    found = await connection.execute(
        select(provider_keys).where(usable).order_by(provider_keys.c.user_id != user_id, provider_keys.c.id)
    )
    keys = {row.id: key_of(row) for row in found if row.provider in _PROVIDERS}  # a newer version of us may know more
    seen = or_(model_aliases.c.user_id == user_id, model_aliases.c.shared)
    found = await connection.execute(
        select(model_aliases).where(seen).order_by(model_aliases.c.user_id != user_id, model_aliases.c.id)
    )
    by_id = {row.id: alias_of(row) for row in found}
    aliases: dict[str, Alias] = {}
    for alias in by_id.values():
        aliases.setdefault(alias.alias, alias)
    rows = await connection.execute(
        select(provider_models.c.provider_key_id, provider_models.c.model_id)
        .join(provider_keys, provider_keys.c.id == provider_models.c.provider_key_id)
        .where(usable)
    )
    ids: dict[int, list[str]] = {}
    for key_id, model in rows:
        ids.setdefault(key_id, []).append(model)
    models = {key_id: one_for_all(key_id, frozenset(each)) for key_id, each in ids.items()}
    return Catalog(user_id, aliases, keys, models, by_id)


def chooses(alias: Alias) -> bool:
    """Whether its model depends on the prompt's tokens."""
    return bool((alias.use_light_model and alias.light_model) or (alias.long_model and alias.long_model_threshold))


def alias_of(row: Row[Any]) -> Alias:
    """An alias from its row."""
    return Alias(
        id=row.id,
        user_id=row.user_id,
        alias=row.alias,
        target_model=row.target_model,
        provider_key_id=row.provider_key_id,
        shared=row.shared,
        fallback_alias_id=row.fallback_alias_id,
        use_light_model=row.use_light_model,
        light_model_threshold=row.light_model_threshold,
        light_model=row.light_model,
        long_model=row.long_model,
        long_model_threshold=row.long_model_threshold,
        weight=row.weight,
        chain=tuple(Step(**step) for step in row.chain),
        parameters=row.parameters or NOTHING,
    )


def key_of(row: Row[Any]) -> ProviderKey:
    """A provider key from its row. Raises ValueError for a provider that we do not know."""
    return ProviderKey(
        id=row.id,
        user_id=row.user_id,
        provider=Provider(row.provider),
        label=row.label,
        sealed=row.encrypted_key,
        key_version=row.key_version,
        base_url=row.base_url,
        region=row.region,
        shared=row.shared,
    )
