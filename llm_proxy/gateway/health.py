"""`GET /health/gateway`: whether this process can serve calls. Leaves out the proxy's own `/health`."""

from __future__ import annotations

import msgspec
from sqlalchemy import text

from llm_proxy.gateway.routes import Access, Ask, Route


class Health(msgspec.Struct, frozen=True):
    status: str
    version: str


async def _health(ask: Ask) -> Health:
    """Raises StoreAway, which is told to everybody without where the store is."""
    async with ask.site.store.reading() as connection:
        await connection.execute(text("SELECT 1"))
    return Health("ok", ask.site.options.version)


ROUTES = (
    Route(
        "GET",
        "/health/gateway",
        Access.PUBLIC,
        "Whether calls can be served: 503 while the store is away.",
        handler=_health,
        gives=Health,
    ),
)
