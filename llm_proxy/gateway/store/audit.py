"""Who did what to whom: a row of `audit_log`, written in the transaction of the act itself. Leaves out reading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway.store import schema

if TYPE_CHECKING:
    from llm_proxy.gateway.routes import Ask


async def note(connection: AsyncConnection, ask: Ask | None, action: str, object: str = "", **detail: Any) -> None:
    """`action` is like "alias.delete", `object` like "alias:17"; `detail` is JSON, and nothing secret is in it.

    Without an ask it is the operator's own act, from the command line.
    """
    await connection.execute(
        insert(schema.audit_log).values(
            user_id=(ask.caller.user_id or None) if ask else None,
            action=action,
            object=object[:255],
            detail=detail,
            address=ask.address[:64] if ask else "",
        )
    )
