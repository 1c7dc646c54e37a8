"""`GET /health/gateway`: whether this process can serve calls. Leaves out the proxy's own `/health`."""

from __future__ import annotations

import msgspec
from sqlalchemy import text

from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.store.database import StoreAway


class Health(msgspec.Struct, frozen=True):
    status: str
    version: str


async def _health(ask: Ask) -> Health:
    try:
        async with ask.site.store.reading() as connection:
            await connection.execute(text("SELECT 1"))
    except StoreAway as error:
        raise Refusal(503, "store_away", str(error), headers={"Retry-After": "5"}) from None
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
