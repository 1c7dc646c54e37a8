"""`/manage/machines`: the machines of the store, and forgetting one that is gone for good.

Leaves out how a machine comes into the list: it says every few seconds that it lives (`machine`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from sqlalchemy import delete, select

from llm_proxy.gateway.manage.deletions import AWAY
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.schema import machines, now


class Machine(msgspec.Struct, frozen=True):
    """`address` is where others reach it, "" where nobody has said. `away` has not been heard of lately."""

    id: str
    name: str
    version: str
    address: str
    seen_at: datetime
    state: Literal["serving", "away"]


async def list_machines(ask: Ask) -> list[Machine]:
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(select(machines).order_by(machines.c.name, machines.c.id))).all()
    return [_machine(row) for row in rows]


async def forget(ask: Ask) -> None:
    """Nothing waits for it any more. Raises Refusal 404, 409 for one that serves."""
    id = ask.params["id"]
    async with ask.site.store.writing() as connection:
        row = (await connection.execute(select(machines).where(machines.c.id == id))).one_or_none()
        if row is None:
            raise not_found(f"machine {id[:64]}")
        if not _is_away(row.seen_at):
            raise Refusal(409, "machine_serves", f"machine {id} serves: stop it first, or it is back in a moment")
        await connection.execute(delete(machines).where(machines.c.id == id))
        await note(connection, ask, "machine.delete", f"machine:{id}", name=row.name, seen_at=row.seen_at.isoformat())


def _machine(row: Any) -> Machine:
    state: Literal["serving", "away"] = "away" if _is_away(row.seen_at) else "serving"
    return Machine(row.id, row.name, row.version, row.address, row.seen_at, state)


def _is_away(seen_at: datetime) -> bool:
    return now() - seen_at > AWAY


ROUTES: Final = (
    Route("GET", "/manage/machines", Access.ADMIN, "The machines of the gateway", list_machines, gives=list[Machine]),
    Route(
        "DELETE",
        "/manage/machines/{id}",
        Access.ADMIN,
        "Forget a machine that is gone for good; no deletion waits for it any more",
        forget,
        status=204,
    ),
)
