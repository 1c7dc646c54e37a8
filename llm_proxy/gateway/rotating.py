"""Encrypting all provider keys anew with another encryption key, while the gateway serves.

Row by row, each in a transaction of its own, the canary last: killed at any moment, it leaves every row readable with
the old key and the new one, and is simply begun again. Rows of TokenTracer's become ours. Leaves out where the keys
come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from llm_proxy.gateway.sealing import CANARY, Unreadable, WrongKey, guard
from llm_proxy.gateway.store import audit
from llm_proxy.gateway.store.schema import facts, provider_keys

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

    from llm_proxy.gateway.sealing import Sealer
    from llm_proxy.gateway.store.database import Store

_keys = provider_keys.c


class Unfinished(WrongKey):
    """Some rows open with none of the keys. All others are rotated; the old key is still needed, until these are put
    right and the rotation is run again."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """How many rows were rewritten, and how many were encrypted with the new key already."""

    rewritten: int
    current: int


def _told(_done: int, _of: int) -> None:
    """Nobody asked."""


async def rotate(store: Store, sealer: Sealer, report: Callable[[int, int], None] = _told) -> Rotated:
    """All rows to the sealer's own key, from its old ones; `report` is told rows done and rows to do.

    Afterwards nothing needs the old keys. May be run again always. Raises Unfinished, StoreAway; WrongKey, before
    anything is changed, where keys are missing.
    """
    await guard(store, sealer)
    rewritten, unreadable = 0, dict[int, str]()
    while True:
        async with store.reading() as connection:
            ids = [row for row in await connection.scalars(_due(sealer)) if row not in unreadable]
        for number, row in enumerate(ids, 1):
            try:
                async with store.writing() as connection:
                    rewritten += await _renew(connection, sealer, row)
            except Unreadable as error:
                unreadable[row] = f"provider key {row}: {error}"
            report(number, len(ids))
        if not ids and unreadable:
            raise Unfinished(
                f"{rewritten} provider keys were encrypted anew, and {len(unreadable)} cannot be read: "
                f"{'; '.join(unreadable.values())}. Delete or enter them anew, and rotate again; until then the old "
                f"encryption key is needed"
            )
        if not ids and (total := await _ended(store, sealer, rewritten)) is not None:
            return Rotated(rewritten, total - rewritten)


def _is_due(sealer: Sealer) -> ColumnElement[bool]:
    return _keys.key_id != sealer.key_id  # TokenTracer's have none


def _due(sealer: Sealer) -> Select[int]:
    return select(_keys.id).where(_is_due(sealer)).order_by(_keys.id)


async def _renew(connection: AsyncConnection, sealer: Sealer, row: int) -> bool:
    """Raises Unreadable. False where it has gone or was done meanwhile."""
    query = select(provider_keys).where(_keys.id == row, _is_due(sealer)).with_for_update()
    found = (await connection.execute(query)).one_or_none()
    if found is None:
        return False
    opened = sealer.unsealed(found.encrypted_key, row=found.id, user=found.user_id, version=found.key_version)
    sealed = sealer.seal(opened, row=found.id, user=found.user_id)
    values = {"encrypted_key": sealed.text, "key_version": sealed.version, "key_id": sealed.key_id}
    await connection.execute(update(provider_keys).where(_keys.id == row).values(values))
    return True


async def _ended(store: Store, sealer: Sealer, rewritten: int) -> int | None:
    """Says in the store that only the new key counts; how many rows it has. None where a row came in meanwhile.

    Whoever seals holds the canary (`sealing.hold`), so none can come in unseen.
    """
    async with store.writing() as connection:
        canary = await connection.scalar(select(facts.c.value).where(facts.c.name == CANARY).with_for_update())
        if await connection.scalar(select(func.count()).where(_is_due(sealer))):
            return None
        if rewritten or sealer.check_canary(canary or "") != sealer.key_id:
            await connection.execute(update(facts).where(facts.c.name == CANARY).values(value=sealer.canary()))
            await audit.note(connection, None, "provider_key.rotate", rewritten=rewritten, key_id=sealer.key_id)
            await store.changed(connection)
        return int(await connection.scalar(select(func.count()).select_from(provider_keys)) or 0)
